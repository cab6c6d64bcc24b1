"""Operations on tensors ``[*]`` for the dynamics of classic control.

The dynamics are written once, as tensor programs. `control_kernels` compiles the same source into
loops, in which `loop_ops` replaces this module: each quantity is then one environment's number,
float32. So `initial`, `transition` and `observe` of a task use only ``+ - * / abs < == | &`` and
these operations, and a constant with a float is a `number`, since the compiler would treat it
as a double. Results may differ by rounding: the loops fuse products with sums, and have their own
sine and cosine.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastrl.envs.tensor.base import columns

__all__ = ["clip", "columns", "cos", "sin", "where"]

sin, cos, where, clip = torch.sin, torch.cos, torch.where, torch.clamp


def number(value: Tensor | float) -> Any:
    """Return a constant or integers, which take on the dtype of the tensor that they meet."""
    return value


def only(action: Tensor) -> Tensor:
    """Return the only component of actions ``[*, 1]``."""
    return action[..., 0]


def sincos(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return sine and cosine of an angle in rad."""
    return torch.sin(angle), torch.cos(angle)


def filled(like: Tensor, value: float) -> Tensor:
    """Return one number for each environment, of the same dtype."""
    return torch.full_like(like, value)


def never(like: Tensor) -> Tensor:
    """Return False for each environment."""
    return torch.zeros_like(like, dtype=torch.bool)


def as_float(x: Tensor, like: Tensor) -> Tensor:
    """Return numbers or truth values in the dtype of a tensor."""
    return x.to(like.dtype)


def times_square(factor: Tensor | float, x: Tensor) -> Tensor:
    """Return ``factor * x²``, with the square rounded first, as in gymnasium."""
    return factor * x**2


def wrapped(angle: Tensor) -> Tensor:
    """Return the same angle within ± π, in rad; its gradient is 1."""
    return angle - 2 * math.pi * torch.round(angle / (2 * math.pi))


def uniform(noise: Tensor, index: int, low: Tensor, high: Tensor) -> Tensor:
    """Return numbers in [low, high), of column ``index`` of the noise ``[*, noise_size]``."""
    return low + (high - low) * noise[..., index].to(low.dtype)


def no_time(like: Tensor) -> Tensor:
    """Return the time at which an episode begins, ``[*]`` int32 of the same shape."""
    return torch.zeros_like(like, dtype=torch.int32)
