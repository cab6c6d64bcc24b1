"""Requests that a model worker answers in compiled code, beside the same answered by Python."""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.config import load_config
from fastrl.config.models import ModelConfig
from fastrl.models.policy import build_model
from fastrl.sampling.build import initial_weights, make_plan, make_sampler
from fastrl.shared.counters import Counter, CounterBoard
from fastrl.shared.table import NUM_BANKS, Table
from fastrl.spec import EnvSpec, Topology
from fastrl.workers import compiled_answers
from fastrl.workers.context import WorkerContext
from fastrl.workers.hand_over import REPEAT, HandOver, StopRequestedError, count_of
from fastrl.workers.model_worker import run_model_worker
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.policy_runner import PolicyRunner

LENGTH, ROLLOUTS, WORKER = 5, 8, "model-worker-0"
TOPOLOGY = Topology(4, 2, 1, 2)
SPEC = EnvSpec("vectors", spaces.Box(-1, 1, (3,)), spaces.Discrete(4))
GROUPS = [(worker, group) for worker in range(2) for group in range(2)]


def never(*_):
    raise AssertionError("no environment is built")


def build_policy():
    torch.manual_seed(0)
    return build_model(SPEC, ModelConfig(hidden_sizes=(8,)), "clip")


def make_context():
    plan = SamplingPlan(SPEC, TOPOLOGY, LENGTH, 0, never, build_policy)
    table = Table(SPEC, LENGTH, TOPOLOGY.num_envs)
    names = ("env-worker-0", "env-worker-1", WORKER)
    return WorkerContext(plan, table, None, CounterBoard(names), HandOver(TOPOLOGY))


@contextlib.contextmanager
def model_worker(context):
    """Run a model worker in a thread."""

    def work():
        with contextlib.suppress(StopRequestedError):
            run_model_worker(context, 0)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        context.hand_over.stop()
        thread.join(10)
        assert not thread.is_alive()


def ask(context, worker, group, more=1):
    """Ask as an env worker does, and wait for the answer."""
    hand_over = context.hand_over
    row = hand_over.row(worker, group)
    hand_over.requested_ns[row] = time.monotonic_ns()
    hand_over.requested[row] += more
    hand_over.doorbell(0).post()
    deadline = time.monotonic() + 60
    while hand_over.answered[row] != hand_over.requested[row]:
        assert time.monotonic() < deadline
        time.sleep(0.0002)


def fill(context, rollouts=ROLLOUTS):
    """Fill rollouts with random observations; return what the policy has written, one by one."""
    random, written = np.random.default_rng(0), []
    for rollout in range(rollouts):
        bank = context.table.banks[rollout % NUM_BANKS]
        bank.observation[""].copy_(torch.from_numpy(random.normal(size=(LENGTH + 1, 8, 3))))
        bank.final_observation[""].copy_(torch.from_numpy(random.normal(size=(8, 3))))
        bank.truncated.copy_(torch.from_numpy(random.random((LENGTH, 8)) < 0.05))
        bank.truncated[-1] = False  # only the request after an end would value it
        for _ in range(LENGTH + 1):
            for worker, group in GROUPS:
                ask(context, worker, group)
        fields = ("log_prob", "value", "final_value", "policy_version")
        written.append([bank.action[""].clone(), *(getattr(bank, f).clone() for f in fields)])
    return written


@pytest.fixture
def served_by_python(monkeypatch):
    """Count the requests that Python serves."""
    served, serve = [], PolicyRunner.serve

    def counting(runner, requests):
        served.extend(requests)
        serve(runner, requests)

    monkeypatch.setattr(PolicyRunner, "serve", counting)
    return served


def test_compiled_code_answers_as_python_does(monkeypatch):
    context = make_context()
    with model_worker(context):
        compiled = fill(context)
    monkeypatch.setattr(compiled_answers, "_has_semaphores", lambda: False)
    context = make_context()
    with model_worker(context):
        by_python = fill(context)
    for rollout, (found, expected) in enumerate(zip(compiled, by_python, strict=True)):
        for field, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert torch.equal(one, other), (rollout, field)


