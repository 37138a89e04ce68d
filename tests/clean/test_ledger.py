"""The ledger: every row that came in, with its verdict; keepers of groups; labels; and scores from stored features."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from test_crossfit import make_view

from noisycorr.clean.decide import Decide
from noisycorr.clean.ledger import decide_run, read_labels
from noisycorr.clean.pipeline import clean
from noisycorr.clean.plan import Plan
from noisycorr.clean.score import load_pairs, read_fit, score_run
from noisycorr.clean.signals.pipeline import Score
from noisycorr.data.noise.swaps import text_ids
from noisycorr.data.pairs import PAIRS
from noisycorr.data.readers import Source
from noisycorr.data.store import part_ranges, read_scores
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, read_json, write_json

COLUMNS = {
    "key": pa.string(), "uid": pa.string(), "text": pa.string(), "row": pa.int64(),
    "p_clean": pa.float32(), "score_pair": pa.float32(),
    "mismatch_score": pa.float32(), "is_mismatch_issue": pa.bool_(),
    "image_score": pa.float32(), "image_issue": pa.string(), "is_image_issue": pa.bool_(),
    "text_score": pa.float32(), "text_issue": pa.string(), "is_text_issue": pa.bool_(),
    "near_duplicate_group": pa.string(), "group_kind": pa.string(), "near_duplicate_score": pa.float32(),
    "is_near_duplicate_issue": pa.bool_(), "is_group_keeper": pa.bool_(),
    "verdict": pa.string(), "reason": pa.string(), "rule": pa.string(), "stage": pa.string(),
    "sample_weight": pa.float32(),
}  # fmt: skip


def scored_run(folder: Path, rows: list[dict[str, Any]], *, keeper: str = "best_score", piece: int = 4) -> Run:
    """A run as the score stage leaves it; p_clean is a tenth of the score."""
    run = Run(folder)
    for index, start in enumerate(range(0, max(len(rows), 1), piece)):
        some = rows[start : start + piece]
        facts = [
            {"key": f"k{start + i}", "uid": f"u{start + i}", "text": "a", "columns": "{}", "problem": r.get("problem")}
            for i, r in enumerate(some)
        ]
        pq.write_table(pa.Table.from_pylist(facts, schema=PAIRS), run.path("pairs", f"{index:05d}.parquet"))
        write_json(run.path("pairs", f"{index:05d}_stats.json"), {"pairs": len(some)})
        group = [r.get("group", -1) for r in some]
        scores = {
            "score_pair": pa.array([r.get("score", np.nan) for r in some], pa.float32()),
            "score_margin": pa.array([0.5] * len(some), pa.float32()),
            "clip_b32_similarity_score": pa.array([0.25] * len(some), pa.float32()),
            "image_score": pa.array([1.0] * len(some), pa.float32()),
            "text_score": pa.array([1.0] * len(some), pa.float32()),
            "near_duplicate_score": pa.array([1.0] * len(some), pa.float32()),
            "image_issue": pa.array([r.get("image_issue") for r in some], pa.string()),
            "text_issue": pa.array([r.get("text_issue") for r in some], pa.string()),
            "near_duplicate_group": pa.array([f"g{g}" if g >= 0 else None for g in group], pa.string()),
            "group_kind": pa.array(["pair" if g >= 0 else None for g in group], pa.string()),
            "pair_group": pa.array(group, pa.int64()),
            "area": pa.array([r.get("area", 100.0) for r in some], pa.float64()),
        }
        pq.write_table(pa.table(scores), run.path("scores", f"{index:05d}.parquet"))
    fit = {"kind": "null", "score": [0.0, 10.0], "p_clean": [0.0, 1.0], "noise_rate": 0.3, "low": 0.2, "high": 0.4,
           "separation": 0.9, "warning": None, "parameters": {}}  # fmt: skip
    write_json(run.path("scores", "fit.json"), {"fit": fit, "density": {}})
    run.finish("score", {"duplicates": {"keeper": keeper}}, {})
    return run


def ledger(run: Run) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((run.folder / "ledger").glob("*.parquet"))])


def verdicts(run: Run, choice: Decide | None = None, labels: Path | None = None) -> list[str]:
    facts = decide_run(choice or Decide(), run, labels)
    json.dumps(facts, allow_nan=False)
    out = ledger(run).column("verdict").to_pylist()
    assert facts["pairs"] == len(out) == sum(facts["verdicts"].values())
    return out


def test_counts_in_are_counts_out_with_all_columns(tmp_path: Path):
    rows = [
        {"score": i % 11, "problem": "text_missing" if i == 3 else None, "image_issue": "tiny" if i == 5 else None}
        for i in range(10)
    ]
    rows[7]["score"] = np.nan
    run = scored_run(tmp_path, rows)
    found = verdicts(run)
    table = ledger(run)
    assert {name: table.schema.field(name).type for name in COLUMNS} == COLUMNS
    assert set(table.column_names) == {*COLUMNS, "score_margin", "clip_b32_similarity_score"}
    assert table.column("row").to_pylist() == list(range(10))
    assert table.column("key").to_pylist() == [f"k{i}" for i in range(10)]
    assert found == ["drop"] * 6 + ["keep", "review", "keep", "keep"]
    assert all(table.column("reason").to_pylist()) and None not in table.column("verdict").to_pylist()
    assert table.column("is_image_issue").to_pylist() == [i == 5 for i in range(10)]
    assert np.isnan(table.column("p_clean").to_numpy()[7]) and table.column("p_clean").to_numpy()[8] == np.float32(0.8)
    assert set(table.column("rule").to_pylist()) == {"p_clean>=0.5"}


def test_another_rule_rewrites_the_ledger_and_nothing_else(tmp_path: Path):
    run = scored_run(tmp_path, [{"score": i} for i in range(9)])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    verdicts(run)
    first = ledger(run)
    assert verdicts(run, Decide(fraction=1 / 3)) == ["drop"] * 6 + ["keep"] * 3
    assert set(ledger(run).column("rule").to_pylist()) == {"fraction=0.333333"}
    verdicts(run)
    assert ledger(run).equals(first)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_facts_tell_the_story(tmp_path: Path):
    run = scored_run(tmp_path, [{"score": i} for i in range(11)])
    facts = decide_run(Decide(), run, None)
    assert (facts["noise_rate"], facts["noise_rate_low"], facts["noise_rate_high"]) == (0.3, 0.2, 0.4)
    assert (facts["mismatch"], facts["threshold"], facts["separable"]) == (5, 0.5, True)
    assert facts["expected_precision"] == pytest.approx(0.75, abs=1e-4)
    story = "\n".join(facts["summary"])
    assert "11 pairs in, 11 in the ledger: 5 drop, 6 keep" in story and "30.0%" in story and "75.0%" in story
    fit = read_json(tmp_path / "scores" / "fit.json")
    fit["fit"] |= {
        "kind": "constant",
        "p_clean": [1.0, 1.0],
        "noise_rate": None,
        "separation": None,
        "warning": "blind!",
    }
    write_json(tmp_path / "scores" / "fit.json", fit)
    facts = decide_run(Decide(), run, None)
    assert facts["noise_rate"] is None and not facts["separable"] and facts["mismatch"] == 0
    assert "warning: blind!" in facts["summary"] and any("not applied" in line for line in facts["summary"])
    assert not any("expected" in line for line in facts["summary"])


# ---- one of each group stays


@pytest.mark.parametrize(
    ("keeper", "rows", "kept"),
    [
        ("best_score", [{"score": 8}, {"score": 9}, {"score": 7}], 1),
        ("first", [{"score": 8}, {"score": 9}, {"score": 7}], 0),
        ("largest", [{"score": 8}, {"score": 9}, {"score": 7, "area": 400.0}], 2),
        ("first", [{"score": 2}, {"score": 9}, {"score": 9}], 1),  # the first one is mismatched
        ("best_score", [{"score": 8}, {"score": 9, "text_issue": "url"}, {"score": 7}], 0),
        ("best_score", [{"score": 8}, {"score": 9, "problem": "text_not_utf8"}, {"score": 7}], 0),
        ("largest", [{"score": 8}, {"score": 9}, {"area": 400.0}], 1),  # the largest one has no score: review
    ],
)
def test_a_group_keeps_the_best_one_that_can_be_kept(tmp_path: Path, keeper: str, rows: list, kept: int):
    run = scored_run(tmp_path, [*[row | {"group": 0} for row in rows], {"score": 9}], keeper=keeper)
    found = verdicts(run)
    assert [i for i, verdict in enumerate(found) if verdict == "keep"] == [kept, 3]
    assert ledger(run).column("is_group_keeper").to_pylist() == [i == kept for i in range(3)] + [True]
    assert ledger(run).column("is_near_duplicate_issue").to_pylist() == [True] * 3 + [False]


def test_a_group_of_which_nothing_can_be_kept_has_a_keeper_all_the_same(tmp_path: Path):
    run = scored_run(tmp_path, [{"score": 1, "group": 0}, {"score": 2, "group": 0}])
    assert verdicts(run) == ["drop", "drop"]
    assert ledger(run).column("is_group_keeper").to_pylist() == [False, True]
    assert all("mismatched" in reason for reason in ledger(run).column("reason").to_pylist())


def test_duplicates_can_be_kept(tmp_path: Path):
    run = scored_run(tmp_path, [{"score": 8, "group": 0}, {"score": 9, "group": 0}])
    assert verdicts(run, Decide(keep_duplicates=True)) == ["keep", "keep"]
    assert verdicts(run) == ["drop", "keep"]


# ---- labels


def write_labels(path: Path, judged: dict[str, str]) -> Path:
    path.write_text("key,label\n" + "".join(f"{key},{label}\n" for key, label in judged.items()))
    return path


def test_labels_win_and_are_said(tmp_path: Path):
    rows = [{"score": 10 * i / 199} for i in range(200)]
    run = scored_run(tmp_path / "run", rows, piece=64)
    labels = write_labels(tmp_path / "labels.csv", {"k0": "right", "k199": "wrong"})
    found = verdicts(run, labels=labels)
    table = ledger(run)
    assert found[0] == "keep" and found[199] == "drop" and "person" in table.column("reason").to_pylist()[0]
    assert table.column("p_clean").to_numpy()[[0, 199]].tolist() == [1, 0]
    assert table.column("is_mismatch_issue").to_pylist()[0] is False
    assert table.column("is_mismatch_issue").to_pylist()[199] is True
    assert table.column("rule").to_pylist()[0] == "p_clean>=0.5 (labels)"
    assert 80 <= found.count("keep") <= 120  # one label did not pull the line down to its score
    assert any("2 labelled" in line for line in decide_run(Decide(), run, labels)["summary"])


def test_many_labels_move_the_line(tmp_path: Path):
    """The curve says that 5 is the line, a person says 2."""
    rng = np.random.default_rng(0)
    score = rng.uniform(0, 10, 400)
    run = scored_run(tmp_path / "run", [{"score": float(s)} for s in score], piece=200)
    chosen = rng.choice(400, 150, replace=False)
    labels = write_labels(tmp_path / "l.csv", {f"k{i}": "1" if score[i] > 2 else "0" for i in chosen})
    found = np.array(verdicts(run, labels=labels)) == "keep"
    others = np.setdiff1d(np.arange(400), chosen)
    assert (found[others] == (score[others] > 2)).mean() > 0.95


def test_labels_where_no_pair_could_be_scored(tmp_path: Path):
    run = scored_run(tmp_path / "run", [{} for _ in range(5)])
    labels = write_labels(tmp_path / "l.csv", {"k1": "yes", "k2": "no"})
    assert verdicts(run, labels=labels) == ["review", "keep", "drop", "review", "review"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "key,label\na,1\nb,wrong\nz,match\n"),
        ("l.csv", "key,label\nc,\na,1\nc\nb,wrong\n"),
        ("l.tsv", "\ufeffkey\tlabel\na\tTRUE\nb\t no \n"),
        (
            "l.jsonl",
            '{"key": "a", "label": true}\n\n{"key": "b", "label": 0, "who": "me"}\n{"key": "c", "label": null}',
        ),
        ("l.csv", 'who,label,key\nme,right,a\n"two\nlines",mismatch,b\n'),
    ],
)
def test_labels_are_read_from_tables_and_lines(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content, encoding="utf-8")
    out = read_labels(tmp_path / name, ["b", "a", "c", "a"])
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, [0, 1, np.nan, 1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "", "columns key and label"),
        ("l.csv", "id,label\na,1\n", "columns key and label"),
        ("l.csv", "key,label\na,perhaps\n", "'perhaps' of key 'a'"),
        ("l.csv", "key,label\na\nb, \n", "judges no key: its column label is empty"),
        ("l.csv", "key,label\na,1\na,0\n", "both right and wrong of key 'a'"),
        ("l.csv", "key,label\nz,1\n", "none of its 1 keys"),
        ("l.jsonl", '{"key": "a"', "could not be parsed"),
        ("l.jsonl", "[1, 2]\n", "columns key and label"),
    ],
)
def test_labels_that_make_no_sense_are_refused(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        read_labels(tmp_path / name, ["a", "b"])


def test_binary_labels_are_refused(tmp_path: Path):
    (tmp_path / "l.csv").write_bytes(b"\xff\xfe\x00key")
    with pytest.raises(UsageError, match="could not be parsed"):
        read_labels(tmp_path / "l.csv", ["a"])


# ---- from stored features


def embedded_run(
    folder: Path, *, n: int = 240, texts: bool = True, joint: bool = False, piece: int = 100
) -> tuple[Run, np.ndarray]:
    """A run as the embed stage leaves it: synthetic features, a third of the pairs wrong, an odd row here and there."""
    view, wrong = make_view(n, 0.3)
    image, text = (np.concatenate(side) for side in (view.image, view.text))
    if joint:
        image = image[:, :16].copy()
    run = Run(folder)
    rows: list[dict[str, Any]] = [
        {"key": f"k{i}", "uid": f"u{i:05d}", "text": f"picture number {i} of a series" if texts else None,
         "columns": json.dumps({"truth_wrong": bool(wrong[i])}), "image_hash": f"h{i}", "width": 100, "height": 80,
         "image_std": 50.0, "image_entropy": 6.0, "image_edges": 9.0} for i in range(n)
    ]  # fmt: skip
    if texts:
        rows[3] |= {"problem": "image_unreadable", "image_hash": None, "width": None, "height": None}
        rows[5] |= {"text": None, "problem": "text_missing"}
        rows[8] |= {"text": rows[7]["text"], "image_hash": "h7"}
        image[3], text[5] = 0, 0
        image[8], text[8] = image[7], text[7]
    for index, start in enumerate(range(0, n, piece)):
        part = slice(start, start + piece)
        features = {"image": image[part], "text": text[part]}
        save_file(features, run.path("embeddings", f"part-{index:05d}.safetensors"))
        pq.write_table(pa.Table.from_pylist(rows[part], schema=PAIRS), run.path("pairs", f"{index:05d}.parquet"))
        write_json(run.path("pairs", f"{index:05d}_stats.json"), {"pairs": len(rows[part]), "problems": {}})
    run.finish(
        "embed",
        {},
        {"encoder": "made up", "joint": joint, "score_column": "clip_b32_similarity_score" if joint else None},
    )
    return run, wrong


def score_and_decide(run: Run, **choice: Any) -> tuple[dict[str, Any], pa.Table]:
    plan = Plan(source=Source(path="unused"), score=Score(neighbors=5, **choice))
    facts = score_run(plan, run)
    run.finish("score", {"duplicates": {"keeper": plan.duplicates.keeper}}, facts)
    decide_run(Decide(), run, None)
    return facts, ledger(run)


def test_stored_features_become_a_ledger(tmp_path: Path):
    run, wrong = embedded_run(tmp_path)
    facts, table = score_and_decide(run)
    assert table.num_rows == facts["pairs"] == 240
    assert [size for _, _, size in part_ranges(run)] == [100, 100, 40]
    verdict = np.array(table.column("verdict").to_pylist())
    assert verdict[3] == verdict[5] == "drop"
    assert "decoded" in table.column("reason")[3].as_py() and "no text" in table.column("reason")[5].as_py()
    kinds = table.column("group_kind").to_pylist()
    assert kinds[7] == kinds[8] == "pair" and sorted([verdict[7], verdict[8]])[0] == "drop"
    assert np.isnan(table.column("score_pair").to_numpy()[[3, 5]]).all()
    judged = np.setdiff1d(np.arange(240), [3, 5, 7, 8])
    assert ((verdict[judged] == "drop") == wrong[judged]).mean() > 0.85
    assert "truth_wrong" not in table.column_names


def test_a_stored_curve_is_the_fitted_one(tmp_path: Path):
    run, _ = embedded_run(tmp_path, joint=True)
    facts, table = score_and_decide(run, align="none", near_duplicates=False)
    fit = read_fit(run)
    np.testing.assert_array_equal(fit(table.column("score_pair").to_numpy()), table.column("p_clean").to_numpy())
    assert fit.kind in ("null", "constant") and facts["align"] == "none"
    np.testing.assert_array_equal(table.column("clip_b32_similarity_score"), table.column("score_similarity"))
    np.testing.assert_array_equal(read_scores(run, ["score_pair"]).column(0), table.column("score_pair"))
    density = {name: np.array(line) for name, line in read_json(run.folder / "scores" / "fit.json")["density"].items()}
    assert bool(density) == (fit.kind == "null")
    if density:
        assert len(density["x"]) == 80 and (density["noise"] <= density["total"]).all()
        np.testing.assert_allclose(density["clean"] + density["noise"], density["total"], atol=1e-9)


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize("texts", [True, False])
def test_texts_that_are_not_known_are_different_to_scorers_only(tmp_path: Path, texts: bool, near: bool):
    run, _ = embedded_run(tmp_path, texts=texts)
    found = load_pairs(Plan(source=Source(path="unused"), score=Score(near_duplicates=near)), run)
    np.testing.assert_array_equal(found.text_id, text_ids(list(found.texts)))
    known = found.text_id >= 0
    assert known.sum() == (239 if texts else 0)
    np.testing.assert_array_equal(found.view.text_id[known], found.text_id[known])
    assert len(np.unique(found.view.text_id)) == (239 if texts else 240)


def test_embeddings_whose_texts_are_not_known_are_scored(tmp_path: Path):
    """Stored embeddings may come without their texts: all are different as far as anyone knows, none is empty."""
    run, wrong = embedded_run(tmp_path, texts=False)
    _, table = score_and_decide(run)
    assert table.column("text_issue").null_count == 240
    assert np.isfinite(table.column("score_pair").to_numpy()).all()
    assert ((np.array(table.column("verdict").to_pylist()) == "drop") == wrong).mean() > 0.85


@pytest.mark.parametrize("width", [16, 24])
def test_features_that_are_no_numbers_are_not_known(tmp_path: Path, width: int):
    """NaN, infinity and numbers beyond float16 in someone else's embeddings: three pairs not kept, and no crash."""
    view, _ = make_view(200)
    image, text = (np.concatenate(side).astype(np.float32) for side in (view.image, view.text))
    image[5, 3], text[9, 2], image[11, 0] = np.nan, np.inf, 1e30
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "source" / "image.npy", image[:, :width])
    np.save(tmp_path / "source" / "text.npy", text)
    run = Run(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        source = Source(path=str(tmp_path / "source"), input_format="embeddings")
        clean(Plan(source=source), run, stages=("embed", "score", "decide"))
    unknown = np.isnan(ledger(run).column("p_clean").to_numpy())
    assert np.flatnonzero(unknown).tolist() == [5, 9, 11]
    assert "keep" not in np.array(ledger(run).column("verdict").to_pylist())[unknown]


def test_an_empty_set_is_refused(tmp_path: Path):
    run = Run(tmp_path)
    run.finish("embed", {}, {"encoder": "x", "joint": False, "score_column": None})
    with pytest.raises(UsageError, match="holds no pairs"):
        score_run(Plan(source=Source(path="unused")), run)


def test_same_run_same_bytes(tmp_path: Path):
    written = []
    for name in ("one", "two"):
        run, _ = embedded_run(tmp_path / name)
        score_and_decide(run)
        written.append({p.relative_to(run.folder): p.read_bytes() for p in run.folder.rglob("*.*") if p.is_file()})
    assert written[0] == written[1]
