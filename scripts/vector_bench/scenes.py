"""Environments that wait: for 5 ms in every step, or for the next frame of CartPole's window."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
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


def scenes(num_envs: int, seconds: float) -> list[dict[str, Any]]:
    """Measure all scenes; return steps per second of all environments by way of stepping."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    rate = partial(_rate, num_envs=num_envs, seconds=seconds)
    waiting = {
        "loop": rate(partial(_naive, WaitingEnv, num_envs)),
        "threads": rate(partial(_vector, WaitingEnv, num_envs, "threads")),
        "await": asyncio.run(_awaited(WaitingCoroutineEnv, num_envs, seconds)),
    }
    drawing = {
        "loop": rate(partial(_naive, window, num_envs)),
        "threads": rate(partial(_vector, window, num_envs, "threads")),
        "processes": rate(partial(_vector, window, num_envs, "processes")),
    }
    pictures = {
        "loop": rate(partial(_naive, picture, num_envs)),
        "threads": rate(partial(_vector, picture, num_envs, "threads")),
        "processes": rate(partial(_vector, picture, num_envs, "processes")),
    }
    return [
        _told(f"{num_envs} environments that wait {1e3 * WAIT_S:g} ms per step", waiting),
        _told(f"{num_envs} CartPoles that draw their window", drawing),
        _told(f"{num_envs} CartPoles that draw a picture in every step", pictures),
    ]


def _told(name: str, rates: dict[str, float]) -> dict[str, Any]:
    parts = [f"{how} {each:,.0f}" for how, each in rates.items()]
    ratios = [f"{how} {each / rates['loop']:.1f} ×" for how, each in rates.items() if how != "loop"]
    text = f"Steps per second: {', '.join(parts)}. Times the loop: {', '.join(ratios)}."
    return {"name": name, "steps_per_s": rates, "text": text}


def _naive(build: Any, num_envs: int) -> tuple[Callable[[], Any], Any]:  # noqa: ANN401
    envs = [build() for _ in range(num_envs)]
    for index, env in enumerate(envs):
        env.reset(seed=index)

    def step() -> None:
        for env in envs:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()

    return step, lambda: [env.close() for env in envs]


def _vector(build: Any, num_envs: int, backend: Any) -> tuple[Callable[[], Any], Any]:  # noqa: ANN401
    envs = fastrl.make_vec(build, num_envs, backend=backend)
    envs.reset(seed=0)
    return (lambda: envs.step(envs.action_space.sample())), envs.close


def _rate(make: Callable[[], tuple[Any, Any]], num_envs: int, seconds: float) -> float:
    step, close = make()
    try:
        step()
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            step()
            steps += 1
        return num_envs * steps / (time.perf_counter() - start)
    finally:
        close()


async def _awaited(build: Any, num_envs: int, seconds: float) -> float:  # noqa: ANN401
    async with make_concurrent(build, num_envs) as envs:
        await envs.reset(seed=0)
        await envs.step(envs.action_space.sample())
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            await envs.step(envs.action_space.sample())
            steps += 1
        return num_envs * steps / (time.perf_counter() - start)
