"""Compare the speed of this checkout with another one, such as a worktree of the last release.

    git worktree add ../old COMMIT
    python scripts/bench_versions.py ../old --json results/versions.json

The two are measured in turns, every turn in a process of its own and through public commands:
sampling by `fastrl throughput`, updates by `fastrl train`, environments by `make_vec`, and the
whole time of a command that starts eight workers. A ratio above 1 means that this checkout is
faster.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from bench.results import Row, quantity, write
from bench.rounds import interleaved
from command_line import ROOT, Parser, count, duration, output, printed, run

Measure = Callable[[Path, float], float]
"""Function of the root of a checkout and the seconds of a window that returns a rate."""

_DEADLINE_S = 300
_SMALL = ["model.hidden_sizes=[64,64]"]
_ONCE = ["algorithm.epochs=1", "sampler.rollout_length=32"]
_SAMPLED = {
    "CartPole-v1": (64, 512),
    "HalfCheetah-v5": (32, 128),
    "Crafter-v1": (16, 128),
    "fastrl/HalfCheetah-v5": (64, 128),
    "fastrl/Crafter-v1": (32, 128),
}
"""Settings of an environment: environments per worker and length of a rollout."""
_LEARNT = {
    "CartPole-v1": (32_768, _SMALL),
    "HalfCheetah-v5": (16_384, _SMALL),
    "fastrl/HalfCheetah-v5": (16_384, _SMALL),
    "Crafter-v1": (1024, _ONCE),
    "fastrl/Crafter-v1": (1024, _ONCE),
}
"""Steps to train per second of a window, and configuration keys, by environment."""
_STEPPED = {
    "CartPole-v1": ("serial", "processes"),
    "HalfCheetah-v5": ("serial", "processes"),
    "ALE/Breakout-v5": ("serial", "processes"),
    "Crafter-v1": ("native", "processes"),
    "fastrl/HalfCheetah-v5": ("native",),
}
_TASKS = ("CartPole", "Pendulum", "Acrobot", "MountainCar", "MountainCarContinuous")
_VECTOR = """
import sys, time, fastrl
env_id, num_envs, backend, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
with fastrl.make_vec(env_id, num_envs, backend=backend) as envs:
    envs.reset(seed=0)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(16)]
    for action in actions:
        envs.step(action)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        for action in actions:
            envs.step(action)
        steps += len(actions) * num_envs
    print(steps / (time.perf_counter() - start))
"""


def main() -> int:
    """Measure in turns, print and write the JSON file."""
    parser = Parser(__doc__)
    parser.add_argument("old", type=Path, help="root of the other checkout")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--seconds", type=duration, default=2.0, help="length of a window (2)")
    parser.add_argument("--only", default="", help="measure only names that contain this")
    parser.add_argument("--json", type=output)
    args = parser.parse_args()
    if not (args.old / "fastrl" / "__init__.py").exists():
        parser.error(f"argument old: must be the root of a checkout of fastrl, got '{args.old}'")
    rows: list[Row] = []
    for name, measure in measurements().items():
        if args.only not in name:
            continue
        turns = {
            version: partial(measure, root.resolve(), args.seconds)
            for version, root in {"old": args.old, "new": ROOT}.items()
        }
        rates = interleaved(turns, args.rounds)
        ratios = [new / old for new, old in zip(rates["new"], rates["old"], strict=True)]
        rows.append({
            "measured": name,
            **quantity("ratio", ratios),
            "best_ratio": max(rates["new"]) / max(rates["old"]),
            **quantity("old_per_s", rates["old"]),
            **quantity("new_per_s", rates["new"]),
        })  # fmt: skip
        spread = f"{min(ratios):.2f} … {max(ratios):.2f}, of the best {rows[-1]['best_ratio']:.2f}"
        print(f"{name:45} {median(ratios):.3f} ({spread})", flush=True)
        if args.json:
            write({"results": rows}, args.json)
    return 0


def measurements() -> dict[str, Measure]:
    """Return the measurements by name."""
    found: dict[str, Measure] = {}
    for env_id in _SAMPLED:
        found[f"sampling {env_id}"] = partial(_sampling, env_id)
    for env_id in _LEARNT:
        found[f"updates {env_id}"] = partial(_updates, env_id)
    for env_id, backends in _STEPPED.items():
        for num_envs in (16, 128):
            for backend in backends:
                name = f"make_vec {env_id} {num_envs} {backend}"
                found[name] = partial(_stepping, env_id, num_envs, backend)
    for task in _TASKS:
        env_id = f"fastrl/{task}-{'v0' if task.startswith('Mountain') else 'v1'}"
        found[f"random actions {env_id}"] = partial(_stepping, env_id, 65_536, "native")
    found["start of 8 workers"] = _start
    return found


def _sampling(env_id: str, root: Path, seconds: float) -> float:
    """Return the steps per second of `fastrl throughput`."""
    num_envs, length = _SAMPLED[env_id]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "found.json")
        shape = ["-n", f"{num_envs}", "-M", "0", f"sampler.rollout_length={length}"]
        window = [f"--seconds={seconds}", "--repeats=1", f"--json={file}"]
        _fastrl(root, "throughput", f"env.id={env_id}", *shape, *window, *_SMALL)
        return float(json.loads(file.read_text(encoding="utf-8"))["fps_median"])


def _updates(env_id: str, root: Path, seconds: float) -> float:
    """Return the learner's own steps per second in a short run of PPO."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        steps, keys = _LEARNT[env_id]
        keys = [*keys, "algorithm.name=ppo", "sampler.kind=serial", "sampler.envs_per_worker=8"]
        keys += [f"env.id={env_id}", f"total_steps={steps * max(1, round(seconds))}"]
        _fastrl(root, "train", *keys, f"run_dir={run}", "logging.every_s=0.2")
        lines = Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rates = [json.loads(line).get("learning_fps") for line in lines]
        return median(rate for rate in rates if rate)


def _stepping(env_id: str, num_envs: int, backend: str, root: Path, seconds: float) -> float:
    """Return the steps per second of `make_vec` with actions drawn beforehand."""
    program = [sys.executable, "-c", _VECTOR, env_id, str(num_envs), backend, str(seconds)]
    return float(printed(program, root, _DEADLINE_S))


def _start(root: Path, seconds: float) -> float:
    """Return how often per second a command can start, use and end eight workers."""
    del seconds
    began_s = time.perf_counter()
    shape = ["-n", "2", "-N", "8", "-M", "0", "sampler.rollout_length=8"]
    window = ["--seconds=0.1", "--repeats=1", "--warm-up=0"]
    _fastrl(root, "throughput", "env.id=CartPole-v1", *shape, *window)
    return 1 / (time.perf_counter() - began_s)


def _fastrl(root: Path, *arguments: str) -> None:
    printed([sys.executable, "-m", "fastrl", *arguments], root, _DEADLINE_S)


if __name__ == "__main__":
    run(main)
