"""Environments that are batched by themselves, and parameters of every instance."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import fastrl
from fastrl.envs.atari import FireReset
from fastrl.errors import EnvError
from fastrl.vector import ArgumentError
from tests.vector.test_same_as_gymnasium import assert_same


@pytest.fixture
def _no_trials(monkeypatch):
    """Let `auto` take one process for single environments, without timing any."""
    monkeypatch.setattr("fastrl.vector.make_vector.choose_backend", lambda *_: ("serial", 1))


@pytest.mark.parametrize("workers", [1, 2])
def test_native_environments_do_what_gymnasiums_do(workers):
    name = "HalfCheetah-v5"
    ours = fastrl.make_vec(f"fastrl/{name}", 3, num_workers=workers)
    theirs = fastrl.make_vec(name, 3, backend="serial")
    assert ours.backend == "native"
    assert ours.action_space == theirs.action_space
    theirs.action_space.seed(0)
    ours.reset(seed=1), theirs.reset(seed=1)
    for _ in range(40):
        actions = theirs.action_space.sample()
        mine, his = ours.step(actions), theirs.step(actions)
        for left, right in zip(mine[:4], his[:4], strict=True):
            assert np.allclose(left, right, atol=1e-6)
    assert ours.close() is None


@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_end_of_an_episode_is_told_in_the_mode_that_was_asked_for(mode):
    envs = fastrl.make_vec("fastrl/CartPole-v1", 2, autoreset=mode)
    envs.reset(seed=0)
    for _ in range(30):
        seen, reward, terminated, _, infos = envs.step(np.zeros(2, np.int64))
        if terminated.any():
            break
    (index,) = np.flatnonzero(terminated)[:1]
    assert ("final_obs" in infos) is (mode == "same_step")
    final = infos["final_obs"][index] if mode == "same_step" else seen[index]
    assert abs(final[2]) > 0.2
    seen, reward, *_ = envs.step(np.zeros(2, np.int64))
    assert reward[index] == (1.0 if mode == "same_step" else 0.0)
    assert abs(seen[index][2]) < 0.1


def test_partial_reset_of_native_environments():
    envs = fastrl.make_vec("fastrl/CartPole-v1", 3, autoreset="next_step")
    envs.reset(seed=0)
    before = envs.step(np.zeros(3, np.int64))[0]
    after, _ = envs.reset(options={"reset_mask": np.array([True, False, False])})
    assert np.array_equal(before[1:], after[1:])
    assert not np.array_equal(before[0], after[0])


@pytest.mark.parametrize(("workers", "length", "steps"), [(1, 30, 70), (2, 200, 200)])
def test_crafter_s_batch_stands_for_single_worlds(workers, length, steps):
    options = dict(length=length, size=(32, 32), autoreset="same_step")
    ours = fastrl.make_vec("Crafter-v1", 4, num_workers=workers, **options)
    build = partial(gymnasium.make, "Crafter-v1", length=length, size=(32, 32))
    theirs = SyncVectorEnv([build] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    assert ours.backend == "native"
    assert ours.observation_space == theirs.observation_space
    theirs.action_space.seed(2)
    assert_same(ours.reset(seed=7), theirs.reset(seed=7))
    some = np.array([True, False, False, True])
    deaths = timeouts = 0
    for step in range(steps):
        actions = theirs.action_space.sample()
        expected = theirs.step(actions)
        assert_same(ours.step(actions), expected, f"step {step}")
        deaths += expected[2].sum()
        timeouts += expected[3].sum()
        if step == 20:
            options = {"reset_mask": some}
            assert_same(ours.reset(options=options), theirs.reset(options=options))
            options = {"reset_mask": some}
            seeds = [3, 1, 1, 5]
            mine = ours.reset(seed=seeds, options=options)
            assert_same(mine, theirs.reset(seed=seeds, options=options))
            assert_same(ours.reset(), theirs.reset())
    assert timeouts if length == 30 else deaths
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    "arguments",
    [
        {"autoreset": "next_step"},
        {},
        {"autoreset": "same_step", "wrappers": [lambda env: env]},
        {"autoreset": "same_step", "semantic": True},
        {"autoreset": "same_step", "env_kwargs": [{"reward": True}, {"reward": False}]},
    ],
)
@pytest.mark.usefixtures("_no_trials")
def test_single_worlds_are_stepped_where_a_batch_is_not_the_same(arguments):
    envs = fastrl.make_vec("Crafter-v1", 2, area=(9, 9), **arguments)
    assert envs.backend == "serial"
    envs.close()


def test_list_of_different_environments_is_stepped_one_by_one():
    envs = fastrl.make_vec(["fastrl/CartPole-v1", partial(heavy_cart, gravity=1.0)])
    assert envs.backend in ("serial", "processes")
    envs.reset(seed=[5, 5])
    seen = envs.step(np.zeros(2, np.int64))[0]
    assert not np.allclose(seen[0], seen[1])
    envs.close()


def test_options_that_a_batch_does_not_take_leave_it_open():
    envs = fastrl.make_vec("HalfCheetah-v5", 2, backend="native")
    envs.reset(seed=0)
    with pytest.raises(ArgumentError, match=r"takes no options, got \['speed'\]"):
        envs.reset(options={"speed": 2})
    envs.step(envs.action_space.sample())
    envs.close()


def test_what_native_environments_cannot_do_is_said():
    with pytest.raises(ArgumentError, match="supports only the autoreset mode SAME_STEP"):
        fastrl.make_vec("HalfCheetah-v5", 2, backend="native", autoreset="next_step")
    with pytest.raises(ArgumentError, match="there is no native 'FrozenLake-v1'"):
        fastrl.make_vec("FrozenLake-v1", 2, backend="native")
    with pytest.raises(ArgumentError, match="take no wrappers"):
        fastrl.make_vec("CartPole-v1", 2, backend="native", wrappers=[lambda env: env])
    with pytest.raises(EnvError, match="wings"):
        fastrl.make_vec("fastrl/CartPole-v1", 2, wings=2)
    with pytest.raises(ArgumentError, match="the same id, got fastrl/CartPole-v1, Pendulum-v1"):
        fastrl.make_vec(["fastrl/CartPole-v1", "Pendulum-v1"], backend="native")
    different = [{"gravity": 1.0}, {"gravity": 1.0, "length": 2.0}, {}]
    with pytest.raises(ArgumentError, match="env_kwargs of env 1 and of env 0 have other names"):
        fastrl.make_vec("fastrl/CartPole-v1", 3, env_kwargs=different)
    envs = fastrl.make_vec("fastrl/CartPole-v1", 2)
    envs.reset(seed=0)
    with pytest.raises(ArgumentError, match="need one for each, or none"):
        envs.reset(seed=[1, None])
    with pytest.raises(ArgumentError, match="env_kwargs only"):
        envs.set_attr("gravity", 1.0)
    assert not hasattr(envs, "wings")
    assert envs.get_attr("render_mode") == (None, None)


def first_steps(envs):
    envs.reset(seed=[5] * envs.num_envs)
    for _ in range(5):
        seen = envs.step(np.zeros(envs.action_space.shape, envs.action_space.dtype))[0]
    envs.close()
    return seen


@pytest.mark.parametrize("backend", ["serial", "processes", "native"])
def test_every_instance_has_its_own_parameters(backend):
    name = "fastrl/CartPole-v1" if backend == "native" else "tests.vector.test_native:heavy_cart"
    given = [{"gravity": 1.0}, {"gravity": 9.8}, {"gravity": 30.0}]
    envs = fastrl.make_vec(name, 3, backend=backend, env_kwargs=given)
    assert envs.env_kwargs == given
    seen = first_steps(envs)
    assert len({row.tobytes() for row in seen}) == 3
    plain_name = name if backend == "native" else "CartPole-v1"
    plain = first_steps(fastrl.make_vec(plain_name, 1, backend=envs.backend))
    assert np.allclose(seen[1], plain[0], atol=1e-6)


def heavy_cart(gravity):
    env = gymnasium.make("CartPole-v1")
    env.unwrapped.gravity = gravity
    return env


def test_parameters_by_a_function_of_the_index():
    envs = fastrl.make_vec(
        heavy_cart, 3, backend="serial", env_kwargs=lambda index: {"gravity": float(index)}
    )
    assert [each["gravity"] for each in envs.env_kwargs] == [0.0, 1.0, 2.0]
    assert [env.gravity for env in envs.get_attr("unwrapped")] == [0.0, 1.0, 2.0]


def test_parameters_are_drawn_once_and_the_same_for_a_seed():
    def drawn(num_envs, seed):
        envs = fastrl.make_vec(
            heavy_cart,
            num_envs,
            backend="serial",
            env_kwargs={"gravity": {"uniform": [5.0, 15.0]}},
            env_kwargs_seed=seed,
        )
        assert [env.gravity for env in envs.get_attr("unwrapped")] == [
            each["gravity"] for each in envs.env_kwargs
        ]
        return [each["gravity"] for each in envs.env_kwargs]

    four = drawn(4, 0)
    assert all(5 <= each <= 15 for each in four)
    assert len(set(four)) == 4
    assert drawn(2, 0) == four[:2]
    assert drawn(2, 1) != four[:2]
    with pytest.raises(ArgumentError, match=r"env_kwargs\.gravity\.uniform: expected"):
        fastrl.make_vec(heavy_cart, 2, env_kwargs={"gravity": {"uniform": [1, 2, 3]}})


def test_simulators_of_native_mujoco_differ_in_fields_of_the_model():
    given = [{"gravity": [0, 0, -9.81]}, {"gravity": [0, 0, -1.0]}]
    envs = fastrl.make_vec("fastrl/HalfCheetah-v5", 2, env_kwargs=given)
    seen = first_steps(envs)
    plain = first_steps(fastrl.make_vec("fastrl/HalfCheetah-v5", 1))
    assert np.array_equal(seen[0], plain[0])
    assert not np.allclose(seen[0], seen[1])
    with pytest.raises(EnvError, match="the model's field 'wings'"):
        fastrl.make_vec("fastrl/HalfCheetah-v5", 2, env_kwargs=[{"wings": 1}, {"wings": 2}])


def plain_breakout():
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TransformReward

    env = FireReset(gymnasium.make("ALE/Breakout-v5", frameskip=1))
    env = TransformReward(AtariPreprocessing(env, terminal_on_life_loss=True), np.sign)
    return FrameStackObservation(env, 4, padding_type="zero")


class TestAtari:
    """Breakout, if ALE and OpenCV are installed."""

    @pytest.fixture(autouse=True)
    def _installed(self):
        pytest.importorskip("ale_py")
        pytest.importorskip("cv2")

    @pytest.mark.parametrize(
        ("backend", "mode"),
        [
            ("auto", "same_step"),
            ("auto", "next_step"),
            ("serial", "same_step"),
            pytest.param("serial", "next_step", marks=pytest.mark.slow),
            pytest.param("processes", "same_step", marks=pytest.mark.slow),
        ],
    )
    def test_standard_preprocessing(self, backend, mode):
        envs = fastrl.make_vec(
            "ALE/Breakout-v5", 2, backend=backend, autoreset=mode, episodic_life=True
        )
        assert envs.single_observation_space == gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        first, infos = envs.reset(seed=3)
        assert first.shape == (2, 4, 84, 84)
        assert first.any()
        assert infos["lives"].tolist() == [5, 5]
        ended, waiting = 0, np.zeros(2, bool)
        for _ in range(90):
            seen, reward, terminated, _, infos = envs.step(np.array([2, 3]))
            assert set(np.unique(reward)) <= {0.0, 1.0}
            if mode == "same_step":
                assert ("final_obs" in infos) == terminated.any()
            else:
                assert not (reward[waiting] != 0).any()
                assert not terminated[waiting].any()
                waiting = terminated
            ended += terminated.sum()
        assert ended >= 2
        assert seen.shape == (2, 4, 84, 84)
        envs.close()

    def test_games_are_those_of_gymnasium_s_own_wrappers(self):
        ours = fastrl.make_vec("ALE/Breakout-v5", 2, backend="serial", episodic_life=True)
        theirs = SyncVectorEnv([plain_breakout] * 2)
        theirs.action_space.seed(0)
        assert_same(ours.reset(seed=4), theirs.reset(seed=4))
        ends = 0
        for step in range(150):
            actions = theirs.action_space.sample()
            expected = theirs.step(actions)
            assert_same(ours.step(actions), expected, f"step {step}")
            ends += expected[2].sum()
        assert ends >= 3
        ours.close()
        theirs.close()

    @pytest.mark.parametrize(
        "options", [{}, {"stack_num": 2, "img_width": 60}, {"img_height": 50, "grayscale": False}]
    )
    def test_batch_and_single_games_show_the_same_screens(self, options):
        plain = {"noop_max": 0, "use_fire_reset": False, "repeat_action_probability": 0.0}
        plain |= {"max_num_frames_per_episode": 21, **options}
        make = partial(fastrl.make_vec, "ALE/Pong-v5", 2, autoreset="same_step", **plain)
        batch, single = make(backend="native"), make(backend="serial")
        assert single.observation_space == batch.observation_space
        batch.action_space.seed(0)
        assert np.array_equal(batch.reset(seed=1)[0], single.reset(seed=1)[0])
        ends = 0
        for _ in range(20):
            actions = batch.action_space.sample()
            (ours, _, _, truncated, infos), expected = single.step(actions), batch.step(actions)
            assert np.array_equal(ours, expected[0])
            assert np.array_equal(truncated, expected[3])
            for index in np.flatnonzero(truncated):
                ends += 1
                finals = infos["final_obs"][index], expected[4]["final_obs"][index]
                assert np.array_equal(*finals)
        assert ends >= 4
        single.close(), batch.close()

    @pytest.mark.parametrize(
        "arguments",
        [
            {"difficulty": 0},
            {"render_mode": "rgb_array"},
            {"max_episode_steps": 9},
            {"autoreset": "disabled"},
            {"env_kwargs": [{"mode": 0}, {}]},
        ],
    )
    @pytest.mark.usefixtures("_no_trials")
    def test_single_games_are_stepped_where_the_batch_knows_no_such_argument(self, arguments):
        envs = fastrl.make_vec("ALE/Pong-v5", 2, **arguments)
        assert envs.backend == "serial"
        envs.close()

    def test_unknown_arguments_of_games_are_refused(self):
        with pytest.raises(EnvError, match="unexpected keyword argument 'wings'"):
            fastrl.make_vec("ALE/Pong-v5", 2, wings=2)

    def test_raw_screens_where_no_preprocessing_is_wanted(self):
        envs = fastrl.make_vec("ALE/Breakout-v5", 2, backend="serial", atari_preprocessing=False)
        assert envs.reset(seed=0)[0].shape == (2, 210, 160, 3)
