"""The loops that differ between tasks, as source for the compiler; `kernels` says what they do.

Dynamics, parameters and their sources are those of the tensor programs beside this file. Floats
are float32 throughout: a literal without ``f32`` would make all that it touches double.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import float32 as f32
from numpy.typing import NDArray

from fastrl.envs.classic_control.acrobot import AcrobotParams
from fastrl.envs.classic_control.cartpole import CartPoleParams
from fastrl.envs.classic_control.kernel_parts import (
    at,
    between,
    clipped,
    column,
    inlined,
    sincos,
    wrapped,
)
from fastrl.envs.classic_control.mountain_car import MountainCarParams
from fastrl.envs.classic_control.mountain_car_continuous import MountainCarContinuousParams
from fastrl.envs.classic_control.pendulum import PendulumParams


class Batch(NamedTuple):
    """n environments of one kind.

    Attributes:
        params: float32 ``[P]`` if shared, else ``[P, n]``, in the order of the parameters' class.
        state: ``[S, n]`` float32, in the order of the state's class; changed.
        time: ``[n]`` int32: steps since the episode began; changed.
        time_limit: Steps after which an episode is truncated.
        noise: What episodes begin from; see `kernel_parts.drawn`.
        noise_size: Random numbers that the beginning of an episode takes.
    """

    params: NDArray[np.float32]
    state: NDArray[np.float32]
    time: NDArray[np.int32]
    time_limit: int
    noise: NDArray[Any]
    noise_size: int


class Views(NamedTuple):
    """What one step reads and writes.

    Attributes:
        action: ``[n]`` int64, or float32 for continuous actions.
        observation: ``[n, k]`` float32: of what follows, be it the next episode's first.
        reward: ``[n]`` float32.
        terminated: ``[n]`` bool.
        truncated: ``[n]`` bool; never set where ``terminated`` is.
        final_observation: ``[n, k]`` float32; written where an episode ended.
    """

    action: NDArray[Any]
    observation: NDArray[np.float32]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    final_observation: NDArray[np.float32]


class Loops(NamedTuple):
    """What `kernels` compiles for one task.

    Attributes:
        advance: Moves environments first to last on by one step; writes reward and ``terminated``.
        observe: Writes the observations of environments first to last.
        initialize: Puts one environment into the first state of an episode.
    """

    advance: Callable[..., None]
    observe: Callable[..., None]
    initialize: Callable[..., None]


def _rows(params_type: Any) -> Any:  # noqa: ANN401
    """Return a constant that names the row of each parameter."""
    return params_type(*range(len(params_type._fields)))


_CARTPOLE = _rows(CartPoleParams)
_PENDULUM = _rows(PendulumParams)
_CAR = _rows(MountainCarParams)
_THROTTLE = _rows(MountainCarContinuousParams)
_ACROBOT = _rows(AcrobotParams)


def _advance_cartpole(batch: Batch, views: Views, first: int, last: int) -> None:
    gravity = column(batch.params, _CARTPOLE.gravity, first, last)
    masscart = column(batch.params, _CARTPOLE.masscart, first, last)
    masspole = column(batch.params, _CARTPOLE.masspole, first, last)
    length = column(batch.params, _CARTPOLE.length, first, last)
    force_mag = column(batch.params, _CARTPOLE.force_mag, first, last)
    tau = column(batch.params, _CARTPOLE.tau, first, last)
    theta_threshold = column(batch.params, _CARTPOLE.theta_threshold, first, last)
    x_threshold = column(batch.params, _CARTPOLE.x_threshold, first, last)
    integrator = column(batch.params, _CARTPOLE.kinematics_integrator, first, last)
    sutton_barto = column(batch.params, _CARTPOLE.sutton_barto_reward, first, last)
    xs, x_dots = batch.state[0, first:last], batch.state[1, first:last]
    thetas, theta_dots = batch.state[2, first:last], batch.state[3, first:last]
    action, reward = views.action[first:last], views.reward[first:last]
    terminated = views.terminated[first:last]
    for i in range(xs.size):
        x_dot, theta_dot, dt = x_dots[i], theta_dots[i], at(tau, i)
        sine, cosine = sincos(thetas[i])
        force = at(force_mag, i) if action[i] == 1 else -at(force_mag, i)
        total = at(masspole, i) + at(masscart, i)
        lever = at(masspole, i) * at(length, i)
        push = (force + lever * theta_dot * theta_dot * sine) / total
        theta_acceleration = (at(gravity, i) * sine - cosine * push) / (
            at(length, i) * (f32(4 / 3) - at(masspole, i) * cosine * cosine / total)
        )
        x_acceleration = push - lever * theta_acceleration * cosine / total
        x_dots[i] = x_dot + dt * x_acceleration
        theta_dots[i] = theta_dot + dt * theta_acceleration
        explicit = at(integrator, i) == f32(0)
        x = xs[i] + dt * (x_dot if explicit else x_dots[i])
        theta = thetas[i] + dt * (theta_dot if explicit else theta_dots[i])
        xs[i], thetas[i] = x, theta
        done = (abs(x) > at(x_threshold, i)) | (abs(theta) > at(theta_threshold, i))
        terminated[i] = done
        paid = f32(-1) if done else f32(0)
        reward[i] = f32(1) if at(sutton_barto, i) == f32(0) else paid


def _observe_cartpole(batch: Batch, target: NDArray[np.float32], first: int, last: int) -> None:
    xs, x_dots = batch.state[0, first:last], batch.state[1, first:last]
    thetas, theta_dots = batch.state[2, first:last], batch.state[3, first:last]
    rows = target[first:last]
    for i in range(xs.size):
        rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3] = xs[i], x_dots[i], thetas[i], theta_dots[i]


def _initialize_cartpole(batch: Batch, env: int) -> None:
    bound = at(column(batch.params, _CARTPOLE.reset_bound, env, env + 1), 0)
    center = at(column(batch.params, _CARTPOLE.reset_center, env, env + 1), 0)
    low, high = center - bound, center + bound
    for quantity in range(4):
        batch.state[quantity, env] = between(batch.noise, env, quantity, low, high)


def _advance_pendulum(batch: Batch, views: Views, first: int, last: int) -> None:
    gravity = column(batch.params, _PENDULUM.gravity, first, last)
    mass = column(batch.params, _PENDULUM.mass, first, last)
    length = column(batch.params, _PENDULUM.length, first, last)
    dt = column(batch.params, _PENDULUM.dt, first, last)
    max_speed = column(batch.params, _PENDULUM.max_speed, first, last)
    max_torque = column(batch.params, _PENDULUM.max_torque, first, last)
    thetas, theta_dots = batch.state[0, first:last], batch.state[1, first:last]
    action, reward = views.action[first:last], views.reward[first:last]
    terminated = views.terminated[first:last]
    for i in range(thetas.size):
        theta, theta_dot = wrapped(thetas[i]), theta_dots[i]
        torque = clipped(action[i], at(max_torque, i))
        reward[i] = -(
            theta * theta + f32(0.1) * theta_dot * theta_dot + f32(0.001) * torque * torque
        )
        sine, _ = sincos(theta)
        pull = f32(3) * at(gravity, i) / (f32(2) * at(length, i)) * sine
        twist = f32(3) / (at(mass, i) * at(length, i) * at(length, i)) * torque
        theta_dot = clipped(theta_dot + (pull + twist) * at(dt, i), at(max_speed, i))
        thetas[i] = wrapped(theta + theta_dot * at(dt, i))
        theta_dots[i] = theta_dot
        terminated[i] = False


def _observe_pendulum(batch: Batch, target: NDArray[np.float32], first: int, last: int) -> None:
    thetas, theta_dots = batch.state[0, first:last], batch.state[1, first:last]
    rows = target[first:last]
    for i in range(thetas.size):
        sine, cosine = sincos(thetas[i])
        rows[i, 0], rows[i, 1], rows[i, 2] = cosine, sine, theta_dots[i]


def _initialize_pendulum(batch: Batch, env: int) -> None:
    angle = at(column(batch.params, _PENDULUM.reset_angle, env, env + 1), 0)
    speed = at(column(batch.params, _PENDULUM.reset_speed, env, env + 1), 0)
    batch.state[0, env] = between(batch.noise, env, 0, -angle, angle)
    batch.state[1, env] = between(batch.noise, env, 1, -speed, speed)


@inlined
def _driven(
    position: float, velocity: float, least: float, greatest: float, max_speed: float
) -> tuple[float, float]:
    """Return position and velocity of a car that has just changed its velocity."""
    velocity = clipped(velocity, max_speed)
    position = min(max(position + velocity, least), greatest)
    stopped = (position == least) & (velocity < f32(0))
    return position, (f32(0) if stopped else velocity)  # type: ignore[return-value]


def _advance_mountain_car(batch: Batch, views: Views, first: int, last: int) -> None:
    least = column(batch.params, _CAR.min_position, first, last)
    greatest = column(batch.params, _CAR.max_position, first, last)
    max_speed = column(batch.params, _CAR.max_speed, first, last)
    goal_velocity = column(batch.params, _CAR.goal_velocity, first, last)
    gravity = column(batch.params, _CAR.gravity, first, last)
    goal_position = column(batch.params, _CAR.goal_position, first, last)
    force = column(batch.params, _CAR.force, first, last)
    positions, velocities = batch.state[0, first:last], batch.state[1, first:last]
    action, reward = views.action[first:last], views.reward[first:last]
    terminated = views.terminated[first:last]
    for i in range(positions.size):
        _, slope = sincos(f32(3) * positions[i])
        push = f32(action[i] - 1) * at(force, i) - slope * at(gravity, i)
        position, velocity = _driven(
            positions[i], velocities[i] + push, at(least, i), at(greatest, i), at(max_speed, i)
        )
        positions[i], velocities[i] = position, velocity
        terminated[i] = (position >= at(goal_position, i)) & (velocity >= at(goal_velocity, i))
        reward[i] = f32(-1)


def _observe_mountain_car(batch: Batch, target: NDArray[np.float32], first: int, last: int) -> None:
    positions, velocities = batch.state[0, first:last], batch.state[1, first:last]
    rows = target[first:last]
    for i in range(positions.size):
        rows[i, 0], rows[i, 1] = positions[i], velocities[i]


def _initialize_mountain_car(batch: Batch, env: int) -> None:
    low = at(column(batch.params, _CAR.reset_low, env, env + 1), 0)
    high = at(column(batch.params, _CAR.reset_high, env, env + 1), 0)
    batch.state[0, env] = between(batch.noise, env, 0, low, high)
    batch.state[1, env] = f32(0)


def _advance_mountain_car_continuous(batch: Batch, views: Views, first: int, last: int) -> None:
    least = column(batch.params, _THROTTLE.min_position, first, last)
    greatest = column(batch.params, _THROTTLE.max_position, first, last)
    max_speed = column(batch.params, _THROTTLE.max_speed, first, last)
    goal_velocity = column(batch.params, _THROTTLE.goal_velocity, first, last)
    gravity = column(batch.params, _THROTTLE.gravity, first, last)
    goal_position = column(batch.params, _THROTTLE.goal_position, first, last)
    power = column(batch.params, _THROTTLE.power, first, last)
    max_action = column(batch.params, _THROTTLE.max_action, first, last)
    positions, velocities = batch.state[0, first:last], batch.state[1, first:last]
    action, reward = views.action[first:last], views.reward[first:last]
    terminated = views.terminated[first:last]
    for i in range(positions.size):
        _, slope = sincos(f32(3) * positions[i])
        throttle = clipped(action[i], at(max_action, i))
        push = throttle * at(power, i) - at(gravity, i) * slope
        position, velocity = _driven(
            positions[i], velocities[i] + push, at(least, i), at(greatest, i), at(max_speed, i)
        )
        positions[i], velocities[i] = position, velocity
        arrived = (position >= at(goal_position, i)) & (velocity >= at(goal_velocity, i))
        terminated[i] = arrived
        reward[i] = (f32(100) if arrived else f32(0)) - f32(0.1) * action[i] * action[i]


def _initialize_mountain_car_continuous(batch: Batch, env: int) -> None:
    low = at(column(batch.params, _THROTTLE.reset_low, env, env + 1), 0)
    high = at(column(batch.params, _THROTTLE.reset_high, env, env + 1), 0)
    batch.state[0, env] = between(batch.noise, env, 0, low, high)
    batch.state[1, env] = f32(0)


@inlined
def _accelerations(
    angles: tuple[float, float],
    velocities: tuple[float, float],
    torque: float,
    body: tuple[float, ...],
) -> tuple[float, float]:
    """Return the accelerations of both links.

    ``body`` has what depends on parameters alone; see `_advance_acrobot`.
    """
    velocity1, velocity2 = velocities
    own1, own2, coupling, weight1, weight2, thrown = body
    sine1, cosine1 = sincos(angles[0])
    sine2, cosine2 = sincos(angles[1])
    d1 = own1 + f32(2) * coupling * cosine2
    d2 = own2 + coupling * cosine2
    swing = coupling * sine2
    phi2 = weight2 * (sine1 * cosine2 + cosine1 * sine2)
    phi1 = weight1 * sine1 + phi2 - swing * velocity2 * (velocity2 + f32(2) * velocity1)
    ratio = d2 / d1
    push = thrown * sine2 * velocity1 * velocity1
    acceleration2 = (torque + ratio * phi1 - push - phi2) / (own2 - d2 * ratio)
    return -(d2 * acceleration2 + phi1) / d1, acceleration2


def _advance_acrobot(batch: Batch, views: Views, first: int, last: int) -> None:
    gravity = column(batch.params, _ACROBOT.gravity, first, last)
    length1 = column(batch.params, _ACROBOT.length1, first, last)
    mass1 = column(batch.params, _ACROBOT.mass1, first, last)
    mass2 = column(batch.params, _ACROBOT.mass2, first, last)
    center1 = column(batch.params, _ACROBOT.center1, first, last)
    center2 = column(batch.params, _ACROBOT.center2, first, last)
    inertia = column(batch.params, _ACROBOT.inertia, first, last)
    dt = column(batch.params, _ACROBOT.dt, first, last)
    torque = column(batch.params, _ACROBOT.torque, first, last)
    max_velocity1 = column(batch.params, _ACROBOT.max_velocity1, first, last)
    max_velocity2 = column(batch.params, _ACROBOT.max_velocity2, first, last)
    goal_height = column(batch.params, _ACROBOT.goal_height, first, last)
    book_or_nips = column(batch.params, _ACROBOT.book_or_nips, first, last)
    theta1s, theta2s = batch.state[0, first:last], batch.state[1, first:last]
    velocity1s, velocity2s = batch.state[2, first:last], batch.state[3, first:last]
    action, reward = views.action[first:last], views.reward[first:last]
    terminated = views.terminated[first:last]
    for i in range(theta1s.size):
        q1, q2, v1, v2 = theta1s[i], theta2s[i], velocity1s[i], velocity2s[i]
        own2 = at(mass2, i) * at(center2, i) * at(center2, i) + at(inertia, i)
        coupling = at(mass2, i) * at(length1, i) * at(center2, i)
        body = (
            at(mass1, i) * at(center1, i) * at(center1, i)
            + at(mass2, i) * at(length1, i) * at(length1, i)
            + at(inertia, i)
            + own2,
            own2,
            coupling,
            (at(mass1, i) * at(center1, i) + at(mass2, i) * at(length1, i)) * at(gravity, i),
            at(mass2, i) * at(center2, i) * at(gravity, i),
            coupling if at(book_or_nips, i) == f32(0) else f32(0),
        )
        # One step of fourth-order Runge-Kutta.
        push, h, half = f32(action[i] - 1) * at(torque, i), at(dt, i), f32(0.5) * at(dt, i)
        a1, a2 = _accelerations((q1, q2), (v1, v2), push, body)
        v1b, v2b = v1 + half * a1, v2 + half * a2
        b1, b2 = _accelerations((q1 + half * v1, q2 + half * v2), (v1b, v2b), push, body)
        v1c, v2c = v1 + half * b1, v2 + half * b2
        c1, c2 = _accelerations((q1 + half * v1b, q2 + half * v2b), (v1c, v2c), push, body)
        v1d, v2d = v1 + h * c1, v2 + h * c2
        d1, d2 = _accelerations((q1 + h * v1c, q2 + h * v2c), (v1d, v2d), push, body)
        sixth, two = h * f32(1 / 6), f32(2)
        q1 = wrapped(q1 + sixth * (v1 + two * v1b + two * v1c + v1d))
        q2 = wrapped(q2 + sixth * (v2 + two * v2b + two * v2c + v2d))
        v1 = clipped(v1 + sixth * (a1 + two * b1 + two * c1 + d1), at(max_velocity1, i))
        v2 = clipped(v2 + sixth * (a2 + two * b2 + two * c2 + d2), at(max_velocity2, i))
        theta1s[i], theta2s[i], velocity1s[i], velocity2s[i] = q1, q2, v1, v2
        _, cosine1 = sincos(q1)
        _, cosine12 = sincos(q1 + q2)
        done = -cosine1 - cosine12 > at(goal_height, i)
        terminated[i] = done
        reward[i] = f32(0) if done else f32(-1)


def _observe_acrobot(batch: Batch, target: NDArray[np.float32], first: int, last: int) -> None:
    theta1s, theta2s = batch.state[0, first:last], batch.state[1, first:last]
    velocity1s, velocity2s = batch.state[2, first:last], batch.state[3, first:last]
    rows = target[first:last]
    for i in range(theta1s.size):
        sine1, cosine1 = sincos(theta1s[i])
        sine2, cosine2 = sincos(theta2s[i])
        rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3] = cosine1, sine1, cosine2, sine2
        rows[i, 4], rows[i, 5] = velocity1s[i], velocity2s[i]


def _initialize_acrobot(batch: Batch, env: int) -> None:
    bound = at(column(batch.params, _ACROBOT.reset_bound, env, env + 1), 0)
    center = at(column(batch.params, _ACROBOT.reset_center, env, env + 1), 0)
    low, high = center - bound, center + bound
    for quantity in range(4):
        batch.state[quantity, env] = between(batch.noise, env, quantity, low, high)


ACROBOT = Loops(_advance_acrobot, _observe_acrobot, _initialize_acrobot)
CARTPOLE = Loops(_advance_cartpole, _observe_cartpole, _initialize_cartpole)
MOUNTAIN_CAR = Loops(_advance_mountain_car, _observe_mountain_car, _initialize_mountain_car)
MOUNTAIN_CAR_CONTINUOUS = Loops(
    _advance_mountain_car_continuous, _observe_mountain_car, _initialize_mountain_car_continuous
)
PENDULUM = Loops(_advance_pendulum, _observe_pendulum, _initialize_pendulum)
