"""The dataset nutrition label: what is in the set, module by module, each with its method or the reason it is absent.

After The Dataset Nutrition Label (Holland et al., 2018): metadata, provenance, variables, statistics, pair plots,
probabilistic model and ground-truth correlation, with further modules for image-text pairs. The label is a JSON value
with sorted keys and no times, so that the labels of two versions of a set can be compared line by line.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from noisycorr.clean.report.columns import METHOD
from noisycorr.clean.report.content import LENGTHS, TEXTS
from noisycorr.clean.report.decision import Decision, percent
from noisycorr.runtime.version import __version__

Numbers = Mapping[str, Any]


def nutrition_label(
    numbers: Numbers, decision: Decision, config: Mapping[str, Any], embed: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole label.

    Args:
        numbers: What `gather` counted.
        decision: What the decide stage estimated.
        config: The resolved configuration of the run; {} if unknown.
        embed: Inputs and facts of the embed stage; {} if unknown.

    Returns:
        JSON: `version` and `modules`. A module holds `title`, `method`, and either `skipped` (a reason) or `facts`
        (name to value) and `tables` (title, header, rows).
    """
    modules = [
        _metadata(numbers, config, embed), _provenance(config, embed), _variables(numbers, embed), _statistics(numbers),
        _joint(numbers), _alignment(numbers, decision), _model(numbers), _correlation(numbers), _noise(decision),
        _pictures(numbers), _texts(numbers), _repeats(numbers), _duplicates(numbers), _head_tail(numbers),
        _skip("Text inside pictures", "Optical character recognition.", "this version reads no text in pictures."),
        _broken(numbers), _licences(numbers), _cleaning(numbers, decision), _limits(numbers, decision, embed),
    ]  # fmt: skip
    return {"version": f"noisycorr {__version__}", "modules": modules}


def _module(title: str, method: str, facts: Mapping[str, Any], tables: Sequence[Any] = ()) -> dict[str, Any]:
    rows = [{"title": name, "header": list(header), "rows": rows} for name, header, rows in tables if rows]
    known = {name: value for name, value in facts.items() if value is not None}
    return {"title": title, "method": method, "facts": known, "tables": rows}


def _skip(title: str, method: str, reason: str) -> dict[str, Any]:
    return {"title": title, "method": method, "skipped": reason}


def _metadata(numbers: Numbers, config: Mapping[str, Any], embed: Mapping[str, Any]) -> dict[str, Any]:
    columns, rows = numbers["columns"]["statistics"], numbers["counts"]["rows"]
    cells = rows * len(columns)
    dates = [(c["min"], c["max"]) for c in columns.values() if c["kind"] == "date"]
    facts = {
        "source": source_of(config),
        "format": embed.get("format"),
        "rows": rows,
        "input columns besides image and text": len(columns),
        "missing share of their cells": percent(sum(c["missing"] for c in columns.values()) / cells) if cells else None,
        "time range of date columns": f"{min(dates)[0]} to {max(last for _, last in dates)}" if dates else None,
    }
    unknown = "URL, domain, keywords, licence of the set, release date and description are not known to the tool."
    return _module("Metadata", f"From the configuration and the input columns. {unknown}", facts)


def _provenance(config: Mapping[str, Any], embed: Mapping[str, Any]) -> dict[str, Any]:
    method = "From the configuration and the embed stage. Source contact and author are not known to the tool."
    facts = {"source": source_of(config), "encoder": embed.get("encoder"), "weights": embed.get("weights")}
    if not any(facts.values()):
        return _skip("Provenance", method, "the run folder names neither a source nor an encoder.")
    return _module("Provenance", method, facts)


def _variables(numbers: Numbers, embed: Mapping[str, Any]) -> dict[str, Any]:
    picked = embed.get("picked")
    roles = {str(column): role for role, column in picked.items()} if isinstance(picked, Mapping) else {}
    rows = [[name, f"read as {role}"] for name, role in sorted(roles.items())]
    known = numbers["columns"]["statistics"]
    rows += [[name, f"input column: {c['kind']}"] for name, c in sorted(known.items()) if name not in roles]
    method = "Names as in the input; the kind is the one of all values that are not missing."
    if not rows:
        return _skip("Variables", method, "the source has no columns besides image and text, or their names are lost.")
    more = numbers["columns"]["cells_not_described"]
    return _module("Variables", method, {"cells of further columns": more or None}, [("", ("name", "is"), rows)])


