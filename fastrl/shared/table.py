"""The shared table: two banks, one is filled while the learner uses the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastrl.errors import FastrlError
from fastrl.shared.memory import Shared, SharedArrays, align, array_tensor
from fastrl.shared.schema import Axes, BadNumber, Schema, Stage
from fastrl.spaces import TensorSpec

NUM_BANKS = 2


class FieldAccess:
    """Fields that are also attributes.

    Attributes:
        fields: By name, in the order of the schema.
    """

    fields: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        """Return a field.

        Raises:
            AttributeError: There is no such field.
        """
        fields = vars(self).get("fields", {})  # absent while an object is unpickled
        if name in fields:
            return fields[name]
        kind = type(self).__name__
        raise AttributeError(f"{kind} has no field '{name}'; it has {', '.join(fields)}")


class Bank(FieldAccess):
    """All fields of one rollout, as views of shared memory.

    A field is a tensor, or a mapping from leaf path to tensor if it is nested like a space.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields


class Layout:
    """Where the tensors of a rollout lie within the bytes of a bank.

    Attributes:
        schema: As given.
        num_bytes: Size of a bank.

    Args:
        schema: The fields.
        rollout_length: T.
        num_slots: B.
    """

    def __init__(self, schema: Schema, rollout_length: int, num_slots: int) -> None:
        self.schema, self._num_slots = schema, num_slots
        self._tensors: list[tuple[torch.dtype, tuple[int, ...], int]] = []
        self._leading: list[int] = []
        self.num_bytes = 0
        for field in schema:
            for spec in field.leaves.values():
                shape = field.shape(spec, rollout_length, num_slots)
                self._tensors.append((spec.dtype, shape, self.num_bytes))
                self._leading.append(1 if field.axes is Axes.SLOT else shape[0])
                self.num_bytes = align(self.num_bytes + math.prod(shape) * spec.dtype.itemsize)

    def bank(self, memory: NDArray[np.uint8]) -> Bank:
        """Return the fields of a bank as views of ``memory [num_bytes]``."""
        tensors = (array_tensor(memory, *each) for each in self._tensors)
        return Bank(
            {
                field.name: next(tensors)
                if isinstance(field.spec, TensorSpec)
                else {leaf: next(tensors) for leaf in field.leaves}
                for field in self.schema
            }
        )

    def rows(self, memory: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """Yield a view ``[steps, B, bytes of a row]`` of each tensor; a field of slots has 1 step.

        Args:
            memory: ``[num_bytes]``: a bank.
        """
        for (dtype, shape, start), leading in zip(self._tensors, self._leading, strict=True):
            num_bytes = math.prod(shape) * dtype.itemsize
            width = num_bytes // (leading * self._num_slots)
            yield memory[start : start + num_bytes].reshape(leading, self._num_slots, width)


class Table(Shared):
    """The shared table: `NUM_BANKS` banks of the fields of a schema, and what no bank holds.

    Attributes:
        banks: The fields of one rollout each.
        begins: ``[NUM_BANKS, B]`` bool: the first step of the bank's rollout begins an episode of
            a new environment, as `Rollout.restarted`; written by env workers.

    Args:
        schema: The fields.
        rollout_length: T.
        num_slots: B.
    """

    def __init__(self, schema: Schema, rollout_length: int, num_slots: int) -> None:
        self.schema = schema
        self.rollout_length = rollout_length
        self.num_slots = num_slots
        self._layout = Layout(schema, rollout_length, num_slots)
        banks = ((NUM_BANKS, self._layout.num_bytes), np.uint8)
        live = ((2, num_slots, schema.state_size), np.float32)
        self._memory = SharedArrays([banks, live, ((NUM_BANKS, num_slots), np.bool_)])
        self._share()

    @property
    def num_bytes(self) -> int:
        """Size of all of it."""
        return self._memory.num_bytes

    def memory(self, bank: int) -> NDArray[np.uint8]:
        """Return the bytes of a bank, see `Layout`."""
        memory: NDArray[np.uint8] = self._memory.arrays[0][bank]
        return memory

    def live_state(self, bank: int, t: int) -> Tensor:
        """Return the policy's states ``[B, S] float32`` before step t of a bank's rollout.

        They are as the step before left them, not reset. There are two halves in turn, so that of
        the next step, t + 1, is another; with T + 1 the next rollout begins. Written by policy
        runners, see `fastrl.workers.policy_runner`.
        """
        return self._live[(bank * (self.rollout_length + 1) + t) % 2]

    def poison(self, bank: int) -> None:
        """Fill a bank with values that no worker writes, so that unwritten elements can be found.

        It leaves the last observations: in asynchronous mode the next rollout may not have copied
        them yet.
        """
        for field, _, tensor in self.schema.tensors(self.banks[bank].fields):
            target = tensor[:-1] if field.stage is Stage.OBSERVED else tensor
            target.fill_(_poison_of(tensor.dtype))

    def check_no_poison(self, bank: int) -> None:
        """Reject a sealed bank with unwritten elements of a float or int64 field.

        The poison of other dtypes is a legal value.

        Raises:
            FastrlError: Names the field and its first unwritten position.
        """
        for field, name, tensor in self.schema.tensors(self.banks[bank].fields):
            is_float = tensor.is_floating_point()
            if field.where or not (is_float or tensor.dtype == torch.int64):
                continue
            unwritten = tensor.isnan() if is_float else tensor == _POISON_INT
            if unwritten.any():
                first = tuple(unwritten.nonzero()[0].tolist())
                raise FastrlError(f"field '{name}' was never written at {first} (axes T, B, …)")

    def first_bad_number(self, bank: int) -> BadNumber | None:
        """Return the NaN or infinity in a sealed bank that may have caused all others, or None."""
        return self.schema.first_bad_number(self.banks[bank].fields)

    def is_finite(self, bank: int, slots: slice) -> bool:
        """Return whether `first_bad_number` finds nothing in some slots of a bank."""
        spec, fields = self.schema.env_spec, self.banks[bank].fields
        if spec.action_mask is not None:
            mask = fields["observation"][spec.action_mask].numpy()[:, slots]
            if not spec.has_valid(mask).all():
                return False
        return all(
            np.isfinite(part).all()
            for _, _, tensor in self.schema.numbers(fields)
            for part in _parts(tensor.numpy()[:, slots])
        )

    def _attach(self) -> None:
        self.banks = [self._layout.bank(self.memory(index)) for index in range(NUM_BANKS)]
        _, live, self.begins = self._memory.arrays
        self._live = torch.from_numpy(live)


def _parts(numbers: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield parts of ``[T, *]`` for which intermediate results fit into the cache."""
    steps = max(1, _AT_ONCE * len(numbers) // max(1, numbers.size))
    for t in range(0, len(numbers), steps):
        yield numbers[t : t + steps]


_AT_ONCE = 1 << 18
_POISON_INT = -(2**62)


def _poison_of(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point:
        return float("nan")
    if dtype == torch.bool:
        return True
    return _POISON_INT if dtype == torch.int64 else torch.iinfo(dtype).max
