"""The commands that measure speed: throughput, and the fastest settings for a machine."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastrl.arguments import brief
from fastrl.cli.checks import busy_share
from fastrl.cli.inputs import (
    ConfigArguments,
    EnvOption,
    check_output,
    command_line,
    option,
    read_arguments,
)
from fastrl.cli.output import loading, note, progress_console, show_wait, write_json
from fastrl.errors import ConfigError

if TYPE_CHECKING:
    from fastrl.config import Config
    from fastrl.throughput.benchmark import Report
    from fastrl.throughput.scaling_plan import ScalingPlan
    from fastrl.tuning import Candidate, Trial
    from fastrl.tuning.tune_report import TuneReport

_EXIT_INTERRUPTED = 130
_BUDGET_HELP = "Time to spend, such as 90s or 5m; starting takes some seconds at least."

JsonFile = Annotated[Path | None, option("--json", "FILE", "Write the result here.")]


def throughput(
    arguments: ConfigArguments = None,
    env: EnvOption = None,
    envs_per_worker: Annotated[int | None, option("-n", "INT")] = None,
    num_env_workers: Annotated[int | None, option("-N", "INT")] = None,
    num_model_workers: Annotated[int | None, option("-M", "INT")] = None,
    groups: Annotated[int | None, option("--groups", "INT")] = None,
    device: Annotated[str | None, option("--device", "DEVICE")] = None,
    mode: Annotated[str | None, option("--mode", "MODE")] = None,
    seconds: Annotated[float, option("--seconds", "S", min=0.1)] = 5.0,
    repeats: Annotated[int, option("--repeats", "INT", min=1)] = 5,
    warm_up: Annotated[float, option("--warm-up", "S", min=0)] = 1.0,
    no_policy: Annotated[bool, typer.Option("--no-policy")] = False,
    limit: Annotated[bool, typer.Option("--limit")] = False,
    train: Annotated[bool, typer.Option("--train")] = False,
    plan_nodes: Annotated[int | None, option("--plan-nodes", "INT", min=1, max=10000)] = None,
    network: Annotated[str | None, option("--network", "SPEED")] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure the environment steps per second of sampling, with the policy in the loop.

    Options:
        envs_per_worker: Environments per env worker (64).
        num_env_workers: Env workers (one per core).
        num_model_workers: Model workers; 0: env workers run the policy.
        groups: Groups per env worker, stepped in turn.
        device: Where the policy runs: cpu or cuda.
        mode: async (default), or sync: all workers wait for each other.
        seconds: Length of a window.
        repeats: Number of windows.
        warm_up: Seconds from the first step to the first window; long episodes need more.
        no_policy: Take random actions, without a policy.
        limit: Measure the physical limit in the same run.
        train: Measure three speeds: environments with random actions, with the policy, and training
            from end to end, each with its limit.
        plan_nodes: Estimate training on up to this number of machines: best cluster.mode, and its
            limit.
        network: Speed of their links, such as 10Gb (default) or 1.2GB. With a section cluster it is
            measured.

    Examples:
        fastrl throughput CartPole-v1 --limit
        fastrl throughput configs/cartpole_ppo.yaml --train --seconds 1 --repeats 3
        fastrl throughput configs/halfcheetah_v4_ppo_tuned.yaml -n 32 -N 2 --json speed.json
    """
    options = {
        "sampler.envs_per_worker": envs_per_worker,
        "sampler.num_env_workers": num_env_workers,
        "sampler.num_model_workers": num_model_workers,
        "sampler.groups": groups,
        "sampler.device": device,
        "sampler.mode": mode,
    }
    check_output("--json", json_file)
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    with loading(imports_torch=False):
        from fastrl.config import load_config

        path, overrides, configured = read_arguments([*(arguments or ()), *given], env)
    resolved = configured
    if plan_nodes is not None and no_policy:
        raise ConfigError("--plan-nodes plans training: leave out --no-policy")
    if train and no_policy:
        raise ConfigError("--train measures random actions as well: leave out --no-policy")
    with loading():
        from fastrl.throughput.benchmark import has_limit, run_throughput
        from fastrl.throughput.measure import Protocol
        from fastrl.throughput.scaling_plan import Network, plan_scaling

    links, cluster = Network.parse("10Gb" if network is None else network), configured.cluster
    if plan_nodes is not None and cluster is not None:
        # The plan is computed from this machine alone.
        overrides.append("cluster=null")
        resolved = configured = load_config(path, overrides)
        if network is None:
            from fastrl.cluster.connection import link_bytes_per_s

            links = Network(link_bytes_per_s(cluster.address), is_measured=True)
    if mode is None and resolved.sampler.kind == "process":
        resolved = load_config(path, [*overrides, "sampler.mode=async"])
    measured = run_throughput(
        resolved,
        Protocol(seconds, repeats, warm_up),
        with_limit=limit or (train and has_limit(resolved)),
        random_actions=no_policy,
        train=configured if train else None,
        console=progress_console(),
        command=command_line(),
    )
    planned = None
    if plan_nodes is not None:
        fps = measured.measurement.fps_median
        planned = plan_scaling(configured, fps, plan_nodes, links)
    _show(measured, json_file, planned)