def _statistics(numbers: Numbers) -> dict[str, Any]:
    nominal, measured = [], []
    for name, c in sorted(numbers["columns"]["statistics"].items()):
        head = [name, c["kind"] + (", constant" if c.get("constant") else ""), c["count"]]
        missing = f"{percent(c['missing_share'])}"
        if c["kind"] == "number":
            marks = [_short(c.get(mark)) for mark in ("min", "median", "max", "mean", "std")]
            measured.append([*head, *marks, c["zeros"], missing])
        elif c["count"]:
            unique = f"{c['unique']:,}" if c["unique_exact"] else f"about {c['unique']:,}"
            nominal.append([*head, unique, _value(c["most_frequent"]), _value(c.get("least_frequent")), missing])
        else:
            nominal.append([*head, "0", "–", "–", missing])
    if not nominal and not measured:
        return _skip("Statistics", METHOD, "the source has no columns besides image and text.")
    first = ("column", "kind", "count", "unique", "most frequent", "least frequent", "missing")
    second = ("column", "kind", "count", "min", "median", "max", "mean", "std", "zeros", "missing")
    note = "Unique values do not include missing."
    tables = [("Names and categories", first, nominal), ("Numbers", second, measured)]
    return _module("Statistics", f"{METHOD} {note}", {}, tables)


def _joint(numbers: Numbers) -> dict[str, Any]:
    grid = numbers["content"]["length_by_p_clean"]["counts"]
    method = "Counts of text length (characters) by p_clean in ten equal steps; also drawn in the report."
    header = ("characters", *(f"{j / 10:.1f}–{(j + 1) / 10:.1f}" for j in range(10)))
    rows = [[name, *counts] for name, counts in zip(length_names(), grid) if sum(counts)]
    if not rows:
        return _skip("Pair plot", method, "no pair has both a text and a p_clean.")
    return _module("Pair plot", method, {}, [("Text length by p_clean", header, rows)])


def _model(numbers: Numbers) -> dict[str, Any]:
    method = "Share kept and mean p_clean given the value of input columns with 2 to 50 different values; the top five."
    tables = []
    for name, split in numbers["columns"]["splits"].items():
        rows = [[s["value"], s["count"], percent(s["kept"] / s["count"]), _short(s["mean_p_clean"])] for s in split]
        tables.append((name, ("value", "pairs", "kept", "mean p_clean"), rows[:5]))
    if not tables:
        return _skip("Probabilistic model", method, "no input column has 2 to 50 different values.")
    return _module("Probabilistic model", method, {}, tables[:5])


def _correlation(numbers: Numbers) -> dict[str, Any]:
    method = "Pearson correlation of p_clean with each number column, and its check against known truth, if any."
    known = numbers["columns"]["statistics"].items()
    facts = {name: c["correlation_with_p_clean"] for name, c in known if c.get("correlation_with_p_clean") is not None}
    truth = numbers["truth"]
    if truth.get("auroc") is not None:
        facts["AUROC of p_clean against truth_wrong"] = truth["auroc"]
    if not facts:
        return _skip("Ground-truth correlation", method, "there is neither a number column nor a truth column.")
    return _module("Ground-truth correlation", f"{method} The reference may itself be biased.", facts)


def _alignment(numbers: Numbers, decision: Decision) -> dict[str, Any]:
    method = "Quantiles of each score over the pairs where it could be computed; higher = better matched."
    rows = []
    for name, score in sorted(numbers["scores"].items()):
        if score["count"]:
            rows.append([name, score["count"], score["missing"], *map(_short, score.get("quantiles", {}).values())])
    if not rows:
        return _skip("Alignment scores", method, "no score could be computed for any pair.")
    header = ("score", "pairs", "missing", "5 %", "25 %", "50 %", "75 %", "95 %")
    return _module("Alignment scores", method, {"calibrated score": decision.score}, [("", header, rows)])


