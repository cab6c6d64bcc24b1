"""A run gives the same numbers whether or not it was stopped, where environments can be saved."""

from __future__ import annotations

import io
import shutil
import signal

import pytest
from rich.console import Console

from fastrl.config import CheckpointConfig, EnvConfig, SamplerConfig
from fastrl.errors import FastrlError
from fastrl.training import resume, train
from fastrl.training.checkpoint import CheckpointStore
from fastrl.training.metrics import read_rows
from tests.training.clockwork import small_run
from tests.training.test_resume import MIDDLE, SAMPLERS, assert_same, final_state

TIMES = ("wall_s", "fps", "sampling_fps", "learning_fps", "sampling_share", "learning_share")
SAVEABLE = "tests.training.saveable:Saveable"


def sampler(kind="serial", **changes):
    sizes = {"envs_per_worker": 4, "num_env_workers": 2, "rollout_length": 8, "lock_step": True}
    return SamplerConfig(**{**sizes, **SAMPLERS[kind], **changes})


def rows_after(path, steps):
    return [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in read_rows(path / "metrics.jsonl")
        if row["steps"] > steps
    ]


def resumed(path, checkpoint=MIDDLE, overrides=()):
    """Resume a copy of a run; return what was said, and its directory."""
    copy = path.with_name(f"{path.name}-{len(list(path.parent.iterdir()))}")
    shutil.copytree(path, copy)
    said = io.StringIO()
    resume(copy, overrides, checkpoint=checkpoint, console=Console(file=said, width=300))
    return said.getvalue(), copy


def assert_exact(path, *, checkpoint=MIDDLE):
    said, copy = resumed(path, checkpoint)
    assert "begin new episodes" not in said
    steps = int(checkpoint.removeprefix("step_"))
    assert rows_after(path, steps)
    assert str(rows_after(path, steps)) == str(rows_after(copy, steps))  # a NaN is no NaN's equal
    assert_same(final_state(path), final_state(copy))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_resumed_run_goes_on_in_the_middle_of_episodes(tmp_path, kind):
    train(small_run(tmp_path / "run", env=EnvConfig(id=SAVEABLE), sampler=sampler(kind)))
    assert_exact(tmp_path / "run")


