"""Ways to step n environments of classic control with random actions.

Each returns a function that takes steps, or None if it does not support the setting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import gymnasium
import torch

from bench import steppers
from bench.rounds import Steps, rate
from fastrl.envs.classic_control.control_batch import ClassicControlBatch, Options
from fastrl.envs.tensor import RandomPolicy, Rollouts, make_tensor

_MOST_ON_CPU = 2**16
"""Largest number of environments of a tensor program; with more, a step takes seconds on a CPU."""
_MOST_OF_ENVPOOL = 2**14
"""Largest number of environments of EnvPool, which was slower with every larger one."""
_FEW, _RACE_S = 8, 0.1
"""Environments from which on EnvPool is tried with smaller batches, and how long each try takes."""


@dataclass(frozen=True)
class Setting:
    """Environments to step.

    Attributes:
        env: Id of the environment.
        num_envs: n.
        threads: Threads that may step.
    """

    env: str
    num_envs: int
    threads: int = 1

    @property
    def length(self) -> int:
        """Length of a rollout that fits into memory."""
        return max(1, min(32, 2**23 // self.num_envs))


Way = Callable[[Setting], Steps | None]


def gymnasium_vector(setting: Setting) -> Steps | None:
    """Step gymnasium's own vectorised environment, which exists only for CartPole."""
    if gymnasium.spec(setting.env).vector_entry_point is None:
        return None
    mode = "vector_entry_point"
    return steppers.vector(gymnasium.make_vec(setting.env, setting.num_envs, mode))


def envpool(setting: Setting) -> Steps | None:
    """Step EnvPool with the fastest of several numbers of threads and batch sizes."""
    n = setting.num_envs
    if n > _MOST_OF_ENVPOOL or not steppers.has_envpool(setting.env):
        return None
    ways = [
        steppers.envpool(setting.env, n, n // share, threads)
        for threads in sorted({1, setting.threads})
        # All environments per call; or the first half or quarter that is ready, asynchronously.
        for share in (1, 2, 4)
        if n % share == 0 and (share == 1 or n >= _FEW)
    ]
    return max(ways, key=lambda steps: rate(steps, _RACE_S))


def loops(setting: Setting) -> Steps:
    """Step fastrl's compiled loops, with one thread or several, whichever is faster."""
    threads = [Options(num_threads=number) for number in sorted({1, setting.threads})]
    batches = [ClassicControlBatch(setting.env, setting.num_envs, each) for each in threads]
    return max(map(steppers.batched, batches), key=lambda steps: rate(steps, _RACE_S))


def program(setting: Setting, device: str, steps_per_graph: int) -> Steps | None:
    """Sample rollouts from fastrl's tensor program."""
    if device == "cpu" and setting.num_envs > _MOST_ON_CPU:
        return None
    env, params = make_tensor(setting.env, device=device)
    rollouts = Rollouts(env, RandomPolicy(env.spec), params, steps_per_graph=steps_per_graph)
    generator = torch.Generator(device).manual_seed(0)
    here = rollouts.start(setting.num_envs, generator)

    def step() -> int:
        nonlocal here
        noise = rollouts.draw_noise(setting.length, setting.num_envs, generator)
        _, here = rollouts.run(None, here, noise)
        if device == "cuda":
            torch.cuda.synchronize()
        return setting.length * setting.num_envs

    return step


def gymnax(setting: Setting) -> Steps | None:
    """Step gymnax, the same environments in JAX, inside one compiled scan."""
    if find_spec("gymnax") is None or find_spec("jax") is None:
        return None
    import gymnax as package
    import jax
    import jax.numpy as jnp

    env, params = package.make(setting.env)
    n, space = setting.num_envs, env.action_space(params)

    def random(key: Any) -> Any:
        if hasattr(space, "n"):
            return jax.random.randint(key, (n,), 0, space.n)
        shape, (low, high) = (n, *space.shape), (space.low, space.high)
        return jax.random.uniform(key, shape, minval=low, maxval=high)

    def step(carry: Any, _: Any) -> tuple[Any, Any]:
        key, state = carry
        key, for_action, for_step = jax.random.split(key, 3)
        _, state, reward, terminated, truncated, _ = jax.vmap(env.step, in_axes=(0, 0, 0, None))(
            jax.random.split(for_step, n), state, random(for_action), params
        )
        # Sums, so that all of it must be computed and nothing need be stored.
        return (key, state), [jnp.sum(x) for x in (reward, terminated, truncated)]

    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, None, setting.length))
    keys = jax.random.split(jax.random.key(0), n)
    carry = jax.random.key(2), jax.vmap(env.reset, in_axes=(0, None))(keys, params)[1]

    def steps() -> int:
        nonlocal carry
        carry, kept = scan(carry)
        jax.block_until_ready((carry, kept))
        return setting.length * n

    return steps