def _noise(decision: Decision) -> dict[str, Any]:
    method = "Share of mismatched pairs, as the decide stage estimated it from the calibrated score."
    if decision.noise_rate is None:
        return _skip("Noise estimate", method, "the decide stage recorded no noise rate.")
    known = decision.low is not None and decision.high is not None
    facts = {
        "noise rate": percent(decision.noise_rate),
        "95 % interval": f"{percent(decision.low)} to {percent(decision.high)}" if known else None,
        "score separates": {True: "yes", False: "no: do not rely on the rate", None: None}[decision.separable],
        "mixture": (decision.mixture or {}).get("kind"),
        "confident joint": "not computed: it needs class labels",
    }
    return _module("Noise estimate", method, facts)


def _pictures(numbers: Numbers) -> dict[str, Any]:
    content = numbers["content"]
    method = "Of the pictures that could be decoded; aspect is width / height."
    if not content["pictures"]:
        return _skip("Pictures", method, "no picture was decoded.")
    rows = [[n, *_marks(content["sizes"][n])] for n in ("width", "height", "megapixels")]
    edges = content["aspects"]["edges"]
    names = [f"below {edges[0]}", *(f"{a}–{b}" for a, b in itertools.pairwise(edges)), f"{edges[-1]} and more"]
    aspects = [[name, count] for name, count in zip(names, content["aspects"]["counts"]) if count]
    facts = {
        "pictures": content["pictures"],
        "animated": percent(content["animated"] / content["pictures"]),
        "formats": ", ".join(f"{name} {count:,}" for name, count in content["formats"].items()),
    }
    tables = [("Resolution", ("", "min", "median", "max", "mean"), rows), ("Aspect", ("aspect", "pictures"), aspects)]
    return _module("Pictures", method, facts, tables)


def _texts(numbers: Numbers) -> dict[str, Any]:
    content = numbers["content"]
    method = (
        f"Length in characters over all texts; script and letters over about {TEXTS:,} texts of a fixed "
        "pseudo-random sample, or all. A text's script is that of most of its letters; no language is detected."
    )
    if not content["sizes"]["text_length"]["count"]:
        return _skip("Texts", method, "there is no text.")
    facts = {
        "texts": content["sizes"]["text_length"]["count"],
        "texts looked at for script": content["texts_looked_at"],
        "alphabetic share of characters": percent(content["alphabetic_share"]),
    }
    scripts = [[name, n, percent(n / content["texts_looked_at"])] for name, n in content["scripts"].items()]
    lengths = [["characters", *_marks(content["sizes"]["text_length"])]]
    header = ("", "min", "median", "max", "mean")
    tables = [("Length", header, lengths), ("Script", ("script", "texts", "share"), scripts)]
    return _module("Texts", method, facts, tables)


def _repeats(numbers: Numbers) -> dict[str, Any]:
    repeats = numbers["content"]["text_repeats"]
    method = (
        "Texts equal character by character (long ones: first 179 characters and length). Exact up to 100,000 "
        "different texts; beyond that estimated from a sample of hashes."
    )
    if not repeats["count"]:
        return _skip("Repeated texts", method, "there is no text.")
    facts = {
        "different texts": repeats["distinct"],
        "texts that occur more than once": percent(repeats["repeated"] / repeats["count"]),
        "exact": "yes" if repeats["exact"] else "no, estimated",
    }
    rows = [[item["value"], item["count"]] for item in repeats["top"]]
    return _module("Repeated texts", method, facts, [("Most frequent", ("text", "pairs"), rows)])


def _duplicates(numbers: Numbers) -> dict[str, Any]:
    groups, same = numbers["groups"], numbers["content"]["image_repeats"]
    facts = {
        "near-duplicate groups": groups["count"],
        "pairs in such groups": groups["rows"],
        "largest group": max(groups["largest"].values(), default=None),
        "pairs whose picture file occurs more than once": same["repeated"] if same["count"] else None,
    }
    kinds = [[name, count] for name, count in sorted(numbers["counts"]["group_kinds"].items())]
    method = "Groups as the score stage found them; equal picture files by their hash."
    return _module("Near-duplicates", method, facts, [("By what is alike", ("alike in", "pairs"), kinds)])


