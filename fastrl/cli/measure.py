"""The command that measures sampling."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fastrl.cli.arguments import ConfigArguments, EnvOption, check_output, split_arguments
from fastrl.cli.output import QuietConsole, show_tables
from fastrl.config import load_config


def throughput(
    arguments: ConfigArguments = None,
    env: EnvOption = None,
    envs_per_worker: Annotated[
        int | None, typer.Option("-n", metavar="INT", help="Environments per env worker.")
    ] = None,
    num_env_workers: Annotated[
        int | None, typer.Option("-N", metavar="INT", help="Env workers.")
    ] = None,
    num_model_workers: Annotated[
        int | None,
        typer.Option("-M", metavar="INT", help="Model workers; 0: env workers run the policy."),
    ] = None,
    groups: Annotated[
        int | None,
        typer.Option("--groups", metavar="INT", help="Groups per env worker, stepped in turn."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="DEVICE", help="Where the policy runs: cpu or cuda."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            metavar="MODE",
            help="async, which is the default, or sync: all workers wait for each other.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=0.1, help="Length of a window.")
    ] = 5.0,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="INT", min=1, help="Number of windows.")
    ] = 5,
    warm_up: Annotated[
        float,
        typer.Option(
            "--warm-up",
            metavar="S",
            min=0,
            help="Seconds before the first window, from the first steps on; long episodes need "
            "more.",
        ),
    ] = 1.0,
    no_policy: Annotated[bool, typer.Option("--no-policy", help="Random actions.")] = False,
    limit: Annotated[
        bool, typer.Option("--limit", help="Measure the physical limit in the same run.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result here.")
    ] = None,
) -> None:
    """Measure how many environment steps per second are sampled, with the policy in the loop."""
    from fastrl.throughput.measure import Protocol
    from fastrl.throughput.run import run_throughput

    options = {
        "sampler.envs_per_worker": envs_per_worker,
        "sampler.num_env_workers": num_env_workers,
        "sampler.num_model_workers": num_model_workers,
        "sampler.groups": groups,
        "sampler.device": device,
        "sampler.mode": mode,
    }
    path, overrides = split_arguments(arguments, env)
    overrides += [f"{key}={value}" for key, value in options.items() if value is not None]
    resolved = load_config(path, overrides)
    if mode is None and resolved.sampler.kind == "process":
        resolved = load_config(path, [*overrides, "sampler.mode=async"])
    check_output("--json", json_file)
    measured = run_throughput(
        resolved,
        Protocol(seconds, repeats, warm_up),
        with_limit=limit,
        random_actions=no_policy,
        console=QuietConsole(stderr=True),
        command=shlex.join(["fastrl", *sys.argv[1:]]),
    )
    show_tables(measured.to_rich())
    if json_file is not None:
        json_file.write_text(json.dumps(measured.to_dict(), indent=2) + "\n", encoding="utf-8")
