"""Measure the speed of training and of its updates, compared with the PPO of SB3 and SBX.

    python scripts/bench_training.py configs/cartpole_ppo.yaml
    python scripts/bench_training.py configs/cartpole_no_velocity_ppo_lstm.yaml
    python scripts/bench_training.py configs/taxi_masked_ppo.yaml
    python scripts/bench_training.py configs/cartpole_ppo.yaml sampler.rollout_length=256 --json OUT

Both train with the settings of the configuration: environments, steps per rollout, minibatches,
epochs, network, optimiser and normalisation. For images the peer's policy is its
CnnPolicy; for policies with a memory the peer is RecurrentPPO of sb3-contrib, for environments with
masks its MaskablePPO. SB3 runs with one torch thread and with
all, and with both of its vector environments where there is more than one environment; its best
counts. SBX, the same in JAX, takes part where it is installed and the policy is an MLP without
masks. Methods take turns, each time in a process of its own; from end to end means the time of
`learn`, for fastrl from starting its workers to the last update. ``columns`` are the speeds of
`fastrl throughput --train`, each beside its limit: environments, with the policy, with training.
Needs: pip install -e '.[compare]'
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium
import torch
from bench.results import Row, quantity, write
from bench.rounds import fastest, interleaved
from command_line import ROOT, Parser, count, duration, output, printed, run

from fastrl.config import Config, load_config
from fastrl.envs import EnvFactory
from fastrl.errors import ConfigError
from fastrl.system import usable_cores

_COLUMN = ("fps_median", "limit_fps", "efficiency", "products_limit_fps", "products_efficiency")
QUIET = ["evaluation.enabled=false", "logging.tensorboard=false", "checkpoint.every_s=null"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the JSON file and print the table."""
    args = _parser().parse_intermixed_args(arguments)
    config = load_config(args.config, [*args.overrides, *QUIET])
    if args.method:
        print(json.dumps(METHODS[args.method](config, args.seconds)))
        return 0
    names = [name for name in METHODS if _takes_part(name, config)]
    rounds = interleaved({name: partial(_in_a_process, name, args) for name in names}, args.repeats)
    found = {
        "config": str(args.config),
        "overrides": args.overrides,
        "env": config.env.id,
        **_ratios(rounds),
        "columns": _columns(rounds["columns"]),
        "results": _rows(config.env.id, rounds),
    }
    target = args.json or ROOT / "results" / f"training_speed_{args.config.stem}.json"
    write(found, target, peers=["stable-baselines3", "sb3-contrib", "sbx-rl", "jax"])
    print(json.dumps({key: found[key] for key in found if "end_to_end" in key}, indent=1))
    print(json.dumps(found["update"], indent=1))
    return 0


def _takes_part(name: str, config: Config) -> bool:
    build = EnvFactory.from_config(config.env).single
    if name.startswith("sbx") and (
        importlib.util.find_spec("sbx") is None
        or config.model.recurrent is not None
        or _has_masks(build())
        or _has_images(build())
    ):
        return False
    return "subproc" not in name or config.topology.num_envs > 1


def fastrl_learn(config: Config, seconds: float) -> float:
    """Return the steps per second from end to end."""
    from fastrl.training import train

    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            directory = str(Path(scratch) / "run")
            changed = config.model_copy(update={"total_steps": steps, "run_dir": directory})
            return train(changed).outcome.wall_s

    return _rate(run, _rollout(config) * 4, seconds)


def sb3_learn(kind: str, threads: int, peer: str = "sb3") -> Callable[[Config, float], float]:
    """Return a function that measures SB3 or SBX from end to end."""

    def measure(config: Config, seconds: float) -> float:
        torch.set_num_threads(threads)
        model = sb3_ppo(config, kind, peer)
        model.learn(_rollout(config))

        def run(steps: int) -> float:
            began = time.perf_counter()
            model.learn(steps, reset_num_timesteps=True)
            return time.perf_counter() - began

        rate = _rate(run, _rollout(config), seconds)
        model.env.close()
        return rate

    return measure


def updates(config: Config, seconds: float) -> dict[str, float]:
    """Return the seconds of an update of each library, on one thread, in turns."""
    from fastrl.learning import build_learner
    from fastrl.sampling import make_plan, make_sampler

    torch.set_num_threads(1)
    sampler = config.sampler.model_copy(update={"kind": "serial"})
    config = config.model_copy(update={"sampler": sampler})
    plan = make_plan(config)
    learner = build_learner(config, plan.env_spec)
    with make_sampler(config, plan) as serial:
        rollout = serial.collect()
    other = sb3_ppo(config, "dummy")
    other.learn(_rollout(config))

    def timed(update: Callable[[], Any]) -> float:
        began = time.perf_counter()
        update()
        return time.perf_counter() - began

    turns = {
        "fastrl": partial(timed, lambda: learner.update(rollout)),
        "sb3": partial(timed, other.train),
    }
    both_s = sum(turn() for turn in turns.values())
    times = interleaved(turns, max(3, round(seconds / both_s)))
    return {name: median(found) for name, found in times.items()}


