"""A run of `clean` as an object: tables, datasets, a DataLoader, reasons, new decisions, exports, a notebook's view."""

from __future__ import annotations

import html.parser
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sources import sample_rows

import noisycorr as nc
from noisycorr.clean.result import PairDataset
from noisycorr.runtime.errors import UsageError

N = 160
BAD = "<script>alert('x')</script> & \"quotes\" <img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> nc.CleanRun:
    """A decided run of pairs of the sample, every fifth with the text of another one; some broken, one hostile."""
    rows = [{"image": row["image"], "title": row["title"], "key": row["key"], "truth_wrong": False}
            for row in sample_rows(N)]  # fmt: skip
    moved = list(range(0, N, 5))
    texts = [rows[i]["title"] for i in moved]
    for place, text in zip(moved, [*texts[1:], texts[0]]):
        rows[place] |= {"title": text, "truth_wrong": True}
    rows[1] |= {"title": BAD, "truth_wrong": True}
    rows[2]["image"], rows[3]["title"] = b"no picture", None
    return nc.clean(rows, tmp_path_factory.mktemp("made") / "run", number_sample_per_shard=64)


@pytest.fixture
def run(made: nc.CleanRun, tmp_path: Path) -> nc.CleanRun:
    """A copy that a test may change."""
    return nc.CleanRun(shutil.copytree(made.folder, tmp_path / "run"))


def test_the_ledger_has_a_row_for_every_pair(made: nc.CleanRun) -> None:
    frame = made.to_pandas()
    assert len(frame) == len(made.to_arrow()) == N
    assert frame["key"].tolist() == [row["key"] for row in sample_rows(N)]  # in the order of the source
    assert set(frame["verdict"]) >= {"keep", "drop"} and not any("truth" in name for name in frame.columns)
    assert frame.loc[[2, 3], "verdict"].tolist() == ["drop", "drop"]


def test_print_says_where_and_what(made: nc.CleanRun) -> None:
    lines = str(made).splitlines()
    assert lines[0] == f"CleanRun({str(made.folder)!r})" and "\n".join(lines[1:]) == made.summary
    assert f"{N} pairs" in made.summary and nc.open_run(made.folder).summary == made.summary


def test_datasets_hold_what_was_asked(made: nc.CleanRun) -> None:
    frame = made.to_pandas()
    for only in ("keep", "drop", "all"):
        dataset = made.to_dataset(only)
        want = frame if only == "all" else frame[frame["verdict"] == only]
        assert dataset["key"] == want["key"].tolist() if only != "all" else len(dataset) == N
    row = made.to_dataset("keep")[0]
    assert row["image"].size and row["text"] and row["sample_weight"] > 0
    assert made.to_dataset("keep")[0]["key"] == row["key"]  # again, from disk
    with pytest.raises(UsageError, match="`only`"):
        made.to_dataset("keeep")


def test_a_data_loader_with_workers_reads_them(made: nc.CleanRun) -> None:
    import torch

    data = made.to_torch("keep", transform=_pixels)
    kept = made.to_pandas().query("verdict == 'keep'")
    assert isinstance(data, PairDataset) and len(data) == len(kept)
    loader = torch.utils.data.DataLoader(data, batch_size=16, num_workers=2, multiprocessing_context="spawn")
    batches = list(loader)
    assert [key for batch in batches for key in batch["key"]] == kept["key"].tolist()
    assert batches[0]["image"].shape == (16, 3, 8, 8) and batches[0]["sample_weight"].dtype == torch.float64
    np.testing.assert_allclose(torch.cat([batch["sample_weight"] for batch in batches]), kept["sample_weight"])
    again = pickle.loads(pickle.dumps(data))
    assert again[0]["text"] == data[0]["text"] and data[-1]["key"] == kept["key"].iloc[-1]
    with pytest.raises(IndexError):
        data[len(data)]


def _pixels(image: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(image.convert("RGB").resize((8, 8)))).permute(2, 0, 1)


def test_samplers_draw_by_weight(made: nc.CleanRun) -> None:
    data = made.to_torch("all")
    sampler = made.sampler("all", seed=3)
    drawn = list(sampler)
    assert len(drawn) == len(data) == N and drawn == list(data.sampler(seed=3)) != list(data.sampler(seed=4))
    assert (data.weights()[drawn] > 0).all()
    assert len(list(made.sampler())) == len(made.to_torch())
    with pytest.raises(UsageError, match="no pair has a weight above 0"):
        made.sampler("drop")


