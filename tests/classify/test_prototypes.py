"""Prototypes, completion, re-ranking, anchors: worked cases, references, and what must be refused."""

from __future__ import annotations

import numpy as np
import pytest

from noisycorr.classify.anchors import select_anchors, select_tag_anchors
from noisycorr.classify.completion import Graph, build_graph, complete_texts, donors
from noisycorr.classify.prototypes import class_cosines, match, prepare_text, text_prototypes
from noisycorr.classify.rerank import rerank, rerank_graph
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.index import neighbors
from tests.reference import rerank as reference


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize(("k1", "k2", "lam"), [(6, 3, 0.3), (20, 6, 0.3), (5, 1, 0.0), (7, 4, 1.0)])
def test_rerank_equals_its_equations_on_a_whole_list(k1: int, k2: int, lam: float) -> None:
    points = unit(np.random.default_rng(k1).normal(size=(60, 5))).astype(np.float32)
    found = neighbors(points, 59, seed=0)
    wanted = np.take_along_axis(reference.rerank(points.astype(np.float64), k1, k2, lam), found.ids, 1)
    got = rerank(points, found.ids, k1=k1, k2=k2, lam=lam)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert got.min() >= 0 and got.max() <= 1


def test_rerank_does_not_depend_on_the_order_of_points() -> None:
    rng = np.random.default_rng(3)
    points, order = unit(rng.normal(size=(40, 4))).astype(np.float32), rng.permutation(40)
    one = neighbors(points, 15, seed=0)
    two = neighbors(points[order], 15, seed=0)
    np.testing.assert_array_equal(order[two.ids], one.ids[order])
    np.testing.assert_allclose(rerank(points[order], two.ids, k1=8), rerank(points, one.ids, k1=8)[order], atol=1e-5)


def test_rerank_graph_weighs_by_similarity_or_as_released_by_distance() -> None:
    points = unit(np.random.default_rng(4).normal(size=(50, 4))).astype(np.float32)
    graph = build_graph(points, 20, seed=0)
    ours, released = rerank_graph(points, graph, 5), rerank_graph(points, graph, 5, faithful=True)
    np.testing.assert_array_equal(ours.ids, released.ids)
    np.testing.assert_allclose(ours.weight, 1 - released.weight, atol=1e-6)
    assert (np.diff(ours.weight, axis=1) <= 1e-6).all()
    with pytest.raises(UsageError, match="other features"):
        rerank_graph(points + 0.1, graph, 5)
    with pytest.raises(UsageError, match="do not fit"):
        rerank(points, graph.ids, k1=30)


def line_graph() -> Graph:
    """0 - 1 - 2, weights 0.8 and 0.5; 3 is alone."""
    return Graph(ids=np.array([[1], [0], [1], [-1]]), weight=np.array([[0.8], [0.8], [0.5], [0]], np.float32),
                 made_from="", method="", recall=1.0)  # fmt: skip


def test_completion_by_hand() -> None:
    texts = np.array([[2.0, 0, 0], [0, 0, 0], [0, 3.0, 0], [0, 0, 0]], np.float32)
    has = np.array([True, False, True, False])
    out, support = complete_texts(texts, line_graph(), has)
    np.testing.assert_allclose(out[0], [1, 0, 0])  # its neighbour has no text
    np.testing.assert_allclose(out[1], unit(np.array([0.8 / 1.3, 0.5 / 1.3, 0])), atol=1e-6)
    np.testing.assert_allclose(out[2], [0, 1, 0])
    assert not out[3].any() and support[3] == 0
    np.testing.assert_allclose(support[:3], [0.5, 0.5, 0.5], atol=1e-6)
    none, _ = complete_texts(texts, line_graph(), has, self_weight=0)
    assert not none[0].any() and not none[2].any()


def test_faithful_completion_discards_the_own_text_and_averages_blanks() -> None:
    blank = np.array([0, 0, 1.0])
    texts = np.array([[2.0, 0, 0], blank, [0, 3.0, 0], blank], np.float32)
    has = np.array([True, False, True, False])
    out, _ = complete_texts(texts, line_graph(), has, faithful=True)
    np.testing.assert_allclose(out[0], blank)
    np.testing.assert_allclose(out[1], unit(np.array([0.8 * 2, 0.5 * 3, 0])), atol=1e-6)
    assert not out[3].any()


