"""The reader of Hugging Face datasets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from noisycorr.data.readers import Source, open_source
from noisycorr.data.readers.hf import read_dataset
from noisycorr.runtime.errors import UsageError

datasets = pytest.importorskip("datasets")


def picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def small(**more: Any) -> Any:
    rows = {"image": [picture("red"), picture("blue"), b"damaged"], "caption": ["r", "b", "d"], **more}
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def test_images_stay_encoded_even_if_they_are_damaged() -> None:
    reader = read_dataset(small())
    pairs = [pair for piece in reader.pieces() for pair in reader.read(piece)]
    assert [(p.key, p.text, p.problem) for p in pairs] == [
        ("000000000", "r", None), ("000000001", "b", None), ("000000002", "d", None),
    ]  # fmt: skip
    assert [p.image for p in pairs] == [picture("red"), picture("blue"), b"damaged"]
    assert reader.picked == {"image": "image", "text": "caption"}


def test_class_labels_become_their_names() -> None:
    data = small(label=[1, 0, 1]).remove_columns("caption")
    data = data.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    reader = read_dataset(data, Source(path="mine", number_sample_per_shard=2))
    assert [len(list(reader.read(piece))) for piece in reader.pieces()] == [2, 1]
    assert [p.text for piece in reader.pieces() for p in reader.read(piece)] == ["dog", "cat", "dog"]


def test_a_shuffled_and_selected_dataset_keeps_its_order() -> None:
    data = small(n=[0, 1, 2]).select([2, 0])
    reader = read_dataset(data)
    assert [p.columns["n"] for p in reader.read(reader.pieces()[0])] == [2, 0]


def test_saved_folder_and_split(tmp_path: Path) -> None:
    small().save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": small(), "val": small().select([1])}).save_to_disk(str(tmp_path / "two"))
    reader = open_source(Source(path=str(tmp_path / "one")))
    assert reader.format == "hf"
    assert [p.text for p in reader.read(reader.pieces()[0])] == ["r", "b", "d"]
    assert reader.identity == open_source(Source(path=str(tmp_path / "one"))).identity
    reader = open_source(Source(path=str(tmp_path / "two"), hf_split="val"))
    assert [p.text for p in reader.read(reader.pieces()[0])] == ["b"]
    with pytest.raises(UsageError, match=r"no split 'test'.* train, val"):
        open_source(Source(path=str(tmp_path / "two"), hf_split="test"))


def test_paths_instead_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("red"))
    rows = {"image": [str(tmp_path / "a.png")], "text": ["t"]}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    reader = read_dataset(data)
    [pair] = reader.read(reader.pieces()[0])
    assert pair.image == tmp_path / "a.png"
    (tmp_path / "elsewhere").mkdir()
    reader = read_dataset(data, Source(path="x", image_root=str(tmp_path / "elsewhere")))
    assert next(reader.read(reader.pieces()[0])).problem == "name_unsafe"


def test_streams_and_names_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="without streaming"):
        read_dataset(iter([]))  # type: ignore[arg-type]

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UsageError, match=r"The dataset 'a/b', split 'train', cannot be loaded: no network\.$"):
        open_source(Source(path="hf://a/b"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: small())
    assert open_source(Source(path="a/b", input_format="hf")).format == "hf"
