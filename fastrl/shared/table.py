"""The shared table in memory: two banks, one being filled while the other is learnt from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
from fastrl.shared.memory import SharedBlock, align
from fastrl.shared.schema import Axes, Field, Schema, Stage
from fastrl.spaces import TensorSpec

NUM_BANKS = 2


class Fields:
    """What a bank or a rollout holds: by name in ``fields``, and as attributes.

    Attributes:
        fields: By name, in the order of the schema.
    """

    fields: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Return a field.

        Raises:
            AttributeError: There is no such field; names those that there are.
        """
        fields = vars(self).get("fields", {})  # absent while an object is unpickled
        if name in fields:
            return fields[name]
        kind = type(self).__name__
        raise AttributeError(f"{kind} has no field '{name}'; it has {', '.join(fields)}")


class Bank(Fields):
    """All fields of one rollout in the making; tensors are views of shared memory.

    A field that is nested like a space is a mapping from leaf path to tensor, others are tensors.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields


class Table:
    """The shared table: `NUM_BANKS` banks of the fields of a schema.

    Args:
        schema: The fields.
        rollout_length: T.
        num_slots: B.
    """

    def __init__(self, schema: Schema, rollout_length: int, num_slots: int) -> None:
        self.schema = schema
        self.rollout_length = rollout_length
        self.num_slots = num_slots
        self._offsets = [0]
        for _, spec, shape in self._tensors():
            num_bytes = math.prod(shape) * spec.dtype.itemsize
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
        for field, _, tensor in self._named(bank):
            spared = field.stage is Stage.OBSERVED
            (tensor[:-1] if spared else tensor).fill_(_poison_of(tensor.dtype))

    def check_no_poison(self, bank: int) -> None:
        """Refuse a sealed bank in which a field was not written.

        Only fields whose poison cannot be a legal value are checked: float and int64 ones.

        Raises:
            FastrlError: Names the field and its first unwritten position.
        """
        for field, name, tensor in self._named(bank):
            is_float = tensor.is_floating_point()
            if field.where or not (is_float or tensor.dtype == torch.int64):
                continue
            unwritten = tensor.isnan() if is_float else tensor == _POISON_INT
            if unwritten.any():
                first = tuple(unwritten.nonzero()[0].tolist())
                raise FastrlError(f"field '{name}' was never written at {first} (axes T, B, …)")

    def first_bad_number(self, bank: int) -> BadNumber | None:
        """Return the first NaN or infinity in a sealed bank; see `first_cause`.

        None if there is none. Final observations are left out: what is not finite of them shows
        in ``final_value``.
        """
        found = []
        for field, name, tensor in self._numbers(bank):
            numbers = tensor.numpy()
            if not is_finite(numbers):
                index = first_not_finite(numbers)
                found.append(BadNumber(name, index, float(numbers[index]), field.stage))
        return first_cause(found)

    def finite_check(self, slots: slice) -> FiniteCheck:
        """Return a quick check, in some slots, of what `first_bad_number` looks at."""
        return FiniteCheck(
            [[tensor for _, _, tensor in self._numbers(bank)] for bank in range(NUM_BANKS)],
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

    def _tensors(self) -> Iterator[tuple[Field, TensorSpec, tuple[int, ...]]]:
        """Yield field, trailing shape and full shape of every tensor, in their order in memory."""
        for field in self.schema:
            for spec in field.leaves.values():
                yield field, spec, field.shape(spec, self.rollout_length, self.num_slots)

    def _bank(self, index: int) -> Bank:
        start = index * self._offsets[-1]
        tensors = (
            self._block.tensor(spec.dtype, shape, start + offset)
            for (_, spec, shape), offset in zip(self._tensors(), self._offsets, strict=False)
        )
        return Bank(
            {
                field.name: next(tensors)
                if isinstance(field.spec, TensorSpec)
                else {leaf: next(tensors) for leaf in field.leaves}
                for field in self.schema
            }
        )

    def _numbers(self, bank: int) -> Iterator[tuple[Field, str, Tensor]]:
        """Yield the floats that every step has, ``[T or another, B, *]``."""
        for field, name, tensor in self._named(bank):
            if tensor.is_floating_point() and not field.where:
                yield field, name, tensor[None] if field.axes is Axes.SLOT else tensor

    def _named(self, bank: int) -> Iterator[tuple[Field, str, Tensor]]:
        """Yield field, label and tensor of everything in a bank."""
        for field in self.schema:
            for label, tensor in field.labelled(self.banks[bank].fields[field.name]):
                yield field, label, tensor


_POISON_INT = -(2**62)


def _poison_of(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point:
        return float("nan")
    if dtype == torch.bool:
        return True
    return _POISON_INT if dtype == torch.int64 else torch.iinfo(dtype).max
