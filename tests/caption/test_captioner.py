"""The captioner: levels, words, network, training and writing, against slow loops and laws."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from caption_data import COLOURS, JUNK, SMALL, THINGS, open_small, recipe, world
from reference.captioner_reference import level_loop, loss_loop, repeats_loop

from noisycorr.caption.captioner.align import Aligner, align_with, fit_aligner, remember
from noisycorr.caption.captioner.best import Best, best_of_levels, write_best
from noisycorr.caption.captioner.choice import CaptionTrain, Decode, Design, Held, LevelChoice, Teach
from noisycorr.caption.captioner.decode import Next, forbid, write
from noisycorr.caption.captioner.levels import Levels, fit_levels
from noisycorr.caption.captioner.select import Fluency, candidates, choose, prefer, self_retrieval_mrr
from noisycorr.caption.captioner.stored import Texts, captioner_identity, load_captioner
from noisycorr.caption.captioner.teach import (
    CaptionTraining,
    choose_decoding,
    kept_rows,
    open_class,
    pair_shares,
    pair_weights,
    train_class,
)
from noisycorr.caption.captioner.train import (
    backward,
    continue_training,
    draw_rows,
    save_training,
    take_step,
    text_losses,
)
from noisycorr.caption.captioner.words import END, PAD, START, Pieces, token_table
from noisycorr.models.training.batches import stream_seed
from noisycorr.runtime.errors import UsageError

RELEASED = (-0.0369, 0.0280, 0.0930, 0.1579, 0.2229, 0.2878, 0.3527, 0.4177, 0.4826)
GREEDY = Decode(search="greedy", no_repeat_ngram=0)


@pytest.fixture(scope="module")
def taught() -> CaptionTraining:
    """A captioner that has learned the small world."""
    group = open_small(epochs=35, lr=1e-2)
    train_class(group)
    return group


# Levels


def test_levels_of_the_released_edges():
    levels = Levels(edges=RELEASED, counts=(1,) * 9, made_by={})
    scores = [-0.10, 0.02803, 0.25, 0.30, 0.36, 0.42, 0.60, float("nan"), float("inf")]
    assert levels.of(np.array(scores)).tolist() == [0, 1, 4, 5, 6, 7, 7, 8, 8]
    rng = np.random.default_rng(0)
    more = [*rng.uniform(-0.2, 0.7, 200), *RELEASED]
    assert levels.of(np.array(more)).tolist() == [level_loop(x, RELEASED) for x in more]


def test_bins_are_uniform_clipped_or_quantiles():
    score = np.concatenate([np.linspace(0, 1, 998), [-9.0, 9.0]])
    uniform = fit_levels(score, LevelChoice(levels=4, bins="uniform", level_least=0), {})
    assert uniform.edges == (-9.0, -4.5, 0.0, 4.5, 9.0) and uniform.counts == (1, 0, 998, 1, 0)
    clipped = fit_levels(score, LevelChoice(levels=4, bins="clipped", level_least=1), {})
    assert min(clipped.counts[:-1]) > 200
    quantile = fit_levels(score, LevelChoice(levels=4, bins="quantile", level_least=1), {})
    assert quantile.counts == (250, 250, 250, 250, 0)


def test_small_bins_are_merged_and_unscored_ones_counted():
    score = np.concatenate([np.linspace(0, 1, 101), [5.0], [np.nan] * 3])
    levels = fit_levels(score, LevelChoice(levels=8, bins="uniform", level_least=10), {})
    assert min(levels.counts[:-1]) >= 10 and sum(levels.counts) == 105 and levels.counts[-1] == 3
    assert np.bincount(levels.of(score), minlength=levels.count + 1).tolist() == list(levels.counts)
    with pytest.raises(UsageError, match="do not differ"):
        fit_levels(np.ones(5), LevelChoice(), {})
    with pytest.raises(UsageError, match="so many of its 200 values are equal"):
        fit_levels(np.repeat([0.0, 1.0], [20, 180]), LevelChoice(bins="quantile", level_least=1), {})


def test_bins_count_what_teaches():
    score = np.append(np.repeat([0.1, 0.4, 0.6, 0.9], 15), np.nan)
    choice = LevelChoice(levels=4, bins="uniform", level_least=5, level_dropout=0.0)
    every = fit_levels(score, choice, {}, np.ones(61))
    assert every.counts == (15, 15, 15, 15, 1) and every.trained() == [0, 1, 2, 3, 4]
    share = np.append(np.repeat([0.0, 0.2, 1.0, 1.0], 15), 0.0)
    merged = fit_levels(score, choice, {}, share)
    assert merged.counts == (45, 15, 1) and merged.taught == (18, 15, 0) and merged.trained() == [0, 1]
    whole = fit_levels(score, dataclasses.replace(choice, level_least=0), {}, share)
    assert whole.counts == every.counts and whole.trained() == [1, 2, 3] == whole.fed()
    with pytest.raises(UsageError, match="level 0 had no training pair"):
        whole.check(np.array([0]))


def test_what_weighs_nothing_teaches_no_level():
    made = world()
    score = np.repeat([0.1, 0.9], 60)
    right = {"score_pair": score, "p_clean": (score > 0.5).astype(float)}
    for by in ("draw_by", "weight_by"):
        group = open_small(dataclasses.replace(made, columns=right), levels=2, level_least=0, **{by: "p_clean"})
        assert group.trained.levels.counts == (60, 60, 0) and group.trained.levels.trained() == [1, 2]


def test_levels_refuse_what_they_are_not_of(tmp_path: Path):
    made = {"column": "score_pair", "scorer": "a", "corpus": "1"}
    levels = Levels(edges=(0.0, 0.5, 1.0, 2.0), counts=(5, 0, 7, 0), made_by=made)
    levels.save(tmp_path / "levels.json")
    assert Levels.load(tmp_path / "levels.json") == levels
    levels.refuse_other(dict(made))
    with pytest.raises(UsageError, match=r"scorer 'a', but .* 'b'"):
        levels.refuse_other({**made, "scorer": "b"})
    with pytest.raises(UsageError, match="corpus"):
        levels.refuse_other({**made, "corpus": "2"})
    levels.check(np.array([0, 2]))
    for wrong, said in ((-1, "level -1"), (4, "level 4"), (1, "no training pair"), (3, "no training pair")):
        with pytest.raises(UsageError, match=said):
            levels.check(np.array([wrong]))
    dataclasses.replace(levels, hidden=True).check(np.array([3]))


# Words


def test_any_text_comes_back():
    words = Pieces.learn(["a red ball", "a red house!", "a tree"] * 5, 320)
    for text in ("a red ball!", "Füße – 赤い球 🟥", "<pad> <bos> <eos> [EOS]", "שלום", "!!!"):
        assert words.decode(words.encode(text)) == text
        assert min(words.encode(text)) >= 3, "no text contains padding, start or end"
    assert words.decode([PAD, START, *words.encode("a"), END]) == "a"
    assert words.decode(words.encode("球")[:1]) == "", "half a letter is none"


def test_the_vocabulary_is_the_same_twice(tmp_path: Path):
    texts = [text or "" for text in world().texts]
    one, two = Pieces.learn(texts, 400), Pieces.learn(texts, 400)
    assert one.tokenizer.to_str() == two.tokenizer.to_str() and one.size <= 400
    one.save(tmp_path)
    assert Pieces.load(tmp_path).encode("a blue boat") == one.encode("a blue boat")


def test_texts_that_are_cut_are_counted():
    made = world()
    words = open_small(made).trained.words
    lengths = [len(words.encode(text)) for text in made.texts]
    for longest in range(min(lengths) - 1, max(lengths) + 2):  # also where texts are one piece shorter
        assert open_small(made, longest=max(longest, 4)).facts["cut"] == sum(n > max(longest, 4) for n in lengths)
    assert len(set(lengths)) > 1 and min(lengths) < 5 < max(lengths)


def test_what_cannot_be_kept_by_is_refused():
    columns = {"score_pair": np.arange(10.0), "p_clean": np.full(10, np.nan)}
    for teach, said in ((Teach(keep_by="none", keep_fraction="0.3"), "`keep_by` is none"),
                        (Teach(keep_fraction="auto"), "known of no pair")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            kept_rows(columns, 10, teach)


def test_long_empty_and_blank_texts():
    words = Pieces.learn(["ab"], 300)
    table, length = token_table(["ab", "abcdef", "abcd", "", "   ", None], words, 4)
    one, cut, full = table[:3].tolist()
    assert length.tolist() == [len(words.encode("ab")) + 2, 5, 6, 0, 0, 0]
    assert one[0] == START and one[length[0] - 1] == END and set(one[length[0] :]) <= {PAD}
    assert cut == [START, *words.encode("abcdef")[:4], PAD], "a text that is cut does not end"
    assert full == [START, *words.encode("abcd"), END]


# Network


def test_a_level_dims_the_picture_by_the_share_of_right_pairs():
    made = world()
    score, p_clean = np.repeat([0.1, 0.9, np.nan], [60, 50, 10]), np.repeat([0.0, 0.75, 0.4, np.nan], [60, 40, 10, 10])
    made = dataclasses.replace(made, columns={"score_pair": score, "p_clean": p_clean})
    group = open_small(made, model_precision="fp64", level_gate=True)
    network, levels = group.trained.network.eval(), group.trained.levels
    assert levels is not None and levels.counts == (60, 50, 10)
    everywhere = (40 * 0.75 + 10 * 0.4) / 110
    expected = torch.tensor([0.0, (40 * 0.75 + 10 * 0.4) / 50, everywhere], dtype=torch.float64)
    assert torch.allclose(network.gate, expected[:, None].expand(3, SMALL.width))
    image = torch.from_numpy(made.image[:3].astype(np.float64))
    seen = network.norm(network.prefix((image - network.image_mean) / network.image_std).view(3, 2, -1))
    memory = network.memory(image, torch.tensor([0, 1, 2]))
    assert torch.allclose(memory[:, :2], seen * expected[:, None, None])
    network.losses(memory, torch.tensor([[START, 4, END]] * 3), torch.tensor([3, 3, 3])).sum().backward()
    assert (network.gate.grad.abs().sum(1) > 0).all(), "a gate that starts shut can open"
    plain = open_small()
    assert plain.trained.network.gate is None and plain.trained.levels is not None and not plain.trained.levels.gated
    unknown = {"score_pair": made.columns["score_pair"]}
    assert (open_small(dataclasses.replace(made, columns=unknown), level_gate=True).trained.network.gate == 1).all()


def test_losses_equal_the_loop_whatever_the_padding():
    network = open_small(model_precision="fp64").trained.network.eval()
    rng = np.random.default_rng(0)
    tokens, length = torch.from_numpy(rng.integers(3, 300, (3, 9))), torch.tensor([5, 9, 2])
    memory = network.memory(torch.from_numpy(rng.normal(size=(3, 9))), torch.tensor([0, 1, 2]))
    found = network.losses(memory, tokens, length)
    assert torch.allclose(found, loss_loop(network.decoder(tokens[:, :-1], memory), tokens, length), atol=1e-10)
    longer = torch.nn.functional.pad(tokens, (0, 4), value=PAD)
    assert torch.allclose(network.losses(memory, longer, length), found, atol=1e-10)
    changed = tokens.clone()
    changed[0, 6] = 7
    assert torch.allclose(network.losses(memory, changed, length), found, atol=1e-10), "padding never counts"


def test_a_word_sees_only_those_before_it():
    network = open_small(model_precision="fp64").trained.network.eval()
    tokens = torch.from_numpy(np.random.default_rng(1).integers(3, 300, (2, 8)))
    memory = network.memory(torch.ones(2, 9, dtype=torch.float64), torch.tensor([0, 1]))
    changed = tokens.clone()
    changed[:, 5] = 4
    before, after = network.decoder(tokens, memory), network.decoder(changed, memory)
    assert torch.equal(before[:, :5], after[:, :5]) and not torch.allclose(before[:, 5:], after[:, 5:])


def test_levels_are_learned_and_matter():
    group = open_small()
    backward(group.trainer, np.arange(0, 120, 3))
    network = group.trained.network
    assert network.level is not None and network.level.weight.grad is not None
    assert bool((network.level.weight.grad.abs().sum(1) > 0).all()), "each level had pairs in this batch"
    assert any(p is network.level.weight for p in group.trainer.parameters)
    image = torch.zeros(1, 9)
    one, two = (network.memory(image, torch.tensor([level])) for level in (0, 1))
    assert not torch.allclose(network.decoder(torch.tensor([[START]]), one),
                              network.decoder(torch.tensor([[START]]), two))  # fmt: skip


def test_weights_scale_the_loss_of_each_pair():
    weights = np.linspace(0, 2, 120)
    material = world()
    material = dataclasses.replace(material, columns={**material.columns, "score_w": weights})
    group = open_small(material, weight_by="score_w", dropout=0.0, level_dropout=0.0, model_precision="fp64")
    rows, train_set = np.arange(7, 40), group.trainer.train_set
    value = backward(group.trainer, rows)
    losses = text_losses(group.trained.network, train_set)[rows]
    weight = weights[rows] / weights.mean()
    assert value == pytest.approx((losses * weight).sum() / (weight * (train_set.length[rows] - 1)).sum(), rel=1e-9)
    with pytest.raises(UsageError, match="nowhere above 0"):
        pair_weights({"score_w": -weights}, np.arange(5), Teach(weight_by="score_w"))
    unknown = pair_weights({"score_w": np.array([1.0, np.nan, 3.0])}, np.arange(3), Teach(weight_by="score_w"))
    assert unknown.tolist() == [0.5, 1.0, 1.5]


def test_filtering_keeps_the_best_share():
    columns = {"score_pair": np.array([0.5, np.nan, 0.9, 0.1, 0.5]), "p_clean": np.array([0.6, 0.0, 1.0, 0.0, 0.4])}
    assert kept_rows(columns, 5, Teach(keep_fraction="0.6")).tolist() == [0, 2, 4]
    assert kept_rows(columns, 5, Teach(keep_fraction="auto")).tolist() == [0, 2], "2 of 5 are held to be right"
    assert kept_rows(columns, 5, Teach(keep_fraction="1")).tolist() == [0, 1, 2, 3, 4]
    assert Teach().keep_fraction == "1" and Teach().draw_by == "p_clean"
    with pytest.raises(UsageError, match="no such column; it has p_clean, score_pair"):
        kept_rows(columns, 5, Teach(keep_by="score_x", keep_fraction="0.5"))


def test_pairs_are_drawn_as_often_as_they_are_held_to_be_right():
    share = np.array([1.0, 0.0, 0.5, 0.25, 0.25, 1.0])
    group = open_small(dataclasses.replace(world(), columns={"p_clean": np.tile(share, 20)}), level_by="none",
                       draw_by="p_clean")  # fmt: skip
    train_set = group.trainer.train_set
    epochs = [draw_rows(train_set, seed=3, epoch=epoch) for epoch in range(400)]
    assert {len(rows) for rows in epochs} == {60}, "an epoch is as long as the shares add up to"
    counts = np.stack([np.bincount(rows, minlength=120) for rows in epochs])
    assert counts.max() == 1 and not counts[:, 1::6].any()
    np.testing.assert_allclose(counts.mean(0), np.tile(share, 20), atol=0.12)
    np.testing.assert_array_equal(draw_rows(train_set, seed=3, epoch=7), epochs[7])
    assert not np.array_equal(epochs[0], epochs[1])
    known = pair_shares({"p_clean": np.array([np.nan, 0.4, 0.6])}, np.arange(3), Teach())
    assert known == pytest.approx(np.array([0.5, 0.4, 0.6]))
    assert pair_shares({}, np.arange(3), Teach(draw_by="none")) is None
    with pytest.raises(UsageError, match="`draw_by` p_clean is nowhere above 0"):
        pair_shares({"p_clean": np.zeros(3)}, np.arange(3), Teach())


# Training


def test_levels_tell_junk_from_description(taught: CaptionTraining):
    material = world()
    low, high = (taught.trained.write(material.valid_image, level).texts for level in (0, 1))
    assert low.count(JUNK) >= 18
    assert sum(text == real for text, real in zip(high, material.valid_texts)) >= 14


def test_training_goes_on_where_it_was_killed(tmp_path: Path):
    whole = open_small(epochs=3)
    train_class(whole)
    for stop in (3, 11):  # inside the first and the second epoch
        part = open_small(epochs=3)
        steps = iter(range(100))

        def killed(count: int, steps=steps, part=part, stop=stop) -> None:
            if next(steps) == stop:
                raise KeyboardInterrupt

        folder = tmp_path / str(stop)
        part = open_small(epochs=3, save_every=1e-9)
        with pytest.raises(KeyboardInterrupt):
            train_class(part, checkpoints=folder, moved=killed)
        again = open_small(epochs=3, save_every=1e-9)
        train_class(again, checkpoints=folder)
        assert again.trainer.at.history == whole.trainer.at.history
        for name, value in whole.trainer.snapshot().items():
            assert torch.equal(value, again.trainer.snapshot()[name]), name
    assert not list(tmp_path.rglob("*.p*t")) and not list(tmp_path.rglob("*.bin")), "nothing is pickled"


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path):
    group = open_small()
    take_step(group.trainer, np.arange(16), 8)
    save_training(group.trainer, tmp_path, keep=1)
    with pytest.raises(ValueError, match="another network"):
        continue_training(open_small(width=16).trainer, tmp_path)


def test_a_loss_that_is_no_number_stops():
    group = open_small()
    group.trainer.train_set.weight[:] = np.inf
    with pytest.raises(FloatingPointError, match="lower `lr`"):
        take_step(group.trainer, np.arange(16), 8)


# Writing


@pytest.mark.parametrize("decode", [GREEDY, Decode(), Decode(search="nucleus", heat=2.0), Decode(guidance=1.0)])
def test_the_cache_changes_nothing(taught: CaptionTraining, decode: Decode):
    image = world().valid_image
    one, two = (taught.trained.write(image, 1, decode, cached=cached) for cached in (True, False))
    assert one.texts == two.texts and np.allclose(one.log_prob, two.log_prob, atol=1e-5)


class Chain(Next):
    """Words that depend on the one before alone: numbers 3 and up are words, 2 is the end."""

    def __init__(self, share: list[list[float]]) -> None:
        self.share = torch.tensor(share, dtype=torch.float64).log()

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.share[tokens[:, -1]]

    def fresh(self) -> Chain:
        return self

    def take(self, rows: torch.Tensor) -> None:
        """Nothing to keep."""


def test_beams_find_what_greedy_misses():
    # From the start: 3 with 0.6, 4 with 0.4. After 3: 5 or 6, 0.5 each, which end. After 4: 5 with 1.
    chain = Chain([[1] + [0] * 6, [0, 0, 0, 0.6, 0.4, 0, 0], [0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0.51, 0.49],
                   [0, 0, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0]])  # fmt: skip
    words = Pieces.learn(["ab"], 300)
    plain = Decode(search="greedy", length_penalty=0, no_repeat_ngram=0, least_tokens=0)
    found = {name: write(chain, 2, words, dataclasses.replace(plain, search=name, beams=2), most=5,
                         device=torch.device("cpu")) for name in ("greedy", "beam")}  # fmt: skip
    assert found["greedy"].tokens == [[3, 5]] * 2 and found["beam"].tokens == [[4, 5]] * 2
    assert found["greedy"].log_prob.exp().tolist() == pytest.approx([0.306] * 2)
    assert found["beam"].log_prob.exp().tolist() == pytest.approx([0.4] * 2)


def test_beams_never_find_less_than_greedy(taught: CaptionTraining):
    image = np.random.default_rng(0).normal(size=(60, 9)).astype(np.float32)  # nothing that it has seen: many ways on
    better = 0
    for decode in (Decode(length_penalty=0, beams=4), Decode(length_penalty=0, beams=2, no_repeat_ngram=2)):
        greedy = taught.trained.write(image, 1, dataclasses.replace(decode, search="greedy"))
        beam = taught.trained.write(image, 1, decode)
        assert (beam.log_prob >= greedy.log_prob - 1e-9)[greedy.ended].all()
        better += int((beam.log_prob > greedy.log_prob + 1e-6).sum())
    assert better, "or the search does nothing"


def test_log_prob_is_that_of_the_text(taught: CaptionTraining):
    trained, image = taught.trained, world().valid_image
    found = trained.write(image, 1, GREEDY)
    tokens, length = token_table(found.texts, trained.words, trained.design.longest)
    train_set = dataclasses.replace(
        taught.valid, image=image, tokens=tokens, length=length, level=np.ones(20, np.int64)
    )
    assert found.ended.all() and np.allclose(text_losses(trained.network, train_set), -found.log_prob, atol=1e-4)


def test_levels_of_each_row(taught: CaptionTraining):
    image = world().valid_image
    level = np.arange(20) % 2
    mixed = taught.trained.write(image, level).texts
    both = [taught.trained.write(image, z).texts for z in (0, 1)]
    assert mixed == [both[z][row] for row, z in enumerate(level.tolist())]
    rows = np.array([3, 0])
    assert taught.trained.write(image[rows], level[rows]).texts == [mixed[3], mixed[0]]


def test_what_the_nucleus_draws_depends_on_the_name_alone(taught: CaptionTraining):
    image, decode = world().valid_image, Decode(search="nucleus", heat=3.0, top_p=1.0)
    one = taught.trained.write(image, 1, decode, names=list(range(20)))
    rows = np.array([7, 2])
    assert taught.trained.write(image[rows], 1, decode, names=[7, 2]).texts == [one.texts[row] for row in rows]
    assert taught.trained.write(image, 1, decode, seed=1).texts != one.texts
    narrow = Decode(search="nucleus", heat=3.0, top_p=1e-9, no_repeat_ngram=0)
    assert taught.trained.write(image, 1, narrow).texts == taught.trained.write(image, 1, GREEDY).texts


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_run_of_words_comes_twice(n: int):
    words = Pieces.learn(["ab"], 300)
    rng = np.random.default_rng(n)
    tokens = torch.from_numpy(rng.integers(3, 7, (30, 9)))
    found = forbid(torch.zeros(30, words.size), tokens, words, Decode(no_repeat_ngram=n, least_tokens=0))
    for row in range(30):
        banned = set(torch.nonzero(found[row] == -torch.inf)[:, 0].tolist()) - {PAD, START}
        assert banned == repeats_loop(tokens[row, 1:].tolist(), n)


def test_least_and_most_tokens(taught: CaptionTraining):
    image = world().valid_image
    short = taught.trained.write(image, 1, Decode(most_tokens=2))
    pieces = [len(taught.trained.words.encode(text)) for text in short.texts]
    assert max(pieces) <= 2 and not short.ended.any()
    long = taught.trained.write(image, 0, Decode(search="greedy", least_tokens=9, no_repeat_ngram=0))
    assert min(len(taught.trained.words.encode(text)) for text in long.texts) >= 8


def test_pictures_that_are_missing_get_an_empty_text(taught: CaptionTraining):
    image = world().valid_image.copy()
    image[4] = 0
    found = taught.trained.write(image, 1)
    assert found.texts[4] == "" and not found.ended[4] and found.texts[5]
    assert taught.trained.write(image[:0], 1).texts == []


def test_wrong_questions(taught: CaptionTraining):
    image = world().valid_image
    for level, said in ((9, "level 9"), (-1, "level -1")):
        with pytest.raises(UsageError, match=said):
            taught.trained.write(image, level)
    with pytest.raises(UsageError, match="width 9 by made up"):
        taught.trained.write(image[:, :8], 1)
    with pytest.raises(UsageError, match="image_dropout"):
        taught.trained.write(image, 1, Decode(guidance=1.0, against="image"))
    plain = open_small(level_by="none").trained
    with pytest.raises(UsageError, match="without levels"):
        plain.write(image, 1)
    with pytest.raises(UsageError, match="guidance by levels"):
        plain.write(image, None, Decode(guidance=1.0))


# Choosing


def real_align(texts: list[str]):
    return lambda rows, written: np.array([float(written[i] == texts[row]) for i, row in enumerate(rows)])


def test_the_level_is_chosen_by_alignment(taught: CaptionTraining):
    material = world()
    rows = choose_decoding(taught, material, recipe(guidances=(0.0, 1.0)), real_align(material.valid_texts), 0)
    chosen = [row for row in rows if row["chosen"]]
    assert len(chosen) == 1 and chosen[0]["level"] == taught.trained.level == 1
    assert [row["alignment"] for row in rows if row["level"] == 0] == [0.0]
    by_loss = choose_decoding(taught, material, recipe(), None, 0)
    assert [row["level"] for row in by_loss if row["chosen"]] == [1]


def test_texts_find_their_pictures_again():
    table = np.random.default_rng(0).random((5, 5))  # pictures by texts
    texts = list("abcde")

    def align(rows: np.ndarray, some: list[str]) -> np.ndarray:
        return table[rows, [texts.index(text) for text in some]]

    ranks = [1 + sum(table[j, i] >= table[i, i] for j in range(5) if j != i) for i in range(5)]
    found = self_retrieval_mrr(texts, align, np.diag(table))
    assert found == pytest.approx(np.mean([1 / rank for rank in ranks])) and max(ranks) > 1
    assert self_retrieval_mrr(["a"], align, table[:1, 0]) == 1


@pytest.mark.parametrize("good", ["first", "last"])
def test_the_epoch_that_writes_better_is_kept(good: str):
    group = open_small(select="writing", epochs=1)
    trainer = group.trainer
    first = trainer.snapshot()
    take_step(trainer, np.arange(16), 1)
    trainer.best, trainer.last = first, trainer.snapshot()
    trainer.load(first)
    trainer.at.best, trainer.at.epoch = [1.0, 0], 3
    assert any(not torch.equal(first[name], trainer.last[name]) for name in first)

    def align(rows: np.ndarray, texts: list[str]) -> np.ndarray:
        here = trainer.snapshot()
        of_last = all(torch.equal(here[name], trainer.last[name]) for name in here)
        own = np.array_equal(rows, np.arange(len(rows)))
        return np.full(len(rows), 1.0 if own and of_last == (good == "last") else 0.1)

    rows = choose_decoding(group, world(), recipe(select="writing"), align, 0)
    kept = trainer.last if good == "last" else first
    assert all(torch.equal(value, kept[name]) for name, value in trainer.snapshot().items())
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["epoch"] == (2 if good == "last" else 0) and chosen["level"] == group.trained.level
    trainer.load(first)
    rows = choose_decoding(group, world(), recipe(select="loss"), align, 0)
    assert all("epoch" not in row for row in rows), "by loss nothing else is tried"


@pytest.mark.parametrize("wild", [False, True])
def test_the_best_of_several_texts_is_kept_if_it_is_fluent(
    taught: CaptionTraining, monkeypatch: pytest.MonkeyPatch, wild: bool
):
    material, known = world(), {text for text in world().texts if text}

    def align(rows: np.ndarray, texts: list[str]) -> np.ndarray:
        return np.array([float(text in known) + 0.01 * len(text) for text in texts])

    def gibberish(trained: Any, image: np.ndarray, align: Any) -> Best:
        n = len(image)
        written = Texts(["house red boat table"] * n, np.zeros(n), np.ones(n, bool), np.full(n, 4))
        return Best(written=written, level=np.ones(n, int), score=np.full(n, 9.0))

    if wild:
        monkeypatch.setattr("noisycorr.caption.captioner.teach.write_best", gibberish)
    decode = Decode(search="greedy", align_weight=1e6, each_level=False)
    rows = choose_decoding(taught, material, dataclasses.replace(recipe(), decode=decode), align, 0)
    row = rows[-1]
    assert row["texts"] == 9 and row["chosen"] == row["allowed"] == (not wild)
    assert taught.trained.decode.samples == (0 if wild else 8)
    assert sum(row["chosen"] for row in rows) == 1 and taught.trained.spread is not None


def test_what_is_not_fluent_is_not_chosen(taught: CaptionTraining):
    material = world()
    fluency = Fluency.learn([JUNK] * 3, [JUNK])  # as if only the phrase were a text
    options = candidates(taught.trained, Decode(), (0.0,))
    rows = choose(taught.trained, material.valid_image, real_align(material.valid_texts), fluency, options)
    best = max(rows, key=lambda row: row["alignment"])
    assert best["level"] == 1 and not best["allowed"] and [r["level"] for r in rows if r["chosen"]] == [0]
    judged = fluency.judge(
        Texts(["best price online", "online online"], np.zeros(2), np.array([True, False]), np.ones(2, int))
    )
    assert judged["length"] == pytest.approx(2.5 / 3) and judged["ended"] == 0.5
    assert judged["fluency"] == pytest.approx((4 + 1) / (4 + 3) - 1)
    choose(taught.trained, material.valid_image, real_align(material.valid_texts),
           Fluency.learn([t or "" for t in material.texts], []), options)  # fmt: skip


def test_of_ways_that_are_alike_the_highest_level_is_taken():
    rng = np.random.default_rng(0)
    base = rng.normal(size=400)

    def pick(*ways: tuple[int | None, float, float, bool]) -> tuple[int, list[bool]]:
        """Of ways with level, guidance, what they add to the alignment, and whether they are allowed."""
        scores = [base + gain + 0.1 * rng.normal(size=400) for _, _, gain, _ in ways]  # errors of the gap: about .007
        rows = [{"level": level, "guidance": guidance, "alignment": score.mean(), "allowed": fluent}
                for (level, guidance, _, fluent), score in zip(ways, scores)]  # fmt: skip
        found = prefer(rows, scores, 8)
        return found, [row["alike"] for row in rows]

    assert pick((0, 0, -1.0, True), (5, 0, 0.003, True), (7, 0, 0, True), (8, 0, 0.005, True))[0] == 2
    assert pick((5, 0, 0.2, True), (7, 0, 0, True), (8, 0, 0.1, True)) == (0, [True, False, False])
    assert pick((5, 0, 0, True), (8, 0, 0.2, True))[0] == 1, "unscored where it is clearly better"
    assert pick((5, 1, 0.003, True), (5, 0, 0, True))[0] == 1, "the least guidance"
    assert pick((5, 0, 0, True), (7, 0, 1.0, False))[0] == 0, "fluent ones first"
    assert pick((5, 0, 0, False), (7, 0, 1.0, False))[0] == 1
    assert pick((None, 0, 0, True)) == (0, [True])


def test_best_of_levels_and_of_samples(taught: CaptionTraining):
    material = world()
    align = real_align(material.valid_texts)
    found = best_of_levels(taught.trained, material.valid_image, align, [0, 1])
    right = [text == real for text, real in zip(found.written.texts, material.valid_texts)]
    assert found.score.tolist() == [float(x) for x in right] and (found.level[np.array(right)] == 1).all()
    hot = Decode(search="nucleus", heat=1.5, top_p=0.9, samples=4, each_level=False, align_weight=1e6)
    taught.trained.spread = 0.5
    single = write_best(taught.trained, material.valid_image, align, 1, dataclasses.replace(hot, samples=0))
    several = write_best(taught.trained, material.valid_image, align, 1, hot)
    assert single.written.texts == taught.trained.write(material.valid_image, 1, hot).texts
    assert several.score.sum() > single.score.sum()
    taught.trained.level = 1
    wants_junk = real_align([JUNK] * 20)  # which level 0 writes
    both = dataclasses.replace(hot, each_level=True)
    every = write_best(taught.trained, material.valid_image, wants_junk, None, both)
    assert every.written.texts == [JUNK] * 20 and (every.level == 0).all()
    given = write_best(taught.trained, material.valid_image, align, 1, both)
    assert given.written.texts == several.written.texts, "a level that is given is the only one"
    alone = write_best(taught.trained, material.valid_image, None, 1, hot)
    assert alone.written.texts == single.written.texts and np.isnan(alone.score).all()
    taught.trained.spread = None


def test_the_best_of_several_texts_equals_a_slow_loop(taught: CaptionTraining, monkeypatch: pytest.MonkeyPatch):
    material, rng = world(), np.random.default_rng(0)
    image, trained = material.valid_image, taught.trained
    worth: dict[tuple[int, str], float] = {}

    def align(rows: np.ndarray, texts: list[str]) -> np.ndarray:
        return np.array([worth.setdefault((int(row), text), rng.normal()) for row, text in zip(rows, texts)])

    trained.spread, trained.level = 0.7, 1
    decode = Decode(samples=3, each_level=True, align_weight=0.8, length_penalty=0.6, beams=2, heat=1.3, top_p=0.95)
    best = write_best(trained, image, align, None, decode, seed=5)
    drawn, greedy = (dataclasses.replace(decode, search=name) for name in ("nucleus", "greedy"))
    ways = [trained.write(image, None, decode)]
    ways += [trained.write(image, None, drawn, seed=stream_seed(5, "sample", k)) for k in (0, 1, 2)]
    ways += [trained.write(image, z, greedy) for z in trained.levels.trained()]
    for row in range(len(image)):
        options = [(w.log_prob[row] / (w.pieces[row] + 1) ** 0.6 + 0.8 * worth[row, w.texts[row]] / 0.7, w.texts[row])
                   for w in ways if w.ended[row]]  # fmt: skip
        assert best.written.texts[row] == max(options)[1]
        assert best.score[row] == worth[row, best.written.texts[row]]
    whole = best_of_levels(trained, image, align, trained.levels.trained(), drawn, seed=5)
    monkeypatch.setattr("noisycorr.caption.captioner.best.ROWS", 7)
    parts = best_of_levels(trained, image, align, trained.levels.trained(), drawn, seed=5)
    assert parts.written.texts == whole.written.texts and parts.score.tolist() == whole.score.tolist()
    parts = write_best(trained, image, align, None, decode, seed=5)
    assert parts.written.texts == best.written.texts and parts.level.tolist() == best.level.tolist()
    one = write_best(trained, image[3:4], lambda rows, texts: align(rows + 3, texts), None, decode, seed=5, names=[3])
    assert one.written.texts == best.written.texts[3:4]
    trained.spread = None


def test_a_writer_with_an_encoder_keeps_what_fits(taught: CaptionTraining):
    material = world()
    image, trained = material.valid_image, taught.trained

    def encode(texts: list[str]) -> np.ndarray:
        return np.array([[float(word in text) for word in (*COLOURS, *THINGS)] for text in texts], np.float32)

    trained.spread, trained.level = 0.1, 1
    decode = Decode(search="nucleus", heat=1.5, top_p=0.9, samples=6, each_level=False)
    scorers = (None, align_with(trained.aligner, image, remember(encode)))
    one, best = (write_best(trained, image, align, decode=decode).written.texts for align in scorers)
    right = [sum(text == real for text, real in zip(texts, material.valid_texts)) for texts in (one, best)]
    assert right[1] > right[0]
    trained.spread = None


def test_an_empty_or_cut_text_is_kept_only_if_there_is_no_other():
    def written(*texts: str) -> Texts:
        return Texts(list(texts), np.zeros(3), np.array([not text.endswith("...") for text in texts]), np.ones(3, int))

    ways = [written("", "", "a"), written("b", "c...", "d"), written("e...", " ", "f...")]
    trained = SimpleNamespace(level=None, levels=None, spread=1.0, decode=Decode(samples=2, align_weight=1e6))
    left = iter(ways)
    trained.write = lambda *given, **more: next(left)
    liked = {"": 3.0, " ": 3.0, "a": 0.0, "b": -1.0, "c...": 0.5, "d": -1.0, "e...": 5.0, "f...": 5.0}
    stand_in: Any = trained
    best = write_best(stand_in, np.ones((3, 2)), lambda rows, texts: np.array([liked[text] for text in texts]))
    assert best.written.texts == ["b", "", "a"], "of the second picture nothing is whole"


def test_the_scorer_knows_what_fits(tmp_path: Path):
    rng = np.random.default_rng(0)
    things = rng.normal(size=(300, 6))
    image = (things @ rng.normal(size=(6, 24)) + 5).astype(np.float16)
    text = (things @ rng.normal(size=(6, 20)) - 3).astype(np.float16)
    aligner = fit_aligner(image[:250], text[:250], np.ones(250))
    aligner.save(tmp_path / "aligner.safetensors")
    again = Aligner.load(tmp_path / "aligner.safetensors")
    right, wrong = again(image[250:], text[250:]), again(image[250:], np.roll(text[250:], 1, 0))
    assert right.min() > 0.8 and wrong.mean() < 0.3
    assert np.allclose(right, aligner(image[250:], text[250:]), atol=1e-4)
    image[250] = 0
    assert again(image[250:251], text[250:251])[0] == 0
    with pytest.raises(UsageError, match="width 23"):
        again(image[:, :23], text)
    with pytest.raises(UsageError, match="do not suffice"):
        fit_aligner(image[:4], text[:4], np.ones(4))


# Folders


def test_a_captioner_is_what_its_files_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "one"
    (folder / "language").mkdir(parents=True)
    for name in ("captioner.json", "captioner.safetensors", "language/config.json"):
        (folder / name).write_bytes(name.encode() * 100)
    (folder / "report.json").write_text("no part of it")
    first = captioner_identity(folder)
    monkeypatch.setattr("noisycorr.caption.captioner.stored.PIECE", 7)
    assert captioner_identity(folder) == first, "in pieces of any size"
    os.utime(folder / "captioner.safetensors", (1, 1))
    (folder / "report.json").write_text("still none")
    shutil.copytree(folder, tmp_path / "two")
    assert {captioner_identity(folder), captioner_identity(tmp_path / "two")} == {first}
    seen = {first}
    for name in ("captioner.json", "captioner.safetensors", "language/config.json"):
        body = (folder / name).read_bytes()
        (folder / name).write_bytes(body[:-1] + b"x")
        os.utime(folder / name, (1, 1))
        seen.add(captioner_identity(folder))
    (folder / "language" / "config.json").rename(folder / "language" / "tokenizer.json")
    assert len(seen | {captioner_identity(folder)}) == 5


def test_saved_and_loaded(taught: CaptionTraining, tmp_path: Path):
    image = world().valid_image
    taught.trained.level, taught.trained.decode = 1, Decode(beams=2)
    taught.trained.save_pretrained(tmp_path)
    again = load_captioner(tmp_path)
    assert again.write(image).texts == taught.trained.write(image).texts
    assert again.levels == taught.trained.levels and again.decode == Decode(beams=2) and again.level == 1
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    with pytest.raises(UsageError, match="no finished captioner"):
        load_captioner(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LevelChoice(levels=1), "expected 2 to 64"),
        (lambda: LevelChoice(level_by="truth_wrong"), "expected none, p_clean or"),
        (lambda: LevelChoice(bins="odd"), "expected one of"),  # type: ignore[arg-type]
        (lambda: LevelChoice(level_dropout=1.0), "less than 1"),
        (lambda: Teach(keep_fraction="0"), "auto or a share"),
        (lambda: Teach(keep_fraction="much"), "auto or a number"),
        (lambda: Teach(weight_by="truth_wrong"), "expected p_clean"),
        (lambda: Teach(draw_by="truth_wrong"), "expected p_clean"),
        (lambda: Design(width=10, attention_heads=4), "no multiple"),
        (lambda: Design(longest=3), "at least 4"),
        (lambda: CaptionTrain(warmup=2), "share in 0 to 1"),
        (lambda: Decode(samples=-1), "at least 0"),
        (lambda: Decode(align_weight=float("inf")), "a million"),
        (lambda: Decode(top_p=0), "share in"),
        (lambda: Held(guidances="x"), "numbers between commas"),
        (lambda: Held(guidances="-1"), "0 or more"),
        (lambda: open_small(dataclasses.replace(world(), texts=[""] * 120)), "0 training pairs"),
        (lambda: open_small(dataclasses.replace(world(), valid_texts=[" "] * 20)), "no validation pair"),
        (lambda: open_small(level_by="score_other"), "no such column"),
        (
            lambda: open_class(world(), recipe(level_by="none", guidances=(1.0,))),
            "`guidances` 1 leaves no way to write",
        ),
    ],
)
def test_wrong_choices(make, said: str):
    with pytest.raises(UsageError, match=said):
        make()
