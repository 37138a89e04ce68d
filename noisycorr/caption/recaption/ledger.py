"""`recaption` on a run folder: which rows, new texts for them, and an overlay on the ledger. The given text stays."""

from __future__ import annotations

import collections
import dataclasses
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.caption.recaption.choice import Recaption
from noisycorr.caption.recaption.propose import trusted_rows
from noisycorr.caption.recaption.repair import Encode, Joint, Repairs, Write, repair
from noisycorr.clean.score import Loaded
from noisycorr.data.store import part_ranges
from noisycorr.runtime import console
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

COLUMNS = {
    "recaption": pa.string(), "text_proposed": pa.string(), "text_rectified": pa.string(), "text_source": pa.string(),
    "text_donor": pa.string(), "text_level": pa.int32(), "recaption_note": pa.string(),
    "score_text_given": pa.float32(), "score_text_new": pa.float32(),
}  # fmt: skip
CHUNK = 256  # pictures that a captioner gets at once
Told = tuple[list[str], list[int | None]]  # texts, and the level of each


def marked_rows(ledger: pa.Table, choice: Recaption, has_image: np.ndarray, has_text: np.ndarray) -> np.ndarray:
    """int (m,): rows that get a proposal.

    Pairs with a picture that were not judged as right by a person or kept, and of which one of these holds: the text
    is missing or has an issue; or the pair is marked as mismatched, to be reviewed or to be repaired, and its p_clean
    lies below the line, or the line is 1. A near-duplicate that was dropped as such is none of them, nor is a picture
    with an issue.
    """
    verdict = ledger.column("verdict").to_numpy(zero_copy_only=False)
    p_clean = ledger.column("p_clean").to_numpy()
    with np.errstate(invalid="ignore"):
        low = (p_clean < choice.below) | (choice.below == 1)
    doubted = ledger.column("is_mismatch_issue").to_numpy(zero_copy_only=False) | np.isin(
        verdict, ("review", "recaption")
    )
    bad_text = ~has_text | ledger.column("is_text_issue").to_numpy(zero_copy_only=False)
    bad_image = ledger.column("is_image_issue").to_numpy(zero_copy_only=False)
    return np.flatnonzero(has_image & ~bad_image & (verdict != "keep") & ((doubted & low) | bad_text))


def recaption_run(choice: Recaption, run: Run, loaded: Loaded, *, joint: Joint | None, write: Write | None = None,
                  encode: Encode | None = None) -> dict[str, Any]:  # fmt: skip
    """Propose texts for the marked rows of a decided run, and write what came of it into its ledger.

    Args:
        choice: How.
        run: A folder whose decide stage is done, with a ledger that no recaption has touched.
        loaded: Its pairs.
        joint: As in ``repair``.
        write: A captioner, or None to borrow texts. What it wrote is kept in `recaption/`, so that it is asked once.
        encode: Texts to features, or None.

    Returns:
        Facts for the stage record and the report; `summary` is what to tell the person.
    """
    ledger = read_ledger(run)
    verdict = ledger.column("verdict").to_numpy(zero_copy_only=False)
    p_clean = ledger.column("p_clean").to_numpy()
    rows = marked_rows(ledger, choice, loaded.has_image, loaded.has_text)
    trust = trusted_rows(p_clean, (verdict == "keep") & loaded.view.present, least=choice.trust)
    kept = _Written(run, write, ledger, choice) if write is not None else None
    repairs = None
    if len(rows):
        repairs = repair(
            loaded.view, loaded.texts, rows, trust, p_clean, choice, joint=joint, write=kept, encode=encode
        )
    run.finish("recaption_started", {"recaption": dataclasses.asdict(choice)})  # from here on the ledger is changed
    _apply(run, repairs, ledger.column("key").to_pylist(), choice, {} if kept is None else kept.levels)
    return _facts(repairs, len(ledger), int((trust > 0).sum()), getattr(write, "level", None))


