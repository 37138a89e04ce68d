"""Caption metrics: golden values of pycocoevalcap 1.2 on the same tokens, slow loops, properties, and odd captions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import caption_reference as slow

from noisycorr.__main__ import main
from noisycorr.caption.metrics import (
    bleu,
    cider_d,
    clip_score,
    distinctiveness,
    java_metric,
    rouge_l,
    self_retrieval,
    tokenize,
)
from noisycorr.caption.score import score_captions
from noisycorr.runtime.errors import UsageError

CAPTIONS = ["a dog runs on the green grass", "two men are sitting on a bench, reading", "red women's t-shirt",
            "a a a a a", "the cat isn't on the mat"]  # fmt: skip
REFERENCES = [
    ["A dog is running on green grass.", "The brown dog runs across a lawn"],
    ["Two men sit on a bench and read the newspaper.", "two people on a park bench reading", "men reading"],
    ["Women's red T-shirt", "Red cotton T-shirt for women"],
    ["a plane flies over a city"],
    ["There is no cat on the mat.", "The mat isn't covered by the cat", "the cat left the mat"],
]
# Bleu(4), Rouge() and Cider() of pycocoevalcap 1.2, compute_score on the tokens below joined by spaces.
BLEU = [0.8387096773652445, 0.6221710167961853, 0.33282051198683865, 3.8960773241327074e-05]
ROUGE = 0.6624024995784243
CIDER = [2.113655623518337, 1.7906856549005212, 2.4936264740167173, 0.2983488963239815, 2.831429010733015]

words = st.lists(st.sampled_from(["a", "b", "c", "d", "dog"]), min_size=1, max_size=7)
rows = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=5)


def joined(found: list[tuple[list[str], list[list[str]]]]) -> tuple[list[str], list[list[str]]]:
    return [" ".join(own) for own, _ in found], [[" ".join(ref) for ref in refs] for _, refs in found]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog's ball isn't red, it's blue.", "a dog 's ball is n't red it 's blue"),
        ("T-shirt (size 3.5)!  …", "t-shirt size 3.5"),
        ("“Quoted” — we’re; OK?", "quoted — we 're ok"),
        ("犬 في AT&T 1,000", "犬 في at&t 1,000"),
        ("  \n . ", ""),
    ],
)
def test_tokens(text: str, tokens: str) -> None:
    assert tokenize(text) == tokens.split()


def test_golden_values_of_the_usual_package() -> None:
    np.testing.assert_allclose(bleu(CAPTIONS, REFERENCES), BLEU, rtol=1e-12)
    assert rouge_l(CAPTIONS, REFERENCES) == pytest.approx(ROUGE, rel=1e-12)
    np.testing.assert_allclose(cider_d(CAPTIONS, REFERENCES), CIDER, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(rows)
def test_metrics_equal_slow_loops(found: list[tuple[list[str], list[list[str]]]]) -> None:
    texts, refs = joined(found)
    for row in range(len(found)):
        assert cider_d(texts, refs)[row] == pytest.approx(slow.cider_d(found, row), abs=1e-9)
    if all(set(own) & set(ref) for own, some in found for ref in some):
        assert bleu(texts, refs)[0] == pytest.approx(slow.bleu(found, 1), rel=1e-6)
    scores = []
    for own, some in found:
        common = [slow.longest_common(own, ref) for ref in some]
        p, r = max(c / len(own) for c in common), max(c / len(ref) for c, ref in zip(common, some))
        scores.append((1 + 1.2**2) * p * r / (r + 1.2**2 * p) if p and r else 0.0)
    assert rouge_l(texts, refs) == pytest.approx(np.mean(scores), abs=1e-12)
    assert all(-1e-12 <= value <= 1 + 1e-9 for value in (*bleu(texts, refs), rouge_l(texts, refs)))


def test_bleu_of_four_equals_a_slow_loop() -> None:
    found = [
        (["a", "b", "c", "d", "e", "f"], [["a", "b", "c", "d", "x", "f"], ["a", "b"]]),
        (["a", "b", "c", "d"], [["b", "c", "d", "e", "f"]]),
    ]
    for order in range(1, 4):
        assert bleu(*joined(found))[order - 1] == pytest.approx(slow.bleu(found, order), rel=1e-6)


def test_a_caption_equal_to_its_only_reference_is_best() -> None:
    texts = ["a red dog on grass", "two men read a paper", "some blue cups here"]
    refs = [[text] for text in texts]
    np.testing.assert_allclose(bleu(texts, refs), 1, atol=1e-6)
    assert rouge_l(texts, refs) == pytest.approx(1)
    np.testing.assert_allclose(cider_d(texts, refs), 10)


def test_an_empty_caption_scores_nothing_and_breaks_nothing() -> None:
    refs = [["a dog"], ["a cat"]]
    assert bleu(["", "..."], refs)[0] < 1e-5 and rouge_l(["", ""], refs) == 0 and not cider_d(["", ""], refs).any()


@pytest.mark.parametrize(
    ("texts", "refs", "message"),
    [
        (["a"], [], "1 captions and 0 lists"),
        ([], [], "at least one"),
        (["a"], ["a dog"], "one string"),
        (["a"], [["", "."]], "no reference with a word"),
    ],
)
def test_bad_lists_are_refused(texts: list[str], refs: list[list[str]], message: str) -> None:
    for metric in (bleu, rouge_l, cider_d):
        with pytest.raises(UsageError, match=message):
            metric(texts, refs)


def test_clip_score_and_self_retrieval() -> None:
    image = np.eye(4)[:, :3] + np.eye(4)[:, :3] * 2
    text = np.array([[1.0, 0, 0], [0, -1, 0], [0, 1, 1], [1, 1, 1]])
    np.testing.assert_allclose(clip_score(image, text), [2.5, 0, 2.5 / np.sqrt(2), 0])
    with pytest.raises(UsageError, match="joint space"):
        clip_score(image, text[:2])
    eye = np.eye(12)
    assert self_retrieval(eye, eye)["self_retrieval_recall@1"] == 100
    assert self_retrieval(eye, np.roll(eye, 1, 0))["self_retrieval_recall@1"] == 0
    same = np.tile(eye[:1], (12, 1))
    assert self_retrieval(eye, same)["self_retrieval_recall@1"] == pytest.approx(100 / 12)


def test_distinctiveness_of_equal_and_of_different_captions() -> None:
    found = distinctiveness(["a dog", "A dog.", "two cats sit"])
    assert found["unique"] == pytest.approx(2 / 3) and found["words"] == pytest.approx(7 / 3)
    assert found["pairwise"] == pytest.approx(1 / 3) and found["vocabulary"] == 5
    assert distinctiveness(["x"])["pairwise"] == 0
    with pytest.raises(UsageError, match="no captions"):
        distinctiveness([])


def test_java_metrics_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(UsageError, match="pip install pycocoevalcap"):
        java_metric("meteor", ["a"], [["a"]])
    package, module = ModuleType("pycocoevalcap"), ModuleType("pycocoevalcap.spice.spice")
    module.Spice = type("Spice", (), {"compute_score": lambda self, gts, res: (len(gts[0]) + len(res), None)})  # type: ignore[attr-defined]
    for name, found in (("pycocoevalcap", package), ("pycocoevalcap.spice", package), (module.__name__, module)):
        monkeypatch.setitem(sys.modules, name, found)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UsageError, match="install a Java runtime"):
        java_metric("spice", ["a"], [["a"]])
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/java")
    assert java_metric("spice", ["a"], [["a", "b"]]) == 3


def write(folder: Path) -> tuple[Path, Path]:
    lines = [json.dumps({"key": f"k{i}", "caption": text}) for i, text in enumerate(CAPTIONS)]
    (folder / "captions.jsonl").write_text("\n".join([*lines, json.dumps({"key": "alone", "caption": ""})]))
    pq.write_table(pa.table({"key": [f"k{i}" for i in range(5)], "captions": REFERENCES}), folder / "refs.parquet")
    return folder / "captions.jsonl", folder / "refs.parquet"


def test_the_verb_scores_captions_of_any_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions, refs = write(tmp_path)
    assert main(["caption", "score", str(captions), "--references", str(refs)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cider_d"] == pytest.approx(np.mean(CIDER)) and found["bleu_4"] == pytest.approx(BLEU[3])
    assert (found["captions"], found["empty"], found["without_reference"]) == (6, 1, 1)
    (tmp_path / "refs.csv").write_text(
        "key,caption\n" + "\n".join(f'k{i},"{ref}"' for i, some in enumerate(REFERENCES) for ref in some)
    )
    assert score_captions(captions, tmp_path / "refs.csv", None, []) == found


def test_references_without_a_word_are_none(tmp_path: Path) -> None:
    captions, refs = write(tmp_path)
    whole = score_captions(captions, refs, None, [])
    table = pq.read_table(refs).to_pydict()
    pq.write_table(pa.table({"key": [*table["key"], "alone"], "captions": [*table["captions"], ["...", "!"]]}), refs)
    assert score_captions(captions, refs, None, []) == whole
    pq.write_table(pa.table({"key": ["alone"], "captions": [["..."]]}), refs)
    with pytest.raises(UsageError, match="no reference with a word"):
        score_captions(captions, refs, None, [])


class Joint:
    """An encoder with a joint space of the width of `tiny`."""

    joint, name = True, "made up"

    def tokenize(self, texts: list[str]) -> list[str]:
        return texts

    def text(self, tokens: list[str]) -> torch.Tensor:
        return torch.ones(len(tokens), 64)


def test_pictures_that_are_all_missing_are_told_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "pairs.csv").write_text("key,image,caption\nk0,a.png,a red ball\nk1,b.png,a blue house\n")
    run = tmp_path / "run"
    assert main(["embed", str(tmp_path / "source" / "pairs.csv"), "--output_folder", str(run), "--clip_model", "tiny",
                 "-q"]) == 0  # fmt: skip
    capsys.readouterr()
    captions, _ = write(tmp_path)
    monkeypatch.setattr("noisycorr.caption.score.encoder_of", lambda run, need: Joint())
    assert main(["caption", "score", str(captions), "--output_folder", str(run)]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["self_retrieval_recall@1"] is None and found["clip_score"] is None and found["without_picture"] == 6


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("a.jsonl", "{broken", "cannot be read"),
        ("a.jsonl", "", "hold no rows"),
        ("a.csv", "id,caption\n1,a\n", "have the columns caption, id"),
        ("a.csv", "key,caption\nx,a\nx,b\n", "2 captions of key 'x'"),
        ("a.csv", "key,caption\nx,a\n", "has no key of the captions"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, body: str, message: str) -> None:
    _, refs = write(tmp_path)
    (tmp_path / name).write_text(body)
    with pytest.raises(UsageError, match=message):
        score_captions(tmp_path / name, refs, None, [])
    with pytest.raises(UsageError, match="meteor or spice"):
        score_captions(tmp_path / name, refs, None, ["bertscore"])
    with pytest.raises(UsageError, match="needs `references`"):
        score_captions(tmp_path / name, None, None, ["meteor"])
