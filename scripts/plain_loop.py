"""How fast the plainest loop alternates between environments and policy, beside fastrl.

    python scripts/plain_loop.py configs/crafter_throughput.yaml

The limit adds up the times of the bare environment and of the bare policy, each alone, with what it
needs in the processor's caches. Whoever samples must alternate between them, and each then finds
the other's data there. Here each core does nothing else: a policy call for n environments, then n
steps of bare environments, without a shared table, rollouts, counters or anybody to wait for. It
takes turns with fastrl's sampler and with the limit.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from command_line import Parser, count, duration, output

from fastrl import ProcessSampler, load_config, make_plan
from fastrl.allocator import keep_freed_memory
from fastrl.closing import Closing
from fastrl.config import Config
from fastrl.envs.make import EnvFactory
from fastrl.errors import WorkerError
from fastrl.machine import circumstances
from fastrl.models.inference import PolicyOutput, build_engine
from fastrl.sampling import initial_weights
from fastrl.throughput.limits import LimitProbe
from fastrl.workers.plan import SamplingPlan

_LATE_S = 120.0


def main() -> int:
    """Measure in turns, print, write the JSON."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--seconds", type=duration, default=10.0, help="of a turn")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--json", type=output)
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. sampler.envs_per_worker=16")
    args = parser.parse_intermixed_args()
    config = load_config(args.config, ["sampler.mode=async", *args.overrides])

    rounds = measure(config, args.rounds, args.seconds)
    ratios = {
        "plain loop, of the limit": [r["plain"] / r["limit"] for r in rounds],
        "fastrl, of the limit": [r["fastrl"] / r["limit"] for r in rounds],
        "fastrl, of the plain loop": [r["fastrl"] / r["plain"] for r in rounds],
    }
    for name, values in ratios.items():
        spread = f"{min(values):.0%} … {max(values):.0%}"
        print(f"{name:26} {statistics.median(values):.1%}  ({spread})")
    if args.json:
        result = {
            "env": config.env.id,
            "topology": config.sampler.model_dump(include={"envs_per_worker", "num_env_workers"}),
            "fps_of_each_round": rounds,
            "ratios": {name: statistics.median(values) for name, values in ratios.items()},
            "seconds": args.seconds,
            **circumstances(),
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def measure(config: Config, rounds: int, seconds: float) -> list[dict[str, float]]:
    """Return frames per second of the limit, the plain loop and fastrl, round by round."""
    plan, factory = make_plan(config), EnvFactory.from_config(config.env)
    cores = plan.topology.num_env_workers
    with (
        ProcessSampler(plan, initial_weights(plan), asynchronous=True) as sampler,
        LimitProbe(plan, factory, cores) as probe,
        PlainLoops(plan, factory, cores) as loops,
    ):
        found = []
        for _ in range(rounds):
            sampler.pause()
            limit, plain = probe.measure(seconds).fps, loops.fps(seconds)
            found.append({"limit": limit, "plain": plain, "fastrl": sampled(sampler, seconds)})
        return found


def sampled(sampler: ProcessSampler, seconds: float) -> float:
    """Return the sampler's frames per second."""
    sampler.collect()
    start, before = time.perf_counter(), sampler.stats().frames
    while time.perf_counter() - start < seconds:
        sampler.collect()
    return (sampler.stats().frames - before) / (time.perf_counter() - start)


class PlainLoops(Closing):
    """Processes that stand by, each with a plain loop; use it in a ``with`` block."""

    def __init__(self, plan: SamplingPlan, factory: EnvFactory, cores: int) -> None:
        context, payload = get_context("spawn"), cloudpickle.dumps((plan, factory))
        self._ends, self._processes = [], []
        for _ in range(cores):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(payload, there), daemon=True)
            process.start()
            there.close()
            self._ends.append(here)
            self._processes.append(process)
        self._answers(0.0)  # that they are ready

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()

    def fps(self, seconds: float) -> float:
        """Let all loops run for so long; return their frames per second."""
        for end in self._ends:
            end.send(seconds)
        return sum(self._answers(seconds))

    def _answers(self, seconds: float) -> list[float]:
        if not all(end.poll(seconds + _LATE_S) for end in self._ends):
            raise WorkerError("plain-loop", "did not answer")
        return [end.recv() for end in self._ends]


def serve(payload: bytes, end: Connection) -> None:
    """Run the loop whenever asked. Entry point of a process."""
    torch.set_num_threads(1)
    keep_freed_memory()
    run = plain_loop(*cloudpickle.loads(payload))
    run()
    end.send(0.0)
    while True:
        seconds = end.recv()
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            steps += run()
        end.send(steps / (time.perf_counter() - start))


def plain_loop(plan: SamplingPlan, factory: EnvFactory) -> Callable[[], int]:
    """Return a function that steps n environments once; for one array of observations."""
    assert plan.build_model is not None
    n = plan.topology.envs_per_worker
    ((leaf, spec),) = plan.env_spec.observation.items()
    observation = torch.zeros((n, *spec.shape), dtype=spec.dtype)
    out = PolicyOutput.zeros(n, plan.env_spec.action)
    (action,) = out.action.values()
    engine = build_engine(plan.build_model(), torch.device("cpu"), plan.engine)
    generator = torch.Generator().manual_seed(0)
    noise = engine.draw_noise((plan.rollout_length, n), generator)
    calls = itertools.cycle([engine.bind({leaf: observation}, row, out) for row in noise])
    envs: list[Any] = [factory.single().unwrapped for _ in range(n)]
    rows, taken = list(observation.numpy()), action.numpy()
    for index, env in enumerate(envs):
        rows[index][:] = env.reset(seed=index)[0]

    def run() -> int:
        next(calls)()
        for env, row, choice in zip(envs, rows, taken, strict=True):
            found, _, terminated, truncated, _ = env.step(choice)
            if terminated or truncated:
                found, _ = env.reset()
            row[:] = found
        return n

    return run


if __name__ == "__main__":
    from one_line import run

    run(main)
