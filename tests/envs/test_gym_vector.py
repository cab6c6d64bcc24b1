from __future__ import annotations

from collections import Counter

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.envs import EnvFactory, GymVector
from fastrl.errors import EnvError
from fastrl.spec import EnvSpec
from tests.counting_env import CountingEnv
from tests.envs.stepping import Stream, assert_same, random_actions, rows, run, views

SEEDS = (3, 2**20 + 1, 7)
MODES = list(AutoresetMode)


def spec_of(env, name="vector"):
    return EnvSpec(name, env.single_observation_space, env.single_action_space)


def counting(mode, kind="vector", cls=SyncVectorEnv, **kwargs):
    def make():
        return CountingEnv(observation=kind, uneven=True, ending="alternate", length=4)

    env = cls([make] * len(SEEDS), autoreset_mode=mode, **kwargs)
    return GymVector(env, spec_of(env))


def loop_stream(kind, actions):
    options = {"observation": kind, "uneven": True, "ending": "alternate", "length": 4}
    return run(EnvFactory(CountingEnv, options).batched(len(SEEDS)), SEEDS, actions)


@pytest.mark.parametrize("kind", ["vector", "image", "dict", "tuple", "discrete"])
@pytest.mark.parametrize("mode", MODES)
def test_every_autoreset_mode_gives_the_stream_of_the_loop(mode, kind):
    env = counting(mode, kind)
    actions = random_actions(env.spec, len(SEEDS), 50)
    found = run(env, SEEDS, actions)
    assert_same(found, loop_stream(kind, actions))
    assert found.episodes > 20


@settings(max_examples=15)
@given(
    mode=st.sampled_from(MODES),
    seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    length=st.integers(1, 4),
    uneven=st.booleans(),
)
def test_whatever_ends_together_or_apart_gives_the_stream_of_the_loop(mode, seeds, length, uneven):
    options = {"length": length, "uneven": uneven, "ending": "alternate"}
    loop = EnvFactory(CountingEnv, options).batched(len(seeds))
    actions = random_actions(loop.spec, len(seeds), 12)
    vector = SyncVectorEnv([lambda: CountingEnv(**options)] * len(seeds), autoreset_mode=mode)
    assert_same(run(GymVector(vector, loop.spec), seeds, actions), run(loop, seeds, actions))


@pytest.mark.parametrize("mode", MODES)
def test_envs_in_processes_give_the_stream_of_the_loop(mode):
    env = counting(mode, "dict", AsyncVectorEnv, context="forkserver")
    actions = random_actions(env.spec, len(SEEDS), 20)
    try:
        assert_same(run(env, SEEDS, actions), loop_stream("dict", actions))
    finally:
        env.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_random_streams_of_gymnasium_envs_go_on_as_in_the_loop(name, mode):
    loop = EnvFactory(name, max_episode_steps=30).batched(2)
    actions = random_actions(loop.spec, 2, 80)
    make = [lambda: gymnasium.make(name, max_episode_steps=30)] * 2
    env = GymVector(SyncVectorEnv(make, autoreset_mode=mode), loop.spec)
    found = run(env, (1, 2), actions)
    assert_same(found, run(loop, (1, 2), actions))
    assert found.episodes >= 4


def test_vectorised_cartpole_moves_like_the_single_one():
    """Its sub-environments share one random stream, so they are compared from state to state."""
    num_envs, steps = 5, 60
    env = EnvFactory("vector:CartPole-v1", max_episode_steps=15).batched(num_envs)
    actions = random_actions(env.spec, num_envs, steps)
    stream = run(env, range(num_envs), actions)
    single = gymnasium.make("CartPole-v1").unwrapped
    age = [0] * num_envs
    for t in range(steps):
        for i in range(num_envs):
            age[i] += 1
            start = stream.observations[t][0][i]
            single.reset()
            single.state = start.astype(np.float64)
            expected, reward, terminated, *_ = single.step(actions[t][0][i])
            ended = stream.terminated[t][i] or stream.truncated[t][i]
            reached = stream.finals[t][i][0] if ended else stream.observations[t + 1][0][i]
            np.testing.assert_allclose(reached, expected, rtol=1e-4, atol=1e-5)
            assert stream.rewards[t][i] == reward
            assert stream.terminated[t][i] == terminated
            assert stream.truncated[t][i] == (age[i] == 15 and not terminated)
            if ended:
                assert np.abs(stream.observations[t + 1][0][i]).max() <= 0.05
                age[i] = 0
    assert stream.episodes > 15


class Vector(gymnasium.vector.VectorEnv):
    """A counting vector environment that can be told to misbehave."""

    def __init__(self, mode=AutoresetMode.NEXT_STEP, fault=None, *, ends=(True, False), seen=1):
        self.metadata = {"autoreset_mode": mode}
        self.num_envs, self.fault, self.ends, self.seen = 2, fault, np.array(ends), seen
        env = CountingEnv()
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space
        self.closed_times = 0

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return np.zeros((2, 4), np.float32), {}

    def step(self, actions):
        if self.fault is not None:
            raise self.fault
        self.count = (self.count + 1) % 4
        observation = np.full((2, 4), self.count * self.seen, np.float32)
        ended = self.ends & (self.count == 3)
        return observation, np.ones(2) * (self.count > 0), ended, np.zeros(2, bool), {}

    def close_extras(self, **kwargs):
        self.closed_times += 1


