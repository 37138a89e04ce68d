"""The page of an audit: confusion of classes, changed labels with their evidence, galleries by class, senses."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.clean.report import read_config
from noisycorr.clean.report.batches import read_binary
from noisycorr.clean.report.frequency_sketch import clip, plain
from noisycorr.clean.report.gallery import SHOWN, jpeg_size
from noisycorr.clean.report.gather import cause
from noisycorr.clean.report.page import CONTROL, dump, fill
from noisycorr.data.store import part_ranges, read_scores
from noisycorr.runtime.folder import AUDIT_CONFIG, Run, atomic_path, write_json

LISTED, CLASSES, EACH = 20, 60, 6  # rows of a table, classes with a gallery, cards in each
LENT = 2  # donors that a card shows
READ = ["key", "text", "label", "label_rectified", "label_proposed", "p_clean", "p_proposed", "out_of_set", "verdict",
        "reason", "text_donors"]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCard:
    """One row as it is shown."""

    key: str
    text: str
    label: str
    fixed: str
    p: float | None
    verdict: str
    reason: str
    lent: list[tuple[str, str]]
    jpeg: bytes
    size: tuple[int, int]


def write_audit_report(run: Run) -> Path:
    """Read an audited run and write `report.json` and `report.html`; equal runs give equal bytes.

    Args:
        run: Whose stages `audit_score` and `audit` are done.

    Returns:
        Path of report.html.
    """
    ledger = pa.concat_tables([pq.read_table(run.folder / "ledger" / f"{index:05d}.parquet", columns=READ)
                               for index, _, _ in part_ranges(run)])  # fmt: skip
    scored, decided = (run.stage(name) or {} for name in ("audit_score", "audit"))
    known, facts = scored["facts"], decided["facts"]
    column = {name: ledger.column(name).to_pylist() for name in READ}
    p = np.array([np.nan if value is None else value for value in column["p_clean"]], float)
    classes = _by_class(column, p)
    body = plain({
        "counts": {"rows": len(ledger), "verdicts": facts["verdicts"]}, "noise_rate": known.get("noise_rate"),
        "confusion": _confusion(column, p, facts["p_threshold"]), "classes": classes, "weights": known["weights"],
        "confident": known.get("confident"), "warnings": known["warnings"], "senses": _senses(run, known, p),
    })  # fmt: skip
    write_json(run.path("report.json"), body)
    chosen = _chosen(column, p, [row[0] for row in classes])
    cards = _cards(run, column, p, sorted({row for rows in chosen.values() for row in rows}))
    config, sources = read_config(run, AUDIT_CONFIG)
    folder = config.get("output_folder")
    overlaps = [(known["classes"][a], known["classes"][b], f"{share:.2%}")
                for a, b, share in (known.get("confident") or {}).get("overlaps", [])]  # fmt: skip
    page = fill(
        Path(__file__).with_name("audit.html"),
        source=config["path"] if isinstance(config.get("path"), str) else "",
        verdict=_sentence(len(ledger), facts["verdicts"], known.get("noise_rate")),
        warnings=known["warnings"], rows=len(ledger), verdicts=facts["verdicts"], threshold=facts["p_threshold"],
        reasons=_reasons(column), confusion=body["confusion"][:LISTED], overlaps=overlaps,
        changed=[cards[row] for row in chosen["changed"]], outside=[cards[row] for row in chosen["outside"]],
        classes=[(*row[:6], "–" if row[6] is None else f"{row[6]:.3f}") for row in classes[:CLASSES]],
        galleries=[(name, [cards[row] for row in chosen[f"class {name}"]]) for name in
                   [row[0] for row in classes[:CLASSES]]],
        senses=[(*row[:3], "–" if row[3] is None else f"{row[3]:.3f}") for row in body["senses"]],
        neighbors=f"{known['neighbors']['method']}, recall {known['neighbors']['recall']:.3f}",
        weights=list(known["weights"].items()),
        commands=_commands(column, chosen, folder if isinstance(folder, str) else str(run.folder)),
        sources={**sources, "Facts of the audit": dump(scored), "Facts of the verdicts": dump(decided)},
    )  # fmt: skip
    path = run.path("report.html")
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return path


def _sentence(rows: int, verdicts: dict[str, int], rate: float | None) -> str:
    told = f"{rows:,} labels: " + ", ".join(f"{count:,} {name}" for name, count in sorted(verdicts.items()))
    return told if rate is None else f"{told}. About {rate:.0%} look wrong."


def _reasons(column: dict[str, list[Any]]) -> list[tuple[str, str, int]]:
    count = Counter((verdict, clip(_kind(reason), 120)) for verdict, reason in zip(column["verdict"], column["reason"]))
    return [(*name, number) for name, number in count.most_common(30)]


def _kind(reason: str) -> str:
    """A reason without names and numbers of single rows."""
    for word in ("looks like none", "looks like ", "the label looks wrong", "labels ", "label ", "no label"):
        if reason.startswith(word):
            return {"looks like ": "looks like another class", "label ": "the label is not in the class list",
                    "labels ": "some of the labels do not fit", "no label": "no label, or none that fits",
                    "looks like none": "looks like none of the classes"}.get(word, word.strip())  # fmt: skip
    return cause(reason)


def _confusion(column: dict[str, list[Any]], p: np.ndarray, threshold: float) -> list[tuple[str, str, int, int]]:
    wrong = np.flatnonzero(p < threshold)
    pair = Counter((column["label"][i], column["label_proposed"][i]) for i in wrong if column["label_proposed"][i])
    changed = Counter(
        (column["label"][i], column["label_proposed"][i]) for i in wrong if column["verdict"][i] == "relabel"
    )
    ranked = sorted(pair.items(), key=lambda item: (-item[1], item[0]))
    return [(clip(given, 80), clip(other, 80), count, changed[given, other]) for (given, other), count in ranked]


def _by_class(column: dict[str, list[Any]], p: np.ndarray) -> list[tuple[str, int, int, int, int, int, float | None]]:
    """Name, rows, verdicts and mean p_clean of each given label; the most doubtful first."""
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(column["label"]):
        if name:
            rows.setdefault(name, []).append(i)
    out = []
    for name, mine in rows.items():
        count = Counter(column["verdict"][i] for i in mine)
        good = p[mine][np.isfinite(p[mine])]
        out.append((name, len(mine), count["keep"], count["relabel"], count["drop"], count["review"],
                    float(good.mean()) if len(good) else None))  # fmt: skip
    return sorted(out, key=lambda row: (row[6] is None, row[6], row[0]))


def _senses(run: Run, known: dict[str, Any], p: np.ndarray) -> list[tuple[str, str, int, float | None]]:
    """Rows by best sense, of classes with several."""
    if all(len(senses) < 2 for senses in known["senses"]):
        return []
    sense = read_scores(run, ["sense"]).column("sense").to_numpy()
    out, place = [], 0
    for name, senses in zip(known["classes"], known["senses"]):
        for text in senses:
            mine = (sense == place) & np.isfinite(p)
            if len(senses) > 1:
                out.append((name, clip(text, 120), int(mine.sum()), float(p[mine].mean()) if mine.any() else None))
            place += 1
    return out


def _chosen(column: dict[str, list[Any]], p: np.ndarray, names: list[str]) -> dict[str, list[int]]:
    """Rows of every gallery."""
    sure = np.nan_to_num(np.array([value or 0 for value in column["p_proposed"]], float))
    outside = np.nan_to_num(np.array([value or 0 for value in column["out_of_set"]], float))
    verdict = np.array(column["verdict"], object)
    changed, dropped = np.flatnonzero(verdict == "relabel"), np.flatnonzero((verdict == "drop") & (outside > 0))
    out = {"changed": changed[np.argsort(-sure[changed], kind="stable")][: 2 * SHOWN].tolist(),
           "outside": dropped[np.argsort(-outside[dropped], kind="stable")][:SHOWN].tolist()}  # fmt: skip
    label = np.array([name or "" for name in column["label"]], object)
    for name in names[:CLASSES]:
        mine = np.flatnonzero((label == name) & np.isfinite(p))
        order = mine[np.argsort(p[mine], kind="stable")]
        out[f"class {name}"] = list(dict.fromkeys([*order[: EACH // 2].tolist(), *order[::-1][: EACH // 2].tolist()]))
    return out


def _cards(run: Run, column: dict[str, list[Any]], p: np.ndarray, rows: list[int]) -> dict[int, LabelCard]:
    jpeg: dict[int, bytes] = {}
    for index, start, size in part_ranges(run):
        mine = [row - start for row in rows if start <= row < start + size]
        if mine:
            found = read_binary(run.folder / "pairs" / f"{index:05d}.parquet", "thumbnail", mine)
            jpeg |= {start + at: data for at, data in found.items() if data}
    text_of = dict(zip(column["key"], column["text"]))
    out = {}
    for row in rows:
        shown = jpeg_size(jpeg.get(row, b""))
        lent = [(key, text_of.get(key) or "") for key in (column["text_donors"][row] or [])[:LENT]]
        out[row] = LabelCard(
            key=column["key"][row], text=clip(column["text"][row] or "", 400), label=column["label"][row] or "(none)",
            fixed=column["label_rectified"][row] or "", p=float(p[row]) if np.isfinite(p[row]) else None,
            verdict=column["verdict"][row], reason=column["reason"][row], lent=lent,
            jpeg=jpeg[row] if shown else b"", size=shown or (0, 0),
        )  # fmt: skip
    return out


def _commands(column: dict[str, list[Any]], chosen: dict[str, list[int]], folder: str) -> list[tuple[str, str]]:
    shown = next((rows[0] for rows in chosen.values() if rows), None)
    key = CONTROL.sub("", clip(column["key"][shown], 80)) if shown is not None else "KEY"
    where = shlex.quote(folder)
    return [
        (f"noisycorr explain {where} {shlex.quote(key)}", "why one label was kept or changed, with every score"),
        (
            f"noisycorr export {where} --output_format parquet",
            "what is kept, and what got another label: the right one is in label_rectified",
        ),
        (
            f"noisycorr audit --config {shlex.quote(str(Path(folder) / AUDIT_CONFIG))} --relabel_threshold 0.95",
            "change fewer labels; takes seconds",
        ),
    ]
