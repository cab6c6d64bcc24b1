"""Ranks that learn together: the same parameters as one rank with all slots."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from fastrl.config import A2CConfig, Config, PPOConfig
from fastrl.errors import ConfigError, FastrlError, WorkerError
from fastrl.learning import build_learner
from fastrl.learning.ranks import Ranks, ranks_at, ranks_of_environment
from fastrl.shared.rollouts import Rollout
from fastrl.spec import EnvSpec
from tests.learning.crew import CONTEXT, WITHIN_S, Crew, alone, crew, free_port
from tests.learning.synthetic import (
    CONTINUOUS,
    DISCRETE,
    NESTED,
    config_of,
    random_rollout,
    remembered_rollout,
)

SLOTS, STEPS = 4, 16
PPO = PPOConfig(
    epochs=2, minibatch_size=20, normalize_rewards=True, entropy_coef=0.01, target_kl=9e-6
)
RUNS = {
    "ppo": (config_of(PPO, normalize_observations=True), CONTINUOUS),
    "a2c": (config_of(A2CConfig(normalize_rewards=True), normalize_observations=True), DISCRETE),
    "vtrace": (
        config_of(A2CConfig(vtrace=True, normalize_advantage=True, learning_rate_warmup=9999)),
        DISCRETE,
    ),
    "autograd": (config_of(PPO, activation="gelu", normalize_observations=True), NESTED),
    "memory": (
        config_of(
            PPO.model_copy(update={"minibatch_size": 24, "target_kl": None}), recurrent="gru"
        ),
        DISCRETE,
    ),
}


@pytest.fixture(scope="module")
def on_ranks() -> Iterator[Crew]:
    with crew(4) as play:
        yield play


def own_slots(rollout: Rollout, ranks: Ranks) -> Rollout:
    """The part of a rollout in this rank's slots."""
    slots = SLOTS // ranks.size

    def part(field: Any) -> Any:
        if isinstance(field, Tensor):
            return field[:, ranks.rank * slots :][:, :slots].contiguous()
        if isinstance(field, dict):
            return {name: part(each) for name, each in field.items()}
        return tuple(map(part, field))

    fields = {name: part(field) for name, field in rollout.fields.items()}
    return replace(rollout, **fields)


def learn(ranks: Ranks, config: Config, spec: EnvSpec, updates: int) -> dict[str, Any]:
    """Parameters, statistics and metrics after so many updates."""
    learner = build_learner(config, spec, ranks=ranks)
    metrics = {}
    steps = []
    for seed in range(updates):
        if config.model.recurrent is None:
            rollout = random_rollout(spec, learner.model, STEPS, SLOTS, seed)
        else:
            rollout = remembered_rollout(spec, learner.model, 4, STEPS, SLOTS, seed)
        metrics = learner.update(own_slots(rollout, ranks))
        steps.append(metrics["gradient_steps"])
    state = learner.state_dict()
    return {
        "model": torch.cat([each.flatten().double() for each in state["model"].values()]),
        "rewards": torch.cat([each.flatten().double() for each in state["reward_scaler"].values()]),
        "steps": learner.steps,
        "gradient_steps": steps,
        "metrics": metrics,
        "target_kl": getattr(config.algorithm, "target_kl", None),
    }


