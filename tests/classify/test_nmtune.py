"""Tuning on frozen features: terms against slow loops, the head, killing and continuing, and the verb."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from reference import tuning_reference as slow
from torch.nn import functional

import noisycorr as nc
from noisycorr.__main__ import main
from noisycorr.classify.heads.choice import NMTune, Rows
from noisycorr.classify.heads.labelled import read_labelled
from noisycorr.classify.heads.losses import dominant_values, feature_consistency, feature_covariance
from noisycorr.classify.heads.nmtune import (
    TuneData,
    apply_head,
    feature_scale,
    fit_head,
    load_head,
    new_head,
    plain_weights,
    save_head,
    tune_loss,
)
from noisycorr.classify.heads.spectrum import sampled_spectrum, spectrum
from noisycorr.runtime.errors import UsageError

SHAPES = [(6, 4), (4, 6), (9, 5)]


def batch(b: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([b, d, seed]).normal(size=(b, d)) + 0.3)


def same(fast, reference, *tensors: torch.Tensor) -> None:
    """Value and gradient agree in float64."""
    one, two = ([x.clone().requires_grad_() for x in tensors] for _ in range(2))
    a, b = fast(*one), reference(*two)
    assert a.item() == pytest.approx(b.item(), abs=1e-12)
    for x, y in zip(torch.autograd.grad(a, one[0]), torch.autograd.grad(b, two[0])):
        assert torch.allclose(x, y, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_terms_equal_slow_loops(shape: tuple[int, int]):
    z, f = batch(*shape), batch(*shape, seed=1)
    for reduction in ("mean", "sum"):
        given = {"given": f, "reduction": reduction}
        same(partial(feature_consistency, **given), partial(slow.consistency, **given), z)
    same(feature_covariance, slow.covariance, z)
    for topk in (1, 3, 50):
        same(partial(dominant_values, topk=topk), partial(slow.dominance, topk=topk), z)


def test_terms_at_known_places():
    z = batch(8, 3)
    assert feature_consistency(z, 7 * z).item() == pytest.approx(0, abs=1e-12)
    assert feature_consistency(z, -z, reduction="sum").item() == pytest.approx(4)
    assert feature_covariance(2 * z).item() == pytest.approx(16 * feature_covariance(z).item())
    diagonal = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert feature_covariance(diagonal).item() == 0
    two = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])  # C = [[2, 4], [4, 8]]
    assert feature_covariance(two).item() == pytest.approx((16 + 16) / 2)
    assert dominant_values(torch.ones(5, 4), topk=1).item() == pytest.approx(-1)
    assert dominant_values(torch.zeros(5, 4)).item() == 0
    target = batch(8, 3, 1).requires_grad_()
    feature_consistency(z.requires_grad_(), target).backward()
    assert target.grad is None and z.grad is not None
    for wrong in (partial(feature_covariance, z[:1]), partial(dominant_values, z, topk=0),
                  partial(feature_consistency, z, z[:2]),
                  partial(feature_consistency, z, z, reduction="max")):  # fmt: skip
        with pytest.raises(ValueError):
            wrong()


def test_spectrum():
    d = 6
    flat = np.linalg.qr(np.random.default_rng(0).normal(size=(40, d)))[0]
    found = spectrum(flat)
    assert found.sve == pytest.approx(np.log(d)) and found.lsvr == pytest.approx(np.log(d))
    assert found.sve_norm == pytest.approx(1) and found.effective_rank == pytest.approx(d)
    single = spectrum(np.outer(np.arange(1, 9), np.arange(1, 4)))
    assert single.sve == pytest.approx(0, abs=1e-6) and single.lsvr == pytest.approx(0, abs=1e-6)
    x = np.random.default_rng(1).normal(size=(50, 7)) + 1
    assert (spectrum(x).sve, spectrum(x).lsvr) == pytest.approx(slow.spectrum(x))
    assert spectrum(3 * x).sve == pytest.approx(spectrum(x).sve)
    assert spectrum(x, center="dataset").sve == pytest.approx(slow.spectrum(x - x.mean(0))[0])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert spectrum(x, center="sample").lsvr == pytest.approx(slow.spectrum(unit - unit.mean(1, keepdims=True))[1])
    assert spectrum(np.zeros((3, 2))).sve == 0
    drawn = sampled_spectrum(x, rows=20, draws=4)
    assert drawn["rows"] == 20 and drawn["sve_sd"] > 0
    assert sampled_spectrum(x)["sve"] == pytest.approx(spectrum(x).sve)
    with pytest.raises(ValueError, match="finite"):
        spectrum(np.array([[np.nan, 1.0]]))


def blobs(n: int = 90, d: int = 8, classes: int = 3, seed: int = 0) -> TuneData:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.random.default_rng(99).normal(size=(classes, d))
    return TuneData(features=(20 * (centres[labels] + 0.7 * rng.normal(size=(n, d)))).astype(np.float32),
                    labels=labels, classes=classes)  # fmt: skip


SMALL = NMTune(epochs=4, batch_size=16, lr=1e-2, linear_lr=0.1)


def test_scale_brings_features_to_the_wished_length():
    data = blobs()
    k = feature_scale(data.features, 3.0)
    assert np.sqrt(np.mean(np.square(k * data.features).sum(1))) == pytest.approx(3)
    assert feature_scale(data.features, 0) == 1 and feature_scale(np.zeros((2, 2)), 3) == 1


def test_loss_is_the_sum_of_its_parts_and_views_are_paired_as_written():
    data = blobs()
    choice = NMTune(w_consistency=0.5, w_covariance=0.25, w_dominance=0.125, smoothing=0.1)
    network = new_head(data, choice, "nmtune").double()
    first, second = (torch.from_numpy(data.features[s : s + 12]).double() for s in (0, 12))
    labels = torch.from_numpy(data.labels[:12])
    loss, parts = tune_loss(network, choice, first, second, labels)
    both = torch.cat([first, second])
    z = network.features(both)
    expected = functional.cross_entropy(network.head(z), torch.cat([labels, labels]), label_smoothing=0.1)
    assert parts["cross_entropy"].item() == pytest.approx(expected.item())
    assert parts["consistency"].item() == pytest.approx(feature_consistency(z[12:], first).item())
    whole = expected + 0.5 * feature_consistency(z[12:], first) + 0.25 * feature_covariance(z)
    assert loss.item() == pytest.approx((whole + 0.125 * dominant_values(z)).item())


def test_without_weights_it_is_the_plain_adapter_bit_by_bit():
    data = blobs()
    one, two = fit_head(data, SMALL, "mlp"), fit_head(data, plain_weights(SMALL), "nmtune")
    three = fit_head(data, SMALL, "nmtune")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    assert not torch.equal(one.head.weight, three.head.weight)


def test_an_adapter_starts_from_the_linear_probe_unless_told_otherwise():
    data = blobs()
    still = dataclasses.replace(SMALL, lr=1e-12, wd=0.0)
    linear, begun, other = (fit_head(data, still, "linear"), fit_head(data, still, "nmtune"),
                            fit_head(data, dataclasses.replace(still, start="random"), "nmtune"))  # fmt: skip
    assert torch.allclose(begun.head.weight, linear.head.weight, atol=1e-6)
    assert not torch.allclose(other.head.weight, linear.head.weight, atol=0.1)
    with pytest.raises(UsageError, match="start"):
        NMTune(start="mlp")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["linear", "nmtune"])
def test_continued_from_a_checkpoint_it_is_the_same(method: str, tmp_path: Path):
    class Killed(Exception):
        pass

    def stop(epoch: int, _: dict[str, float]) -> None:
        if epoch == 1:
            raise Killed

    data, place = blobs(), tmp_path / "head.safetensors"
    alone = fit_head(data, SMALL, method)
    with pytest.raises(Killed):
        fit_head(data, SMALL, method, checkpoint=place, on_epoch=stop)
    torch.manual_seed(5)  # the state of the process must not matter
    epochs: list[int] = []
    again = fit_head(data, SMALL, method, checkpoint=place, on_epoch=lambda epoch, _: epochs.append(epoch))
    assert epochs == [2, 3]
    assert all(torch.equal(a, b) for a, b in zip(alone.state_dict().values(), again.state_dict().values()))
    save_head(again, tmp_path / "done.safetensors")
    chances, tuned = apply_head(load_head(tmp_path / "done.safetensors"), data.features)
    assert np.array_equal(chances, apply_head(alone, data.features)[0])
    assert chances.shape == (90, 3) and tuned.shape == (90, 8)
    assert np.allclose(chances.sum(1), 1, atol=1e-6)
    assert (chances.argmax(1) == data.labels).mean() > 0.85


def test_long_features_are_the_hazard_that_scaling_mends():
    data = blobs()
    raw = fit_head(data, NMTune(epochs=4, batch_size=16, lr=1e-2, feature_rms=0, w_covariance=0.04), "nmtune")
    scaled = fit_head(data, NMTune(epochs=4, batch_size=16, lr=1e-2, w_covariance=0.04), "nmtune")
    other = blobs(seed=7)
    right = [(apply_head(net, other.features)[0].argmax(1) == other.labels).mean() for net in (raw, scaled)]
    assert right[1] > right[0] + 0.02


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"ratio": 0}, "`ratio`"), ({"lr": 0.0}, "`lr`"), ({"methods": "linear,magic"}, "'magic'"),
     ({"methods": ""}, "`methods`"), ({"feature_rms": -1.0}, "`feature_rms`"), ({"smoothing": 1.0}, "`smoothing`")],
)  # fmt: skip
def test_settings_out_of_range(wrong: dict[str, object], told: str):
    with pytest.raises(UsageError, match=told):
        NMTune(**wrong)  # type: ignore[arg-type]


def write_set(folder: Path, seed: int = 0, shift: float = 0.0) -> str:
    """image.npy and labels.npy of three blobs."""
    folder.mkdir()
    data = blobs(120, seed=seed)
    np.save(folder / "image.npy", data.features + np.float32(shift))
    np.save(folder / "labels.npy", np.array(["cat", "dog", "owl"])[data.labels])
    return str(folder)


def run_tune(*words: str) -> int:
    return main(["tune", *words, "--epochs", "3", "--batch_size", "32", "-q"])


def test_verb_end_to_end_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own, other = write_set(tmp_path / "own"), write_set(tmp_path / "other", 1, 5.0)
    out = tmp_path / "out"
    words = [own, "--output_folder", str(out), "--out_of_domain", f"far={other},near={own}"]
    assert run_tune(*words) == 0, capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert set(report["methods"]) == {"linear", "mlp", "nmtune"}
    assert set(report["sets"]) == {"train", "valid", "test", "far", "near"} and report["sets"]["far"] == 120
    assert sum(report["sets"][name] for name in ("train", "valid", "test")) == 120
    page = (out / "report.html").read_text()
    assert "NMTune" in page and "mean out of domain" in page and "<script" not in page
    table = pq.read_table(out / "predictions.parquet")
    assert table.num_rows == 120 and set(table.column("predicted").to_pylist()) <= {"cat", "dog", "owl"}
    names = ("report.json", "report.html", "predictions.parquet", "models/nmtune.safetensors")
    before = {name: (out / name).read_bytes() for name in names}
    (out / "models" / "nmtune.safetensors").unlink()
    (out / "report.json").unlink()
    assert run_tune(*words) == 0
    assert before == {name: (out / name).read_bytes() for name in names}
    assert run_tune(*words, "--seed", "1") == 2
    assert "holds heads of other data or settings" in capsys.readouterr().err
    assert run_tune(*words, "--seed", "1", "--overwrite") == 0
    assert json.loads((out / "report.json").read_text())["settings"]["seed"] == 1


def test_function_gives_heads(tmp_path: Path):
    own = write_set(tmp_path / "own")
    heads = nc.tune(own, tmp_path / "out", methods="linear,nmtune", epochs=3, batch_size=32)
    assert isinstance(heads, nc.TunedHeads) and set(heads.metrics) == {"linear", "nmtune"}
    assert heads.best in heads.metrics and f"{heads.best}: accuracy test" in heads.summary
    assert heads.classes == ["cat", "dog", "owl"] and len(heads.predictions()) == 120
    features = np.load(tmp_path / "own" / "image.npy")
    for method in (None, "linear", "nmtune"):
        chances, tuned = heads.apply(features, method)
        assert chances.shape == (120, 3) and tuned.shape == features.shape
        assert np.allclose(chances.sum(1), 1, atol=1e-5)
    with pytest.raises(UsageError, match="`method` is 'mlp', expected one of linear, nmtune"):
        heads.apply(features, "mlp")
    with pytest.raises(UsageError, match="`features` have shape"):
        heads.apply(features[:, :2])
    page = heads.report.read_bytes()
    heads.report.unlink()
    assert heads.write_report().read_bytes() == page and isinstance(nc.open_run(heads.folder), nc.TunedHeads)


def test_labels_by_key_and_rows_left_out(tmp_path: Path):
    own = write_set(tmp_path / "own")
    features = np.load(tmp_path / "own" / "image.npy")
    features[3] = 0
    features[4, 0] = np.nan
    np.save(tmp_path / "f.npy", features)
    body = "\n".join(f"{row},{'abc'[row % 3]}" for row in range(100))
    (tmp_path / "l.csv").write_text(f"key,label\n{body}\n")
    out = tmp_path / "out"
    assert run_tune(str(tmp_path / "f.npy"), "--labels", str(tmp_path / "l.csv"), "--output_folder", str(out)) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["left_out"]["source"] == {"without a label": 20, "without features": 2}
    assert sum(report["sets"].values()) == 98
    assert read_labelled(own, side="image").words[:3] == ["cat", "dog", "owl"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{own}/image.npy"], "features without labels"),
        (["{own}/none.npy"], "is not a file"),
        (["{own}/labels.npy", "--labels", "{own}/labels.npy"], "must be an array of floats"),
        (["{own}", "--out_of_domain", "far={thin}"], "use one encoder"),
        (["{own}", "--out_of_domain", "far={other}"], "has no row of the 3 classes"),
        (["{own}", "--out_of_domain", "far"], "expected NAME=PATH"),
        (["{own}", "--second_view", "{thin}"], "--second_view has features"),
        (["{own}", "--label_col", "truth_label"], "hidden truth"),
        (["{own}", "--labels", "{short}"], "labels, but there are"),
        (["{one}"], "has 1 classes"),
    ],
)
def test_wrong_use(words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    places = {name: write_set(tmp_path / name) for name in ("own", "thin", "other", "one")}
    np.save(tmp_path / "thin" / "image.npy", np.ones((120, 5), np.float32))
    np.save(tmp_path / "other" / "labels.npy", np.array(["tree"] * 120))
    np.save(tmp_path / "one" / "labels.npy", np.array(["cat"] * 120))
    np.save(tmp_path / "short.npy", np.arange(7))
    places["short"] = str(tmp_path / "short.npy")
    assert run_tune(*(word.format(**places) for word in words), "--output_folder", str(tmp_path / "out")) == 2
    assert told in capsys.readouterr().err


def test_choices_of_rows():
    assert Rows(out_of_domain="a=x, b=y|z").others() == {"a": "x", "b": "y|z"}
    for wrong in (
        {"val_fraction": 0.6, "test_fraction": 0.5},
        {"out_of_domain": "a=x,a=y"},
        {"labels": "x", "label_col": "y"},
    ):
        with pytest.raises(UsageError):
            Rows(**wrong)  # type: ignore[arg-type]
