"""Environments that wait: for 5 ms in every step, or for the next frame of CartPole's window."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import gymnasium
import numpy as np

import fastrl
from fastrl.vector import make_concurrent

WAIT_S = 0.005


class WaitingEnv(gymnasium.Env[Any, Any]):
    """Does nothing but wait."""

    observation_space = gymnasium.spaces.Box(0, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:  # noqa: ANN401
        """Return zeros."""
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> Any:  # noqa: ANN401
        """Wait."""
        time.sleep(WAIT_S)
        return np.zeros(4, np.float32), 0.0, False, False, {}


class WaitingCoroutineEnv(WaitingEnv):
    """The same as coroutines."""

    async def reset(self, *, seed: Any = None, options: Any = None) -> Any:  # noqa: ANN401
        """Return zeros."""
        return np.zeros(4, np.float32), {}

    async def step(self, action: Any) -> Any:  # noqa: ANN401
        """Let others go on while this one waits."""
        await asyncio.sleep(WAIT_S)
        return np.zeros(4, np.float32), 0.0, False, False, {}


def window() -> gymnasium.Env[Any, Any]:
    """Build a CartPole that draws itself, 50 frames a second."""
    return gymnasium.make("CartPole-v1", render_mode="human")


class Drawn(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Draws a picture in every step, and hands a corner of it on."""

    def step(self, action: Any) -> Any:  # noqa: ANN401
        """Step and draw."""
        *result, info = self.env.step(action)
        frame: Any = self.env.render()
        return (*result, {**info, "corner": int(frame[0, 0, 0])})


def picture() -> gymnasium.Env[Any, Any]:
    """Build a CartPole that draws into memory."""
    return Drawn(gymnasium.make("CartPole-v1", render_mode="rgb_array"))


ROUNDS = 5
"""The ways of a scene take turns, so that a drift of the machine's speed meets all of them."""

Turn = Callable[[float], float]
"""Steps for about so many seconds; returns steps per second of all environments together."""


def scenes(num_envs: int, seconds: float) -> list[dict[str, Any]]:
    """Measure all scenes; return steps per second of all environments by way of stepping.

    Args:
        num_envs: How many environments.
        seconds: How long each way of each scene is measured, in `ROUNDS` turns.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

    def ways(build: Callable[[], Any], *backends: str) -> dict[str, Any]:
        made = {name: partial(_vector, build, num_envs, name) for name in backends}
        return {"loop": partial(_naive, build, num_envs), **made}

    waiting = ways(WaitingEnv, "threads")
    waiting["await"] = partial(_awaited, WaitingCoroutineEnv, num_envs)
    found = {
        f"{num_envs} environments that wait {1e3 * WAIT_S:g} ms per step": waiting,
        f"{num_envs} CartPoles that draw their window": ways(window, "threads", "serial"),
        f"{num_envs} CartPoles that draw a picture in every step": ways(
            picture, "threads", "serial", "processes"
        ),
    }
    return [_told(name, _rates(made, seconds)) for name, made in found.items()]


def _rates(ways: Mapping[str, Any], seconds: float) -> dict[str, list[float]]:
    with ExitStack() as stack:
        turns = {name: stack.enter_context(make()) for name, make in ways.items()}
        for turn in turns.values():
            turn(0.0)
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(ROUNDS):
            for name, turn in turns.items():
                rates[name].append(turn(seconds / ROUNDS))
    return rates


def _told(name: str, rates: dict[str, list[float]]) -> dict[str, Any]:
    medians = {how: statistics.median(each) for how, each in rates.items()}
    parts = [f"{how} {each:,.0f}" for how, each in medians.items()]
    ratios = []
    for how, each in rates.items():
        against = [mine / loop for mine, loop in zip(each, rates["loop"], strict=True)]
        spread = f"{min(against):.1f} … {max(against):.1f}"
        if how != "loop":
            ratios.append(f"{how} {statistics.median(against):.1f} × ({spread})")
    text = (
        f"Steps per second: {', '.join(parts)}. Times the loop, medians of {ROUNDS} rounds: "
        f"{', '.join(ratios)}."
    )
    return {"name": name, "steps_per_s": medians, "rounds": rates, "text": text}


def _repeat(step: Callable[[], Any], num_envs: int, seconds: float) -> float:
    start, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - start < seconds:
        step()
        steps += 1
    return num_envs * steps / (time.perf_counter() - start)


@contextmanager
def _naive(build: Any, num_envs: int) -> Iterator[Turn]:  # noqa: ANN401
    envs = [build() for _ in range(num_envs)]
    for index, env in enumerate(envs):
        env.reset(seed=index)

    def step() -> None:
        for env in envs:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()

    yield partial(_repeat, step, num_envs)
    # Not closed: one window's end is that of pygame, and so of all the other ways' windows.


@contextmanager
def _vector(build: Any, num_envs: int, backend: Any) -> Iterator[Turn]:  # noqa: ANN401
    envs = fastrl.make_vec(build, num_envs, backend=backend, autoreset="same_step")
    envs.reset(seed=0)
    yield partial(_repeat, lambda: envs.step(envs.action_space.sample()), num_envs)
    envs.close()


@contextmanager
def _awaited(build: Any, num_envs: int) -> Iterator[Turn]:  # noqa: ANN401
    async def step_for(seconds: float) -> float:
        start, steps = time.perf_counter(), 0
        while not steps or time.perf_counter() - start < seconds:
            await envs.step(envs.action_space.sample())
            steps += 1
        return num_envs * steps / (time.perf_counter() - start)

    with asyncio.Runner() as runner:
        envs = make_concurrent(build, num_envs, autoreset="same_step")
        runner.run(envs.reset(seed=0))
        yield lambda seconds: runner.run(step_for(seconds))
        runner.run(envs.close())
