from __future__ import annotations

import threading
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from fastrl.envs import BatchedEnv, EnvFactory
from fastrl.envs.crafter_native import CrafterBatch, CrafterOptions, build
from fastrl.envs.crafter_native.textures import SPRITES
from fastrl.errors import EnvError
from tests.envs.crafter_native.reference import original
from tests.envs.stepping import assert_same, random_actions, rows, run, views

SMALL = {"area": (24, 24)}


def batch(num_envs, **options):
    return CrafterBatch(num_envs, CrafterOptions.of(**{**SMALL, **options}))


def actions(env, steps, seed=0):
    return random_actions(env.spec, env.num_envs, steps, seed)


def test_envs_of_a_batch_do_not_touch_each_other():
    together = run(batch(3), [4, 5, 6], actions(batch(3), 150))
    for i in range(3):
        alone = run(batch(1), [4 + i], [(a[i : i + 1],) for (a,) in actions(batch(3), 150)])
        for ours, theirs in zip(together.observations, alone.observations, strict=True):
            np.testing.assert_array_equal(ours[0][i], theirs[0][0])
    assert together.episodes > 0


def test_reset_starts_over_and_restart_goes_on():
    env = batch(2)
    seen, first = rows(env.spec.observation, 2), rows(env.spec.observation, 2)
    env.reset([3, 4], first)
    env.restart(seen)
    game = original(4, **SMALL)
    np.testing.assert_array_equal(first[0][1], game.reset())
    np.testing.assert_array_equal(seen[0][1], game.reset())
    env.reset([3, 4], seen)
    np.testing.assert_array_equal(seen[0], first[0])


def test_seeds_may_be_any_integers():
    env = batch(2)
    seen = rows(env.spec.observation, 2)
    seeds = (-5, 2**70)
    env.reset(seeds, seen)
    for found, seed in zip(seen[0], seeds, strict=True):
        np.testing.assert_array_equal(found, original(seed, **SMALL).reset())


def test_rows_that_are_not_contiguous_are_written_alike():
    env, twin = batch(2, length=3), batch(2, length=3)
    (action,) = np.zeros((1, 2), np.int64)
    seen, expected = views(env.spec, 2, (action,)), views(env.spec, 2, (action,))
    wide = np.full((4, 64, 128, 3), 77, np.uint8)
    seen = type(seen)(
        action=(np.zeros((2, 2), np.int32)[:, 0],),
        observation=(wide[::2, :, ::2],),
        reward=np.zeros((2, 2), np.float32)[:, 0],
        terminated=seen.terminated,
        truncated=seen.truncated,
        final_observation=(wide[1::2, :, ::2],),
    )
    env.reset([0, 1], seen.observation)
    twin.reset([0, 1], expected.observation)
    for t in range(4):
        env.step(seen)
        twin.step(expected)
        np.testing.assert_array_equal(seen.observation[0], expected.observation[0])
        np.testing.assert_array_equal(seen.reward, expected.reward)
        assert (seen.truncated == (t == 2)).all()
    np.testing.assert_array_equal(seen.final_observation[0], expected.final_observation[0])
    assert (wide[:, :, 1::2] == 77).all()


def test_time_limit_truncates_and_death_terminates():
    env = batch(1, length=2)
    seen = views(env.spec, 1, (np.zeros(1, np.int64),))
    env.reset([0], seen.observation)
    flags = []
    for t in range(4):
        if t == 3:
            env._worlds.inventory[0, 0] = 0
        env.step(seen)
        flags.append((bool(seen.terminated[0]), bool(seen.truncated[0])))
    assert flags == [(False, False), (False, True), (False, False), (True, False)]


def test_an_action_that_is_none_is_refused_before_anything_is_stepped():
    env = batch(2)
    seen = views(env.spec, 2, (np.array([0, 17]),))
    env.reset([0, 1], seen.observation)
    with pytest.raises(EnvError, match=r"env 1 of 'fastrl/Crafter-v1': action 17 .* 0 to 16"):
        env.step(seen)
    assert env.info()["steps"].tolist() == [0, 0]


