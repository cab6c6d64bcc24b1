"""States and actions where something changes: clipping, angle wrap, walls, goals, thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.envs.classic_control.control_batch import ClassicControlBatch
from fastrl.envs.tensor import make_tensor
from tests.envs.classic_control.gymnasium_twin import NAMES, GymnasiumTwin
from tests.envs.classic_control.players import put
from tests.envs.stepping import views

PI = math.pi


def number(low, high, *edges):
    """Any float32 within bounds, often exactly on an edge or next to it."""
    close = [np.float32(edge) for edge in edges]
    close += [np.nextafter(edge, np.float32(way)) for edge in close for way in (-99, 99)]
    anywhere = st.floats(np.float32(low).item(), np.float32(high).item(), width=32)
    return st.one_of(anywhere, st.sampled_from([edge.item() for edge in close]))


STATES = {
    "Acrobot-v1": st.tuples(
        number(-PI, PI, -PI, PI, 0, 2.0943952),
        number(-PI, PI, -PI, PI, 0),
        number(-4 * PI, 4 * PI, -4 * PI, 4 * PI),
        number(-9 * PI, 9 * PI, -9 * PI, 9 * PI),
    ),
    "CartPole-v1": st.tuples(
        number(-2.6, 2.6, -2.4, 2.4, 0),
        number(-5, 5, 0),
        number(-0.25, 0.25, -0.20943951, 0.20943951, 0),
        number(-5, 5, 0),
    ),
    "MountainCar-v0": st.tuples(
        number(-1.2, 0.6, -1.2, 0.5, 0.43, 0.6), number(-0.07, 0.07, -0.07, 0, 0.07)
    ),
    "MountainCarContinuous-v0": st.tuples(
        number(-1.2, 0.6, -1.2, 0.45, 0.38, 0.6), number(-0.07, 0.07, -0.07, 0, 0.07)
    ),
    "Pendulum-v1": st.tuples(number(-PI, PI, -PI, PI, 0, 3.0), number(-8, 8, -8, 0, 8)),
}
ACTIONS = {
    "Acrobot-v1": st.integers(0, 2),
    "CartPole-v1": st.integers(0, 1),
    "MountainCar-v0": st.integers(0, 2),
    "MountainCarContinuous-v0": number(-3, 3, -1, 0, 1),
    "Pendulum-v1": number(-4, 4, -2, 0, 2),
}
# Of what is added up to a result, which may be far smaller itself: the fastest velocity.
SCALES = {"Acrobot-v1": 9 * PI}
NUM_ENVS = 16
TWINS = {name: GymnasiumTwin(name, NUM_ENVS) for name in NAMES}
BATCHES = {name: ClassicControlBatch(name, NUM_ENVS) for name in NAMES}


def tensor_step(name, states, actions):
    env, params = make_tensor(name)
    time = torch.zeros(len(states), dtype=torch.int32)
    state = env.state_type(*torch.from_numpy(states).unbind(-1), time)
    noise = env.draw_noise((len(states),))
    _, _, reward, terminated, _, info = env.step(state, torch.from_numpy(actions), noise, params)
    return info["final_observation"].numpy(), reward.numpy(), terminated.numpy()


def batch_step(name, states, actions):
    env = BATCHES[name]
    put(env, states)
    seen = views(env.spec, len(states), (actions,))
    env.advance(seen, restart=False)
    return seen.observation[0], seen.reward, seen.terminated


def assert_equal_to_rounding(ours, name, states, actions):
    """Hold a step against gymnasium's from the same states.

    What rounding may change is seen by nudging gymnasium's state by a few ulps of float32: little
    anywhere, but all on the very edge, and much in Acrobot where a stage of the integrator reaches
    hundreds of rad/s.
    """
    exact, few = states.astype(np.float64), 1e-6
    expected, *others = (
        np.column_stack(TWINS[name].step(nudged, actions))
        for nudged in (exact, exact * (1 + few), exact * (1 - few), exact + few, exact - few)
    )
    spread = np.max([np.abs(other - expected) for other in others], axis=0)
    error = np.abs(np.column_stack(ours) - expected)
    wrong = (error > 1e-6 * (SCALES.get(name, 1) + np.abs(expected)) + 4 * spread).any(axis=1)
    assert not wrong.any(), (states[wrong], actions[wrong], error[wrong])


@pytest.mark.parametrize("step", [tensor_step, batch_step])
@pytest.mark.parametrize("name", NAMES)
@settings(derandomize=True)
@given(data=st.data())
def test_step_from_any_state_equals_gymnasium(name, step, data):
    strategy = st.lists(st.tuples(STATES[name], ACTIONS[name]), min_size=NUM_ENVS)
    drawn = data.draw(strategy)[:NUM_ENVS]
    states = np.array([state for state, _ in drawn], np.float32)
    actions = np.array([action for _, action in drawn])
    if actions.dtype != np.int64:
        actions = actions.astype(np.float32)[:, None]

    ours = step(name, states, actions)
    space = BATCHES[name].spec.action_space
    if step is batch_step and space.shape:
        actions = np.clip(actions, space.low, space.high)
    assert_equal_to_rounding(ours, name, states, actions)


@pytest.mark.parametrize("step", [tensor_step, batch_step])
@pytest.mark.parametrize(
    ("name", "state", "action", "terminated"),
    [
        ("CartPole-v1", (2.39, 1.0, 0, 0), 0, True),
        ("CartPole-v1", (-2.39, -1.0, 0, 0), 0, True),
        ("CartPole-v1", (0, 0, 0.2, 1.0), 0, True),
        ("CartPole-v1", (0, 0, -0.2, -1.0), 0, True),
        ("CartPole-v1", (2.39, 0, 0.2, 0), 0, False),
        ("MountainCar-v0", (0.48, 0.05), 2, True),
        ("MountainCar-v0", (0.48, -0.05), 2, False),
        ("MountainCarContinuous-v0", (0.43, 0.05), 1.0, True),
        ("Acrobot-v1", (3.1, 0.0, 0, 0), 1, True),
        ("Acrobot-v1", (1.6, 0.0, 0, 0), 1, False),
        ("Pendulum-v1", (3.1, 8.0), 2.0, False),
    ],
)
def test_known_ends(name, step, state, action, terminated):
    states = np.tile(np.array(state, np.float32), (NUM_ENVS, 1))
    actions = np.array([action] * NUM_ENVS)
    if actions.dtype != np.int64:
        actions = actions.astype(np.float32)[:, None]
    assert (step(name, states, actions)[2] == terminated).all()


def test_car_stops_at_the_left_wall():
    for name in ("MountainCar-v0", "MountainCarContinuous-v0"):
        actions = (
            np.zeros(1, np.int64) if name == "MountainCar-v0" else np.zeros((1, 1), np.float32)
        )
        observation, _, _ = tensor_step(name, np.array([(-1.19, -0.07)], np.float32), actions)
        np.testing.assert_array_equal(observation, np.array([(-1.2, 0)], np.float32))


def test_pendulum_keeps_its_angle_within_half_a_turn():
    env, params = make_tensor("Pendulum-v1")
    state = env.state_type(torch.tensor(3.1), torch.tensor(8.0), torch.tensor(0))
    for _ in range(100):
        state, _, _ = env.transition(state, torch.tensor([2.0]), params)
        assert abs(state.theta) <= PI + 1e-6
