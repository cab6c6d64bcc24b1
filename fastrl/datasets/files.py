"""Files of datasets in Minari's format, written and read by the package minari."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.request import getproxies

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from fastrl.arguments import file_path, whole
from fastrl.durable import new_directory
from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.errors import ConfigError, cause, raised_as
from fastrl.imports import how_to_install
from fastrl.spaces import flatten, leaves, unflatten
from fastrl.spec import EnvSpec
from fastrl.system import sync

Arrays = Mapping[str, NDArray[Any]]
_HOST, _CONNECT_S = ("huggingface.co", 443), 10.0
_DATA = "data"
"""Subdirectory of the files in a dataset, as in Minari's own collection."""
_METADATA = "metadata.json"
_WHOLE_NAME = re.compile(r"[-_\w]+-v\d+")
_REQUIRED = ("observation_space", "action_space", "data_format", "total_episodes")
"""Entries of the metadata without which a dataset cannot be read."""
_MOST_METADATA_BYTES = 64 << 20


@dataclass(frozen=True)
class Episode:
    """One episode, or a part of one, of L steps.

    Attributes:
        observation: Per leaf ``[L + 1, *shape]``, the last one comes after the last step.
        action: Per leaf ``[L, *shape]``, as a policy samples it; see `fastrl.spaces.action_specs`.
        reward: ``[L] float32``.
        terminated: Whether the last step ended the episode in a terminal state.
        fields: Further numbers of each step, ``[L, *]`` by name.
    """

    observation: Arrays
    action: Arrays
    reward: NDArray[np.float32]
    terminated: bool
    fields: Arrays = field(default_factory=dict)

    def __len__(self) -> int:
        """Return L."""
        return len(self.reward)

    @property
    def num_bytes(self) -> int:
        """Size of all arrays."""
        groups = (self.observation, self.action, self.fields)
        return self.reward.nbytes + sum(array.nbytes for each in groups for array in each.values())


def check_new_dataset(path: str | Path) -> None:
    """Raise an error if a new dataset cannot be written to a directory.

    Raises:
        ConfigError: The directory exists, or minari is not installed.
    """
    _minari()
    path = file_path("path", path, "name a new directory for the dataset")
    if path.exists() or path.is_symlink():
        raise ConfigError(f"'{path}' exists already; name a new directory for the dataset")


