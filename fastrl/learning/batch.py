"""A rollout as rows of transitions, on the device that learns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastrl.errors import ConfigError

_ALIGNMENT = 64


@dataclass(frozen=True)
class Experience:
    """A rollout as an algorithm prepares it; all tensors are where the rollout is.

    ``experience["reward"]`` is a field by its name.

    Attributes:
        observation: Per leaf ``[T+1, B, *shape]``.
        action: Per leaf ``[T, B, *shape]``.
        fields: The rollout's other fields by name, ``[T, B, *]`` or ``[T+1, B, *]``; those that
            are nested like the observation, by ``name/leaf``. The rewards are those that are learnt
            from: scaled and normalised.
        device: Where gradients are computed.
    """

    observation: Mapping[str, Tensor]
    action: Mapping[str, Tensor]
    fields: Mapping[str, Tensor]
    device: torch.device

    def __getitem__(self, name: str) -> Tensor:
        """Return a field."""
        return _field(self.fields, name)

    def batch(self, transfer: Transfer, prepared: Mapping[str, Tensor]) -> Batch:
        """Return the rollout as rows, on the learner's device.

        Fields that do not have a row for every step are left out.

        Args:
            transfer: Brings them there.
            prepared: ``[T, B, *]`` by name: further fields, or others for some.

        Raises:
            ConfigError: A prepared field has other leading axes.
        """
        length, slots = self.fields["reward"].shape
        every_step = [(length, slots), (length + 1, slots)]
        fields = {k: v for k, v in self.fields.items() if v.shape[:2] in every_step}
        fields |= prepared
        for name, field in prepared.items():
            if field.shape[:2] != (length, slots):
                raise ConfigError(
                    f"the algorithm's field '{name}' must be [T, B, …] = [{length}, {slots}, …], "
                    f"got {list(field.shape)}"
                )
        groups = (self.observation, self.action, fields)
        leaves = [leaf[:length].flatten(0, 1) for group in groups for leaf in group.values()]
        moved = iter(transfer(leaves))
        observation, action, fields = ({name: next(moved) for name in group} for group in groups)
        return Batch(observation, action, fields, self.device)


@dataclass(frozen=True)
class Batch:
    """N = T · B transitions; row t · B + b is slot b at time t.

    Attributes:
        observation: Per leaf ``[N, *shape]``.
        action: Per leaf ``[N, *shape]``.
        fields: By name ``[N, *]``: what the rollout holds of each step, and what the algorithm has
            prepared.
        device: Where all of it is.
    """

    observation: Mapping[str, Tensor]
    action: Mapping[str, Tensor]
    fields: Mapping[str, Tensor]
    device: torch.device

    def __len__(self) -> int:
        """Return N."""
        return len(next(iter(self.fields.values())))


NO_BATCH = Batch({}, {}, {}, torch.device("cpu"))
"""What a gradient engine holds between two rollouts."""


class Minibatch:
    """Some rows of a `Batch`; each field is gathered when it is first read.

    ``minibatch["advantage"]`` is a field ``[n, *]``.

    Attributes:
        index: ``[n] int64``: which rows.
        scheduled: The numbers of `Algorithm.schedules` at this point of the run; tensors ``[]``
            where the loss is compiled, so that it is compiled once for all.

    Args:
        batch: What they are rows of.
        index: See the attribute.
        scheduled: See the attribute.
        own: Fields ``[n, *]`` of these rows, which replace the batch's.
    """

    def __init__(
        self,
        batch: Batch,
        index: Tensor,
        scheduled: Mapping[str, float | Tensor],
        own: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.index, self.scheduled = index, scheduled
        self._batch, self._own = batch, dict(own or {})
        self._spaces: dict[str, dict[str, Tensor]] = {}

    @property
    def observation(self) -> dict[str, Tensor]:
        """Per leaf ``[n, *shape]``."""
        return self._leaves("observation", self._batch.observation)

    @property
    def action(self) -> dict[str, Tensor]:
        """Per leaf ``[n, *shape]``."""
        return self._leaves("action", self._batch.action)

    def __getitem__(self, name: str) -> Tensor:
        """Return a field ``[n, *]``."""
        if name not in self._own:
            self._own[name] = _field(self._batch.fields, name).index_select(0, self.index)
        return self._own[name]

    def __len__(self) -> int:
        """Return n."""
        return len(self.index)

    def _leaves(self, space: str, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if space not in self._spaces:
            self._spaces[space] = {k: v.index_select(0, self.index) for k, v in leaves.items()}
        return self._spaces[space]


def _field(fields: Mapping[str, Tensor], name: str) -> Tensor:
    try:
        return fields[name]
    except KeyError:
        raise ConfigError(
            f"the rollout has no field '{name}'; there are {', '.join(sorted(fields))}"
        ) from None


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
