"""Train the small policies whose actions `tests/envs/identity.py` compares with gymnasium.

    python -m tests.envs.classic_control.train
    python -m tests.envs.classic_control.train --envs MountainCar-v0 --seed 1

PPO with `sampler: device`, seconds to two minutes each on 2 cores. The settings are those of
rl-baselines3-zoo (hyperparams/ppo.yml) where it has the environment, with 16 environments and one
layer of 32 units. Writes the last parameters, one safetensors file each.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fastrl.config import load_config
from fastrl.training.run import train
from scripts.command_line import Parser, whole

ROOT = Path(__file__).parents[3]
TRAINED = Path(__file__).with_name("trained")

COMMON = ("model.hidden_sizes=[32]", "logging.tensorboard=false", "evaluation.episodes=50")
CONSTANT = ("algorithm.learning_rate_schedule=constant", "algorithm.clip_schedule=constant")
NORMALIZED = ("model.normalize_observations=true", "algorithm.normalize_rewards=true")
SETTINGS: dict[str, tuple[str, ...]] = {
    "CartPole-v1": (),
    "Acrobot-v1": (
        *CONSTANT,
        *NORMALIZED,
        "total_steps=200000",
        "sampler.rollout_length=256",
        "algorithm.learning_rate=0.001",
        "algorithm.gamma=0.99",
        "algorithm.gae_lambda=0.94",
        "algorithm.epochs=4",
        "evaluation.every_steps=50000",
    ),
    "Pendulum-v1": (
        *CONSTANT,
        "total_steps=160000",
        "sampler.rollout_length=256",
        "algorithm.learning_rate=0.001",
        "algorithm.minibatch_size=64",
        "algorithm.gamma=0.9",
        "algorithm.gae_lambda=0.95",
        "evaluation.every_steps=80000",
    ),
    "MountainCar-v0": (
        *CONSTANT,
        *NORMALIZED,
        "total_steps=1000000",
        "sampler.rollout_length=16",
        "algorithm.learning_rate=0.0003",
        "algorithm.gamma=0.99",
        "algorithm.gae_lambda=0.98",
        "algorithm.epochs=4",
        "algorithm.minibatch_size=64",
        "evaluation.every_steps=200000",
    ),
    "MountainCarContinuous-v0": (
        *CONSTANT,
        *NORMALIZED,
        "total_steps=200000",
        "sampler.rollout_length=128",
        "algorithm.learning_rate=0.0003",
        "algorithm.gamma=0.9999",
        "algorithm.gae_lambda=0.9",
        "algorithm.entropy_coef=0.004",
        "algorithm.value_coef=0.2",
        "evaluation.every_steps=50000",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the chosen policies; return the exit code."""
    args = _parser().parse_args(arguments)
    TRAINED.mkdir(exist_ok=True)
    for env in args.envs:
        with tempfile.TemporaryDirectory() as directory:
            overrides = (f"env.id={env}", f"seed={args.seed}", f"run_dir={directory}/run")
            config = load_config(
                ROOT / "configs/cartpole_device_ppo.yaml", [*overrides, *COMMON, *SETTINGS[env]]
            )
            trained = train(config)
            newest = max((trained.path / "checkpoints").glob("step_*"))
            shutil.copyfile(newest / "model.safetensors", TRAINED / f"{env}.safetensors")
        outcome = trained.outcome
        reached = outcome.evaluation.return_mean if outcome.evaluation else float("nan")
        print(f"{env}: mean return {reached:.1f} after {outcome.wall_s:.0f} s", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--envs", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="ID")
    add("--seed", type=whole, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