def read_ledger(run: Run) -> pa.Table:
    """The whole ledger in row order.

    Raises:
        UsageError: If a part of it is missing.
    """
    tables = []
    for index, _, size in part_ranges(run):
        path = run.folder / "ledger" / f"{index:05d}.parquet"
        if not path.exists() or pq.read_metadata(path).num_rows != size:
            raise UsageError(f"{run.folder} has no ledger that fits its pairs: run `noisycorr clean` into it again.")
        tables.append(pq.read_table(path))
    return pa.concat_tables(tables)


class _Written:
    """A captioner that is asked once for each picture: its texts are kept in files of a few hundred rows."""

    def __init__(self, run: Run, write: Write, ledger: pa.Table, choice: Recaption) -> None:
        self.run, self.write = run, write
        self.levels: dict[int, int | None] = {}  # of each row that was asked for
        self.name = str(getattr(write, "name", "captioner"))
        self.keys = ledger.column("uid").to_pylist()
        if (plain := getattr(write, "undisturbed", None)) is not None:
            self.undisturbed = lambda rows: self._kept(rows, ["undisturbed"], partial(_without_levels, plain))[0]
        if (shaken := getattr(write, "disturbed", None)) is not None:
            self.disturbed = lambda rows, turn: self._kept(
                rows, ["disturbed", turn, choice.disturbance, choice.recaption_seed],
                partial(_without_levels, lambda some: shaken(some, turn)),
            )[0]  # fmt: skip

    def __call__(self, rows: np.ndarray) -> list[str]:
        texts, levels = self._kept(rows, ["levels"], self._ask)
        self.levels.update(zip(rows.tolist(), levels))
        return texts

    def _kept(self, rows: np.ndarray, what: list[Any], ask: Callable[[np.ndarray], Told]) -> Told:
        """Texts and levels of all rows, of which a captioner is asked for those that no file has.

        Args:
            rows: Of the set.
            what: Is wanted, and what it depends on beside the captioner and the pairs.
            ask: For some rows.
        """
        texts: list[str] = []
        levels: list[int | None] = []
        with console.bar(label="recaption", total=len(rows)) as bar:
            for start in range(0, len(rows), CHUNK):
                new = self._chunk(rows[start : start + CHUNK], what, ask)
                texts += new[0]
                levels += new[1]
                bar.update(len(new[0]))
        return texts, levels

    def _chunk(self, some: np.ndarray, what: list[Any], ask: Callable[[np.ndarray], Told]) -> Told:
        said = fingerprint([self.name, *what, [self.keys[row] for row in some.tolist()], some.tolist()])
        path = self.run.path("recaption", f"{said}.json")
        if not path.exists():
            new, of = ask(some)
            if len(new) != len(some):
                raise UsageError(f"the captioner wrote {len(new)} texts for {len(some)} pictures.")
            body = json.dumps({"texts": new, "levels": of}, ensure_ascii=False)
            with atomic_path(path) as temporary:
                temporary.write_text(body, encoding="utf-8")
        stored = json.loads(path.read_text(encoding="utf-8"))
        return stored["texts"], stored["levels"]

    def _ask(self, rows: np.ndarray) -> Told:
        """Texts and their levels; a captioner that tells no level of each text has one for all, or none."""
        if (at_levels := getattr(self.write, "at_levels", None)) is not None:
            texts, levels = at_levels(rows)
        else:
            texts, levels = self.write(rows), [getattr(self.write, "level", None)] * len(rows)
        return [str(text or "") for text in texts], levels


def _without_levels(write: Write, rows: np.ndarray) -> Told:
    return [str(text or "") for text in write(rows)], [None] * len(rows)


