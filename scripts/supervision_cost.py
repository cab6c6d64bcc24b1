"""What looking after workers and numbers costs, in frames per second, side by side.

python scripts/supervision_cost.py --json results/supervision_cost.json

Samplers that differ in nothing else are built at once and sample in turn, for a fifth of a second
each; a synchronous sampler that is not asked for a rollout does nothing. Rounds are compared with
themselves, so what else the machine does within a second cancels out, and the median of hundreds of
them tells a cost of one percent.

- ``nothing``: nobody looks whether workers live, are overdue or wrote numbers that are not finite;
- ``raise``: the default: workers are watched, and look at every rollout;
- ``truncate_episode``: env workers look at every step as well.

The time that is spent in looking is also taken by the clock, as a share of all time.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from command_line import MEASURED_MODEL, Parser, duration, output, several

from fastrl import ProcessSampler, load_config, make_plan
from fastrl.machine import circumstances
from fastrl.sampling import FaultPolicy, initial_weights
from fastrl.sampling.crew import Crew
from fastrl.shared.table import Table

VARIANTS = ("nothing", "raise", "truncate_episode")
TARGET = 0.01
ENVS_PER_WORKER = {"CartPole-v1": 64, "fastrl/CartPole-v1": 2048}
"""What is fastest."""


def main() -> int:
    """Measure, print, write the JSON; 1 if more than 1 % of the time goes into looking."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--envs", nargs="+", default=list(ENVS_PER_WORKER))
    parser.add_argument("--rounds", type=several, default=300)
    parser.add_argument("--seconds", type=duration, default=0.2, help="of a turn")
    parser.add_argument("--json", type=output)
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. sampler.envs_per_worker=64")
    args = parser.parse_args()

    found = {env: compare(env, args.rounds, args.seconds, args.overrides) for env in args.envs}
    for env, rows in found.items():
        for name, row in rows.items():
            if name == "nothing":
                print(f"{env}: {row['fps']:,.0f} frames/s without supervision")
                continue
            low, high = row["cost_95"]
            text = f"costs {row['cost']:+.2%} (95 %: {low:+.2%} to {high:+.2%})"
            if name == "raise":
                text += f", {row['looking']:.2%} of the time by the clock"
            print(f"  {name:17} {text}")
    if args.json:
        result = {
            "envs": found,
            "overrides": args.overrides,
            "rounds": args.rounds,
            "seconds": args.seconds,
            **circumstances(),
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(any(rows["raise"]["looking"] > TARGET for rows in found.values()))


def compare(
    env: str, rounds: int, seconds: float, overrides: list[str]
) -> dict[str, dict[str, Any]]:
    """Return frames per second of every variant, and what it costs against ``nothing``."""
    size = f"sampler.envs_per_worker={ENVS_PER_WORKER.get(env, 64)}"
    config = load_config(None, [f"env.id={env}", size, MEASURED_MODEL, *overrides])
    plan = make_plan(config)
    fps: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with ExitStack() as stack:
        samplers = {name: stack.enter_context(build(plan, name)) for name in VARIANTS}
        for name in VARIANTS:
            turn(samplers[name], name, seconds)  # to warm up
        for index in range(rounds):
            order = VARIANTS[index % 3 :] + VARIANTS[: index % 3]
            for name in order if index % 2 else reversed(order):
                fps[name].append(turn(samplers[name], name, seconds))
        rows = {name: summary(fps[name], fps["nothing"]) for name in VARIANTS}
        rows["raise"]["looking"] = looking(samplers["raise"], 30 * seconds)
        rows["raise"]["envs_per_worker"] = plan.topology.envs_per_worker
    return rows


def build(plan: Any, name: str) -> ProcessSampler:  # noqa: ANN401
    """Return a sampler that is supervised in this way."""
    return ProcessSampler(
        dataclasses.replace(plan, check_steps=name == "truncate_episode"),
        initial_weights(plan),
        faults=FaultPolicy(max_restarts=0 if name == "nothing" else 5),
        check_numbers=name != "nothing",
    )


def turn(sampler: ProcessSampler, name: str, seconds: float) -> float:
    """Sample for so long; return frames per second."""
    with ExitStack() as stack:
        if name == "nothing":
            stack.enter_context(patch.object(Crew, "look", lambda self: None))
        frames, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            frames += sampler.collect().num_steps
        return frames / (time.perf_counter() - start)


def looking(sampler: ProcessSampler, seconds: float) -> float:
    """Return the share of the time that goes into looking after workers and numbers.

    While the main process looks, the workers of a synchronous sampler wait; and so does it while
    they look at what they have sampled. So both count.
    """
    spent = 0.0

    def timed(look: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:  # noqa: ANN401
            nonlocal spent
            start = time.perf_counter()
            result = look(*args)
            spent += time.perf_counter() - start
            return result

        return call

    with (
        patch.object(Crew, "look", timed(Crew.look)),
        patch.object(Table, "first_bad_number", timed(Table.first_bad_number)),
    ):
        start, before = time.perf_counter(), sampler.stats()
        while time.perf_counter() - start < seconds:
            sampler.collect()
        spent += float((sampler.stats() - before).checking_ns.mean()) / 1e9
        return spent / (time.perf_counter() - start)


def summary(fps: list[float], reference: list[float]) -> dict[str, Any]:
    """Return the median, and the median of the costs in each round with its 95 % interval."""
    costs = sorted(1 - own / other for own, other in zip(fps, reference, strict=True))
    # Each cost is below the true median with probability 1/2, whatever their distribution is.
    margin = 1.96 * math.sqrt(len(costs)) / 2
    low, high = math.floor(len(costs) / 2 - margin), math.ceil(len(costs) / 2 + margin)
    return {
        "fps": statistics.median(fps),
        "cost": statistics.median(costs),
        "cost_95": [costs[max(0, low - 1)], costs[min(len(costs) - 1, high)]],
        "cost_quartiles": statistics.quantiles(costs, n=4)[::2],
    }


if __name__ == "__main__":
    from one_line import run

    run(main)