def tune(
    arguments: ConfigArguments = None,
    env: EnvOption = None,
    budget: Annotated[str, option("--budget", "TIME", _BUDGET_HELP)] = "120s",
    objective: Annotated[str, option("--objective", "fps|train_fps")] = "fps",
    batch: Annotated[str | None, option("--batch", "B|LO:HI")] = None,
    write: Annotated[bool, typer.Option("--write")] = False,
    overlay: Annotated[Path | None, option("--overlay", "FILE")] = None,
    json_file: JsonFile = None,
    plots: Annotated[Path | None, option("--plots", "DIR")] = None,
    study: Annotated[Path | None, option("--study", "FILE")] = None,
    fresh: Annotated[bool, typer.Option("--fresh")] = False,
    seed: Annotated[int, option("--seed", "INT", min=0)] = 0,
) -> int:
    """Find the fastest way to sample an environment with a policy on this machine.

    'fastrl sweep' compares training with several seeds and values.

    Options:
        objective: fps: sampling alone; train_fps: with the learner.
        batch: Keep N * n, the number of environments.
        write: Write an overlay beside CONFIG: CONFIG.tuned.yaml.
        overlay: Write the overlay here.
        plots: Write plots here.
        study: Keep trials here, as JSON lines.
        fresh: Discard earlier trials instead of continuing.
        seed: Seed of the search.

    Examples:
        fastrl tune CartPole-v1 --budget 60s
        fastrl tune configs/cartpole_ppo.yaml --objective train_fps --write
    """
    with loading(imports_torch=False):
        path, _, config = read_arguments(arguments, env)
    if objective not in ("fps", "train_fps"):
        raise ConfigError(f"--objective must be fps or train_fps; got '{objective}'")
    budget_s, sizes = parse_seconds(budget), parse_batch(batch)
    overlays = _overlays(path, write, overlay)
    for flag, file in (("--json", json_file), ("--study", study)):
        check_output(flag, file)
    check_output("--plots", plots, directory=True)
    with loading():
        from fastrl.tuning.study import Study, TrialError, cached_study
        from fastrl.tuning.tune import TuneOptions, Tuning, study_name
        from fastrl.tuning.tune_report import plot_tuning

    options = TuneOptions(
        objective="train_fps" if objective == "train_fps" else "fps",
        budget_s=budget_s,
        batch=sizes,
        seed=seed,
    )
    if busy := busy_share():
        note(f"other programs keep {busy:.0%} of the cores busy: tune again when they do not")
    interrupted = False
    command = command_line()
    name = study_name(config, options)
    # An unusable file is an error if the user named it, and a remark if it is the user's cache.
    kept = Study(study, name, fresh=fresh) if study else cached_study(name, note, fresh=fresh)
    wait = show_wait(f"tuning {config.env.id} …")
    with wait, Tuning(config, options, kept, _Lines(), command) as tuning:
        try:
            report = tuning.run()
        except KeyboardInterrupt as interrupt:
            tuning.close()
            try:
                report, interrupted = tuning.report(), True
            except TrialError:  # there is nothing to report yet
                raise interrupt from None
    _show(report, json_file)
    for picture in plot_tuning(report, plots) if plots is not None else ():
        note(str(picture))
    if interrupted:
        note("stopped; the same command continues, and no configuration was written")
        return _EXIT_INTERRUPTED
    for file in overlays:
        write_overlay(file, path, config, report.finding.best)
        note(f"{file}: {report.finding.best.label}")
    return 0


