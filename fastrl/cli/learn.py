"""The commands that train, and those that use trained policies or runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastrl.cli.inputs import (
    ConfigArguments,
    EnvOption,
    check_new_output,
    check_output,
    check_run,
    command_line,
    is_alone,
    names_of_runs,
    option,
    path_of,
    read_arguments,
)
from fastrl.cli.output import (
    loading,
    note,
    progress_console,
    show_wait,
    write,
    write_json,
    write_wrapped,
)
from fastrl.errors import ConfigError
from fastrl.formats import check_animation, check_ending, check_policy_format
from fastrl.runs import (
    check_checkpoint,
    check_new_run,
    check_pull,
    check_push,
    find_run,
    read_config,
)
from fastrl.workers.descent import without_hangups

if TYPE_CHECKING:
    from fastrl.training import TrainedRun
    from fastrl.training.evaluation import EvaluationResult

EXIT_NOT_REACHED = 1
EXIT_TRIALS_FAILED = 1
_EPISODES = 1_000_000
_EXIT_SIGNAL = 128
"""Added to the number of a signal for the exit code, as in shells."""

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Directory of a run, or its name under runs/.",
        autocompletion=names_of_runs,
    ),
]
Seed = Annotated[int | None, option("--seed", "INT", "Seed of the episodes.", min=0, max=2**32 - 1)]
Sampled = Annotated[
    bool, typer.Option("--sampled", help="Sample actions instead of taking the likeliest.")
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Import the code that another user's run names; read it first."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress and no remarks.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as an object instead of lines.")
]
CheckpointName = Annotated[
    str | None,
    option(
        "--checkpoint",
        "NAME",
        "'last', 'best' or a name under checkpoints/; by default the best, if there is one.",
    ),
]


@without_hangups()
def train(
    arguments: ConfigArguments = None,
    env: EnvOption = None,
    name: Annotated[str | None, option("--name", "NAME")] = None,
    fresh: Annotated[bool, typer.Option("--fresh")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> int:
    """Train an agent; Ctrl-C saves and ends, and 'fastrl resume' continues.

    Options:
        name: Name of the run's directory under runs/.
        fresh: With sampler: auto, discard earlier results and tune again.

    Examples:
        fastrl train CartPole-v1 total_steps=100_000
        fastrl train configs/cartpole_ppo.yaml --name first seed=1
        fastrl train configs/cartpole_ppo.yaml --name second seed=2
        fastrl train CartPole-v1 sampler=auto
    """
    with loading(quiet=quiet, imports_torch=False):
        _, _, resolved = read_arguments(arguments, env)
        if fresh and resolved.sampler.tune_s is None:
            raise ConfigError("--fresh needs a sampler that is tuned; write 'sampler: auto'")
        if is_alone():
            check_new_run(resolved, name)
    with loading(quiet=quiet):
        from fastrl.learning.ranks import ranks_of_environment
        from fastrl.training import train as train_run

    console = None if quiet else progress_console()
    ranks = ranks_of_environment()
    if resolved.sampler.tune_s is not None and ranks.size > 1:
        ranks.close()
        raise ConfigError("sampler: auto tunes one process; run 'fastrl tune' before torchrun")
    if resolved.sampler.tune_s is not None:
        from fastrl.tuning import tuned

        resolved = tuned(resolved, console, fresh=fresh)
    trained = train_run(resolved, name=name, console=console, ranks=ranks)
    return _report(trained, ranks.leads, as_json)


@without_hangups()
def resume(
    run: Run,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE")] = None,
    checkpoint: Annotated[str, option("--checkpoint", "NAME")] = "last",
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> int:
    """Continue a run that was stopped.

    Options:
        overrides: Changes, such as total_steps=2e6.
        checkpoint: Where to continue; newer ones are set aside.

    Examples:
        fastrl resume first total_steps=2e5
        fastrl resume runs/second total_steps=2e5
    """
    changes = overrides or ()
    if is_alone():
        with loading(quiet=quiet, imports_torch=False):
            path = find_run(run)
            read_config(path, changes)
            if checkpoint != "last":  # there may be none yet
                check_checkpoint(path, checkpoint)
    with loading(quiet=quiet):
        from fastrl.learning.ranks import ranks_of_environment
        from fastrl.training import resume as resume_run

    console = None if quiet else progress_console()
    ranks = ranks_of_environment()
    trained = resume_run(
        run, changes, checkpoint=checkpoint, trust=trust, console=console, ranks=ranks
    )
    return _report(trained, ranks.leads, as_json)


@without_hangups()
def sweep(
    arguments: ConfigArguments = None,
    env: EnvOption = None,
    seeds: Annotated[str | None, option("--seeds", "FIRST:END")] = None,
    over: Annotated[list[str] | None, option("--over", "KEY=VALUE,VALUE")] = None,
    space: Annotated[Path | None, option("--space", "FILE")] = None,
    jobs: Annotated[int | None, option("--jobs", "INT", min=1)] = None,
    directory: Annotated[Path | None, option("--dir", "DIR")] = None,
    json_file: Annotated[Path | None, option("--json", "FILE")] = None,
) -> int:
    """Train with several seeds and values side by side, and compare what they learn.

    'fastrl tune' finds the fastest settings; it does not train.

    Ctrl-C saves and ends all trials; the same command continues them.

    Options:
        seeds: Seeds, such as 0:5, which is 0 to 4, or 0,3,7.
        over: Values of a key; given several times, all combinations run.
        space: YAML of ranges from which Optuna draws values instead (extra 'sweep').
        jobs: Trials at a time on each machine; they share its cores (one per core).
        directory: Where to write; by default under runs/, by its content.
        json_file: Write the result here.

    Examples:
        fastrl sweep configs/cartpole_ppo.yaml --seeds 0:5
        fastrl sweep --env CartPole-v1 --over algorithm.gamma=0.98,0.99 --seeds 0:3 --jobs 2
    """
    check_output("--json", json_file)
    check_output("--dir", directory, directory=True)
    path, overrides, _ = read_arguments(arguments, env)
    with loading():
        from fastrl.cli.consoles import show_tables
        from fastrl.sweeps import Sweep, SweepPlan, load_space
        from fastrl.sweeps.sweep_plan import make_grid

    grid = make_grid(seeds, over or ())
    with show_wait("building the environment …"):
        plan = SweepPlan(path, overrides, grid, None if space is None else load_space(space))
        running = Sweep(plan, directory, jobs)
    note(str(running))
    with show_wait("starting trials …") as say:
        report = running.run(lambda trial: note(str(trial)), command_line(), say)
    show_tables(report.to_rich())
    if json_file is not None:
        write_json(report.to_dict(), json_file)
    if picture := report.draw():
        note(str(picture))
    if running.interrupted is not None:
        note("stopped and saved; the same command continues")
        return _EXIT_SIGNAL + running.interrupted.value
    return EXIT_TRIALS_FAILED if any(t.state == "failed" for t in report.trials) else 0


def evaluate(
    run: Run,
    episodes: Annotated[int | None, option("--episodes", "INT", min=1, max=_EPISODES)] = None,
    sampled: Sampled = False,
    seed: Seed = None,
    checkpoint: CheckpointName = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Play episodes with a trained policy and print the returns.

    Options:
        episodes: Episodes to play; by default evaluation.final_episodes.

    Examples:
        fastrl eval runs/first --episodes 20
        fastrl eval first --checkpoint last --sampled --seed 3
    """
    check_run(run, checkpoint)
    with loading():
        from fastrl.training import evaluate_run

    found = evaluate_run(
        run,
        episodes=episodes,
        deterministic=False if sampled else None,
        seed=seed,
        checkpoint=checkpoint,
        trust=trust,
        console=progress_console(),
    )
    if as_json:
        about = {"checkpoint": found.checkpoint, "steps": found.steps}
        write_json(about | _as_json(found.result))
        return
    write_wrapped(f"{found.checkpoint}, after {found.steps:,} steps: {_describe(found.result)}")


