"""The encoder of a run is the one that embedded it, in the same precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pictures import write_pictures
from PIL import Image

import noisycorr
from noisycorr.clean.sources import encoder_of, text_encoder
from noisycorr.data.store import open_features
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, read_json, write_json

N = 12


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("of")
    source = write_pictures(place / "source", N)
    return noisycorr.embed(source, place / "run", clip_model="tiny", model_precision=request.param).run


def test_it_makes_the_stored_features_again(run: Run):
    encoder = encoder_of(run, "a test")
    pictures = sorted((run.folder.parent / "source").rglob("*.png"))
    found = encoder.image(torch.stack([encoder.preprocess(Image.open(path)) for path in pictures])).numpy()
    stored = np.concatenate(list(open_features(run, "image")))
    assert {tuple(row) for row in found.astype(np.float16)} == {tuple(row) for row in stored}


def test_texts_are_encoded_by_the_same(run: Run):
    encoder = encoder_of(run, "a test")
    expected = encoder.text(encoder.tokenize(["a red square"])).numpy()
    assert np.array_equal(text_encoder(run, "a test")(["a red square"]), expected)


def test_another_encoder_and_none_are_refused(run: Run):
    path = run.folder / "stages" / "embed.json"
    body = read_json(path)

    def embedded_by(name: str) -> None:
        changed: dict[str, Any] = body | {"facts": body["facts"] | {"encoder": name}}
        write_json(path, changed)

    try:
        embedded_by("tiny@0123456789ab")
        with pytest.raises(UsageError, match=r"embedded by tiny@0123456789ab, but its encoder is now tiny@"):
            encoder_of(run, "a test")
        embedded_by("precomputed@0123456789ab")
        with pytest.raises(UsageError, match=r"a test needs it, but the embeddings of .* came without an encoder"):
            encoder_of(run, "a test needs it")
        assert encoder_of(run, "a test", clip_model="tiny").name.startswith("tiny@")
    finally:
        write_json(path, body)
