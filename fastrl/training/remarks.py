"""Remarks: settings that are seldom intended, and signs that a run does not learn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from fastrl.arguments import brief
from fastrl.config import Config, PPOConfig
from fastrl.envs.action_masks import SOURCES
from fastrl.learning.schedules import SCHEDULED, Schedules
from fastrl.models.images import describe_images
from fastrl.spaces import flatten, leaves
from fastrl.spec import EnvSpec

GUIDE = "docs/guide/not_learning.md"

_PATIENCE = 10
"""Consecutive rows of metrics that must show a sign before it is reported."""
_UNEXPLAINED = 0.05
_DWARFED = 1000.0
_MISFIT = 30.0
"""Largest ratio between an action range and the first standard deviation, and the reverse."""
_UNBOUNDED = 1e30
"""Larger bounds count as unbounded."""
_FAR = 1e4
"""Smaller observations have enough digits in float32."""
_FEW_STEPS = 32
"""An observation with fewer distinct float32 values than this is coarse."""
_DECIDES_ACTIONS = (
    ("env", "action_bounds"),
    ("env", "wrappers"),
    ("model", "activation"),
    ("model", "image_layout"),
    ("model", "log_std_bounds"),
    ("model", "kwargs"),
)
"""Keys that change the actions of the same parameters."""


def remarks(
    config: Config, env_spec: EnvSpec, trained_with: Config | None = None, steps: int = 0
) -> Iterator[str]:
    """Yield a line for each guess of fastrl, and each setting that is seldom intended.

    Args:
        config: Configuration of the run.
        env_spec: Spaces of its environment.
        trained_with: Its earlier configuration, if it was trained before.
        steps: Environment steps that it has learnt from.
    """
    if config.model.class_path is None:
        yield from describe_images(env_spec.input_space, config.model)
        is_new = trained_with is None and config.init_from is None
        if config.env.action_bounds == "clip" and is_new:
            yield from _misfitting_actions(env_spec, math.exp(config.model.log_std_init))
    yield from _masks(env_spec)
    transitions = config.sampler.rollout_length * config.topology.num_envs
    algorithm = config.algorithm
    if isinstance(algorithm, PPOConfig) and algorithm.minibatch_size > transitions:
        yield (
            f"algorithm.minibatch_size ({algorithm.minibatch_size:,}) is more than the "
            f"{transitions:,} transitions of a rollout: every epoch is one gradient step"
        )
    has_own_loss = algorithm.import_path is not None  # and may read them
    if config.dataset is not None and not (algorithm.needs_dataset or has_own_loss):
        yield f"dataset has no effect: {algorithm.name} learns from no demonstrations"
    yield from _statistics(env_spec)
    if trained_with is not None:
        yield from _changes(trained_with, config)
        yield from _jumps(config, trained_with.total_steps, steps)


def coarse_observations(observation: Any, env_spec: EnvSpec) -> Iterator[str]:
    """Yield a line for each leaf whose values are so far from 0 that float32 loses differences.

    Args:
        observation: Observation of a rollout, nested like the space; leaves ``[T+1, B, *shape]``.
        env_spec: Spaces of the environment.
    """
    space = env_spec.observation_space
    for (path, leaf), rows in zip(leaves(space).items(), flatten(space, observation), strict=True):
        if not isinstance(leaf, spaces.Box) or np.can_cast(leaf.dtype, np.float32, "safe"):
            continue
        low, high = (
            each.cpu().double().numpy() for each in torch.aminmax(rows.flatten(0, 1), dim=0)
        )
        with np.errstate(all="ignore"):  # the finite check reports infinities
            size = np.maximum(np.abs(low), np.abs(high))
            step = np.spacing(size.astype(np.float32))
            spread = high - low
        # Equal values may be constants, unless float32 dropped all their fractions.
        is_coarse = (size >= _FAR) & (spread < _FEW_STEPS * step) & ((spread > 0) | (step > 1))
        if is_coarse.any():
            near, apart = max(zip(size[is_coarse], step[is_coarse], strict=True))
            yield (
                f"observations{_of(path)} hold numbers of about {near:,.0f}, which float32 tells "
                f"apart in steps of {apart:g}: smaller changes are lost; subtract an offset in a "
                "wrapper (model.normalize_observations comes after that)"
            )


def _misfitting_actions(env_spec: EnvSpec, std: float) -> Iterator[str]:
    """Yield a line for each Box that the first actions, of mean 0 and this std, do not explore."""
    for path, leaf in leaves(env_spec.action_space).items():
        if not isinstance(leaf, spaces.Box):
            continue
        low, high = leaf.low.astype(np.float64), leaf.high.astype(np.float64)
        bounded = (low > -_UNBOUNDED) & (high < _UNBOUNDED)
        width = np.where(bounded, high - low, np.nan)
        wide = width > 2 * _MISFIT * std
        clipped = (width < std / _MISFIT) | (bounded & (np.maximum(low, -high) > 3 * std))
        for misfit, problem in (
            (clipped, "nearly all of these are clipped to a bound"),
            (wide & ~clipped, "hardly any of that range is tried"),
        ):
            if misfit.any():
                bounds = f"{low[misfit][0]:g} to {high[misfit][0]:g}"
                yield (
                    f"actions{_of(path)} range from {bounds}, and the first ones of the policy "
                    f"have a standard deviation of {std:g}: {problem}; try "
                    f"env.action_bounds=squash, see {GUIDE}"
                )


def _masks(env_spec: EnvSpec) -> Iterator[str]:
    if env_spec.action_mask is not None and env_spec.mask_source is not None:
        yield (
            f"masks of valid actions come from {SOURCES[env_spec.mask_source]}; "
            "env.action_mask=off ignores them"
        )


def _statistics(env_spec: EnvSpec) -> Iterator[str]:
    for name in dict.fromkeys(env_spec.running_statistics):
        instead = "model.normalize_observations=true or algorithm.normalize_rewards=true"
        if "obs" in name.lower():
            instead = "model.normalize_observations=true"
        elif "reward" in name.lower():
            instead = "algorithm.normalize_rewards=true"
        yield (
            f"{name} keeps running statistics, which are neither shared between workers and "
            f"evaluations nor saved in checkpoints; those of {instead} are"
        )


def _changes(before: Config, now: Config) -> Iterator[str]:
    for section, key in _DECIDES_ACTIONS:
        old, new = (getattr(getattr(config, section), key) for config in (before, now))
        if old != new:
            yield (
                f"{section}.{key}: the policy was trained with {brief(old)} until now, and "
                f"its actions change with {brief(new)}"
            )


def _jumps(config: Config, old_end: int, steps: int) -> Iterator[str]:
    """Yield a line if scheduled values jump up because ``total_steps`` has changed."""
    before = Schedules(config.model_copy(update={"total_steps": old_end}))
    now = Schedules(config)
    section = config.algorithm
    names = [
        name for name, key in SCHEDULED.items() if hasattr(section, name) and hasattr(section, key)
    ]
    jumps = [
        f"algorithm.{name} from {old:.3g} to {new:.3g}"
        for name in names
        if (new := now.at(name, steps)) > (old := before.at(name, steps))
    ]
    if jumps:
        yield (
            f"total_steps is {config.total_steps:,} and was {old_end:,}: schedules go by the new "
            f"end, and {', '.join(jumps)} {'jump' if len(jumps) > 1 else 'jumps'} up"
        )


def _of(path: str) -> str:
    return f" '{path}'" if path else ""


class LearningSigns:
    """Reports, once each, signs in the metrics that a policy does not learn.

    Args:
        value_coef: ``algorithm.value_coef``.
        is_body_shared: Whether policy and value share a body, where a large value loss dominates.
    """

    def __init__(self, value_coef: float, is_body_shared: bool) -> None:
        self._value_coef, self._is_body_shared = value_coef, is_body_shared
        self._unexplained = self._dwarfed = 0

    def found_in(self, row: Mapping[str, float]) -> Iterator[str]:
        """Yield a line for every sign that ten consecutive rows of training metrics have shown."""
        explained = row.get("explained_variance", math.nan)
        self._unexplained = self._unexplained + 1 if explained < _UNEXPLAINED else 0
        if self._unexplained == _PATIENCE:
            yield (
                f"explained_variance stays below {_UNEXPLAINED} ({explained:.2g}): the value "
                f"function does not predict the returns; see {GUIDE}"
            )
        value_loss = self._value_coef * row.get("value_loss", math.nan)
        policy_loss = max(abs(row.get("policy_loss", math.nan)), 1e-3)
        is_dwarfed = self._is_body_shared and value_loss > _DWARFED * policy_loss
        self._dwarfed = self._dwarfed + 1 if is_dwarfed else 0
        if self._dwarfed == _PATIENCE:
            yield (
                f"the value loss is {value_loss / policy_loss:,.0f} times the policy loss, and "
                f"both train one body: try model.shared_body=false or "
                f"algorithm.normalize_rewards=true; see {GUIDE}"
            )