ENVIRONMENTS = {
    "native": {"id": "fastrl/CartPole-v1"},
    "native, randomised": {
        "id": "fastrl/Pendulum-v1",
        "randomize": {"mass": {"uniform": [0.5, 2.0]}},
        "max_episode_steps": 11,
    },
    "gymnasium's": {"id": "CartPole-v1"},
    "wrapped": {"id": "tests.training.saveable:wrapped"},
    "robot": {"id": "fastrl/Hopper-v5", "max_episode_steps": 13},
    "robot, randomised": {
        "id": "fastrl/Hopper-v5",
        "randomize": {"body_mass": {"scale": {"uniform": [0.5, 2.0]}}},
    },
    "crafter": {
        "id": "fastrl/Crafter-v1",
        "kwargs": {"symbolic": True, "area": [16, 16]},
        "max_episode_steps": 13,
    },
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environments_that_are_saved_go_on_exactly(tmp_path, name):
    env = EnvConfig(**ENVIRONMENTS[name])
    train(small_run(tmp_path / "run", env=env))
    assert_exact(tmp_path / "run")


def test_one_device_goes_on_exactly(tmp_path):
    device = SamplerConfig(kind="device", envs_per_worker=8, rollout_length=8)
    env = EnvConfig(id="CartPole-v1")
    train(small_run(tmp_path / "run", env=env, sampler=device))
    assert_exact(tmp_path / "run")


def test_run_resumed_from_every_checkpoint_and_twice_goes_on_exactly(tmp_path):
    path = tmp_path / "run"
    train(small_run(path, env=EnvConfig(id=SAVEABLE)))
    for name in CheckpointStore(path / "checkpoints").names()[:-1:4]:
        assert_exact(path, checkpoint=name)
    _, copy = resumed(path)
    assert_exact(copy, checkpoint="step_000000000384")


def test_run_stopped_in_the_middle_of_a_rollout_goes_on_exactly(tmp_path):
    env = EnvConfig(id="tests.training.saveable:Interrupting")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(small_run(whole, env=env))
    env = env.model_copy(update={"kwargs": {"at": 20}})
    never = CheckpointConfig(every_steps=None, every_s=None)
    done = train(small_run(stopped, env=env, checkpoint=never))
    assert (done.outcome.interrupted, done.outcome.steps) == (signal.SIGINT, 192)
    said, copy = resumed(stopped, overrides=["env.kwargs={}", "checkpoint.every_steps=64"])
    assert "begin new episodes" not in said
    assert_same(final_state(whole), final_state(copy))
    assert str(rows_after(whole, 192)) == str(rows_after(copy, 192))


def test_another_sampler_goes_on_with_the_same_episodes(tmp_path):
    path = tmp_path / "run"
    train(small_run(path, env=EnvConfig(id=SAVEABLE)))
    said, copy = resumed(path, overrides=["sampler.kind=process"])
    assert "begin new episodes" not in said
    assert_same(final_state(path), final_state(copy))


REASONS = {
    "tests.training.saveable:Forgetful": "Forgetful has no get_state() and set_state(state)",
    "tests.training.saveable:Opaque": "the state has an object of type object at ['lock']",
    "tests.training.saveable:remembering": "the wrapper Remembering keeps 'seen'",
}


@pytest.mark.parametrize(
    ("env_id", "kind"),
    [(each, "serial" if number else "processes") for number, each in enumerate(REASONS)],
)
def test_environments_that_cannot_be_saved_begin_anew_and_alike(tmp_path, env_id, kind):
    path = tmp_path / "run"
    train(small_run(path, env=EnvConfig(id=env_id), sampler=sampler(kind), total_steps=256))
    last = "step_000000000256"
    found = []
    for _ in range(2):
        said, copy = resumed(path)
        assert said.count("environments begin new episodes: env 0 of") == 1
        assert REASONS[env_id] in said
        found.append(dict(CheckpointStore(copy / "checkpoints").load(last).model))
    assert_same(*found)


def test_other_numbers_of_environments_begin_anew(tmp_path):
    path = tmp_path / "run"
    train(small_run(path, env=EnvConfig(id=SAVEABLE)))
    said, _ = resumed(path, overrides=["sampler.envs_per_worker=2"])
    assert "begin new episodes: the state is of sampler.num_env_workers = 2, envs_per_wor" in said


def test_saving_episodes_can_be_left_out(tmp_path):
    path = tmp_path / "run"
    checkpoint = CheckpointConfig(every_steps=64, keep_last=100, environments=False)
    train(small_run(path, env=EnvConfig(id=SAVEABLE), checkpoint=checkpoint))
    assert CheckpointStore(path / "checkpoints").load(MIDDLE).environments is None
    said, _ = resumed(path)
    assert "begin new episodes: checkpoint.environments was false" in said


def test_state_that_does_not_fit_ends_in_one_line_that_says_how_to_go_on(tmp_path):
    path = tmp_path / "run"
    train(small_run(path, env=EnvConfig(id="tests.training.saveable:Refusing")))
    with pytest.raises(FastrlError, match=r"env 0 of .*no such world.*checkpoint.environments=f"):
        resumed(path)
    said, _ = resumed(path, overrides=["checkpoint.environments=false"])
    assert "begin new episodes: checkpoint.environments is false" in said


def test_asynchronous_runs_begin_anew(tmp_path):
    path = tmp_path / "run"
    env = EnvConfig(id=SAVEABLE)
    asynchronous = sampler("processes", mode="async", lock_step=False)
    train(small_run(path, env=env, sampler=asynchronous, total_steps=256))
    said, _ = resumed(path)
    assert "begin new episodes: sampler.mode is async: a rollout is always in progress" in said
