"""`noisycorr audit` from the command line on small pictures, class lists, and what must be refused or counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import noisycorr as nc
from noisycorr.__main__ import main
from noisycorr.classify.audit.class_list import make_classes, read_classes, resolve_labels
from noisycorr.classify.audit.labels import Audit, LabelView, audit_labels
from noisycorr.classify.audit.tags import audit_tags
from noisycorr.classify.prototypes import text_prototypes
from noisycorr.runtime.errors import UsageError

C, D = 4, 12


def made(n: int = 240, seed: int = 0, wrong: float = 0.2) -> dict[str, np.ndarray]:
    """Pictures and texts around class centres; a third of the texts missing, some labels wrong."""
    rng = np.random.default_rng(seed)
    true = rng.integers(C, size=n)
    centre, sense = 2 * rng.normal(size=(C, D)), rng.normal(size=(C, 8))
    image = centre[true] + rng.normal(size=(n, D))
    text = sense[true] + 0.7 * rng.normal(size=(n, 8))
    text[rng.random(n) < 0.33] = 0
    given = np.where(rng.random(n) < wrong, (true + rng.integers(1, C, size=n)) % C, true)
    return {"image": image.astype(np.float32), "text": text.astype(np.float32), "true": true, "given": given,
            "sense": sense.astype(np.float32)}  # fmt: skip


def view(data: dict[str, np.ndarray], labels: np.ndarray | None = None) -> LabelView:
    n = len(data["true"])
    return LabelView(image=[data["image"][:100], data["image"][100:]], text=[data["text"][:100], data["text"][100:]],
                     labels=data["given"] if labels is None else labels, group=np.arange(n),
                     prototypes=text_prototypes(data["sense"], np.arange(C), C))  # fmt: skip


def test_wrong_labels_are_found_and_repaired() -> None:
    from sklearn.metrics import roc_auc_score

    data = made()
    found = audit_labels(view(data), Audit())
    right = data["given"] == data["true"]
    assert roc_auc_score(right, found.score) > 0.97
    assert (found.other[~right] == data["true"][~right]).mean() > 0.85
    assert np.isfinite(found.p_right).all() and 0 <= found.p_right.min() <= found.p_right.max() <= 1
    order = np.argsort(found.score)
    assert (np.diff(found.p_right[order]) >= -1e-6).all(), "a better score never gets a lower probability"
    assert (found.p_right + found.p_other + found.outside <= 1 + 1e-5).all()
    again = audit_labels(view(data), Audit())
    np.testing.assert_array_equal(found.score, again.score)
    lent = found.donors[found.donors >= 0]
    assert data["text"][lent].any(axis=1).all(), "only those with a text lend one"


def test_a_row_without_a_label_or_a_picture_is_no_error() -> None:
    data = made()
    data["image"][3], labels = 0, data["given"].copy()
    labels[:3] = -1
    found = audit_labels(view(data, labels), Audit())
    assert np.isnan(found.p_right[:4]).all()
    assert (found.other[:3] == data["true"][:3]).sum() >= 2 and found.other[3] == -1
    with pytest.raises(UsageError, match="only 5 pictures"):
        audit_labels(view(data, np.where(np.arange(len(labels)) >= 235, labels, -1)), Audit())


def test_texts_may_all_be_missing_and_classes_empty_or_single() -> None:
    data = made()
    data["text"][:] = 0
    labels = np.where(data["given"] == 3, 0, data["given"])
    labels[0] = 3
    found = audit_labels(view(data, labels), Audit())
    assert "text" not in found.columns and (found.text_class == -1).all() and (found.support == 0).all()
    labels[0] = 0
    assert np.isfinite(audit_labels(view(data, labels), Audit()).p_right).all()


@pytest.mark.parametrize("options", [{"rerank": True}, {"faithful": True}, {"rerank": True, "faithful": True}])
def test_released_variants_run(options: dict[str, bool]) -> None:
    assert np.isfinite(audit_labels(view(made()), Audit(**options)).score).all()


def test_rows_with_several_labels() -> None:
    data = made(seed=3, wrong=0)
    rng = np.random.default_rng(0)
    bad = rng.random(len(data["true"])) < 0.25
    other = (data["true"] + rng.integers(1, C, size=len(bad))) % C
    pairs = zip(data["true"].tolist(), other.tolist(), bad)
    tags = [tuple(sorted({t, o} if b else {t})) for t, o, b in pairs]
    found = audit_tags(view(data), tags, Audit())
    kept = found.facts["tags_kept"]
    wrong_kept = np.mean([o in k for o, k, b in zip(other, kept, bad) if b])
    right_kept = np.mean([t in k for t, k in zip(data["true"], kept)])
    assert right_kept > 0.85 and wrong_kept < 0.5
    assert np.nanmean(found.p_right[bad]) < np.nanmean(found.p_right[~bad]) - 0.2
    with pytest.raises(UsageError, match="only 0 labels"):
        audit_tags(view(data), [() for _ in tags], Audit())


def test_choices_are_checked() -> None:
    for wrong in ({"graph_neighbors": 0}, {"folds": 1}, {"out_of_set": 0.95}, {"self_weight": -1.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Audit(**wrong)


# ---- class lists and labels


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_class_lists(tmp_path: Path) -> None:
    found = read_classes(write(tmp_path / "a.yaml", "jaguar: [a large cat, a car]\ntiger cat:\ndog: barks\n"))
    assert found.names == ("jaguar", "tiger cat", "dog") and found.undefined == ("tiger cat",)
    assert found.texts[0] == ["jaguar: a large cat", "jaguar: a car", "tiger cat", "dog: barks"]
    assert found.texts[1].tolist() == [0, 0, 1, 2]
    listed = read_classes(
        write(tmp_path / "b.yaml", "classes:\n- jaguar: a cat\n- dog\n- {name: ape, definition: x}\n")
    )
    assert listed.senses == (("a cat",), ("dog",), ("x",))
    assert read_classes(write(tmp_path / "names.txt", "# two\ncat\ndog\tbarks\n")).senses == (("cat",), ("barks",))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: x\na: y\n", "twice"), ("- Big cat\n- big_cat\n", "twice, first as 'Big cat'"), ("a: x\n", "1 classes"),
     ("5\n", "neither"), ("a: {b: c}\nd: e\n", "expected a text"), ("- [a]\n- b\n", "no class"),
     ("a: [\n", "could not be read"),
     ("- n02123045\n- dog\n", "WordNet")],
)  # fmt: skip
def test_bad_class_lists(tmp_path: Path, text: str, message: str) -> None:
    if message == "WordNet":
        for name in ("nltk", "wn"):
            try:
                __import__(name)
                pytest.skip("WordNet may be here")
            except ImportError:
                pass
    with pytest.raises(UsageError, match=message):
        read_classes(write(tmp_path / "a.yaml", text))
    with pytest.raises(UsageError, match="not a file"):
        read_classes(tmp_path / "none.yaml")


def test_labels_are_found_and_resolved() -> None:
    classes = make_classes({"big cat": [], "dog": []})
    rows = [
        {"key": "1", "note": "dog", "label": name, "clean_label": "dog"} for name in ("Big_Cat", "dog", "ape", None)
    ]
    rows[3]["note"] = "x"
    found = resolve_labels(rows, classes, "label", "here")
    assert found.one.tolist() == [0, 1, -1, -1] and found.raw == ["Big_Cat", "dog", "ape", ""] and found.tags is None
    assert resolve_labels(rows, classes, None, "here").column == "note", "the answer column is never picked"
    numbers = resolve_labels([{"label": 1}, {"label": 0}, {"label": 9}], classes, "label", "here")
    assert numbers.one.tolist() == [1, 0, -1] and "places" in numbers.note
    several = resolve_labels([{"t": ["dog", "big cat"]}, {"t": []}, {"t": ["dog"]}], classes, "t", "here")
    assert several.tags == [(0, 1), (), (1,)] and several.one.tolist() == [1, -1, 1]
    assert resolve_labels([{"t": "dog | big cat"}, {"t": "dog"}], classes, None, "here").tags == [(0, 1), (1,)]
    with pytest.raises(UsageError, match="no column 'x'"):
        resolve_labels(rows, classes, "x", "here")
    with pytest.raises(UsageError, match="name it with `label_col`"):
        resolve_labels([{"a": "ape"}], classes, None, "here")
    with pytest.raises(UsageError, match="Not one value"):
        resolve_labels([{"a": "ape"}], classes, "a", "here")


# ---- the command


def pictures(folder: Path, n: int = 80) -> Path:
    """Squares of four colours with a title and a label; some labels are wrong, one picture is broken."""
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    names, colours = ["red", "green", "blue", "white"], [(220, 30, 30), (30, 200, 40), (40, 60, 230), (240, 240, 240)]
    rows = []
    for i in range(n):
        buffer = io.BytesIO()
        pixels = np.clip(np.array(colours[i % 4]) + rng.normal(0, 25, (24, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append({"key": f"k{i}", "image": buffer.getvalue(), "title": f"<b>a {names[i % 4]} thing</b> {i}",
                     "colour": names[(i + (i % 9 == 0)) % 4], "truth_colour": names[i % 4]})  # fmt: skip
    rows[5]["image"], rows[6]["colour"], rows[7]["title"] = b"no picture", "mauve", ""
    pq.write_table(pa.Table.from_pylist(rows), folder / "set.parquet")
    write(folder / "classes.yaml", f"red: warm\ngreen: [like grass, '{'long ' * 400}']\nblue: like the sky\nwhite:\n")
    return folder / "set.parquet"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("audit")
    words = ["audit", str(pictures(folder)), "--classes", str(folder / "classes.yaml"), "--output_folder",
             str(folder / "out"), "--clip_model", "tiny", "--workers", "1", "-q"]  # fmt: skip
    assert main(words) == 0
    return folder, words


def test_the_ledger_holds_every_row(done: tuple[Path, list[str]]) -> None:
    folder, _ = done
    ledger = pq.read_table(folder / "out" / "ledger" / "00000.parquet").to_pylist()
    assert [row["key"] for row in ledger] == [f"k{i}" for i in range(80)]
    assert {row["verdict"] for row in ledger} <= {"keep", "relabel", "drop", "review"}
    assert ledger[5]["verdict"] == "drop" and ledger[5]["reason"] == "the image could not be decoded"
    assert ledger[6]["verdict"] in ("review", "relabel") and "'mauve' is not in the class list" in ledger[6]["reason"]
    assert all(row["reason"] and row["rule"] and row["stage"] == "audit" for row in ledger)
    assert all(row["label_rectified"] == row["label"] for row in ledger if row["verdict"] == "keep")
    keys = {row["key"] for row in ledger}
    assert any(row["text_donors"] for row in ledger)
    assert all(set(row["text_donors"]) <= keys - {row["key"], "k7"} for row in ledger)
    facts = json.loads((folder / "out" / "stages" / "audit_score.json").read_text())["facts"]
    assert facts["column"] == "colour" and not facts["multi_label"]
    told = " ".join(facts["warnings"])
    assert "1 classes have no definition" in told and "1 labels are not in the class list" in told
    assert "1 definitions are longer than the encoder reads" in told


def test_the_report_shows_classes_and_senses(done: tuple[Path, list[str]]) -> None:
    folder, _ = done
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert all(part in page for part in ("Confusion of classes", "most doubtful", "like grass", "data:image/jpeg"))
    assert "<b>a red" not in page, "texts are escaped"
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["counts"]["rows"] == sum(report["counts"]["verdicts"].values()) == 80


def test_the_same_command_does_nothing_again_and_a_rule_redecides(
    done: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = done
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("s*/*.parquet")}
    page = (folder / "out" / "report.html").read_bytes()
    assert main([*words[:-1]]) == 0
    assert "audit_score: nothing changed, skipped" in capsys.readouterr().err
    assert main([*words, "--p_threshold", "0.99"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before, "scores stay"
    assert main(words) == 0
    assert (folder / "out" / "report.html").read_bytes() == page
    assert main(["report", "--output_folder", str(folder / "out"), "-q"]) == 0
    assert (folder / "out" / "report.html").read_bytes() == page


def test_the_flags_stand_in_the_folder_and_in_the_report(
    tmp_path: Path, done: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = done
    out = folder / "out"
    assert main([*words, "--p_threshold", "0.97", "--label_col", "colour"]) == 0
    page, ledger = (out / "report.html").read_text(encoding="utf-8"), (out / "ledger" / "00000.parquet").read_bytes()
    assert "\np_threshold: 0.97\n" in page and "\np_threshold: 0.5\n" not in page and "label_col: colour" in page
    assert "--config" in page and "audit SOURCE" not in page
    again = ["audit", "--config", str(out / "audit.yaml"), "--output_folder", str(tmp_path / "again"), "-q"]
    assert main(again) == 0
    assert (tmp_path / "again" / "ledger" / "00000.parquet").read_bytes() == ledger
    capsys.readouterr()
    assert main(["status", str(out)]) == 0
    told = capsys.readouterr().out
    assert "audit_report: done" in told and "not done" not in told and "not finished" not in told
    assert main(["decide", "--output_folder", str(out), "--p_threshold", "0.9"]) == 2
    assert "give `noisycorr audit` other options" in capsys.readouterr().err
    assert main(words) == 0


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (["audit"], ("prompt_started", "tune_started", "classify_started")),
        (["prompt"], ("embed_started", "tune_started", "classify_started")),
        (["classify", "train"], ("embed_started", "tune_started", "prompt_started")),
    ],
)
def test_a_folder_of_another_kind_is_left_alone(
    words: list[str], kinds: tuple[str, ...], tmp_path: Path, done: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for kind in kinds:
        out = tmp_path / kind
        write(out / "stages" / f"{kind}.json", "{}")
        write(out / "config.yaml", "mine: 1\n")
        more = ["--classes", done[1][3], "--clip_model", "tiny", "--output_folder", str(out), "-q"]
        assert main([*words, str(done[0] / "set.parquet"), *more]) == 2
        assert "choose another --output_folder" in capsys.readouterr().err
        assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "stages"]
        assert (out / "config.yaml").read_text() == "mine: 1\n"


def test_the_function_gives_what_the_command_gives(tmp_path: Path, done: tuple[Path, list[str]]) -> None:
    folder, words = done
    audited = nc.audit(words[1], tmp_path / "out", classes=folder / "classes.yaml", clip_model="tiny", workers=1)
    assert isinstance(audited, nc.AuditRun) and audited.summary.startswith("80 rows in, 80 in the ledger")
    ledger = Path("ledger") / "00000.parquet"
    assert (tmp_path / "out" / ledger).read_bytes() == (folder / "out" / ledger).read_bytes()
    issues = audited.label_issues()
    assert len(issues) == 80 and list(issues.columns[:4]) == ["key", "is_label_issue", "label_score", "given_label"]
    assert ((issues.label_score < 0.5) == issues.is_label_issue)[issues.label_score.notna()].all()
    with pytest.raises(UsageError, match="give `noisycorr audit` other options"):
        audited.decide(p_threshold=0.9)
    again = nc.audit(audited, classes=folder / "classes.yaml", p_threshold=0.99)
    assert again.folder == audited.folder and again.label_issues().is_label_issue.sum() > issues.is_label_issue.sum()
    page = again.report.read_bytes()
    again.report.unlink()
    assert again.write_report().read_bytes() == page and isinstance(nc.open_run(tmp_path / "out"), nc.AuditRun)
    with pytest.raises(UsageError, match="is embedded already: leave out `clip_model`"):
        nc.audit(audited, classes=folder / "classes.yaml", clip_model="tiny")
    with pytest.raises(UsageError, match="`relabel_threshold` is 2"):
        nc.audit(audited, classes=folder / "classes.yaml", relabel_threshold=2.0)


def test_explain_tells_the_evidence(done: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = done
    assert main(["explain", "k0", "--output_folder", str(folder / "out")]) == 0
    text = capsys.readouterr().out
    assert "label    green" in text and "texts lent by" in text and "score_vote" in text and "truth_colour" not in text


def test_the_folder_can_be_cleaned_and_audited_in_turn(done: tuple[Path, list[str]]) -> None:
    folder, words = done
    one = (folder / "out" / "ledger" / "00000.parquet").read_bytes()
    assert main(["clean", words[1], *words[4:]]) == 0
    assert not isinstance(nc.open_run(folder / "out"), nc.AuditRun)
    assert pq.read_schema(folder / "out" / "ledger" / "00000.parquet").get_field_index("label_rectified") < 0
    assert main(words) == 0
    assert (folder / "out" / "ledger" / "00000.parquet").read_bytes() == one
    assert main(["explain", "k1", "--output_folder", str(folder / "out")]) == 0


def test_bad_usage_is_one_sentence(done: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, words = done
    assert main([*words, "--label_col", "shape"]) == 2
    assert "no column 'shape'" in capsys.readouterr().err
    assert main(["audit", words[1], "--output_folder", str(folder / "new")]) == 2
    assert "--classes is missing" in capsys.readouterr().err
    np.save(folder / "e.npy", np.zeros((2, 3)))
    assert main([*words, "--class_embeddings", str(folder / "e.npy")]) == 2
    assert "has shape (2, 3)" in capsys.readouterr().err


def test_rows_with_another_label_are_exported_with_it(
    tmp_path: Path, done: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    import csv

    rows = [{**row, "title": row["colour"]} for row in pq.read_table(done[0] / "set.parquet").to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    out, names = str(tmp_path / "out"), write(tmp_path / "names.txt", "red\ngreen\nblue\nwhite\n")
    words = ["audit", str(tmp_path / "set.parquet"), "--classes", str(names), "--label_col", "colour", "--clip_model"]
    words += ["tiny", "--output_folder", out, "--workers", "1", "--relabel_threshold", "0.5", "--out_of_set", "0", "-q"]
    assert main(words) == 0
    ledger = pq.read_table(Path(out) / "ledger" / "00000.parquet").to_pylist()
    changed = {row["key"]: row["label_rectified"] for row in ledger if row["verdict"] == "relabel"}
    assert changed
    assert main(["export", "--output_folder", out, "--output_format", "csv", "-q"]) == 0
    with (Path(out) / "export" / "csv" / "pairs.csv").open(encoding="utf-8", newline="") as file:
        found = {row["key"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert set(found) == {row["key"] for row in ledger if row["verdict"] in ("keep", "relabel")}
    assert {key: (found[key]["label_rectified"], found[key]["title"]) for key in changed} == {
        key: (label, label) for key, label in changed.items()
    }
    for only, rows in (("relabel", len(changed)), ("all", len(ledger))):
        place = tmp_path / only
        words = ["--output_format", "parquet", "--only", only, "--output_path", str(place), "-q"]
        assert main(["export", "--output_folder", out, *words]) == 0
        assert pq.read_table(place / "00000.parquet").num_rows == rows
    capsys.readouterr()
