"""What an environment does while it is looked at: it hangs, cannot be closed, or cannot travel."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial

import numpy as np
import pytest

import fastrl
from fastrl.errors import FastrlError
from fastrl.vector import ArgumentError, EnvFailure, EnvTimeoutError, make_concurrent
from tests.vector.envs import QuietEnv


def run(envs):
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())


class HangingEnv(QuietEnv):
    """Hangs, or raises, in one of its calls."""

    def __init__(self, hang="", error=None):
        super().__init__()
        self.hang, self.error = hang, error
        self._meet("its constructor")

    def _meet(self, call):
        if call == self.hang:
            if self.error is not None:
                raise self.error
            time.sleep(60)

    def reset(self, *, seed=None, options=None):
        self._meet("reset()")
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self._meet("step()")
        return super().step(action)

    def close(self):
        self._meet("close()")


@pytest.mark.parametrize("call", ["its constructor", "reset()", "step()"])
def test_call_that_hangs_while_an_environment_is_timed_is_named_at_its_deadline(call):
    began = time.monotonic()
    with pytest.raises(
        EnvTimeoutError, match=r"env 0 of .*HangingEnv' .* did not return"
    ) as caught:
        fastrl.make_vec(
            partial(HangingEnv, call), 2, backend="auto", timeout_s=0.3, start_timeout_s=0.3
        )
    assert f"from {call} within 0.3 s, while it was timed" in str(caught.value)
    assert time.monotonic() - began < 10


class UnstoppableEnv(HangingEnv):
    def step(self, action):
        raise ValueError("broken")


def test_close_that_hangs_after_an_error_is_named_and_not_the_call_that_raised():
    with pytest.raises(EnvTimeoutError, match=r"did not return from close\(\) within 0.3 s"):
        fastrl.make_vec(partial(UnstoppableEnv, "close()"), 2, backend="auto", timeout_s=0.3)


def test_constructor_that_hangs_in_a_thread_is_named_at_the_deadline():
    with pytest.raises(EnvTimeoutError, match=r"from its constructor within 0.3 s"):
        fastrl.make_vec(
            partial(HangingEnv, "its constructor"), 2, backend="threads", start_timeout_s=0.3
        )


@pytest.mark.parametrize("error", [None, OSError("cannot be closed"), SystemExit(3)])
@pytest.mark.parametrize("backend", ["auto", "threads", "processes"])
def test_close_that_hangs_or_raises_does_not_hinder_an_environment_from_being_built(
    backend, error, monkeypatch
):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # told when the envs are closed
    factory = partial(HangingEnv, "close()", error)
    envs = fastrl.make_vec(factory, 2, backend=backend, num_workers=1, close_timeout_s=0.2)
    envs.reset(seed=0)
    if envs.backend == "serial":
        envs._finalizer.detach()  # in turn there is no deadline: it would hang, or raise
    else:
        envs.close()


def test_factory_that_cannot_travel_is_refused_in_words_and_not_sent_by_auto(monkeypatch):
    lock = threading.Lock()

    def build():
        assert lock is not None
        return QuietEnv()

    with pytest.raises(ArgumentError, match=r"cannot be sent to worker processes: .*lock"):
        fastrl.make_vec(build, 2, backend="processes")
    monkeypatch.setattr("fastrl.vector.choice.wake_s", lambda: 0.0)
    monkeypatch.setattr("fastrl.vector.choice.usable_cores", lambda: 2)
    with fastrl.make_vec(build, 2) as envs:
        assert envs.backend in ("serial", "threads")


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
@pytest.mark.parametrize("name", ["fastrl/CartPole-v1", "fastrl/Crafter-v1", "fastrl/Hopper-v5"])
def test_auto_knows_every_autoreset_mode(name, mode, monkeypatch):
    monkeypatch.setattr("fastrl.vector.choice.usable_cores", lambda: 1)
    with fastrl.make_vec(name, 2, autoreset=mode, num_workers=1) as envs:
        assert envs.metadata["autoreset_mode"].name.lower() == mode
        run(envs)


class NoInfoEnv(QuietEnv):
    def __init__(self, where):
        super().__init__()
        self.where = where

    def reset(self, *, seed=None, options=None):
        seen, info = super().reset(seed=seed, options=options)
        return seen, None if self.where == "reset" else info

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, None if self.where == "step" else info


@pytest.mark.parametrize("where", ["reset", "step"])
def test_info_that_is_none_is_refused_at_once(where):
    envs = fastrl.make_vec(partial(NoInfoEnv, where), 2, backend="serial")
    with pytest.raises(EnvFailure, match=rf"{where}\(\) returned the info None; expected a dict"):
        run(envs)


@pytest.mark.parametrize("name", ["fastrl/Pendulum-v1", "fastrl/Hopper-v5"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_native_environment_names_who_got_an_action_that_is_not_finite(name, bad):
    envs = fastrl.make_vec(name, 3, num_workers=1)
    envs.reset(seed=0)
    actions = np.zeros_like(envs.action_space.sample())
    actions[1, 0] = bad
    with pytest.raises(EnvFailure, match=r"env 1 of .* the action holds (nan|inf)") as caught:
        envs.step(actions)
    assert caught.value.env_index == 1


@pytest.fixture
def no_threads(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.parametrize("backend", ["auto", "threads"])
def test_lack_of_threads_is_one_line(backend, no_threads):
    with pytest.raises(FastrlError, match=r"^no thread can be started: too many processes"):
        fastrl.make_vec(QuietEnv, 2, backend=backend)


def test_lack_of_threads_is_one_line_for_awaited_environments(no_threads):
    async def reset():
        async with make_concurrent(QuietEnv, 2) as envs:
            await envs.reset(seed=0)

    with pytest.raises(FastrlError, match="no thread can be started: too many processes"):
        asyncio.run(asyncio.wait_for(reset(), 20))


@pytest.mark.parametrize("call", ["reset()", "step()"])
def test_environment_that_ends_the_program_fails_like_any_other_in_turn(call):
    envs = fastrl.make_vec(partial(HangingEnv, call, SystemExit(3)), 2, backend="serial")
    with pytest.raises(EnvFailure, match="raised SystemExit: 3"):
        run(envs)
