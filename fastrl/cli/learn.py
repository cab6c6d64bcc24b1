"""Commands that train, and that show what was learnt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastrl.cli.arguments import ConfigArguments, EnvOption, check_output, split_arguments
from fastrl.cli.output import QuietConsole, note, write
from fastrl.config import load_config
from fastrl.errors import ConfigError
from fastrl.workers.descent import without_hangups

if TYPE_CHECKING:
    from fastrl.training import TrainedRun
    from fastrl.training.evaluation import EvaluationResult

EXIT_NOT_REACHED = 1
_EPISODES = 1_000_000
_EXIT_SIGNAL = 128
"""What shells add to the number of a signal that ended a process."""

Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Directory of a run, or its name under runs/.")
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="INT", min=0, max=2**32 - 1, help="Seed of the episodes."),
]
Sampled = Annotated[
    bool, typer.Option("--sampled", help="Sample actions instead of taking the likeliest.")
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Import the code that a run from elsewhere names; read it first."),
]
CheckpointName = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="NAME",
        help="'last', 'best' or a name under checkpoints/; by default the best, if there is one.",
    ),
]


@without_hangups()
def train(
    arguments: ConfigArguments = None,
    env: EnvOption = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of the run's directory under runs/."),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Where the sampler is 'auto': tune anew, whatever is kept."),
    ] = False,
) -> int:
    """Train an agent; Ctrl-C saves and ends, and 'fastrl resume' goes on."""
    path, overrides = split_arguments(arguments, env)
    resolved = load_config(path, overrides)
    if fresh and resolved.sampler.tune_s is None:
        raise ConfigError("--fresh tunes anew, and nothing is tuned here; write 'sampler: auto'")
    from fastrl.training import train as train_run

    console = QuietConsole(stderr=True)
    if resolved.sampler.tune_s is not None:
        from fastrl.tuning.auto import tuned

        resolved = tuned(resolved, console, fresh=fresh)
    return _report(train_run(resolved, name=name, console=console))


@without_hangups()
def resume(
    run: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes, such as total_steps=2e6."),
    ] = None,
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint", metavar="NAME", help="Where to go on; newer ones are set aside."
        ),
    ] = "last",
    trust: Trust = False,
) -> int:
    """Go on with a run that was stopped."""
    from fastrl.training import resume as resume_run

    changes = overrides or ()
    console = QuietConsole(stderr=True)
    return _report(resume_run(run, changes, checkpoint=checkpoint, trust=trust, console=console))


def evaluate(
    run: Run,
    episodes: Annotated[
        int | None,
        typer.Option("--episodes", metavar="INT", min=1, max=_EPISODES, help="Episodes to play."),
    ] = None,
    sampled: Sampled = False,
    seed: Seed = None,
    checkpoint: CheckpointName = None,
    trust: Trust = False,
) -> None:
    """Play episodes with a trained policy and print how it did."""
    from fastrl.training import evaluate_run

    found = evaluate_run(
        run,
        episodes=episodes,
        deterministic=False if sampled else None,
        seed=seed,
        checkpoint=checkpoint,
        trust=trust,
        console=QuietConsole(stderr=True),
    )
    write(f"{found.checkpoint}, after {found.steps:,} steps: {_describe(found.result)}")


def record(
    run: Run,
    video: Annotated[
        Path | None,
        typer.Option(
            "--video",
            metavar="FILE",
            help="An .mp4 (extra 'video') or .gif; by default under the run's videos/.",
        ),
    ] = None,
    episodes: Annotated[
        int,
        typer.Option("--episodes", metavar="INT", min=1, max=_EPISODES, help="Episodes to record."),
    ] = 1,
    sampled: Sampled = False,
    seed: Seed = None,
    checkpoint: CheckpointName = None,
    trust: Trust = False,
) -> None:
    """Write a video of a trained policy."""
    from fastrl.training import record_run

    path, returns = record_run(
        run,
        video,
        episodes=episodes,
        deterministic=False if sampled else None,
        seed=seed,
        checkpoint=checkpoint,
        trust=trust,
    )
    played = ", ".join(f"{value:,.1f}" for value in returns)
    write(f"{path}: return {played}")


def export(
    run: Run,
    format: Annotated[
        str,
        typer.Option("--format", metavar="NAME", help="'torchscript', or 'onnx' (extra 'onnx')."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="By default policy.pt or .onnx of the run."
        ),
    ] = None,
    checkpoint: CheckpointName = None,
    trust: Trust = False,
) -> None:
    """Write a trained policy as a file for other programs, compared with it on observations."""
    from fastrl.training import export_run

    check_output("--output", output)
    write(str(export_run(run, format, output, checkpoint=checkpoint, trust=trust)))


def plot(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Directories of runs, or their names.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write the picture.")
    ] = Path("learning_curves.png"),
    evaluation: Annotated[
        bool, typer.Option("--evaluation", help="Plot evaluations instead of training returns.")
    ] = False,
    metric: Annotated[
        str, typer.Option("--metric", metavar="NAME", help="Of the rows, such as info/is_success.")
    ] = "return_mean",
    title: Annotated[
        str | None,
        typer.Option("--title", metavar="TEXT", help="By default what all runs have in common."),
    ] = None,
) -> None:
    """Draw learning curves; runs that differ in their seed alone become one, with its spread."""
    from fastrl.training.plotting import FORMATS, plot_runs

    if output.suffix.lower() not in FORMATS:
        raise ConfigError(f"--output '{output}' must end in {', '.join(FORMATS)}")
    check_output("--output", output)
    plot_runs(runs, output, "evaluation" if evaluation else "training", metric, title)
    write(str(output))


def _report(trained: TrainedRun) -> int:
    """Print how training ended; return the exit code."""
    config, outcome = trained.config, trained.outcome
    speed = outcome.steps / outcome.wall_s
    write(
        f"{config.env.id}, {config.algorithm.name.upper()}, seed {config.seed}: "
        f"{outcome.steps:,} steps in {outcome.wall_s:,.1f} s ({speed:,.0f} steps/s)"
    )
    if outcome.evaluation is not None:
        how = "deterministic" if config.evaluation.deterministic else "sampled"
        write(f"evaluation ({how} actions): {_describe(outcome.evaluation)}")
    write(f"run: {trained.path}")
    if outcome.interrupted is not None:
        note(_how_to_go_on(trained))
        return _EXIT_SIGNAL + outcome.interrupted.value
    wanted, metric = config.evaluation.stop_at, config.evaluation.metric
    if wanted is None or outcome.evaluation is None or outcome.evaluation.score(metric) >= wanted:
        return 0
    what = "the return" if metric == "return_mean" else metric
    note(f"{what} did not reach evaluation.stop_at={wanted:g}")
    return EXIT_NOT_REACHED


def _how_to_go_on(trained: TrainedRun) -> str:
    if trained.outcome.steps < trained.config.total_steps:
        return f"stopped and saved; to go on: fastrl resume {trained.path}"
    return (
        f"trained and saved; the final evaluation was stopped: fastrl eval {trained.path} plays "
        f"episodes, fastrl resume {trained.path} finishes the run"
    )


def _describe(result: EvaluationResult) -> str:
    info = "".join(f", {name} {mean:.4g}" for name, mean in result.info_means().items())
    remark = f" ({result.remark()})" if result.remark() else ""
    return (
        f"return {result.return_mean:,.1f} ± {result.return_std:,.1f} over "
        f"{len(result.returns)} episodes, {result.length_mean:,.0f} steps each{info}{remark}"
    )