def _apply(run: Run, repairs: Repairs | None, keys: Sequence[str], choice: Recaption,
           levels: Mapping[int, int | None]) -> None:  # fmt: skip
    """The ledger with the columns of `COLUMNS`; verdict, reason, stage and weight change where a text was taken."""
    number_of = {} if repairs is None else {int(row): number for number, row in enumerate(repairs.rows)}
    for index, start, size in part_ranges(run):
        path = run.folder / "ledger" / f"{index:05d}.parquet"
        table = pq.read_table(path)
        body = {name: table.column(name).to_pylist() for name in ("verdict", "reason", "rule", "stage")}
        weight = table.column("sample_weight").to_numpy().copy()
        new: dict[str, list[Any]] = {name: [None] * size for name in COLUMNS}
        new |= {name: [np.nan] * size for name in ("score_text_given", "score_text_new")}
        for row in range(size):
            if repairs is None or (number := number_of.get(start + row)) is None:
                continue
            for name, value in _cells(repairs, number, keys, levels.get(start + row)).items():
                new[name][row] = value
            changed = _verdict(repairs, number)
            if changed is not None:
                body["verdict"][row], body["reason"][row], weight[row] = changed
                body["stage"][row] = "recaption"
                body["rule"][row] = f"p_new>={choice.least:g} and gain>={choice.gain:g}"
        for name, values in body.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
        table = table.set_column(table.column_names.index("sample_weight"), "sample_weight", pa.array(weight))
        for name, kind in COLUMNS.items():
            table = table.append_column(name, pa.array(new[name], kind))
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")


def _cells(repairs: Repairs, number: int, keys: Sequence[str], level: int | None) -> dict[str, Any]:
    action, donor = str(repairs.action[number]), int(repairs.donor[number])
    if action == "none":
        return {"recaption": "none"}
    taken = action in ("replace", "merge")
    return {
        "recaption": action, "text_proposed": repairs.texts[number], "text_source": repairs.source,
        "text_rectified": repairs.texts[number] if taken else None, "recaption_note": repairs.guard[number],
        "text_donor": keys[donor] if donor >= 0 else None, "text_level": level,
        "score_text_given": repairs.p_old[number], "score_text_new": repairs.p_new[number],
    }  # fmt: skip


def _verdict(repairs: Repairs, number: int) -> tuple[str, str, float] | None:
    """Verdict, reason and weight of a row whose text was taken or is to be looked at; None if nothing changes."""
    action, p_old, p_new = repairs.action[number], float(repairs.p_old[number]), float(repairs.p_new[number])
    before = f"{p_old:.2f}" if np.isfinite(p_old) else "no text"
    change = f"the given fits with {before}, the new one with {p_new:.2f}"
    if action in ("replace", "merge"):
        word = "the text was replaced" if action == "replace" else "the text was merged with a new one"
        return "recaption", f"{word}: {change}", p_new
    if action == "flag":
        guard = repairs.guard[number]
        why = f"a new text is proposed, but has {guard}" if guard and guard != "unsteady" else "a new text is proposed"
        why = "a new text is proposed, but is unsteady" if guard == "unsteady" else why
        return "review", f"{why}: {change}", 0.0
    return None


def _facts(repairs: Repairs | None, pairs: int, trusted: int, level: int | None) -> dict[str, Any]:
    actions: collections.Counter[str] = collections.Counter([] if repairs is None else repairs.action.tolist())
    guards: collections.Counter[str] = collections.Counter(
        [] if repairs is None else [guard for guard in repairs.guard if guard is not None]
    )
    facts: dict[str, Any] = {
        "pairs": pairs, "marked": sum(actions.values()), "trusted": trusted, "actions": dict(sorted(actions.items())),
        "guards": dict(sorted(guards.items())), "source": repairs.source if repairs else None, "level": level,
        **({} if repairs is None else repairs.facts),
    }  # fmt: skip
    told = ", ".join(f"{count:,} {name}" for name, count in sorted(actions.items())) or "nothing to do"
    facts["summary"] = [f"{facts['marked']:,} of {pairs:,} pairs need a text, {trusted:,} can lend one: {told}"]
    jury, share = facts.get("jury", {}), facts.get("new", {}).get("share_wrong")
    if share:
        facts["summary"].append(f"up to {share:.0%} of the new texts fit no better than texts of other pictures")
    if jury and not jury["voted"]:
        facts["summary"].append("warning: no scorer tells right from wrong pairs, so no text was changed")
    elif jury.get("warning"):
        facts["summary"].append(f"warning: {jury['warning']}")
    return facts
