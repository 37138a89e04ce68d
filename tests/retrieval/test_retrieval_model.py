"""`noisycorr.train` and the model that it gives, in Python: sources, methods, numbers, vectors, and refusals."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pictures import write_pictures
from PIL import Image
from region_data import write_regions
from test_train import FAST, write_source

import noisycorr
from noisycorr import CleanRun, Loss, RetrievalModel, Strategy
from noisycorr.__main__ import main
from noisycorr.clean.sources import encoder_of
from noisycorr.data.store import open_features
from noisycorr.models.losses import info_nce
from noisycorr.models.training.heads import Network
from noisycorr.retrieval.plan import Evaluation
from noisycorr.retrieval.strategies import class_path, find_strategy
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.signature import parameters

N = 48
SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 12, "warmup": 2, "embed_dim": 8, "hidden": 12, "test_fraction": 0.4,
                         "workers": 0}  # fmt: skip
TWIN = {"clip_model": "tiny", "strategy": "plain", "strategy_options": {"peer": "twin"}}
MINE = """
from dataclasses import dataclass

from noisycorr import Loss, Strategy
from noisycorr.models.losses import info_nce


@dataclass(frozen=True, kw_only=True)
class Mine(Strategy):
    gain: float = 1.0

    def step(self, enc, memory, trust, peer):
        return Loss(per_pair=self.gain * info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives))
