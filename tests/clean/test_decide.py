"""Rules and verdicts: where each rule draws the line, the order of reasons, labels, and no row without a verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from noisycorr.clean.decide import WORDS, Cut, Decide, Evidence, decide, find_cut, issue_codes
from noisycorr.data.pairs import PROBLEMS
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.mixture import Fit, constant_fit

NAN = float("nan")
VERDICTS = {"keep", "drop", "review"}


def line(low: float = 0.0, high: float = 10.0) -> Fit:
    """p_clean rises evenly from 0 to 1."""
    return replace(
        constant_fit("x"), kind="null", score=np.array([low, high]), p_clean=np.array([0.0, 1.0]), noise_rate=0.5
    )


def make_evidence(score: Any, fit: Fit, **columns: Any) -> Evidence:
    """Nothing but scores, unless columns say more; labels set p_clean, as the ledger does."""
    score = np.asarray(score, np.float32)
    n = len(score)
    label = np.asarray(columns.pop("label", [NAN] * n), np.float32)
    objects = {name: np.full(n, None, object) for name in ("problem", "image_issue", "text_issue", "group")}
    for name, value in columns.items():
        objects[name] = np.array(value, bool if name == "is_keeper" else object)
    p_clean = np.where(np.isnan(label), fit(score), label).astype(np.float32)
    objects.setdefault("is_keeper", np.ones(n, bool))
    return Evidence(score=score, p_clean=p_clean, label=label, **objects)


def run(choice: Decide, evidence: Evidence, fit: Fit) -> tuple[Cut, dict[str, np.ndarray]]:
    cut = find_cut(choice, evidence, fit)
    json.dumps(cut.facts, allow_nan=False)
    return cut, decide(choice, evidence, cut)


def kept(choice: Decide, evidence: Evidence, fit: Fit) -> list[int]:
    return np.flatnonzero(run(choice, evidence, fit)[1]["verdict"] == "keep").tolist()


# ---- choices


@pytest.mark.parametrize(
    "flags",
    [{"precision": 0.9, "fraction": 0.5}, {"precision": 0.9, "threshold": 0.1}, {"fraction": 0.3, "threshold": 0.1},
     {"precision": 0.9, "p_threshold": 0.7}, {"threshold": 1.0, "p_threshold": 0.2},
     {"precision": 0.9, "fraction": 0.1, "threshold": 0.1}],
)  # fmt: skip
def test_rules_exclude_each_other(flags: dict[str, float]):
    with pytest.raises(UsageError, match=r"`\w+` and `\w+` exclude each other"):
        Decide(**flags)


@pytest.mark.parametrize(
    ("name", "value"),
    [("p_threshold", 1.01), ("p_threshold", -0.1), ("p_threshold", NAN), ("precision", 2.0), ("precision", NAN),
     ("fraction", -0.5), ("fraction", 1.5), ("threshold", NAN), ("review_margin", 0.6), ("review_margin", -0.1)],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(name: str, value: float):
    with pytest.raises(UsageError, match=f"`{name}` is "):
        Decide(**{name: value})


def test_rules_have_words():
    assert Decide().rule == "p_clean>=0.5"
    assert Decide(precision=0.95).rule == "precision>=0.95"
    assert Decide(fraction=0.3).rule == "fraction=0.3"
    assert Decide(threshold=-0.25).rule == "score_pair>=-0.25"


# ---- where each rule draws the line

SCORES = st.lists(st.sampled_from([NAN, *(x / 2 for x in range(21))]), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None)
@given(SCORES, st.sampled_from([0.0, 0.1, 0.5, 0.55, 1.0]))
def test_the_default_rule_keeps_exactly_what_reaches_p_threshold(scores, threshold):
    fit = line()
    evidence = make_evidence(scores, fit)
    cut, out = run(Decide(p_threshold=threshold), evidence, fit)
    known = np.isfinite(evidence.score)
    want = known & (evidence.p_clean >= np.float32(threshold))
    assert (np.flatnonzero(want) == np.flatnonzero(out["verdict"] == "keep")).all()
    assert (out["is_mismatch_issue"] == (known & ~want)).all()
    assert (out["verdict"][~known] == "review").all()
    if known.any():
        assert cut.p_clean == threshold


@settings(max_examples=150, deadline=None)
@given(SCORES, st.sampled_from([0.0, 0.3, 0.5, 0.75, 0.9, 0.95, 1.0]))
@example([10, 6, 6], 0.75)  # a line between equal scores cannot be drawn
def test_precision_draws_the_lowest_line_that_is_expected_to_hold(scores, precision):
    fit = line()
    evidence = make_evidence(scores, fit)
    cut, out = run(Decide(precision=precision), evidence, fit)
    p, score = evidence.p_clean.astype(float), evidence.score.astype(float)
    lines = sorted({s for s in score.tolist() if s == s})
    if not lines:
        return
    reach = {s: p[score >= s].mean() for s in lines}
    good = [s for s in lines if reach[s] >= precision - 1e-6]
    assert cut.score == (min(good) if good else max(lines))
    assert ("cannot be reached" in cut.facts.get("note", "")) == (not good)
    chosen = out["verdict"] == "keep"
    assert cut.facts["expected_precision"] == pytest.approx(p[chosen].mean(), abs=1e-4)
    assert cut.facts["expected_recall"] == pytest.approx(p[chosen].sum() / max(np.nansum(p), 1e-9), abs=1e-4)
    assert cut.facts["judged"] == np.isfinite(score).sum()
    assert cut.p_clean == pytest.approx(float(fit(np.array([cut.score]))[0]))


@settings(max_examples=150, deadline=None)
@given(st.permutations(list(range(23))), st.floats(0, 1), st.booleans(), st.integers(0, 4))
def test_fraction_keeps_exactly_its_share(order, fraction, blind, missing):
    """Also where nothing is known about p_clean: the order of scores is enough for this rule."""
    fit = constant_fit("blind") if blind else line(0, 30)
    evidence = make_evidence([*order, *[NAN] * missing], fit)
    rows = kept(Decide(fraction=fraction), evidence, fit)
    count = round(fraction * 23)
    assert sorted(order[row] for row in rows) == list(range(23 - count, 23))


def test_fraction_keeps_all_that_tie_with_the_last():
    fit = line()
    assert kept(Decide(fraction=0.4), make_evidence([1, 5, 5, 5, 9], fit), fit) == [1, 2, 3, 4]
    assert kept(Decide(fraction=0.0), make_evidence([1, 5, 5, 5, 9], fit), fit) == []


@pytest.mark.parametrize("fit", [line(), constant_fit("blind")], ids=["known", "blind"])
def test_a_raw_threshold_is_taken_as_it_is(fit: Fit):
    evidence = make_evidence([0.1, 0.3, 0.7, NAN], fit)
    assert kept(Decide(threshold=0.7), evidence, fit) == [2]  # 0.7 as float32 is below 0.7 as float64
    assert kept(Decide(threshold=0.0), evidence, fit) == [0, 1, 2]
    assert kept(Decide(threshold=99.0), evidence, fit) == []


@pytest.mark.parametrize("choice", [Decide(), Decide(precision=0.99), Decide(p_threshold=1.0, review_margin=0.4)])
def test_where_nothing_is_known_nothing_is_marked(choice: Decide):
    fit = constant_fit("blind")
    cut, out = run(choice, make_evidence([0.1, 0.9, NAN], fit), fit)
    assert out["verdict"].tolist() == ["keep", "keep", "review"] and not out["is_mismatch_issue"].any()
    assert "not applied" in cut.facts["note"] and cut.facts["expected_precision"] is None
    assert all("nothing speaks against" in reason for reason in out["reason"][:2])


def test_expectations_leave_out_what_is_dropped_anyway():
    """Half of the high scores belong to file names; they are dropped, so they cannot raise the expected precision."""
    fit = line()
    evidence = make_evidence([9, 9, 9, 6, 6, 6], fit, text_issue=["file_name"] * 3 + [None] * 3)
    cut, out = run(Decide(precision=0.7), evidence, fit)
    assert "cannot be reached" in cut.facts["note"] and cut.facts["expected_precision"] == pytest.approx(0.6, abs=1e-4)
    assert out["verdict"].tolist() == ["drop"] * 3 + ["keep"] * 3
    cut, _ = run(Decide(precision=0.7, keep_issues=True), evidence, fit)
    assert cut.score == 6 and cut.facts["expected_precision"] == pytest.approx(0.75, abs=1e-4)
    all_gone = make_evidence([9, 6], fit, problem=["text_not_utf8"] * 2)
    assert run(Decide(precision=0.7), all_gone, fit)[1]["verdict"].tolist() == ["drop", "drop"]


@pytest.mark.parametrize("choice", [Decide(), Decide(precision=0.8), Decide(fraction=0.5), Decide(threshold=5.0)])
def test_a_single_label_does_not_move_the_line(choice: Decide):
    fit = line()
    scores = np.arange(11)
    plain = find_cut(choice, make_evidence(scores, fit), fit)
    for label, row in ((1.0, 0), (0.0, 10)):
        labels = np.full(11, NAN)
        labels[row] = label
        evidence = make_evidence(scores, fit, label=labels)
        cut, out = run(choice, evidence, fit)
        assert (cut.score, cut.p_clean) == (plain.score, plain.p_clean)
        chosen = out["verdict"] == "keep"
        assert chosen[row] == (label == 1)
        assert cut.facts["expected_precision"] == pytest.approx(evidence.p_clean[chosen].mean(), abs=1e-4)


# ---- verdicts


@st.composite
def anything(draw: Any) -> tuple[Decide, Evidence, Fit]:
    n = draw(st.integers(0, 25))
    fit = constant_fit("blind") if draw(st.booleans()) else line()

    def column(values: Any) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    codes = {
        "problem": column(st.none() | st.sampled_from(sorted(PROBLEMS))),
        "image_issue": column(st.none() | st.sampled_from(["blank", "tiny"])),
        "text_issue": column(st.none() | st.sampled_from(["url", "digits"])),
        "group": column(st.none() | st.sampled_from(["a", "b"])),
        "is_keeper": column(st.booleans()),
        "label": column(st.sampled_from([NAN, NAN, 0.0, 1.0])),
    }
    rule = draw(st.sampled_from([{}, {"p_threshold": 0.8}, {"precision": 0.7}, {"fraction": 0.4}, {"threshold": 3.0}]))
    choice = Decide(
        **rule,
        keep_duplicates=draw(st.booleans()),
        keep_issues=draw(st.booleans()),
        review_margin=draw(st.sampled_from([0.0, 0.2])),
    )
    return choice, make_evidence(column(st.integers(0, 10) | st.just(NAN)), fit, **codes), fit


@settings(max_examples=100, deadline=None)
@given(anything())
def test_every_row_gets_the_first_verdict_that_applies(case):
    choice, evidence, fit = case
    cut, out = run(choice, evidence, fit)
    for row in range(len(evidence.score)):
        s, p = float(evidence.score[row]), float(evidence.p_clean[row])
        number = "unknown" if p != p else f"{np.round(p * 100) / 100:.2f}"
        rules = [
            (evidence.problem[row] is not None, "drop", PROBLEMS.get(evidence.problem[row])),
            (evidence.label[row] == 1, "keep", "a person judged this pair as right"),
            (evidence.label[row] == 0, "drop", "a person judged this pair as wrong"),
            (not choice.keep_issues and evidence.image_issue[row], "drop", WORDS.get(evidence.image_issue[row])),
            (not choice.keep_issues and evidence.text_issue[row], "drop", WORDS.get(evidence.text_issue[row])),
            (abs(p - cut.p_clean) < choice.review_margin, "review", f"close to the line: p_clean {number}"),
            (s < cut.score, "drop", f"text and image look mismatched: p_clean {number}"),
            (not choice.keep_duplicates and not evidence.is_keeper[row], "drop", None),
            (p != p, "review", "no score: nothing is known about this pair"),
            (True, "keep", None),
        ]
        verdict, reason = next((v, r) for applies, v, r in rules if applies)
        assert out["verdict"][row] == verdict and out["verdict"][row] in VERDICTS
        if reason is not None:
            assert out["reason"][row] == reason
        weight = out["sample_weight"][row]
        assert weight == (0 if verdict == "drop" or p != p else pytest.approx(p))
        judged = evidence.label[row] == evidence.label[row]
        assert out["is_mismatch_issue"][row] == (evidence.label[row] == 0 if judged else s < cut.score)
    assert out["sample_weight"].dtype == np.float32 and out["is_mismatch_issue"].dtype == bool
    assert {len(column) for column in out.values()} == {len(evidence.score)}


@settings(max_examples=60, deadline=None)
@given(anything(), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(case, random):
    choice, evidence, fit = case
    order = list(range(len(evidence.score)))
    random.shuffle(order)
    turned = Evidence(**{name: getattr(evidence, name)[order] for name in Evidence.__dataclass_fields__})
    one, two = run(choice, evidence, fit)[1], run(choice, turned, fit)[1]
    for name in one:
        assert (one[name][order] == two[name]).all()


def test_unknown_codes_still_have_a_reason():
    fit = line()
    evidence = make_evidence([9, 9, 9], fit, problem=["of_tomorrow", None, None], text_issue=[None, "new_issue", None])
    assert run(Decide(), evidence, fit)[1]["reason"].tolist()[:2] == ["of_tomorrow", "new_issue"]


def test_review_is_around_the_threshold_that_was_asked_for():
    """The curve jumps from 0.1 to 0.9: nothing is within 0.1 of a threshold of 0.5."""
    fit = replace(line(), score=np.array([1.0, 2.0]), p_clean=np.array([0.1, 0.9]))
    evidence = make_evidence([0, 1, 2, 3], fit)
    assert run(Decide(review_margin=0.1), evidence, fit)[1]["verdict"].tolist() == ["drop", "drop", "keep", "keep"]
    assert "review" in run(Decide(review_margin=0.45), evidence, fit)[1]["verdict"].tolist()


def test_duplicates_name_their_group():
    fit = line()
    evidence = make_evidence([9, 9], fit, is_keeper=[True, False], group=["abc", "abc"])
    out = run(Decide(), evidence, fit)[1]
    assert out["verdict"].tolist() == ["keep", "drop"] and "group abc" in out["reason"][1]


def test_codes_come_from_arrow_as_none_or_string():
    column = pa.chunked_array([["a", None], [None, "b"]], pa.string())
    assert issue_codes(column).tolist() == ["a", None, None, "b"]
    assert issue_codes(pa.chunked_array([[None, None]], pa.null())).tolist() == [None, None]
    assert issue_codes(pa.chunked_array([], pa.string())).tolist() == []
