"""Records datasets: a trained policy or a function plays episodes in the workers of a sampler."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from fastrl.arguments import taken, whole
from fastrl.config import Config, PPOConfig, SamplerConfig
from fastrl.datasets import DatasetWriter, Episode, check_new_dataset
from fastrl.datasets.episodes import EpisodeCutter
from fastrl.datasets.experts import FunctionPolicy, MostProbable, try_function
from fastrl.errors import ConfigError
from fastrl.imports import import_object
from fastrl.live_display import waiting
from fastrl.models.policy import ActorCritic, PolicyModel
from fastrl.sampling import env_factory, make_plan, make_sampler
from fastrl.training.progress import BUILDING, watched_episodes
from fastrl.training.run import opened_run
from fastrl.training.saver import load_model
from fastrl.workers.plan import SamplingPlan

_BUFFERED_BYTES = 64 << 20


@dataclass(frozen=True)
class RecordedDataset:
    """The result of recording a dataset.

    Attributes:
        path: Its directory.
        returns: ``[E] float64``: undiscounted sum of rewards of each episode.
        lengths: ``[E] int64``.
        wall_s: Wall time from the start of the workers to complete files.
    """

    path: Path
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    wall_s: float


def record_dataset(
    run: str | Path,
    path: str | Path,
    *,
    episodes: int = 100,
    deterministic: bool | None = None,
    seed: int | None = None,
    checkpoint: str | None = None,
    trust: bool = False,
    console: Console | None = None,
) -> RecordedDataset:
    """Write episodes of a policy of a run as a dataset in Minari's format.

    Worker processes sample them in the environments of training, in compiled code if possible.
    Sampled actions are stored with the policy's other outputs, such as ``log_prob``.

    Args:
        run: Its directory, its name under ``runs/``, or the directory of one of its checkpoints.
        path: The dataset, a directory that does not exist yet.
        episodes: Number of episodes.
        deterministic: Whether to take the most probable actions; by default as in the run's
            evaluations.
        seed: Seed of environments and actions; by default that of the run's evaluations.
        checkpoint: As for `evaluate_run`.
        trust: As for `evaluate_run`.
        console: Console that shows the progress; none by default.

    Raises:
        ConfigError: There is no such run, it would import code that this user has not trusted, the
            dataset exists, or minari is not installed.
        CheckpointError: The checkpoint is missing, damaged or foreign.
        EnvError: The environment cannot be built, or broke its contract.
        WorkerError: A worker failed.
    """
    check_new_dataset(path)
    with waiting(console, BUILDING):
        _, config, found = opened_run(run, checkpoint, trust)
        about = {"algorithm_name": f"{config.algorithm.name}, {found.name}"}
        if deterministic is None:
            deterministic = config.evaluation.deterministic
        config = _for_recording(config, episodes, seed)
        plan = make_plan(config)
        build = plan.build_model
        assert build is not None
        model: PolicyModel = build()
        load_model(model, found)
    if deterministic and _is_sharpened(model):
        plan = dataclasses.replace(plan, build_model=lambda: _sharpened(build()))
    elif deterministic:
        plan = _playing(plan, lambda: MostProbable(build()))
        model = MostProbable(model)
    outputs = [name for name in plan.schema.outputs if name != "value" and not deterministic]
    return _record(config, plan, model, path, episodes, about, outputs, console)


def record_function(
    config: Config,
    policy: str,
    path: str | Path,
    *,
    episodes: int = 100,
    seed: int | None = None,
    console: Console | None = None,
) -> RecordedDataset:
    """Write episodes of a function from observations to actions as a dataset.

    Args:
        config: Names the environment and the workers.
        policy: ``package.module:function``, called in the workers with the observation of one
            environment; returns an action that it accepts.
        path: As for `record_dataset`.
        episodes: As for `record_dataset`.
        seed: As for `record_dataset`.
        console: As for `record_dataset`.

    Raises:
        ConfigError: The function cannot be imported, raises or returns no action for a first
            observation, the dataset exists, or minari is not installed.
        EnvError: The environment cannot be built, or broke its contract.
        WorkerError: A worker failed, or the function raised.
    """
    taken("record_function", config, Config, "load_config reads one from a file")
    check_new_dataset(path)
    function = import_object(policy, "--policy")
    if not callable(function):
        raise ConfigError(f"--policy: '{policy}' must be a function")
    config = _for_recording(config, episodes, seed)
    with waiting(console, BUILDING):
        plan = make_plan(config)
        chosen = FunctionPolicy(plan.env_spec, function, config.env.action_bounds)
        try_function(chosen, f"--policy: '{policy}'", env_factory(config))
    about = {"algorithm_name": policy}
    plan = _playing(plan, lambda: chosen)
    return _record(config, plan, chosen, path, episodes, about, (), console)


def _for_recording(config: Config, episodes: int, seed: int | None) -> Config:
    """Return a configuration whose sampler has about as many environments as episodes."""
    whole("episodes", episodes)
    sampler, topology = config.sampler, config.topology
    workers = min(topology.num_env_workers, episodes)
    envs = min(topology.envs_per_worker, -(-episodes // workers))
    chosen = SamplerConfig(
        envs_per_worker=envs,
        num_env_workers=workers,
        rollout_length=sampler.rollout_length,
        # The next rollout is sampled while the last one is written.
        mode="async",
        engine=sampler.engine,
        start_timeout_s=sampler.start_timeout_s,
    )
    # The seed of evaluations differs from those of training.
    seed = config.evaluation.seed if seed is None else seed
    # Nothing is learnt, so the algorithm must not choose the sampler.
    update = {"sampler": chosen, "seed": seed, "algorithm": PPOConfig(), "cluster": None}
    return config.model_copy(update=update)


def _playing(plan: SamplingPlan, build: Callable[[], PolicyModel]) -> SamplingPlan:
    return dataclasses.replace(plan, build_model=build, outputs=None, engine="eager")


def _is_sharpened(model: PolicyModel) -> bool:
    """Make samples the most probable actions, in place; return whether that is possible."""
    # Other classes may sample in another way.
    return type(model) is ActorCritic and model.distribution.sharpen(model.actor_head)


def _sharpened(model: PolicyModel) -> PolicyModel:
    """Return a policy whose samples are the most probable actions; see `_is_sharpened`."""
    _is_sharpened(model)
    return model


def _record(
    config: Config,
    plan: SamplingPlan,
    model: Any,
    path: str | Path,
    episodes: int,
    about: dict[str, Any],
    outputs: Sequence[str],
    console: Console | None,
) -> RecordedDataset:
    plan = dataclasses.replace(plan, wanted_fields=("final_observation",))
    spec, began_s = plan.env_spec, time.perf_counter()
    fields = [*outputs, *spec.extras]
    cutter = EpisodeCutter(spec, plan.topology.num_envs, episodes, fields)
    returns: list[float] = []
    lengths: list[int] = []
    unwritten: list[Episode] = []
    with (
        watched_episodes(console, episodes) as watch,
        DatasetWriter(path, spec, config.env.action_bounds, about) as writer,
    ):
        with make_sampler(config, plan, model.state_dict()) as sampler:
            while not cutter.is_done:
                for episode in cutter.add(sampler.collect()):
                    returns.append(float(episode.reward.sum(dtype=np.float64)))
                    lengths.append(len(episode))
                    unwritten.append(episode)
                if sum(each.num_bytes for each in unwritten) >= _BUFFERED_BYTES:
                    writer.add(unwritten)
                    unwritten.clear()
                watch(len(lengths), sum(lengths))
        writer.add(unwritten)
    wall_s = time.perf_counter() - began_s
    return RecordedDataset(Path(path), np.array(returns), np.array(lengths), wall_s)
