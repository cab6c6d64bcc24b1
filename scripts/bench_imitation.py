"""Speed of imitation: GAIL beside the package imitation, recording, cloning, and APPO beside PPO.

    python3.11 -m venv DIR; DIR/bin/pip install imitation==1.0.1
    python scripts/bench_imitation.py --peer-python DIR/bin/python
    python scripts/bench_imitation.py --only recording appo
    python scripts/bench_imitation.py --only factory --peer-python PYTHON_WITH_SAMPLE_FACTORY

- ``gail``: seconds until an evaluation of 30 episodes returns 500 on CartPole-v1, or until the last
  step, both from the same 20 episodes of a trained policy, with the settings of
  configs/cartpole_gail.yaml. The package has neither a gradient penalty nor an absorbing state, so
  fastrl runs without them as well; it has one torch thread. Evaluations, one for every 10,000
  steps, do not count.
- ``recording``: steps per second of `fastrl record --dataset`, from starting the workers to the
  complete files, beside those of the sampler alone with the same policy and workers.
- ``cloning``: an epoch of behavioural cloning over a million steps, on one core, beside its matrix
  products alone, as `fastrl throughput --train` measures an update.
- ``appo``: steps per second from end to end of APPO and of PPO with the same settings, and what
  both reach.
- ``factory``: steps per second of APPO beside Sample Factory 2.1 (see
  scripts/comparison/sample_factory_peer.py for its virtual environment), from end to end for fastrl
  and by its own count, without its start, for Sample Factory: its examples' settings and networks,
  with as many workers as cores.

Methods take turns. Writes results/imitation_speed.json, in which other parts stay.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.results import Row, load, quantity, replaced, when, write
from bench.rounds import interleaved, ratio
from command_line import ROOT, Parser, count, duration, printed, run

from fastrl.config import Config, load_config
from fastrl.datasets import Demonstrations, load_demonstrations
from fastrl.errors import ConfigError
from fastrl.learning import build_learner
from fastrl.sampling import env_factory, make_plan, make_sampler
from fastrl.sampling.dataset_sampler import DatasetSampler
from fastrl.system import usable_cores
from fastrl.throughput import Protocol, UpdateProbe, measure
from fastrl.training import (
    CheckpointStore,
    EvaluationProtocol,
    evaluate,
    record_dataset,
    train,
)

RESULT = ROOT / "results" / "imitation_speed.json"
CONFIGS = ROOT / "configs"
CHILD = ROOT / "scripts" / "bench" / "imitation_child.py"
QUIET = ("logging.tensorboard=false", "checkpoint.every_s=null")
UNSEEN = (*QUIET, "evaluation.enabled=false")

SOLVED, EVERY_STEPS, EPISODES = 500, 10_000, 30
RECORDED = {
    "CartPole-v1": (["sampler.num_envs=128", "sampler.rollout_length=128"], 400_000, 2_048),
    "HalfCheetah-v5": (["sampler.num_envs=128", "sampler.rollout_length=128"], 20_000, 384),
}
"""By environment: the sampler, steps of training, and episodes of the dataset."""
CLONED = 1_000_000
ASYNC = {
    "HalfCheetah-v4": ("halfcheetah_appo.yaml", 400_000),
    "fastrl/Crafter-v1": ("crafter_native_ppo.yaml", 50_000),
}
"""By environment: a configuration of either algorithm, and steps."""
FACTORY: dict[str, tuple[list[str], list[str], int]] = {
    "HalfCheetah-v4": (
        ["halfcheetah_appo.yaml"],
        ["sf_examples.mujoco.train_mujoco", "--env=mujoco_halfcheetah"],
        64,
    ),
    "CartPole-v1": (
        [
            *("cartpole_appo.yaml", "sampler.num_envs=32", "model.hidden_sizes=[512,512]"),
            *("model.shared_body=true", "algorithm.epochs=1", "algorithm.minibatch_size=512"),
        ],
        [
            *("sf_examples.train_gym_env", "--env=CartPole-v1", "--use_rnn=False"),
            *("--recurrence=1", "--with_vtrace=False", "--rollout=32", "--batch_size=512"),
            *("--num_epochs=1", "--num_batches_per_epoch=2", "--encoder_mlp_layers", "512", "512"),
        ],
        32,
    ),
}
"""By environment: configuration and overrides; module and options of the peer; environments."""
FACTORY_STEPS = 400_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts, write the JSON, print ratios."""
    args = _parser().parse_args(arguments)
    kept = load(RESULT, same_machine=("cores",))["results"]
    for part in args.only:
        if part in ("gail", "factory") and args.peer_python is None:
            raise ConfigError("--peer-python: must name the interpreter with the other package")
    for part in args.only:
        with tempfile.TemporaryDirectory(prefix="bench_imitation_") as scratch:
            rows = [{"part": part, **row, **when()} for row in PARTS[part](args, Path(scratch))]
        kept = replaced(kept, rows, ("part", "env", "method"))
        write({"results": kept}, RESULT)
        for row in rows:
            told = {key: value for key, value in row.items() if not isinstance(value, list)}
            print(json.dumps(told), flush=True)
    return 0


