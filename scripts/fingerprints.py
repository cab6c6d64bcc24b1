"""Record or check the exact results of a few updates of many kinds of runs.

python scripts/fingerprints.py --record results/fingerprints.json
python scripts/fingerprints.py --check results/fingerprints.json

Each run trains on a few rollouts, and yields one hash of its rollouts, one of the metrics
of its updates and one of its last weights. A change of the code that should not change what is
learnt leaves every hash as it was. Hashes hold on one machine with one version of torch: other
processors add in another order.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from command_line import Parser, output, run
from gymnasium import spaces
from torch import Tensor

from fastrl import ActorCritic, DeviceSampler, build_learner, load_config, make_plan, make_sampler
from fastrl.config import Config, ModelConfig
from fastrl.envs.tensor.tensor_by_id import configured
from fastrl.sampling import Sampler
from fastrl.shared.rollouts import Rollout
from fastrl.spaces import flatten
from fastrl.spec import EnvSpec
from fastrl.system import circumstances, existing_device
from fastrl.workers.plan import SamplingPlan

UPDATES = 3
_OTHER_BANK_S = 1.0
"""Timeout of a rollout in seconds; a small one takes less."""
_HERE = "fingerprints"
"""Import path of this file, for the workers."""

_CARTPOLE = ("env.id=CartPole-v1", "sampler.rollout_length=32", "sampler.envs_per_worker=8")
_TWO = ("sampler.num_env_workers=2",)
_CARTPOLES = (*_CARTPOLE, *_TWO)
_PENDULUM = ("env.id=Pendulum-v1", "sampler.rollout_length=32", "sampler.envs_per_worker=8", *_TWO)
_MIXED = (f"env.id={_HERE}:Mixed", "sampler.rollout_length=16", "sampler.envs_per_worker=4", *_TWO)
_CRAFTER = (
    "env.id=fastrl/Crafter-v1",
    "sampler.rollout_length=8",
    "sampler.envs_per_worker=4",
    "model.conv_features=64",
    "model.conv_layers=[[8, 8, 4], [16, 4, 2]]",
    *_TWO,
)
_REMEMBERED = (
    "env.id=CartPoleNoVel-v1", "sampler.rollout_length=32", "sampler.envs_per_worker=8",
    "algorithm.sequence_length=16", "model.recurrent_size=16", *_TWO,
)  # fmt: skip
_ONE_MODEL = ("sampler.num_model_workers=1",)
_A2C = ("algorithm.name=a2c",)

RUNS: Mapping[str, tuple[str, ...]] = {
    "ppo mlp serial": (*_CARTPOLES, "sampler.kind=serial"),
    "ppo mlp M=0": _CARTPOLES,
    "ppo mlp M=0, two groups": (*_CARTPOLES, "sampler.groups=2"),
    "ppo mlp M=1": (*_CARTPOLES, *_ONE_MODEL),
    "ppo mlp M=1, lock-step": (*_CARTPOLES, *_ONE_MODEL, "sampler.lock_step=true"),
    "ppo mlp M=2, two groups": (
        *_CARTPOLES, "sampler.num_model_workers=2", "sampler.groups=2", "sampler.lock_step=true",
    ),
    "ppo mlp eager": (*_CARTPOLES, "sampler.engine=eager"),
    "ppo mlp eager M=1, lock-step": (
        *_CARTPOLES, *_ONE_MODEL, "sampler.engine=eager", "sampler.lock_step=true"
    ),
    "ppo mlp, every option": (
        *_CARTPOLES, "algorithm.learning_rate_schedule=linear",
        "algorithm.entropy_coef=0.01", "algorithm.entropy_schedule=linear",
        "algorithm.clip_schedule=linear", "algorithm.clip_value_range=0.2",
        "algorithm.target_kl=0.02", "algorithm.normalize_rewards=true",
        "algorithm.normalize_advantage=false", "total_steps=5000",
    ),
    "ppo mlp, shared body, rmsprop": (
        *_CARTPOLES, "model.shared_body=true", "algorithm.optimizer=rmsprop"
    ),
    "ppo subclass": (*_CARTPOLES, f"model.class_path={_HERE}:Doubled"),
    "ppo gaussian, clip": _PENDULUM,
    "ppo gaussian, squash, normalised": (
        *_PENDULUM, "env.action_bounds=squash", "model.normalize_observations=true",
        "algorithm.normalize_rewards=true",
    ),
    "ppo gaussian, squash, M=1": (
        *_PENDULUM, *_ONE_MODEL, "env.action_bounds=squash", "sampler.lock_step=true"
    ),
    "ppo Dict, serial": (*_MIXED, "sampler.kind=serial"),
    "ppo Dict, M=0": _MIXED,
    "ppo Dict, M=1": (*_MIXED, *_ONE_MODEL, "sampler.lock_step=true"),
    "a2c Dict, M=0": (*_MIXED, *_A2C),
    "ppo conv, M=0": _CRAFTER,
    "ppo conv, M=1": (*_CRAFTER, *_ONE_MODEL, "sampler.lock_step=true"),
    "a2c conv, serial": (*_CRAFTER, *_A2C, "sampler.kind=serial"),
    "ppo gru, serial": (*_REMEMBERED, "model.recurrent=gru", "sampler.kind=serial"),
    "ppo lstm, M=0": (*_REMEMBERED, "model.recurrent=lstm", "model.shared_body=false"),
    "ppo masked choice, M=0": (
        "env.id=Taxi-v4", "sampler.rollout_length=32", "sampler.envs_per_worker=8", *_TWO
    ),
    "a2c mlp M=0": (*_CARTPOLES, *_A2C),
    "a2c mlp M=1": (*_CARTPOLES, *_A2C, *_ONE_MODEL),
    "a2c V-trace, async": (*_CARTPOLES, *_A2C, "algorithm.vtrace=true", "sampler.mode=async"),
    "ppo async, M=1": (*_CARTPOLES, *_ONE_MODEL, "sampler.mode=async"),
    "ppo fastrl/HalfCheetah-v5": (
        "env.id=fastrl/HalfCheetah-v5", "sampler.rollout_length=32", "sampler.envs_per_worker=8",
        *_TWO, "model.normalize_observations=true",
    ),
    "ppo HalfCheetah-v5": (
        "env.id=HalfCheetah-v5", "sampler.rollout_length=32", "sampler.envs_per_worker=4", *_TWO
    ),
    "ppo compiled loops, device": (*_CARTPOLE, "sampler.kind=device"),
    "a2c compiled loops, device": (*_CARTPOLE, *_A2C, "sampler.kind=device"),
}  # fmt: skip
TENSOR_RUNS: Mapping[str, tuple[str, ...]] = {
    "ppo tensors": (*_CARTPOLE, "sampler.kind=device"),
    "ppo tensors, gaussian": (
        "env.id=Pendulum-v1", "sampler.rollout_length=32", "sampler.envs_per_worker=8",
        "sampler.kind=device", "env.action_bounds=squash",
    ),
}  # fmt: skip


class Mixed(gymnasium.Env[Any, Any]):
    """Environment with several kinds of leaves whose episodes terminate or are truncated."""

    observation_space = spaces.Dict(
        {
            "place": spaces.Box(-5, 5, (3,), np.float32),
            "kind": spaces.Discrete(4),
            "bits": spaces.MultiBinary(2),
        }
    )
    action_space = spaces.Dict(
        {"move": spaces.Box(-1, 1, (2,), np.float32), "choice": spaces.MultiDiscrete([3, 2])}
    )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start at a random place."""
        super().reset(seed=seed)
        self._steps, self._place = 0, self.np_random.normal(size=3).astype(np.float32)
        return self._observation(), {}

    def step(self, action: dict[str, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move; terminate far from the start, and truncate after 11 steps."""
        self._steps += 1
        self._place[:2] += action["move"] * (1 + action["choice"][0])
        self._place[2] = self.np_random.normal()
        far = bool(np.abs(self._place).max() > 4)
        reward = float(-np.abs(self._place).sum() + action["choice"][1])
        return self._observation(), reward, far, not far and self._steps == 11, {}

    def _observation(self) -> dict[str, Any]:
        return {
            "place": self._place.clip(-5, 5),
            "kind": self._steps % 4,
            "bits": np.array([self._steps % 2, self._place[0] > 0], np.int8),
        }


class Doubled(ActorCritic):
    """A policy with a forward pass that fastrl's engines do not support."""

    def __init__(self, env_spec: EnvSpec) -> None:
        """Build the default network."""
        super().__init__(env_spec, ModelConfig())

    def forward(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the parameters, doubled, and the value."""
        parameters, value = super().forward(observation)
        return 2 * parameters, value


def main() -> int:
    """Record the hashes, or compare them with recorded ones; return 1 if one differs."""
    parser = Parser(__doc__)
    parser.add_argument("--record", type=output, help="JSON to write")
    parser.add_argument("--check", type=Path, help="JSON to compare with")
    parser.add_argument("--only", help="runs whose name contains this")
    args = parser.parse_args()
    found = {}
    for name, overrides in [*RUNS.items(), *TENSOR_RUNS.items()]:
        if args.only is None or args.only in name:
            began_s = time.perf_counter()
            found[name] = fingerprint(overrides, tensors=name in TENSOR_RUNS)
            hashes = "  ".join(found[name].values())
            print(f"{name:34} {hashes}  {time.perf_counter() - began_s:.1f} s", flush=True)
    if args.record:
        result = {"runs": found, **circumstances()}
        args.record.write_text(json.dumps(result, indent=2) + "\n")
    if args.check is None:
        return 0
    recorded = json.loads(args.check.read_text())["runs"]
    wrong = [name for name in found if found[name] != recorded.get(name)]
    for name in wrong:
        print(f"differs: {name}: {found[name]}, recorded {recorded.get(name)}")
    print(f"{len(found) - len(wrong)} of {len(found)} runs are the same to the last bit")
    return int(bool(wrong))


def fingerprint(overrides: tuple[str, ...], *, tensors: bool = False) -> dict[str, str]:
    """Return the hashes of the rollouts, the metrics and the last weights of a short run.

    With ``tensors`` a `DeviceSampler` samples, which `make_sampler` builds only on a GPU.
    """
    config = load_config(None, ["algorithm.torch_threads=1", "seed=3", *overrides])
    plan = make_plan(config)
    learner = build_learner(config, plan.env_spec)
    rollouts, metrics = hashlib.sha256(), hashlib.sha256()
    asynchronous = config.sampler.mode == "async"
    with _sampler(config, plan, tensors=tensors) as sampler:
        sampler.publish(learner.weights())
        for _ in range(UPDATES):
            rollout = sampler.collect()
            for part in _parts(rollout, plan.env_spec):
                rollouts.update(part)
            found = learner.update(rollout)
            metrics.update(repr(sorted(found.items())).encode())
            if asynchronous:
                # The next rollout is whole before there are new weights, whatever the speed.
                time.sleep(_OTHER_BANK_S)
            sampler.publish(learner.weights())
    weights = hashlib.sha256()
    for name, tensor in sorted(learner.weights().items()):
        weights.update(name.encode() + tensor.cpu().numpy().tobytes())
    hashes = {"rollouts": rollouts, "metrics": metrics, "weights": weights}
    return {name: found.hexdigest()[:16] for name, found in hashes.items()}


def _sampler(config: Config, plan: SamplingPlan, *, tensors: bool) -> Sampler:
    if not tensors:
        return make_sampler(config, plan)
    env, params = configured(config.env, existing_device(torch.device("cpu")))
    return DeviceSampler(plan, env, params, squash=config.env.action_bounds == "squash")


def _parts(rollout: Rollout, spec: EnvSpec) -> Iterator[bytes]:
    """Yield the bytes of every field, in a fixed order."""
    observation = flatten(spec.observation_space, rollout.observation)
    for leaf in [*observation, *flatten(spec.action_space, rollout.action)]:
        yield leaf.numpy().tobytes()
    for name in ("reward", "terminated", "truncated", "log_prob", "value", "final_value"):
        yield name.encode() + getattr(rollout, name).numpy().tobytes()
    yield rollout.policy_version.numpy().tobytes()
    for array in (rollout.episodes.returns, rollout.episodes.lengths):
        yield np.ascontiguousarray(array).tobytes()


if __name__ == "__main__":
    run(main)
