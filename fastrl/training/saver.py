"""Saves a run as checkpoints and restores it; `checkpoint` reads and writes their files."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastrl.config import Config
from fastrl.envs.state import StateError, pack, unpack
from fastrl.errors import CheckpointError, ConfigError, FastrlError, cause
from fastrl.global_streams import load_streams_state, streams_state
from fastrl.learning import Learner
from fastrl.learning.ranks import Ranks
from fastrl.models.policy import PolicyModel, load_parameters
from fastrl.runs import locate
from fastrl.sampling import Sampler
from fastrl.training.callbacks import RunExtensions
from fastrl.training.checkpoint import Checkpoint, CheckpointStore
from fastrl.training.coordination import joined_environments, own_environments
from fastrl.training.window import Window

_UNSAVED = "environments_unsaved"
"""Reason why a checkpoint has no environments; empty if it has, or if no episode had begun."""
_BETWEEN = "the run was stopped in the middle of a rollout or an update"


class Saver:
    """Takes checkpoints of a run, on request and when they are due.

    Args:
        config: Configuration of the run.
        learner: Learner to save.
        window: Window with the counts of time and episodes.
        store: Store of the checkpoints.
        extensions: Callbacks and transforms, whose states are saved, too.
        ranks: The ranks of the run, which save together; rank 0 writes.
    """

    def __init__(
        self,
        config: Config,
        learner: Learner,
        window: Window,
        store: CheckpointStore,
        extensions: RunExtensions,
        ranks: Ranks,
    ) -> None:
        self._config, self._learner, self._window = config, learner, window
        self._ranks = ranks
        self._store, self._extensions = store, extensions
        self._sampler: Sampler | None = None
        self._taken: tuple[int, bytes | None, str] | None = None
        self._saved_steps, self._saved_s = learner.steps, time.monotonic()

    def follow(self, sampler: Sampler) -> None:
        """Save the running episodes of this sampler, too."""
        self._sampler = sampler

    def snapshot(self) -> Checkpoint:
        """Return a checkpoint of the current state, between two updates.

        With several ranks it has no environments, unless `save` was called after this update.
        """
        learner = self._learner.state_dict()
        model = learner.pop("model")
        environments, unsaved = self._environments()
        return Checkpoint(
            model=model,
            state={
                "learner": learner,
                "random": _random_state(),
                "latest_episodes": self._window.latest,
                "extensions": self._extensions.state_dict(),
            },
            environments=environments,
            about={
                "env": self._config.env.id,
                "algorithm": self._config.algorithm.name,
                "seed": self._config.seed,
                "steps": self._learner.steps,
                "updates": self._learner.updates,
                "episodes": self._window.episodes,
                "wall_s": self._window.wall_s,
                "episode_info": self._window.info.totals,
                _UNSAVED: unsaved,
            },
        )

    def _environments(self) -> tuple[bytes | None, str]:
        """Return the state of the sampler, or None and the reason; see `_UNSAVED`.

        It is requested once between two updates, before the sampler may continue or be closed.
        """
        updates = self._learner.updates
        if self._taken is None or self._taken[0] != updates:
            if self._ranks.size > 1:
                return None, "several ranks save them only together"
            self._taken = (updates, *self._take(updates))
        return self._taken[1:]

    def _take(self, updates: int) -> tuple[bytes | None, str]:
        if self._sampler is None:
            return None, ""
        if not self._config.checkpoint.environments:
            return None, "checkpoint.environments was false"
        try:
            state = self._sampler.get_state()
            if state is None:
                return None, ""
            return (pack(state), "") if state["rollouts"] == updates else (None, _BETWEEN)
        except StateError as error:
            return None, str(error)
        except FastrlError:  # the sampler has failed or was interrupted, and is closed
            return None, _BETWEEN

    def save(self) -> None:
        """Save the current state: all ranks together, or rank 0 alone if a rank is lost.

        Raises:
            CheckpointError: It cannot be written.
            WorkerError: A rank is lost.
        """
        updates = self._learner.updates
        if self._ranks.size > 1 and self._ranks.lost is None:
            self._taken = (updates, *joined_environments(self._ranks, *self._take(updates)))
        if self._ranks.leads:
            self._store.save(self.snapshot())
        self._saved_steps, self._saved_s = self._learner.steps, time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the configured steps or time have passed since the last checkpoint."""
        settings = self._config.checkpoint
        steps = self._learner.steps - self._saved_steps
        by_steps = settings.every_steps is not None and steps >= settings.every_steps
        elapsed_s = time.monotonic() - self._saved_s
        by_time = settings.every_s is not None and elapsed_s >= settings.every_s
        return by_steps or by_time

    def take_over(self) -> None:
        """Save instead of rank 0, which has died.

        Callbacks and transforms will resume from the last checkpoint of rank 0.

        Raises:
            CheckpointError: There is no checkpoint on this machine, or it cannot be written.
        """
        extensions = self._store.load("last").state.get("extensions", {})
        snapshot = self.snapshot()
        state = {**snapshot.state, "extensions": extensions}
        self._store.save(dataclasses.replace(snapshot, state=state))