@pytest.mark.parametrize(
    ("name", "size", "updates"),
    [
        *((name, 2, 25) for name in RUNS),
        *(pytest.param(name, size, 50, marks=pytest.mark.slow) for name in RUNS for size in (2, 4)),
    ],
)
def test_ranks_learn_what_one_rank_with_all_slots_learns(on_ranks, name, size, updates):
    config, spec = RUNS[name]
    expected = alone(learn, config, spec, updates)
    found = on_ranks(size, learn, config, spec, updates)
    if expected["target_kl"]:
        assert len(set(expected["gradient_steps"])) > 1, "no update was stopped"
    for each in found:
        torch.testing.assert_close(each["model"], expected["model"], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(each["rewards"], expected["rewards"], rtol=1e-6, atol=1e-6)
        assert torch.equal(each["model"], found[0]["model"])
        assert each["gradient_steps"] == expected["gradient_steps"]
        assert each["steps"] == expected["steps"] == updates * STEPS * SLOTS
        assert each["metrics"] == pytest.approx(found[0]["metrics"], nan_ok=True)


def diverge(ranks: Ranks, config: Config, spec: EnvSpec) -> str:
    learner = build_learner(config, spec, ranks=ranks)
    rollout = random_rollout(spec, learner.model, STEPS, SLOTS, 0)
    rollout.reward[3, -1] = torch.nan
    with pytest.raises(FastrlError) as caught:
        learner.update(own_slots(rollout, ranks))
    return str(caught.value)


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_update_is_left_out_by_all_ranks_or_none(on_ranks, name):
    first, second = on_ranks(2, diverge, *RUNS[name])
    assert first == second
    assert first.startswith("learning diverged")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_group_of_one_rank_adds_up(device):
    store = TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
    with closing(Ranks(0, 1, store)) as ranks:
        numbers = torch.arange(3.0, device=device)
        # `sum` of a rank on its own does nothing.
        ranks._wait(lambda: dist.all_reduce(numbers, async_op=True), numbers)
        assert numbers.tolist() == [0.0, 1.0, 2.0]


def fail_on_rank_1(ranks: Ranks) -> str:
    if ranks.rank == 1:
        ranks.fail("no luck\ntoday")
        return "failed"
    with pytest.raises(WorkerError) as caught:
        ranks.gather(None)
    return str(caught.value)


def test_rank_that_fails_tells_the_others_why(on_ranks):
    assert on_ranks(3, fail_on_rank_1)[::2] == ["rank 1 failed: no luck today"] * 2


def share(ranks: Ranks) -> tuple[Any, ...]:
    flags = torch.tensor([ranks.rank == 0, True])
    return (
        ranks.gather({"rank": ranks.rank, "name": "x" * ranks.rank}),
        ranks.broadcast(ranks.rank + 5),
        ranks.sum(torch.full((2,), float(ranks.rank))).tolist(),
        ranks.stack(flags).tolist(),
    )


def test_ranks_share_numbers_and_plain_data(on_ranks):
    items = [{"rank": rank, "name": "x" * rank} for rank in range(3)]
    flags = [[True, True], [False, True], [False, True]]
    assert on_ranks(3, share) == [(items, 5, [3.0, 3.0], flags)] * 3
    assert alone(share) == (items[:1], 5, [0.0, 0.0], flags[:1])


def freeze(rank: int, port: int, said: Any) -> None:
    with closing(ranks_at(rank, 2, "127.0.0.1", port, deadline_s=3.0)) as ranks:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        with pytest.raises(WorkerError, match=r"^rank 1 has died: no sign of life for \d+ s$"):
            ranks.sum(torch.ones(3))
    said.put("ended")


def twice(rank, port, said):
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for run in range(2):
        with closing(ranks_of_environment(place | {"MASTER_PORT": str(port)})) as ranks:
            said.put(ranks.gather(10 * run + rank))


def test_a_program_trains_several_times_among_the_ranks_of_its_environment():
    port, said = free_port(), CONTEXT.SimpleQueue()
    ranks = [CONTEXT.Process(target=twice, args=(rank, port, said)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(WITHIN_S)
    assert sorted(said.get() for _ in range(4)) == [[0, 1]] * 2 + [[10, 11]] * 2


def test_frozen_rank_counts_as_dead_and_lets_the_others_end():
    port = free_port()
    said = CONTEXT.SimpleQueue()
    ranks = [CONTEXT.Process(target=freeze, args=(rank, port, said)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    ranks[0].join(WITHIN_S)
    ranks[1].kill()
    ranks[1].join()
    assert ranks[0].exitcode == 0
    assert said.get() == "ended"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK: start the ranks with torchrun"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE must be a whole number, got 'many'"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"},
            "RANK must be at least 0 and less than WORLD_SIZE (2), got 2",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "70000"},
            "MASTER_PORT must be at least 1 and at most 65535, got 70000",
        ),
    ],
)
def test_wrong_environment_is_one_line(variables, said):
    with pytest.raises(ConfigError) as caught:
        ranks_of_environment(variables)
    assert str(caught.value) == said
    assert ranks_of_environment({}).size == 1
