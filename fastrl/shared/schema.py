"""The schema declares every field of a transition once.

The environment, the policy and the algorithm declare fields. Shared memory, rollouts, the finite
check and the samplers iterate over them. Axes are T (time within a rollout), B (slots, one per
environment) and K (segments of a rollout, of L steps each: K = T / L).
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.errors import ConfigError
from fastrl.spaces import TensorSpec, unflatten
from fastrl.spec import ACTION_MASK, LOG_PROB_AND_VALUE, EnvSpec


class Axes(Enum):
    """Leading axes of a field."""

    TIME_PLUS_ONE = "T+1, B"
    TIME = "T, B"
    SEGMENT = "K+1, B"
    SLOT = "B"


class Stage(IntEnum):
    """When a field is written within a step; a bad number may come from an earlier stage.

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
        axes: Its leading axes.
        spec: Trailing shape, and dtype; by leaf path for a field that is nested like a space.
        stage: When, and by which kind of worker, it is written within a step.
        where: Flags; the field is written in steps with one of them set, and other rows hold
            arbitrary numbers. Empty for a field that is written in every step.
        space: The space whose nesting it has in a `Rollout`; None for a single tensor.
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
        """Its tensors by leaf path; the path of a single tensor is empty."""
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
    """A number that is not finite, or a mask that allows no action.

    Attributes:
        field: Name of the field, with the leaf of its space.
        where: Step, slot, and indices within the slot.
        value: NaN or an infinity; None for a mask without a valid action.
        stage: When the field is written within a step.
    """

    field: str
    where: tuple[int, ...]
    value: float | None
    stage: Stage

    def __str__(self) -> str:
        """Return what is wrong, in words."""
        return f"{self.field} " + ("allows no action" if self.value is None else f"is {self.value}")


class Schema:
    """Every field of a transition, in the order in which they lie in memory.

    Args:
        env_spec: Declares observations and actions.
        outputs: What the policy returns beside actions, see `fastrl.spec.outputs_of`.
        wanted: Optional fields that the algorithm asks for: ``final_observation``, of every step
            in which an episode ended.
        extras: Further fields.
        state_size: S: numbers of the policy's state, see `PolicyModel`; 0 without a memory.
        sequence_length: L: the rollout holds the state before every L-th step, which divides its
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
        extras: Iterable[Field] = (),
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
            *extras,
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

        That is the one of the earliest step, and within a step of the earliest stage.
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
        """Return ``[T+1, B] bool``: where an action is valid; None without masks."""
        path = self.env_spec.action_mask
        return None if path is None else self.env_spec.has_valid(values["observation"][path])

    @property
    def has_value(self) -> bool:
        """Whether the policy returns the value of an observation."""
        return "value" in self.outputs

    @property
    def keeps_final_observations(self) -> bool:
        """Whether every final observation has a row; otherwise a slot has one for the latest."""
        return self.fields["final_observation"].axes is Axes.TIME

    @property
    def num_tensors(self) -> int:
        """Tensors of all fields."""
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
    """Yield the fields of the policy and those that follow from them."""
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

    Row k is the state before step k · L, reset where an episode begins there; with row K the next
    rollout begins.
    """
    if state_size:
        spec = TensorSpec((state_size,), torch.float32)
        yield Field("policy_state", Axes.SEGMENT, spec, Stage.ACTED, stride=sequence_length)
