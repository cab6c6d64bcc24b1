from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil
import pytest
import torch

from fastrl.config import ModelConfig
from fastrl.envs.env_factory import EnvFactory
from fastrl.errors import WorkerError
from fastrl.models import build_model
from fastrl.training.evaluation import EvaluationProtocol, evaluate
from fastrl.training.evaluator import EvaluationPlan, Evaluator

FACTORY = EnvFactory("Pendulum-v1", max_episode_steps=10)


@pytest.fixture(scope="module")
def env_spec():
    return FACTORY.probe()


@pytest.fixture(scope="module")
def model(env_spec):
    return build_model(env_spec, ModelConfig(hidden_sizes=(8,)))


@pytest.fixture
def evaluator(env_spec, model):
    plan = EvaluationPlan(
        env_spec=env_spec,
        build_env=FACTORY.batched,
        build_model=lambda: build_model(env_spec, ModelConfig(hidden_sizes=(8,))),
        protocol=EvaluationProtocol(4, 0),
    )
    evaluator = Evaluator(plan, model.state_dict())
    yield evaluator
    evaluator.close()


def result_of(evaluator):
    deadline = time.monotonic() + 60
    while (result := evaluator.poll(timeout_s=0.1)) is None:
        assert time.monotonic() < deadline
    return result


def test_process_finds_what_this_process_finds(evaluator, env_spec, model):
    for _ in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        evaluator.request(model.state_dict(), 0)
        assert evaluator.busy
        found = result_of(evaluator)
        assert not evaluator.busy
        expected = evaluate(model, env_spec, FACTORY.batched, EvaluationProtocol(4, 0))
        assert found.lengths == expected.lengths
        assert found.returns == pytest.approx(expected.returns, rel=1e-5)


def gives_way(evaluator):
    (pid,) = evaluator.pids().values()
    if hasattr(os, "SCHED_IDLE"):
        return os.sched_getscheduler(pid) == os.SCHED_IDLE
    return psutil.Process(pid).nice() == 19


def test_process_gives_way_to_training_but_not_when_it_is_over(evaluator, model):
    evaluator.request(model.state_dict(), 0)
    during = result_of(evaluator)
    assert gives_way(evaluator)
    seen = []
    final = EvaluationProtocol(4, 0)
    assert evaluator.play(model.state_dict(), final, lambda *_: seen.append(1)) == during
    assert not gives_way(evaluator)


def test_nothing_asked_nothing_answered(evaluator):
    assert evaluator.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_process_that_fails_is_replaced_and_asked_again(evaluator, model, monkeypatch, number):
    monkeypatch.setattr("fastrl.training.evaluator.STALL_S", 3.0)
    evaluator.request(model.state_dict(), 0)
    expected = result_of(evaluator)
    (pid,) = evaluator.pids().values()
    os.kill(pid, number)
    evaluator.request(model.state_dict(), 0)
    assert result_of(evaluator) == expected
    assert evaluator.pids() != {"evaluator": pid}


def test_process_that_fails_again_and_again_is_reported(evaluator, model):
    def kill_for_ever():
        while True:
            for pid in evaluator.pids().values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            evaluator.poll(timeout_s=0.1)

    evaluator.request(model.state_dict(), 0)
    with pytest.raises(WorkerError, match="evaluator"):
        kill_for_ever()


def test_close_ends_the_process_at_once(evaluator, model):
    evaluator.request(model.state_dict(), 0)
    (pid,) = evaluator.pids().values()
    evaluator.close()
    evaluator.close()
    assert not psutil.pid_exists(pid)


def test_close_removes_a_video_that_is_not_finished(env_spec, model, tmp_path):
    def record(model, path):
        path.with_name(f".{path.name}").touch()
        time.sleep(60)

    plan = EvaluationPlan(
        env_spec=env_spec,
        build_env=FACTORY.batched,
        build_model=lambda: build_model(env_spec, ModelConfig(hidden_sizes=(8,))),
        protocol=EvaluationProtocol(1, 0),
        record=record,
        videos=tmp_path,
    )
    with contextlib.closing(Evaluator(plan, model.state_dict())) as evaluator:
        evaluator.request(model.state_dict(), 5)
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []
