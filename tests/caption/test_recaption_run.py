"""Recaption on a run folder: the overlay, undo, resume, captioners, and what reads the ledger afterwards."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recaption_run import write_source

from noisycorr.__main__ import main
from noisycorr.caption.captioner.choice import Decode
from noisycorr.caption.captioner.stored import Texts
from noisycorr.caption.images import check_reads
from noisycorr.caption.recaption import ledger as overlay
from noisycorr.caption.recaption import stage
from noisycorr.caption.recaption.choice import Recaption
from noisycorr.caption.recaption.ledger import COLUMNS, marked_rows, read_ledger, recaption_run
from noisycorr.clean.corpus import TEST, VALID, read_corpus, rectify_texts, split_corpus, without_new_texts
from noisycorr.clean.export import Export, export
from noisycorr.clean.pipeline import decided
from noisycorr.clean.plan import stored_plan
from noisycorr.clean.score import load_pairs
from noisycorr.clean.sources import encoder_identity
from noisycorr.data.readers import open_source
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run

ADDED = set(COLUMNS)
MAY_CHANGE = {"verdict", "reason", "rule", "stage", "sample_weight"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decided run, before any recaption."""
    folder = tmp_path_factory.mktemp("recaption")
    source = write_source(folder / "source")
    words = ["clean", str(source), "--output_folder", str(folder / "run"), "--number_sample_per_shard", "200"]
    assert main([*words, "--no_near_duplicates", "-q"]) == 0
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    """A copy of it."""
    shutil.copytree(made / "run", tmp_path / "run")
    return Run(tmp_path / "run")


def recaption(run: Run, *words: str) -> int:
    return main(["recaption", "--output_folder", str(run.folder), "-q", *words])


def parts(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run.folder / "ledger").glob("*.parquet"))}


