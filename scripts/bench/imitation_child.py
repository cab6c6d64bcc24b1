"""GAIL of the package imitation, alone in its own interpreter.

The package needs an older gymnasium than fastrl, so it lives in a virtual environment of its own;
this file is run by that environment's Python and imports nothing of fastrl. Its argument is JSON,
and the last line that it prints is JSON with what was reached.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from imitation.algorithms.adversarial.gail import GAIL
from imitation.data.types import Trajectory
from imitation.rewards.reward_nets import BasicRewardNet
from imitation.util import logger
from imitation.util.networks import RunningNorm
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv


class ReachedError(Exception):
    """The policy is as good as it must be, so training ends."""


def main() -> None:
    """Train until an evaluation reaches the target, or to the last step."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    venv, tests = (
        DummyVecEnv([lambda: Monitor(gymnasium.make(asked["env"]))] * asked["num_envs"])
        for _ in range(2)
    )
    with tempfile.TemporaryDirectory() as folder:
        demonstrations = _demonstrations(asked["demonstrations"])
        began_s = time.perf_counter()
        trainer = _trainer(asked, venv, demonstrations, folder)
        found = _train(trainer, asked, tests, began_s)
    versions = {"gymnasium": gymnasium.__version__, "torch": torch.__version__}
    print(json.dumps(found | {"versions": versions}))


def _train(trainer: GAIL, asked: dict[str, Any], tests: DummyVecEnv, began_s: float) -> Any:
    done = {"steps": 0, "return": 0.0}
    evaluating_s = 0.0

    def after_round(number: int) -> None:
        nonlocal evaluating_s
        per_round = trainer.gen_train_timesteps
        before, done["steps"] = done["steps"], (number + 1) * per_round
        trainer.left = 1 - done["steps"] / asked["total_steps"]
        if done["steps"] // asked["every_steps"] == before // asked["every_steps"]:
            return
        paused_s = time.perf_counter()
        done["return"], _ = evaluate_policy(trainer.policy, tests, asked["episodes"])
        evaluating_s += time.perf_counter() - paused_s
        if done["return"] >= asked["target"]:
            raise ReachedError

    with contextlib.suppress(ReachedError):
        trainer.train(asked["total_steps"], callback=after_round)
    wall_s = time.perf_counter() - began_s
    return done | {"wall_s": wall_s - evaluating_s, "evaluating_s": evaluating_s}


def _trainer(asked: dict[str, Any], venv: DummyVecEnv, demonstrations: Any, folder: str) -> GAIL:
    wanted = asked["algorithm"]
    activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[asked["activation"]]
    sizes = asked["hidden_sizes"]

    def scheduled(number: float, schedule: str) -> Any:
        # Each round is a new call of `learn`, in which the progress of PPO begins anew.
        return lambda _: number * (trainer.left if schedule == "linear" else 1.0)

    generator = PPO(
        "MlpPolicy",
        venv,
        learning_rate=wanted["learning_rate"],
        n_steps=asked["rollout_length"],
        batch_size=wanted["minibatch_size"],
        n_epochs=wanted["epochs"],
        gamma=wanted["gamma"],
        gae_lambda=wanted["gae_lambda"],
        clip_range=wanted["clip_range"],
        ent_coef=wanted["entropy_coef"],
        vf_coef=wanted["value_coef"],
        max_grad_norm=wanted["max_grad_norm"],
        policy_kwargs={"net_arch": {"pi": sizes, "vf": sizes}, "activation_fn": activation},
        seed=asked["seed"],
        device="cpu",
    )
    net = BasicRewardNet(
        venv.observation_space,
        venv.action_space,
        hid_sizes=wanted["discriminator_hidden_sizes"],
        activation=activation,
        normalize_input_layer=RunningNorm,
    )
    trainer = GAIL(
        demonstrations=demonstrations,
        demo_batch_size=wanted["discriminator_batch_size"],
        n_disc_updates_per_round=wanted["discriminator_updates"],
        disc_opt_kwargs={"lr": wanted["discriminator_learning_rate"]},
        venv=venv,
        gen_algo=generator,
        reward_net=net,
        log_dir=folder,
        custom_logger=logger.configure(folder, []),
        allow_variable_horizon=True,
    )
    trainer.left = 1.0
    generator.lr_schedule = scheduled(wanted["learning_rate"], wanted["learning_rate_schedule"])
    generator.clip_range = scheduled(wanted["clip_range"], wanted["clip_schedule"])
    return trainer


def _demonstrations(path: str) -> list[Trajectory]:
    """Return the episodes of a file of numpy."""
    found = np.load(path)
    ends = found["lengths"].cumsum()
    rows = [slice(end - length, end) for end, length in zip(ends, found["lengths"], strict=True)]
    return [
        Trajectory(
            obs=np.concatenate(
                [found["observation"][own], found["final_observation"][number, None]]
            ),
            acts=found["action"][own],
            infos=None,
            terminal=bool(found["terminated"][own][-1]),
        )
        for number, own in enumerate(rows)
    ]


if __name__ == "__main__":
    main()
