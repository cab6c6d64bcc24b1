"""Samplers take every environment as it is, and refuse those that do not go together."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrl
from fastrl.envs.env_factory import EnvFactory
from fastrl.errors import EnvError, WorkerError
from fastrl.sampling import ProcessSampler, SerialSampler
from fastrl.spec import EnvSpec, Topology
from fastrl.training.evaluation import EvaluationProtocol, evaluate
from fastrl.workers.plan import SamplingPlan
from tests.counting_env import CountingEnv
from tests.sampling.counting import CountingEnvs, CountingPolicy, make_plan


def plan_of(function, topology, length=4, **changes):
    factory = EnvFactory(function, **changes)
    return SamplingPlan(
        env_spec=factory.probe(),
        topology=topology,
        rollout_length=length,
        seed=0,
        build_env=factory.batched,
        build_model=None,
    )


def in_turn(*builds):
    """A factory whose n-th environment is built by the n-th function, the first one for a probe."""
    calls = []

    def build():
        calls.append(None)
        return builds[max(0, len(calls) - 2) % len(builds)]()

    return build


@settings(max_examples=8)
@given(
    limits=st.lists(st.one_of(st.none(), st.integers(1, 6)), min_size=4, max_size=4),
    groups=st.sampled_from([1, 2]),
    workers=st.sampled_from([1, 2]),
)
def test_every_environment_keeps_its_own_time_limit(limits, groups, workers):
    def build_with(limit):
        env = CountingEnv(ending="never")
        return env if limit is None else TimeLimit(env, limit)

    build = in_turn(*(lambda limit=limit: build_with(limit) for limit in limits))
    topology = Topology(4 // workers, workers, 0, groups)
    with SerialSampler(plan_of(build, topology, length=13)) as sampler:
        truncated = sampler.collect().truncated.numpy()
    for slot, limit in enumerate(limits):
        ends = [] if limit is None else list(range(limit - 1, 13, limit))
        assert np.flatnonzero(truncated[:, slot]).tolist() == ends


class Spaced(CountingEnv):
    """Has other spaces than a `CountingEnv`."""

    def __init__(self, **others):
        super().__init__()
        for name, space in others.items():
            setattr(self, name, space)


LOW, HIGH = np.full(40, -1, np.float32), np.ones(40, np.float32)
TALLER = HIGH.copy()
TALLER[7] = 3
WIDE = {"observation_space": spaces.Box(LOW, HIGH)}
DIFFERENT = [
    ({}, {"action_space": spaces.Discrete(9)}, r"action_space Discrete\(9\), the first .*\(5\)"),
    ({}, {"observation_space": spaces.Discrete(3)}, r"observation_space Discrete\(3\), the first"),
    (WIDE, {"observation_space": spaces.Box(LOW, TALLER)}, r"\(high\[7\] is 3\.0, not 1\.0\)"),
    (
        {"observation_space": spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2))},
        {"observation_space": spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(3))},
        r"\(Discrete\(3\) and Discrete\(2\) at 'b'\)",
    ),
]


@pytest.mark.parametrize(
    ("topology", "odd"), [(Topology(4, 1), 1), (Topology(2, 2), 3), (Topology(4, 1, 0, 4), 3)]
)
@pytest.mark.parametrize(("usual", "other", "told"), DIFFERENT)
def test_differing_spaces_are_refused_in_one_line(usual, other, told, topology, odd):
    builds = [lambda: Spaced(**usual)] * 4
    builds[odd] = lambda: Spaced(**other)
    with (
        pytest.raises(EnvError, match=rf"^env {odd} of .*{told}") as caught,
        SerialSampler(plan_of(in_turn(*builds), topology)),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_environments_that_differ_from_the_one_that_was_probed_are_refused():
    builds = iter([CountingEnv, *[lambda: Spaced(action_space=spaces.Discrete(9))] * 2])
    with (
        pytest.raises(EnvError, match=r"^env 0 of .*Discrete\(9\), the first has Discrete\(5\)"),
        SerialSampler(plan_of(lambda: next(builds)(), Topology(2, 1))),
    ):
        pass


def test_worker_process_names_the_environment_that_differs():
    builds = [CountingEnv, CountingEnv, lambda: Spaced(action_space=spaces.Discrete(9))]
    plan = plan_of(in_turn(*builds), Topology(3, 2))
    with (
        pytest.raises(WorkerError, match=r"EnvError: env [25] of .* has the action_space"),
        ProcessSampler(plan) as sampler,
    ):
        sampler.collect()


def test_factory_that_returns_another_kind_is_refused():
    builds = [CountingEnv, lambda: gymnasium.make_vec("CartPole-v1", 1)]
    with pytest.raises(EnvError, match=r"env 2 of .* is a .*Vector.*, the first is a single"):
        EnvFactory(in_turn(*builds), action_mask="off").batched(3)


class Old:
    """Has the methods of old gym, so that each call of a factory gets another adapter."""

    observation_space, action_space = CountingEnv().observation_space, spaces.Discrete(5)

    def __init__(self, env):
        self.reset, self.step = env.reset, env.step

    def close(self):
        pass


OLD = Old(CountingEnv())
SHARED = [
    lambda one: one,
    lambda one: OLD,
    lambda one: TimeLimit(one, 5),
    lambda one: gymnasium.wrappers.OrderEnforcing(gymnasium.wrappers.TransformReward(one, abs)),
]


@pytest.mark.parametrize(
    "topology", [Topology(2, 1), Topology(1, 2), Topology(2, 1, 0, 2)], ids=str
)
@pytest.mark.parametrize("wrap", SHARED)
def test_the_same_object_twice_is_refused(wrap, topology):
    one = CountingEnv()
    plan = plan_of(lambda: wrap(one), topology)
    with pytest.raises(EnvError, match=r"^env 1 is the same object as"), SerialSampler(plan):
        pass


def test_the_same_batch_twice_is_refused():
    batch = CountingEnvs(2)
    plan = make_plan(Topology(4, 1, 0, 2), 4, build_env=lambda num_envs: batch)
    with pytest.raises(EnvError, match=r"^env 2 is the same object as env 0"), SerialSampler(plan):
        pass


def test_the_same_vector_environment_twice_is_refused():
    one = gymnasium.make_vec("CartPole-v1", 1)
    plan = plan_of(lambda num_envs: one, Topology(2, 1, 0, 2))
    with pytest.raises(EnvError, match=r"^env 1 is the same object as"), SerialSampler(plan):
        pass


def test_numbers_of_a_refusal_are_those_of_the_run():
    shared = CountingEnv()
    builds = [CountingEnv, CountingEnv, CountingEnv, lambda: shared]
    with (
        pytest.raises(EnvError, match=r"^env 4 is the same object as env 3"),
        SerialSampler(plan_of(in_turn(*builds, lambda: shared), Topology(3, 2))),
    ):
        pass


def test_an_environment_may_be_taken_again_after_it_was_closed():
    one = CountingEnv()
    plan = plan_of(lambda: one, Topology(1, 1))
    for _ in range(2):
        with SerialSampler(plan) as sampler:
            sampler.collect()


def test_one_object_is_no_environment_of_several_threads():
    one = CountingEnv()
    with pytest.raises(EnvError, match="is the same object as an environment that is in use"):
        fastrl.make_vec(lambda: one, 2, backend="threads", num_workers=2)


def test_evaluation_refuses_the_same_object_twice_and_other_actions():
    one, protocol = CountingEnvs(1), EvaluationProtocol(2, 0)
    with pytest.raises(EnvError, match="env 1 is the same object as env 0"):
        evaluate(CountingPolicy(), one.spec, lambda num_envs: one, protocol)
    spec = EnvSpec("counting", one.spec.observation_space, spaces.Discrete(2))
    with pytest.raises(EnvError, match=r"for evaluation has the action_space Discrete\(5\)"):
        evaluate(CountingPolicy(), spec, CountingEnvs, protocol)


@pytest.mark.parametrize("backend", ["serial", "threads", "processes"])
def test_actions_of_make_vec_are_the_same_where_observations_may_differ(backend):
    kwargs = [{}, {"action_space": spaces.Discrete(9)}]
    with pytest.raises(EnvError, match=r"env 1 of .* has the action_space Discrete\(9\)"):
        fastrl.make_vec(Spaced, 2, backend=backend, env_kwargs=kwargs)