def record(
    run: Run,
    video: Annotated[Path | None, option("--video", "FILE")] = None,
    dataset: Annotated[Path | None, option("--dataset", "DIR")] = None,
    episodes: Annotated[int | None, option("--episodes", "INT", min=1, max=_EPISODES)] = None,
    policy: Annotated[str | None, option("--policy", "PATH")] = None,
    sampled: Sampled = False,
    seed: Seed = None,
    checkpoint: CheckpointName = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Write a video of a trained policy, or a dataset of its episodes.

    Options:
        video: An .mp4 (extra 'video') or .gif; by default under the run's videos/.
        dataset: Write a dataset in Minari's format instead (extra 'minari'), with all workers.
        episodes: Episodes to record; by default 1 in a video and 100 in a dataset.
        policy: With --dataset, a function 'package.module:name' of an observation plays; RUN is
            then an environment's id or a YAML file.

    Examples:
        fastrl record first
        fastrl record first --video cartpole.gif --episodes 3
        fastrl record first --dataset datasets/cartpole --episodes 20
    """
    options: dict[str, Any] = {
        "deterministic": False if sampled else None,
        "seed": seed,
        "checkpoint": checkpoint,
        "trust": trust,
    }
    if dataset is None and policy is not None:
        raise ConfigError("--policy needs --dataset")
    if policy is not None and (sampled or trust or checkpoint is not None):
        raise ConfigError("--sampled, --checkpoint and --trust are for runs, not for --policy")
    if dataset is not None:
        if video is not None:
            raise ConfigError("--video and --dataset exclude each other")
        check_new_output("--dataset", dataset)
    if video is not None:
        check_animation(video)
    if policy is None:
        check_run(run, checkpoint)
    if dataset is not None:
        _record_dataset(run, dataset, episodes or 100, policy, options, as_json)
        return
    with loading():
        from fastrl.training import record_run

    with show_wait("recording …"):
        path, returns = record_run(run, video, episodes=episodes or 1, **options)
    if as_json:
        write_json({"video": str(path), "returns": returns})
        return
    played = ", ".join(f"{value:,.1f}" for value in returns)
    write(f"{path}: return {played}")


def _record_dataset(
    run: str,
    dataset: Path,
    episodes: int,
    policy: str | None,
    options: Mapping[str, Any],
    as_json: bool,
) -> None:
    config = None if policy is None else read_arguments([run])[-1]
    with loading():
        from fastrl.training import record_dataset, record_function

    console = progress_console()
    if config is None or policy is None:
        found = record_dataset(run, dataset, episodes=episodes, console=console, **options)
    else:
        found = record_function(
            config, policy, dataset, episodes=episodes, seed=options["seed"], console=console
        )
    steps = int(found.lengths.sum())
    if as_json:
        about = {"dataset": str(found.path), "steps": steps, "returns": found.returns.tolist()}
        write_json(about)
        return
    write(
        f"{found.path}: {len(found.lengths):,} episodes, {steps:,} steps, return "
        f"{found.returns.mean():,.1f} ± {found.returns.std():,.1f} "
        f"({steps / found.wall_s:,.0f} steps/s)"
    )


def export(
    run: Run,
    format: Annotated[str, option("--format", "NAME")],
    output: Annotated[Path | None, option("--output -o", "FILE")] = None,
    checkpoint: CheckpointName = None,
    trust: Trust = False,
) -> None:
    """Write a trained policy as a file for other programs, and compare both on observations.

    Options:
        format: 'torchscript', or 'onnx' (extra 'onnx').
        output: By default policy.pt or policy.onnx in the run's directory.

    Examples:
        fastrl export first --format torchscript
        fastrl export first --format onnx --output cartpole.onnx
    """
    check_policy_format(format, "--format")
    check_output("--output", output)
    check_run(run, checkpoint)
    with loading():
        from fastrl.training import export_run

    with show_wait("exporting …"):
        path = export_run(run, format, output, checkpoint=checkpoint, trust=trust)
    write(str(path))


def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", autocompletion=names_of_runs)],
    output: Annotated[Path, option("--output -o", "FILE")] = Path("learning_curves.png"),
    evaluation: Annotated[bool, typer.Option("--evaluation")] = False,
    metric: Annotated[str, option("--metric", "NAME")] = "return_mean",
    title: Annotated[str | None, option("--title", "TEXT")] = None,
) -> None:
    """Draw learning curves; runs that differ in their seed alone become one, with a spread.

    Options:
        runs: Directories of runs, or their names.
        output: Where to write the picture.
        evaluation: Plot evaluations instead of training returns.
        metric: What to plot, such as info/is_success.
        title: By default the keys that all runs share.

    Examples:
        fastrl plot first second --output curves.png
        fastrl plot first --metric explained_variance
    """
    check_ending(output)
    check_output("--output", output)
    for run in runs:
        find_run(run)
    with loading():
        from fastrl.training.plotting import plot_runs

    with show_wait("drawing …"):
        plot_runs(runs, output, "evaluation" if evaluation else "training", metric, title)
    write(str(output))


def _report(trained: TrainedRun, leads: bool, as_json: bool) -> int:
    """Print the outcome of training, on rank 0; return the exit code."""
    config, outcome = trained.config, trained.outcome
    if not leads:
        return 0 if outcome.interrupted is None else _EXIT_SIGNAL + outcome.interrupted.value
    if as_json:
        write_json({"run": str(trained.path), **outcome.summary(config)})
    else:
        _describe_run(trained)
    if outcome.interrupted is not None:
        note(_how_to_continue(trained))
        return _EXIT_SIGNAL + outcome.interrupted.value
    wanted, metric = config.evaluation.stop_at, config.evaluation.metric
    if wanted is None or outcome.evaluation is None or outcome.evaluation.score(metric) >= wanted:
        return 0
    what = "the return" if metric == "return_mean" else metric
    note(f"{what} did not reach evaluation.stop_at={wanted:g}")
    return EXIT_NOT_REACHED


def _describe_run(trained: TrainedRun) -> None:
    config, outcome = trained.config, trained.outcome
    speed = outcome.steps / outcome.wall_s
    write_wrapped(
        f"{config.env.id}, {config.algorithm.name.upper()}, seed {config.seed}: "
        f"{outcome.steps:,} steps in {outcome.wall_s:,.1f} s ({speed:,.0f} steps/s)"
    )
    if outcome.evaluation is not None:
        how = "deterministic" if config.evaluation.deterministic else "sampled"
        write_wrapped(f"evaluation ({how} actions): {_describe(outcome.evaluation)}")
    write(f"run: {trained.path}")


def _how_to_continue(trained: TrainedRun) -> str:
    if trained.outcome.steps < trained.config.total_steps:
        return f"stopped and saved; to continue: fastrl resume {trained.path}"
    return (
        f"trained and saved; the final evaluation was stopped: fastrl eval {trained.path} plays "
        f"episodes, fastrl resume {trained.path} finishes the run"
    )


def _as_json(result: EvaluationResult) -> dict[str, object]:
    return {
        "return_mean": result.return_mean,
        "return_std": result.return_std,
        "length_mean": result.length_mean,
        "returns": list(result.returns),
        "lengths": list(result.lengths),
        "cut": result.cut,
        "info": result.info_means(),
    }


def _describe(result: EvaluationResult) -> str:
    info = "".join(f", {name} {mean:.4g}" for name, mean in result.info_means().items())
    remark = f" ({result.remark()})" if result.remark() else ""
    return (
        f"return {result.return_mean:,.1f} ± {result.return_std:,.1f} over "
        f"{len(result.returns)} episodes, {result.length_mean:,.0f} steps each{info}{remark}"
    )


Repo = Annotated[
    str,
    typer.Argument(
        metavar="REPO",
        help="owner/name on the Hugging Face hub (extra 'hub'), or a folder such as ./name.",
    ),
]


def push(
    run: Run,
    repo: Repo,
    checkpoint: CheckpointName = None,
    private: Annotated[bool, typer.Option("--private")] = False,
) -> None:
    """Share a policy: weights, configuration, versions, metrics, and a page with curve and video.

    The state that training resumes from is not shared. 'hf auth login' logs in to the hub.

    Options:
        private: Create a private repository, if it is missing.

    Examples:
        fastrl push runs/first ./shared/first --checkpoint last
        fastrl push first someone/cartpole --private
    """
    check_run(run, checkpoint)
    check_push(repo)
    with loading():
        from fastrl.training import push_run

    with show_wait("sharing …"):
        where = push_run(run, repo, checkpoint=checkpoint, private=private)
    write(where)


def pull(
    repo: Repo,
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", show_default=False, parser=path_of("DIR"))
    ] = None,
    revision: Annotated[str | None, option("--revision", "NAME")] = None,
) -> None:
    """Copy a shared run; 'fastrl eval' then plays what its author's command played.

    Options:
        directory: A new directory; by default runs/ and the last part of REPO.
        revision: A branch, tag or commit on the hub.

    Examples:
        fastrl pull ./shared/first runs/theirs
        fastrl pull someone/cartpole
    """
    check_pull(repo, directory, revision)
    with loading():
        from fastrl.training import pull_run
        from fastrl.training.trust import named_code

    with show_wait("copying …"):
        path = pull_run(repo, directory, revision=revision)
    write(str(path))
    if named := named_code(read_config(path)):
        note(f"it imports {', '.join(named)}: read that code before you use the run with --trust")
