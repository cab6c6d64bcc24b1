from __future__ import annotations

import itertools
import random
import threading
import time

import gymnasium
import pytest

from fastrl.envs import EnvFactory, spare_envs
from fastrl.errors import EnvError
from tests.counting_env import CountingEnv, decode, length_of, reward_of
from tests.envs.stepping import assert_same, random_actions, rows, run, views

KINDS = ("vector", "dict", "tuple")


class Waiting(CountingEnv):
    """Resets without a seed wait until they are let through."""

    def __init__(self, gate, **kwargs):
        super().__init__(**kwargs)
        self._gate = gate

    def reset(self, *, seed=None, options=None):
        if seed is None:
            assert self._gate.wait(60)
        return super().reset(seed=seed)


class Dawdling(CountingEnv):
    """Resets take any time."""

    def reset(self, *, seed=None, options=None):
        time.sleep(random.choice((0.0, 0.002)))
        return super().reset(seed=seed)


def resets(count):
    """Return the threads in which environments are reset, once there are so many."""
    until_s = time.monotonic() + 60
    while True:
        found = [each for each in threading.enumerate() if each.name == "fastrl-reset"]
        if len(found) == count:
            return found
        assert time.monotonic() < until_s
        time.sleep(0.001)


def waiting(spares, num_envs=2, **kwargs):
    """Return a loop, all of its environments, and what lets their resets through."""
    gate, built = threading.Event(), []

    def build():
        built.append(Waiting(gate, **kwargs))
        return built[-1]

    factory = EnvFactory(build, action_mask="off", spare_envs=spares)
    return factory.batched(num_envs), built, gate


def play(loop, steps):
    """Step after a reset; return the last observations as places."""
    seen = rows(loop.spec.observation, loop.num_envs)
    loop.reset(range(loop.num_envs), seen)
    for action in random_actions(loop.spec, loop.num_envs, steps):
        seen = views(loop.spec, loop.num_envs, action)
        loop.step(seen)
    return [decode("vector", (row,)) for row in seen.observation[0]]


def test_steps_go_on_while_environments_are_reset():
    loop, built, gate = waiting(spares=2, length=3)
    # Both episodes ended in the third step.
    places = play(loop, 5)
    assert [(place.episode, place.step) for place in places] == [(0, 2)] * 2
    assert resets(2)
    gate.set()
    assert {place.episode for place in play(loop, 8)} == {1}
    loop.close()
    assert not resets(0)
    assert [env.closed for env in built] == [True] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_each_episode_is_played_to_its_end_whatever_resets_take(kind):
    num_envs, spares, steps, seeds = 3, 2, 60, [100, 7, 3]
    options = {"observation": kind, "length": 4, "uneven": True, "ending": "alternate"}
    streams = []
    for cls in (Dawdling, Dawdling, CountingEnv):
        loop = EnvFactory(cls, options, spare_envs=spares).batched(num_envs)
        streams.append(run(loop, seeds, random_actions(loop.spec, num_envs, steps)))
        loop.close()
    stream = streams[0]
    for other in streams[1:]:
        assert_same(other, stream)

    played: dict[int, list[int]] = {}
    now = [decode(kind, tuple(array[i] for array in stream.observations[0])) for i in range(3)]
    assert [place.tag for place in now] == seeds
    for t, i in itertools.product(range(steps), range(num_envs)):
        tag, episode, step, _ = now[i]
        over = step + 1 == length_of(tag, episode, 4, uneven=True)
        assert stream.rewards[t][i] == reward_of(episode, step + 1)
        assert stream.terminated[t][i] == (over and episode % 2 == 0)
        assert stream.truncated[t][i] == (over and episode % 2 == 1)
        now[i] = decode(kind, tuple(array[i] for array in stream.observations[t + 1]))
        if over:
            played.setdefault(tag, []).append(episode)
            assert decode(kind, stream.finals[t][i])[:3] == (tag, episode, step + 1)
            assert now[i].step == 0
        else:
            assert now[i][:3] == (tag, episode, step + 1)
    assert len(played) == num_envs + spares
    assert all(episodes == [*range(len(episodes))] for episodes in played.values())


def test_each_environment_keeps_its_time_limit():
    limits = itertools.count(2)

    def build():
        return gymnasium.wrappers.TimeLimit(CountingEnv(ending="never"), next(limits))

    loop = EnvFactory(build, action_mask="off", spare_envs=1).batched(1)
    stream = run(loop, [0], random_actions(loop.spec, 1, 10))
    assert [bool(row[0]) for row in stream.truncated] == [t in (1, 4, 6, 9) for t in range(10)]
    loop.close()


def test_reset_that_raises_is_the_error_of_the_step_that_needs_it():
    options = {"length": 2, "fault": "raise", "fault_in": "reset", "fault_at": 1}
    loop = EnvFactory(CountingEnv, options, spare_envs=1).batched(1)
    expected = r"raised in reset\(seed=None\): RuntimeError: fault in reset 1"
    with pytest.raises(EnvError, match=f"^env 0 of .*CountingEnv' {expected}"):
        play(loop, 4)
    loop.close()


def test_environments_that_hang_in_a_reset_are_closed_after_it(monkeypatch):
    monkeypatch.setattr(spare_envs, "_CLOSE_S", 0.01)
    loop, built, gate = waiting(spares=1, num_envs=1, length=2)
    play(loop, 3)
    (reset,) = resets(1)
    loop.close()
    assert [env.closed for env in built] == [False, True]
    gate.set()
    reset.join(60)
    assert built[0].closed


@pytest.mark.parametrize("name", ["fastrl/CartPole-v1", "vector:CartPole-v1"])
def test_batches_have_no_spare_environments(name):
    factory = EnvFactory(name, spare_envs=1)
    expected = f"^sampler.spare_envs: must be 0 for '{name}', which is stepped in batches"
    for build in (factory.probe, lambda: factory.batched(2)):
        with pytest.raises(EnvError, match=expected):
            build()