def test_python_serves_only_what_begins_or_ends_a_rollout_or_follows_a_truncation(
    served_by_python,
):
    context = make_context()
    with model_worker(context):
        fill(context, NUM_BANKS)
        known = len(served_by_python)
        fill(context, 2 * NUM_BANKS)
    inner = [request for request in served_by_python[known:] if 0 < request.t < LENGTH]
    truncated = sum(
        int(context.table.banks[bank].truncated[:-1].sum()) for bank in range(NUM_BANKS)
    )
    assert known == NUM_BANKS * (LENGTH + 1) * len(GROUPS)
    assert truncated, "nothing was truncated"
    assert 0 < len(inner) < NUM_BANKS * 2 * (LENGTH - 1) * len(GROUPS) / 2
    assert all(
        context.table.banks[r.bank].truncated[r.t - 1, r.start : r.stop].any() for r in inner[-1:]
    )


def test_every_request_is_counted_once_and_charged():
    context = make_context()
    with model_worker(context):
        fill(context)
    row = context.counters.row(WORKER)
    slots = TOPOLOGY.envs_per_group
    requests = ROLLOUTS * (LENGTH + 1) * len(GROUPS)
    assert row[Counter.INFERRED_FRAMES] == requests * slots
    assert 0 < row[Counter.INFERENCE_CALLS] <= requests
    for counter in (Counter.WAITING_NS, Counter.INFERENCE_NS, Counter.HAND_OVER_NS):
        assert 0 < row[counter] < 60e9
    latencies = context.counters.hand_over_latencies_ns(WORKER)
    assert len(latencies)
    assert (latencies > 0).all()
    assert (latencies < 10e9).all()


def test_a_request_that_is_repeated_is_answered_again():
    context = make_context()
    with model_worker(context):
        fill(context, NUM_BANKS + 1)
        before = count_of(context.hand_over.answered[0])
        ask(context, 0, 0)
        ask(context, 0, 0)
        ask(context, 0, 0, REPEAT)
        ask(context, 0, 0)
    assert count_of(context.hand_over.answered[0]) == before + 3
    assert context.hand_over.answered[0] > REPEAT


def test_a_worker_without_a_compiler_answers_all_the_same(monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiled_answers, "_answer", fails)
    context = make_context()
    with model_worker(context):
        fill(context, 3)
    assert "requests are answered by Python: no compiler" in caplog.text


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_rollouts_hold_what_the_policy_says_also_after_its_worker_was_killed(mode):
    config = load_config(
        overrides=[
            "env.id=CartPole-v1",
            "env.max_episode_steps=10",
            "sampler.envs_per_worker=4",
            "sampler.num_env_workers=2",
            "sampler.num_model_workers=1",
            "sampler.groups=2",
            "sampler.rollout_length=16",
            f"sampler.mode={mode}",
        ]
    )
    plan = make_plan(config)
    weights = initial_weights(plan)
    model = plan.build_model()
    model.load_state_dict(weights)
    truncated = 0
    with make_sampler(config, plan, weights) as sampler:
        for number in range(12):
            rollout = sampler.collect()
            observation = {"": rollout.observation.flatten(0, 1)}
            with torch.no_grad():
                value = model.value(observation).view(17, 8)
                acted = {"": rollout.observation[:-1].flatten(0, 1)}
                log_prob, *_ = model.evaluate(acted, {"": rollout.action.flatten()})
            assert torch.allclose(rollout.value, value, atol=1e-5)
            assert torch.allclose(rollout.log_prob, log_prob.view(16, 8), atol=1e-5)
            assert (rollout.final_value[rollout.truncated] != 0).all()
            assert (rollout.final_value[~rollout.truncated] == 0).all()
            truncated += int(rollout.truncated.sum())
            if number % 4 == 3:
                os.kill(sampler.pids()[WORKER], signal.SIGKILL)
    assert truncated
