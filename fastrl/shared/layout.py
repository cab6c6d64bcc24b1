"""THE table: every field that crosses a process boundary, its shape, its dtype and its one writer.

Axes are T (time within a rollout) and B (slots, one per environment).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch

from fastrl.spaces import TensorSpec
from fastrl.spec import EnvSpec


class Axes(Enum):
    """Leading axes of a field."""

    TIME_PLUS_ONE = "T+1, B"
    TIME = "T, B"
    SLOT = "B"


class Writer(Enum):
    """The only kind of worker that writes a field; each writes only its own slots."""

    ENV_WORKER = "env worker"
    MODEL_WORKER = "model worker"


@dataclass(frozen=True)
class Field:
    """One field of the table.

    Attributes:
        name: Name of the field.
        axes: Its leading axes.
        spec: Trailing shape, and dtype.
        writer: The kind of worker that writes it.
        leaf: Path within the space, for observations and actions.
        nested: Whether the field has one row per leaf of a space.
    """

    name: str
    axes: Axes
    spec: TensorSpec
    writer: Writer
    leaf: str = ""
    nested: bool = False

    def shape(self, rollout_length: int, num_slots: int) -> tuple[int, ...]:
        """Return the full shape for T = ``rollout_length`` and B = ``num_slots``."""
        leading = {
            Axes.TIME_PLUS_ONE: (rollout_length + 1, num_slots),
            Axes.TIME: (rollout_length, num_slots),
            Axes.SLOT: (num_slots,),
        }[self.axes]
        return leading + self.spec.shape


def table_fields(env_spec: EnvSpec) -> Iterator[Field]:
    """Yield every field of one bank, in the order in which they lie in memory."""
    scalar = TensorSpec((), torch.float32)
    flag = TensorSpec((), torch.bool)
    env, model = Writer.ENV_WORKER, Writer.MODEL_WORKER
    for leaf, spec in env_spec.observation.items():
        yield Field("observation", Axes.TIME_PLUS_ONE, spec, env, leaf, nested=True)
    for leaf, spec in env_spec.observation.items():
        yield Field("final_observation", Axes.SLOT, spec, env, leaf, nested=True)
    yield Field("reward", Axes.TIME, scalar, env)
    yield Field("terminated", Axes.TIME, flag, env)
    yield Field("truncated", Axes.TIME, flag, env)
    if env_spec.episode_info:
        figures = TensorSpec((len(env_spec.episode_info),), torch.float32)
        yield Field("episode_info", Axes.TIME, figures, env)
    for leaf, spec in env_spec.action.items():
        yield Field("action", Axes.TIME, spec, model, leaf, nested=True)
    yield Field("log_prob", Axes.TIME, scalar, model)
    yield Field("value", Axes.TIME_PLUS_ONE, scalar, model)
    yield Field("final_value", Axes.TIME, scalar, model)
    yield Field("policy_version", Axes.TIME, TensorSpec((), torch.int64), model)
