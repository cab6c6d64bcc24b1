"""Ways to step n environments of classic control: with random actions, or with a policy.

Each returns what takes steps, or None where it cannot do what a setting asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv

from bench import steppers
from bench.rounds import Steps, rate
from fastrl.config import Config, EnvConfig, ModelConfig, SamplerConfig
from fastrl.envs.classic_control.control_batch import ClassicControlBatch, Options
from fastrl.envs.tensor import RandomPolicy, Rollouts, make_tensor
from fastrl.models import ActorCritic, PolicyOutput, build_engine
from fastrl.sampling import make_sampler

_MOST_ON_CPU = 2**16
"""Environments of a tensor program, of which a step of more takes seconds on a CPU."""
_MOST_OF_ENVPOOL = 2**14
"""Environments of EnvPool, which has been slower at every larger number."""
_FEW, _RACE_S = 8, 0.1
"""Environments from which on EnvPool is tried with smaller batches, and how long each try takes."""
_NOISE_STEPS = 16
"""Steps for which the randomness of a policy is drawn at once."""


@dataclass(frozen=True)
class Setting:
    """What is stepped.

    Attributes:
        env: Id of the environment.
        num_envs: n.
        hidden_sizes: Of the policy that acts; without any, actions are random.
        threads: Threads that may step.
        stack: Closes what was opened.
    """

    env: str
    num_envs: int
    hidden_sizes: tuple[int, ...] = ()
    threads: int = 1
    stack: ExitStack | None = None

    @property
    def length(self) -> int:
        """Length of a rollout: one that fits into memory."""
        return max(1, min(32, 2**23 // self.num_envs))

    def vector(self) -> VectorEnv[Any, Any, Any] | None:
        """Return gymnasium's own vectorised environment, which there is of CartPole."""
        if gymnasium.spec(self.env).vector_entry_point is None:
            return None
        return gymnasium.make_vec(
            self.env, num_envs=self.num_envs, vectorization_mode="vector_entry_point"
        )

    def policy(self) -> ActorCritic:
        """Return the policy that acts."""
        torch.manual_seed(0)
        spec = make_tensor(self.env)[0].spec
        return ActorCritic(spec, ModelConfig(hidden_sizes=self.hidden_sizes, shared_body=True))


Way = Callable[[Setting], Steps | None]


def gymnasium_single(setting: Setting) -> Steps | None:
    """Step one environment of gymnasium from Python."""
    if setting.num_envs != 1:
        return None
    return steppers.single(gymnasium.make(setting.env, disable_env_checker=True))


def gymnasium_vector(setting: Setting) -> Steps | None:
    """Step gymnasium's own vectorised environment."""
    env = setting.vector()
    return None if env is None else steppers.vector(env)


def envpool(setting: Setting) -> Steps | None:
    """Step EnvPool as it is fastest here: several numbers of threads and sizes of a batch race."""
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
    """Make rollouts of fastrl's tensor program."""
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
    """Step gymnax: the same environments in JAX, inside one compiled scan."""
    if find_spec("gymnax") is None or find_spec("jax") is None:
        return None
    import gymnax as package
    import jax
    import jax.numpy as jnp

    env, params = package.make(setting.env)
    n, space = setting.num_envs, env.action_space(params)
    act = _gymnax_policy(setting, env, params) if setting.hidden_sizes else None

    def random(observation: Any, key: Any) -> tuple[Any, Any, Any]:
        if hasattr(space, "n"):
            return jax.random.randint(key, (n,), 0, space.n), 0.0, 0.0
        shape, (low, high) = (n, *space.shape), (space.low, space.high)
        return jax.random.uniform(key, shape, minval=low, maxval=high), 0.0, 0.0

    def step(carry: Any, _: Any) -> tuple[Any, Any]:
        key, observation, state = carry
        key, for_action, for_step = jax.random.split(key, 3)
        action, log_prob, value = (act or random)(observation, for_action)
        observation, state, reward, terminated, truncated, _ = jax.vmap(
            env.step, in_axes=(0, 0, 0, None)
        )(jax.random.split(for_step, n), state, action, params)
        # Sums, so that all of it must be computed and nothing need be stored.
        kept = [jnp.sum(x) for x in (reward, terminated, truncated, log_prob, value)]
        return (key, observation, state), kept

    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, None, setting.length))
    first = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(jax.random.key(0), n), params)
    carry = (jax.random.key(2), *first)

    def steps() -> int:
        nonlocal carry
        carry, kept = scan(carry)
        jax.block_until_ready((carry, kept))
        return setting.length * n

    return steps


def _gymnax_policy(setting: Setting, env: Any, params: Any) -> Any:
    """Return a policy of tanh layers for discrete actions."""
    import jax
    import jax.numpy as jnp

    size = env.reset(jax.random.key(0), params)[0].shape[0]
    widths = [size, *setting.hidden_sizes, env.action_space(params).n + 1]
    keys = jax.random.split(jax.random.key(1), len(widths) - 1)
    layers = [
        jax.random.normal(key, (rows, columns)) / math.sqrt(rows)
        for key, rows, columns in zip(keys, widths[:-1], widths[1:], strict=True)
    ]

    def act(observation: Any, key: Any) -> tuple[Any, Any, Any]:
        features = observation
        for layer in layers[:-1]:
            features = jnp.tanh(features @ layer)
        heads = features @ layers[-1]
        logits, value = heads[:, 1:], heads[:, 0]
        action = jax.random.categorical(key, logits)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)
        return action, log_prob, value

    return act


def env_workers(setting: Setting) -> Steps:
    """Sample as training does: one env worker per thread, each with the policy in it."""
    config = Config(
        env=EnvConfig(id=f"fastrl/{setting.env}"),
        sampler=SamplerConfig(
            envs_per_worker=setting.num_envs // setting.threads,
            num_env_workers=setting.threads,
            rollout_length=setting.length,
            mode="async",
        ),
        model=ModelConfig(hidden_sizes=setting.hidden_sizes, shared_body=True),
    )
    sampler = make_sampler(config)
    if setting.stack is not None:
        setting.stack.callback(sampler.close)
    sampler.start()
    return lambda: sampler.collect().num_steps


def vector_with_torch(setting: Setting) -> Steps | None:
    """Drive gymnasium's own vector environment by the policy in PyTorch, with all threads."""
    env = setting.vector()
    if env is None:
        return None
    model, generator = setting.policy(), torch.Generator().manual_seed(0)
    observation = env.reset(seed=0)[0]

    @torch.inference_mode()
    def step() -> int:
        nonlocal observation
        noise = model.draw_noise((setting.num_envs,), generator)
        action = model.act({"": torch.from_numpy(observation)}, noise).action
        observation = env.step(action[""].numpy())[0]
        return setting.num_envs

    return step


def vector_with_engine(setting: Setting) -> Steps | None:
    """Drive gymnasium's own vector environment by fastrl's compiled policy."""
    env = setting.vector()
    if env is None:
        return None
    n, model = setting.num_envs, setting.policy()
    engine, generator = build_engine(model), torch.Generator().manual_seed(0)
    noise = engine.draw_noise((_NOISE_STEPS, n), generator)
    seen: np.ndarray = env.reset(seed=0)[0].copy()
    out = PolicyOutput.zeros(n, make_tensor(setting.env)[0].spec.action)
    acts = [engine.bind({"": torch.from_numpy(seen)}, each, out) for each in noise]

    def step() -> int:
        noise.copy_(engine.draw_noise((_NOISE_STEPS, n), generator))
        for act in acts:
            act()
            seen[:] = env.step(out.action[""].numpy())[0]
        return n * _NOISE_STEPS

    return step