def test_donors_are_those_with_a_text() -> None:
    ids, weight = donors(line_graph(), np.array([True, False, True, False]), np.array([0, 1]), count=1)
    assert ids.tolist() == [[-1], [0]]
    assert weight[1, 0] == pytest.approx(0.8)


def test_a_graph_of_other_pictures_is_refused() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 4)).astype(np.float32)
    graph = build_graph(features, 3, seed=0)
    graph.check(features)
    with pytest.raises(UsageError, match="other features"):
        graph.check(rng.normal(size=(30, 4)).astype(np.float32))
    with pytest.raises(UsageError, match="30 rows"):
        complete_texts(features[:20], graph, np.ones(20, bool))
    with pytest.raises(UsageError, match="needs 5"):
        build_graph(features, 5, seed=0, nearest=neighbors(features, 3, seed=0))


def test_match_takes_the_best_sense_and_knows_what_is_unknown() -> None:
    senses = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], float)
    prototypes = text_prototypes(senses, np.array([0, 1, 0, 2]), 4)
    assert prototypes.defined.tolist() == [True, True, False, False]
    rows = np.array([[0, 0.1, 5], [0, 0, 0], [0.6, 0.8, 0], [1, 0, 0]], float)
    found = match(rows, prototypes, np.array([0, 0, 1, 2]))
    assert found.own[0] == pytest.approx(5 / np.hypot(5, 0.1))
    assert prototypes.vectors[found.sense[0]].tolist() == [0, 0, 1]
    assert np.isnan(found.own[1]) and found.best[1] == -1 and found.sense[1] == -1
    assert found.own[2] == pytest.approx(0.8) and found.best[2] == 1
    assert np.isnan(found.own[3]) and found.best[3] == 0
    wide = np.concatenate([block for _, block in class_cosines(rows, prototypes)])
    np.testing.assert_array_equal(wide[2], np.array([0.6, 0.8, -np.inf, -np.inf], np.float32))
    with pytest.raises(UsageError, match="no class has a definition"):
        text_prototypes(np.zeros((2, 3)), np.array([0, 1]), 2)
    with pytest.raises(UsageError, match="owners"):
        text_prototypes(np.ones((2, 3)), np.array([0, 5]), 2)


def test_prepared_texts_lose_what_says_nothing() -> None:
    text = "A <b>Tiger&amp;Cat</b>\nIMG_1234.JPG see www.example.com/x?y and http://a.b/c 2023"
    assert prepare_text(text) == "tiger cat img see"
    assert prepare_text(None) == prepare_text("  ") == prepare_text("12 34.png") == ""
    assert prepare_text("猫 и собака") == "猫 и собака"  # one letter of another script may be a word


def test_anchors_are_the_best_known_of_each_class() -> None:
    score = np.array([0.9, 0.8, np.nan, 0.1, 0.7, 0.6, 0.5])
    labels = np.array([0, 0, 0, 0, 1, -1, 1])
    assert np.flatnonzero(select_anchors(score, labels, k=2)).tolist() == [0, 1, 4, 6]
    assert np.flatnonzero(select_anchors(score, labels, k=1)).tolist() == [0, 4]
    assert np.flatnonzero(select_anchors(score, labels, k=2, share=0.25)).tolist() == [0, 4], "one row at least"
    drawn = select_anchors(score, labels, k=-2, seed=1)
    assert drawn.sum() == 4 and not drawn[[2, 5]].any()
    with pytest.raises(UsageError, match="k = 0"):
        select_anchors(score, labels, k=0)
    with pytest.raises(UsageError, match="share above 0"):
        select_anchors(score, labels, k=1, share=0.0)


def test_negative_tag_anchors_lose_their_label_unless_faithful() -> None:
    score = np.array([[0.9], [0.8], [0.5], [0.2], [0.99], [np.nan]])
    tags = np.array([[True], [True], [True], [True], [False], [True]])
    domain, target = select_tag_anchors(score, tags, k=1)
    assert domain.ravel().tolist() == [1, 0, 0, -1, 0, 0]
    assert target.ravel().tolist() == [True, True, True, False, False, True]
    domain, target = select_tag_anchors(score, tags, k=1, faithful=True)
    assert domain.ravel().tolist() == [1, 0, 0, -1, 0, 0] and target[3, 0]
    domain, _ = select_tag_anchors(score, tags, k=3)
    assert domain.ravel().tolist() == [1, 1, -1, -1, 0, 0]
    with pytest.raises(UsageError, match="carries a label"):
        select_tag_anchors(score, np.zeros_like(tags))
