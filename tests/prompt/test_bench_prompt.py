"""`noisycorr bench prompt`: methods as they are typed, what a seed draws, known noise, tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from noisycorr.prompt.bench import Bench, BenchSet, draw_task, make_wrong, parse_method, tables
from noisycorr.prompt.choice import Context, Rounds, Steps
from noisycorr.prompt.inputs import Images
from noisycorr.prompt.select import Selected
from noisycorr.runtime.errors import UsageError

N = 100


def one_set() -> BenchSet:
    truth = np.arange(N) % 5
    images = Images(runs=[], keys=[str(row) for row in range(N)], hashes=[None] * N, texts=[None] * N,
                    features=np.ones((N, 2), np.float32), is_test=np.arange(N) >= 80)  # fmt: skip
    return BenchSet(name="five", images=images, names=list("abcde"), truth=truth, joint=torch.ones(N, 2))


def method(spec: str):
    return parse_method(spec, Context(), Rounds(), Steps())


def test_options_of_a_method_go_where_they_belong():
    found = method("prompt+strategy=fpl+context=shared+loss=ce+shots=2+wrong=0.4")
    assert (found.rounds.strategy, found.context.context, found.steps.loss) == ("fpl", "shared", "ce")
    assert (found.shots, found.wrong, found.seen) == (2, 0.4, False)
    for spec in ("best", "prompt+lr", "prompt+colour=red", "labels", "prompt+loss=mse"):
        with pytest.raises(UsageError):
            method(spec)
    with pytest.raises(UsageError, match="NAME=SOURCE"):
        Bench(sets="caltech")
    with pytest.raises(UsageError, match="whole numbers"):
        Bench(sets="a=b", seeds="x")


def test_a_seed_draws_pool_labels_and_seen_classes():
    data = one_set()
    task = draw_task(data, method("prompt+shots=2"), 0)
    assert len(task.unlabelled) + len(task.labelled) == 64 and not task.held[task.unlabelled].any()
    assert (task.label[task.labelled] == data.truth[task.labelled]).all()
    assert (np.bincount(task.label[task.labelled]) == 2).all()
    assert (draw_task(data, method("prompt"), 1).usable != task.usable).any()
    seen = draw_task(data, method("prompt+seen=true"), 0)
    assert seen.seen.sum() == 3 and set(data.truth[seen.unlabelled]) == set(np.flatnonzero(~seen.seen))


def test_exactly_the_share_is_made_wrong():
    label = np.arange(50) % 4
    one = np.zeros(50, np.float32)
    found = make_wrong(4, 0.4, 0, Selected(rows=np.arange(50), label=label, probability=one, rank=label))
    assert (found.label != label).sum() == 20 and set(found.label) <= set(range(4))


def test_tables_say_mean_deviation_and_seeds_that_gain():
    rows = [{"set": "five", "method": "prompt", "seed": seed, "before": 0.5, "after": value, "gain": value - 0.5,
             "poor": 0.1, "rich": 0.0, "harmonic": 0.4, "harmonic_before": 0.3}
            for seed, value in ((0, 0.6), (1, 0.4))]  # fmt: skip
    text = tables(rows)
    assert "| prompt | 50.0 ± 14.1 (1/2) | +0.0 | +10.0 / +0.0 |" in text
    assert "| prompt | 40.0 ± 0.0 (30.0) |" in text
