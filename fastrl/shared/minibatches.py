"""Minibatches by shuffled flat index."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def minibatches(
    num_transitions: int,
    minibatch_size: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Yield the indices ``[n] int64`` of each minibatch of one epoch, every transition once.

    Index t · B + b stands for slot b at time t: a row of a ``[T, B, *]`` tensor after
    ``flatten(0, 1)``. The last minibatch is smaller where the sizes do not divide.

    Args:
        num_transitions: T · B.
        minibatch_size: Transitions in each minibatch but the last.
        generator: On the CPU, so that all devices get the same order.
        device: Where the indices are wanted.
    """
    order = torch.randperm(num_transitions, generator=generator)
    yield from order.to(device).split(minibatch_size)
