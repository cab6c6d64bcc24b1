"""Measure what an inference engine costs per frame, over batch sizes, on one core.

    taskset -c 1 python scripts/bench_inference.py --task halfcheetah --json inference.json

Forward pass, sampling, log-probability and value, from tensors into tensors; drawing the noise is
not counted. Engines take turns and the fastest of several rounds counts, in CPU time, so that
other work on the core does not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from command_line import Parser, count, duration, output
from gymnasium import spaces

from fastrl.config import ModelConfig
from fastrl.machine import circumstances
from fastrl.models import ActorCritic, InferenceEngine, PolicyOutput, build_engine
from fastrl.spaces import TensorSpec
from fastrl.spec import EnvSpec

ENGINES = ("eager", "compiled")
TASKS = {
    "cartpole": (4, spaces.Discrete(2)),
    "halfcheetah": (17, spaces.Box(-1, 1, (6,), np.float32)),
}


def build_policy(task: str, hidden_sizes: tuple[int, ...]) -> ActorCritic:
    """Return a policy with the spaces of a task."""
    torch.manual_seed(0)
    width, action_space = TASKS[task]
    observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
    env_spec = EnvSpec(task, observation_space, action_space)
    return ActorCritic(env_spec, ModelConfig(hidden_sizes=hidden_sizes, shared_body=True))


def bound_call(model: ActorCritic, engine: InferenceEngine, batch: int) -> Callable[[], None]:
    """Return a call of the engine on random observations."""
    observation = {
        path: torch.randn(batch, *spec.shape) for path, spec in model.observation_specs.items()
    }
    action = {
        path: TensorSpec(part.shape, part.dtype) for path, part in model.distribution.parts.items()
    }
    out = PolicyOutput.zeros(batch, action)
    return engine.bind(observation, engine.draw_noise((batch,)), out)


def cpu_seconds(call: Callable[[], None], repeats: int) -> float:
    """Return CPU seconds per call."""
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats


def measure(model: ActorCritic, batch: int, rounds: int, round_s: float) -> dict[str, float]:
    """Return the microseconds per call of each engine, the fastest of interleaved rounds."""
    calls = {name: bound_call(model, build_engine(model, name=name), batch) for name in ENGINES}
    repeats = {
        name: math.ceil(round_s / max(1e-7, cpu_seconds(call, 20))) for name, call in calls.items()
    }
    best = dict.fromkeys(ENGINES, math.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            best[name] = min(best[name], cpu_seconds(call, repeats[name]))
    return {name: seconds * 1e6 for name, seconds in best.items()}


def main() -> None:
    """Print a table, and write JSON where asked."""
    parser = Parser(description="Cost of the policy per frame, by engine.")
    parser.add_argument("--task", choices=TASKS, default="cartpole")
    parser.add_argument("--hidden", type=count, nargs="*", default=[64, 64], metavar="WIDTH")
    parser.add_argument(
        "--batch", type=count, nargs="+", default=[1, 8, 16, 32, 64, 256, 1024], metavar="ROWS"
    )
    parser.add_argument("--rounds", type=count, default=7)
    parser.add_argument("--round-seconds", type=duration, default=0.03)
    parser.add_argument("--json", type=output, metavar="FILE")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    model = build_policy(arguments.task, tuple(arguments.hidden))
    print(f"{arguments.task}, MLP {arguments.hidden}, microseconds per frame on one core")
    print(f"{'batch':>6} {'eager':>9} {'compiled':>9} {'ratio':>7}")
    results = []
    for batch in arguments.batch:
        call_us = measure(model, batch, arguments.rounds, arguments.round_seconds)
        frame_us = {name: cost / batch for name, cost in call_us.items()}
        ratio = frame_us["compiled"] / frame_us["eager"]
        print(f"{batch:6d} {frame_us['eager']:9.3f} {frame_us['compiled']:9.3f} {ratio:7.3f}")
        results.append({"batch": batch, "call_us": call_us, "frame_us": frame_us, "ratio": ratio})
    if arguments.json:
        report = {
            "task": arguments.task,
            "hidden_sizes": arguments.hidden,
            "results": results,
            **circumstances(),
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
