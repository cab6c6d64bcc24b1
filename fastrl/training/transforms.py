"""Transforms: what changes rollouts between collecting and learning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fastrl.arguments import function
from fastrl.config import Config
from fastrl.shared.rollout_buffer import Rollout
from fastrl.training.extensions import CallbackError, Extensions, build, naming

Transform = Callable[[Rollout], Rollout]


def build_transforms(config: Config) -> Extensions[Transform]:
    """Return the transforms that a configuration names; they are built now.

    Raises:
        ConfigError: One cannot be imported, or cannot be called.
        CallbackError: One cannot be built.
    """
    transforms = build("transform", config.transforms)
    for transform in transforms:
        function("a transform", transform)
    return Extensions("transform", transforms)


def transformed(rollout: Rollout, transforms: Extensions[Transform]) -> Rollout:
    """Return a rollout after all transforms, in their order.

    Args:
        rollout: Of the sampler.
        transforms: See `build_transforms`.

    Raises:
        CallbackError: A transform raised, or returned something that cannot be learnt from.
    """
    for name, transform in transforms.by_name.items():
        with naming("transform", name, "its call"):
            found = transform(rollout)
        _check(name, rollout, found)
        rollout = found
    return rollout


def _check(name: str, before: Rollout, after: Any) -> None:  # noqa: ANN401
    """Reject anything but a rollout of the same size.

    Raises:
        CallbackError: Names the transform and the field.
    """
    if not isinstance(after, Rollout):
        raise CallbackError(
            f"transform '{name}' must return a Rollout, got a {type(after).__name__}; "
            "dataclasses.replace(rollout, reward=…) returns a changed one"
        )
    lost = [field for field in before.fields if field not in after.fields]
    if lost:
        raise CallbackError(f"transform '{name}' leaves out the field '{lost[0]}'")
    length, slots = before.reward.shape
    for field, value in after.fields.items():
        if field in before.fields:
            wanted, got = _described(before.fields[field]), _described(value)
            if wanted != got:
                raise CallbackError(f"transform '{name}': '{field}' must be {wanted}, got {got}")
        elif not isinstance(value, Tensor) or value.shape[:2] not in (
            (length, slots), (length + 1, slots)
        ):  # fmt: skip
            raise CallbackError(
                f"transform '{name}': the new field '{field}' must be a tensor [T, B, …] = "
                f"[{length}, {slots}, …] or [T + 1, B, …], got {_described(value)}"
            )


def _described(value: Any) -> str:  # noqa: ANN401
    """Return the dtypes and shapes of a field."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_described(each)}' for key, each in value.items())}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    return f"a {type(value).__name__}"
