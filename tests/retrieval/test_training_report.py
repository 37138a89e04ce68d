"""The page of a training, notes that are said once, and trackers."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from test_train import FAST, write_source

from noisycorr.__main__ import main
from noisycorr.clean.report import plots
from noisycorr.models.training.choice import Train
from noisycorr.retrieval import fit as retrieval
from noisycorr.retrieval.report import notes, write_training_report
from noisycorr.runtime import dist
from noisycorr.runtime.folder import Run, write_json

HOSTILE = "</title></style><script>alert(1)</script>{{ 7*7 }}\x1b[31m"


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of style sheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        self.text += "" if self.inside == "style" else data


def metrics(base: float) -> dict[str, float]:
    """Made-up recall."""
    found = {f"{side}_retrieval_recall@{k}": base + k for side in ("text", "image") for k in (1, 5, 10)}
    return found | {"rSum": 6 * base + 32}


def result(networks: int) -> dict[str, Any]:
    """As `retrieval` gives it."""
    return {"pairs": 1200, "images": 240, "ensemble": metrics(50.0),
            "singles": [metrics(40.0 + number) for number in range(networks)]}  # fmt: skip


def make_training(folder: Path, *, epochs: int = 4, networks: int = 2, truth: bool = True, valid: bool = True) -> Run:
    """A finished training with hostile names."""
    history = []
    for epoch in range(epochs):
        record: dict[str, Any] = {"epoch": epoch, "loss": [3.0 / (epoch + 1)] * networks, "pairs": [9] * networks}
        for number in range(networks):
            end = f"_{number}" if networks > 1 else ""
            record[f"clean_share{end}"] = 0.5 + 0.1 * number
            record[f"note{end}"] = f"{HOSTILE} AUROC 0.{50 + epoch}"
            record |= {f"auroc_p_clean{end}": 0.9 if epoch else None} if truth else {}
        record |= {"valid_rSum": 300.0 + epoch, "select": 300.0 + epoch} if valid else {}
        record |= {"fall_back": 99} if epoch in (0, 1, 3) else {}
        history.append(record)
    report = {"strategy": {"name": HOSTILE, "class": "X", "column": HOSTILE}, "settings": {"lr": 3e-4},
              "pairs": 9600, "networks": networks, "best_epoch": epochs - 1 if epochs else None, "history": history,
              "detection": {"auroc_p_clean_0": 0.91} if truth else {}}  # fmt: skip
    run = Run(folder)
    write_json(run.path("report.json"), report | ({"validation": result(networks)} if valid else {}))
    config = yaml.safe_dump({"path": HOSTILE, "output_folder": "my models/" + HOSTILE}, allow_unicode=True)
    run.path("config.yaml").write_text(config, encoding="utf-8")
    write_json(run.path("provenance.json"), {"python": HOSTILE})
    return run


def page_of(run: Run) -> Page:
    """The page as a browser sees it; it must not load anything."""
    text = write_training_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "base", "form", "img"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert all((attributes.get(name) or "#").startswith(("#", "data:,")) for name in ("src", "href"))
    assert "\x1b" not in text and "@import" not in text and "url(" not in text
    return page


# ---- the page


def test_the_page_shows_everything_and_escapes_it(tmp_path: Path):
    run = make_training(tmp_path)
    write_json(run.path("evaluation.json"), {"test": result(2), "test_data": HOSTILE})
    page = page_of(run)
    assert page.text.count("<script>alert(1)</script>{{ 7*7 }}") > 5
    assert sum(tag == "svg" for tag, _ in page.tags) == 4
    assert [a["id"] for tag, a in page.tags if tag == "section"] == [
        "result", "curves", "detection", "notes", "method", "next", "sources"]  # fmt: skip
    assert "puts a right text first for 51.0\u00a0% of the test images" in page.text and "rSum 332.0" in page.text
    assert "network 1" in page.text and "together" in page.text and "AUROC of wrong pairs" in page.text
    assert "noisycorr evaluate 'my models/" in page.text
    first = (tmp_path / "report.html").read_bytes()
    assert write_training_report(run).read_bytes() == first


def test_what_is_not_known_is_said(tmp_path: Path):
    page = page_of(make_training(tmp_path, truth=False, valid=False, networks=1))
    assert "no pairs were left to measure it on" in page.text and "No test split was opened" in page.text
    assert "Not drawn: there were no validation pairs" in page.text and "Not drawn: it is not known" in page.text
    assert "checked against known truth" not in page.text and "together" not in page.text
    page = page_of(make_training(tmp_path, epochs=1))
    assert any(tag == "circle" for tag, _ in page.tags), "one epoch is a dot"


def test_a_note_stands_once_with_its_epochs(tmp_path: Path):
    page = page_of(make_training(tmp_path))
    assert page.text.count("AUROC 0.5") == 1 and "epochs 1 to 4" in page.text
    assert "fewer than 2 pairs were trusted, so all 99 pairs were used" in page.text and "epochs 1 to 2, 4" in page.text
    assert notes([{"epoch": 0}, {"note": "one"}, {"note_0": "two", "note_1": "two"}]) == [
        ("one", "epoch 2"), ("two", "epoch 3")]  # fmt: skip


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0, 0.0], [-3.0, 1e9], [1e-9, 2e-9]])
def test_curves_of_any_values_stay_inside(values: list[float]):
    text = str(plots.curves([("line", list(range(1, len(values) + 1)), values)], "a & b", mark=1))
    assert "nan" not in text and "inf" not in text and "a &amp; b" in text


# ---- notes on the console


def test_a_note_is_said_once_on_the_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    warned: list[str] = []
    monkeypatch.setattr(retrieval.console, "warn", warned.append)
    said: set[str] = set()
    for epoch in range(3):
        record = {"epoch": epoch, "loss": [1.0, 3.0], "note_0": f"weak (0.5{epoch})", "note_1": "weak (0.7)",
                  "fall_back": 50, "valid_rSum": 100.0, "auroc_loss_0": None}  # fmt: skip
        times = {"pairs": 10.0, "train": 2.0, "judge": 0.0, "loading": 0.0}
        values = retrieval._tell(Run(tmp_path), record, times, Train(), said)
    assert [line.split(":")[1].split("(")[0].strip() for line in warned] == ["weak", "fewer than 2 pairs were trusted"]
    assert values["loss"] == 2.0 and values["valid_rSum"] == 100.0 and values["samples_per_second"] == 5.0
    assert "note_0" not in values and "epoch" not in values and "auroc_loss_0" not in values


# ---- trackers


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> type:
    """A tracker of Accelerate that remembers, as a user would register it."""
    from accelerate import tracking

    class Notebook(tracking.GeneralTracker):
        """Remembers."""

        name, requires_logging_directory, tracker = "notebook", True, None
        told: ClassVar[list[Any]] = []

        def __init__(self, run_name: str, logging_dir: str) -> None:
            super().__init__()
            self.told.append(("opened", run_name, Path(logging_dir).name))

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self.told.append(("config", values))

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            self.told.append((step, values))

        def finish(self) -> None:
            self.told.append("closed")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    return Notebook


def test_a_tracker_gets_the_numbers_of_each_epoch(tracker: Any, tmp_path: Path):
    source = write_source(tmp_path / "source")
    words = ["train", str(source), "--output_folder", str(tmp_path / "m"), *FAST, "--report-to", "notebook"]
    assert main([*words, "--strategy", "plain"]) == 0
    opened, (_, config), *epochs, closed = tracker.told
    assert opened == ("opened", "noisycorr", "trackers") and closed == "closed"
    assert config["strategy.name"] == "plain" and config["epochs"] == 3 and config["pairs"] > 100
    assert [step for step, _ in epochs] == [1, 2, 3]
    history = json.loads((tmp_path / "m" / "report.json").read_text())["history"]
    assert [values["valid_rSum"] for _, values in epochs] == [record["valid_rSum"] for record in history]
    assert all(isinstance(value, float) for _, values in epochs for value in values.values())


def test_a_tracker_is_closed_when_training_fails(tracker: Any, tmp_path: Path):
    with pytest.raises(RuntimeError), dist.tracking(["notebook"], tmp_path / "t", {}) as log:
        log({"loss": 1.0}, step=1)
        raise RuntimeError
    assert tracker.told[-2:] == [(1, {"loss": 1.0}), "closed"]


def test_trackers_are_found_by_name(tracker: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    assert dist.find_trackers("none") == dist.find_trackers("") == []
    assert dist.find_trackers("notebook, notebook") == dist.find_trackers("all") == ["notebook"]
    with pytest.raises(ValueError, match="wandb is not installed: install its package, or use none"):
        dist.find_trackers("notebook,wandb")
    with pytest.raises(ValueError, match="'pigeon' is no tracker; expected none, all, or some of"):
        dist.find_trackers("pigeon")
    monkeypatch.delitem(__import__("accelerate.tracking").tracking.LOGGER_TYPE_TO_CLASS, "notebook")
    with pytest.raises(ValueError, match="all finds no tracker"):
        dist.find_trackers("all")


def test_nothing_is_asked_of_a_training_without_trackers(tmp_path: Path):
    with dist.tracking([], tmp_path / "t", {}) as log:
        log({"loss": 1.0}, step=1)
    assert not (tmp_path / "t").exists()
