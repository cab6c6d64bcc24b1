"""From a run to its checkpoints and back."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fastrl.config import Config
from fastrl.envs.state import StateError, pack, unpack
from fastrl.errors import ConfigError, FastrlError, cause
from fastrl.learning import Learner
from fastrl.models.policy import PolicyModel, load_parameters
from fastrl.sampling import Sampler
from fastrl.training.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from fastrl.training.episode_info import Totals
from fastrl.training.extensions import RunExtensions
from fastrl.training.random_state import random_state, restore_random_state
from fastrl.training.run_directory import find_run
from fastrl.training.window import Window
from fastrl.workers.plan import SamplingPlan

_UNSAVED = "environments_unsaved"
"""Why a checkpoint holds no environments; empty where it does, or where no episode had begun."""
_BETWEEN = "the run was stopped in the middle of a rollout or an update"


@dataclass(frozen=True)
class Counted:
    """What a run has counted before it went on here; the learner counts its steps itself.

    Attributes:
        wall_s: Time of training.
        episodes: Episodes that ended.
        info: What they told of themselves.
        latest: Returns and lengths of the latest, see `Window.latest`.
    """

    wall_s: float = 0.0
    episodes: int = 0
    info: Totals = field(default_factory=dict)
    latest: Sequence[tuple[float, int]] = ()


class Saver:
    """Takes checkpoints of a run, when asked and when they are due.

    Args:
        config: The run.
        plan: Gives the seeds of the environments.
        learner: What is saved.
        window: Counts time and episodes.
        store: Where checkpoints are kept.
        extensions: Have states, too.
    """

    def __init__(
        self,
        config: Config,
        plan: SamplingPlan,
        learner: Learner,
        window: Window,
        store: CheckpointStore,
        extensions: RunExtensions,
    ) -> None:
        self._config, self._learner, self._window = config, learner, window
        self._store, self._extensions = store, extensions
        self._plan = plan
        self._sampler: Sampler | None = None
        self._taken: tuple[int, bytes | None, str] | None = None
        self._saved_steps, self._saved_s = learner.steps, time.monotonic()

    @cached_property
    def _env_seeds(self) -> Tensor:
        """Not before the first checkpoint: by then it is known that there is memory for all."""
        return _env_seeds(self._plan)

    def follow(self, sampler: Sampler) -> None:
        """Save the episodes that this sampler has under way, too."""
        self._sampler = sampler

    def snapshot(self) -> Checkpoint:
        """Return all that the run goes on from, copied, as it is between two updates."""
        learner = self._learner.state_dict()
        model = learner.pop("model")
        environments, unsaved = self._environments()
        return Checkpoint(
            model=model,
            state={
                "learner": learner,
                "random": random_state(),
                "env_seeds": self._env_seeds,
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
        """Return the state of the sampler, and else why there is none; see `_UNSAVED`.

        It is asked for once between two updates: afterwards it may have gone on, or be closed.
        """
        updates = self._learner.updates
        if self._taken is None or self._taken[0] != updates:
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
            if state["rollouts"] != updates:
                return None, _BETWEEN
            return pack(state), ""
        except StateError as error:
            return None, str(error)
        except FastrlError:  # what has failed or was broken off is closed
            return None, _BETWEEN

    def save(self) -> None:
        """Save the run as it is.

        Raises:
            CheckpointError: It cannot be written.
        """
        self._store.save(self.snapshot())
        self._saved_steps, self._saved_s = self._learner.steps, time.monotonic()

    def save_if_due(self) -> None:
        """Save if the configured steps or time have passed since the last one."""
        settings = self._config.checkpoint
        steps = self._learner.steps - self._saved_steps
        by_steps = settings.every_steps is not None and steps >= settings.every_steps
        elapsed_s = time.monotonic() - self._saved_s
        by_time = settings.every_s is not None and elapsed_s >= settings.every_s
        if by_steps or by_time:
            self.save()


def locate(run: str | Path, checkpoint: str | None = None) -> tuple[Path, str]:
    """Return the directory of a run, and the name of the checkpoint that is meant.

    Args:
        run: Directory of the run, its name under ``runs/``, or the directory of a checkpoint.
        checkpoint: Name of a checkpoint, ``last`` or ``best``; by default the best one where
            there is one, else the last.

    Raises:
        ConfigError: There is no such run.
    """
    if checkpoint is None and isinstance(run, str | Path):
        given = Path(run)
        if given.parent.name == "checkpoints" and not (given / "config.yaml").exists():
            return find_run(given.parent.parent), given.name
    path = find_run(run)
    if checkpoint is None:
        checkpoint = "last" if CheckpointStore(path / "checkpoints").best() is None else "best"
    return path, checkpoint


def begin_from(run: str, model: PolicyModel) -> str:
    """Give a new model the parameters and statistics of another run; return which, in words.

    Nothing that the other run's configuration names is imported.

    Raises:
        ConfigError: There is no such run or checkpoint, or it is of another model.
    """
    try:
        path, name = locate(run)
        found = CheckpointStore(path / "checkpoints").load(name)
        load_model(model, found.model, found.name)
    except FastrlError as error:
        raise ConfigError(f"init_from: {error}") from error
    return f"begins with the weights of {found.name} of '{path}'"


def restore(
    checkpoint: Checkpoint, config: Config, learner: Learner, extensions: RunExtensions
) -> Counted:
    """Bring a run and this process's random states to where a checkpoint was taken.

    Raises:
        CheckpointError: It is of another environment, algorithm or model, or a callback or a
            transform does not take its state.
    """
    about = checkpoint.about
    check_environment(checkpoint, config)
    try:
        learner.load_state_dict({**checkpoint.state["learner"], "model": checkpoint.model})
        # Checkpoints of former versions lack them.
        extensions.load_state_dict(checkpoint.state.get("extensions", {}))
        restore_random_state(checkpoint.state["random"])
        info = {name: _counts(name, row) for name, row in about["episode_info"].items()}
        # Checkpoints of former versions lack them.
        pairs = checkpoint.state.get("latest_episodes", ())
        latest = [(float(each), int(length)) for each, length in pairs]
        return Counted(float(about["wall_s"]), int(about["episodes"]), info, latest)
    except FastrlError as error:
        raise CheckpointError(f"checkpoint {checkpoint.name}: {error}") from error
    except KeyError as error:
        raise CheckpointError(f"checkpoint {checkpoint.name} lacks {error}") from error
    except Exception as error:  # what it holds may be anything
        told = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"checkpoint {checkpoint.name} holds no state of this run: "
            f"{type(error).__name__}: {told}"
        ) from error


def go_on(sampler: Sampler, checkpoint: Checkpoint, config: Config) -> str:
    """Have a sampler, not started yet, go on with the episodes of a checkpoint.

    Returns:
        Why it begins new ones instead; empty where it goes on, or where none were under way.
    """
    if checkpoint.environments is None:
        return str(checkpoint.about.get(_UNSAVED, "the checkpoint is of a former version"))
    if not config.checkpoint.environments:
        return "checkpoint.environments is false"
    try:
        sampler.set_state(unpack(checkpoint.environments))
    except StateError as error:
        return str(error)
    except Exception as error:  # what the file holds may be anything
        return f"the checkpoint holds no state of this sampler: {cause(error)}"
    return ""


def _counts(name: str, row: Sequence[int]) -> tuple[int, int]:
    """Return the episodes that reported a figure, and those in which it was positive.

    Raises:
        ValueError: These are no two such numbers.
    """
    told, positive = row
    if type(told) is not int or type(positive) is not int or not 0 <= positive <= told:
        raise ValueError(f"episode_info '{name}' is {row}")
    return told, positive


def check_environment(checkpoint: Checkpoint, config: Config) -> None:
    """Refuse a checkpoint of a run in another environment.

    Raises:
        CheckpointError: It is one.
    """
    env = checkpoint.about.get("env")
    if env != config.env.id:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} is of the environment '{env}', "
            f"this run is of '{config.env.id}'"
        )


def load_model(model: PolicyModel, state_dict: Mapping[str, Tensor], name: str) -> None:
    """Load parameters of a checkpoint into a model.

    Raises:
        CheckpointError: They are another model's.
    """
    try:
        load_parameters(model, state_dict, f"checkpoint {name}")
    except FastrlError as error:
        raise CheckpointError(str(error)) from error


def _env_seeds(plan: SamplingPlan) -> Tensor:
    """Return the seeds of all environments, ``[B] int64``, by their index in the run."""
    groups = plan.topology.all_groups()
    return torch.tensor([seed for group in groups for seed in plan.env_seeds(*group)])