def _head_tail(numbers: Numbers) -> dict[str, Any]:
    words = numbers["content"]["words"]
    method = (
        "Concepts are words of three letters or more, counted once a text in the sample of texts, and values of each "
        "category column. Gini 0 = all equally frequent, 1 = one holds all; decile ratio = mean count of the most "
        "frequent tenth over that of the least frequent tenth."
    )
    rows = [["words of the texts", words["distinct"], _short(words["gini"]), _short(words["decile_ratio"])]]
    for name, c in sorted(numbers["columns"]["statistics"].items()):
        if name in numbers["columns"]["splits"] and c.get("gini") is not None:
            rows.append([name, c["unique"], _short(c["gini"]), _short(c["decile_ratio"])])
    if not words["distinct"] and len(rows) == 1:
        return _skip("Head and tail", method, "there are neither words nor category columns.")
    top = [[item["value"], item["count"]] for item in words["top"]]
    header = ("concepts in", "different", "Gini", "decile ratio")
    return _module("Head and tail", method, {}, [("", header, rows), ("Most frequent words", ("word", "texts"), top)])


def _broken(numbers: Numbers) -> dict[str, Any]:
    counts = numbers["counts"]
    problems = sorted(counts["problems"].items())
    rows = [[code, problem["meaning"], problem["count"]] for code, problem in problems]
    share = percent(counts["unreadable"] / counts["rows"]) if counts["rows"] else None
    facts = {"unreadable pairs": counts["unreadable"], "share": share}
    return _module("Broken or missing", "As the reader met them.", facts, [("", ("code", "meaning", "pairs"), rows)])


def _licences(numbers: Numbers) -> dict[str, Any]:
    sources = numbers["content"]["sources"]
    method = "Host name of the url column by the licence column, where the input has one or both."
    if not sources:
        return _skip("Licences by source", method, "no input column holds an address or a licence.")
    rows = [[source["domain"], source["licence"], source["count"]] for source in sources]
    return _module("Licences by source", method, {}, [("", ("domain", "licence", "pairs"), rows)])


def _cleaning(numbers: Numbers, decision: Decision) -> dict[str, Any]:
    counts = numbers["counts"]
    rows = [[rule["verdict"], rule["rule"] or "–", rule["count"]] for rule in counts["rules"]]
    facts = {
        "rule": decision.rule,
        "threshold of p_clean": decision.threshold,
        **{f"verdict {name}": count for name, count in sorted(counts["verdicts"].items())},
    }
    method = "Decisions in the ledger; nothing was deleted from or changed in the source."
    return _module("Cleaning applied", method, facts, [("", ("verdict", "rule", "pairs"), rows)])


def _limits(numbers: Numbers, decision: Decision, embed: Mapping[str, Any]) -> dict[str, Any]:
    counts = numbers["counts"]
    limits = ["A low p_clean says that text and picture do not fit in the eyes of the encoder, not of a person."]
    if decision.warning:
        limits.append(decision.warning)
    if decision.separable is None:
        limits.append("The decide stage does not say whether the score separates right from wrong pairs.")
    if counts["judged"] < counts["rows"]:
        limits.append(f"{counts['rows'] - counts['judged']:,} pairs have no p_clean: picture or text is missing.")
    if not numbers["truth"].get("pairs"):
        limits.append("No truth is known for this set, so neither p_clean nor the noise rate could be checked here.")
    if isinstance(embed.get("encoder"), str):
        limits.append(f"Scores depend on the encoder {embed['encoder']}: what it does not know looks mismatched.")
    limits.append("Languages, text in pictures, faces and unsafe content are not looked at.")
    return _module("Known limits", "From what is missing above.", {}, [("", ("limit",), [[limit] for limit in limits])])


def source_of(config: Mapping[str, Any]) -> str | None:
    """The source's path as the user gave it."""
    source = config.get("source")
    path = source.get("path") if isinstance(source, Mapping) else source
    return path if isinstance(path, str) else None


def length_names() -> list[str]:
    """Names of the bins of text length."""
    names = [f"{low}–{high - 1}" for low, high in itertools.pairwise(LENGTHS)]
    return [*names, f"{LENGTHS[-1]} or more"]


def _marks(size: Mapping[str, Any]) -> list[str]:
    return [_short(size.get(mark)) for mark in ("min", "median", "max", "mean")]


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10_000 and value == round(value) else f"{value:.4g}"


def _value(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"{item['value']} ({item['count']:,})"
    return item if isinstance(item, str) else "--"
