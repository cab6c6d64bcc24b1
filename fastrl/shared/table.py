"""The shared table in memory: two banks, one being filled while the other is learnt from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrl.errors import FastrlError
from fastrl.shared.finite import (
    BadNumber,
    FiniteCheck,
    first_cause,
    first_not_finite,
    is_finite,
)
from fastrl.shared.layout import Field, table_fields
from fastrl.shared.memory import SharedBlock, align
from fastrl.spec import EnvSpec

NUM_BANKS = 2


@dataclass(frozen=True)
class Bank:
    """All fields of one rollout in the making; tensors are views of shared memory.

    Attributes:
        observation: Per leaf ``[T+1, B, *shape]``.
        final_observation: Per leaf ``[B, *shape]``: the last observation of the latest episode.
        reward: ``[T, B]`` float32.
        terminated: ``[T, B]`` bool.
        truncated: ``[T, B]`` bool.
        action: Per leaf ``[T, B, *shape]``.
        log_prob: ``[T, B]`` float32.
        value: ``[T+1, B]`` float32.
        final_value: ``[T, B]`` float32: V(final observation) where truncated, else 0.
        policy_version: ``[T, B]`` int64.
        episode_info: ``[T, B, K]`` float32, written where an episode ended; None where the
            environment names no figures.
    """

    observation: dict[str, Tensor]
    final_observation: dict[str, Tensor]
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    action: dict[str, Tensor]
    log_prob: Tensor
    value: Tensor
    final_value: Tensor
    policy_version: Tensor
    episode_info: Tensor | None = None


class Table:
    """The shared table: `NUM_BANKS` banks of the fields of `fastrl.shared.layout`.

    Args:
        env_spec: Says the leaves of observations and actions.
        rollout_length: T.
        num_slots: B.
    """

    def __init__(self, env_spec: EnvSpec, rollout_length: int, num_slots: int) -> None:
        self.env_spec = env_spec
        self.rollout_length = rollout_length
        self.num_slots = num_slots
        self._fields = list(table_fields(env_spec))
        self._offsets = [0]
        for entry in self._fields:
            num_bytes = math.prod(self._shape(entry)) * entry.spec.dtype.itemsize
            self._offsets.append(align(self._offsets[-1] + num_bytes))
        self._block = SharedBlock(self._offsets[-1] * NUM_BANKS)
        self.banks = [self._bank(index) for index in range(NUM_BANKS)]

    @property
    def num_bytes(self) -> int:
        """Size of both banks."""
        return self._block.num_bytes

    def poison(self, bank: int) -> None:
        """Fill a bank with values that no worker writes, so that an unwritten read shows.

        The last observations are spared: in asynchronous mode the next rollout may still be
        taking them over.
        """
        for name, tensor in self._named(bank):
            spared = name.startswith("observation")
            (tensor[:-1] if spared else tensor).fill_(_poison_of(tensor.dtype))

    def check_no_poison(self, bank: int) -> None:
        """Refuse a sealed bank in which a field was not written.

        Only fields whose poison cannot be a legal value are looked at: float and int64 ones.

        Raises:
            FastrlError: Names the field and its first unwritten position.
        """
        for name, tensor in self._named(bank):
            if name.startswith(_SOMETIMES) or tensor.dtype not in _CHECKED:
                continue
            unwritten = tensor.isnan() if tensor.is_floating_point() else tensor == _POISON_INT
            if unwritten.any():
                first = tuple(unwritten.nonzero()[0].tolist())
                raise FastrlError(f"field '{name}' was never written at {first} (axes T, B, …)")

    def first_bad_number(self, bank: int) -> BadNumber | None:
        """Return the first NaN or infinity in a sealed bank; see `first_cause`.

        None if there is none. Final observations are left out: what is not finite of them shows
        in ``final_value``.
        """
        found = []
        for name, tensor in self._numbers(bank):
            numbers = tensor.numpy()
            if not is_finite(numbers):
                index = first_not_finite(numbers)
                found.append(BadNumber(name, index, float(numbers[index])))
        return first_cause(found)

    def finite_check(self, slots: slice) -> FiniteCheck:
        """Return a quick check, in some slots, of what `first_bad_number` looks at."""
        return FiniteCheck(
            [[tensor for _, tensor in self._numbers(bank)] for bank in range(NUM_BANKS)],
            slots,
        )

    def close(self) -> None:
        """Drop the memory's descriptor; views that are still held stay valid."""
        self._block.close()

    def __getstate__(self) -> dict[str, object]:
        """Travel without the views, which are rebuilt on the other side."""
        return {name: value for name, value in vars(self).items() if name != "banks"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Attach in a worker."""
        vars(self).update(state)
        self.banks = [self._bank(index) for index in range(NUM_BANKS)]

    def _shape(self, entry: Field) -> tuple[int, ...]:
        return entry.shape(self.rollout_length, self.num_slots)

    def _bank(self, index: int) -> Bank:
        start = index * self._offsets[-1]
        fields: dict[str, Any] = {}
        for entry, offset in zip(self._fields, self._offsets, strict=False):
            tensor = self._block.tensor(entry.spec.dtype, self._shape(entry), start + offset)
            if entry.nested:
                fields.setdefault(entry.name, {})[entry.leaf] = tensor
            else:
                fields[entry.name] = tensor
        return Bank(**fields)

    def _numbers(self, bank: int) -> Iterator[tuple[str, Tensor]]:
        """Yield the floats that every rollout has."""
        for name, tensor in self._named(bank):
            if tensor.is_floating_point() and not name.startswith(_SOMETIMES):
                yield name, tensor

    def _named(self, bank: int) -> Iterator[tuple[str, Tensor]]:
        for entry in self._fields:
            value = getattr(self.banks[bank], entry.name)
            label = f"{entry.name}/{entry.leaf}".rstrip("/")
            yield label, value[entry.leaf] if entry.nested else value


_SOMETIMES = ("final_observation", "episode_info")
"""Fields that are written only where an episode ended."""
_POISON_INT = -(2**62)
_CHECKED = (torch.float16, torch.float32, torch.int64)


def _poison_of(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point:
        return float("nan")
    if dtype == torch.bool:
        return True
    return _POISON_INT if dtype == torch.int64 else torch.iinfo(dtype).max