def steps(env, number=5):
    return run(env, (0, 1), random_actions(env.spec, 2, number))


@pytest.mark.parametrize("seen", [1, 0])
def test_next_step_env_that_documents_no_reset_mask_is_refused_whatever_it_observes(seen):
    env = Vector(seen=seen)
    with pytest.raises(EnvError, match=r"NextStep and its reset does not document .*SameStep"):
        steps(GymVector(env, spec_of(env)))


class Masked(Vector):
    def reset(self, *, seed=None, options=None):
        """Reset all, or those of ``options["reset_mask"]``."""
        return super().reset(seed=seed)


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_env_that_ignores_the_reset_mask_is_refused(mode):
    env = Masked(mode)
    with pytest.raises(EnvError, match=f"{mode} and its reset ignores options"):
        steps(GymVector(env, spec_of(env)))


def test_partial_reset_of_another_number_of_envs_is_refused():
    class Short(Masked):
        def reset(self, *, seed=None, options=None):
            observation, infos = super().reset(seed=seed)
            return observation[:0] if options else observation, infos

    env = Short()
    with pytest.raises(EnvError, match=r"shape \(0, 4\) from reset\(.*expected \(2, 4\)"):
        steps(GymVector(env, spec_of(env)))


def test_envs_that_all_end_at_once_are_stepped_on():
    env = Vector(ends=(True, True))
    stream = steps(GymVector(env, spec_of(env)), 9)
    assert [row[0].tolist() for (row,) in stream.observations] == [
        [count] * 4 for count in (0, 1, 2, 0, 1, 2, 0, 1, 2, 0)
    ]
    assert np.all(stream.rewards)
    assert stream.episodes == 6


def test_same_step_without_final_observations_is_refused():
    env = Vector(AutoresetMode.SAME_STEP)
    with pytest.raises(EnvError, match="returned no infos\\['final_obs'\\]"):
        steps(GymVector(env, spec_of(env)))


@pytest.mark.parametrize("mode", [None, "Sometimes"])
def test_unknown_autoreset_mode_is_refused_at_once(mode):
    env = Vector(mode)
    with pytest.raises(EnvError, match="must be one of 'NextStep', 'SameStep', 'Disabled'"):
        GymVector(env, spec_of(env, "strange"))


def test_mode_may_be_a_string():
    env = Vector("NextStep")
    assert steps(GymVector(env, spec_of(env)), 2).episodes == 0


def test_exception_becomes_one_line_with_its_cause():
    fault = RuntimeError("lost\nthe ball")
    env = Vector(fault=fault)
    with pytest.raises(
        EnvError, match="'pong' raised in step: RuntimeError: lost the ball"
    ) as caught:
        steps(GymVector(env, spec_of(env, "pong")))
    assert caught.value.__cause__ is fault


def test_wrong_batch_of_observations_is_refused():
    env = Vector()
    spec = EnvSpec("wide", gymnasium.spaces.Box(-1, 1, (5,)), env.single_action_space)
    with pytest.raises(EnvError, match=r"shape \(2, 4\); expected \(2, 5\)"):
        steps(GymVector(env, spec))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_integer_that_does_not_fit_is_refused(mode):
    class Wide(Vector):
        def step(self, actions):
            _, *rest = super().step(actions)
            return np.array([[0] * 4, [0, 299 + self.count, 0, 0]]), *rest

    env = Wide(mode)
    space = gymnasium.spaces.Box(0, 255, (4,), np.uint8)
    env.reset = lambda **_: (np.zeros((2, 4), np.uint8), {})
    env.count = 0
    with pytest.raises(EnvError, match=r"env 1 .*number 300, which does not fit uint8.*its space"):
        steps(GymVector(env, EnvSpec("wide", space, env.single_action_space)), 1)


def test_close_closes_once():
    env = Vector()
    vector = GymVector(env, spec_of(env))
    vector.close()
    vector.close()
    assert env.closed_times == 1
    with pytest.raises(EnvError, match="closed"):
        steps(vector)


def without_reset_steps(env, seeds, actions) -> list[list[tuple]]:
    """The oracle for NEXT_STEP: per sub-environment, its transitions, the reset steps left out."""
    observation, _ = env.reset(**seeds)
    observation = observation.copy()
    taken = [0] * env.num_envs
    transitions = [[] for _ in range(env.num_envs)]
    resetting = np.zeros(env.num_envs, bool)
    while min(taken) < len(actions):
        chosen = [actions[min(k, len(actions) - 1)][0][i] for i, k in enumerate(taken)]
        following, reward, terminated, truncated, _ = env.step(np.stack(chosen))
        for i in np.flatnonzero(~resetting):
            facts = (observation[i], chosen[i], float(reward[i]), bool(terminated[i]), following[i])
            transitions[i].append(tuple(np.array(fact) for fact in facts))
            taken[i] += 1
        resetting, observation = terminated | truncated, following.copy()
    return [facts[: len(actions)] for facts in transitions]


