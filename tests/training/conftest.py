"""Fixtures of trained runs."""

from __future__ import annotations

import pytest

from fastrl.config import EnvConfig, ModelConfig
from fastrl.training import train
from tests.training.clockwork import small_run
from tests.training.spacious import SQUASHED


@pytest.fixture(scope="package")
def trained(tmp_path_factory):
    """Return the directory of a small finished run, to be copied and never changed."""
    path = tmp_path_factory.mktemp("runs") / "run"
    train(small_run(path, total_steps=64))
    return path


@pytest.fixture(scope="package")
def whole(tmp_path_factory):
    """Return the directory of a small run of 512 steps, to be copied and never changed."""
    path = tmp_path_factory.mktemp("runs") / "run"
    train(small_run(path))
    return path


@pytest.fixture(scope="package")
def spacious_run(tmp_path_factory):
    """Return a function that gives the directory of a run with a kind of spaces, to be copied."""
    paths = {}

    def run(kind):
        if kind not in paths:
            paths[kind] = tmp_path_factory.mktemp("runs") / kind
            env = EnvConfig(
                id="tests.training.spacious:Spacious",
                kwargs={"kind": kind},
                action_bounds="squash" if kind in SQUASHED else "clip",
            )
            model = ModelConfig(
                hidden_sizes=(8,),
                conv_layers=((4, 3, 2),),
                conv_features=8,
                normalize_observations=True,
            )
            train(small_run(paths[kind], total_steps=128, env=env, model=model))
        return paths[kind]

    return run
