"""The only file that knows about processes and devices: everything else asks here.

`accelerate launch`, `torchrun` or a plain start all work; the rank and world size come from Accelerate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import PartialState

Item = TypeVar("Item")


def state() -> PartialState:
    """Rank, world size and device of this process."""
    return PartialState()


def my_share(items: Sequence[Item]) -> list[Item]:
    """The items that this process works on: every world-size-th, starting at its rank."""
    here = state()
    return list(items[here.process_index :: here.num_processes])


def device() -> torch.device:
    """Where models of this process live."""
    return state().device


def is_main() -> bool:
    """True in the process that writes what exists once."""
    return bool(state().is_main_process)


def wait() -> None:
    """Return when every process has come here."""
    state().wait_for_everyone()
