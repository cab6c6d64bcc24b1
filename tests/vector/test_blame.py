"""Every failure of `make_vec` names the environment that is to blame, its action and its seed."""

import asyncio
from functools import partial

import numpy as np
import pytest
from gymnasium import spaces

import fastrl
from fastrl.envs import Family
from fastrl.errors import EnvError
from fastrl.vector import EnvFailure, make_concurrent
from fastrl.vector.exchange import Exchange
from fastrl.vector.groups import NativeGroup
from fastrl.vector.vector_plan import InstanceSpec, NativeBuild
from tests.misfits import MISFITS, RESET_MISFITS, MisfitEnv
from tests.vector.envs import WaitingEnv

ACTIONS = np.array([3, 4, 5])
CHEAP = ("serial", "threads")


def make(backend, kind, odd, in_reset=None, **kwargs):
    factory = partial(MisfitEnv, kind, 10 + odd, in_reset)
    return fastrl.make_vec(factory, 3, backend=backend, num_workers=1, **kwargs)


def assert_blamed(error, odd, action):
    assert (error.env_index, error.action, error.seed) == (odd, action, 10 + odd)
    assert str(error).startswith(f"env {odd} of ")
    assert f"last seed {10 + odd}" in str(error)
    assert "\n" not in str(error.args[0])


@pytest.mark.parametrize("kind", MISFITS)
@pytest.mark.parametrize("backend", CHEAP)
def test_misfit_of_a_step(backend, kind):
    odd = list(MISFITS).index(kind) % 3
    with make(backend, kind, odd) as envs:
        envs.reset(seed=10)
        envs.step(ACTIONS)
        with pytest.raises(EnvFailure, match=r"in step\(action=") as caught:
            envs.step(ACTIONS)
    assert_blamed(caught.value, odd, 3 + odd)


@pytest.mark.parametrize("kind", ["shape", "no reward"])
def test_misfit_of_a_step_in_a_process(kind):
    with make("processes", kind, 1) as envs:
        envs.reset(seed=10)
        envs.step(ACTIONS)
        with pytest.raises(EnvFailure) as caught:
            envs.step(ACTIONS)
    assert_blamed(caught.value, 1, 4)


@pytest.mark.parametrize("kind", ["shape", "no reward", "error"])
@pytest.mark.parametrize("backend", CHEAP)
def test_misfit_of_an_environment_that_was_sent(backend, kind):
    with make(backend, kind, 1) as envs:
        envs.reset(seed=10)
        envs.send(ACTIONS)
        envs.recv()
        envs.send(ACTIONS)
        with pytest.raises(EnvFailure) as caught:
            envs.recv()
    assert_blamed(caught.value, 1, 4)


@pytest.mark.parametrize("kind", RESET_MISFITS)
@pytest.mark.parametrize("backend", CHEAP)
def test_misfit_of_a_reset(backend, kind):
    told = pytest.raises(EnvFailure, match=r"in reset(\n|$)")
    with make(backend, kind, 1, in_reset=0) as envs, told as caught:
        envs.reset(seed=10)
    assert_blamed(caught.value, 1, None)
    with make(backend, kind, 1, in_reset=0) as envs:
        envs.async_reset(seed=10)
        with pytest.raises(EnvFailure, match=r"in reset(\n|$)") as caught:
            envs.recv()
    assert_blamed(caught.value, 1, None)


@pytest.mark.parametrize(("mode", "steps"), [("same_step", 1), ("next_step", 2)])
@pytest.mark.parametrize("kind", RESET_MISFITS)
@pytest.mark.parametrize("backend", CHEAP)
def test_misfit_of_the_reset_after_an_episode(backend, kind, mode, steps):
    with make(backend, kind, 1, in_reset=1, autoreset=mode) as envs:
        envs.reset(seed=10)
        for _ in range(steps):
            envs.step(ACTIONS)
        with pytest.raises(EnvFailure) as caught:
            envs.step(ACTIONS)
    assert_blamed(caught.value, 1, 4)


@pytest.mark.parametrize("kind", MISFITS)
def test_misfit_of_a_step_among_concurrent_ones(kind):
    async def run():
        async with make_concurrent(partial(MisfitEnv, kind, 11), 3) as envs:
            await envs.reset(seed=10)
            await envs.step(ACTIONS)
            with pytest.raises(EnvFailure) as caught:
                await envs.step(ACTIONS)
        return caught.value

    error = asyncio.run(run())
    assert (error.env_index, error.action, error.seed) == (1, 4, 11)


class Careful(WaitingEnv):
    """Takes finite actions only."""

    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)

    def step(self, action):
        assert np.isfinite(action).all()
        return np.zeros(1), float(action[0]), False, False, {}


@pytest.mark.parametrize("backend", CHEAP)
def test_action_that_is_not_finite_is_said_to_be(backend):
    with fastrl.make_vec(Careful, 2, backend=backend) as envs:
        envs.reset()
        with pytest.raises(EnvFailure, match=r"env 1 .*action is not finite, so what chose it"):
            envs.step(np.array([[1.0], [np.inf]]))


def test_native_batch_names_the_environment_that_its_error_names():
    class Batch:
        single_observation_space, single_action_space = spaces.Discrete(2), spaces.Discrete(3)

        def step(self, actions):
            raise EnvError(f"env {int(actions.argmax())} of 'batch': action {max(actions)} is odd")

    batch, at = Batch(), [0]
    native = NativeBuild(Family(), "batch", {}, ())
    spec = InstanceSpec(batch.single_observation_space, batch.single_action_space)
    exchange = Exchange(spec, 4, shared=False)
    exchange.action[0][:] = [0, 0, 1, 2]
    with pytest.raises(EnvError, match=r"^env 3 of 'batch': action 2 is odd"):
        NativeGroup(batch, exchange, range(2, 4), at, native).step(0)
    assert at == [3]


def test_rewards_that_are_not_numbers_but_nan_pass():
    class Lost(Careful):
        def step(self, action):
            return np.zeros(1), np.array([np.nan]) if action[0] else 1.0, False, False, {}

    with fastrl.make_vec(Lost, 2, backend="serial") as envs:
        envs.reset()
        assert np.isnan(envs.step(np.array([[0.0], [1.0]]))[1]).tolist() == [False, True]
