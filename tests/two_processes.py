"""Run by torchrun: what two processes find, for the tests that they equal one. All in one launch, because it is slow.

torchrun two_processes.py FOLDER CASE...
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from noisycorr.models.training.loop import backward, fit
from noisycorr.retrieval.strategies import load_strategy
from noisycorr.retrieval.testing import outcome
from noisycorr.runtime import dist

sys.path += [str(place) for place in sorted(Path(__file__).parent.iterdir()) if place.is_dir()]

OPTIONS: dict[str, dict[str, object]] = {"bicro": {"noisy_from": 0.0}}
NETWORKS = ("tuned", "sgr", "saf", "gpo")
CLASSES = "classes-"  # before the name of a method that learns from labels


def found(case: str, place: Path) -> dict[str, Tensor]:
    """Gradients and running statistics after one batch, and the weights after a whole training.

    Args:
        case: A strategy on stored features, one of `NETWORKS` with the strategy plain, or `classes-METHOD`.
        place: Folder of the pictures or regions.
    """
    if case.startswith(CLASSES):
        import webly_data

        return webly_data.found(case.removeprefix(CLASSES))
    if case == "captioner":
        return _captioner()
    if case not in NETWORKS:
        return outcome(load_strategy(case, OPTIONS.get(case)))
    if case == "tuned":
        import test_tuned

        from noisycorr.models.training.tune_choice import Tune

        one = test_tuned.learner(place / "tuned", model_precision="fp64", tune=Tune(train_part="lora", workers=0))
    else:
        import test_regions

        one = test_regions.learner(place / "regions", case, model_precision="fp64", dropout=0.3)
    backward(one, 0, torch.arange(9), None, None)
    network = one.networks[0]
    dist.average_gradients([p for p in network.parameters() if p.requires_grad])
    result = {f"gradient of {name}": p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    result |= {f"buffer {name}": value.clone() for name, value in network.named_buffers() if "running" in name}
    one.optimizer.zero_grad()
    fit(one)
    return result | one.weights()


def _captioner() -> dict[str, Tensor]:
    """With dropout, hidden levels and pictures, and weights."""
    import numpy as np
    from caption_data import open_small

    from noisycorr.caption.captioner import train

    changes = {"model_precision": "fp64", "weight_by": "p_clean", "image_dropout": 0.2, "dropout": 0.2, "epochs": 1}
    trainer = open_small(**changes).trainer
    train.backward(trainer, np.arange(0, 90, 2))
    dist.average_gradients(trainer.parameters)
    own = trainer.network.named_parameters()
    result = {f"gradient of {name}": p.grad.clone() for name, p in own if p.grad is not None}
    trainer.optimizer.zero_grad()
    train.fit(trainer)
    return result | trainer.snapshot()


def main(place: Path, cases: list[str]) -> None:
    """Write `CASE.RANK.safetensors` to the folder."""
    torch.set_num_threads(1)
    assert dist.count() == 2
    for case in cases:
        tensors = {name: value.detach().clone().contiguous() for name, value in found(case, place).items()}
        save_file(tensors, place / f"{case}.{dist.rank()}.safetensors")
    dist.wait()
    dist.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
