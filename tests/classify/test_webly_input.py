"""Input that does not fit, of `audit` and `classify train`: texts, tags, classes, definitions, WordNet ids."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import write_pictures

from noisycorr.__main__ import main
from noisycorr.classify.anchors import named_classes, teaching_labels
from noisycorr.classify.audit.audit import _class_notes
from noisycorr.classify.audit.class_list import make_classes, read_classes, resolve_labels
from noisycorr.classify.audit.strata import fit_strata, mixture_share
from noisycorr.classify.completion import build_graph, complete_texts
from noisycorr.classify.prototypes import text_prototypes
from noisycorr.classify.rerank import reciprocal_match
from noisycorr.classify.webly.anchors import repeats_label
from noisycorr.runtime.errors import UsageError
from tests.reference import rerank as reference

COLOURS = ("red", "green", "blue", "white")
FEW = ["--epochs", "2", "--batch_size", "8", "--embed_dim", "6", "--hidden", "8", "--clip_model", "tiny"]


def pictures(folder: Path, **columns: list[object]) -> Path:
    """24 pictures of four colours as a parquet file with more columns; a caption that is None is blank."""
    write_pictures(folder, 24)
    images = [(folder / "images" / f"{row:03d}.png").read_bytes() for row in range(24)]
    names = [COLOURS[(row % 12) // 3] for row in range(24)]
    table = {"key": [f"k{row}" for row in range(24)], "image": images, "caption": [f"a {name}" for name in names],
             "label": names, **columns}  # fmt: skip
    pq.write_table(pa.table(table), folder / "set.parquet")
    return folder / "set.parquet"


def train(source: Path, out: Path, *more: str) -> int:
    line = ["classify", "train", str(source), "--output_folder", str(out), "--caption_col", "caption"]
    return main([*line, *FEW, *more])


def test_all_texts_blank(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert train(pictures(tmp_path, caption=[""] * 24), tmp_path / "out") == 0
    assert "all texts are blank: nobody is trusted" in capsys.readouterr().err
    table = pq.read_table(tmp_path / "out" / "labels.parquet")
    assert not any(table.column("anchor").to_pylist()) and "text_class" not in table.column_names
    assert (
        "all texts are blank: nobody is trusted" in json.loads((tmp_path / "out" / "report.json").read_text())["notes"]
    )
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\nwhite\n")
    assert main(["audit", str(tmp_path / "set.parquet"), "--classes", str(tmp_path / "classes.txt"), "--output_folder",
                 str(tmp_path / "audit"), "--caption_col", "caption", "--label_col", "label", "--clip_model", "tiny",
                 "--workers", "1", "-q"]) == 0  # fmt: skip
    assert "all texts are blank" in capsys.readouterr().err


def test_texts_that_repeat_the_label_are_no_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = [COLOURS[(row % 12) // 3] for row in range(24)]
    assert train(pictures(tmp_path, caption=names), tmp_path / "out") == 0
    assert "texts only repeat the labels: nobody is trusted" in capsys.readouterr().err
    assert repeats_label(np.array([1.0, 1.0, np.nan])) and not repeats_label(np.array([np.nan]))
    assert not repeats_label(np.array([1.0, 0.5]))


def test_rows_without_tags_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tags = [[] if row % 6 == 0 else ["red", "big"] if row % 2 else ["blue"] for row in range(24)]
    source = pictures(tmp_path, tags=tags)
    assert train(source, tmp_path / "out", "--label_col", "tags", "--method", "plain") == 0
    assert "4 samples without a label are left out" in capsys.readouterr().err
    keys = pq.read_table(tmp_path / "out" / "labels.parquet").column("key").to_pylist()
    assert not {"k0", "k6", "k12", "k18"} & set(keys)


def test_a_definition_that_is_cut_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = pictures(tmp_path)
    (tmp_path / "classes.yaml").write_text(f"red: warm\ngreen: '{'leaf ' * 400}'\nblue: sky\nwhite: snow\n")
    assert train(source, tmp_path / "out", "--classes", str(tmp_path / "classes.yaml"), "--match", "reciprocal") == 0
    assert "1 definitions are longer than the encoder reads and were cut" in capsys.readouterr().err


def test_a_class_with_one_sample_or_none_is_told():
    classes = make_classes({"cat": ["barks not"], "dog": ["barks"], "ape": [], "newt": ["wet"]})
    labels = resolve_labels([{"l": "cat"}, {"l": "cat"}, {"l": "dog"}, {"l": "ape"}, {"l": None}], classes, "l", "here")
    told = " ".join(_class_notes(classes, labels))
    assert "1 classes have no row, for example 'newt'" in told
    assert "2 classes have a single row, which cannot be judged by others of its class, for example 'dog'" in told
    assert "1 classes have no definition" in told and "1 rows have no label" in told


@pytest.mark.parametrize(("words", "told"), [(["--match", "dot"], "--match"), (["--backbone_rate", "0"], "--backbone")])
def test_wrong_words(words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert train(tmp_path / "none.parquet", tmp_path / "out", *words) == 2
    assert told in capsys.readouterr().err


# ---- WordNet


class Synset:
    """One synset, as nltk and wn give it."""

    def lemma_names(self) -> list[str]:
        return ["tiger_cat", "striped_cat"]

    def lemmas(self) -> list[str]:
        return ["tiger cat"]

    def definition(self) -> str:
        return "a cat having a striped coat"


def lend(monkeypatch: pytest.MonkeyPatch, **modules: types.ModuleType) -> None:
    """Modules that are not installed here; the other ones cannot be imported."""
    for name in ("nltk", "nltk.corpus", "wn"):
        monkeypatch.setitem(sys.modules, name, modules.get(name.replace(".", "_")))  # None = ImportError


def test_wordnet_ids_by_nltk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[object] = []

    class Wordnet:
        def synset_from_pos_and_offset(self, pos: str, offset: int) -> Synset:
            asked.append((pos, offset))
            return Synset()

        def synset(self, name: str) -> Synset:
            asked.append(name)
            return Synset()

    corpus = types.ModuleType("nltk.corpus")
    corpus.wordnet = Wordnet()  # type: ignore[attr-defined]
    lend(monkeypatch, nltk=types.ModuleType("nltk"), nltk_corpus=corpus)
    (tmp_path / "a.yaml").write_text("- n02123159\n- tiger_cat.n.01\n- dog: barks\n- n02084071: as I say\n")
    found = read_classes(tmp_path / "a.yaml")
    assert asked == [("n", 2123159), "tiger_cat.n.01"], "a definition that is given wins over WordNet"
    assert found.senses[0] == ("tiger cat, striped cat: a cat having a striped coat",)
    assert found.names == ("n02123159", "tiger_cat.n.01", "dog", "n02084071") and not found.undefined


def test_wordnet_ids_by_wn_and_by_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    wn, asked = types.ModuleType("wn"), []
    wn.synset = lambda name: asked.append(name) or Synset()  # type: ignore[attr-defined]
    lend(monkeypatch, wn=wn)
    (tmp_path / "a.yaml").write_text("- n02123159\n- dog: barks\n")
    assert read_classes(tmp_path / "a.yaml").senses[0] == ("tiger cat: a cat having a striped coat",)
    assert asked == ["oewn-02123159-n"]
    lend(monkeypatch)
    with pytest.raises(UsageError, match="WordNet is not installed"):
        read_classes(tmp_path / "a.yaml")


def test_the_real_wordnet_knows_the_dog(tmp_path: Path):
    corpus = pytest.importorskip("nltk.corpus", reason="nltk is not installed")
    try:
        corpus.wordnet.ensure_loaded()
    except LookupError:
        pytest.skip("the data `wordnet` of nltk is not installed")
    (tmp_path / "a.yaml").write_text("- n02084071\n- cat: purrs\n")
    assert "domestic dog" in read_classes(tmp_path / "a.yaml").senses[0][0]


# ---- what the audit learned since


def test_texts_name_a_class_only_as_surely_as_those_of_its_anchors():
    best, score = np.array([0, 0, 1, -1, 1]), np.array([0.9, 0.4, 0.8, np.nan, 0.3])
    own, labels = np.array([0.9, 0.4, 0.1, np.nan, 0.3]), np.array([0, 0, 0, 1, 1])
    anchors = np.array([True, False, False, False, True])
    assert named_classes(best, score, own, labels, anchors, 2).tolist() == [0, -1, 1, -1, 1]
    assert named_classes(best, score, own, labels, anchors & (labels == 0), 2).tolist() == [0, -1, -1, -1, -1]


def test_who_does_not_teach():
    labels, named = np.array([0, 0, 0, 0, 1, 1, -1]), np.array([0, -1, 1, 0, 0, 0, 1])
    assert teaching_labels(labels, named).tolist() == [0, 0, -1, 0, 1, 1, -1], "class 1 would keep nobody"
    assert teaching_labels(labels, np.full(7, -1)).tolist() == labels.tolist()


def test_a_mixture_of_known_components_gives_its_share():
    rng = np.random.default_rng(0)
    null, right = rng.normal(-1, 1, 4000), rng.normal(1.5, 1, 4000)
    given = np.concatenate([rng.normal(-1, 1, 600), rng.normal(1.5, 1, 1400)])
    assert mixture_share(given, null, right) == pytest.approx(0.3, abs=0.03)
    assert mixture_share(null[:500], null, right) < 1 and mixture_share(right[:500], null, right) < 0.05


def test_strata_see_a_null_that_depends_on_something_else():
    """Half of the rows resemble no class: whatever label they carry scores in the middle."""
    rng = np.random.default_rng(1)
    level = np.repeat([0.0, 1.0], 1000) + 0.01 * rng.normal(size=2000)
    odd = level < 0.5
    given = np.where(odd, rng.normal(0, 0.5, 2000), rng.normal(3, 0.5, 2000))
    null = np.where(odd, rng.normal(0, 0.5, 2000), rng.normal(-3, 0.5, 2000))
    right = np.where(odd, rng.normal(0.2, 0.5, 2000), rng.normal(3, 0.5, 2000))
    p = fit_strata((given, level), (null, level), (right, level))(given, level)
    assert p[odd].mean() < 0.6 and p[~odd].mean() > 0.95 and p.min() >= 0 and p.max() <= 1


def test_two_steps_of_completion_are_one_after_the_other():
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(20, 5)).astype(np.float32), rng.normal(size=(20, 4)).astype(np.float32)
    graph, everyone = build_graph(image, 3, seed=0), np.ones(20, bool)
    near = np.zeros((20, 20))
    for row in range(20):
        near[row, graph.ids[row]] = graph.weight[row]
    near = np.maximum(near, near.T)
    near = near / near.sum(1, keepdims=True) + np.eye(20)
    near /= near.sum(1, keepdims=True)
    wanted = near @ near @ (text / np.linalg.norm(text, axis=1, keepdims=True))
    got, _ = complete_texts(text, graph, everyone, hops=2)
    np.testing.assert_allclose(got, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)


def test_the_released_match_is_the_reranked_distance_of_the_definition():
    rng = np.random.default_rng(0)
    texts, senses = rng.normal(size=(30, 5)), rng.normal(size=(2, 5))
    labels = np.arange(30) % 2
    texts[4], labels[7] = 0, -1
    got = reciprocal_match(texts, text_prototypes(senses, np.arange(2), 2), labels, k1=6, k2=3)
    assert np.isnan(got[[4, 7]]).all()
    for c in (0, 1):
        rows = np.flatnonzero((labels == c) & texts.any(1))
        points = np.concatenate([senses[[c]], texts[rows]])
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        np.testing.assert_allclose(got[rows], 1 - reference.rerank(points, 6, 3, 0.3)[0, 1:], atol=1e-5)
