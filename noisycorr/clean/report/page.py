"""From numbers and cards to one self-contained HTML page: all text from data is escaped, nothing is loaded."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from noisycorr.clean.report import plots
from noisycorr.clean.report.decision import Decision, percent, verdict_sentence
from noisycorr.clean.report.frequency_sketch import clip
from noisycorr.clean.report.gallery import Card
from noisycorr.clean.report.nutrition import length_names, source_of
from noisycorr.runtime.version import __version__

FOLDER = Path(__file__).parent
CONFIG = 60_000  # characters of configuration and provenance that are shown
NUMERIC = re.compile(r"[-–\d.,]+(e[-+]\d+)?(\u00a0%)?")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
GALLERIES = {
    "replaced": ("New texts", "The given text is struck out, the new one stands below it; largest gain first.", ""),
    "flagged": ("Proposed texts", "Not taken: a person should look at these first.", ""),
    "wrong": ("Surest wrong", "Lowest p_clean first.", "No pair lies below the threshold of p_clean."),
    "right": ("Surest right", "Highest p_clean first.", "No pair lies at or above the threshold of p_clean."),
    "borderline": (
        "Borderline",
        "Closest to the threshold: a look at these tells whether it stands well.",
        "No pair has a p_clean within 0.2 of the threshold.",
    ),
    "image": ("Image issues", "Worst first, every kind of issue in turn.", "No pair has an image issue."),
    "text": ("Text issues", "Worst first, every kind of issue in turn.", "No pair has a text issue."),
}


def render(
    report: Mapping[str, Any], decision: Decision, galleries: Mapping[str, list[Card]], groups: list[list[Card]],
    config: Mapping[str, Any], output_folder: str, sources: Mapping[str, str],
) -> str:  # fmt: skip
    """The page.

    Args:
        report: The value of report.json.
        decision: What the decide stage estimated.
        galleries: Cards with thumbnails by gallery.
        groups: Cards of near-duplicate groups.
        config: The resolved configuration.
        output_folder: The run folder as the user names it, for the commands.
        sources: Title and text of files to be shown at the end.
    """
    counts = report["counts"]
    return fill(
        FOLDER / "template.html",
        source=source_of(config) or "",
        verdict=verdict_sentence(decision, counts),
        decision=decision,
        counts=counts,
        balance=balance(counts),
        score_plots=score_plots(report["scores"], decision),
        calibrated=calibrated_plot(report["scores"], decision),
        calibration_notes=calibration_notes(report["scores"], decision),
        truth=report["truth"],
        reliability=reliability_plot(report["truth"]),
        galleries=[(name, *GALLERIES[name], cards) for name, cards in galleries.items()],
        codes=counts["codes"],
        groups=groups,
        group_facts=report["groups"],
        splits=list(report["columns"]["splits"].items())[:5],
        joint=joint_plot(report["content"]["length_by_p_clean"]["counts"]),
        label=report["nutrition"],
        commands=commands(galleries, output_folder),
        sources=sources,
    )


def fill(template: Path, *, sources: Mapping[str, str], **values: Any) -> str:
    """A page from a template; every value is escaped but markup of ours.

    Args:
        template: The file; the style and the parts that all pages share lie beside this module.
        sources: Title and text of files to be shown at the end.
        values: What the template asks for.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, FOLDER]), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "percent": percent, "visible": visible, "uri": data_uri}
    environment.filters |= {"breakable": breakable}
    environment.tests["numeric"] = numeric
    environment.globals["full_text"] = full_text
    page = environment.get_template(template.name).render(
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        version=__version__,
        sources={title: clip(text, CONFIG) for title, text in sources.items() if text},
        **values,
    )
    return CONTROL.sub("\ufffd", page)


def number(value: Any) -> str:
    """Integers with thousands separators, other numbers in four digits, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def visible(text: str | None, length: int = 160) -> str:
    """A text for the page: cut, never empty."""
    shown = clip(text or "", length)
    return shown if shown.strip() else "(no text)"


def breakable(text: str) -> Markup:
    """The text, escaped, with leave to break lines after underscores and slashes."""
    return escape(text).replace("_", Markup("_<wbr>")).replace("/", Markup("/<wbr>"))


def numeric(value: Any) -> bool:
    """True for what belongs flush right in a table: numbers, percentages and dashes."""
    return isinstance(value, int | float) or bool(NUMERIC.fullmatch(str(value)))


def full_text(card: Card) -> str:
    """What stands in the tooltip: the text up to 1,000 characters, and how long it is if that is not all."""
    shown = card.text or ""
    rest = "" if card.text_length <= len(shown) else f" … ({card.text_length:,} characters in all)"
    return shown + rest


def data_uri(jpeg: bytes) -> str:
    """A JPEG as an address that needs no file."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def balance(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Counts in = counts out, as a bar and two tables."""
    styles = {"keep": "keep", "drop": "drop"}
    order = sorted(counts["verdicts"].items(), key=lambda item: (("keep", "review").count(item[0]) == 0, item[0]))
    parts = [(styles.get(name, "other"), name, count) for name, count in order]
    return {
        "bar": plots.stacked_bar(parts, "Pairs by verdict"),
        "parts": parts,
        "incoming": [("read", counts["read"]), ("unreadable", counts["unreadable"])],
    }


