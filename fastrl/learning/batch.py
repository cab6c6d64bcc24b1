"""A rollout as rows of transitions, on the device that learns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_ALIGNMENT = 64


@dataclass(frozen=True)
class Batch:
    """N = T · B transitions; row t · B + b is slot b at time t.

    Attributes:
        observation: Per leaf ``[N, *shape]``.
        action: Per leaf ``[N, *shape]``.
        columns: ``[N, 4] float32``; see `fastrl.learning.objective.COLUMNS`.
    """

    observation: dict[str, Tensor]
    action: dict[str, Tensor]
    columns: Tensor

    def __len__(self) -> int:
        """Return N."""
        return len(self.columns)


NO_BATCH = Batch({}, {}, torch.empty(0, 4))
"""What a gradient engine holds between two rollouts."""


class Transfer:
    """Brings the tensors of a rollout to a device in one copy.

    On the CPU nothing is copied, nor is what the device has sampled itself. Otherwise they are
    packed into page-locked memory, whose copy to the device does not wait for what the device is
    doing; the rollout's own memory is free afterwards. What is returned is overwritten by the next
    call.

    Args:
        device: Where to.
        staged: Whether to pack; by default wherever the device has a memory of its own.
    """

    def __init__(self, device: torch.device, staged: bool | None = None) -> None:
        self._device = device
        self._staged = device.type != "cpu" if staged is None else staged
        self._host = self._there = torch.empty(0, dtype=torch.uint8)

    def __call__(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return equal tensors on the device."""
        tensors = list(tensors)
        if not self._staged or all(tensor.device.type != "cpu" for tensor in tensors):
            # A rollout that was sampled on the device is there already.
            return tensors
        starts = [0]
        for tensor in tensors:
            num_bytes = tensor.numel() * tensor.element_size()
            starts.append(starts[-1] + math.ceil(num_bytes / _ALIGNMENT) * _ALIGNMENT)
        if len(self._host) < starts[-1]:
            pinned = self._device.type == "cuda"
            self._host = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pinned)
            self._there = torch.empty(starts[-1], dtype=torch.uint8, device=self._device)
        elif self._device.type == "cuda":
            # The copy before this one may still be reading the page-locked memory.
            torch.cuda.current_stream(self._device).synchronize()
        for tensor, start in zip(tensors, starts, strict=False):
            _view(self._host, start, tensor).copy_(tensor)
        self._there.copy_(self._host, non_blocking=True)
        return [
            _view(self._there, start, tensor)
            for tensor, start in zip(tensors, starts, strict=False)
        ]


def _view(memory: Tensor, start: int, like: Tensor) -> Tensor:
    num_bytes = like.numel() * like.element_size()
    return memory[start : start + num_bytes].view(like.dtype).view(like.shape)
