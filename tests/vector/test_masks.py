"""Masks of vector environments: infos as gymnasium's, and `action_masks` on every backend."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import fastrl
from fastrl.envs.action_masks import valid_sample
from fastrl.errors import EnvError
from fastrl.vector import ArgumentError
from tests.masked_env import CheckingEnv, known_mask, make_vector

N = 3
SOURCES = ["key", "info", "method"]


def made(source, backend="serial", autoreset="same_step", **kwargs):
    options = {"backend": backend, "autoreset": autoreset, "num_workers": None}
    if backend == "processes":
        options["num_workers"] = 2
    return fastrl.make_vec(CheckingEnv, N, source=source, **options, **kwargs)


def actions_of(envs, masks):
    uniform = itertools.cycle([0.1, 0.9, 0.4, 0.6])
    return np.array([valid_sample(envs.single_action_space, mask, uniform) for mask in masks])


@pytest.mark.parametrize(
    ("source", "backend", "autoreset"),
    [
        *itertools.product(SOURCES, ["serial"], ["same_step", "next_step"]),
        *zip(SOURCES, itertools.repeat("processes"), ["same_step", "next_step", "same_step"]),
        ("method", "threads", "next_step"),
    ],
)
def test_masks_are_those_of_the_next_actions(source, backend, autoreset):
    with made(source, backend, autoreset) as envs:
        envs.reset(seed=5)
        steps, is_over = np.zeros(N, int), np.zeros(N, bool)
        for _ in range(20):
            masks = envs.action_masks()
            assert masks.dtype == np.bool_
            assert masks.shape == (N, 5)
            if not (autoreset == "next_step" and is_over.any()):
                wanted = [known_mask((5,), 5 + index, steps[index]) for index in range(N)]
                assert np.array_equal(masks, np.array(wanted, bool))
            _, _, terminated, truncated, _ = envs.step(actions_of(envs, masks))
            if not (autoreset == "next_step" and is_over.any()):
                steps += 1
            is_over = terminated | truncated


@pytest.mark.parametrize("source", SOURCES)
def test_observations_and_infos_are_those_of_gymnasium(source):
    theirs = make_vector(N, source=source)
    with made(source) as ours:
        assert ours.single_observation_space == theirs.single_observation_space
        results = [envs.reset(seed=2) for envs in (ours, theirs)]
        for _ in range(12):
            check_equal(*results)
            actions = actions_of(ours, ours.action_masks())
            results = [envs.step(actions) for envs in (ours, theirs)]
    theirs.close()


def check_equal(ours, theirs):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            check_equal(value, theirs[key])
    elif isinstance(ours, tuple):
        for ours_, theirs_ in zip(ours, theirs, strict=True):
            check_equal(ours_, theirs_)
    elif ours.dtype == object:
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None)
    else:
        assert np.array_equal(ours, theirs)


def test_send_and_recv_keep_the_masks_of_each_environment():
    with made("info", "threads") as envs:
        envs.async_reset(seed=5)
        steps = np.zeros(N, int)
        while steps.max() < 10:
            *_, infos = envs.recv(1)
            index = int(infos["env_id"][0])
            mask = envs._masks.rows[index]
            assert np.array_equal(mask, known_mask((5,), 5 + index, steps[index]) != 0)
            envs.send(actions_of(envs, [mask]), [index])
            steps[index] += 1


def test_environments_without_masks_are_one_line():
    with fastrl.make_vec("CartPole-v1", 2, backend="serial") as envs:
        envs.reset()
        assert not envs.has_action_masks
        with pytest.raises(ArgumentError, match="'CartPole-v1' has no masks of valid actions"):
            envs.action_masks()
    with fastrl.make_vec("Pendulum-v1", 2, backend="serial") as envs:
        envs.reset()
        assert not envs.has_action_masks


def test_an_info_of_that_name_that_is_no_mask_only_matters_to_who_asks():
    class Other(CheckingEnv):
        def _info(self):
            return {"action_mask": np.ones(3)}

    Other._check = lambda self, action: None
    with fastrl.make_vec(lambda: Other(source="none"), 2) as envs:
        envs.reset(seed=1)
        with pytest.raises(EnvError, match=r"expected an array \(5,\)"):
            envs.action_masks()


def test_probes_of_auto_take_valid_actions():
    with fastrl.make_vec(CheckingEnv, 4, source="info") as envs:
        envs.reset(seed=1)
        envs.step(actions_of(envs, envs.action_masks()))


@pytest.mark.others
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_to_sb3_answers_what_maskable_ppo_asks(source, backend):
    pytest.importorskip("stable_baselines3")
    from fastrl.vector import to_sb3

    envs = to_sb3(made(source, backend))
    envs.reset()
    envs.seed(5)
    envs.reset()
    assert envs.has_attr("action_masks")
    masks = np.stack(envs.env_method("action_masks"))
    assert np.array_equal(masks, [known_mask((5,), 5 + i, 0) for i in range(N)])
    assert np.array_equal(envs.env_method("action_masks", indices=[2])[0], masks[2])
    envs.step(actions_of(envs.envs, masks))
    masks = np.stack(envs.env_method("action_masks"))
    assert np.array_equal(masks, [known_mask((5,), 5 + i, 1) for i in range(N)])
    envs.close()
    plain = to_sb3(fastrl.make_vec("CartPole-v1", 2, backend="serial", autoreset="same_step"))
    plain.reset()
    assert not plain.has_attr("action_masks")
    plain.close()
