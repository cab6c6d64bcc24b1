"""How much longer an update takes with a custom loss, which autograd differentiates.

    python scripts/bench_updates.py --json results/bench_updates.json

PPO with its own loss and with an equal custom one take turns on the same rollout, in one process
and one thread: an MLP of two layers of 64, which the compiled kernels know, and the usual conv net
over 64 × 64 pixels, for which both losses go through autograd. Times are CPU time, so that other
processes disturb little.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from command_line import Parser, count, output
from gymnasium import spaces

from fastrl.config import Config, EnvConfig, PPOConfig
from fastrl.learning import Learner, Loss, Minibatch, build_learner, losses
from fastrl.learning.ppo import PPO
from fastrl.machine import circumstances
from fastrl.models.policy import PolicyModel
from fastrl.shared.rollout_buffer import Rollout
from fastrl.spec import EnvSpec
from tests.learning.synthetic import random_rollout

NETS: Mapping[str, tuple[EnvSpec, int, int]] = {
    "mlp": (EnvSpec("numbers", spaces.Box(-5, 5, (4,), np.float32), spaces.Discrete(2)), 64, 64),
    "conv": (EnvSpec("pixels", spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Discrete(17)),
             16, 16),
}  # fmt: skip
"""Environment, T and B."""
MINIBATCH = 64


class Custom(PPO):
    """The loss of PPO, written as in a plug-in."""

    def loss(self, minibatch: Minibatch, policy: PolicyModel) -> Loss:
        """Return the loss of a minibatch."""
        log_prob, entropy, value = policy.evaluate(minibatch.observation, minibatch.action)
        old_log_prob, clip_range = minibatch["log_prob"], minibatch.scheduled["clip_range"]
        policy_loss = losses.ppo_loss(log_prob, old_log_prob, minibatch["advantage"], clip_range)
        value_loss = losses.value_loss(value, minibatch["target"])
        mean_entropy = entropy.mean()
        entropy_term = minibatch.scheduled["entropy_coef"] * mean_entropy
        with torch.no_grad():
            metrics = {
                "policy_loss": policy_loss,
                "value_loss": value_loss,
                "entropy": mean_entropy,
                "approx_kl": losses.approx_kl(log_prob, old_log_prob),
                "clip_fraction": losses.clip_fraction(log_prob, old_log_prob, clip_range),
            }
        return Loss(policy_loss + self.section.value_coef * value_loss - entropy_term, metrics)


def main() -> int:
    """Measure in turns, print, write the JSON."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=count, default=15)
    parser.add_argument("--updates", type=count, default=3, help="updates of a turn (3)")
    parser.add_argument("--json", type=output)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for net, (spec, steps, slots) in NETS.items():
        rounds = measure(spec, steps, slots, args.rounds, args.updates)
        ratios = sorted(each["custom"] / each["built-in"] for each in rounds)
        result[net] = {
            "minibatches": steps * slots // MINIBATCH,
            "update_ms": {
                name: {"median": median(times), "min": min(times), "max": max(times)}
                for name in rounds[0]
                if (times := [each[name] for each in rounds])
            },
            "ratio": {"median": median(ratios), "min": ratios[0], "max": ratios[-1]},
        }
        times = ", ".join(
            f"{name} {found['median']:.1f} ms" for name, found in result[net]["update_ms"].items()
        )
        print(
            f"{net}: {times}; custom is {median(ratios):.2f} × "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({**result, **circumstances()}, indent=2) + "\n")
    return 0


def measure(
    spec: EnvSpec, steps: int, slots: int, num_rounds: int, num_updates: int
) -> list[dict[str, float]]:
    """Return the milliseconds of an update with either loss, in each round."""
    section = PPOConfig(epochs=1, minibatch_size=MINIBATCH, torch_threads=1)
    config = Config(env=EnvConfig(id="none"), algorithm=section)
    algorithms = {"built-in": PPO(section), "custom": Custom(section)}
    learners = {
        name: build_learner(config, spec, algorithm=algorithm)
        for name, algorithm in algorithms.items()
    }
    rollout = rollout_for(spec, learners["custom"], steps, slots)
    for learner in learners.values():
        learner.update(rollout)
    rounds: list[dict[str, float]] = []
    for turn in range(num_rounds):
        found: dict[str, float] = {}
        for name in list(learners)[:: 1 if turn % 2 else -1]:
            began_s = time.process_time()
            for _ in range(num_updates):
                learners[name].update(rollout)
            found[name] = (time.process_time() - began_s) / num_updates * 1e3
        rounds.append(found)
    return rounds


def rollout_for(spec: EnvSpec, learner: Learner, steps: int, slots: int) -> Rollout:
    """Return a random rollout, whose pixels are bytes."""
    rollout = random_rollout(spec, learner.model, steps, slots)
    if spec.observation_space.dtype != np.uint8:
        return rollout
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, rollout.observation.shape, generator=random, dtype=torch.uint8)
    return replace(rollout, observation=pixels)


if __name__ == "__main__":
    sys.exit(main())
