"""Demonstrations as tensors, checked against the environment that learns from them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from fastrl.arguments import brief, instance, whole
from fastrl.config import Config
from fastrl.datasets.files import DatasetFiles, local_dataset, open_dataset
from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.errors import ArgumentError, ConfigError, FastrlError
from fastrl.spaces import TensorSpec, flatten, leaves, outside
from fastrl.spec import EnvSpec

HELD_OUT = "held_out"
"""Field ``[T, B] bool`` of a rollout of demonstrations: rows that are only evaluated, but not
learnt from."""
_NUMBER, _FLAG = TensorSpec((), torch.float32), TensorSpec((), torch.bool)


@dataclass(frozen=True)
class Demonstrations:
    """The N steps of E consecutive episodes.

    Attributes:
        env_spec: The environment, or the spaces of the dataset.
        observation: Per leaf ``[N, *shape]``, with a mask of valid actions if there is one; see
            `EnvSpec.split_mask`.
        action: Per leaf ``[N, *shape]``, as a policy samples it; see
            `fastrl.spaces.action_specs`.
        reward: ``[N] float32``.
        terminated: ``[N] bool``: only true in the last step of an episode; earlier marks in
            files are ignored.
        final_observation: Per leaf ``[E, *shape]``: observation after the last step of each
            episode.
        lengths: ``[E] int64``: steps of each episode.
        fields: ``[N, *]`` by name: the requested fields.
    """

    env_spec: EnvSpec
    observation: Mapping[str, Tensor]
    action: Mapping[str, Tensor]
    reward: Tensor
    terminated: Tensor
    final_observation: Mapping[str, Tensor]
    lengths: Tensor
    fields: Mapping[str, Tensor]

    def __len__(self) -> int:
        """Return N."""
        return len(self.reward)

    @cached_property
    def ends(self) -> Tensor:
        """``[E] int64``: the row of the last step of each episode."""
        return self.lengths.cumsum(0) - 1

    @cached_property
    def truncated(self) -> Tensor:
        """``[N] bool``: the last step of each episode that did not terminate."""
        ended = torch.zeros_like(self.terminated)
        ended[self.ends] = True
        return ended & ~self.terminated

    @cached_property
    def episode(self) -> Tensor:
        """``[N] int64``: the episode of each row."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths)

    @cached_property
    def returns(self) -> Tensor:
        """``[E] float64``: undiscounted sum of rewards of each episode."""
        totals = torch.zeros(len(self.lengths), dtype=torch.float64)
        return totals.index_add(0, self.episode, self.reward.double())

    @cached_property
    def next_observation(self) -> dict[str, Tensor]:
        """Per leaf ``[N, *shape]``: the observation after each step."""
        following = {path: leaf.roll(-1, 0) for path, leaf in self.observation.items()}
        for path, leaf in following.items():
            leaf[self.ends] = self.final_observation[path]
        return following


def load_demonstrations(
    path: str | Path,
    env_spec: EnvSpec | None = None,
    *,
    episodes: int | None = None,
    action_bounds: ActionBounds = "clip",
    fields: Collection[str] = (),
    key: str = "dataset",
) -> Demonstrations:
    """Read a whole dataset in Minari's format into memory.

    Args:
        path: Directory of the dataset, or a directory of several parts.
        env_spec: The environment, whose spaces the dataset must have; by default those of
            the dataset.
        episodes: Number of episodes, from the first; by default all.
        action_bounds: ``clip`` or ``squash``: the learner's conversion of bounded ``Box`` actions.
        fields: Names of infos to read, with a number in every step.
        key: Key or argument that names the dataset, for errors.

    Raises:
        ConfigError: There is no dataset, or it is damaged, has other spaces (the error lists the
            differences), has fewer episodes, or lacks a field.
        SpaceError: A space is not supported.
    """
    return concatenated(list(_episodes(path, env_spec, episodes, action_bounds, fields, key)))


def check_dataset(
    path: str | Path,
    env_spec: EnvSpec | None = None,
    *,
    episodes: int | None = None,
    action_bounds: ActionBounds = "clip",
    key: str = "dataset",
) -> None:
    """Read all episodes of a dataset, and raise an error for the first invalid one.

    Args:
        path: As for `load_demonstrations`.
        env_spec: As for `load_demonstrations`.
        episodes: As for `load_demonstrations`.
        action_bounds: As for `load_demonstrations`.
        key: As for `load_demonstrations`.

    Raises:
        ConfigError: As for `load_demonstrations`.
        SpaceError: As for `load_demonstrations`.
    """
    for _ in _episodes(path, env_spec, episodes, action_bounds, (), key):
        pass


