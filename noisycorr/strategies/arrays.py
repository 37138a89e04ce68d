"""Rectified labels are made of arrays, batches of tensors: the way there and back, without gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def on_arrays(function: Callable[..., np.ndarray], *values: Tensor, **options: Any) -> Tensor:
    """What a function of arrays makes of tensors, as a tensor like the first of them.

    Args:
        function: From arrays to one array.
        values: Its arguments, in at least single precision.
        options: Its further arguments, as they are.
    """
    found = function(*(value.detach().cpu().numpy() for value in values), **options)
    return torch.from_numpy(np.ascontiguousarray(found)).to(values[0].device, values[0].dtype)