def score_plots(scores: Mapping[str, Any], decision: Decision) -> list[dict[str, Any]]:
    """One histogram for each score but the calibrated one, kept and dropped apart."""
    out = []
    for name, score in sorted(scores.items(), key=lambda item: (item[0] != "p_clean", item[0])):
        if name == decision.score and "edges" in score:
            continue
        if "edges" not in score:
            out.append({"name": name, "skipped": "no pair has a value.", "plot": "", "score": score})
            continue
        mark = decision.threshold if name == "p_clean" else None
        plot = plots.histogram(score["edges"], _parts(score), f"Histogram of {name} by verdict", mark=mark)
        out.append({"name": name, "plot": plot, "score": score, "skipped": ""})
    return out


def calibrated_plot(scores: Mapping[str, Any], decision: Decision) -> Markup | None:
    """The calibrated score with the fitted mixture and the curve of p_clean; None if there is none."""
    score = scores.get(decision.score, {})
    if "edges" not in score:
        return None
    lines: list[plots.Line] = []
    if decision.density:
        scale = score["count"] * (score["edges"][1] - score["edges"][0])
        x = decision.density["x"]
        lines = [
            (f"line {name}", x, [scale * y for y in decision.density[name]]) for name in ("total", "clean", "noise")
        ]
    curve = ("line p", *decision.curve) if decision.curve else None
    label = f"Histogram of {decision.score} by verdict with the fitted mixture"
    return plots.histogram(score["edges"], _parts(score), label, lines=lines, curve=curve, size=(520, 300))


def calibration_notes(scores: Mapping[str, Any], decision: Decision) -> list[str]:
    """What could not be drawn, and why."""
    notes = []
    if "edges" not in scores.get(decision.score, {}):
        notes.append(f"The calibrated score is not drawn: the ledger holds no value of {decision.score}.")
    if decision.density is None:
        notes.append("The mixture is not drawn: the decide stage recorded no density.")
    if decision.curve is None:
        notes.append("The curve of p_clean is not drawn: the decide stage did not record it.")
    if decision.noise_rate is None:
        notes.append("No noise rate is stated: the decide stage recorded none.")
    return notes


def reliability_plot(truth: Mapping[str, Any]) -> Markup | None:
    """Calibration against known truth; None where no truth is known."""
    if not truth.get("reliability"):
        return None
    points = [(row["mean_p_clean"], row["share_right"], row["pairs"]) for row in truth["reliability"]]
    return plots.reliability(points, "Share of right pairs by p_clean")


def joint_plot(grid: Sequence[Sequence[int]]) -> Markup | None:
    """Text length by p_clean as shades; None without data."""
    rows = [(name, row) for name, row in zip(length_names(), grid) if sum(row)]
    if not rows:
        return None
    names, counts = [name for name, _ in rows], [row for _, row in rows]
    return plots.heat(counts, names, ("p_clean 0", "1"), "p_clean by length of the text in characters")


def commands(galleries: Mapping[str, list[Card]], output_folder: str) -> list[tuple[str, str]]:
    """What to do next: command and what it is for."""
    shown = [card for cards in galleries.values() for card in cards]
    key = CONTROL.sub("", clip(shown[0].key, 80)) if shown else "KEY"
    folder = shlex.quote(output_folder)
    return [
        (f"noisycorr explain {folder} {shlex.quote(key)}", "why one pair was kept or dropped, with every score"),
        (f"noisycorr decide {folder} --precision 0.95", "drop only what is wrong with 95 % precision"),
        (f"noisycorr export {folder} --only keep", "write the kept pairs; the source is never changed"),
    ]


def dump(value: Any) -> str:
    """JSON to be read by people; long lists of numbers are left to report.json."""
    return json.dumps(_shorten(value), indent=2, sort_keys=True, ensure_ascii=False, default=str)


def _shorten(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _shorten(item) for name, item in value.items()}
    if isinstance(value, list):
        return f"({len(value)} values)" if len(value) > 20 else [_shorten(item) for item in value]
    return value


def _parts(score: Mapping[str, Any]) -> dict[str, list[int]]:
    return {part: score["counts"][part] for part in ("keep", "other", "drop")}