def _episodes(
    path: str | Path,
    env_spec: EnvSpec | None,
    episodes: int | None,
    action_bounds: ActionBounds,
    fields: Collection[str],
    key: str,
) -> Iterator[Demonstrations]:
    """Yield each episode that has steps, after a check of the spaces and of its numbers."""
    if episodes is not None:
        whole("episodes", episodes)
    if env_spec is not None:
        instance("env_spec", env_spec, EnvSpec)
    if isinstance(fields, str) or not isinstance(fields, Collection):
        raise ArgumentError(f"fields must be a list of names, got {brief(fields)}")
    for name in fields:
        instance("a name of fields", name, str)
    files, what = open_dataset(path, key), f"{key}: '{path}'"
    found = spec_of(files)
    if env_spec is not None and (differences := space_differences(found, env_spec)):
        raise ConfigError(f"{what} is not of '{env_spec.id}': {'; '.join(differences)}")
    _require_episodes(files.num_episodes, episodes, what)
    spec, number_read = env_spec or found, 0
    reader = _Reader(spec, ActionConverter(spec.action_space, action_bounds), tuple(fields))
    for number, episode in enumerate(files.episodes()):
        try:
            one = reader.read(episode) if len(episode["rewards"]) else None
        except (FastrlError, TypeError, ValueError, KeyError, IndexError) as error:
            raise ConfigError(f"{key}: episode {number} of '{files.path}': {error}") from error
        if one is not None:
            yield one
            number_read += 1
        if number_read == episodes:
            return
    _require_episodes(number_read, episodes, what)


def _require_episodes(found: int, wanted: int | None, what: str) -> None:
    if found < (wanted or 1):
        expected = "at least one" if wanted is None else f"{wanted}"
        raise ConfigError(f"{what} has {found} episodes; {expected} expected")


def spec_of(files: DatasetFiles) -> EnvSpec:
    """Return the spaces of a dataset as those of an environment."""
    env_id = str(files.metadata.get("fastrl_env") or files.metadata.get("dataset_id") or files.path)
    return EnvSpec(env_id, files.observation_space, files.action_space)


def space_differences(found: EnvSpec, wanted: EnvSpec, what: str = "dataset") -> list[str]:
    """Return how the spaces of a dataset differ from those of an environment, one text for each.

    Numbers of different types are equal if they are stored in the same way. Bounds of observations
    may differ.

    Args:
        found: Spaces of the dataset.
        wanted: Spaces of the environment.
        what: Name of the dataset in the texts.
    """
    differences = []
    for kind in ("observation", "action"):
        ours, theirs = (leaves(getattr(spec, f"{kind}_space")) for spec in (wanted, found))
        stored, stored_there = getattr(wanted, kind), getattr(found, kind)
        for path in dict.fromkeys((*ours, *theirs)):
            name = f"{kind} '{path}'" if path else kind
            if path not in theirs:
                differences.append(f"the {what} has no {name}, {brief(ours[path])}")
            elif path not in ours:
                differences.append(f"the environment has no {name}, {brief(theirs[path])}")
            elif stored[path] != stored_there[path] or not _alike(
                ours[path], theirs[path], with_bounds=kind == "action"
            ):
                differences.append(
                    f"{name} is {brief(theirs[path])}, the environment's {brief(ours[path])}"
                )
    return differences


