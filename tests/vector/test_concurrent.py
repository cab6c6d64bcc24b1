"""Environments for `await`: coroutines and plain ones overlap, and fail in words."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import fastrl
from fastrl.errors import EnvError
from fastrl.vector import ArgumentError, EnvFailure, EnvTimeoutError, make_concurrent
from tests.counting_env import CountingEnv
from tests.vector.envs import ClosingEnv, OtherSpaceEnv, TellingEnv, WaitingEnv, WordyEnv
from tests.vector.test_same_as_gymnasium import assert_same


@pytest.fixture(autouse=True)
def _environments_that_hang_are_soon_left_behind(monkeypatch):
    monkeypatch.setattr("fastrl.vector.concurrent.CLOSE_S", 0.2)


class CoroutineEnv(TellingEnv):
    """The same, as coroutines; counts how many are in a step at the same time."""

    inside, most = 0, 0

    async def reset(self, *, seed=None, options=None):
        await asyncio.sleep(0)
        return super().reset(seed=seed, options=options)

    async def step(self, action):
        CoroutineEnv.inside += 1
        CoroutineEnv.most = max(CoroutineEnv.most, CoroutineEnv.inside)
        await asyncio.sleep(0.001)
        CoroutineEnv.inside -= 1
        return super().step(action)

    async def render(self):
        await asyncio.sleep(0)
        return super().render()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("env", [TellingEnv, CoroutineEnv])
def test_every_step_is_that_of_sync_vector_env(env, mode):
    async def compare():
        theirs = SyncVectorEnv([TellingEnv] * 4, autoreset_mode=mode)
        theirs.action_space.seed(0)
        async with make_concurrent(env, 4, autoreset=mode) as ours:
            assert ours.action_space == theirs.action_space
            assert_same(await ours.reset(seed=3), theirs.reset(seed=3))
            for _ in range(30):
                actions = theirs.action_space.sample()
                assert_same(await ours.step(actions), theirs.step(actions))

    asyncio.run(compare())


def test_observations_and_actions_may_be_texts():
    async def compare():
        theirs = SyncVectorEnv([WordyEnv] * 2)
        async with make_concurrent(WordyEnv, 2) as ours:
            assert_same(await ours.reset(seed=3), theirs.reset(seed=3))
            for _ in range(5):
                assert_same(await ours.step(("a", "b")), theirs.step(("a", "b")))

    asyncio.run(compare())


def test_all_environments_are_in_their_step_at_the_same_time():
    async def run():
        CoroutineEnv.most = 0
        async with make_concurrent(CoroutineEnv, 50) as envs:
            await envs.reset(seed=0)
            await envs.step(envs.action_space.sample())
        assert CoroutineEnv.most == 50

    asyncio.run(run())


def test_plain_environments_that_wait_overlap_too():
    async def run():
        async with make_concurrent(WaitingEnv, 40) as envs:
            await envs.reset()
            start = time.monotonic()
            await envs.step(np.full((40, 1), 0.5))
            assert time.monotonic() - start < 0.5 * 40 / 2

    asyncio.run(run())


def test_caller_goes_on_while_environments_wait():
    gate = threading.Event()

    class Gated(WaitingEnv):
        def step(self, action):
            assert gate.wait(60)
            return super().step(action)

    async def run():
        async with make_concurrent(Gated, 2) as envs:
            await envs.reset()
            step = asyncio.ensure_future(envs.step(np.zeros((2, 1))))
            for _ in range(3):
                await asyncio.sleep(0.01)
            assert not step.done()
            gate.set()
            await step

    asyncio.run(run())


def test_pictures_functions_seeds_and_attributes_of_all():
    async def add(env, number):
        await asyncio.sleep(0)
        return env.bound + number

    async def run():
        async with make_concurrent(CoroutineEnv, 3, render_mode="rgb_array") as envs:
            envs.seed([1, 2, 3])
            await envs.reset()
            assert [env.np_random_seed for env in envs.envs] == [1, 2, 3]
            assert [frame.shape for frame in await envs.render()] == [(4, 5, 3)] * 3
            assert await envs.parallel(add, [1, 2, 3]) == (10, 11, 12)
            assert await envs.parallel(lambda env, number: number, 7) == (7, 7, 7)
            assert await envs.call("add", 1, second=2) == (3, 3, 3)
            assert envs.bound == (9.0, 9.0, 9.0)
            assert not hasattr(envs, "wings")
            assert envs.action_space.sample().shape == (3, 2)
            with pytest.raises(ArgumentError, match="got 2 for 3"):
                await envs.parallel(add, [1, 2])
            with pytest.raises(ArgumentError, match="actions"):
                await envs.step(np.zeros((2, 2)))
        with pytest.raises(ClosedEnvironmentError):
            await envs.reset()

    asyncio.run(run())


def test_failure_and_silence_are_named_and_end_it():
    async def fail():
        factory = partial(CountingEnv, fault="raise", fault_tag=11)
        envs = make_concurrent(factory, 3)
        await envs.reset(seed=10)
        with pytest.raises(EnvFailure, match=r"env 1 .*last seed 11.*fault in step 0") as caught:
            await envs.step(np.array([1, 2, 3]))
        assert (caught.value.env_index, caught.value.action, caught.value.seed) == (1, 2, 11)
        assert envs.closed
        with pytest.raises(ClosedEnvironmentError, match="fault in step 0"):
            await envs.reset()
        await envs.close()

    async def hang():
        async with make_concurrent(WaitingEnv, 3, timeout_s=0.3) as envs:
            await envs.reset()
            with pytest.raises(EnvTimeoutError, match=r"env 2 .*within 0\.3 s"):
                await envs.step(np.array([[0.0], [0.0], [60.0]]))
            assert envs.closed

    asyncio.run(fail())
    asyncio.run(hang())


@pytest.mark.parametrize("env", [TellingEnv, CoroutineEnv])
def test_environments_are_closed_after_a_failure(env):
    closed = []

    class Failing(env):
        def step(self, action):
            raise ConnectionError("gone")

        def close(self):
            closed.append(self)

    async def run():
        async with make_concurrent(Failing, 3) as envs:
            await envs.reset()
            with pytest.raises(EnvFailure, match="ConnectionError: gone"):
                await envs.step(np.zeros((3, 2)))

    asyncio.run(run())
    assert len(closed) == 3


def test_error_of_a_call_is_raised_as_it_is_and_harms_nothing():
    async def run():
        async with make_concurrent(TellingEnv, 3) as envs:
            await envs.reset(seed=0)
            with pytest.raises(LookupError, match="nothing there") as caught:
                await envs.call("fail")
            assert caught.value.__notes__ == ["raised by env 0 of 'tests.vector.envs:TellingEnv'"]
            with pytest.raises(AttributeError):
                await envs.get_attr("wings")
            with pytest.raises(ArgumentError, match=r"use step\(\)"):
                await envs.call("step", np.zeros(2))
            await envs.set_attr("bound", [1.0, 2.0, 3.0])
            assert await envs.get_attr("bound") == (1.0, 2.0, 3.0)
            assert await envs.add(1) == (1, 1, 1)
            await envs.step(np.zeros((3, 2)))

    asyncio.run(run())


async def step_on(envs, actions):
    for _ in range(1000):
        await envs.step(actions)


@pytest.mark.parametrize("env", [TellingEnv, CoroutineEnv])
def test_partial_resets_are_those_of_sync_vector_env(env):
    async def compare():
        theirs = SyncVectorEnv([TellingEnv] * 3, autoreset_mode=AutoresetMode.DISABLED)
        theirs.action_space.seed(0)
        async with make_concurrent(env, 3, autoreset="disabled") as ours:
            assert_same(await ours.reset(seed=3), theirs.reset(seed=3))
            resets = 0
            while resets < 4:
                actions = theirs.action_space.sample()
                expected = theirs.step(actions)
                assert_same(await ours.step(actions), expected)
                over = expected[2] | expected[3]
                if over.any():
                    resets += 1
                    options = {"reset_mask": over, "speed": 2}
                    mine = await ours.reset(options=options, seed=[resets] * 3)
                    assert set(options) == {"reset_mask", "speed"}
                    assert_same(mine, theirs.reset(options=options, seed=[resets] * 3))
            with pytest.raises(EnvFailure, match="its episode is over"):
                await step_on(ours, actions)

    asyncio.run(compare())


def test_what_does_not_fit_is_refused_before_anything_is_stepped():
    async def run():
        async with make_concurrent("CartPole-v1", 3) as envs:
            with pytest.raises(ArgumentError, match="reset the environments before"):
                await envs.step([0, 0, 0])
            with pytest.raises(ArgumentError, match="reset all environments before some"):
                await envs.reset(options={"reset_mask": np.array([True, False, False])})
            await envs.reset(seed=0)
            for actions, message in (
                (5, r"shape \(\); expected \(3,\)"),
                ([0, 1], r"shape \(2,\); expected \(3,\)"),
                ([0.5, 1, 1], "dtype float64; expected int64"),
            ):
                with pytest.raises(ArgumentError, match=message):
                    await envs.step(actions)
            with pytest.raises(ArgumentError, match="options must be a mapping"):
                await envs.reset(options=3)
            assert await envs.get_attr("_elapsed_steps") == (0, 0, 0)
        with pytest.raises(EnvError, match=r"env 1 of .* has the observation_space"):
            make_concurrent([OtherSpaceEnv, lambda: OtherSpaceEnv(bound=2.0)])
        one = TellingEnv()
        with pytest.raises(EnvError, match="env 1 is the same object as env 0"):
            make_concurrent(lambda: one, 2)

    asyncio.run(run())


def test_observation_that_breaks_the_contract_is_told():
    class Broken(WaitingEnv):
        def step(self, action):
            return np.zeros(2), 0.0, False, False, {}

    async def run():
        async with make_concurrent(Broken, 2) as envs:
            await envs.reset()
            with pytest.raises(EnvFailure, match=r"env \d returned an observation of shape \(2,\)"):
                await envs.step(np.zeros((2, 1)))

    asyncio.run(run())


def test_steps_do_not_overlap_but_calls_may():
    async def run():
        async with make_concurrent(WaitingEnv, 2) as envs:
            await envs.reset()
            step = asyncio.ensure_future(envs.step(np.full((2, 1), 0.2)))
            await asyncio.sleep(0)
            for refused in (envs.step(np.zeros((2, 1))), envs.reset()):
                with pytest.raises(AlreadyPendingCallError, match="`step` is pending"):
                    await refused
            assert await envs.get_attr("count") == (1, 1)
            assert len(await step) == 5

    asyncio.run(run())


def test_close_wakes_who_waits_for_a_step():
    async def run():
        envs = make_concurrent(WaitingEnv, 2)
        await envs.reset()
        step = asyncio.ensure_future(envs.step(np.full((2, 1), 60.0)))
        await asyncio.sleep(0.1)
        await envs.close()
        with pytest.raises(ClosedEnvironmentError):
            await step

    asyncio.run(run())


def test_interrupted_step_ends_it_instead_of_mixing_up_the_next():
    async def run():
        async with make_concurrent(WaitingEnv, 2) as envs:
            await envs.reset()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(envs.step(np.full((2, 1), 60.0)), 0.1)
            with pytest.raises(ClosedEnvironmentError, match="after an interrupted step"):
                await envs.reset()

    asyncio.run(run())


def test_forgotten_environments_are_closed_and_their_threads_end():
    before = set(threading.enumerate())

    async def run():
        envs = make_concurrent(ClosingEnv, 3, env_kwargs=lambda index: {"number": index})
        await envs.reset()

    ClosingEnv.open.clear()
    asyncio.run(run())
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()
    assert not ClosingEnv.open


def test_error_that_a_future_cannot_hold_is_told_all_the_same():
    class Exhausted(WaitingEnv):
        def step(self, action):
            return next(iter(()))

    async def run():
        async with make_concurrent(Exhausted, 2, timeout_s=20) as envs:
            await envs.reset()
            with pytest.raises(EnvFailure, match="StopIteration"):
                await envs.step(np.zeros((2, 1)))

    asyncio.run(run())


def test_environments_built_before_one_that_fails_are_closed():
    ClosingEnv.open.clear()
    factory = partial(ClosingEnv, fault="build")
    with pytest.raises(EnvError, match="no such simulator"):
        make_concurrent(factory, 3, env_kwargs=lambda index: {"number": index})
    assert not ClosingEnv.open


def test_threads_backend_overlaps_environments_that_wait():
    envs = fastrl.make_vec(WaitingEnv, 40, backend="threads")
    envs.reset()
    start = time.monotonic()
    envs.step(np.full((40, 1), 0.5))
    assert time.monotonic() - start < 0.5 * 40 / 2
    envs.close()


def test_gymnasiums_ids_are_built_too():
    async def run():
        async with make_concurrent("CartPole-v1", 3) as envs:
            first, _ = await envs.reset(seed=0)
        expected = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 3).reset(seed=0)[0]
        assert np.array_equal(first, expected)

    asyncio.run(run())
