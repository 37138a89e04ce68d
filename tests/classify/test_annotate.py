"""The verb that says what to label next."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

import noisycorr as nc
from noisycorr.__main__ import main
from noisycorr.classify.heads.annotate import Annotate, _told, suggest
from noisycorr.runtime.errors import UsageError


def write(folder: Path, n: int = 90) -> tuple[Path, np.ndarray]:
    """Features of three unevenly many classes, and a file of six labels, none of the third class."""
    rng = np.random.default_rng(0)
    truth = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    centre = np.random.default_rng(1).normal(size=(3, 6))
    np.save(folder / "image.npy", (centre[truth] + 0.2 * rng.normal(size=(n, 6))).astype(np.float32))
    rows = [*np.flatnonzero(truth == 0)[:4], *np.flatnonzero(truth == 1)[:2]]
    (folder / "known.csv").write_text("key,label\n" + "".join(f"{row},{'abc'[truth[row]]}\n" for row in rows))
    return folder / "image.npy", truth


@pytest.mark.parametrize("acquisition", ["entropy", "coreset", "badge", "random"])
def test_each_acquisition_balanced_and_not(acquisition: str, tmp_path: Path):
    path, _ = write(tmp_path)
    labels = str(tmp_path / "known.csv")
    known = {line.split(",")[0] for line in (tmp_path / "known.csv").read_text().split()[1:]}
    for balance in (True, False):
        choice = Annotate(budget=8, acquisition=acquisition, balance=balance, candidates=0.6, labels=labels)
        found = suggest(str(path), choice)
        keys = [row["key"] for row in found]
        assert len(set(keys)) == 8 and not known & set(keys)
        assert [row["rank"] for row in found] == list(range(1, 9))
        assert found == suggest(str(path), choice)
        if balance:  # a has 4 labels, b has 2: b comes first
            assert found[0]["predicted"] == "b" and "b has 2 so far" in found[0]["reason"]


def test_verb_prints_or_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, truth = write(tmp_path)
    chances = np.full((90, 3), 0.05)
    chances[np.arange(90), truth] = 0.9
    np.save(tmp_path / "chances.npy", chances)
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    words = ["annotate", str(path), "--chances", str(tmp_path / "chances.npy"), "--class_names",
             str(tmp_path / "names.txt"), "--budget", "9", "--candidates", "1", "-q"]  # fmt: skip
    assert main(words) == 0
    shown = capsys.readouterr().out
    table = list(csv.DictReader(io.StringIO(shown)))
    assert sorted(row["predicted"] for row in table) == list("aaabbbccc")
    assert main([*words, "--output_file", str(tmp_path / "next.csv")]) == 0
    assert (tmp_path / "next.csv").read_text() == shown and capsys.readouterr().out == ""


def test_function_gives_a_table_that_is_a_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, _ = write(tmp_path)
    rows = nc.annotate(path, labels=str(tmp_path / "known.csv"), budget=5)
    assert len(rows) == 5 and [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert list(rows.to_pandas().key) == [row["key"] for row in csv.DictReader(io.StringIO(str(rows)))]
    assert "<table" in rows._repr_html_()
    with pytest.raises(UsageError, match="`budget` is 0"):
        nc.annotate(path, budget=0)
    words = ["annotate", str(path), "--labels", str(tmp_path / "known.csv"), "--budget", "5", "-q"]
    assert main(words) == 0 and capsys.readouterr().out == str(rows)
    (tmp_path / "names.txt").write_text("a\nb\n")
    np.save(tmp_path / "chances.npy", np.full((90, 3), 1 / 3))
    with pytest.raises(UsageError, match="`class_names` has 2 names, but `chances` has 3 classes"):
        nc.annotate(path, chances=str(tmp_path / "chances.npy"), class_names=str(tmp_path / "names.txt"))


def test_fifths_do_not_read_like_probabilities():
    told = [_told(*given) for given in (("cluster", 0), ("p_clean", 0), ("p_clean", 4), ("p_clean", 5), ("length", 5))]
    assert told == ["cluster 0", "p_clean in fifth 1 of 5", "p_clean in fifth 5 of 5", "no p_clean", "no length"]


def test_audit_shows_rare_things(tmp_path: Path):
    path, truth = write(tmp_path)
    chances = np.eye(3)[truth]
    np.save(tmp_path / "chances.npy", chances)
    found = suggest(str(path), Annotate(budget=6, acquisition="audit", chances=str(tmp_path / "chances.npy")))
    assert {row["predicted"] for row in found} == {"0", "1", "2"} and "cluster" in found[0]["reason"]
    assert len(suggest(str(path), Annotate(budget=4, acquisition="audit"))) == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"acquisition": "badge"}, "needs class probabilities"),
        ({"chances": "{image}"}, "no probabilities"),
        ({"chances": "{thin}"}, "`chances` has shape"),
        ({"labels": "{all}"}, "nothing to annotate"),
        ({"labels": "{none}"}, "none of its 1 keys"),
    ],
)
def test_wrong_use(options: dict[str, str], told: str, tmp_path: Path):
    path, _ = write(tmp_path)
    np.save(tmp_path / "thin.npy", np.ones((90, 1), np.float32))
    np.save(tmp_path / "all.npy", np.arange(90))
    (tmp_path / "none.csv").write_text("key,label\nx,a\n")
    places = {"image": path, "thin": tmp_path / "thin.npy", "all": tmp_path / "all.npy", "none": tmp_path / "none.csv"}
    choice = Annotate(**{name: value.format(**places) for name, value in options.items()})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=told):
        suggest(str(path), choice)


def test_choices_out_of_range(tmp_path: Path):
    for wrong in ({"budget": 0}, {"candidates": 0.0}, {"class_names": "x"}, {"label_col": "truth_wrong"},
                  {"labels": "a", "label_col": "b"}, {"acquisition": "magic"}):  # fmt: skip
        with pytest.raises(UsageError):
            Annotate(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no features"):
        suggest(str(tmp_path), Annotate())