@pytest.mark.parametrize("symbolic", [False, True])
def test_arrays_that_do_not_fit_are_refused(symbolic):
    env = batch(3, symbolic=symbolic)
    seen = views(env.spec, 3, (np.zeros(3, np.int64),))
    env.reset([0, 1, 2], seen.observation)
    short = tuple(leaf[:1] for leaf in seen.observation)
    for field, value in (
        ("action", (np.zeros(1, np.int64),)),
        ("observation", short),
        ("final_observation", short),
        ("reward", seen.reward[:1]),
    ):
        with pytest.raises(EnvError, match="steps action, observation"):
            env.step(replace(seen, **{field: value}))
    with pytest.raises(EnvError, match="actions are of dtype float64; expected int64"):
        env.step(replace(seen, action=(np.zeros(3),)))
    others = tuple(leaf.astype(np.float64) for leaf in seen.observation)
    with pytest.raises(EnvError, match="writes observations"):
        env.step(replace(seen, observation=others))
    with pytest.raises(EnvError, match="expected observations"):
        env.restart(short)
    with pytest.raises(EnvError, match="expected a mask"):
        env.restart(seen.observation, np.ones(2, np.bool_))
    assert env.info()["steps"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("action", [-1, 17])
def test_single_world_refuses_actions_that_are_none(action):
    env = EnvFactory("Crafter-v1", {"area": (16, 16)}).single()
    env.reset(seed=0)
    with pytest.raises(EnvError, match=f"action {action} is not one of 0 to 16"):
        env.step(action)


def test_seeds_come_first():
    env = batch(2)
    seen = views(env.spec, 2, (np.zeros(2, np.int64),))
    for call in (lambda: env.step(seen), lambda: env.restart(seen.observation)):
        with pytest.raises(EnvError, match="must be reset with seeds"):
            call()
    with pytest.raises(EnvError, match="expected 2 seeds, got 1"):
        env.reset([0], seen.observation)


def test_symbols_show_the_world_that_pixels_show():
    pixels, symbols = batch(2), batch(2, symbolic=True)
    taken = actions(pixels, 260, seed=3)
    ours, theirs = run(symbols, [8, 9], taken), run(pixels, [8, 9], taken)
    for name in ("rewards", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    np.testing.assert_array_equal(symbols.semantic(), pixels.semantic())
    assert ours.episodes > 0
    daylight, inventory, cells = ours.observations[-1]
    assert 0 <= daylight.min() <= daylight.max() <= 1
    np.testing.assert_array_equal(inventory, pixels.info()["inventory"])
    for i, (x, y) in enumerate(pixels.info()["player_pos"]):
        assert SPRITES[cells[i, 3, 4, 1]].startswith("player-")
        assert cells[i, 3, 4, 0] == pixels._worlds.material[i, x, y]
        materials = np.pad(pixels._worlds.material[i], 9)[x + 5 : x + 14, y + 6 : y + 13]
        np.testing.assert_array_equal(cells[i, :, :, 0], materials.T)


def test_symbols_are_in_their_space_and_last_ones_are_kept():
    env = batch(2, symbolic=True, length=7)
    stream = run(env, [0, 1], actions(env, 20))
    space = env.spec.observation_space
    assert list(space.keys()) == ["daylight", "inventory", "map"]
    for rows_of_step in stream.observations:
        for i in range(2):
            shown = dict(zip(space.keys(), (leaf[i] for leaf in rows_of_step), strict=True))
            assert space.contains(shown)
    assert {len(final) for final in stream.finals} == {0, 2}


def test_two_batches_may_be_stepped_from_two_threads():
    streams = {}

    def play(seed):
        env = batch(2)
        streams[seed] = run(env, [seed, seed], actions(env, 200))

    threads = [threading.Thread(target=play, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        env = batch(2)
        assert_same(streams[seed], run(env, [seed, seed], actions(env, 200)))


def test_it_is_built_by_the_factory_of_all_environments():
    factory = EnvFactory("fastrl.envs.crafter_native:build", SMALL, max_episode_steps=6)
    env = factory.batched(2)
    assert isinstance(env, BatchedEnv)
    assert env.spec.max_episode_steps == 6
    assert env.spec.observation_space.shape == (64, 64, 3)
    stream = run(env, [0, 1], actions(env, 7))
    assert [bool(row.all()) for row in stream.truncated] == [False] * 5 + [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lenght": 5}, r"no option 'lenght'; did you mean 'length'\?"),
        ({"xyz": 5}, r"no option 'xyz'; there are area, view, size, reward, length, symbolic"),
        ({"area": 64}, r"area=64: must be two whole numbers from 1 to 16,384"),
        ({"size": (64, 0)}, r"size=\(64, 0\): must be two whole numbers from 1"),
        ({"size": 2**31}, r"size=2147483648: must be two whole numbers from 1 to 16,384"),
        ({"length": -1}, r"length=-1: must be a number of steps"),
        ({"reward": "no"}, r"reward='no': must be true or false"),
        ({"view": (9, 2)}, r"view=\(9, 2\): the inventory takes 2 of 2 rows"),
        ({"size": (10, 64)}, r"size=\(10, 64\) is too small for view=\(9, 9\)"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(EnvError, match=message):
        build(**options)
    if not {"view", "size"} & options.keys():
        with pytest.raises(EnvError, match=message):
            gymnasium.make("Crafter-v1", **options)
