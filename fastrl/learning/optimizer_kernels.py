"""Clipping and Adam over one vector of float32 on the CPU, one compiled call each.

For a small network torch's operations take some five times as long, most of it to start them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.jit import cached_njit

Floats = NDArray[np.floating[Any]]

# Sums in any order, and products added in one instruction: with both the compiler uses registers
# of several numbers. Numbers that are not finite stay so.
_FAST = {"reassoc", "contract"}


def _clip(gradient: Floats, max_norm: float) -> float:
    """Scale a gradient down to a Euclidean norm; return the norm it had.

    Args:
        gradient: ``[P] float32``, changed.
        max_norm: Infinite for no bound.
    """
    squares = np.float32(0.0)
    for i in range(len(gradient)):
        squares += gradient[i] * gradient[i]
    norm = math.sqrt(squares)
    # As torch.nn.utils.clip_grad_norm_ does.
    factor = np.float32(max_norm / (norm + 1e-6))
    if not factor >= 1:
        for i in range(len(gradient)):
            gradient[i] *= factor
    return norm


def _adam(
    value: Floats,
    gradient: Floats,
    mean: Floats,
    square: Floats,
    step: Floats,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Take a step of Adam (Kingma and Ba 2015, algorithm 1).

    Args:
        value: ``[P] float32``, changed.
        gradient: ``[P] float32``.
        mean: ``[P] float32``: first moment, changed.
        square: ``[P] float32``: second moment, changed.
        step: ``[1] float32``: steps taken so far, changed.
        rate: Learning rate.
        beta1: Decay of the first moment per step.
        beta2: Decay of the second.
        eps: Added to the root of the second moment.
    """
    step[0] += 1
    size = np.float32(rate / (1 - beta1 ** step[0]))
    root = np.float32(math.sqrt(1 - beta2 ** step[0]))
    keep1, keep2 = np.float32(1 - beta1), np.float32(beta2)
    add2, least = np.float32(1 - beta2), np.float32(eps)
    for i in range(len(value)):
        slope = gradient[i]
        mean[i] += keep1 * (slope - mean[i])
        square[i] = keep2 * square[i] + add2 * slope * slope
        value[i] -= size * mean[i] / (np.sqrt(square[i]) / root + least)


clip = cached_njit(_clip, fastmath=_FAST)
adam = cached_njit(_adam, fastmath=_FAST, error_model="numpy")