def assert_same_transitions(stream: Stream, actions, expected) -> None:
    for i, transitions in enumerate(expected):
        for t, facts in enumerate(transitions):
            ended = i in stream.finals[t]
            reached = stream.finals[t][i][0] if ended else stream.observations[t + 1][0][i]
            found = (
                stream.observations[t][0][i],
                actions[t][0][i],
                stream.rewards[t][i],
                stream.terminated[t][i],
                reached,
            )
            for ours, theirs in zip(found, facts, strict=True):
                np.testing.assert_array_equal(ours, theirs.astype(ours.dtype), err_msg=f"{i} {t}")


SHORT = {"max_episode_steps": 30}
LIVES = {"episodic_life": True, "img_height": 20, "img_width": 20}


# EnvPool gives float64 bounds to float32 spaces.
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("CartPole-v1", SHORT),
        ("Pendulum-v1", SHORT),
        ("HalfCheetah-v4", SHORT),
        ("Breakout-v5", LIVES),
    ],
)
def test_envpool_gives_its_own_stream_without_the_reset_steps(name, options):
    envpool = pytest.importorskip("envpool")
    seeds = [11, 12, 13, 14]
    env = EnvFactory(f"envpool:{name}", options).batched(4)
    actions = random_actions(env.spec, 4, 100)
    box = isinstance(env.spec.action_space, gymnasium.spaces.Box)
    low, high = (env.spec.action_space.low, env.spec.action_space.high) if box else (0, 3)
    inside = [(np.clip(leaf, low, high),) for (leaf,) in actions]
    pool = envpool.make_gymnasium(name, num_envs=4, seed=seeds, num_threads=1, **options)
    found = run(env, seeds, inside)
    assert_same_transitions(found, inside, without_reset_steps(pool, {}, inside))
    assert found.episodes >= 12
    assert_same(run(env, seeds, inside), found)


def lives_at_the_ends(env, num_steps):
    """Return how many episodes ended with how many lives left."""
    told = []
    env.reset(range(env.num_envs), rows(env.spec.observation, env.num_envs))
    raw = env._env.unwrapped
    step = raw.step

    def listening(actions, *ids):
        result = step(actions, *ids)
        _, _, terminated, truncated, infos = result
        told.extend(infos["lives"][terminated | truncated].tolist())
        return result

    raw.step = listening
    for action in random_actions(env.spec, env.num_envs, num_steps):
        env.step(views(env.spec, env.num_envs, action))
    return Counter(told)


def wrapped_pool(num_envs, seeds=None):
    envpool = pytest.importorskip("envpool")
    return gymnasium.wrappers.vector.RecordEpisodeStatistics(
        envpool.make_gymnasium(
            "Breakout-v5",
            num_envs=num_envs,
            num_threads=1,
            seed=[int(seed) for seed in seeds or range(num_envs)],
            **LIVES,
        )
    )


def small_breakout(num_envs):
    return gymnasium.make_vec(
        "ALE/Breakout-v5",
        num_envs,
        "vector_entry_point",
        life_loss_info=True,
        num_threads=1,
        noop_max=0,
        img_height=20,
        img_width=20,
    )


@pytest.mark.parametrize("make", [wrapped_pool, small_breakout])
def test_game_goes_on_where_the_loss_of_a_life_ends_an_episode(make):
    pytest.importorskip("ale_py")
    env = EnvFactory(make).batched(4)
    counted = lives_at_the_ends(env, 160)
    env.close()
    assert counted[4] == 4
    assert counted[3] == 4
    assert counted[2] >= 1


def test_lost_lives_are_refused_where_ale_loses_the_last_observation():
    pytest.importorskip("ale_py")
    options = {"life_loss_info": True, "autoreset_mode": "SameStep"}
    with pytest.raises(EnvError, match="life_loss_info needs autoreset_mode NextStep"):
        EnvFactory("vector:ALE/Breakout-v5", options).batched(2)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_atari_vector_env_gives_its_own_stream_without_the_reset_steps(mode):
    pytest.importorskip("ale_py")
    options = {"episodic_life": True, "noop_max": 0, "img_height": 20, "img_width": 20}
    factory = EnvFactory("vector:ALE/Breakout-v5", {**options, "autoreset_mode": mode})
    env = factory.batched(3)
    actions = random_actions(env.spec, 3, 150)
    raw = EnvFactory("vector:ALE/Breakout-v5", options).batched(3)._env
    found = run(env, (3, 4, 5), actions)
    expected = without_reset_steps(raw, {"seed": np.array([3, 4, 5])}, actions)
    assert_same_transitions(found, actions, expected)
    assert found.episodes >= 5