class DatasetWriter:
    """Writes a new dataset, which is complete or absent; use it in a ``with`` block.

    Observations and actions have the dtypes of their spaces. Actions are those that the environment
    accepts. ``fields`` become infos of L + 1 rows, as in Minari; the first row, of the reset, is 0.
    Images are stored without loss.

    Args:
        path: The directory of the dataset, which must not exist yet.
        env_spec: The environment.
        action_bounds: ``clip`` or ``squash``: the conversion of bounded ``Box`` actions.
        about: Further entries of the metadata, such as ``algorithm_name``.

    Raises:
        ConfigError: The path exists or cannot be written, minari is not installed, or a space
            cannot be described in its format.
    """

    def __init__(
        self,
        path: str | Path,
        env_spec: EnvSpec,
        action_bounds: ActionBounds = "clip",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        check_new_dataset(path)
        self.path, self._env_spec = Path(path), env_spec
        minari = _minari()
        for space in (env_spec.observation_space, env_spec.action_space):
            _require_plain_keys(space)
        self._converter = ActionConverter(env_spec.action_space, action_bounds)
        self._about = {
            "fastrl_env": env_spec.id,
            **(about or {}),
            "dataset_id": _dataset_id(self.path),
            "minari_version": minari.__version__,
        }
        with ExitStack() as stack:
            # Absolute, since minari looks for the files of a relative path below that path.
            self._place = stack.enter_context(new_directory(self.path.absolute()))
            with self._writing():
                (self._place / _DATA).mkdir()
                self._storage = minari.dataset.minari_storage.MinariStorage.new(
                    self._place / _DATA,
                    observation_space=env_spec.observation_space,
                    action_space=env_spec.action_space,
                    env_spec=_registered(env_spec.id),
                    data_format="hdf5",
                    jpeg_encoding=False,
                )
            self._appearing = stack.pop_all()

    def add(self, episodes: Iterable[Episode]) -> None:
        """Append episodes.

        Raises:
            ConfigError: The files cannot be written.
        """
        with self._writing():
            self._storage.update_episodes([self._buffer(each) for each in episodes])

    def _buffer(self, episode: Episode) -> Any:
        from minari.data_collector import EpisodeBuffer

        ends = np.zeros((2, len(episode)), np.bool_)
        ends[0 if episode.terminated else 1, -1] = True
        infos = {
            name: np.concatenate([np.zeros_like(rows[:1]), rows])
            for name, rows in episode.fields.items()
        }
        return EpisodeBuffer(
            observations=self._observations(episode.observation),
            actions=self._converter.batch(tuple(episode.action.values())),
            rewards=episode.reward,
            terminations=ends[0],
            truncations=ends[1],
            infos=infos or None,
        )

    def _observations(self, observation: Arrays) -> Any:
        space = self._env_spec.observation_space
        cast = {path: observation[path].astype(leaf.dtype) for path, leaf in leaves(space).items()}
        return unflatten(space, cast)

    def _writing(self) -> AbstractContextManager[None]:
        # minari and h5py raise anything
        return raised_as(ConfigError, f"'{self.path}' cannot be written")

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the dataset; after an error remove what was written."""
        if exc_type is not None:
            self._appearing.__exit__(exc_type, exc, trace)
            return
        with self._appearing, self._writing():
            self._storage.update_metadata(self._about)
            for file in (self._place / _DATA).iterdir():
                sync(file)
            sync(self._place / _DATA)
        sync(self.path.absolute().parent)


@dataclass(frozen=True)
class DatasetFiles:
    """A dataset that was opened to be read.

    Attributes:
        path: Path as it was given.
        observation_space: Observation space of one environment.
        action_space: Action space of one environment.
        metadata: All entries of the metadata file.
    """

    path: Path
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    metadata: Mapping[str, Any]
    _storages: tuple[Any, ...]
    _key: str

    @property
    def num_episodes(self) -> int:
        """Number of episodes, including those without steps."""
        return sum(int(each.total_episodes) for each in self._storages)

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        folders = (Path(each.data_path) for each in self._storages)
        return sum(file.stat().st_size for folder in folders for file in folder.iterdir())

    def episodes(self) -> Iterator[dict[str, Any]]:
        """Yield episodes as minari returns them.

        Raises:
            ConfigError: The files are damaged, or arrays of an episode differ in their steps.
        """
        number = 0
        for storage in self._storages:
            found = iter(storage.get_episodes(range(storage.total_episodes)))
            for _ in range(int(storage.total_episodes)):
                what = f"{self._key}: episode {number} of '{self.path}'"
                with raised_as(ConfigError, f"{what} cannot be read"):
                    episode = next(found)
                    self._check_rows(episode, what)
                yield episode
                number += 1

    def _check_rows(self, episode: Mapping[str, Any], what: str) -> None:
        """Reject an episode without a number for each reward, or with more or less of the rest."""
        rewards, ends = episode["rewards"], episode["terminations"]
        if rewards.ndim != 1 or rewards.dtype.kind not in "biuf":
            raise ConfigError(
                f"{what} must have one number per step as rewards, got the shape {rewards.shape} "
                f"of {rewards.dtype}"
            )
        parts = [("terminations", ends, len(rewards))]
        for name, space, steps in (
            ("actions", self.action_space, len(rewards)),
            ("observations", self.observation_space, len(rewards) + 1),
        ):
            parts += [(name, leaf, steps) for leaf in flatten(space, episode[name])]
        for name, array, steps in parts:
            if np.shape(array)[:1] != (steps,):
                raise ConfigError(f"{what} must have {steps} {name} with {len(rewards)} rewards")


def open_dataset(path: str | Path, key: str = "dataset") -> DatasetFiles:
    """Open a dataset: a directory that minari reads, or a directory of such directories.

    Parts of one dataset are read in the order of their names. No code that a dataset names is
    imported.

    Args:
        path: Path of the dataset, or of its directory ``data``.
        key: Name of the key or argument, for errors.

    Raises:
        ConfigError: There is no dataset, it cannot be read, minari is not installed, or parts of it
            have different spaces.
    """
    _minari()
    from minari.dataset.minari_storage import MinariStorage

    path = file_path(key, path)
    what = f"{key}: '{path}'"
    found: list[tuple[Any, dict[str, Any]]] = []
    with raised_as(ConfigError, f"{what} cannot be read"):
        for folder in _folders(path, what):
            metadata = _metadata(folder)
            # Without spaces, minari would import and build the environment that the file names.
            if missing := [name for name in _REQUIRED if name not in metadata]:
                raise ConfigError(f"{what} has no {' and no '.join(missing)} in {_METADATA}")
            whole(f"{what}: total_episodes", metadata["total_episodes"], at_least=0)
            found.append((MinariStorage.read(folder), metadata))
    (first, metadata), *rest = found
    for storage, _ in rest:
        if (storage.observation_space, storage.action_space) != (
            first.observation_space,
            first.action_space,
        ):
            raise ConfigError(f"{what} has parts with different spaces")
    storages = tuple(storage for storage, _ in found)
    return DatasetFiles(path, first.observation_space, first.action_space, metadata, storages, key)


def local_dataset(dataset_id: str, key: str = "id") -> Path:
    """Return the directory of a dataset of Minari's collection, and download it if necessary.

    Args:
        dataset_id: Id such as ``mujoco/halfcheetah/medium-v0``.
        key: Name of the key or argument, for errors.

    Raises:
        ConfigError: It is not on this machine and cannot be downloaded.
    """
    minari = _minari()
    try:
        # minari makes the root directory if it is missing.
        path = Path(minari.storage.get_dataset_path(dataset_id))
        if not (path / _DATA).is_dir():
            _require_network()
            minari.download_dataset(dataset_id)
        return path
    except Exception as error:  # anything that the network and its packages raise
        raise ConfigError(
            f"{key}: '{dataset_id}' is not among Minari's datasets on this machine and cannot be "
            f"downloaded: {cause(error)}"
        ) from error


def _require_network() -> None:
    """Raise an `OSError` at once if the default host of datasets cannot be reached.

    Minari's client would try again for half a minute, and log each attempt.
    """
    if not getproxies() and "MINARI_REMOTE" not in os.environ:
        socket.create_connection(_HOST, _CONNECT_S).close()


def _minari() -> Any:
    try:
        import h5py  # noqa: F401
        import minari
        import minari.dataset.minari_storage
        import minari.storage
    except ImportError as error:
        raise ConfigError(
            f"datasets need the package minari ({error}): {how_to_install('minari')}"
        ) from error
    return minari


def _folders(path: Path, what: str) -> list[Path]:
    """Return the directories with minari's files: one, or those of all parts."""
    if not path.is_dir():
        raise ConfigError(f"{what} is not a directory")
    for folder in (path, path / _DATA):
        if (folder / _METADATA).is_file():
            return [folder]
    parts = sorted(each for each in path.iterdir() if not each.name.startswith("."))
    found = [part / _DATA for part in parts if (part / _DATA / _METADATA).is_file()]
    if not found:
        raise ConfigError(f"{what} is not a dataset: there is no {_METADATA}")
    return found


def _metadata(folder: Path) -> dict[str, Any]:
    file = folder / _METADATA
    if file.stat().st_size > _MOST_METADATA_BYTES:
        raise ConfigError(f"'{file}' is too large")
    found = json.loads(file.read_bytes())
    return found if isinstance(found, dict) else {}


def _dataset_id(path: Path) -> str:
    """Return an id of minari for a dataset, from the name of its directory."""
    name = re.sub(r"[^-\w]+", "-", path.name) or "dataset"
    return name if _WHOLE_NAME.fullmatch(name) else f"{name}-v0"


def _require_plain_keys(space: spaces.Space[Any]) -> None:
    if isinstance(space, spaces.Dict):
        for key in space:
            if "/" in str(key):
                raise ConfigError(
                    f"a dataset cannot have the key '{key}': HDF5 takes '/' for a path; rename it"
                )
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.values() if isinstance(space, spaces.Dict) else space
        for part in parts:
            _require_plain_keys(part)


def _registered(env_id: str) -> Any:
    """Return gymnasium's spec of an id, from which minari rebuilds the environment, or None."""
    registered = gymnasium.registry.get(env_id)
    return registered if isinstance(getattr(registered, "entry_point", None), str) else None
