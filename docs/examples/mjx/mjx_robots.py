"""Robots of gymnasium stepped by MJX, MuJoCo in JAX: all environments in one compiled call.

    pip install 'fastrl-torch[mjx]'      # on a GPU also: pip install 'jax[cuda12]'
    fastrl train docs/examples/mjx/pendulum.yaml
    fastrl train docs/examples/mjx/pendulum.yaml sampler.device=cuda algorithm.device=cuda

Arrays go between JAX and torch by DLPack: on a GPU they stay there.
"""

import os
from pathlib import Path
from typing import NamedTuple

# Torch needs memory of the same GPU, of which JAX would take three quarters at once.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import torch
from gymnasium import spaces
from mujoco import mjx

from fastrl import EnvSpec
from fastrl.envs import DeviceEnv

MODELS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"


class State(NamedTuple):
    """What the next steps of an environment depend on."""

    qpos: jax.Array
    qvel: jax.Array
    warmstart: jax.Array  # of the solver
    steps: jax.Array
    key: jax.Array


class Robot(DeviceEnv):
    """n robots of one model; a subclass says how it starts, what it observes and what it earns."""

    model: str
    frame_skip: int
    noise: float  # of the first positions and velocities

    def __init__(self, num_envs, device="cpu", max_episode_steps=1000):
        self.num_envs, self.device, self._limit = num_envs, device, max_episode_steps
        place = torch.device(device)
        self._place = jax.devices("gpu" if place.type == "cuda" else "cpu")[place.index or 0]
        model = mujoco.MjModel.from_xml_path(str(MODELS / self.model))
        self._model = mjx.put_model(model, device=self._place)
        self._data = mjx.make_data(model, device=self._place)
        self._begin_all = jax.jit(jax.vmap(self._begin))
        self._step_all = jax.jit(jax.vmap(self._step))
        seen = jax.eval_shape(lambda key: self.observe(self._begin(key)), jnp.zeros(2, jnp.uint32))
        low, high = model.actuator_ctrlrange.T.astype(np.float32)
        self.spec = EnvSpec(
            f"mjx/{type(self).__name__}",
            spaces.Box(-np.inf, np.inf, seen.shape),
            spaces.Box(low, high),
            max_episode_steps,
        )

    def observe(self, state):
        raise NotImplementedError

    def outcome(self, before, reached, action):
        """Return the reward, and whether the state is terminal."""
        raise NotImplementedError

    def reset(self, seed):
        keys = jax.random.split(jax.random.PRNGKey(seed), self.num_envs)
        # On its device already, as later states are: JAX would compile the step for both.
        self._state = self._begin_all(jax.device_put(keys, self._place))
        return jax.vmap(self.observe)(self._state)

    def step(self, action):
        self._state, found = self._step_all(self._state, jnp.from_dlpack(action))
        return found

    def _begin(self, key):
        key, for_qpos, for_qvel = jax.random.split(key, 3)
        rest, still = self._data.qpos, jnp.zeros_like(self._data.qvel)
        qpos = rest + self.noise * jax.random.uniform(for_qpos, rest.shape, minval=-1)
        qvel = self.noise * jax.random.uniform(for_qvel, still.shape, minval=-1)
        return State(qpos, qvel, still, jnp.int32(0), key)

    def _step(self, state, action):
        data = self._data.replace(
            qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.warmstart, ctrl=action
        )
        data = jax.lax.fori_loop(
            0, self.frame_skip, lambda _, data: mjx.step(self._model, data), data
        )
        reached = State(data.qpos, data.qvel, data.qacc_warmstart, state.steps + 1, state.key)
        reward, terminated = self.outcome(state, reached, action)
        truncated = ~terminated & (reached.steps >= self._limit)
        ended, begun = terminated | truncated, self._begin(state.key)
        following = jax.tree.map(lambda new, old: jnp.where(ended, new, old), begun, reached)
        return following, (
            self.observe(following), reward, terminated, truncated, self.observe(reached)
        )  # fmt: skip

    def get_state(self):
        return [np.array(each) for each in self._state]

    def set_state(self, state):
        self._state = State(*(jax.device_put(each, self._place) for each in state))


class InvertedPendulum(Robot):
    """A pole on a cart; the episode ends when it falls."""

    model, frame_skip, noise = "inverted_pendulum.xml", 2, 0.01

    def observe(self, state):
        return jnp.concatenate([state.qpos, state.qvel])

    def outcome(self, before, reached, action):
        fallen = jnp.abs(reached.qpos[1]) > 0.2
        return jnp.where(fallen, 0.0, 1.0), fallen


class HalfCheetah(Robot):
    """Runs forward."""

    model, frame_skip, noise = "half_cheetah.xml", 5, 0.1

    def observe(self, state):
        return jnp.concatenate([state.qpos[1:], state.qvel])

    def outcome(self, before, reached, action):
        duration = self.frame_skip * self._model.opt.timestep
        speed = (reached.qpos[0] - before.qpos[0]) / duration
        return speed - 0.1 * jnp.square(action).sum(), jnp.bool_(False)