def begin_from(run: str, model: PolicyModel, ranks: Ranks) -> str:
    """Load the parameters and statistics of another run; return a line that names it.

    Nothing that the other run's configuration names is imported. Rank 0 alone reads the run.

    Raises:
        ConfigError: There is no such run or checkpoint, or it is of another model.
        WorkerError: A rank is lost.
    """
    try:
        where = locate(run) if ranks.leads else None
        found = where and CheckpointStore(where[0] / "checkpoints").load(where[1])
    except FastrlError as error:
        raise ConfigError(f"init_from: {error}") from error
    found = shared_checkpoint(found, ranks)
    assert found is not None, "there was one to load"
    try:
        load_model(model, found)
    except FastrlError as error:
        raise ConfigError(f"init_from: {error}") from error
    return f"begins with the weights of {found.name} of '{where and where[0]}'"


def shared_checkpoint(checkpoint: Checkpoint | None, ranks: Ranks) -> Checkpoint | None:
    """Return the checkpoint of rank 0 on all ranks, which may not have access to its directory.

    Raises:
        WorkerError: A rank is lost.
    """
    if ranks.size == 1:
        return checkpoint
    found = ranks.broadcast(checkpoint and [checkpoint.name, checkpoint.files()])
    if ranks.leads or found is None:
        return checkpoint
    name, files = found
    return Checkpoint.of_files(files.__getitem__, Path(name))


def restore(
    checkpoint: Checkpoint, config: Config, learner: Learner, extensions: RunExtensions
) -> dict[str, Any]:
    """Restore a run and this process's random states; return the arguments of its `Window`.

    Raises:
        CheckpointError: It belongs to another environment, algorithm or model, or a callback or a
            transform rejects its state.
    """
    about = checkpoint.about
    check_environment(checkpoint, config)
    try:
        learner.load_state_dict({**checkpoint.state["learner"], "model": checkpoint.model})
        # Checkpoints of earlier versions lack extensions and latest episodes.
        extensions.load_state_dict(checkpoint.state.get("extensions", {}))
        _load_random_state(checkpoint.state["random"])
        latest = checkpoint.state.get("latest_episodes", ())
        return {
            "wall_s": float(about["wall_s"]),
            "episodes": int(about["episodes"]),
            "info": {name: _counts(name, row) for name, row in about["episode_info"].items()},
            "latest": [(float(total), int(length)) for total, length in latest],
        }
    except FastrlError as error:
        raise CheckpointError(f"checkpoint {checkpoint.name}: {error}") from error
    except KeyError as error:
        raise CheckpointError(f"checkpoint {checkpoint.name} lacks {error}") from error
    except Exception as error:  # the file may hold anything
        raise CheckpointError(
            f"checkpoint {checkpoint.name} holds no state of this run: {cause(error)[:200]}"
        ) from error


def without_callbacks(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint without the states of callbacks, for a process that has none."""
    extensions = {**checkpoint.state.get("extensions", {}), "callbacks": {}}
    return dataclasses.replace(checkpoint, state={**checkpoint.state, "extensions": extensions})


def resume_episodes(sampler: Sampler, checkpoint: Checkpoint, config: Config, ranks: Ranks) -> str:
    """Restore the running episodes of a checkpoint in a sampler that is not started yet.

    Returns:
        The reason why new ones begin instead; empty if they are restored or none were running.
    """
    if checkpoint.environments is None:
        return str(checkpoint.about.get(_UNSAVED, "the checkpoint is of a former version"))
    if not config.checkpoint.environments:
        return "checkpoint.environments is false"
    try:
        state, reason = own_environments(unpack(checkpoint.environments), ranks)
        if not reason:
            sampler.set_state(state)
    except StateError as error:
        return str(error)
    except Exception as error:  # the file may hold anything
        return f"the checkpoint holds no state of this sampler: {cause(error)}"
    return reason


def check_environment(checkpoint: Checkpoint, config: Config) -> None:
    """Reject a checkpoint of a run in another environment.

    Raises:
        CheckpointError: The checkpoint belongs to another environment.
    """
    env = checkpoint.about.get("env")
    if env != config.env.id:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} is of the environment '{env}', "
            f"this run is of '{config.env.id}'"
        )


def load_model(model: PolicyModel, checkpoint: Checkpoint) -> None:
    """Load the parameters of a checkpoint into a model.

    Raises:
        CheckpointError: They belong to another model.
    """
    try:
        load_parameters(model, checkpoint.model, f"checkpoint {checkpoint.name}")
    except FastrlError as error:
        raise CheckpointError(str(error)) from error


def _counts(name: str, row: Sequence[int]) -> tuple[int, int]:
    """Return a pair of `fastrl.training.window.Totals`; raise `ValueError` if it is not one."""
    count, positive = row
    if type(count) is not int or type(positive) is not int or not 0 <= positive <= count:
        raise ValueError(f"episode_info '{name}' is {row}")
    return count, positive


def _random_state() -> dict[str, Any]:
    """Return the states of the global generators, as plain types for a checkpoint."""
    (version, words, gauss_next), of_numpy, of_torch = streams_state()
    _, keys, position, has_gauss, gauss = of_numpy
    return {
        "torch": of_torch,
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "python": {"version": version, "words": list(words), "gauss_next": gauss_next},
    }


def _load_random_state(state: Mapping[str, Any]) -> None:
    """Restore such a state; that of GPUs only if their number is the same."""
    numpy, python, cuda = state["numpy"], state["python"], state["cuda"]
    keys = numpy["keys"].numpy().astype(np.uint32)
    of_numpy = ("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["gauss"])
    of_python = (python["version"], tuple(python["words"]), python["gauss_next"])
    load_streams_state((of_python, of_numpy, state["torch"]))
    if cuda and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)
