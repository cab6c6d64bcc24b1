"""Minibatches by shuffled flat index."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastrl.errors import ConfigError


def minibatches(
    num_transitions: int,
    minibatch_size: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    sequence_length: int = 1,
    num_slots: int = 1,
) -> Iterator[Tensor]:
    """Yield the indices ``[n] int64`` of each minibatch of one epoch, every transition once.

    Index t · B + b stands for slot b at time t: a row of a ``[T, B, *]`` tensor after
    ``flatten(0, 1)``. The last minibatch is smaller where the sizes do not divide. With sequences
    of L steps whole segments are shuffled; see `segment_rows`.

    Args:
        num_transitions: T · B.
        minibatch_size: Transitions in each minibatch but the last.
        generator: On the CPU, so that all devices get the same order.
        device: Device of the indices.
        sequence_length: L, which divides T.
        num_slots: B; counts only where L is above 1.

    Raises:
        ConfigError: The size is not a multiple of L.
    """
    if minibatch_size % sequence_length:
        raise ConfigError(
            "algorithm.minibatch_size: must be a multiple of the sequences' length "
            f"({sequence_length}), got {minibatch_size}"
        )
    order = torch.randperm(num_transitions // sequence_length, generator=generator)
    for segments in order.to(device).split(minibatch_size // sequence_length):
        yield segment_rows(segments, sequence_length, num_slots)


def segment_rows(segments: Tensor, sequence_length: int, num_slots: int) -> Tensor:
    """Return the rows of segments of a rollout, ``[L, b]`` flattened.

    Args:
        segments: ``[b] int64``: k · B + s is the segment of slot s that begins at time k · L.
        sequence_length: L.
        num_slots: B.
    """
    if sequence_length == 1:
        return segments
    first = segments.div(num_slots, rounding_mode="floor") * (sequence_length - 1) * num_slots
    times = torch.arange(sequence_length, device=segments.device)
    return (first + segments + times[:, None] * num_slots).flatten()
