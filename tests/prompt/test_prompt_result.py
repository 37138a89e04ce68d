"""`nc.prompt(...)` and what it gives back: summary, numbers, tables, and probabilities for new images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_prompt import N, make_place, words

import noisycorr as nc
from noisycorr.__main__ import main
from noisycorr.data.store import open_features
from noisycorr.models import encoders
from noisycorr.prompt.keep import load_prompt
from noisycorr.runtime.errors import UsageError

FAST: dict[str, Any] = {"rounds": 2, "epochs": 2, "guard": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in folders by class, an embedded run of them, class names, and a tiny CLIP."""
    return make_place(tmp_path_factory.mktemp("result"))


@pytest.fixture(scope="module")
def tuned(place: Path) -> nc.PromptedClassifier:
    return nc.prompt(nc.open_run(place / "run"), place / "tuned", classes=place / "classes.txt", **FAST)


def stored_features(run: Path) -> np.ndarray:
    return np.concatenate(list(open_features(nc.open_run(run).run, "image"))).astype(np.float32)


def pictures(place: Path) -> list[Path]:
    """In the order of the ledger."""
    keys = nc.open_run(place / "tuned").predictions()["key"]
    by_name = {path.stem: path for path in (place / "data").rglob("*.png")}
    return [by_name[Path(str(key)).stem] for key in keys]


def test_python_does_what_the_command_line_does(place: Path, tuned: nc.PromptedClassifier):
    assert main(words(place, "typed")) == 0
    for name in ("prompt.safetensors", "classifier.npy", "pseudo_labels.csv", "ledger.parquet", "report.json"):
        assert (place / "typed" / name).read_bytes() == (tuned.folder / name).read_bytes(), name


def test_a_run_folder_opens_as_what_it_holds(place: Path, tuned: nc.PromptedClassifier):
    again = nc.open_run(tuned.folder)
    assert isinstance(again, nc.PromptedClassifier) and "prompts of" in again.kind
    assert again.summary == tuned.summary and f"{N} images, 5 classes" in again.summary
    assert "of the unlabelled images are right after tuning" in again.summary
    assert str(tuned.folder) in repr(again) and "5 classes" in again._repr_html_()
    metrics = again.metrics
    assert 0 <= metrics["before"] <= 1 and 0 <= metrics["after"] <= 1 and metrics["changed"] >= 0
    assert {"with_similar_images", "label_precision", "baselines"} <= set(metrics)
    table = again.predictions()
    assert len(table) == N and set(table["text"]) <= set(again.classes) and len(again.classes) == 5
    assert list(again.pseudo_labels().columns) == ["key", "label", "probability", "round", "rank"]


def test_features_and_pictures_give_the_probabilities_of_the_ledger(place: Path, tuned: nc.PromptedClassifier):
    table = tuned.predictions()
    p = tuned.predict(stored_features(place / "run"))
    assert p.shape == (N, 5) and p.dtype == np.float32 and np.allclose(p.sum(1), 1, atol=1e-6)
    assert [tuned.classes[k] for k in p.argmax(1)] == table["text"].tolist()
    assert np.allclose(p.max(1), table["p_clean"], atol=1e-6)
    by_path = tuned.predict(pictures(place))
    assert np.allclose(by_path, p, atol=2e-3), "features were stored in float16"
    from PIL import Image

    assert np.allclose(tuned.predict(Image.open(pictures(place)[3])), by_path[3:4], atol=1e-6)
    assert tuned.predict([]).shape == (0, 5)
    assert np.allclose(tuned.predict(np.zeros((1, 24))), 0.2)


@pytest.mark.parametrize("kind", ["visual", "multimodal"])
def test_a_prompt_of_the_image_tower_is_put_into_it(kind: str, place: Path):
    found = nc.prompt(place / "run", place / f"tuned_{kind}", classes=place / "classes.txt", prompt=kind,
                      prompt_tokens=2, depth="deep", lr=0.5, **FAST)  # fmt: skip
    p = found.predict([str(path) for path in pictures(place)])
    assert np.allclose(p.max(1), found.predictions()["p_clean"], atol=1e-5)
    with pytest.raises(UsageError, match="must be pictures"):
        found.predict(stored_features(place / "run"))


def test_images_that_cannot_be_judged_are_refused(place: Path, tuned: nc.PromptedClassifier):
    with pytest.raises(UsageError, match=r"expected features|\(n, 24\)"):
        tuned.predict(np.ones((2, 7)))
    with pytest.raises(UsageError, match="shape"):
        tuned.predict(np.ones((2, 7, 3)))
    with pytest.raises(UsageError, match="neither pictures"):
        tuned.predict([["a"], 3])
    with pytest.raises(UsageError, match=r"classes\.txt could not be read"):
        tuned.predict(place / "classes.txt")


def test_the_source_may_be_a_result_and_the_folder_may_be_left_out(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    found = nc.prompt(nc.open_run(place / "run"), classes="classes.txt", **FAST)
    assert found.folder == Path("noisycorr_out/run-prompt")
    with pytest.raises(UsageError, match="takes no `clases`"):
        nc.prompt("run", clases="classes.txt")
    with pytest.raises(UsageError, match="the source is a int"):
        nc.prompt(3, classes="classes.txt")


def test_pairs_in_memory_are_a_source(place: Path):
    from PIL import Image

    pairs = [(Image.open(path), path.parent.name) for path in sorted((place / "data").rglob("*.png"))]
    found = nc.prompt(pairs, place / "objects", classes=place / "classes.txt", clip_model=f"hf_clip:{place / 'clip'}",
                      **FAST)  # fmt: skip
    assert len(found.predictions()) == N and "of the unlabelled images" in found.summary
    assert found.predict([image for image, _ in pairs[:3]]).shape == (3, 5)


def test_the_report_is_written_again(tuned: nc.PromptedClassifier):
    before = tuned.report.read_bytes()
    tuned.report.unlink()
    assert main(["report", str(tuned.folder), "-q"]) == 0
    assert tuned.report.read_bytes() == before


def test_an_unfinished_tuning_says_so(place: Path, tuned: nc.PromptedClassifier):
    shutil.copytree(tuned.folder, place / "half")
    for name in ("stages/prompt.json", "report.json"):
        (place / "half" / name).unlink()
    half = nc.open_run(place / "half")
    assert "not finished" in half.summary
    for asked in (half.predictions, half.pseudo_labels, half.write_report, lambda: half.predict([])):
        with pytest.raises(UsageError, match="not finished"):
            asked()


def test_the_encoder_has_the_precision_of_the_run(place: Path, monkeypatch: pytest.MonkeyPatch):
    clip = f"hf_clip:{place / 'clip'}"
    run = nc.embed(place / "data", place / "bf16", clip_model=clip, model_precision="bf16")
    asked, load = [], encoders.load_encoder

    def recording(spec: str, **options: Any) -> Any:
        asked.append(options.get("precision", "fp32"))
        return load(spec, **options)

    monkeypatch.setattr("noisycorr.clean.sources.load_encoder", recording)
    found = nc.prompt(run, place / "of_bf16", classes=place / "classes.txt", **FAST)
    assert asked == ["bf16"]
    files = {path.stem: path for path in (place / "data").rglob("*.png")}
    found.predict([files[Path(str(key)).stem] for key in found.predictions()["key"]])
    assert asked == ["bf16", "bf16"]
    weights, facts = load_prompt(found.folder / "prompt.safetensors", encoder=found._encoder.name, names=found.classes)
    assert facts["encoder"] == found._encoder.name and "context" in weights
