"""Run by torchrun, or alone: the gradient of one batch of a training, for the tests that two processes equal one.

python two_processes.py tuned|sgr|saf|gpo FOLDER OUT.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from noisycorr import dist


def main(kind: str, place: Path, out: Path) -> None:
    """Gradients and running statistics after one batch, and the weights after a whole training."""
    torch.set_num_threads(1)
    dist.state()
    if kind == "tuned":
        import test_tuned

        from noisycorr.learn.tune_choice import Tune

        one = test_tuned.learner(place, precision="fp64", tune=Tune(train_part="lora", workers=0))
    else:
        import test_regions

        one = test_regions.learner(place, kind, precision="fp64", dropout=0.3)
    from noisycorr.learn.loop import backward, fit

    backward(one, 0, torch.arange(9), None, None)
    network = one.networks[0]
    dist.average_gradients([p for p in network.parameters() if p.requires_grad])
    found = {f"gradient.{name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    found |= {f"buffer.{name}": value.clone() for name, value in network.named_buffers() if "running" in name}
    one.optimizer.zero_grad()
    fit(one)
    found |= {f"weight.{name}": value for name, value in one.weights().items()}
    if dist.is_main():
        save_file({name: value.detach().clone().contiguous() for name, value in found.items()}, out)
    dist.wait()
    dist.leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
