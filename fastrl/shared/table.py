"""The shared table: every field of a transition, declared once, and its memory in two banks.

The environment, the policy and the algorithm declare fields. Shared memory, rollouts, the finite
check and the samplers iterate over them. Axes are T (time within a rollout), B (slots, one per
environment) and K (segments of a rollout, of L steps each: K = T / L). Workers fill one bank while
the learner uses the other.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from fastrl.errors import ConfigError, FastrlError
from fastrl.shared.memory import Shared, SharedArrays, align, array_tensor
from fastrl.spaces import TensorSpec, unflatten
from fastrl.spec import ACTION_MASK, LOG_PROB_AND_VALUE, EnvSpec

NUM_BANKS = 2


class Axes(Enum):
    """Leading axes of a field."""

    TIME_PLUS_ONE = "T+1, B"
    TIME = "T, B"
    SEGMENT = "K+1, B"
    SLOT = "B"


class Stage(IntEnum):
    """Stages of a step, in the order in which fields are written.

    Env workers write ``OBSERVED`` and ``STEPPED``, policy runners ``ACTED`` and ``VALUED``, each
    only in its own slots.
    """

    OBSERVED = 0
    ACTED = 1
    STEPPED = 2
    VALUED = 3


@dataclass(frozen=True)
class Field:
    """One field of a transition.

    Attributes:
        name: Name of the field, an attribute of `Rollout`.
        axes: Leading axes of the field.
        spec: Trailing shape, and dtype; by leaf path for a field that is nested like a space.
        stage: Stage of a step in which it is written, which determines the kind of worker.
        where: Flags; the field is written in steps with one of them set, and other rows hold
            arbitrary numbers. Empty for a field that is written in every step.
        space: Space that defines its nesting in a `Rollout`; None for a single tensor.
        in_rollout: Whether it is part of a `Rollout`.
        stride: L: steps of a segment, for ``Axes.SEGMENT``.
    """

    name: str
    axes: Axes
    spec: TensorSpec | Mapping[str, TensorSpec]
    stage: Stage
    where: tuple[str, ...] = ()
    space: spaces.Space[Any] | None = None
    in_rollout: bool = True
    stride: int = 1

    @property
    def leaves(self) -> Mapping[str, TensorSpec]:
        """Specs of its tensors by leaf path; the path of a single tensor is empty."""
        return {"": self.spec} if isinstance(self.spec, TensorSpec) else self.spec

    def shape(self, spec: TensorSpec, rollout_length: int, num_slots: int) -> tuple[int, ...]:
        """Return the full shape of a tensor of the field with the given trailing shape."""
        leading = {
            Axes.TIME_PLUS_ONE: (rollout_length + 1, num_slots),
            Axes.TIME: (rollout_length, num_slots),
            Axes.SEGMENT: (rollout_length // self.stride + 1, num_slots),
            Axes.SLOT: (num_slots,),
        }[self.axes]
        return leading + spec.shape

    def nested(self, value: Any) -> Any:
        """Nest the field like its space.

        Args:
            value: A tensor, or a mapping from leaf path to tensor.
        """
        return value if self.space is None else unflatten(self.space, value)


class BadNumber(NamedTuple):
    """A number that is not finite, or a mask without a valid action.

    Attributes:
        field: Name of the field, with the leaf of its space.
        where: Step, slot, and indices within the slot.
        value: NaN or an infinity; None for a mask without a valid action.
        stage: Stage in which the field is written.
    """

    field: str
    where: tuple[int, ...]
    value: float | None
    stage: Stage

    def __str__(self) -> str:
        """Describe the number or the mask."""
        return f"{self.field} " + ("allows no action" if self.value is None else f"is {self.value}")


class Schema:
    """Every field of a transition, in the order of memory.

    Args:
        env_spec: Declares observations and actions.
        outputs: Outputs of the policy; see `fastrl.spec.outputs_of`.
        wanted: Optional fields that the algorithm requests: ``final_observation`` of every step
            in which an episode ended.
        state_size: S: numbers of the policy's state, see `PolicyModel`; 0 without a memory.
        sequence_length: L: the rollout contains the state before every L-th step; L divides its
            length.

    Attributes:
        env_spec: As given.
        outputs: As given.
        state_size: As given.
        sequence_length: As given.
        fields: The fields by name.

    Raises:
        ConfigError: Two fields have the same name, a name is not an identifier, an output cannot
            be stored, or a wanted field does not exist.
    """

    def __init__(
        self,
        env_spec: EnvSpec,
        outputs: Mapping[str, TensorSpec] = LOG_PROB_AND_VALUE,
        wanted: Iterable[str] = (),
        state_size: int = 0,
        sequence_length: int = 1,
    ) -> None:
        self.env_spec, self.outputs = env_spec, dict(outputs)
        self.state_size, self.sequence_length = state_size, sequence_length
        self.fields: dict[str, Field] = {}
        wanted = set(wanted)
        for name in sorted(wanted - {"final_observation"}):
            raise ConfigError(
                f"there is no optional field '{name}'; a learner may use final_observation"
            )
        for field in (
            *_environment_fields(env_spec, keep_final="final_observation" in wanted),
            *_policy_fields(env_spec, self.outputs),
            *_state_fields(state_size, sequence_length),
        ):
            self._add(field)

    def _add(self, field: Field) -> None:
        name = field.name
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
            raise ConfigError(f"a field must be named by a public identifier, got '{name}'")
        if name in self.fields or name in _RESERVED:
            raise ConfigError(f"the name '{name}' is taken by another field; choose another name")
        self.fields[name] = field

    def __iter__(self) -> Iterator[Field]:
        """Iterate over the fields."""
        return iter(self.fields.values())

    def tensors(self, values: Mapping[str, Any]) -> Iterator[tuple[Field, str, Tensor]]:
        """Yield (field, label for messages, tensor) of each leaf of the given values.

        Args:
            values: By field name a tensor, or a mapping from leaf path to tensor.
        """
        for field in self:
            value = values.get(field.name, {})
            leaves = {"": value} if isinstance(value, Tensor) else value
            for leaf, tensor in leaves.items():
                yield field, f"{field.name}/{leaf}".rstrip("/"), tensor

    def numbers(self, values: Mapping[str, Any]) -> Iterator[tuple[Field, str, Tensor]]:
        """Yield those floats of `tensors` that are written in every step, ``[T or T+1, B, *]``.

        Final observations are not among them: if they are not finite, neither is ``final_value``.
        """
        for field, label, tensor in self.tensors(values):
            if tensor.is_floating_point() and not field.where:
                yield field, label, tensor[None] if field.axes is Axes.SLOT else tensor

    def first_bad_number(self, values: Mapping[str, Any]) -> BadNumber | None:
        """Return the bad number among `numbers` that may have caused all others, or None.

        It is the one of the earliest step, and of the earliest stage within that step.
        """
        found = []
        for field, label, tensor in self.numbers(values):
            bad = tensor.isfinite().logical_not()
            if bad.any():
                row, *rest = where = tuple(bad.nonzero()[0].tolist())
                step = row * field.stride if field.axes is Axes.SEGMENT else row
                found.append(BadNumber(label, (step, *rest), tensor[where].item(), field.stage))
        valid = self.has_valid(values)
        if valid is not None and not valid.all():
            where = tuple(valid.logical_not().nonzero()[0].tolist())
            label = f"observation/{self.env_spec.action_mask}"
            found.append(BadNumber(label, where, None, Stage.OBSERVED))
        return min(found, key=lambda bad: (bad.where[0], bad.stage), default=None)

    def has_valid(self, values: Mapping[str, Any]) -> Tensor | None:
        """Return ``[T+1, B] bool``: True if an action is valid; None without masks."""
        path = self.env_spec.action_mask
        return None if path is None else self.env_spec.has_valid(values["observation"][path])

    @property
    def has_value(self) -> bool:
        """Whether the policy returns the value of an observation."""
        return "value" in self.outputs

    @property
    def keeps_final_observations(self) -> bool:
        """Whether every final observation has a row; otherwise each slot has one for the latest."""
        return self.fields["final_observation"].axes is Axes.TIME

    @property
    def num_tensors(self) -> int:
        """Number of tensors of all fields."""
        return sum(len(field.leaves) for field in self)


_RESERVED = {
    *("fields", "episodes", "index", "restarted", "slots", "counted_steps", "num_steps"),
    *(ACTION_MASK, "policy_lag"),
}
"""Other attributes of a `Rollout`, and fields that training adds."""
_ENDS = ("terminated", "truncated")
_SCALAR = TensorSpec((), torch.float32)
_FLAG = TensorSpec((), torch.bool)


def _environment_fields(env_spec: EnvSpec, *, keep_final: bool) -> Iterator[Field]:
    """Yield the fields of the environment; for ``keep_final`` see `keeps_final_observations`."""
    observation, space = env_spec.observation, env_spec.observation_space
    stepped, final_axes = Stage.STEPPED, Axes.TIME if keep_final else Axes.SLOT
    yield Field("observation", Axes.TIME_PLUS_ONE, observation, Stage.OBSERVED, space=space)
    yield Field(
        "final_observation", final_axes, observation, stepped, _ENDS, space, in_rollout=keep_final
    )
    yield Field("reward", Axes.TIME, _SCALAR, stepped)
    yield Field("terminated", Axes.TIME, _FLAG, stepped)
    yield Field("truncated", Axes.TIME, _FLAG, stepped)
    if env_spec.episode_info:
        infos = TensorSpec((len(env_spec.episode_info),), torch.float32)
        # `Episodes.info` holds them by name.
        yield Field("episode_info", Axes.TIME, infos, stepped, _ENDS, in_rollout=False)
    for name, spec in env_spec.extras.items():
        yield Field(name, Axes.TIME, spec, stepped)


def _policy_fields(env_spec: EnvSpec, outputs: Mapping[str, TensorSpec]) -> Iterator[Field]:
    """Yield the fields of the policy and those that depend on them."""
    acted = Stage.ACTED
    yield Field("action", Axes.TIME, env_spec.action, acted, space=env_spec.action_space)
    for name, spec in outputs.items():
        # The last observation of a rollout has a value, too.
        yield Field(name, Axes.TIME_PLUS_ONE if name == "value" else Axes.TIME, spec, acted)
    if "value" in outputs:
        yield Field("final_value", Axes.TIME, outputs["value"], Stage.VALUED)
    yield Field("policy_version", Axes.TIME, TensorSpec((), torch.int64), acted)


def _state_fields(state_size: int, sequence_length: int) -> Iterator[Field]:
    """Yield the state of a policy with a memory.

    Row k is the state before step k · L, reset if an episode begins there; row K is the state with
    which the next rollout begins.
    """
    if state_size:
        spec = TensorSpec((state_size,), torch.float32)
        yield Field("policy_state", Axes.SEGMENT, spec, Stage.ACTED, stride=sequence_length)


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
    """The places of a rollout's tensors within the bytes of a bank.

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
    """The shared table: `NUM_BANKS` banks of the fields of a schema, and data outside of the banks.

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
        """Size of the whole table in bytes."""
        return self._memory.num_bytes

    def memory(self, bank: int) -> NDArray[np.uint8]:
        """Return the bytes of a bank, see `Layout`."""
        memory: NDArray[np.uint8] = self._memory.arrays[0][bank]
        return memory

    def live_state(self, bank: int, t: int) -> Tensor:
        """Return the policy's states ``[B, S] float32`` before step t of a bank's rollout.

        They are not reset. Two halves are used in turn, so t + 1 is in the other half; the next
        rollout begins with T + 1. Written by policy runners, see `fastrl.workers.policy_runner`.
        """
        return self._live[(bank * (self.rollout_length + 1) + t) % 2]

    def poison(self, bank: int) -> None:
        """Fill a bank with values that no worker writes, so that unwritten elements can be found.

        The last observations are not changed: in asynchronous mode the next rollout may still have
        to copy them.
        """
        for field, _, tensor in self.schema.tensors(self.banks[bank].fields):
            target = tensor[:-1] if field.stage is Stage.OBSERVED else tensor
            target.fill_(_poison_of(tensor.dtype))

    def check_no_poison(self, bank: int) -> None:
        """Reject a sealed bank with unwritten elements of a float or int64 field.

        The poison of other dtypes is a legal value.

        Raises:
            FastrlError: An element is unwritten; the error names the field and the first position.
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