def columns(config: Config, seconds: float) -> dict[str, dict[str, float | None]]:
    """Return three speeds and their limits; see `fastrl.throughput.run_throughput`."""
    from fastrl.throughput import Protocol, run_throughput

    asynchronous = config.sampler.model_copy(update={"mode": "async"})
    sampled = config.model_copy(update={"sampler": asynchronous})
    found = run_throughput(sampled, Protocol(seconds / 3, 1), with_limit=True, train=config)
    return {
        name: {key: column[key] for key in _COLUMN}
        for name, column in found.to_dict()["columns"].items()
    }


def sb3_ppo(config: Config, kind: str, peer: str = "sb3") -> Any:
    """Return SB3's PPO, or SBX's, with the settings of a configuration."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

    wanted: Any = config.algorithm
    vector = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}[kind]
    # SB3's policies would take a mask within the observation as an input.
    env_config = config.env.model_copy(update={"action_mask": "off"})
    build = EnvFactory.from_config(env_config).single
    has_masks, has_images = _has_masks(build()), _has_images(build())
    env: Any = make_vec_env(
        build,
        config.topology.num_envs,
        seed=0,
        vec_env_cls=vector,
        wrapper_class=Masks if has_masks else None,
    )
    if config.model.normalize_observations or wanted.normalize_rewards:
        env = VecNormalize(
            env,
            norm_obs=config.model.normalize_observations,
            norm_reward=wanted.normalize_rewards,
            gamma=wanted.gamma,
        )
    algorithm, policy, network = (
        _sbx(config) if peer == "sbx" else _peer(config, has_masks, has_images)
    )
    return algorithm(
        policy,
        env,
        learning_rate=wanted.learning_rate,
        n_steps=config.sampler.rollout_length,
        batch_size=wanted.minibatch_size,
        n_epochs=wanted.epochs,
        gamma=wanted.gamma,
        gae_lambda=wanted.gae_lambda,
        clip_range=wanted.clip_range,
        clip_range_vf=wanted.clip_value_range,
        ent_coef=wanted.entropy_coef,
        vf_coef=wanted.value_coef,
        max_grad_norm=wanted.max_grad_norm,
        device="cpu",
        policy_kwargs=network,
    )


class Masks(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Provides the masks of the infos by the method that MaskablePPO calls."""

    def reset(self, **kwargs: Any) -> Any:
        """Start an episode."""
        observation, info = self.env.reset(**kwargs)
        self._mask = info.get("action_mask")
        return observation, info

    def step(self, action: Any) -> Any:
        """Step once."""
        found = self.env.step(action)
        self._mask = found[-1].get("action_mask")
        return found

    def action_masks(self) -> Any:
        """Return which actions are valid."""
        if self._mask is None:
            return self.env.get_wrapper_attr("action_masks")()
        return self._mask


def _has_masks(env: gymnasium.Env[Any, Any]) -> bool:
    with closing(env):
        return "action_mask" in env.reset(seed=0)[1] or env.has_wrapper_attr("action_masks")


def _has_images(env: gymnasium.Env[Any, Any]) -> bool:
    with closing(env):
        shape = env.observation_space.shape
        return shape is not None and len(shape) == 3


def _peer(config: Config, has_masks: bool, has_images: bool) -> tuple[Any, str, dict[str, Any]]:
    """Return SB3's algorithm, the name of its policy and the settings of its network."""
    from stable_baselines3 import PPO

    model, sizes = config.model, list(config.model.hidden_sizes)
    activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[model.activation]
    network: dict[str, Any] = {
        "net_arch": {"pi": sizes, "vf": sizes},
        "activation_fn": activation,
    }
    policy = "MlpPolicy"
    if has_images:
        policy, network["features_extractor_kwargs"] = (
            "CnnPolicy",
            {"features_dim": model.conv_features},
        )
    if model.recurrent is None and not has_masks:
        return PPO, policy, network
    from sb3_contrib import MaskablePPO, RecurrentPPO

    if model.recurrent is None:
        return MaskablePPO, policy, network
    if model.recurrent != "lstm" or has_masks or has_images:
        raise ConfigError("sb3-contrib has only LSTM, and none for masks; images are not compared")
    shared = model.shared_body is True
    network = {
        "net_arch": [],
        "share_features_extractor": shared,
        "shared_lstm": shared,
        "enable_critic_lstm": not shared,
        "lstm_hidden_size": model.recurrent_size,
        "n_lstm_layers": model.recurrent_layers,
    }
    if sizes:
        # Its hidden layers come behind the LSTM; as the extractor of features they come before it.
        network["features_extractor_class"] = _hidden_layers()
        network["features_extractor_kwargs"] = {"sizes": sizes, "activation": activation}
    return RecurrentPPO, "MlpLstmPolicy", network


