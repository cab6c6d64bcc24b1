"""Measure the cost of a custom loss, of a recurrent policy and of action masks.

    python scripts/bench_updates.py --json results/bench_updates.json

PPO with its own loss and with an equal custom one take turns on the same rollout, in one process
and one thread: an MLP of two layers of 64, whose network is compiled for both losses, and the usual
conv net over 64 × 64 pixels, for which both go through autograd. With the MLP a third one takes
turns, the custom loss with ``algorithm.compile``, which needs a C++ compiler. Then two hidden
layers of 64 take turns with one and a memory of 64: their rates of floating-point operations, six
for each weight and step. Last, two hidden layers of 64 act for 64 environments, of whose 18 actions
a random half is invalid, or none. Times are CPU time, so that other processes disturb little.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import numpy as np
import torch
from bench.results import Row, quantity, write
from bench.rounds import interleaved
from command_line import ROOT, Parser, count, output, run
from gymnasium import spaces

from fastrl.config import Config, EnvConfig, ModelConfig, PPOConfig
from fastrl.learning import Learner, Loss, Minibatch, build_learner
from fastrl.learning.ppo import PPO
from fastrl.models import ActorCritic, build_engine
from fastrl.models.inference import PolicyOutput
from fastrl.models.policy import PolicyModel
from fastrl.shared.rollouts import Rollout
from fastrl.spec import EnvSpec

sys.path[:0] = [str(ROOT)]

from tests.learning.synthetic import random_rollout, remembered_rollout  # noqa: E402

NUMBERS = EnvSpec("numbers", spaces.Box(-5, 5, (4,), np.float32), spaces.Discrete(2))
PIXELS = EnvSpec("pixels", spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Discrete(17))
CHOICES = spaces.Dict(
    [("seen", spaces.Box(-5, 5, (16,), np.float32)), ("action_mask", spaces.MultiBinary(18))]
)
MASKED = EnvSpec("masked", CHOICES, spaces.Discrete(18))
NETS = {
    "mlp": (NUMBERS, 64, 64, 64),
    "mlp of 1024 rows": (NUMBERS, 64, 64, 1024),
    "conv": (PIXELS, 16, 16, 64),
}
"""Environment, T, B and rows of a minibatch."""


class Custom(PPO):
    """PPO with an equal loss that fastrl does not recognise, as in a plug-in."""

    def loss(self, minibatch: Minibatch, policy: PolicyModel) -> Loss:
        """Return the loss of a minibatch."""
        return super().loss(minibatch, policy)


def main() -> int:
    """Measure in turns, print and write the JSON file."""
    parser = Parser(__doc__)
    parser.add_argument("--rounds", type=count, default=15)
    parser.add_argument("--updates", type=count, default=3, help="updates of a turn (3)")
    parser.add_argument("--json", type=output)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for net, (spec, steps, slots, size) in NETS.items():
        times = measure(losses_of(spec, steps, slots, size), args.rounds, args.updates)
        for name, found in times.items():
            row = {"net": net, "minibatches": steps * slots // size, "method": name}
            rows.append({**row, **quantity("update_ms", found)})
            told = f"{net}, {name}: {median(found):.1f} ms"
            if name != "built-in":
                ratios = [a / b for a, b in zip(found, times["built-in"], strict=True)]
                rows[-1] |= quantity("ratio", ratios)
                told += f", {median(ratios):.2f} × ({min(ratios):.2f} to {max(ratios):.2f})"
            print(told, flush=True)
    rows += rates(args.rounds, args.updates)
    rows += mask_costs(args.rounds)
    if args.json:
        write({"results": rows}, args.json)
    return 0


def losses_of(
    spec: EnvSpec, steps: int, slots: int, size: int
) -> dict[str, tuple[Learner, Rollout]]:
    """Return learners with either loss, and their rollout."""
    section = PPOConfig(epochs=1, minibatch_size=size, torch_threads=1)
    algorithms = {"built-in": PPO(section), "custom": Custom(section)}
    if spec is NUMBERS:
        compiled = section.model_copy(update={"compile": True})
        algorithms["custom, compile"] = Custom(compiled)
    found = {}
    for name, algorithm in algorithms.items():
        config = Config(env=EnvConfig(id="none"), algorithm=algorithm.section)
        learner = build_learner(config, spec, algorithm=algorithm)
        found[name] = learner, rollout_for(spec, learner, steps, slots)
    return found


def rates(num_rounds: int, num_updates: int) -> list[Row]:
    """Measure the updates of a policy without and with a memory, and print their ratios."""
    (spec, *_), found = NETS["mlp"], {}
    section = PPOConfig(epochs=1, minibatch_size=512, sequence_length=32, torch_threads=1)
    for kind in (None, "gru", "lstm"):
        net = ModelConfig(hidden_sizes=(64,) if kind else (64, 64), recurrent=kind)
        config = Config(env=EnvConfig(id="none"), model=net, algorithm=section)
        learner = build_learner(config, spec)
        rolled = partial(remembered_rollout, length=32) if kind else random_rollout
        rollout = rolled(spec, learner.model, steps=64, slots=64)
        found[kind or "feed-forward"] = learner, rollout
    times, rows = measure(found, num_rounds, num_updates), []
    for name, (learner, rollout) in found.items():
        weights = sum(x.numel() for x in learner.model.parameters() if x.ndim == 2)
        gflops = [6e-6 * weights * rollout.num_steps / ms for ms in times[name]]
        rows.append({"net": name, **quantity("gflops", gflops)})
        share = median(gflops) / rows[0]["gflops_median"]
        print(f"{name}: {median(gflops):.2f} GFLOP/s, {share:.2f} of feed-forward", flush=True)
    return rows


def mask_costs(num_rounds: int) -> list[Row]:
    """Measure the time to act without and with masks, per frame, and print their ratio."""
    rows, random = 64, torch.Generator().manual_seed(0)
    engine = build_engine(ActorCritic(MASKED, ModelConfig(hidden_sizes=(64, 64))), name="compiled")
    observation = {"seen": torch.randn(rows, 16, generator=random)}
    # The processor would predict the branches of masks that repeat.
    masks = torch.rand(256, rows, 18, generator=random) < 0.5
    masks[..., 0] = True
    noise, out = engine.draw_noise((rows,), random), PolicyOutput.zeros(rows, MASKED.action)
    calls = {
        "all actions valid": [engine.bind(observation, noise, out)] * len(masks),
        "half of them": [engine.bind(observation, noise, out, mask=mask) for mask in masks],
    }

    def turn(acts: Sequence[Callable[[], None]]) -> float:
        began_s = time.process_time()
        for act in 8 * acts:
            act()
        return (time.process_time() - began_s) / (8 * len(acts) * rows) * 1e9

    times = interleaved({name: partial(turn, acts) for name, acts in calls.items()}, num_rounds)
    found = [{"acting": name, **quantity("frame_ns", each)} for name, each in times.items()]
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    found[-1] |= quantity("ratio", ratios)
    told = ", ".join(f"{name} {median(each):.0f} ns" for name, each in times.items())
    print(f"acting: {told} per frame, {median(ratios):.3f} ×", flush=True)
    return found


def measure(
    found: Mapping[str, tuple[Learner, Rollout]], num_rounds: int, num_updates: int
) -> dict[str, list[float]]:
    """Return the milliseconds of an update of each learner, in each round."""

    def turn(learner: Learner, rollout: Rollout) -> float:
        began_s = time.process_time()
        for _ in range(num_updates):
            learner.update(rollout)
        return (time.process_time() - began_s) / num_updates * 1e3

    turns = {name: partial(turn, *pair) for name, pair in found.items()}
    for each in turns.values():
        each()
    return interleaved(turns, num_rounds)


def rollout_for(spec: EnvSpec, learner: Learner, steps: int, slots: int) -> Rollout:
    """Return a random rollout, whose pixels are bytes."""
    rollout = random_rollout(spec, learner.model, steps, slots)
    if spec.observation_space.dtype != np.uint8:
        return rollout
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, rollout.observation.shape, generator=random, dtype=torch.uint8)
    return replace(rollout, observation=pixels)


if __name__ == "__main__":
    run(main)
