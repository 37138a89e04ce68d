"""What PC2 tells each epoch: classes in use, AUC of the probe and of known truth, and how near borrowed texts are."""

from __future__ import annotations

import numpy as np
from test_strategies_borrow import ready

from noisycorr.models.training.loop import Hooks, fit
from noisycorr.retrieval.fit import watch_truth
from noisycorr.stats.detection import auroc

TOLD = ("classes_in_use", "oscillation_auc", "partner_fit")


def test_each_epoch_after_the_warm_up_tells_what_the_parts_know():
    one, wrong = ready()
    fit(one, Hooks(watch=watch_truth(wrong.astype(np.int8)), watches=True))
    first, *later = one.cursor.history
    assert not any(name.startswith(TOLD) for name in first)
    for record in later:
        for name in (f"{name}_{number}" for name in TOLD for number in (0, 1)):
            assert np.isfinite(record[name]), name
        assert 1 <= record["classes_in_use_0"] <= 8
        for number in (0, 1):
            assert 0 <= record[f"auroc_loss_oscillation_{number}"] <= 1
            assert 0 <= record[f"auroc_p_clean_{number}"] <= 1
        off = record["oscillation_auc_0"] < 0.6
        assert off == ("oscillation tells known wrong classes" in record.get("note_0", ""))


def test_the_auc_with_truth_is_that_of_the_oscillation():
    one, wrong = ready()
    seen: list[tuple[float, float]] = []
    told = watch_truth(wrong.astype(np.int8))

    def watch(number, signals, trust):  # type: ignore[no-untyped-def]
        found = told(number, signals, trust)
        seen.append((found["auroc_loss_oscillation"], auroc(-signals["loss_oscillation"], wrong)))
        return found

    fit(one, Hooks(watch=watch, watches=True))
    assert len(seen) == 8 and all(a == b for a, b in seen)