"""


@dataclass(frozen=True, kw_only=True)
class Own(Strategy):
    """A method that stands in no file of its own."""

    gain: float = 1.0

    def step(self, enc: Any, memory: Any, trust: Any, peer: Any) -> Loss:
        return Loss(per_pair=self.gain * info_nce(enc.sims, temperature=enc.temperature, negatives=enc.negatives))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def run(place: Path) -> CleanRun:
    """Pictures that a tiny encoder saw in bf16."""
    made: CleanRun = noisycorr.clean(write_pictures(place / "source", N), place / "run", clip_model="tiny",
                                     model_precision="bf16")  # fmt: skip
    return made


@pytest.fixture(scope="module")
def heads(run: CleanRun, place: Path) -> RetrievalModel:
    """Two heads."""
    return noisycorr.train(run, place / "heads", **TWIN, **SMALL)


@pytest.fixture(scope="module")
def tuned(run: CleanRun, place: Path) -> RetrievalModel:
    """A small encoder that was trained as a whole."""
    return noisycorr.train(
        run, place / "tuned", clip_model="scratch:cnn", train_part="whole", strategy="plain", **SMALL
    )


@pytest.fixture(scope="module")
def pictures(place: Path) -> list[Path]:
    return sorted((place / "source" / "images").glob("*.png"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    """What the result is."""
    names = ("model.safetensors", "report.json", "split.parquet", "trust.parquet", "evaluation.json")
    return {name: (folder / name).read_bytes() for name in names}


# ---- training


def test_python_and_the_command_line_do_the_same(heads: RetrievalModel, run: CleanRun, tmp_path: Path):
    words = [str(word) for name, value in SMALL.items() for word in (f"--{name}", value)]
    assert main(["train", str(run.folder), "--output_folder", str(tmp_path / "m"), *words, "--strategy", "plain",
                 "--strategy.peer", "twin", "--clip_model", "tiny", "-q"]) == 0  # fmt: skip
    assert bytes_of(tmp_path / "m") == bytes_of(heads.folder)
    mine, theirs = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (heads.folder, tmp_path / "m"))
    assert mine | {"output_folder": ""} == theirs | {"output_folder": ""}


def test_a_source_is_a_path_or_a_result_and_options_may_be_text(heads: RetrievalModel, run: CleanRun, tmp_path: Path):
    again = noisycorr.train(run.folder, tmp_path / "m", strategy="plain", strategy_options="{peer: twin}", **SMALL)
    assert bytes_of(again.folder) == bytes_of(heads.folder)


def test_without_a_folder_the_model_is_named_after_the_source(
    run: CleanRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for source in (run, str(run.folder)):
        model = noisycorr.train(source, strategy="plain", evaluate=False, **SMALL)
        assert model.folder == Path("noisycorr_out/run-model")


def test_the_former_name_of_the_precision_works_and_says_so(
    run: CleanRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["train", str(run.folder), "--output_folder", str(tmp_path / "m"), "--epochs", "1", "--strategy", "plain"]
    assert main([*words, "--precision", "fp64", "-q"]) == 0
    assert "--precision is --model_precision now" in capsys.readouterr().err
    config = tmp_path / "m" / "config.yaml"
    text = config.read_text()
    assert "model_precision: fp64" in text
    before = noisycorr.open_run(tmp_path / "m").evaluate()
    config.write_text(text.replace("model_precision:", "precision:"))
    assert noisycorr.open_run(tmp_path / "m").evaluate() == before


# ---- methods


def test_an_object_is_stored_by_its_class_and_its_fields(run: CleanRun, tmp_path: Path):
    made = noisycorr.train(run, tmp_path / "m", strategy=find_strategy("plain")(peer="twin"), **SMALL)
    stored = yaml.safe_load((made.folder / "config.yaml").read_text())["strategy"]
    assert stored["class_path"] == "plain" and stored["init_args"]["peer"] == "twin"
    own = noisycorr.train(run, tmp_path / "own", strategy=Own(gain=2.0), **SMALL)
    stored = yaml.safe_load((own.folder / "config.yaml").read_text())["strategy"]
    assert stored == {"class_path": f"{__name__}:Own", "init_args": {"gain": 2.0}}
    assert (
        main(["train", "--config", str(own.folder / "config.yaml"), "--output_folder", str(tmp_path / "b"), "-q"]) == 0
    )
    assert bytes_of(tmp_path / "b") == bytes_of(own.folder)


def test_names_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text(MINE)
    kind = find_strategy(f"{tmp_path / 'mine.py'}:Mine")
    assert class_path(kind) == f"{tmp_path / 'mine.py'}:Mine" and find_strategy(class_path(kind)) is kind
    monkeypatch.setitem(sys.modules, "__main__", sys.modules[__name__])
    monkeypatch.setattr(Own, "__module__", "__main__")
    assert class_path(Own) == "Own"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"strategy": 3}, r"`strategy` is 3, expected a name such as best"),
        ({"strategy": Own}, r"`strategy` is <class .*, expected a name"),
        ({"strategy": Own(), "strategy_options": {"gain": 1}}, r"an object has its own fields"),
        ({"strategy": "plain", "strategy_options": {"q": "x"}}, r"`strategy.q` is 'x', expected a number"),
        ({"strategy": "plain", "strategy_options": "[1]"}, r"`strategy_options` is '\[1\]', expected a mapping"),
        ({"strategy": "plain", "strategy_options": 3}, r"options are 3, expected a mapping"),
        ({"lr": "fast"}, r"`lr` is 'fast', expected a number"),
        ({"lr": -1}, r"`lr` is -1.0, expected at least 0"),
        ({"model_precision": "int8"}, r"`model_precision` is 'int8'"),
        ({"precision": "bf16"}, r"train takes no `precision`; did you mean `model_precision`"),
        ({"report_to": "pigeon"}, r"`report_to` pigeon"),
    ],
)
def test_wrong_arguments_are_one_sentence(values: dict[str, Any], told: str, run: CleanRun, tmp_path: Path):
    with pytest.raises(UsageError, match=told):
        noisycorr.train(run, tmp_path / "m", **values)
    with pytest.raises(UsageError, match="the source is a int"):
        noisycorr.train(3, tmp_path / "n")
    assert not (tmp_path / "m").exists()


# ---- numbers and the page


def test_the_numbers_are_those_of_the_report(heads: RetrievalModel, capsys: pytest.CaptureFixture[str]):
    report = json.loads((heads.folder / "report.json").read_text())
    assert heads.metrics["best_epoch"] == report["best_epoch"] and heads.metrics["validation"] == report["validation"]
    assert heads.metrics["test"]["ensemble"]["rSum"] >= 0
    lines = heads.summary.splitlines()
    assert lines[0].startswith("plain on ") and lines[1].startswith(f"best epoch {report['best_epoch'] + 1}; rSum on ")
    assert [line.split(",")[0] for line in lines[2:]] == ["test: network 1", "test: network 2", "test: together"]
    assert repr(noisycorr.open_run(heads.folder)) == repr(heads) and lines[1] in repr(heads)
    page = heads.report.read_bytes()
    heads.report.unlink()
    assert heads.write_report().read_bytes() == page and "<p>best epoch" in heads._repr_html_()
    assert main(["evaluate", str(heads.folder), "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["test"] == heads.metrics["test"]


def test_evaluate_takes_the_fields_of_its_choice(heads: RetrievalModel, run: CleanRun, tmp_path: Path):
    before = (heads.folder / "evaluation.json").read_bytes(), heads.report.read_bytes()
    found = heads.evaluate(folds=2)
    assert found["test"]["folds"]["count"] == 2 and json.loads((heads.folder / "evaluation.json").read_text()) == found
    assert heads.evaluate(run)["test"]["pairs"] == N
    with pytest.raises(UsageError, match="`folds` is 0"):
        heads.evaluate(folds=0)
    heads.evaluate()
    assert ((heads.folder / "evaluation.json").read_bytes(), heads.report.read_bytes()) == before
    assert {item.name for item in parameters(RetrievalModel.evaluate)} == set(vars(Evaluation()))


def test_other_pairs_are_embedded_in_the_precision_of_the_training_pairs(heads: RetrievalModel, place: Path):
    first, path = heads.evaluate(), write_pictures(place / "other", 12, seed=3)
    for _ in range(2):
        assert heads.evaluate(path, caption_col="caption")["test"]["pairs"] == 12
    stored = yaml.safe_load((heads.folder / "test" / "config.yaml").read_text())
    assert (stored["clip_model"], stored["model_precision"]) == ("tiny", "bf16")
    heads.evaluate()
    assert json.loads((heads.folder / "evaluation.json").read_text()) == first


def test_an_unfinished_training_says_so(heads: RetrievalModel, tmp_path: Path):
    (tmp_path / "m" / "stages").mkdir(parents=True)
    for name in ("config.yaml", "stages/train_started.json"):
        (tmp_path / "m" / name).write_bytes((heads.folder / name).read_bytes())
    model = noisycorr.open_run(tmp_path / "m")
    assert isinstance(model, RetrievalModel) and "not trained to the end" in model.summary
    for work in (model.write_report, lambda: model.metrics):
        with pytest.raises(UsageError, match="no finished training"):
            work()
    with pytest.raises(UsageError, match="no finished model"):
        model.encode_text("a")


# ---- vectors


def mean_similarity(model: RetrievalModel, image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """By hand: heads on features, their cosines averaged."""
    import torch

    found = []
    for network in model.networks:
        assert isinstance(network, Network)
        with torch.no_grad():
            found.append(network.image(torch.from_numpy(image)) @ network.text(torch.from_numpy(text)).T)
    return torch.stack(found).mean(0).numpy()


def test_vectors_of_heads_are_of_unit_length_and_their_products_the_mean_similarity(
    heads: RetrievalModel, run: CleanRun, pictures: list[Path]
):
    image, text = (np.concatenate(list(open_features(run.run, side))).astype(np.float32) for side in ("image", "text"))
    made = heads.encode_image(image), heads.encode_text(text)
    for rows in made:
        assert rows.dtype == np.float32 and rows.shape == (N, 2 * 8)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(made[0] @ made[1].T, mean_similarity(heads, image, text), atol=1e-6)
    np.testing.assert_allclose(heads.similarity(image, text), made[0] @ made[1].T, atol=1e-6)
    from_files = heads.encode_image(pictures)
    order = [int(np.abs(made[0] - row).max(1).argmin()) for row in from_files]
    assert sorted(order) == list(range(N))
    np.testing.assert_allclose(from_files, made[0][order], atol=2e-2)  # stored features are halves
    opened = [Image.open(path) for path in pictures[:3]]
    assert np.array_equal(heads.encode_image(opened), heads.encode_image([str(path) for path in pictures[:3]]))
    np.testing.assert_allclose(heads.encode_image(opened[0])[0], from_files[0], atol=1e-6)


def test_the_encoder_of_the_run_has_its_precision(heads: RetrievalModel, run: CleanRun, pictures: list[Path]):
    import torch

    encoder = encoder_of(run.run, "a test")
    features = encoder.image(torch.stack([encoder.preprocess(Image.open(path)) for path in pictures])).numpy()
    np.testing.assert_allclose(heads.encode_image(pictures), heads.encode_image(features), atol=1e-6)


def test_vectors_of_texts(heads: RetrievalModel, tuned: RetrievalModel):
    for model in (heads, tuned):
        both = model.encode_text(["a red square on the left", "blue"])
        np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(model.encode_text("blue")[0], both[1], atol=1e-5)
        assert model.encode_text(iter([])).shape[0] == 0


def test_a_tuned_encoder_takes_pictures(tuned: RetrievalModel, pictures: list[Path]):
    rows = tuned.encode_image(pictures[:5])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    assert np.array_equal(rows, tuned.encode_image([Image.open(path) for path in pictures[:5]]))
    assert tuned.similarity(pictures[:5], ["a", "b"]).shape == (5, 2)
    with pytest.raises(UsageError, match="which takes PIL images or paths"):
        tuned.encode_image(rows)


def test_wrong_values_are_refused(heads: RetrievalModel, tmp_path: Path):
    with pytest.raises(UsageError, match=r"image features have shape \(2, 3\), expected \(n, 64\)"):
        heads.encode_image(np.zeros((2, 3)))
    with pytest.raises(UsageError, match=r"text features have shape \(3,\)"):
        heads.encode_text(np.zeros(3))
    with pytest.raises(UsageError, match="a text is a int, expected texts"):
        heads.encode_text([3])
    with pytest.raises(UsageError, match="a image is a NoneType"):
        heads.encode_image(None)
    with pytest.raises(UsageError, match="cannot be read"):
        heads.encode_image(tmp_path / "none.png")


def test_embeddings_without_an_encoder_give_vectors_of_features_alone(tmp_path: Path):
    source = write_source(tmp_path / "source")
    words = [str(source), "--output_folder", str(tmp_path / "m"), *FAST, "--strategy", "plain"]
    assert main(["train", *words]) == 0
    model = noisycorr.open_run(tmp_path / "m")
    assert model.similarity(np.load(source / "image.npy")[:4], np.load(source / "text.npy")[:3]).shape == (4, 3)
    with pytest.raises(UsageError, match=r"need the encoder of the pairs .* came without an encoder"):
        model.encode_text("thing 1")


def test_region_networks_have_no_vectors_of_pictures(tmp_path: Path):
    folder = write_regions(tmp_path / "x")
    model = noisycorr.train(folder, tmp_path / "m", region="gpo", epochs=1, batch_size=10, word_dim=12, sim_dim=8,
                            embed_dim=12)  # fmt: skip
    assert model.summary and model.metrics["test"]
    with pytest.raises(UsageError, match="trained on region features"):
        model.encode_text("a")
