"""The first environments that are ready come first, and every transition comes once."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import fastrl
from fastrl.vector import ArgumentError, EnvFailure
from tests.counting_env import CountingEnv, Place, decode, length_of, reward_of
from tests.vector.envs import WaitingEnv, WordyEnv

BACKENDS = ("serial", "threads", "processes")


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_transition_of_every_environment_arrives_once_and_in_order(backend, workers, mode):
    factory = partial(CountingEnv, length=3, uneven=True, ending="alternate")
    envs = fastrl.make_vec(factory, 5, backend=backend, num_workers=workers, autoreset=mode)
    first, _ = envs.reset(seed=100)
    places = [decode("vector", (row,)) for row in first]
    steps, over = [0] * 5, [False] * 5
    envs.send(np.zeros(5, int))
    for _ in range(40):
        observation, reward, terminated, truncated, infos = envs.recv(batch_size=2)
        ids = infos["env_id"]
        assert len(set(ids.tolist())) == len(observation) == len(reward) == 2
        for row, index in enumerate(ids.tolist()):
            last, now = places[index], decode("vector", (observation[row],))
            ended = last.step + 1 >= length_of(last.tag, last.episode, 3, True)
            if over[index]:
                assert now == Place(last.tag, last.episode + 1, 0, -1)
                assert reward[row] == 0
                over[index] = False
            else:
                assert reward[row] == reward_of(last.episode, last.step + 1)
                assert terminated[row] == (ended and last.episode % 2 == 0)
                assert truncated[row] == (ended and last.episode % 2 == 1)
                if ended and mode == "same_step":
                    final = decode("vector", (infos["final_obs"][row],))
                    assert final == Place(last.tag, last.episode, last.step + 1, steps[index] % 5)
                    assert now == Place(last.tag, last.episode + 1, 0, -1)
                else:
                    assert now == Place(last.tag, last.episode, last.step + 1, steps[index] % 5)
                    over[index] = ended
            places[index] = now
            steps[index] += 1
        envs.send(np.array([steps[index] % 5 for index in ids]), ids)
    rest = envs.recv()
    assert len(rest[0]) == 5
    assert sum(steps) == 80
    # And lock step goes on from there.
    assert len(envs.step(np.zeros(5, int))[0]) == 5
    envs.close()


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_slow_environment_does_not_hold_up_the_others(backend):
    envs = fastrl.make_vec(WaitingEnv, 4, backend=backend, num_workers=4)
    envs.reset()
    envs.send(np.array([[0.0], [0.8], [0.0], [0.0]]))
    for _ in range(3):
        ids = envs.recv(batch_size=3)[4]["env_id"]
        assert sorted(ids.tolist()) == [0, 2, 3]
        envs.send(np.zeros((3, 1)), ids)
    envs.recv(3)
    late = envs.recv(1)
    assert late[4]["env_id"].tolist() == [1]
    assert late[4]["waited"].tolist() == [0.8]
    envs.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_resets_come_as_they_are_ready(backend):
    envs = fastrl.make_vec(CountingEnv, 3, backend=backend, num_workers=3)
    envs.async_reset(seed=[5, 6, 7])
    tags = {}
    for _ in range(3):
        observation, reward, *flags, infos = envs.recv(1)
        tags[int(infos["env_id"][0])] = decode("vector", (observation[0],)).tag
        assert not reward.any()
        assert not np.any(flags)
    assert tags == {0: 5, 1: 6, 2: 7}
    envs.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_mistakes_are_refused_before_anything_is_stepped(backend):
    envs = fastrl.make_vec(CountingEnv, 3, backend=backend)
    with pytest.raises(ArgumentError, match="reset the environments before"):
        envs.send(np.zeros(3, int))
    envs.reset(seed=0)
    for ids, actions, message in (
        ([0, 0], [1, 1], "pending step already"),
        ([0, 3], [1, 1], "must be below 3"),
        ([0, -1], [1, 1], "must be below 3"),
        ([0.5], [1], "whole numbers"),
        ([], [], "whole numbers"),
        ([0, 1], [1], r"shape \(1,\); expected \(2,\)"),
    ):
        with pytest.raises(ArgumentError, match=message):
            envs.send(np.array(actions), ids)
    envs.send(np.array([1]), [1])
    with pytest.raises(ArgumentError, match="pending step already"):
        envs.send(np.array([1, 1]), [0, 1])
    with pytest.raises(ArgumentError, match="1 environments are pending, got 2"):
        envs.recv(2)
    envs.recv(1)
    assert envs.get_attr("count") == (0, 1, 0)
    envs.close()


def test_spaces_without_arrays_of_fixed_size_are_refused():
    envs = fastrl.make_vec(WordyEnv, 2, backend="serial")
    with pytest.raises(ArgumentError, match="not arrays of fixed size"):
        envs.async_reset()
    envs.reset()
    with pytest.raises(ArgumentError, match="not arrays of fixed size"):
        envs.send(("a", "b"))
    assert envs.step(("a", "b"))[0] == ("a", "b")


@pytest.mark.parametrize("backend", BACKENDS)
def test_failure_is_named_as_in_lock_step(backend):
    factory = partial(CountingEnv, fault="raise", fault_tag=11)
    envs = fastrl.make_vec(factory, 3, backend=backend)
    envs.reset(seed=10)
    envs.send(np.array([1, 2, 3]))
    with pytest.raises(EnvFailure) as caught:
        envs.recv()
    assert (caught.value.env_index, caught.value.action, caught.value.seed) == (1, 2, 11)


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_lock_step_after_several_sends_to_a_busy_worker_steps_once(backend):
    envs = fastrl.make_vec(WaitingEnv, 3, backend=backend, num_workers=1)
    envs.reset()
    for index, seconds in enumerate((0.3, 0.0, 0.0)):
        envs.send(np.array([[seconds]]), [index])
    envs.recv()
    for number in range(2, 5):
        assert envs.step(np.zeros((3, 1)))[0].ravel().tolist() == [number] * 3
    assert envs.get_attr("count") == (4, 4, 4)
    envs.close()
