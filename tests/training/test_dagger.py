"""DAgger learns the expert's actions in the states of the policy, and goes on after any end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from fastrl import PolicyStep, TensorSpec, make_plan, make_sampler
from fastrl.config import Config, FaultsConfig, load_config, save_config
from fastrl.datasets import load_demonstrations
from fastrl.envs.masked_tasks import LEFT, RIGHT
from fastrl.errors import ConfigError
from fastrl.training import load_policy, record_dataset, resume, train
from fastrl.training.checkpoint import CheckpointStore
from fastrl.training.dagger_sampler import expert_share
from tests.counting_env import decode
from tests.datasets import playing
from tests.training.clockwork import small_run
from tests.training.test_imitation import CONFIGS
from tests.training.test_resume import assert_same

FUNCTION = "tests.datasets.playing:by_place"


def counting(run, policy=FUNCTION, **changes):
    return Config(
        run_dir=str(run),
        env={"id": playing.COUNTING, "kwargs": {"length": 5, "uneven": True, **changes}},
        sampler={"envs_per_worker": 2, "num_env_workers": 2, "rollout_length": 8},
        algorithm={"name": "dagger", "expert_policy": policy, "beta_rollouts": 1},
    )


def on_disk(run):
    return load_demonstrations(run / "demonstrations")


@pytest.mark.parametrize("kind", ["process", "serial"])
def test_its_rows_are_the_states_of_the_policy_with_the_actions_of_the_expert(kind, tmp_path):
    config = counting(tmp_path)
    config = config.model_copy(update={"sampler": config.sampler.model_copy(update={"kind": kind})})
    with make_sampler(config, make_plan(config)) as sampler:
        state_dict = make_plan(config).build_model().state_dict()
        sampler.publish(state_dict)
        first = sampler.collect()
        assert (len(first.reward), first.num_steps) == (32, 32)
        sampler.publish(state_dict)
        second = sampler.collect()
        assert (len(second.reward), second.num_steps) == (64, 32)
    rows, labels = second.observation[:-1, 0].numpy(), second.action[:, 0].numpy()
    assert labels.tolist() == [playing.by_place(row) for row in rows]
    assert torch.equal(second.observation[:32], first.observation[:32])

    # The environment says which actions were taken: first the expert's, then the policy's.
    found, agreed = on_disk(tmp_path), []
    following = found.next_observation[""].numpy()
    for row, (before, after, label) in enumerate(zip(rows, following, labels, strict=True)):
        here, there = decode("vector", (before,)), decode("vector", (after,))
        assert (there.tag, there.episode, there.step) == (here.tag, here.episode, here.step + 1)
        agreed.append(there.last_action == label)
        assert row >= 32 or agreed[-1]
    assert 0 < sum(agreed[32:]) < 32
    assert np.array_equal(found.observation[""].numpy(), rows)


def test_nested_actions_are_labelled_leaf_by_leaf(tmp_path):
    policy = "tests.datasets.playing:by_parts"
    config = counting(tmp_path, policy, observation="tuple", action="dict")
    with make_sampler(config, make_plan(config)) as sampler:
        sampler.collect()
    found = on_disk(tmp_path)
    steps = found.observation["1"][:, 0]
    assert torch.equal(found.action["key"], steps % 4)
    assert torch.equal(found.action["move"][:, 1], steps % 4 / 4)


def test_the_share_of_the_expert_falls_by_equal_steps():
    section = counting("x").algorithm.model_copy(update={"beta_rollouts": 4})
    assert [expert_share(section, n) for n in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]


def run_of(path, expert, **changes):
    return small_run(
        path,
        total_steps=512,
        algorithm={"name": "dagger", "expert": str(expert), "epochs": 1, "beta_rollouts": 3},
        evaluation={"enabled": False},
        **changes,
    )


@pytest.fixture(scope="module")
def expert(tmp_path_factory):
    path = tmp_path_factory.mktemp("experts") / "run"
    train(small_run(path, total_steps=64))
    return path


def test_a_run_is_an_expert_that_takes_its_most_probable_actions(expert, tmp_path):
    train(run_of(tmp_path / "run", expert))
    found = on_disk(tmp_path / "run")
    assert len(found) == 512
    actions, _ = load_policy(expert).act(found.observation[""].numpy())
    assert np.array_equal(actions, found.action[""].numpy())


def test_a_run_that_was_killed_goes_on_as_if_it_was_not(expert, tmp_path):
    run, whole = tmp_path / "killed", tmp_path / "whole"
    save_config(run_of(run, expert), tmp_path / "config.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "fastrl", "train", tmp_path / "config.yaml", "total_steps=100000",
         "checkpoint.every_steps=64"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline, shards = time.monotonic() + 60, run / "demonstrations"
    while not shards.is_dir() or len(list(shards.iterdir())) < 6:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    killed = CheckpointStore(run / "checkpoints")
    before = killed.load(killed.names()[-1]).steps
    assert before > 0
    steps = before + 64
    resume(run, [f"total_steps={steps}"])
    assert len(on_disk(run)) == steps
    train(run_of(whole, expert).model_copy(update={"total_steps": steps}))
    one, other = CheckpointStore(whole / "checkpoints").load("last"), killed.load("last")
    assert_same(one.model, other.model)
    assert_same(one.state["learner"], other.state["learner"])


@pytest.mark.parametrize("kind", ["process", "serial"])
def test_a_memory_learns_from_episodes_that_go_on_through_rollouts(kind, tmp_path):
    config = counting(tmp_path, ending="alternate")
    sampler = config.sampler.model_copy(update={"kind": kind, "rollout_length": 3})
    model = config.model.model_copy(update={"recurrent": "gru"})
    section = config.algorithm.model_copy(update={"sequence_length": 4})
    config = config.model_copy(update={"sampler": sampler, "model": model, "algorithm": section})
    with make_sampler(config, make_plan(config)) as sampler:
        state_dict = make_plan(config).build_model().state_dict()
        for number in range(1, 8):
            rollout = sampler.collect()
            sampler.publish(state_dict)
            assert (rollout.num_steps, int((~rollout.padding).sum())) == (12, 12 * number)
    over, seen = rollout.terminated | rollout.truncated, set()
    for column in range(rollout.padding.shape[1]):
        kept, before = int((~rollout.padding[:, column]).sum()), None
        for row in range(kept):
            place = decode("vector", (rollout.observation[row, column].numpy(),))
            assert row == kept - 1 or rollout.action[row, column] == playing.by_place(
                rollout.observation[row, column].numpy()
            )
            if before is None or over[row - 1, column]:
                assert place.step == 0
            else:
                assert (place.tag, place.episode, place.step) == (
                    before.tag, before.episode, before.step + 1
                )  # fmt: skip
            before = place
            seen.add(place[:3])
    assert len(seen) == 84
    # Of every slot only the last episode has no end.
    assert not rollout.padding[over].all()


class Signposted(torch.nn.Module):
    """Turns at the end of a `MaskedTMaze` as the sign at its beginning says; learns nothing."""

    def __init__(self, env_spec):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(()))
        scalar = TensorSpec((), torch.float32)
        self.outputs = {"log_prob": scalar, "value": scalar}

    def draw_noise(self, shape, generator=None, device="cpu"):
        return torch.zeros(*shape, 0)

    def initial_state(self, n):
        return torch.zeros(n, 1)

    def act(self, observation, noise, state, mask=None):
        value = self.value(observation, state)
        return self.mode(observation, state, mask)._replace(
            outputs={"log_prob": value, "value": value}
        )

    def mode(self, observation, state, mask=None):
        state = state + observation["observation"][:, :1]
        turn = torch.where(state[:, 0] > 0, RIGHT, LEFT)
        return PolicyStep({"": torch.where(mask[:, LEFT], turn, mask.int().argmax(1))}, {}, state)

    def value(self, observation, state):
        return state[:, 0] * 0 + self.bias

    def evaluate(self, observation, action, state=None, keep=None, mask=None):
        like = self.bias.expand(action[""].shape)
        return like, like, like


def in_the_maze(path, **sections):
    evaluation = {"final_episodes": 40, "every_steps": 100_000}
    env = {"id": "MaskedTMaze-v0", "kwargs": {"length": 4}}
    return small_run(path, **{"env": env, "evaluation": evaluation, **sections})


@pytest.fixture(scope="module")
def signposted(tmp_path_factory):
    path = tmp_path_factory.mktemp("experts") / "run"
    model = {"class_path": f"{__name__}:Signposted"}
    run = train(in_the_maze(path, model=model, total_steps=64))
    assert run.outcome.evaluation.return_mean == 1
    return path


@pytest.mark.parametrize(("recurrent", "least", "most"), [("gru", 0.9, 1.0), (None, -0.7, 0.7)])
def test_only_a_memory_imitates_in_the_maze(recurrent, least, most, signposted, tmp_path):
    """With masks, by DAgger and by cloning."""
    model = {"hidden_sizes": (16,), "recurrent": recurrent, "recurrent_size": 16}
    cloning = {"learning_rate": 0.01, "minibatch_size": 256, "sequence_length": 16}
    dagger = {"name": "dagger", "expert": str(signposted), "beta_rollouts": 2, **cloning}
    sampler = {"num_envs": 16, "num_env_workers": 2, "rollout_length": 32}
    pupil = in_the_maze(
        tmp_path / "pupil", model=model, algorithm=dagger, sampler=sampler, total_steps=4096
    )
    assert least <= train(pupil).outcome.evaluation.return_mean <= most
    record_dataset(signposted, tmp_path / "set", episodes=100)
    clone = in_the_maze(
        tmp_path / "clone",
        model=model,
        algorithm={"name": "bc", **cloning},
        dataset={"path": str(tmp_path / "set")},
        total_steps=20_000,
    )
    assert least <= train(clone).outcome.evaluation.return_mean <= most


def test_a_resumed_memory_learns_from_the_episodes_of_one_session(signposted, tmp_path):
    section = {"name": "dagger", "expert": str(signposted), "beta_rollouts": 3, "epochs": 2}

    def run_for(name, steps):
        return in_the_maze(
            tmp_path / name,
            model={"hidden_sizes": (8,), "recurrent": "gru", "recurrent_size": 8},
            algorithm={**section, "minibatch_size": 32},
            evaluation={"enabled": False},
            total_steps=steps,
        )

    train(run_for("whole", 256))
    train(run_for("parts", 128))
    # Files of others stay, what an interrupted session left does not.
    folder = tmp_path / "parts" / "demonstrations"
    (folder / "summary.txt").touch()
    for name in ("rollout_00000002", ".rollout_00000001.partial"):
        (folder / name).mkdir()
    resume(tmp_path / "parts", ["total_steps=256"])
    whole, parts = (
        CheckpointStore(tmp_path / name / "checkpoints").load("last") for name in ("whole", "parts")
    )
    assert_same(whole.model, parts.model)
    assert_same(whole.state["learner"], parts.state["learner"])
    names = [f"rollout_{number:08d}" for number in range(4)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "summary.txt"]


def test_an_expert_that_does_not_fit_is_one_line(expert, tmp_path):
    run = tmp_path / "run"
    for config, message in (
        (
            run_of(run, tmp_path / "none"),
            "algorithm.expert: '[^']*none' is not the directory of a run",
        ),
        (
            counting(run, "tests.datasets.playing:nothing"),
            "algorithm.expert_policy: .* cannot be imported",
        ),
        (
            counting(run).model_copy(update={"algorithm": run_of(run, expert).algorithm}),
            "algorithm.expert: .* is not of 'tests.counting_env:make': observation is Box",
        ),
        (
            counting(run).model_copy(update={"faults": FaultsConfig(bad_numbers="skip_update")}),
            "faults.bad_numbers: must be raise or truncate_episode with algorithm.name: dagger",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            train(config)
        assert not run.exists()
    for override in ("algorithm.expert_policy=a:b", "algorithm.expert=null"):
        with pytest.raises(ConfigError, match=r"algorithm\.expert: must be given"):
            load_config(os.path.join(CONFIGS, "cartpole_dagger.yaml"), [override])


def imitating(run, *overrides):
    return load_config(
        os.path.join(CONFIGS, "cartpole_dagger.yaml"),
        [f"run_dir={run}", "evaluation.final_episodes=20", "logging.tensorboard=false", *overrides],
    )


def test_dagger_keeps_the_pole_up(tmp_path):
    config = imitating(
        tmp_path, "algorithm.expert=null",
        "algorithm.expert_policy=tests.training.test_imitation:lean",
        "total_steps=3072", "algorithm.beta_rollouts=3", "evaluation.every_steps=3072",
    )  # fmt: skip
    assert train(config).outcome.evaluation.return_mean > 400


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dagger_reaches_the_expert_with_half_of_the_steps_of_cloning(tmp_path):
    expert = train(
        load_config(os.path.join(CONFIGS, "cartpole_ppo.yaml"), [f"run_dir={tmp_path / 'expert'}"])
    )
    assert expert.outcome.evaluation.return_mean == 500
    recorded = record_dataset(expert.path, tmp_path / "set", episodes=20)
    returns = [
        train(
            imitating(tmp_path / f"run-{seed}", f"algorithm.expert={expert.path}", f"seed={seed}",
                      f"total_steps={recorded.lengths.sum() // 2}")
        ).outcome.evaluation.return_mean
        for seed in range(5)
    ]  # fmt: skip
    assert returns == [500.0] * 5
