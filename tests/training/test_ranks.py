"""Runs of several ranks: as one run for the user, also when ranks are stopped or die."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastrl.cli import main
from fastrl.config import (
    Config,
    EnvConfig,
    EvaluationConfig,
    PPOConfig,
    SamplerConfig,
    config_to_yaml,
)
from fastrl.config.models import ClusterConfig
from fastrl.errors import ConfigError
from fastrl.learning.ranks import Ranks
from fastrl.sampling import make_plan, make_sampler
from fastrl.training import resume, train
from fastrl.training.coordination import own_part, own_plan, require_alike
from tests.learning.crew import free_port

# Ranks are waited for longer than other tests may take.
pytestmark = pytest.mark.timeout(300)

WITHIN_S = 120.0
RUN = [
    *("env.id=CartPole-v1", "evaluation.enabled=false", "logging.every_steps=64"),
    *("sampler.num_envs=4", "sampler.rollout_length=16", "algorithm.epochs=2"),
    *("algorithm.minibatch_size=24", "algorithm.normalize_rewards=true"),
    *("model.normalize_observations=true", "logging.tensorboard=false"),
]
ENDLESS = "total_steps=100000000"


def config_of(steps: int, **sampler: object) -> Config:
    """What `RUN` says."""
    return Config(
        total_steps=steps,
        env=EnvConfig(id="CartPole-v1"),
        sampler=SamplerConfig(num_envs=4, rollout_length=16, **sampler),
        algorithm=PPOConfig(epochs=2, minibatch_size=24, normalize_rewards=True),
        model={"normalize_observations": True},
        evaluation=EvaluationConfig(enabled=False),
    )


def torchrun(size: int, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}"]
    command += [f"--master-port={free_port()}", "--log-dir=/dev/null"]  # else it leaves a directory
    command += ["-m", "fastrl", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert ended.returncode == 0, ended.stderr


@contextmanager
def started(
    arguments: Sequence[Sequence[str]], environment: Mapping[str, str] = os.environ
) -> Iterator[list[subprocess.Popen[str]]]:
    """One rank for each list of arguments, without a launcher."""
    port = str(free_port())
    ranks = []
    for rank, own in enumerate(arguments):
        given = {"RANK": str(rank), "WORLD_SIZE": str(len(arguments)), "MASTER_PORT": port}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "fastrl", *own],
                env={**environment, **given, "MASTER_ADDR": "127.0.0.1"},
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def ended(rank: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code and errors of a rank."""
    _, errors = rank.communicate(timeout=WITHIN_S)
    return rank.returncode, [line for line in errors.splitlines() if "error" in line]


def training(run: Path) -> None:
    """Wait until a run has written metrics."""
    until = time.monotonic() + WITHIN_S
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < until
        time.sleep(0.05)


def steps_of(run: Path) -> int:
    """Steps of the last row of metrics."""
    return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["steps"])


def parameters_of(run: Path, steps: int) -> torch.Tensor:
    found = load_file(run / "checkpoints" / f"step_{steps:012d}" / "model.safetensors")
    return torch.cat([each.flatten().double() for each in found.values()])


def goes_on(run: Path) -> None:
    """Resume a run by this process alone, from where it was stopped."""
    (last,) = sorted((run / "checkpoints").iterdir())[-1:]
    saved = int(last.name.removeprefix("step_"))
    assert saved > 0
    resumed = resume(run, [f"total_steps={saved + 64}"])
    assert resumed.outcome.steps == saved + 64


def test_torchrun_trains_as_one_rank_does_and_one_rank_resumes(tmp_path):
    run, alone = tmp_path / "run", tmp_path / "alone"
    steps = 50 * 64
    torchrun(2, "train", *RUN, f"total_steps={steps}", f"run_dir={run}")
    train(config_of(steps).model_copy(update={"run_dir": str(alone)}))
    torch.testing.assert_close(
        parameters_of(run, steps), parameters_of(alone, steps), rtol=1e-6, atol=2e-6
    )
    rows = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (run, alone)
    ]
    for row, same in zip(*rows, strict=True):
        assert row["episodes"] == same["episodes"]
        assert row["return_mean"] == pytest.approx(same["return_mean"], nan_ok=True)
        assert row["loss"] == pytest.approx(same["loss"], abs=1e-4)
    goes_on(run)


@pytest.mark.slow
def test_more_ranks_resume_than_began(tmp_path):
    run = tmp_path / "run"
    torchrun(2, "train", *RUN, "total_steps=640", f"run_dir={run}")
    torchrun(4, "resume", str(run), "total_steps=1280")
    assert steps_of(run) == 1280


