"""Play episodes in many environments at once, with pictures, beside the loop one would write first.

    python docs/examples/concurrent_envs.py --num-envs 200 --episodes 2 --render
    python docs/examples/concurrent_envs.py --how naive --num-envs 200 --episodes 2 --render
    python docs/examples/concurrent_envs.py --how await --wait-ms 5 --num-envs 200 --episodes 1

With ``--pictures`` every step draws an array, with ``--render`` a window (into memory where there
is no screen); CartPole's own window waits for its next frame, 50 times a second, which is what the
other environments use to go on.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import fastrl
from fastrl.vector import make_concurrent


class Waiting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Waits in every step, as for a network or a database."""

    def __init__(self, env: Any, seconds: float) -> None:
        super().__init__(env)
        self._seconds = seconds

    def step(self, action: Any) -> Any:
        """Wait, and step."""
        time.sleep(self._seconds)
        return self.env.step(action)


class Drawn(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Draws a picture in every step, and keeps it."""

    def step(self, action: Any) -> Any:
        """Step and draw."""
        result = self.env.step(action)
        self.picture = self.env.render()
        return result


class WaitingCoroutine(Waiting):
    """The same as coroutines."""

    async def reset(self, **kwargs: Any) -> Any:
        """Start an episode."""
        return self.env.reset(**kwargs)

    async def step(self, action: Any) -> Any:
        """Let others go on while this one waits."""
        await asyncio.sleep(self._seconds)
        return self.env.step(action)


def make_env(options: argparse.Namespace) -> Any:
    """Build one environment."""
    if options.pictures:
        env: Any = Drawn(gymnasium.make(options.env, render_mode="rgb_array"))
    else:
        env = gymnasium.make(options.env, render_mode="human" if options.render else None)
    if not options.wait_ms:
        return env
    kind = WaitingCoroutine if options.how == "await" else Waiting
    return kind(env, options.wait_ms / 1e3)


Report = Callable[[int, int], None]


def naive(options: argparse.Namespace, report: Report) -> None:
    """Step one environment after the other."""
    envs = [make_env(options) for _ in range(options.num_envs)]
    for index, env in enumerate(envs):
        env.action_space.seed(index)
        env.reset(seed=index)
    left = [options.episodes] * len(envs)
    while any(left):
        steps, ended = 0, 0
        for index, env in enumerate(envs):
            if not left[index]:
                continue
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            steps += 1
            if terminated or truncated:
                left[index] -= 1
                ended += 1
                env.reset()
        report(steps, ended)
    for env in envs:
        env.close()


def vector(options: argparse.Namespace, report: Report) -> None:
    """Step all of them with `fastrl.make_vec`."""
    factory = partial(make_env, options)
    envs = fastrl.make_vec(factory, options.num_envs, backend=options.how, autoreset="same_step")
    envs.action_space.seed(0)
    envs.reset(seed=0)
    left = np.full(options.num_envs, options.episodes)
    while left.any():
        _, _, terminated, truncated, _ = envs.step(envs.action_space.sample())
        over = (terminated | truncated) & (left > 0)
        report(int((left > 0).sum()), int(over.sum()))
        left -= over
    envs.close()


async def concurrent(options: argparse.Namespace, report: Report) -> None:
    """Step all of them with ``await``."""
    factory = partial(make_env, options)
    async with make_concurrent(factory, options.num_envs, autoreset="same_step") as envs:
        envs.action_space.seed(0)
        await envs.reset(seed=0)
        left = np.full(options.num_envs, options.episodes)
        while left.any():
            _, _, terminated, truncated, _ = await envs.step(envs.action_space.sample())
            over = (terminated | truncated) & (left > 0)
            report(int((left > 0).sum()), int(over.sum()))
            left -= over


def main() -> None:
    """Play, with a bar, and print how fast it was."""
    options = arguments()
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    columns = (TextColumn(options.how), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    total = options.num_envs * options.episodes
    steps = 0
    start = time.perf_counter()
    with Progress(*columns) as progress:
        bar = progress.add_task("episodes", total=total)

        def report(made: int, ended: int) -> None:
            nonlocal steps
            steps += made
            progress.advance(bar, ended)
            if options.verbose and ended:
                progress.print(f"{steps} steps, {ended} episodes ended")
            if options.seconds and time.perf_counter() - start > options.seconds:
                raise TimeoutError

        try:
            if options.how == "await":
                asyncio.run(concurrent(options, report))
            else:
                (naive if options.how == "naive" else vector)(options, report)
        except TimeoutError:
            progress.print(f"stopped after {options.seconds:g} s")
    seconds = time.perf_counter() - start
    print(f"{options.how}: {steps} steps in {seconds:.2f} s: {steps / seconds:,.0f} steps/s")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--num-envs", type=int, default=200)
    parser.add_argument("--episodes", type=int, default=50, help="in every environment")
    parser.add_argument("--how", default="auto", choices=HOW)
    parser.add_argument("--wait-ms", type=float, default=0.0, help="that every step waits")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--pictures", action="store_true", help="draw arrays, not a window")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


HOW = ("naive", "auto", "serial", "threads", "processes", "await")


if __name__ == "__main__":
    try:
        main()
    except (fastrl.FastrlError, gymnasium.error.Error) as error:
        raise SystemExit(f"concurrent_envs: error: {error}") from None
