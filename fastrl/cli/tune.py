"""The command that chooses n, N, M, groups, device and engine."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastrl.cli.arguments import ConfigArguments, EnvOption, check_output, split_arguments
from fastrl.cli.output import QuietConsole, note, show_tables
from fastrl.config import Config, load_config
from fastrl.errors import ConfigError

if TYPE_CHECKING:
    from fastrl.tuning import Candidate, Trial
    from fastrl.tuning.report import TuneReport

_EXIT_INTERRUPTED = 130
_BUDGET_HELP = "Time to spend, such as 90s or 5m; starting takes some seconds at least."
_BUSY = 0.25
"""Share of the cores that others may use without a warning."""


def tune(
    arguments: ConfigArguments = None,
    env: EnvOption = None,
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help=_BUDGET_HELP)] = "120s",
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            metavar="fps|train_fps",
            help="fps: sampling alone; train_fps: with the learner.",
        ),
    ] = "fps",
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch", metavar="B|LO:HI", help="Environments of all workers, N * n, to keep."
        ),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Put the result into CONFIG; comments stay.")
    ] = False,
    overlay: Annotated[
        Path | None, typer.Option("--overlay", metavar="FILE", help="Write it as an overlay.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result here.")
    ] = None,
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="DIR", help="Draw pictures there.")
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option("--study", metavar="FILE", help="Keep trials here; an Optuna study, SQLite."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget earlier trials instead of going on.")
    ] = False,
    seed: Annotated[
        int, typer.Option("--seed", metavar="INT", min=0, help="Seed of the search.")
    ] = 0,
) -> int:
    """Find the fastest way to sample an environment with a policy on this machine."""
    path, overrides = split_arguments(arguments, env)
    config = load_config(path, overrides)
    if objective not in ("fps", "train_fps"):
        raise ConfigError(f"--objective must be fps or train_fps; got '{objective}'")
    if write and path is None:
        raise ConfigError("--write needs a CONFIG file to write into; or use --overlay FILE")
    for option, file in (("--json", json_file), ("--overlay", overlay), ("--study", study)):
        check_output(option, file)
    check_output("--plots", plots, directory=True)
    if write:
        check_output("--write", path)
    from fastrl.tuning.study import StudyCache, StudyJournal, undamaged_study
    from fastrl.tuning.tune import (
        TuneOptions,
        Tuning,
        parse_batch,
        parse_seconds,
        study_name,
        study_path,
    )

    options = TuneOptions(
        objective="train_fps" if objective == "train_fps" else "fps",
        budget_s=parse_seconds(budget),
        batch=parse_batch(batch),
        seed=seed,
    )
    _warn_if_busy()
    interrupted = False
    command = shlex.join(["fastrl", *sys.argv[1:]])
    with ExitStack() as stack:
        name = study_name(config, options)
        # A file that is named must be one that can be used; the user's cache need not be.
        named = None if study is None else StudyJournal(study, name, fresh=fresh)
        journal = StudyCache(
            lambda: named or undamaged_study(study_path(), name, fresh=fresh), note
        )
        stack.enter_context(journal)
        tuning = stack.enter_context(Tuning(config, options, journal, _Lines(), command))
        try:
            report = tuning.run()
        except KeyboardInterrupt:
            tuning.close()
            report, interrupted = tuning.report(), True
    show_tables(report.to_rich())
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    if plots is not None:
        _draw(report, plots)
    if interrupted:
        note("stopped; the same command goes on, and nothing was written into configurations")
        return _EXIT_INTERRUPTED
    _write(config, report, path if write else None, overlay, path)
    return 0


def _warn_if_busy() -> None:
    """Say so where others compute: then many processes win, as each gets a share of the cores."""
    import psutil

    busy = psutil.cpu_percent(interval=0.2) / 100
    if busy > _BUSY:
        note(f"other programs keep {busy:.0%} of the cores busy: tune again when they do not")


class _Lines:
    """Tells of every trial on standard error."""

    def __init__(self) -> None:
        self._console = QuietConsole(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._spent_s = 0.0

    def __call__(self, trial: Trial, best: Candidate | None) -> None:
        self._spent_s += trial.cost_s
        if trial.fps is None:
            told = f"failed: {trial.error[:80]}"
        elif trial.reference is None or not trial.reference_fps:
            told = f"{trial.fps:>12,.0f} frames/s"
        else:
            ratio = trial.fps / trial.reference_fps
            told = f"{trial.fps:>12,.0f} frames/s  {ratio:.2f} × {trial.reference.label}"
        self._console.print(f"{self._spent_s:5.0f} s  {trial.candidate.label:<32} {told}")


def _draw(report: TuneReport, directory: Path) -> None:
    from fastrl.tuning.plots import plot_tuning

    for picture in plot_tuning(report, directory):
        note(f"{picture}")


def _write(
    config: Config, report: TuneReport, into: Path | None, overlay: Path | None, base: Path | None
) -> None:
    from fastrl.tuning.apply import write_into, write_overlay

    best = report.finding.best
    if into is not None:
        write_into(into, config, best)
        note(f"{into}: {best.label}")
    if overlay is not None:
        write_overlay(overlay, base, config, best)
        note(f"{overlay}: {best.label}")
