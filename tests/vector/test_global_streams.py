"""Process workers of `make_vec` have global random streams of their own."""

import numpy as np
import pytest

import fastrl
from tests.global_draws import DrawingEnv, states


def drawn(envs, seed=None, steps=3):
    """Return observations ``[steps + 1, B, 3]``."""
    with envs:
        found = [envs.reset(seed=seed)[0]]
        found += [envs.step(np.zeros(4, int))[0] for _ in range(steps)]
        return np.array(found)


def make(**kwargs):
    return fastrl.make_vec(DrawingEnv, 4, backend="processes", num_workers=2, **kwargs)


def test_workers_draw_other_numbers_and_the_seed_of_a_reset_reproduces_them():
    first, again, other, unseeded = (drawn(make(), seed) for seed in (5, 5, 6, None))
    assert np.array_equal(first[1:], again[1:])
    for numbers in (first, unseeded):
        assert len(np.unique(numbers)) == numbers.size
    assert not np.isin(other[1:], first).any()


def test_equal_seeds_do_not_make_workers_equal():
    numbers = drawn(make(), [7, 7, 7, 7])
    assert len(np.unique(numbers)) == numbers.size


def test_what_is_drawn_before_the_first_seed_follows_from_the_stream_of_the_caller(monkeypatch):
    found = []
    for _ in range(2):
        monkeypatch.setattr("fastrl.vector.process_driver._MADE", iter(range(2)))
        np.random.seed(3)
        before = states()
        found.append([drawn(make()), drawn(make())])
        assert states() == before
    assert np.array_equal(found[0], found[1])
    assert not np.isin(found[0][0], found[0][1]).any()


def test_sent_resets_seed_the_streams_as_well():
    found = []
    for _ in range(2):
        with make() as envs:
            envs.async_reset(seed=5)
            envs.recv()
            envs.send(np.zeros(4, int))
            observation, *_, infos = envs.recv()
            found.append(observation[np.argsort(infos["env_id"])])
    assert np.array_equal(*found)


@pytest.mark.parametrize("backend", ["serial", "threads"])
def test_backends_without_processes_draw_from_the_streams_of_the_caller(backend):
    np.random.seed(0)
    envs = fastrl.make_vec(DrawingEnv, 2, backend=backend, num_workers=1)
    before = states()
    with envs:
        envs.reset(seed=0)
        assert states() == before
        envs.step(np.zeros(2, int))
        assert states() != before


def test_timing_an_environment_leaves_the_streams_of_the_caller(monkeypatch):
    monkeypatch.setattr("fastrl.vector.choice.usable_cores", lambda: 1)
    found = []
    for backend in ("auto", "serial"):
        np.random.seed(0)
        with fastrl.make_vec(DrawingEnv, 4, backend=backend) as envs:
            assert envs.backend == "serial"
            found.append(envs.reset()[0][:, 1])
    assert np.array_equal(*found)
