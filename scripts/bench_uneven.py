"""Environments of uneven speed: rollouts of all env workers beside those of a share of them.

    python scripts/bench_uneven.py --json results/uneven.json

One environment per env worker. A tenth of them, one at least, takes 20 times as long for a step as
the others. ``lock step`` waits for all workers, ``wait`` for a share of them (``sampler.wait``).
``ideal`` is the sum of what each environment would make alone: the steps per second of bare
environments of both kinds, in this process, times their numbers. Environments sleep, so that they
need no core each.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from bench.results import quantity, write
from bench.rounds import interleaved, rate, ratio
from bench.tables import rates_table
from command_line import Parser, count, duration, output, run
from latency_envs import TimedEnv

from fastrl.config import Config, load_config
from fastrl.sampling import Sampler, make_plan, make_sampler

_SLOWER = 20
_SHARE = 10
"""One environment in so many is slow."""
_ROLLOUT = 16


def main() -> int:
    """Measure, print, write the JSON."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--envs", type=count, default=20, help="environments, each with a worker (20)")
    add("--step", type=duration, default=0.005, help="seconds of a step (0.005)")
    add("--wait", type=duration, default=0.8, help="share of the workers (0.8)")
    add("--rounds", type=count, default=5)
    add("--seconds", type=duration, default=5.0, help="length of a window (5)")
    add("--json", type=output)
    args = parser.parse_args()
    with ExitStack() as stack:
        turns: dict[str, Callable[[], float]] = {
            "ideal": partial(_ideal, args.envs, args.step, args.seconds / 2)
        }
        for name, wait in {"lock step": "all", "wait": args.wait}.items():
            sampler = stack.enter_context(make_sampler(_config(args.envs, args.step, wait)))
            turns[name] = partial(_window, sampler, args.seconds)
        interleaved(turns, 1)  # the first rollouts prepare everything
        rates = interleaved(turns, args.rounds)
    print(rates_table(rates, {"ideal": "ideal", "lock step": "lock step"}))
    rows = [
        {
            "method": name,
            **quantity("steps_per_s", found),
            "of_ideal": ratio(found, rates["ideal"]),
        }
        for name, found in rates.items()
    ]
    if args.json:
        settings = {"num_envs": args.envs, "step_s": args.step, "wait": args.wait}
        write({**settings, "results": rows}, args.json)
    return 0


def _config(num_envs: int, step_s: float, wait: float | str) -> Config:
    """Return the configuration of a sampler with one environment per worker."""
    sizes = f"num_env_workers: {num_envs}, envs_per_worker: 1, rollout_length: {_ROLLOUT}"
    found = load_config(
        None,
        [
            "env.id=latency_envs:UnevenEnv",
            f"env.kwargs={{step_s: {step_s}, slow_seeds: [], slower: {_SLOWER}}}",
            f"sampler={{{sizes}, mode: async, wait: {wait}}}",
        ],
    )
    plan = make_plan(found)
    seeds = [plan.env_seeds(worker, 0)[0] for worker in range(_slow(num_envs))]
    kwargs = {**found.env.kwargs, "slow_seeds": seeds}
    return found.model_copy(update={"env": found.env.model_copy(update={"kwargs": kwargs})})


def _slow(num_envs: int) -> int:
    return max(1, num_envs // _SHARE)


def _ideal(num_envs: int, step_s: float, seconds: float) -> float:
    slow = _slow(num_envs)
    usual, slower = (_alone(TimedEnv(each), seconds) for each in (step_s, step_s * _SLOWER))
    return (num_envs - slow) * usual + slow * slower


def _alone(env: TimedEnv, seconds: float) -> float:
    """Return the steps per second of one environment."""
    env.reset()
    action = env.action_space.sample()

    def step() -> int:
        if env.step(action)[2]:
            env.reset()
        return 1

    return rate(step, seconds)


def _window(sampler: Sampler, seconds: float) -> float:
    """Return the steps per second of all environments, whatever rollout they belong to."""
    sampler.collect()
    before = sampler.stats()
    rate(lambda: sampler.collect().num_steps, seconds)
    found = (sampler.stats() - before).steps_per_s
    sampler.pause()
    return found


if __name__ == "__main__":
    run(main)