def test_reasons(made: nc.CleanRun) -> None:
    key = made.to_pandas()["key"][0]
    told = made.explain(key)
    assert key in told and "p_clean" in told
    with pytest.raises(UsageError, match="nowhere"):
        made.explain("nowhere")
    with pytest.raises(UsageError, match="`neighbors` is 0, expected 1 to 100"):
        made.explain(key, neighbors=0)


def test_a_new_decision_changes_verdicts_and_what_follows(run: nc.CleanRun) -> None:
    before = run.to_dataset("keep")
    assert run.decide(precision=0.95) is run
    frame = run.to_pandas()
    assert 0 < (frame["verdict"] == "keep").sum() != len(before) and set(frame["rule"]) == {"precision>=0.95"}
    assert run.to_dataset("keep")["key"] == frame.query("verdict == 'keep'")["key"].tolist()  # not the old export
    assert "precision&gt;=0.95" in run.report.read_text(encoding="utf-8")
    for options, words in (({"precision": 2}, "`precision` is 2"), ({"precison": 0.9}, "did you mean `precision`"),
                           ({"precision": "high"}, "`precision` is 'high', expected a number"),
                           ({"precision": 0.9, "fraction": 0.5}, "exclude each other")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            run.decide(**options)
    assert run.to_pandas().equals(frame)


def test_scores_are_made_anew(run: nc.CleanRun) -> None:
    assert run.score(neighbors=0) is run
    assert "score_image_neighbors" not in run.to_pandas().columns


def test_exports_go_where_they_are_sent(run: nc.CleanRun, tmp_path: Path) -> None:
    folder = run.export("webdataset", tmp_path / "cleaned")
    assert folder == tmp_path / "cleaned" and list(folder.glob("*.tar"))
    assert list(run.export("parquet").glob("*.parquet"))
    table = pq.read_table(run.export("parquet", tmp_path / "dropped", only="drop") / "00000.parquet")
    assert set(table.column("verdict").to_pylist()) == {"drop"}
    for call, words in ((lambda: run.export("tar"), "`output_format` is 'tar'"),
                        (lambda: run.export("csv", run.report), "is a file|not a folder")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            call()


def test_truth_is_read_by_evaluate_alone(run: nc.CleanRun, tmp_path: Path) -> None:
    found = run.evaluate()
    assert found["pairs"] + found["excluded"] == N  # no score where a side is missing
    assert round(found["noise_rate"] * found["pairs"]) == N // 5 + 1
    with pytest.raises(UsageError, match="truth"):
        run.evaluate(truth=tmp_path / "nowhere.csv")


def test_the_report_is_written_again(run: nc.CleanRun) -> None:
    run.report.unlink()
    assert run.write_report() == run.report and run.report.exists()


class _Page(html.parser.HTMLParser):
    """Tags and texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_notebook_shows_the_headline_and_a_strip_of_pictures(run: nc.CleanRun) -> None:
    rows = run.to_arrow()
    shown = run._repr_html_()
    page = _Page()
    page.feed(shown)
    names = [tag for tag, _ in page.tags]
    assert "script" not in names and not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert 4 <= len(pictures) <= 8
    assert all((attrs["src"] or "").startswith("data:image/jpeg;base64,/9j/") for attrs in pictures)
    assert all(line in page.texts for line in run.summary.splitlines()) and str(run.report) in "".join(page.texts)
    lowest = rows.sort_by("p_clean").column("text")[0].as_py()
    assert any(text.startswith(lowest[:20]) for text in page.texts)
    assert BAD in rows.sort_by("p_clean").column("text").slice(0, 8).to_pylist()
    assert any(text.startswith("<script>") for text in page.texts)  # as text


def test_a_run_that_is_only_embedded_says_so(run: nc.CleanRun) -> None:
    for name in ("score", "decide", "report"):
        (run.folder / "stages" / f"{name}.json").unlink()
    assert run.summary == "embedded, not decided yet" and "<img" not in run._repr_html_()
    for call in (run.to_pandas, run.to_dataset, run.sampler, lambda: run.explain("x"), run.evaluate, run.decide):
        with pytest.raises(UsageError, match="no finished stage"):
            call()


def test_the_first_example_works_in_an_empty_folder(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import noisycorr as nc; r = nc.clean('sample'); print(r)"],
                          cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ)  # fmt: skip
    assert done.stdout.startswith(f"CleanRun('noisycorr_out{os.sep}sample')\n") and "kept" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["noisycorr_out"]
