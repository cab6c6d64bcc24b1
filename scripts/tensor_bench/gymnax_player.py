"""gymnax: the same environments in JAX, stepped inside one compiled scan."""

# JAX brings its own types, which are not installed where this is checked.
# ruff: noqa: ANN401

from __future__ import annotations

import math
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from tensor_bench.players import Run, Setting


def available() -> bool:
    """Return whether gymnax can be imported."""
    return find_spec("gymnax") is not None and find_spec("jax") is not None


def gymnax(setting: Setting) -> Run | None:
    """Step gymnax with random actions, or with a policy of tanh layers."""
    if not available():
        return None
    import gymnax as package
    import jax
    import jax.numpy as jnp

    env, params = package.make(setting.env)
    n, space = setting.num_envs, env.action_space(params)
    discrete = hasattr(space, "n")
    outputs = space.n if discrete else space.shape[0]
    size = env.reset(jax.random.key(0), params)[0].shape[0]
    keys = jax.random.split(jax.random.key(1), 3 + len(setting.hidden_sizes))
    widths = [size, *setting.hidden_sizes]
    weights = {
        "hidden": [
            jax.random.normal(key, shape) / math.sqrt(shape[0])
            for key, shape in zip(keys[3:], pairwise(widths), strict=True)
        ],
        "actor": jax.random.normal(keys[1], (widths[-1], outputs)) * 0.01,
        "critic": jax.random.normal(keys[2], (widths[-1], 1)) / 8,
    }

    def act(weights: Any, observation: Any, key: Any) -> tuple[Any, Any, Any]:
        if not setting.hidden_sizes:
            if discrete:
                return jax.random.randint(key, (n,), 0, outputs), 0.0, 0.0
            low, high = space.low, space.high
            return jax.random.uniform(key, (n, outputs), minval=low, maxval=high), 0.0, 0.0
        features = observation
        for layer in weights["hidden"]:
            features = jnp.tanh(features @ layer)
        head, value = features @ weights["actor"], features @ weights["critic"]
        if discrete:
            action = jax.random.categorical(key, head)
            log_prob = jnp.take_along_axis(jax.nn.log_softmax(head), action[:, None], 1)
            return action, log_prob, value
        noise = jax.random.normal(key, head.shape)
        return head + noise, -0.5 * (noise**2).sum(-1), value

    def step(carry: Any, _: Any) -> tuple[Any, Any]:
        weights, key, observation, state = carry
        key, for_action, for_step = jax.random.split(key, 3)
        action, log_prob, value = act(weights, observation, for_action)
        observation, state, reward, terminated, truncated, _ = jax.vmap(
            env.step, in_axes=(0, 0, 0, None)
        )(jax.random.split(for_step, n), state, action, params)
        # Sums, so that all of it must be computed and nothing need be stored.
        kept = [jnp.sum(x) for x in (reward, terminated, truncated, log_prob, value)]
        return (weights, key, observation, state), kept

    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, None, setting.length))
    first = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(keys[0], n), params)
    carry = (weights, jax.random.key(2), *first)

    def run(steps: int) -> None:
        nonlocal carry
        kept = None
        for _ in range(math.ceil(steps / setting.length)):
            carry, kept = scan(carry)
        jax.block_until_ready((carry, kept))

    return run
