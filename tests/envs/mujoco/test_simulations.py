"""What steps simulations: mjbatch where it runs, else a loop of MuJoCo's functions."""

from __future__ import annotations

import sys

import mujoco
import numpy as np
import pytest

from fastrl.envs.mujoco import ENVIRONMENTS, build, simulations
from tests.envs.mujoco.conftest import BOTH, Driver

RANDOMIZE = {
    "body_mass": {"scale": {"uniform": [0.8, 1.2]}},
    "gravity": {"add": {"normal": [[0, 0, 0], [0, 0, 0.3]]}},
    "timestep": {"scale": {"uniform": [0.9, 1.1]}},
}


RANDOMIZED = ("HalfCheetah-v5", "Ant-v5", "Humanoid-v5", "Pusher-v5")


@pytest.mark.parametrize("backend", ["mjbatch"], indirect=True)
@pytest.mark.parametrize(
    ("name", "randomize"),
    [*((name, None) for name in ENVIRONMENTS), *((name, RANDOMIZE) for name in RANDOMIZED)],
    ids=lambda value: value if isinstance(value, str) else "randomised" if value else "alike",
)
def test_both_ways_to_step_give_the_same_bits(name, randomize, backend, monkeypatch):
    def play():
        return Driver(build(name, 3, max_episode_steps=15, randomize=randomize)).run(40)

    accelerated = play()
    monkeypatch.setattr(simulations, "accelerator", lambda: None)

    assert np.array_equal(play(), accelerated)


@pytest.fixture
def fresh_choice(monkeypatch):
    """Let the choice be made anew, and forget it afterwards."""
    monkeypatch.undo()
    simulations.accelerator.cache_clear()
    yield
    simulations.accelerator.cache_clear()


@pytest.mark.parametrize("backend", ["mujoco"], indirect=True)
@pytest.mark.parametrize("why", ["missing", "made for another MuJoCo"])
def test_robots_are_built_without_mjbatch(why, backend, fresh_choice, monkeypatch):
    if why == "missing":
        monkeypatch.setitem(sys.modules, "mjbatch", None)  # `import` takes this as missing
    else:
        monkeypatch.setattr(mujoco, "__version__", "99.0.0")

    env = build("Hopper-v5", 2, num_threads=2)

    assert simulations.accelerator() is None
    assert np.isfinite(Driver(env).run(3)).all()


@BOTH
@pytest.mark.parametrize("name", ["efc_force", "contact", "nonsense", "__class__", "ncon"])
def test_fields_without_a_fixed_size_are_not_bound(name, backend, jumper_class):
    model = jumper_class(1).physics.model

    with pytest.raises(ValueError, match=name):
        simulations.new_batch(model, 1, 1).bind(name)