def gail(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Return the times of both libraries until the pole stays up."""
    expert = train(load_config(CONFIGS / "cartpole_ppo.yaml", [*QUIET, f"run_dir={scratch / 'e'}"]))
    recorded = record_dataset(expert.path, scratch / "set", episodes=20)
    found = load_demonstrations(recorded.path)
    np.savez(
        scratch / "set.npz",
        observation=found.observation[""].numpy(),
        action=found.action[""].numpy(),
        final_observation=found.final_observation[""].numpy(),
        terminated=found.terminated.numpy(),
        lengths=found.lengths.numpy(),
    )
    config = load_config(CONFIGS / "cartpole_gail.yaml", [*UNSEEN, f"dataset.path={recorded.path}"])
    alike = ["algorithm.gradient_penalty=0", "algorithm.episode_ends=ignored"]
    same = load_config(
        CONFIGS / "cartpole_gail.yaml", [*UNSEEN, f"dataset.path={recorded.path}", *alike]
    )
    runs = interleaved(
        {
            "fastrl": _numbered(partial(_own_gail, config)),
            "fastrl, settings of imitation": _numbered(partial(_own_gail, same)),
            "imitation": _numbered(partial(_their_gail, config, scratch, args.peer_python)),
        },
        args.rounds,
    )
    peer = runs["imitation"]
    rows: list[Row] = [
        {
            "env": config.env.id,
            "method": name,
            "expert_return": recorded.returns.mean(),
            **quantity("wall_s", [each["wall_s"] for each in found]),
            **quantity("steps", [each["steps"] for each in found]),
            **quantity("return", [each["return"] for each in found]),
            "times_as_fast": ratio(_of(peer, "wall_s"), _of(found, "wall_s")),
            "times_the_steps_per_s": ratio(_rates(found), _rates(peer)),
        }
        for name, found in runs.items()
    ]
    rows[-1]["versions"] = {"imitation": "1.0.1", **peer[0]["versions"]}
    return rows


def _of(found: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [each[name] for each in found]


def _rates(found: Sequence[Mapping[str, Any]]) -> list[float]:
    return [each["steps"] / each["wall_s"] for each in found]


def _own_gail(config: Config, seed: int) -> dict[str, Any]:
    config = config.model_copy(update={"seed": seed})
    plan, protocol = make_plan(config), EvaluationProtocol(EPISODES, seed=10_000 + seed)
    learner = build_learner(config, plan.env_spec)
    began_s, evaluating_s, returned = time.perf_counter(), 0.0, 0.0
    with make_sampler(config, plan, learner.weights()) as sampler:
        while learner.steps < config.total_steps and returned < SOLVED:
            before = learner.steps // EVERY_STEPS
            learner.update(sampler.collect())
            sampler.publish(learner.weights())
            if learner.steps // EVERY_STEPS > before:
                paused_s, build = time.perf_counter(), env_factory(config).batched
                model, spec = copy.deepcopy(learner.model), plan.env_spec
                returned = evaluate(model, spec, build, protocol).return_mean
                evaluating_s += time.perf_counter() - paused_s
    wall_s = time.perf_counter() - began_s - evaluating_s
    return {"wall_s": wall_s, "steps": learner.steps, "return": returned}


def _their_gail(config: Config, scratch: Path, python: str, seed: int) -> Any:
    asked = {
        "env": config.env.id,
        "demonstrations": str(scratch / "set.npz"),
        "seed": seed,
        "num_envs": config.topology.num_envs,
        "rollout_length": config.sampler.rollout_length,
        "hidden_sizes": list(config.model.hidden_sizes),
        "activation": config.model.activation,
        "algorithm": config.algorithm.model_dump(mode="json"),
        "total_steps": config.total_steps,
        "every_steps": EVERY_STEPS,
        "episodes": EPISODES,
        "target": SOLVED,
    }
    return json.loads(printed([python, str(CHILD), json.dumps(asked)]).splitlines()[-1])


def recording(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Return the steps per second of recording and of sampling."""
    rows: list[Row] = []
    for env, (sampler, steps, episodes) in RECORDED.items():
        name = "cartpole_ppo" if env == "CartPole-v1" else "halfcheetah_v5_throughput"
        own = [*UNSEEN, *sampler, f"total_steps={steps}", f"run_dir={scratch / name}"]
        path = train(load_config(CONFIGS / f"{name}.yaml", own)).path
        turns: dict[str, Callable[[], float]] = {
            "sampler": partial(_sampled, path, args.seconds),
            "recording, sampled": partial(_recorded, path, scratch, episodes, False),
            "recording, most probable": partial(_recorded, path, scratch, episodes, True),
        }
        rows += _beside("sampler", "of_sampler", env, interleaved(turns, args.rounds))
    return rows


def _beside(other: str, key: str, env: str, rates: Mapping[str, Sequence[float]]) -> list[Row]:
    """Return a row per method, with its ratio to another one."""
    return [
        {
            "env": env,
            "method": method,
            **quantity("steps_per_s", found),
            key: ratio(found, rates[other]),
        }
        for method, found in rates.items()
    ]


def _sampled(run: Path, seconds: float) -> float:
    config = load_config(run / "config.yaml", ["sampler.mode=async"])
    weights = CheckpointStore(run / "checkpoints").load("last").model
    with make_sampler(config, make_plan(config), dict(weights)) as sampler:
        return measure(sampler, Protocol(seconds, 1)).fps_median


def _recorded(run: Path, scratch: Path, episodes: int, is_deterministic: bool) -> float:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        found = record_dataset(
            run, Path(folder) / "set", episodes=episodes, deterministic=is_deterministic
        )
    return float(found.lengths.sum() / found.wall_s)


def cloning(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Return the times of an epoch of cloning and of its products."""
    config = load_config(CONFIGS / "halfcheetah_bc.yaml", UNSEEN)
    plan = make_plan(config)
    random = torch.Generator().manual_seed(0)
    ends = torch.arange(1, CLONED + 1) % 1000 == 0
    shown = Demonstrations(
        env_spec=plan.env_spec,
        observation={"": torch.randn(CLONED, 17, generator=random)},
        action={"": 2 * torch.rand(CLONED, 6, generator=random) - 1},
        reward=torch.zeros(CLONED),
        terminated=torch.zeros(CLONED, dtype=torch.bool),
        truncated=ends,
        final_observation={"": torch.randn(CLONED // 1000, 17, generator=random)},
        lengths=torch.full((CLONED // 1000,), 1000),
        fields={},
    )
    state = build_learner(config, plan.env_spec).state_dict()
    with DatasetSampler(plan, shown) as sampler:
        rollout = sampler.collect()
        probe = UpdateProbe(config, plan.env_spec)
        times = [probe.measure(rollout, state, args.seconds) for _ in range(args.rounds)]
    epochs = [each.t_learn_s * CLONED for each in times]
    products = [(each.t_products_s or 0.0) * CLONED for each in times]
    row = {"env": config.env.id, "method": "epoch", **quantity("epoch_s", epochs)}
    return [{**row, **quantity("products_s", products), "of_products": ratio(epochs, products)}]


def appo(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Return the steps per second of APPO and PPO, and their returns."""
    rows = []
    for env, (file, steps) in ASYNC.items():
        own: tuple[str, ...] = (*QUIET, f"total_steps={steps}", f"evaluation.every_steps={steps}")
        # The most probable actions of an early policy may do what sampled ones hardly ever do.
        own += ("evaluation.final_episodes=10", "evaluation.deterministic=false")
        settings: Mapping[str, Sequence[str]] = {
            "ppo": ("algorithm.name=ppo", "sampler.mode=sync"),
            "appo": ("algorithm.name=appo", "sampler.mode=async"),
        }
        turns = {
            name: _numbered(partial(_end_to_end, CONFIGS / file, [*own, *keys], scratch / name))
            for name, keys in settings.items()
        }
        found = interleaved(turns, args.rounds)
        rates = {name: [rate for rate, _ in each] for name, each in found.items()}
        rows += [
            {
                "env": env,
                "method": name,
                **quantity("steps_per_s", rates[name]),
                **quantity("return", [reached for _, reached in each]),
                "of_ppo": ratio(rates[name], rates["ppo"]),
            }
            for name, each in found.items()
        ]
    return rows


def factory(args: argparse.Namespace, scratch: Path) -> list[Row]:
    """Return the steps per second of APPO here and in Sample Factory."""
    rows: list[Row] = []
    cores = usable_cores()
    for env, ((file, *keys), peer, num_envs) in FACTORY.items():
        own = [*UNSEEN, f"total_steps={FACTORY_STEPS}", *keys]
        command = [args.peer_python, "-m", *peer, f"--num_workers={cores}"]
        command += [f"--num_envs_per_worker={num_envs // cores}"]
        found = interleaved(
            {
                "fastrl": _numbered(partial(_own_rate, CONFIGS / file, own, scratch)),
                "sample-factory": _numbered(partial(_factory_rate, command, scratch)),
            },
            args.rounds,
        )
        rows += _beside("sample-factory", "of_sample_factory", env, found)
    return rows


def _own_rate(file: Path, overrides: Sequence[str], scratch: Path, seed: int) -> float:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        own = [*overrides, f"seed={seed}", f"run_dir={Path(folder) / 'run'}"]
        outcome = train(load_config(file, own)).outcome
    return outcome.steps / outcome.wall_s


def _factory_rate(command: Sequence[str], scratch: Path, seed: int) -> float:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        own = [f"--seed={seed}", f"--train_dir={folder}", "--experiment=one", "--device=cpu"]
        own += ["--algo=APPO", f"--train_for_env_steps={FACTORY_STEPS}"]
        done = subprocess.run(
            [*command, *own],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=True,
        )
    return float(re.findall(r"FPS: ([0-9.]+)", done.stdout)[-1])


def _end_to_end(file: Path, overrides: Sequence[str], scratch: Path, seed: int) -> Any:
    with tempfile.TemporaryDirectory(prefix=scratch.name, dir=scratch.parent) as folder:
        own = [*overrides, f"seed={seed}", f"run_dir={Path(folder) / 'run'}"]
        outcome = train(load_config(file, own)).outcome
    assert outcome.evaluation is not None
    return outcome.steps / outcome.wall_s, outcome.evaluation.return_mean


def _numbered(turn: Callable[[int], Any]) -> Callable[[], Any]:
    """Return a function that calls another one with 0, 1, 2 and so on: the seeds of its rounds."""
    seeds = iter(range(1000))
    return lambda: turn(next(seeds))


PARTS: Mapping[str, Callable[[argparse.Namespace, Path], list[Row]]] = {
    "gail": gail,
    "recording": recording,
    "cloning": cloning,
    "appo": appo,
    "factory": factory,
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=[*PARTS][:-1], help="parts (all but factory)")
    add("--peer-python", metavar="PATH", help="with imitation, or Sample Factory")
    add("--rounds", type=count, default=3)
    add("--seconds", type=duration, default=5.0, help="length of a window, and of an epoch (5)")
    return parser


if __name__ == "__main__":
    run(main)
