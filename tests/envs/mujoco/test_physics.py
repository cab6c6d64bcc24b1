"""What simulations of one model share, and what they do not."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

from fastrl.envs.mujoco import HalfCheetahV5, Physics
from fastrl.errors import EnvError
from tests.envs.mujoco.conftest import BOTH

pytestmark = BOTH


ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"


def test_contact_forces_are_those_of_a_call_after_the_step():
    """The ant's integrator is of Runge and Kutta, whose last stage has contacts of its own."""
    physics = Physics(ASSETS / "ant.xml", 2, ("cfrc_ext", "cfrc_int", "cacc"))
    data = mujoco.MjData(mujoco.MjModel.from_xml_path(str(ASSETS / "ant.xml")))
    model = data.model
    data.qpos[2] = 0.5
    physics.restart(np.arange(2), data.qpos.copy(), np.zeros(model.nv))
    mujoco.mj_forward(model, data)
    forces = 0.0
    for _ in range(30):
        physics.step(5)
        mujoco.mj_step(model, data, 5)
        mujoco.mj_rnePostConstraint(model, data)
        for name in ("cfrc_ext", "cfrc_int", "cacc"):
            assert np.array_equal(getattr(physics.now, name)[1], getattr(data, name))
        forces = max(forces, np.abs(data.cfrc_ext).max())
    assert forces > 1


def test_fresh_simulation_has_no_contact_forces_of_another():
    physics = Physics(ASSETS / "ant.xml", 2, ("cfrc_ext",))
    start = physics.initial_qpos
    start[2] = 0.4
    physics.restart(np.arange(2), start, np.zeros(physics.model.nv))
    # It bounces: when it touches the ground depends on MuJoCo's version.
    for _ in range(100):
        physics.step(1)
        if np.abs(physics.now.cfrc_ext).max() > 0:
            break
    assert np.abs(physics.now.cfrc_ext[0]).max() > 0

    physics.restart(np.array([True, False]), start, np.zeros(physics.model.nv))

    assert np.abs(physics.now.cfrc_ext[0]).max() == 0
    assert np.abs(physics.now.cfrc_ext[1]).max() > 0


def test_restart_clears_all_that_a_step_left():
    physics = Physics(ASSETS / "half_cheetah.xml", 1, ("qfrc_constraint",))
    start, still = physics.initial_qpos, np.zeros(physics.model.nv)

    def play():
        physics.restart(np.arange(1), start, still)
        physics.now.ctrl[:] = 0.3
        physics.step(50)
        return physics.now.qpos.copy()

    assert np.array_equal(play(), play())


def test_simulations_are_not_copied():
    """Their arrays are views of one another, which a copy would separate."""
    env = HalfCheetahV5.single()
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"cannot be copied or pickled; .* get_state"):
            copied(env.batched.physics)


def test_model_that_cannot_be_loaded_is_named(tmp_path):
    path = tmp_path / "broken.xml"
    path.write_text("<mujoco><worldbody><body><joint/></worldbody></mujoco>")

    with pytest.raises(EnvError, match=r"cannot load '.*broken\.xml'"):
        Physics(path, 1, ())


def test_error_in_a_simulation_names_the_environment(tmp_path):
    """A model whose arena is too small for its contacts."""
    balls = "".join(
        f'<body pos="{0.01 * i} 0 0.05"><freejoint/><geom size="0.1"/></body>' for i in range(12)
    )
    path = tmp_path / "crowd.xml"
    path.write_text(
        f'<mujoco><size memory="20K"/><worldbody><geom type="plane" size="1 1 1"/>{balls}'
        "</worldbody></mujoco>"
    )

    with pytest.raises(EnvError, match="env 0"):
        Physics(path, 2, ()).step(1)