def test_the_overlay_keeps_what_was_there_and_is_taken_back(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before, bytes_before = read_ledger(run), parts(run)
    assert recaption(run) == 0
    after, once = read_ledger(run), parts(run)
    assert set(after.column_names) == {*before.column_names, *ADDED}
    for name in set(before.column_names) - MAY_CHANGE:
        assert after.column(name).to_pylist() == pytest.approx(before.column(name).to_pylist(), nan_ok=True)
    rows = after.to_pylist()
    taken = [row for row in rows if row["recaption"] == "replace"]
    assert len(taken) > 50
    for row in taken:
        assert row["verdict"] == "recaption" == row["stage"] and row["text_rectified"] == row["text_proposed"]
        assert row["sample_weight"] == row["score_text_new"] >= 0.5 and row["text_source"] == "retrieval:agreement"
        assert row["score_text_new"] - row["score_text_given"] >= 0.3 - 1e-6 and row["text_donor"] != row["key"]
        assert rows[int(row["text_donor"][1:])]["text"] == row["text_rectified"]
    for row, old in zip(rows, before.to_pylist()):
        if row["recaption"] in (None, "keep", "none"):
            assert all(row[name] == old[name] for name in MAY_CHANGE) and row["text_rectified"] is None
    times = [path.stat().st_mtime_ns for path in sorted((run.folder / "ledger").iterdir())]
    assert recaption(run) == 0 and parts(run) == once  # nothing changed
    assert [path.stat().st_mtime_ns for path in sorted((run.folder / "ledger").iterdir())] == times, "nothing was done"
    assert recaption(run, "--gain", "0.9", "--least", "0.99") == 0 and parts(run) != once
    assert recaption(run) == 0 and parts(run) == once
    assert main(["decide", "--output_folder", str(run.folder), "-q"]) == 0
    assert parts(run) == bytes_before and run.stage("recaption") is None
    assert stored_plan(run).recaption == "none"


@pytest.mark.parametrize("content", ["key,label\nk0,maybe\n", "id,label\nk0,1\n", "key,label\nzzz,1\n"])
def test_labels_that_are_refused_take_nothing_back(run: Run, tmp_path: Path, content: str) -> None:
    assert recaption(run) == 0
    before = {path: path.read_bytes() for path in sorted(run.folder.rglob("*")) if path.is_file()}
    (tmp_path / "judged.csv").write_text(content, encoding="utf-8")
    assert main(["decide", "--output_folder", str(run.folder), "--labels", str(tmp_path / "judged.csv"), "-q"]) == 2
    after = {path: path.read_bytes() for path in sorted(run.folder.rglob("*")) if path.is_file()}
    assert list(after) == list(before) and after == before


def test_labels_of_unknown_pairs_are_told(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "judged.csv").write_text("key,label\nk0,1\nzzz,0\nyyy,0\n", encoding="utf-8")
    assert main(["decide", "--output_folder", str(run.folder), "--labels", str(tmp_path / "judged.csv")]) == 0
    err = capsys.readouterr().err
    assert "warning: of 2 keys in" in err and "such as 'zzz'" in err


def test_labels_that_are_refused_stop_clean_before_it_embeds(made: Path, tmp_path: Path) -> None:
    (tmp_path / "judged.csv").write_text("key,label\nk0,maybe\n", encoding="utf-8")
    words = ["clean", str(made / "source"), "--output_folder", str(tmp_path / "new"), "-q"]
    assert main([*words, "--labels", str(tmp_path / "judged.csv")]) == 2
    assert not (tmp_path / "new" / "pairs").exists()


def test_most_replaced_texts_name_the_right_thing(run: Run, made: Path) -> None:
    assert recaption(run) == 0
    truth = [bool(json.loads(c)["truth_wrong"] == "1") for index in (0, 1, 2)
             for c in pq.read_table(run.folder / "pairs" / f"{index:05d}.parquet")["columns"].to_pylist()]  # fmt: skip
    rows = read_ledger(run).to_pylist()
    image = np.load(made / "source" / "image.npy")
    good = [i for i, bad in enumerate(truth) if not bad]
    taken = [i for i, row in enumerate(rows) if row["recaption"] == "replace"]
    right = 0
    for i in taken:
        nearest = good[int(np.argmin(np.linalg.norm(image[good] - image[i], axis=1) + 1e9 * (np.array(good) == i)))]
        right += rows[nearest]["text"].split()[2] == rows[i]["text_rectified"].split()[2]
    assert right / len(taken) > 0.8 and sum(not truth[i] for i in taken) <= 0.02 * len(good)


def test_clean_closes_the_loop_and_config_makes_it_again(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["clean", str(made / "source"), "--output_folder", str(tmp_path / "a"), "--number_sample_per_shard", "200",
             "--no_near_duplicates", "-q"]  # fmt: skip
    assert main([*words, "--recaption", "retrieval", "--recaption.propose", "nearest"]) == 0
    found = Run(tmp_path / "a")
    sources = set(read_ledger(found).column("text_source").to_pylist())
    assert sources == {None, "retrieval:nearest"}
    before = parts(found)
    assert main(["run", str(tmp_path / "a" / "config.yaml"), "-q"]) == 0 and parts(found) == before
    config = (tmp_path / "a" / "config.yaml").read_bytes()
    for again in (words[:-1], [*words, "--stages", "score"], words):  # without it: nothing below the new texts changed
        assert main(again) == 0 and parts(found) == before and found.stage("recaption") is not None
        assert (tmp_path / "a" / "config.yaml").read_bytes() == config
    assert "new texts of `noisycorr recaption` stay (`noisycorr decide` takes them back)" in capsys.readouterr().err
    assert main([*words, "--p_threshold", "0.6"]) == 0 and stored_plan(found).recaption == "none"
    assert not ADDED & set(read_ledger(found).column_names) and found.stage("recaption") is None
    for bad, message in (
        (["--recaption", "retrieval", "--recaption.gains", "1"], "gains"),
        (["--recaption.gain", "0.2"], "none"),
        (["--recaption", str(tmp_path / "no")], "no folder"),
    ):
        assert main([*words, *bad]) == 2, message


def test_an_interrupted_recaption_is_told_and_continued(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recaption(run) == 0
    whole = parts(run)
    assert main(["decide", "--output_folder", str(run.folder), "-q"]) == 0
    real, calls = overlay.atomic_path, []

    def dies(path: Path) -> Any:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(overlay, "atomic_path", dies)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        if recaption(run) != 0:
            raise SystemExit
    monkeypatch.setattr(overlay, "atomic_path", real)
    with pytest.raises(UsageError, match="interrupted"):
        decided(run)
    assert recaption(run) == 0 and parts(run) == whole
    decided(run)


def test_exports_training_report_and_explain_read_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    given = read_corpus(run)
    assert recaption(run) == 0
    ledger = read_ledger(run).to_pylist()
    usable = [row for row in ledger if row["verdict"] in ("keep", "recaption")]
    reader = open_source(stored_plan(run).source)
    for texts in ("rectified", "given"):
        facts = export(run, reader, Export(output_format="jsonl", texts=texts, output_path=str(run.folder / texts)))
        lines = [json.loads(line) for line in (run.folder / texts / "pairs.jsonl").read_text().splitlines()]
        assert facts["rows"] == len(lines) == len(usable)
        assert [line["text_rectified"] for line in lines] == [row["text_rectified"] for row in usable]
        new = [row["text_rectified"] or row["text"] for row in usable]
        assert [line["text"] for line in lines] == (new if texts == "rectified" else [row["text"] for row in usable])
        told = [row["text"] for row in usable] if texts == "rectified" else [None] * len(usable)
        assert [line.get("text_given") for line in lines] == told
    export(run, reader, Export(output_format="parquet", output_path=str(run.folder / "parquet")))
    back = pq.read_table(run.folder / "parquet" / "00000.parquet").to_pylist()
    assert [row["text"] for row in back] == new and [row["text_given"] for row in back] == [r["text"] for r in usable]
    for texts in ("rectified", "given"):
        folder = run.folder / f"tar-{texts}"
        export(run, reader, Export(output_format="webdataset", texts=texts, output_path=str(folder)))
        with tarfile.open(folder / "00000.tar") as tar:
            said = [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")]  # type: ignore[union-attr]
        new = [row["text_rectified"] or row["text"] for row in usable]
        assert said == (new if texts == "rectified" else [row["text"] for row in usable])
    export(run, reader, Export(output_format="clip-retrieval", output_path=str(run.folder / "clip")))
    captions = pq.read_table(run.folder / "clip" / "metadata" / "metadata_0.parquet").column("caption").to_pylist()
    kept = [row for row in ledger if row["verdict"] == "keep"]
    assert captions == [row["text"] for row in kept]  # beside embeddings of given texts there is no place for new ones
    assert export(run, reader, Export(output_format="uids", output_path=str(run.folder / "uids")))["rows"] == len(kept)
    every = Export(output_format="uids", only="keep,recaption", output_path=str(run.folder / "more"))
    assert export(run, reader, every)["rows"] == len(usable)
    with pytest.raises(UsageError, match="rectified or given"):
        Export(texts="old")  # type: ignore[arg-type]
    corpus = read_corpus(run)
    assert corpus.identity != given.identity and len(corpus.rectified) > 50
    row = next(iter(corpus.rectified))
    assert corpus.kept[row] and corpus.columns["p_clean"][row] < 0.5
    mended = rectify_texts(corpus, lambda texts: np.ones((len(texts), 16), np.float32))
    assert mended.columns["p_clean"][row] == np.float32(ledger[row]["score_text_new"])
    assert corpus.columns["p_clean"][row] < 0.5 and (mended.text[row] == 1).all()
    changed, same = np.isin(np.arange(len(ledger)), list(corpus.rectified)), mended.columns["score_pair"]
    assert np.isnan(same[changed]).all() and np.isfinite(corpus.columns["score_pair"][changed]).all()
    assert np.array_equal(same[~changed], corpus.columns["score_pair"][~changed], equal_nan=True)
    assert np.isfinite(mended.columns["score_text_new"][changed]).all()
    looked = dataclasses.replace(corpus, review=np.arange(len(ledger)) % 3 == 0)
    held = split_corpus(looked, val_fraction=0.3, test_fraction=0.3, seed=0) > 0
    assert held.any() and not held[looked.review].any(), "whom a person should look at tests nothing"
    split = split_corpus(corpus, val_fraction=0.3, test_fraction=0.3, seed=0)
    assert not (set(np.flatnonzero((split == VALID) | (split == TEST))) & set(corpus.rectified))
    old = without_new_texts(corpus)
    assert (
        not old.rectified
        and not old.kept[row]
        and old.kept.sum() == sum(r["verdict"] != "drop" for r in ledger) - len(corpus.rectified)
    )
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    report = json.loads((run.folder / "report.json").read_text(encoding="utf-8"))
    shown = report["galleries"]["replaced"]
    assert "New texts" in page and "<s>" in page and shown[0]["text_new"] in page
    assert all(card["p_new"] - card["p_given"] >= 0.3 - 1e-6 for card in shown)
    capsys.readouterr()
    key = ledger[row]["key"]
    assert main(["explain", key, "--output_folder", str(run.folder)]) == 0
    told = capsys.readouterr().out
    assert ledger[row]["text_rectified"] in told and "taken in place of the given one" in told
    assert ledger[row]["text_donor"] in told


def test_which_rows_are_marked() -> None:
    n = 9
    table = pa.table(
        {
            "verdict": ["drop", "drop", "keep", "review", "drop", "drop", "drop", "recaption", "drop"],
            "p_clean": pa.array([0.1, 0.9, 0.1, 0.3, 0.1, np.nan, 0.1, 0.6, 0.2], pa.float32()),
            "is_mismatch_issue": [True, False, True, False, True, False, False, False, False],
            "is_text_issue": [False, False, False, False, False, False, False, False, True],
            "is_image_issue": [False, False, False, False, True, False, False, False, False],
        }
    )
    has_text = np.arange(n) != 5
    found = marked_rows(table, Recaption(), np.ones(n, bool), has_text)
    # 1 and 6 are dropped as duplicates, 2 is kept, 4 has an image issue, 7 looks right
    assert found.tolist() == [0, 3, 5, 8]
    assert marked_rows(table, Recaption(below=0.7), np.ones(n, bool), has_text).tolist() == [0, 3, 5, 7, 8]
    assert marked_rows(table, Recaption(), np.zeros(n, bool), has_text).tolist() == []


class Writer:
    """A captioner for tests: says what the row's own text says, loudly."""

    name, level = "tiny@1", 3

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, rows: np.ndarray) -> list[str]:
        self.asked += len(rows)
        return [f"a red dog {row % 3}" if row % 5 else "" for row in rows.tolist()]


def test_a_captioner_is_asked_once_and_its_texts_are_kept(run: Run) -> None:
    plan = stored_plan(run)
    found = load_pairs(plan, run)
    writer = Writer()
    vectors = dict(zip(found.texts, np.concatenate(found.view.text)))
    first = next(iter(vectors.values()))

    def encode(texts: list[str]) -> np.ndarray:
        return np.stack([vectors.get(text, first) for text in texts]).astype(np.float32)

    before = parts(run)
    facts = recaption_run(Recaption(guard_overlap=0), run, found, joint=None, write=writer, encode=encode)
    rows = [row for row in read_ledger(run).to_pylist() if row["recaption"] not in (None, "none")]
    assert writer.asked == facts["marked"] and facts["level"] == 3 and facts["source"] == "tiny@1"
    assert rows and all(row["text_level"] == 3 and row["text_donor"] is None for row in rows)
    assert facts["actions"]["none"] > 0
    after = parts(run)
    for name, data in before.items():
        (run.folder / "ledger" / name).write_bytes(data)
    recaption_run(Recaption(guard_overlap=0), run, found, joint=None, write=writer, encode=encode)
    assert writer.asked == facts["marked"] and parts(run) == after
    with pytest.raises(UsageError, match="wrote 0 texts"):
        recaption_run(Recaption(), run, found, joint=None, write=lambda rows: [], encode=encode)


class Shaken(Writer):
    """One that also writes for disturbed pictures, and may be killed."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.disturbances: list[tuple[str, int]] = []
        self.most = most

    def disturbed(self, rows: np.ndarray, turn: int) -> list[str]:
        return self._said(f"turn {turn}", rows)

    def undisturbed(self, rows: np.ndarray) -> list[str]:
        return self._said("plain", rows)

    def _said(self, what: str, rows: np.ndarray) -> list[str]:
        if len(self.disturbances) == self.most:
            raise KeyboardInterrupt
        self.disturbances.append((what, len(rows)))
        return [f"a red dog {row % 3}" for row in rows.tolist()]


def test_texts_for_disturbed_pictures_are_kept_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "CHUNK", 10)
    ledger, rows = read_ledger(run), np.arange(25)
    before = {"plain": 25, "turn 0": 25, "turn 1": 25}

    def write(writer: Shaken, choice: Recaption) -> dict[str, int]:
        kept: Any = overlay._Written(run, writer, ledger, choice)
        assert kept.undisturbed(rows) == kept.disturbed(rows, 0) == kept.disturbed(rows, 1)
        assert all(count <= 10 for _, count in writer.disturbances)
        return dict(sum((Counter({name: count}) for name, count in writer.disturbances), Counter()))

    with pytest.raises(KeyboardInterrupt):
        write(killed := Shaken(5), Recaption())
    assert killed.disturbances == [("plain", 10), ("plain", 10), ("plain", 5), ("turn 0", 10), ("turn 0", 10)]
    assert write(Shaken(), Recaption()) == {"turn 0": 5, "turn 1": 25}, "it goes on"
    assert write(Shaken(), Recaption(gain=0.9)) == {}, "a gain changes no text"
    for other in (Recaption(disturbance=0.7), Recaption(recaption_seed=5)):
        assert write(Shaken(), other) == {name: count for name, count in before.items() if name != "plain"}


def test_the_stage_asks_for_disturbed_pictures_through_the_files(run: Run) -> None:
    found = load_pairs(stored_plan(run), run)
    vectors = dict(zip(found.texts, np.concatenate(found.view.text)))
    first = next(iter(vectors.values()))
    recaption_run(Recaption(), run, found, joint=None, write=(writer := Shaken()),
                  encode=lambda texts: np.stack([vectors.get(text, first) for text in texts]))  # fmt: skip
    files = [json.loads(path.read_text()) for path in (run.folder / "recaption").iterdir()]
    assert {name for name, _ in writer.disturbances} == {"plain", "turn 0", "turn 1", "turn 2"}
    assert sum(len(body["texts"]) for body in files) == writer.asked + sum(count for _, count in writer.disturbances)


class Trained:
    """Stands for a captioner of `noisycorr caption train`: says how long the picture's vector is."""

    level, levels, decode, spread = 2, None, Decode(), None

    def __init__(self, encoder: str) -> None:
        self.encoder = encoder

    def write(self, image: np.ndarray, level: None = None, decode: Any = None, *, seed: int = 0,
              names: list[int] | None = None) -> Texts:  # fmt: skip
        n = len(image)
        texts = [f"{name} {np.linalg.norm(row):.3f}" for name, row in zip(names or range(n), image)]
        return Texts(texts, np.zeros(n), np.ones(n, bool), np.full(n, 2))


def test_a_captioner_of_a_folder_writes_for_rows(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"by other@1, but .* by precomputed.* with that encoder\.$"):
        check_reads(Trained("other@1"), tmp_path, run)  # type: ignore[arg-type]
    trained = Trained(encoder_identity(run))
    monkeypatch.setattr("noisycorr.caption.captioner.stored.load_captioner", lambda folder: trained)
    write = stage.RowWriter(trained, run, "a", Recaption(disturbance=0.5), None)
    image = np.concatenate(load_pairs(stored_plan(run), run).view.image)
    assert write(np.array([7, 300])) == [f"{row} {np.linalg.norm(image[row]):.3f}" for row in (7, 300)]
    shaken = write.disturbed(np.array([7]), 0)
    assert shaken != write(np.array([7])) and write.level == 2
    assert recaption(run, "--model", str(tmp_path)) == 2  # embeddings without a model cannot be judged


@pytest.mark.parametrize("words", [["--policy", "merge"], ["--trust", "1.5"], ["--model", "nowhere"]])
def test_what_cannot_be_done_is_bad_usage(run: Run, words: list[str]) -> None:
    assert recaption(run, *words) == 2
    decided(run)


def test_nothing_to_do_is_no_error(made: Path, run: Run) -> None:
    assert recaption(run, "--below", "0") == 0
    facts = (run.stage("recaption") or {})["facts"]
    assert facts["marked"] == 0 and "nothing to do" in facts["summary"][0]
    assert set(read_ledger(run).column("recaption").to_pylist()) == {None}