def _alike(one: spaces.Space[Any], other: spaces.Space[Any], *, with_bounds: bool) -> bool:
    """Return whether two leaves that are stored in the same way have the same values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        return not with_bounds or (
            np.allclose(one.low, other.low) and np.allclose(one.high, other.high)
        )
    names = ("n", "nvec", "start")
    return all(np.array_equal(getattr(one, name, 0), getattr(other, name, 0)) for name in names)


class _Reader:
    """Checks episodes of minari and turns them into tensors."""

    def __init__(self, spec: EnvSpec, converter: ActionConverter, fields: tuple[str, ...]) -> None:
        self._spec, self._converter, self._fields = spec, converter, fields

    # The check of all numbers reports those that overflow.
    @np.errstate(over="ignore", invalid="ignore")
    def read(self, episode: Mapping[str, Any]) -> Demonstrations:
        """Return an episode of L > 0 steps."""
        spec, length = self._spec, len(episode["rewards"])
        known = leaves(spec.observation_space)
        observed = flatten(spec.observation_space, episode["observations"])
        observation = {}
        for (path, stored), leaf in zip(spec.observation.items(), observed, strict=True):
            label = f"observation/{path}".rstrip("/")
            array = _rows(leaf, length + 1, label, stored)
            space = known[path]
            if not isinstance(space, spaces.Box) and (wrong := outside(space, array)).any():
                raise ConfigError(f"{label}: {array[wrong].flat[0]} is not one of {space}")
            observation[path] = _finite(label, array.astype(stored.numpy_dtype, copy=False))
        acted = [
            _rows(leaf, length, f"action/{path}".rstrip("/"), stored)
            for (path, stored), leaf in zip(
                spec.action.items(), flatten(spec.action_space, episode["actions"]), strict=True
            )
        ]
        sampled = zip(spec.action, self._converter.sampled(tuple(acted)), strict=True)
        terminated = torch.zeros(length, dtype=torch.bool)
        terminated[-1] = bool(_rows(episode["terminations"], length, "terminations", _FLAG)[-1])
        reward = _rows(episode["rewards"], length, "reward", _NUMBER).astype(np.float32)
        found = Demonstrations(
            env_spec=spec,
            observation={path: leaf[:-1] for path, leaf in observation.items()},
            action={path: _finite(f"action/{path}".rstrip("/"), row) for path, row in sampled},
            reward=_finite("reward", reward),
            terminated=terminated,
            final_observation={path: leaf[-1:] for path, leaf in observation.items()},
            lengths=torch.tensor([length]),
            fields={
                name: _finite(f"fields/{name}", self._info(episode, name, length))
                for name in self._fields
            },
        )
        _check_masks(found)
        return found

    def _info(self, episode: Mapping[str, Any], name: str, length: int) -> NDArray[Any]:
        info: Any = episode.get("infos") or {}
        for part in name.split("/"):
            info = info.get(part) if isinstance(info, Mapping) else None
        array = np.asarray(info)
        if info is None or array.dtype.kind not in "biuf" or array.ndim == 0:
            raise ConfigError(f"infos have no numbers '{name}'")
        # The first row of L + 1 is that of the reset.
        return _rows(array[1:] if len(array) == length + 1 else array, length, name)


def _rows(values: Any, length: int, label: str, stored: TensorSpec | None = None) -> NDArray[Any]:
    """Return the numbers of all steps: floats as they are, others in the dtype of ``stored``.

    Raises:
        ConfigError: They have another shape, are no numbers, or do not fit that dtype.
    """
    array = np.asarray(values)
    expected = (length, *(array.shape[1:] if stored is None else stored.shape))
    if array.shape != expected or array.dtype.kind not in "biuf":
        raise ConfigError(
            f"{label} has the shape {array.shape} of {array.dtype}; expected {expected}"
        )
    if stored is None or stored.dtype.is_floating_point or array.dtype == stored.numpy_dtype:
        return array
    rows = array.astype(stored.numpy_dtype)
    if (wrong := rows != array).any():
        raise ConfigError(f"{label}: {array[wrong].flat[0]} does not fit {rows.dtype}")
    return rows


def _finite(label: str, array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor.

    Raises:
        ConfigError: A number is not finite.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ConfigError(f"{label} has a number that is not finite")
    return torch.from_numpy(np.array(array))


def concatenated(parts: Sequence[Demonstrations]) -> Demonstrations:
    """Return the steps of all parts, one part after the other."""

    def group(name: str) -> Mapping[str, Tensor]:
        groups = [getattr(part, name) for part in parts]
        return {key: torch.cat([each[key] for each in groups]) for key in groups[0]}

    return Demonstrations(
        env_spec=parts[0].env_spec,
        observation=group("observation"),
        action=group("action"),
        reward=torch.cat([part.reward for part in parts]),
        terminated=torch.cat([part.terminated for part in parts]),
        final_observation=group("final_observation"),
        lengths=torch.cat([part.lengths for part in parts]),
        fields=group("fields"),
    )


def are_allowed(spec: EnvSpec, action: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Return flags of the actions that their masks allow, ``[n] bool``.

    Args:
        spec: Spaces of the environment.
        action: Per leaf ``[n, *shape]``, as a policy samples it.
        mask: ``[n, choices] bool``.
    """
    chosen = [
        action[path].flatten(1) if leaf.shape else action[path][:, None]
        for path, leaf in leaves(spec.action_space).items()
        if isinstance(leaf, spaces.Discrete | spaces.MultiDiscrete)
    ]
    sizes = torch.tensor(spec.choices)
    columns = torch.cat(chosen, 1) + sizes.cumsum(0) - sizes
    return mask.gather(1, columns).all(1)


def _check_masks(found: Demonstrations) -> None:
    """Reject an episode with an action that its own mask forbids, which has no likelihood.

    Raises:
        ConfigError: There is one; the error names the first such step.
    """
    _, mask = found.env_spec.split_mask(found.observation)
    if mask is None:
        return
    allowed = are_allowed(found.env_spec, found.action, mask)
    if not allowed.all():
        step = int((~allowed).nonzero()[0])
        raise ConfigError(f"action of step {step} is invalid by its mask")


def load_dataset(config: Config, env_spec: EnvSpec) -> Demonstrations:
    """Return the demonstrations of the section ``dataset``, checked.

    Args:
        config: A configuration with that section.
        env_spec: The environment, whose spaces the dataset must have.

    Raises:
        ConfigError: There is no dataset, or it does not match the environment.
    """
    path, episodes, key = named_dataset(config)
    return load_demonstrations(
        path, env_spec, episodes=episodes, action_bounds=config.env.action_bounds, key=key
    )


def named_dataset(config: Config) -> tuple[Path, int | None, str]:
    """Return the path of the dataset, its number of episodes, and the key that names it.

    Raises:
        ConfigError: The configuration names none, or its id cannot be found.
    """
    section = config.dataset
    if section is None:
        raise ConfigError("dataset: must name demonstrations, got null")
    key = "dataset.id" if section.path is None else "dataset.path"
    path = local_dataset(section.id or "", key) if section.path is None else Path(section.path)
    return path, section.episodes, key
