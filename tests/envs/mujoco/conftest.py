"""A small robot and fixtures to step it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from fastrl.envs import StepViews
from fastrl.envs.mujoco import MujocoBatchedEnv, simulations

JUMPER = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 0.1" friction="1 0.005 0.0001"/>
    <camera name="side" pos="0 -3 1" xyaxes="1 0 0 0 0 1"/>
    <camera name="front" pos="3 0 1" xyaxes="0 1 0 0 0 1"/>
    <body name="trunk" pos="0 0 1">
      <joint name="height" type="slide" axis="0 0 1"/>
      <geom name="trunk" type="sphere" size="0.1" mass="2"/>
      <body name="foot" pos="0 0 -0.4">
        <joint name="leg" type="slide" axis="0 0 1" damping="1" range="-0.2 0.2" limited="true"/>
        <geom name="foot" type="sphere" size="0.05" mass="0.5"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor name="push" joint="leg" gear="40" ctrlrange="-1 1" ctrllimited="true"/>
  </actuator>
</mujoco>
"""


class Jumper(MujocoBatchedEnv):
    """Robot rewarded for height; its episode terminates when the trunk is near the ground."""

    frame_skip = 2
    time_limit = 40

    def initial(self, generator):
        return generator.uniform(-0.02, 0.02, 2), np.zeros(2)

    def observation(self, now):
        return now.qpos, now.qvel

    def reward(self, step):
        return {"height": step.now.qpos[:, 0], "effort": -0.01 * np.square(step.action).sum(1)}

    def terminated(self, now):
        return now.qpos[:, 0] < -0.6


@dataclass
class Driver:
    """Steps an environment and keeps the rows it wrote."""

    env: MujocoBatchedEnv
    dtype: type = np.float64

    def __post_init__(self):
        n, size = self.env.num_envs, self.env.spec.observation_space.shape[0]
        self.observation = np.full((n, size), np.nan, self.dtype)
        self.final = np.full((n, size), np.nan, self.dtype)
        self.reward = np.full(n, np.nan, self.dtype)
        self.terminated, self.truncated = np.ones(n, bool), np.ones(n, bool)

    def reset(self, seed=0):
        self.env.reset(range(seed, seed + self.env.num_envs), (self.observation,))
        return self.observation.copy()

    def step(self, action=0.0):
        shape = (self.env.num_envs, *self.env.spec.action_space.shape)
        action = np.broadcast_to(np.float32(action), shape).copy()
        self.env.step(
            StepViews(
                (action,),
                (self.observation,),
                self.reward,
                self.terminated,
                self.truncated,
                (self.final,),
            )
        )
        return self.observation.copy()

    def run(self, steps, seed=0):
        """Reset and step with random actions; return all observations, ``[steps, n, size]``."""
        space = self.env.spec.action_space
        generator = np.random.default_rng(seed)
        shape = (steps, self.env.num_envs, *space.shape)
        self.reset(seed)
        return np.array(
            [self.step(action) for action in generator.uniform(space.low, space.high, shape)]
        )


@pytest.fixture
def jumper_class(tmp_path):
    path = tmp_path / "jumper.xml"
    path.write_text(JUMPER)
    return type("Jumper", (Jumper,), {"xml_file": str(path)})


@pytest.fixture
def drive():
    return Driver


BOTH = pytest.mark.parametrize("backend", ["mjbatch", "mujoco"], indirect=True)
"""Parametrise a test over the ways to step simulations."""


@pytest.fixture(autouse=True)
def backend(request, monkeypatch):
    """Step simulations by mjbatch where it is installed, or by the parameter of a test."""
    chosen = getattr(request, "param", None)
    if chosen == "mujoco":
        monkeypatch.setattr(simulations, "accelerator", lambda: None)
    elif chosen == "mjbatch" and simulations.accelerator() is None:
        pytest.skip("mjbatch is not installed, or made for another version of MuJoCo")
    return chosen