def _show(
    report: Report | TuneReport, json_file: Path | None, planned: ScalingPlan | None = None
) -> None:
    """Print the tables of a report, and write it as JSON if requested."""
    from fastrl.cli.consoles import show_tables

    show_tables(report.to_rich())
    found = report.to_dict()
    if planned is not None:
        show_tables(planned.to_rich())
        found["scaling"] = planned.to_dict()
    if json_file is not None:
        write_json(found, json_file)


def _overlays(path: Path | None, write: bool, overlay: Path | None) -> list[Path]:
    """Return the files for the result, after a check that they can be written."""
    files = {"--overlay": overlay}
    if write:
        if path is None:
            raise ConfigError("--write needs a CONFIG file; or use --overlay FILE")
        files["--write"] = path.with_suffix(".tuned.yaml")
    for flag, file in files.items():
        check_output(flag, file)
        if file is not None and path is not None and file.resolve() == path.resolve():
            raise ConfigError(f"{flag}: '{file}' is the configuration; name another file")
    return [file for file in files.values() if file is not None]


def write_overlay(path: Path, base: Path | None, config: Config, candidate: Candidate) -> None:
    """Write a YAML file that adds a candidate to a base, and turns tuning off.

    Args:
        path: File to write.
        base: File of ``config``, which may also have overrides; None without one.
        config: Configuration with the environment.
        candidate: Keys of the section ``sampler``.

    Raises:
        WriteError: The file cannot be written.
    """
    from fastrl.config import load_config
    from fastrl.config.text import dump_yaml
    from fastrl.durable import write_output, writing
    from fastrl.tuning.space import sampler_keys

    tree: dict[str, Any] = {"env": {"id": config.env.id}}
    if base is not None:
        tree = {"base": os.path.relpath(base.resolve(), path.resolve().parent)}
    before = load_config(base, [f"env.id={config.env.id}"])
    tree["sampler"] = sampler = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in sampler_keys(candidate).items()
    }
    if before.sampler.tune_s is not None:
        sampler["tune_s"] = None
    with writing(path):
        write_output(path, dump_yaml(tree).encode())


def parse_batch(text: str | None) -> tuple[int, int] | None:
    """Return the smallest and largest B of ``B`` or ``lo:hi``, or raise a `ConfigError`."""
    if text is None:
        return None
    ends = re.fullmatch(r"([0-9]{1,12})(?::([0-9]{1,12}))?", text)
    if ends is None:
        raise ConfigError(f"--batch must be B or lo:hi, such as 64 or 64:1024; got {brief(text)}")
    low, high = int(ends[1]), int(ends[2] or ends[1])
    if not 1 <= low <= high:
        raise ConfigError(f"--batch must be at least 1, and lo at most hi; got {brief(text)}")
    return low, high


def parse_seconds(text: str) -> float:
    """Return the seconds of ``90``, ``120s`` or ``2m``, or raise a `ConfigError`."""
    found = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]*)?)([sm]?)", text)
    seconds = float(found[1]) * (60 if found[2] == "m" else 1) if found else 0.0
    if not 1 <= seconds <= 1e6:
        got = brief(text)
        raise ConfigError(f"--budget must be seconds or minutes, such as 120s or 2m; got {got}")
    return seconds


class _Lines:
    """Prints every trial on standard error."""

    def __init__(self) -> None:
        self._spent_s = 0.0

    def __call__(self, trial: Trial) -> None:
        self._spent_s += trial.cost_s
        if trial.fps is None:
            found = f"failed: {trial.error[:80]}"
        elif trial.reference is None or not trial.reference_fps:
            found = f"{trial.fps:>12,.0f} frames/s"
        else:
            ratio = trial.fps / trial.reference_fps
            found = f"{trial.fps:>12,.0f} frames/s  {ratio:.2f} × {trial.reference.label}"
        note(f"{self._spent_s:5.0f} s  {trial.candidate.label:<32} {found}")
