"""Where gymnasium's episodes start: noise around the model's reference configuration."""

from __future__ import annotations

import numpy as np

from fastrl.envs.mujoco.physics import Floats, Physics


def uniform(
    generator: np.random.Generator, physics: Physics, scale: float
) -> tuple[Floats, Floats]:
    """Return positions and velocities with uniform noise in [-scale, scale)."""
    model = physics.model
    qpos = physics.initial_qpos + generator.uniform(-scale, scale, model.nq)
    return qpos, generator.uniform(-scale, scale, model.nv)


def uniform_and_normal(
    generator: np.random.Generator, physics: Physics, scale: float
) -> tuple[Floats, Floats]:
    """Return positions with uniform noise, velocities with normal noise of deviation ``scale``."""
    model = physics.model
    qpos = physics.initial_qpos + generator.uniform(-scale, scale, model.nq)
    return qpos, scale * generator.standard_normal(model.nv)