def _sbx(config: Config) -> tuple[Any, str, dict[str, Any]]:
    """Return the same as `_peer` for SBX, whose networks are flax's."""
    import flax
    from sbx import PPO

    sizes, activation = list(config.model.hidden_sizes), config.model.activation
    network = {
        "net_arch": {"pi": sizes, "vf": sizes},
        "activation_fn": getattr(flax.linen, activation),
    }
    return PPO, "MlpPolicy", network


def _hidden_layers() -> type:
    """Return the class of an MLP as Stable-Baselines3's extractor of features."""
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp

    class HiddenLayers(BaseFeaturesExtractor):
        def __init__(self, space: Any, sizes: list[int], activation: type) -> None:
            super().__init__(space, sizes[-1])
            (inputs,) = space.shape
            layers = create_mlp(inputs, 0, sizes, activation)
            self.layers = torch.nn.Sequential(*layers)

        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.layers(observation)
            return features

    return HiddenLayers


METHODS: dict[str, Callable[[Config, float], Any]] = {
    "fastrl": fastrl_learn,
    "sb3-dummy-1-thread": sb3_learn("dummy", 1),
    "sb3-dummy": sb3_learn("dummy", usable_cores()),
    "sb3-subproc-1-thread": sb3_learn("subproc", 1),
    "sbx-dummy": sb3_learn("dummy", 1, "sbx"),
    "sbx-subproc": sb3_learn("subproc", 1, "sbx"),
    "update": updates,
    "columns": columns,
}


def _in_a_process(name: str, args: argparse.Namespace) -> Any:
    options = ["--method", name, "--seconds", str(args.seconds)]
    command = [sys.executable, __file__, str(args.config), *args.overrides, *options]
    found = json.loads(printed(command).splitlines()[-1])
    print(name, found, file=sys.stderr, flush=True)
    return found


def _rows(env: str, rounds: dict[str, list[Any]]) -> list[Row]:
    """Return a row per method: steps per second, or the seconds of an update."""
    rows = [
        {"env": env, "method": name, **quantity("steps_per_s", found)}
        for name, found in rounds.items()
        if name not in ("update", "columns")
    ]
    for name in ("fastrl", "sb3"):
        times = quantity("update_s", [each[name] for each in rounds["update"]])
        rows.append({"env": env, "method": f"{name}-update", **times})
    return rows


def _columns(rounds: list[dict[str, dict[str, float | None]]]) -> dict[str, Any]:
    """Return the measurements of all rounds by column."""
    return {
        name: {
            key: value
            for each in _COLUMN
            if None not in (values := [columns[name][each] for columns in rounds])
            for key, value in quantity(each.removesuffix("_median"), values).items()
        }
        for name in rounds[0]
    }


def _ratios(rounds: dict[str, list[Any]]) -> dict[str, Any]:
    """Return the ratios of each round, to a peer's best rate and to its time of an update."""
    found: dict[str, Any] = {}
    for peer, key in {"sb3": "end_to_end", "sbx": "end_to_end_sbx"}.items():
        methods = {name: rates for name, rates in rounds.items() if name.startswith(peer)}
        if methods:
            best = fastest(methods)
            ratios = [
                mine / other for mine, other in zip(rounds["fastrl"], rounds[best], strict=True)
            ]
            found[key] = {f"best_of_{peer}": best, **quantity("ratio", ratios)}
    updates = [each["sb3"] / each["fastrl"] for each in rounds["update"]]
    return found | {"update": quantity("ratio", updates)}


def _rate(run: Callable[[int], float], unit: int, seconds: float) -> float:
    """Return the steps per second of one run that takes about ``seconds``."""
    steps, elapsed = unit, run(unit)
    while elapsed < seconds / 4:
        steps = unit * max(2, int(steps / unit * min(8.0, seconds / 3 / elapsed)))
        elapsed = run(steps)
    steps = unit * max(1, round(steps / unit * seconds / elapsed))
    return steps / run(steps)


def _rollout(config: Config) -> int:
    return config.sampler.rollout_length * config.topology.num_envs


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("config", type=Path)
    add("overrides", nargs="*", help="key=value")
    add("--seconds", type=duration, default=8.0, help="length of a measurement (8)")
    add("--repeats", type=count, default=3, help="number of rounds (3)")
    add("--json", type=output, help="file to write (results/training_speed_CONFIG.json)")
    add("--method", choices=METHODS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    run(main)
