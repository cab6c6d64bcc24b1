"""Training speed beside programs of one file: the PPO of CleanRL and of PureJaxRL.

    python scripts/bench_programs.py --cleanrl PYTHON DIR --purejaxrl PYTHON DIR

Each program comes as the Python of a virtual environment that can run it, and the directory of its
files (cleanrl/cleanrl, purejaxrl/purejaxrl). It trains with its own settings, on the CPU,
and fastrl with the same: CartPole-v1 with 4 environments of 128 steps, HalfCheetah-v4 with one of
2,048. Every turn has a short and a long training: ``steps_per_s`` is the difference of their steps
over that of their wall times, and ``start_s`` what the short training took beyond its steps:
imports, compilation, worker processes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench.results import Row, quantity, write
from bench.rounds import interleaved
from command_line import ROOT, Parser, count, output, run

from fastrl.errors import ConfigError

_DEADLINE_S = 900
_CARTPOLE = [
    "sampler.num_envs=4",
    "sampler.rollout_length=128",
    "algorithm.epochs=4",
    "algorithm.minibatch_size=128",
    "algorithm.learning_rate=0.00025",
    "algorithm.gamma=0.99",
    "algorithm.gae_lambda=0.95",
    "algorithm.clip_schedule=constant",
    "algorithm.clip_value_range=0.2",
    "algorithm.entropy_coef=0.01",
]
_QUIET = ["evaluation.enabled=false", "logging.tensorboard=false", "checkpoint.every_s=null"]
# Newer versions of JAX have lost the first name.
_PUREJAXRL = """
import jax
jax.tree_map = jax.tree_util.tree_map
import ppo
config = dict(
    LR=2.5e-4, NUM_ENVS=4, NUM_STEPS=128, TOTAL_TIMESTEPS={steps}, UPDATE_EPOCHS=4,
    NUM_MINIBATCHES=4, GAMMA=0.99, GAE_LAMBDA=0.95, CLIP_EPS=0.2, ENT_COEF=0.01, VF_COEF=0.5,
    MAX_GRAD_NORM=0.5, ACTIVATION="tanh", ENV_NAME="CartPole-v1", ANNEAL_LR=True, DEBUG=False)
jax.block_until_ready(jax.jit(ppo.make_train(config))(jax.random.PRNGKey(0)))
"""


@dataclass(frozen=True)
class Contestant:
    """A program that trains.

    Attributes:
        env: Id of the environment.
        method: Name of the program.
        steps: Lengths of the short and of the long training.
        command: Its arguments, by the number of steps.
        path: Where it imports from.
    """

    env: str
    method: str
    steps: tuple[int, int]
    command: Callable[[int], Sequence[str]]
    path: str = str(ROOT)

    def turn(self) -> tuple[float, float]:
        """Return steps per second, and the seconds of the start."""
        short, long = self.steps
        short_s, long_s = self.seconds(short), self.seconds(long)
        rate = (long - short) / (long_s - short_s)
        print(f"{self.env} {self.method}: {rate:,.0f} steps/s", file=sys.stderr, flush=True)
        return rate, short_s - short / rate

    def seconds(self, steps: int) -> float:
        """Return the wall time of a training."""
        command = self.command(steps)
        with tempfile.TemporaryDirectory() as scratch:
            began = time.perf_counter()
            done = subprocess.run(
                command,
                cwd=scratch,
                env={**os.environ, "PYTHONPATH": self.path},
                capture_output=True,
                text=True,
                timeout=_DEADLINE_S,
                check=False,
            )
            seconds = time.perf_counter() - began
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise ConfigError(f"{self.method} failed: {last}")
        return seconds


def main() -> None:
    """Measure, write the JSON, print the rows."""
    parser = Parser(__doc__)
    for peer in ("cleanrl", "purejaxrl"):
        parser.add_argument(f"--{peer}", nargs=2, metavar=("PYTHON", "DIR"), help="take part")
    parser.add_argument("--repeats", type=count, default=3, help="number of rounds (3)")
    default = ROOT / "results" / "training_speed_programs.json"
    parser.add_argument("--json", type=output, default=default, help="file to write")
    args = parser.parse_args()
    contestants = [*_fastrl(), *_peers(args)]
    for each in contestants:
        each.seconds(each.steps[0])  # compiled code that is kept for later runs is made here
    rounds = interleaved({each: each.turn for each in contestants}, args.repeats)
    rows: list[Row] = [
        {
            "env": each.env,
            "method": each.method,
            "steps": each.steps,
            **quantity("steps_per_s", [rate for rate, _ in found]),
            **quantity("start_s", [start_s for _, start_s in found]),
        }
        for each, found in rounds.items()
    ]
    write({"results": rows}, args.json)
    for row in rows:
        start_s = median(row["start_s"])
        print(f"{row['env']}, {row['method']}: {row['steps_per_s_median']:,.0f}, {start_s:.1f} s")


def _fastrl() -> Iterator[Contestant]:
    def train(config: str, overrides: Sequence[str], steps: int) -> list[str]:
        keys = [*overrides, *_QUIET, f"total_steps={steps}", "run_dir=run"]
        return [sys.executable, "-m", "fastrl", "train", str(ROOT / "configs" / config), *keys]

    for method, config in (
        ("fastrl", "cartpole_ppo.yaml"),
        ("fastrl, device", "cartpole_device_ppo.yaml"),
    ):
        command = partial(train, config, _CARTPOLE)
        yield Contestant("CartPole-v1", method, (51_200, 1_024_000), command)
    command = partial(train, "halfcheetah_v4_ppo_cleanrl.yaml", [])
    yield Contestant("HalfCheetah-v4", "fastrl", (20_480, 204_800), command)


def _peers(args: argparse.Namespace) -> Iterator[Contestant]:
    def program(given: Sequence[str], file: str, steps: int) -> list[str]:
        path = str(Path(given[1], file).resolve())
        return [given[0], path, "--no-cuda", "--total-timesteps", str(steps)]

    if args.cleanrl:
        command = partial(program, args.cleanrl, "ppo.py")
        yield Contestant("CartPole-v1", "CleanRL", (5_120, 51_200), command)
        command = partial(program, args.cleanrl, "ppo_continuous_action.py")
        yield Contestant("HalfCheetah-v4", "CleanRL", (4_096, 24_576), command)
    if args.purejaxrl:
        python, path = args.purejaxrl[0], str(Path(args.purejaxrl[1]).resolve())
        yield Contestant(
            "CartPole-v1",
            "PureJaxRL",
            (51_200, 1_024_000),
            lambda steps: [python, "-c", _PUREJAXRL.format(steps=steps)],
            path,
        )


if __name__ == "__main__":
    run(main)
