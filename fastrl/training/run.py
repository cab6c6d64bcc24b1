"""Whole runs, for the command line and scripts: train, resume, evaluate, record and export."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from fastrl.arguments import file_path, instance, taken
from fastrl.config import Config, resolved
from fastrl.envs.env_factory import EnvFactory
from fastrl.errors import CheckpointError, ConfigError, WorkerError
from fastrl.formats import POLICIES, check_animation, check_policy_format, default_ending
from fastrl.global_streams import seeded_weights
from fastrl.learning.ranks import Ranks, ranks_of_environment
from fastrl.live_display import waiting
from fastrl.models.policy import build_model
from fastrl.runs import check_new_run, find_run, locate, new_run_path, read_config
from fastrl.spec import EnvSpec
from fastrl.training.callbacks import Callback
from fastrl.training.checkpoint import Checkpoint, CheckpointStore
from fastrl.training.coordination import require_alike, together
from fastrl.training.evaluation import EvaluationProtocol, EvaluationResult, evaluate
from fastrl.training.export import export
from fastrl.training.progress import BUILDING, watched_episodes
from fastrl.training.recording import Recorder
from fastrl.training.run_directory import (
    RunDirectory,
    make_run_directory,
    require_own_files,
)
from fastrl.training.saved_spec import SPACES, read_spec
from fastrl.training.saver import check_environment, load_model, shared_checkpoint
from fastrl.training.session import (
    SessionOutcome,
    TrainingSession,
    evaluation_factory,
    final_protocol,
)
from fastrl.training.trained_policy import TrainedPolicy
from fastrl.training.trust import require_trust
from fastrl.workers.descent import without_hangups

_LOGGER = logging.getLogger(__name__)
_BUILDING_ALL = "building environment and learner; the first time this compiles …"


@dataclass(frozen=True)
class TrainedRun:
    """A run after a session of training.

    Attributes:
        path: Its directory.
        config: Its resolved configuration.
        outcome: Outcome of the session.
    """

    path: Path
    config: Config
    outcome: SessionOutcome


@dataclass(frozen=True)
class Evaluated:
    """A checkpoint and its evaluation.

    Attributes:
        checkpoint: Name of the checkpoint.
        steps: Environment steps that the policy has learnt from.
        result: Its evaluation.
    """

    checkpoint: str
    steps: int
    result: EvaluationResult


@without_hangups()
def train(
    config: Config,
    *,
    name: str | None = None,
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
    ranks: Ranks | None = None,
) -> TrainedRun:
    """Train in a new directory until the configured end, or until Ctrl-C or SIGTERM.

    Args:
        config: Configuration of the run.
        name: Name of its directory under ``runs/``, unless the configuration has a ``run_dir``.
        console: Console that shows the progress; none by default.
        callbacks: Further callbacks beside those of the configuration; not saved with the run.
        ranks: The processes that train together, each of which calls this function; closed at the
            end. By default those that ``torchrun`` has started, else one on each node of a cluster
            with ``mode: gradients``, else this process alone.

    Raises:
        ConfigError: The directory is in use, or the configuration names something that is missing.
        EnvError: The environment cannot be built, or broke its contract.
        WorkerError: A process failed; the run is saved.
        CallbackError: A callback or a transform failed; the run is saved.
        FastrlError: Learning diverged.
    """
    taken("train", config, Config, "load_config reads one from a file")
    if config.sampler.tune_s is not None:
        raise ConfigError("sampler.tune_s: tune first, by fastrl.tuning.tuned(config)")
    ranks = ranks_of_environment() if ranks is None else instance("ranks", ranks, Ranks)
    if ranks.size > 1 and config.cluster is not None and config.cluster.elastic:
        ranks.close()
        raise ConfigError(
            "cluster.elastic: ranks of torchrun cannot continue without one that died; 'torchrun "
            "--max-restarts=3 … -m fastrl resume RUN' continues with the remaining ones"
        )
    if ranks.size > 1 or not _learns_on_nodes(config):
        return _train(config, name, console, callbacks, ranks=ranks)
    path = new_run_path(config, name)
    config = config.model_copy(update={"run_dir": str(path)})
    lead = partial(_train, config, None, console, callbacks)
    again = partial(_resume, path, (), "last", True, console, callbacks)
    return _on_nodes(config, lead, partial(_train, config), again)


def _train(
    config: Config,
    name: str | None = None,
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    ranks: Ranks,
) -> TrainedRun:
    """Train as one of several ranks, or alone."""
    with together(ranks), ExitStack() as stack:
        config = _resolved(config, ranks)
        require_alike(ranks, config)
        if ranks.leads:
            check_new_run(config, name)
        with waiting(console, _BUILDING_ALL):
            session = TrainingSession(config, console=console, callbacks=callbacks, ranks=ranks)
        run: RunDirectory | None = None
        if ranks.leads:
            run = stack.enter_context(closing(make_run_directory(config, name)))
        path = Path(ranks.broadcast(run and str(run.path)))
        config = config.model_copy(update={"run_dir": str(path)})
        return TrainedRun(path, config, session.run(path, run))


@without_hangups()
def resume(
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    checkpoint: str = "last",
    trust: bool = False,
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
    ranks: Ranks | None = None,
) -> TrainedRun:
    """Resume a run from one of its checkpoints; play only its final evaluation if training is done.

    Training continues as if it had not stopped, except that environments that cannot be saved begin
    new episodes, with other seeds than at the beginning (see `fastrl.envs.state`).

    Args:
        run: Directory of the run, or its name under ``runs/``.
        overrides: Changes of its configuration, ``section.key=value`` each.
        checkpoint: Name of a checkpoint, ``last`` or ``best``. Newer ones are set aside.
        trust: Whether a run of another user may import the code that its configuration names.
        console: Console that shows the progress; none by default.
        callbacks: As for `train`; callbacks that were passed there must be passed again.
        ranks: As for `train`; the number may differ from before. Only rank 0 reads the
            directory, and only its arguments are used.

    Raises:
        ConfigError: There is no such run, another process trains in it, it is complete, or it would
            import code that this user has not trusted.
        CheckpointError: The checkpoint is damaged or foreign.
        FastrlError: As for `train`.
    """
    ranks = ranks_of_environment() if ranks is None else instance("ranks", ranks, Ranks)
    lead = partial(_resume, run, overrides, checkpoint, trust, console, callbacks)
    if ranks.size > 1 or not _learns_on_nodes(config := read_config(find_run(run), overrides)):
        return lead(ranks=ranks)
    again = partial(_resume, run, (), "last", trust, console, callbacks)
    return _on_nodes(config, lead, _resume, again)


def _resume(
    run: str | Path = "",
    overrides: Sequence[str] = (),
    checkpoint: str = "last",
    trust: bool = False,
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    ranks: Ranks,
) -> TrainedRun:
    """Resume as one of several ranks, or alone; only the arguments of rank 0 are used."""
    with together(ranks), ExitStack() as stack:
        directory: RunDirectory | None = None
        start, found = None, None
        if ranks.leads:
            path = find_run(run)
            before = read_config(path)
            if not trust:
                require_trust(path, before)
            directory = stack.enter_context(closing(RunDirectory.open(path)))
            config = _changed(path, overrides, ranks)
            store = CheckpointStore(path / "checkpoints")
            store.clean()
            start = _start(store, checkpoint, directory)
            # Otherwise only the final evaluation may be missing.
            if start is not None and start.steps >= config.total_steps:
                _require_unfinished(path, directory, start.steps, config.total_steps)
            found = [str(path), *(each.model_dump(mode="json") for each in (before, config))]
        place, *trees = ranks.broadcast(found)
        start = shared_checkpoint(start, ranks)
        if directory is None:
            path = Path(place)
            before, config = (Config.model_validate(tree) for tree in trees)
            config = resolved(config)
        require_alike(ranks, config)
        trained_with = None if start is None else before
        with waiting(console, _BUILDING_ALL):
            session = TrainingSession(config, start, console, trained_with, callbacks, ranks)
        if directory is not None:
            directory.write_config(config)
            directory.write_summary(None)
            if start is not None:
                store.set_aside_after(start.name)
        return TrainedRun(path, config, session.run(path, directory))


def _changed(path: Path, overrides: Sequence[str], ranks: Ranks) -> Config:
    """Return the configuration with which a run is resumed."""
    config = _resolved(read_config(path, overrides), ranks)
    changed = {text.partition("=")[0].strip() for text in overrides}
    if "run_dir" in changed:
        raise ConfigError(f"run_dir: a resumed run stays in its directory, '{path}'")
    if "init_from" in changed:
        raise ConfigError("init_from: a resumed run keeps its weights; begin a new run")
    return config.model_copy(update={"run_dir": str(path)})


def _require_unfinished(path: Path, run: RunDirectory, steps: int, total: int) -> None:
    """Reject a run at its end, unless its final evaluation is missing."""
    if run.summary.exists():
        enough = total if steps < 2 * total else steps
        raise ConfigError(
            f"'{path}' has trained its {steps} steps; to continue: "
            f"fastrl resume {path} total_steps={2 * enough}"
        )


def _learns_on_nodes(config: Config) -> bool:
    return config.cluster is not None and config.cluster.mode == "gradients"


def _on_nodes(
    config: Config,
    lead: Callable[..., TrainedRun],
    follow: Callable[..., Any],
    again: Callable[..., TrainedRun],
) -> TrainedRun:
    """Train with a rank on each node of the cluster.

    Args:
        config: Configuration with a section ``cluster``.
        lead: Function of this process, rank 0; called with ``ranks``.
        follow: Function of the other ranks, called with ``ranks``.
        again: Function of this process after the death of a rank if ``cluster.elastic`` is true.
    """
    from fastrl.cluster.node_ranks import NodeRanks

    assert config.cluster is not None
    with NodeRanks(config) as nodes:
        while True:
            died = False
            try:
                with nodes.ranks(follow) as ranks:
                    try:
                        return lead(ranks=ranks)
                    finally:
                        died = ranks.died is not None
            except WorkerError as error:
                if not (died and config.cluster.elastic and Path(config.run_dir or "").is_dir()):
                    raise
                _LOGGER.warning("%s; the others continue from the last checkpoint", error)
            lead, follow = again, _resume


def evaluate_run(
    run: str | Path,
    *,
    episodes: int | None = None,
    deterministic: bool | None = None,
    seed: int | None = None,
    checkpoint: str | None = None,
    trust: bool = False,
    console: Console | None = None,
) -> Evaluated:
    """Play episodes with a policy of a run, in this process.

    Args:
        run: Its directory, its name under ``runs/``, or the directory of one of its checkpoints.
        episodes: Number of episodes; by default ``evaluation.final_episodes``.
        deterministic: Whether to take the most probable actions; by default as configured.
        seed: Seed of the episodes; by default that of the final evaluation, which differs from that
            of the evaluations that chose the best checkpoint.
        checkpoint: Name of a checkpoint, ``last`` or ``best``; by default the best one if
            there is one, else the last.
        trust: As for `resume`.
        console: Console that shows the progress; none by default.

    Raises:
        ConfigError: There is no such run, or it would import code that this user has not trusted.
        CheckpointError: The checkpoint is missing, damaged or foreign.
        EnvError: The environment cannot be built, or broke its contract.
    """
    with waiting(console, BUILDING):
        _, config, found = opened_run(run, checkpoint, trust)
        factory, env_spec, model = _policy(config, found)
    protocol = _protocol(config, episodes, deterministic, seed)
    with watched_episodes(console, protocol.episodes) as watch:
        result = evaluate(model, env_spec, factory.batched, protocol, watch)
    return Evaluated(found.name, found.steps, result)


def record_run(
    run: str | Path,
    video: str | Path | None = None,
    *,
    episodes: int = 1,
    deterministic: bool | None = None,
    seed: int | None = None,
    checkpoint: str | None = None,
    trust: bool = False,
) -> tuple[Path, list[float]]:
    """Write a video of a policy of a run; return its path and the returns of its episodes.

    Args:
        run: As for `evaluate_run`.
        video: File, ending in .mp4 or .gif; by default under the run's ``videos/``, an MP4 with
            the extra 'video', else a GIF.
        episodes: Number of episodes, one after the other.
        deterministic: As for `evaluate_run`.
        seed: As for `evaluate_run`.
        checkpoint: As for `evaluate_run`.
        trust: As for `resume`.

    Raises:
        ConfigError: As for `evaluate_run`, or the file cannot be written here.
        CheckpointError: The checkpoint is missing, damaged or foreign.
        EnvError: The environment cannot be rendered.
    """
    directory, config, found = opened_run(run, checkpoint, trust)
    named = directory / "videos" / f"{found.name}{default_ending()}"
    path = named if video is None else file_path("video", video)
    if video is None:
        require_own_files(directory)
    check_animation(path)
    factory, env_spec, model = _policy(config, found)
    recorder = Recorder(factory, env_spec, _protocol(config, episodes, deterministic, seed))
    return path, recorder(model, path)


def open_game(
    run: str | Path, *, checkpoint: str | None = None, seed: int | None = None, trust: bool = False
) -> tuple[EnvFactory, TrainedPolicy]:
    """Return the factory of a run's evaluation environment, and a policy of the run.

    Args:
        run: As for `evaluate_run`.
        checkpoint: As for `evaluate_run`.
        seed: Seed of sampled actions; None for a random one.
        trust: As for `resume`.

    Raises:
        ConfigError: There is no such run, or it would import code that this user has not trusted.
        CheckpointError: The checkpoint is missing, damaged or foreign.
        EnvError: The environment cannot be built.
    """
    _, config, found = opened_run(run, checkpoint, trust)
    factory, env_spec, model = _policy(config, found)
    model.eval()
    return factory, TrainedPolicy(model, env_spec, config.env.action_bounds, seed)


def load_policy(
    run: str | Path, *, checkpoint: str | None = None, seed: int | None = None, trust: bool = False
) -> TrainedPolicy:
    """Return a trained policy of a run.

    Its environment is not built, unless an earlier version of fastrl wrote the run.

    Args:
        run: As for `evaluate_run`.
        checkpoint: As for `evaluate_run`.
        seed: Seed of sampled actions; None for a random one.
        trust: As for `resume`.

    Raises:
        ConfigError: There is no such run, or it would import code that this user has not trusted.
        CheckpointError: The checkpoint or the file of the spaces is missing, damaged or foreign.
        EnvError: The environment of a run of an earlier version cannot be built.
    """
    return _loaded(*opened_run(run, checkpoint, trust), seed)


def export_run(
    run: str | Path,
    format: str,
    output: str | Path | None = None,
    *,
    checkpoint: str | None = None,
    trust: bool = False,
) -> Path:
    """Write a policy of a run as a file for other programs; return its path.

    The file is compared with the policy on random observations before it is written.

    Args:
        run: As for `evaluate_run`.
        format: ``torchscript`` or ``onnx``.
        output: The file; by default ``policy.pt`` or ``policy.onnx`` in the run's directory.
        checkpoint: As for `evaluate_run`.
        trust: As for `resume`.

    Raises:
        ConfigError: As for `load_policy`; or the policy cannot be exported.
        CheckpointError: As for `load_policy`.
        WriteError: The file cannot be written.
    """
    check_policy_format(format)
    directory, config, found = opened_run(run, checkpoint, trust)
    if output is None:
        require_own_files(directory)
    path = (
        directory / f"policy{POLICIES[format]}" if output is None else file_path("output", output)
    )
    export(_loaded(directory, config, found, None), format, path)
    return path


def _loaded(path: Path, config: Config, found: Checkpoint, seed: int | None) -> TrainedPolicy:
    env_spec = read_spec(path / SPACES) or evaluation_factory(config).probe()
    model = _model(config, env_spec, found)
    return TrainedPolicy(model.eval(), env_spec, config.env.action_bounds, seed)


def _resolved(config: Config, ranks: Ranks) -> Config:
    """Return the configuration with a custom algorithm's section, and without ``auto``.

    With several ranks, each resolves the number of its own workers; so does each node of a cluster.
    """
    config = resolved(config)
    if config.cluster is not None and not _learns_on_nodes(config):
        return config
    topology = config.topology
    sizes: dict[str, int] = {}
    if ranks.size == 1:
        sizes["num_env_workers"] = topology.num_env_workers
    if topology.by_slot or ranks.size > 1:
        sizes["num_envs"] = topology.num_envs
    return config.model_copy(update={"sampler": config.sampler.model_copy(update=sizes)})


def _start(store: CheckpointStore, checkpoint: str, run: RunDirectory) -> Checkpoint | None:
    """Return the checkpoint to resume; None if the run ended before its first one."""
    if checkpoint == "last" and not store.names() and not run.has_metrics:
        return None
    found = _load(store, checkpoint)
    if not found.state:
        raise CheckpointError(
            f"checkpoint {found.name} contains only weights, since the run was shared; begin "
            f"a new run with them: init_from={run.path}"
        )
    return found


def _load(store: CheckpointStore, checkpoint: str) -> Checkpoint:
    try:
        return store.load(checkpoint)
    except CheckpointError as error:
        hint = "; choose with --checkpoint" if store.names() else ""
        raise CheckpointError(f"{error}{hint}") from error


def opened_run(
    run: str | Path, checkpoint: str | None, trust: bool
) -> tuple[Path, Config, Checkpoint]:
    """Return the directory of a run, its configuration and a checkpoint.

    Args:
        run: As for `evaluate_run`.
        checkpoint: As for `evaluate_run`.
        trust: As for `resume`.

    Raises:
        ConfigError: There is no such run, or it would import code that this user has not trusted.
        CheckpointError: The checkpoint is missing, damaged or foreign.
    """
    path, name = locate(run, checkpoint)
    config = read_config(path)
    if not trust:
        require_trust(path, config)
    found = _load(CheckpointStore(path / "checkpoints"), name)
    check_environment(found, config)
    return path, config, found


def _policy(config: Config, checkpoint: Checkpoint) -> tuple[EnvFactory, EnvSpec, Any]:
    factory = evaluation_factory(config)
    env_spec = factory.probe()
    factory = factory.with_masks_of(env_spec)
    return factory, env_spec, _model(config, env_spec, checkpoint)


def _model(config: Config, env_spec: EnvSpec, checkpoint: Checkpoint) -> Any:
    with seeded_weights(config.seed):  # the caller's stream does not change
        model = build_model(env_spec, config.model, config.env.action_bounds)
    load_model(model, checkpoint)
    return model


def _protocol(
    config: Config, episodes: int | None, deterministic: bool | None, seed: int | None
) -> EvaluationProtocol:
    given = {"episodes": episodes, "deterministic": deterministic, "seed": seed}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if episodes is not None:  # All of them are played, without the configured limits.
        changes |= {"max_steps": None, "max_s": None}
    return dataclasses.replace(final_protocol(config), **changes)
