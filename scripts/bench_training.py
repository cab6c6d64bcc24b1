"""Training speed from end to end, and of the update alone, beside Stable-Baselines3's PPO.

    python scripts/bench_training.py configs/cartpole_ppo.yaml
    python scripts/bench_training.py configs/halfcheetah_v4_ppo_cleanrl.yaml --seconds 15

Both train with the settings of the configuration: environments, steps per rollout, minibatches,
epochs, network, optimiser and normalisation. SB3 runs with one torch thread and with all, and with
both of its vector environments where there is more than one environment; its best counts. Methods
take turns, each time in a process of its own; from end to end means the time of `learn`, for
fastrl from starting its workers to the last update. Needs: pip install -e '.[compare]'
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from command_line import Parser, count, duration

from fastrl.config import Config, load_config
from fastrl.cores import usable_cores
from fastrl.errors import FastrlError
from fastrl.machine import circumstances

ROOT = Path(__file__).parents[1]
QUIET = ["evaluation.enabled=false", "logging.tensorboard=false", "checkpoint.every_s=null"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the JSON, print the table."""
    args = _parser().parse_intermixed_args(arguments)
    config = load_config(args.config, [*args.overrides, *QUIET])
    if args.method:
        print(json.dumps(METHODS[args.method](config, args.seconds)))
        return 0
    names = [name for name in METHODS if "subproc" not in name or _num_envs(config) > 1]
    rounds: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(args.repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            rounds[name].append(_in_a_process(name, args))
            print(name, rounds[name][-1], file=sys.stderr, flush=True)
    result = {
        "config": str(args.config),
        "env": config.env.id,
        **_compared(rounds),
        **circumstances("stable-baselines3"),
    }
    target = ROOT / "results" / f"training_speed_{args.config.stem}.json"
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("end_to_end", "update")}, indent=1))
    return 0


def fastrl_learn(config: Config, seconds: float) -> float:
    """Return steps per second from end to end."""
    from fastrl.training import train

    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            directory = str(Path(scratch) / "run")
            changed = config.model_copy(update={"total_steps": steps, "run_dir": directory})
            return train(changed).outcome.wall_s

    return _rate(run, _rollout(config) * 4, seconds)


def sb3_learn(kind: str, threads: int) -> Callable[[Config, float], float]:
    """Return what measures SB3 from end to end."""

    def measure(config: Config, seconds: float) -> float:
        torch.set_num_threads(threads)
        model = sb3_ppo(config, kind)
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
    """Return the seconds that an update takes, on one thread, in turns."""
    from fastrl.envs import EnvFactory
    from fastrl.learning import build_learner
    from tests.learning.synthetic import random_rollout

    torch.set_num_threads(1)
    spec = EnvFactory.from_config(config.env).probe()
    learner = build_learner(config, spec)
    steps, slots = config.sampler.rollout_length, _num_envs(config)
    rollout = random_rollout(spec, learner.model, steps, slots)
    other = sb3_ppo(config, "dummy")
    other.learn(_rollout(config))
    times: dict[str, list[float]] = {"fastrl": [], "sb3": []}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times["sb3"]) < 3:
        for name, update in (("fastrl", lambda: learner.update(rollout)), ("sb3", other.train)):
            began = time.perf_counter()
            update()
            times[name].append(time.perf_counter() - began)
    return {name: median(found) for name, found in times.items()}


def sb3_ppo(config: Config, kind: str) -> Any:  # noqa: ANN401
    """Return SB3's PPO with the settings of a configuration."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

    wanted: Any = config.algorithm
    vector = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}[kind]
    env: Any = make_vec_env(config.env.id, _num_envs(config), seed=0, vec_env_cls=vector)
    if config.model.normalize_observations or wanted.normalize_rewards:
        env = VecNormalize(
            env,
            norm_obs=config.model.normalize_observations,
            norm_reward=wanted.normalize_rewards,
            gamma=wanted.gamma,
        )
    sizes = list(config.model.hidden_sizes)
    activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[config.model.activation]
    return PPO(
        "MlpPolicy",
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
        policy_kwargs={"net_arch": {"pi": sizes, "vf": sizes}, "activation_fn": activation},
    )


METHODS: dict[str, Callable[[Config, float], Any]] = {
    "fastrl": fastrl_learn,
    "sb3-dummy-1-thread": sb3_learn("dummy", 1),
    "sb3-dummy": sb3_learn("dummy", usable_cores()),
    "sb3-subproc-1-thread": sb3_learn("subproc", 1),
    "update": updates,
}


def _in_a_process(name: str, args: argparse.Namespace) -> Any:  # noqa: ANN401
    command = [sys.executable, __file__, str(args.config), *args.overrides, "--method", name]
    done = subprocess.run(
        [*command, "--seconds", str(args.seconds)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _compared(rounds: dict[str, list[Any]]) -> dict[str, Any]:
    """Return rates, and the ratios of each round: to the best of SB3's medians."""
    rates = {name: found for name, found in rounds.items() if name != "update"}
    peers = {name: median(found) for name, found in rates.items() if name != "fastrl"}
    best = max(peers, key=peers.__getitem__)
    ratios = [mine / other for mine, other in zip(rates["fastrl"], rates[best], strict=True)]
    update_ratios = [each["sb3"] / each["fastrl"] for each in rounds["update"]]
    return {
        "end_to_end": {
            "steps_per_s": {name: median(found) for name, found in rates.items()},
            "best_of_sb3": best,
            "ratio": median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        },
        "update": {
            "fastrl_s": median(each["fastrl"] for each in rounds["update"]),
            "sb3_s": median(each["sb3"] for each in rounds["update"]),
            "ratio": median(update_ratios),
            "ratio_min": min(update_ratios),
            "ratio_max": max(update_ratios),
        },
        "rounds": rounds,
    }


def _rate(run: Callable[[int], float], unit: int, seconds: float) -> float:
    """Return steps per second of one run that takes about so long."""
    steps, elapsed = unit, run(unit)
    while elapsed < seconds / 4:
        steps = unit * max(2, int(steps / unit * min(8.0, seconds / 3 / elapsed)))
        elapsed = run(steps)
    steps = unit * max(1, round(steps / unit * seconds / elapsed))
    return steps / run(steps)


def _num_envs(config: Config) -> int:
    workers = config.sampler.num_env_workers
    return config.sampler.envs_per_worker * (usable_cores() if workers == "auto" else workers)


def _rollout(config: Config) -> int:
    return config.sampler.rollout_length * _num_envs(config)


def _parser() -> argparse.ArgumentParser:
    described, _, rest = (__doc__ or "").partition("\n\n")
    parser = Parser(
        description=described, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", type=Path)
    add("overrides", nargs="*", help="key=value")
    add("--seconds", type=duration, default=8.0, help="length of a measurement (8)")
    add("--repeats", type=count, default=3, help="number of rounds (3)")
    add("--method", choices=METHODS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FastrlError as error:
        print(f"bench_training: error: {error}", file=sys.stderr)
        sys.exit(2)
