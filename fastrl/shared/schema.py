"""The schema: every field of a transition, declared once by the part that owns it.

The environment, the policy and the algorithm declare fields. Shared memory, rollouts, the finite
check and the samplers iterate over them.

Axes are T (time within a rollout), B (slots, one per environment) and K (segments of a rollout).
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from fastrl.errors import ConfigError
from fastrl.spaces import TensorSpec, unflatten
from fastrl.spec import LOG_PROB_AND_VALUE, EnvSpec


class Axes(Enum):
    """Leading axes of a field."""

    TIME_PLUS_ONE = "T+1, B"
    TIME = "T, B"
    SLOT = "B"
    SEGMENT = "K+1, B"


class Writer(Enum):
    """The only kind of worker that writes a field; each writes only its own slots."""

    ENV_WORKER = "env worker"
    MODEL_WORKER = "model worker"


class Stage(IntEnum):
    """When a field is written within a step; a bad number may come from an earlier stage."""

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
        writer: The kind of worker that writes it.
        stage: When it is written within a step.
        where: Flags of the steps in which it is written, one of which must be set. Other rows hold
            arbitrary numbers. Empty for a field that is written in every step.
        space: The space whose nesting it has in a `Rollout`; None for a single tensor.
        in_rollout: Whether a `Rollout` has it.
    """

    name: str
    axes: Axes
    spec: TensorSpec | Mapping[str, TensorSpec]
    writer: Writer
    stage: Stage
    where: tuple[str, ...] = ()
    space: spaces.Space[Any] | None = None
    in_rollout: bool = True

    @property
    def leaves(self) -> Mapping[str, TensorSpec]:
        """Its tensors by leaf path; the path of a single tensor is empty."""
        return {"": self.spec} if isinstance(self.spec, TensorSpec) else self.spec

    def shape(
        self, spec: TensorSpec, rollout_length: int, num_slots: int, num_segments: int = 1
    ) -> tuple[int, ...]:
        """Return the full shape of a tensor of the field.

        Args:
            spec: Trailing shape.
            rollout_length: T.
            num_slots: B.
            num_segments: K.
        """
        leading = {
            Axes.TIME_PLUS_ONE: (rollout_length + 1, num_slots),
            Axes.TIME: (rollout_length, num_slots),
            Axes.SLOT: (num_slots,),
            Axes.SEGMENT: (num_segments + 1, num_slots),
        }[self.axes]
        return leading + spec.shape

    def labelled(self, value: Any) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401
        """Yield the tensors of the field, each with what it is called in messages.

        Args:
            value: A tensor, or a mapping from leaf path to tensor.
        """
        for leaf in self.leaves:
            tensor = value if isinstance(self.spec, TensorSpec) else value[leaf]
            yield f"{self.name}/{leaf}".rstrip("/"), tensor

    def nested(self, value: Any) -> Any:  # noqa: ANN401
        """Nest the field like its space.

        Args:
            value: A tensor, or a mapping from leaf path to tensor.
        """
        return value if self.space is None else unflatten(self.space, value)


class Schema:
    """Every field of a transition, in the order in which they lie in memory.

    Args:
        env_spec: Declares what the environment observes and accepts.
        outputs: What the policy puts out beside actions, see `fastrl.spec.outputs_of`.
        wanted: Names of fields that only exist where an algorithm asks for them:
            ``final_observation``, of every step in which an episode ended.
        extras: Further fields.

    Attributes:
        env_spec: As given.
        outputs: As given.
        fields: The fields by name.

    Raises:
        ConfigError: Two fields have the same name, a name is no identifier, an output cannot be
            stored, or a wanted field does not exist.
    """

    def __init__(
        self,
        env_spec: EnvSpec,
        outputs: Mapping[str, TensorSpec] = LOG_PROB_AND_VALUE,
        wanted: Iterable[str] = (),
        extras: Iterable[Field] = (),
    ) -> None:
        self.env_spec, self.outputs = env_spec, dict(outputs)
        self.fields: dict[str, Field] = {}
        wanted = set(wanted)
        for name in sorted(wanted - {"final_observation"}):
            raise ConfigError(
                f"a learner cannot ask for the field '{name}'; it can for final_observation"
            )
        for field in (
            *_environment_fields(env_spec, keep_final="final_observation" in wanted),
            *_policy_fields(env_spec, self.outputs),
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

    @property
    def has_value(self) -> bool:
        """Whether the policy puts out the value of an observation."""
        return "value" in self.outputs

    @property
    def keeps_final_observations(self) -> bool:
        """Whether every final observation has its row; without, only the latest of a slot has."""
        return self.fields["final_observation"].axes is Axes.TIME

    @property
    def num_tensors(self) -> int:
        """Tensors of all fields."""
        return sum(len(field.leaves) for field in self)


_RESERVED = {"fields", "episodes", "index", "restarted", "num_steps"}
"""Names of what else a `Rollout` has."""
_ENDS = ("terminated", "truncated")
_SCALAR = TensorSpec((), torch.float32)
_FLAG = TensorSpec((), torch.bool)


def _environment_fields(env_spec: EnvSpec, *, keep_final: bool) -> Iterator[Field]:
    """Yield what the environment declares.

    Args:
        env_spec: Of the environment.
        keep_final: Every final observation of a rollout has a row of its own; without it, a slot
            has one row, for the latest.
    """
    env, space = Writer.ENV_WORKER, env_spec.observation_space
    observation, stepped = env_spec.observation, Stage.STEPPED
    yield Field("observation", Axes.TIME_PLUS_ONE, observation, env, Stage.OBSERVED, space=space)
    yield Field(
        "final_observation",
        Axes.TIME if keep_final else Axes.SLOT,
        observation,
        env,
        stepped,
        where=_ENDS,
        space=space,
        in_rollout=keep_final,
    )
    yield Field("reward", Axes.TIME, _SCALAR, env, stepped)
    yield Field("terminated", Axes.TIME, _FLAG, env, stepped)
    yield Field("truncated", Axes.TIME, _FLAG, env, stepped)
    if env_spec.episode_info:
        figures = TensorSpec((len(env_spec.episode_info),), torch.float32)
        # `Episodes.info` holds them by name.
        yield Field("episode_info", Axes.TIME, figures, env, stepped, where=_ENDS, in_rollout=False)
    for name, spec in env_spec.extras.items():
        yield Field(name, Axes.TIME, spec, env, stepped)


def _policy_fields(env_spec: EnvSpec, outputs: Mapping[str, TensorSpec]) -> Iterator[Field]:
    """Yield what the policy declares, and what follows from it."""
    model, acted = Writer.MODEL_WORKER, Stage.ACTED
    space = env_spec.action_space
    yield Field("action", Axes.TIME, env_spec.action, model, acted, space=space)
    for name, spec in outputs.items():
        # The last observation of a rollout is valued, too.
        axes = Axes.TIME_PLUS_ONE if name == "value" else Axes.TIME
        yield Field(name, axes, spec, model, acted)
    if "value" in outputs:
        yield Field("final_value", Axes.TIME, outputs["value"], model, Stage.VALUED)
    version = TensorSpec((), torch.int64)
    yield Field("policy_version", Axes.TIME, version, model, acted)