@pytest.mark.parametrize(
    ("number", "at"),
    [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow)],
)
def test_signal_at_one_rank_ends_all_at_the_same_update_saved(tmp_path, number, at):
    run = tmp_path / "run"
    with started([["train", *RUN, ENDLESS, f"run_dir={run}"]] * 2) as ranks:
        training(run)
        ranks[at].send_signal(number)
        assert [ended(rank) for rank in ranks] == [(128 + number, [])] * 2
    resumed = resume(run, [f"total_steps={steps_of(run) + 64}"])
    assert resumed.outcome.steps == steps_of(run)


# That rank 0 notices the death of another: tests/learning/test_ranks.py.
@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_rank_that_was_killed_ends_the_other_with_one_line_saved(tmp_path, killed):
    run = tmp_path / "run"
    with started([["train", *RUN, ENDLESS, f"run_dir={run}"]] * 2) as ranks:
        training(run)
        ranks[killed].kill()
        code, errors = ended(ranks[1 - killed])
    assert code == 1
    (line,) = errors
    assert f"rank {killed}" in line
    assert "died" in line
    goes_on(run)


@pytest.mark.slow
def test_run_whose_rank_is_killed_twenty_times_always_resumes(tmp_path):
    run, chance = tmp_path / "run", random.Random(0)
    commands = [["train", *RUN, ENDLESS, f"run_dir={run}"]] * 2
    for _ in range(20):
        before = steps_of(run) if (run / "metrics.jsonl").exists() else 0
        with started(commands) as ranks:
            until = time.monotonic() + WITHIN_S
            while not (run / "metrics.jsonl").exists() or steps_of(run) <= before:
                assert time.monotonic() < until
                time.sleep(0.05)
            time.sleep(chance.random())
            victim = chance.randrange(2)
            ranks[victim].kill()
            code, errors = ended(ranks[1 - victim])
        assert code == 1, errors
        commands = [["resume", str(run)]] * 2
    goes_on(run)


def two_ranks() -> Ranks:
    """One of two, without the other."""
    ranks = Ranks()
    ranks.size = 2
    return ranks


def test_ranks_that_differ_are_told_in_what(monkeypatch):
    ranks = two_ranks()
    other = config_of(1000).model_copy(update={"seed": 7})
    monkeypatch.setattr(
        ranks, "gather", lambda own: [own, own | {"the configuration": config_to_yaml(other)}]
    )
    told = r"^rank 1 differs from rank 0 in the configuration: 'seed: 7' instead of 'seed: \d+'$"
    with pytest.raises(ConfigError, match=told):
        require_alike(ranks, config_of(1000))


def test_ranks_do_not_tune(monkeypatch, capsys):
    monkeypatch.setattr("fastrl.learning.ranks.ranks_of_environment", two_ranks)
    assert main(["train", *RUN, "sampler=auto"]) == 2
    assert "run 'fastrl tune' before torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sampler", "algorithm", "said"),
    [
        (
            {"num_envs": 5},
            {},
            r"^sampler\.num_envs: must be divisible by the number of ranks \(2\)",
        ),
        ({}, {"minibatch_size": 1}, r"^algorithm\.minibatch_size: must be at least the number of"),
    ],
)
def test_sizes_that_ranks_cannot_share_are_one_line(sampler, algorithm, said):
    config = config_of(1000)
    config = config.model_copy(
        update={
            "sampler": config.sampler.model_copy(update=sampler),
            "algorithm": config.algorithm.model_copy(update=algorithm),
        }
    )
    with pytest.raises(ConfigError, match=said):
        own_part(config, two_ranks())


def test_elastic_ranks_of_a_launcher_are_one_line():
    config = config_of(1000).model_copy(update={"cluster": ClusterConfig(elastic=True)})
    with pytest.raises(ConfigError, match=r"^cluster\.elastic: ranks of torchrun cannot continue"):
        train(config, ranks=two_ranks())


def test_environment_without_an_address_is_one_line(monkeypatch, capsys):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["train", *RUN]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "WORLD_SIZE=2 without MASTER_ADDR" in line


@pytest.mark.parametrize("kind", ["serial", "process"])
def test_rollouts_of_all_ranks_are_those_of_one_sampler_with_all_slots(kind):
    config = config_of(1000, kind=kind, num_env_workers="auto")

    def sampled(rank: int, size: int) -> list[list[torch.Tensor]]:
        ranks = Ranks()
        ranks.rank, ranks.size = rank, size
        own = own_part(config, ranks)
        with make_sampler(own, own_plan(make_plan(own), ranks)) as sampler:
            found = (sampler.collect() for _ in range(3))
            names = ("observation", "action", "log_prob", "reward", "terminated", "value")
            return [[getattr(rollout, name).clone() for name in names] for rollout in found]

    whole, *parts = sampled(0, 1), sampled(0, 2), sampled(1, 2)
    for expected, *pieces in zip(whole, *parts, strict=True):
        for field, *own in zip(expected, *pieces, strict=True):
            assert torch.equal(torch.cat(own, 1), field)
