"""Agents learn alike from observations of any dtype and bounds."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fastrl.config import load_config
from fastrl.errors import ConfigError
from fastrl.sampling import make_sampler
from fastrl.training import evaluate_run, train
from tests.training.copied_bit import LENGTH

BYTES = {
    "uint8 0 or 1": {"dtype": "uint8"},
    "uint8 200 or 203": {"dtype": "uint8", "low": 200, "high": 203},
}
OTHERS = {
    "float32 0 or 1": {"dtype": "float32"},
    "int8 0 or 1": {"dtype": "int8"},
    "bool": {"dtype": "bool"},
    "uint8 0 or 255": {"dtype": "uint8", "high": 255},
}
IMAGES = {
    "uint8": {"dtype": "uint8", "high": 255},
    "uint8 0 or 1": {"dtype": "uint8", "high": 1},
    "float32 to 255": {"dtype": "float32", "high": 255},
    "uint16 to 65535": {"dtype": "uint16", "high": 65535},
}


def configuration(path, kwargs, *changes):
    return load_config(
        None,
        [
            "env.id=tests.training.copied_bit:CopiedBit",
            f"env.kwargs={kwargs}",
            "sampler.kind=serial",
            "sampler.num_env_workers=1",
            "sampler.envs_per_worker=8",
            "sampler.rollout_length=32",
            "algorithm.gamma=0",
            "algorithm.learning_rate=3e-3",
            "algorithm.epochs=4",
            "total_steps=3072",
            "algorithm.torch_threads=1",
            "model.conv_features=16",
            "model.conv_layers=[[4, 4, 4]]",
            "evaluation.every_steps=1000000",
            "evaluation.final_episodes=10",
            "logging.tensorboard=false",
            f"run_dir={path / 'run'}",
            *changes,
        ],
    )


def score(path, kwargs, *changes):
    return train(configuration(path, kwargs, *changes)).outcome.evaluation.return_mean


# A guess is right half of the time.
@pytest.mark.parametrize("name", BYTES)
def test_a_bit_is_copied_whatever_bytes_stand_for_it(tmp_path, name):
    assert score(tmp_path, BYTES[name]) >= 0.95 * LENGTH


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_bit_is_copied_whatever_stands_for_it(tmp_path, name):
    assert score(tmp_path, OTHERS[name]) >= 0.95 * LENGTH


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_a_bright_image_is_told_from_a_dark_one(tmp_path, name):
    assert score(tmp_path, {**IMAGES[name], "shape": [8, 8, 1]}) >= 0.95 * LENGTH


@pytest.mark.slow
def test_images_without_bounds_are_normalised(tmp_path):
    kwargs = {"dtype": "float32", "low": 3e4, "high": 3e4 + 50, "shape": [8, 8, 1]}
    changes = "model.normalize_observations=true"
    assert score(tmp_path, {**kwargs, "unbounded": True}, changes) >= 0.95 * LENGTH


def test_a_run_says_which_layout_it_took(tmp_path):
    screen = io.StringIO()
    config = configuration(
        tmp_path, {"shape": [2, 8, 9, 3]}, "total_steps=256", "evaluation.enabled=false"
    )
    train(config, console=Console(file=screen, width=200))
    said = [line for line in screen.getvalue().splitlines() if "images" in line]
    assert said == [
        "observations (2, 8, 9, 3) are images of 8 × 9 pixels with 6 channels (SHWC); "
        "model.image_layout can change this"
    ]


def test_a_run_with_an_ambiguous_layout_ends_at_once(tmp_path):
    config = configuration(tmp_path, {"shape": [8, 9, 10]})
    with pytest.raises(ConfigError, match=r"^model\.image_layout: an observation of shape"):
        train(config)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_checkpoint_is_evaluated_in_the_layout_of_its_run(tmp_path):
    changes = ("model.image_layout=CHW", "total_steps=256", "evaluation.enabled=false")
    run = train(configuration(tmp_path, {"shape": [8, 9, 10]}, *changes))
    assert len(evaluate_run(run.path, episodes=2).result.returns) == 2


def test_keys_of_dicts_reach_environments_and_users_as_they_are(tmp_path):
    kwargs = "env.id=tests.vector.envs:KeyedEnv"
    run = train(configuration(tmp_path, {}, kwargs, "total_steps=256"))
    assert run.outcome.evaluation is not None
    assert len(evaluate_run(run.path, episodes=2).result.returns) == 2
    with make_sampler(run.config) as sampler:
        rollout = sampler.collect()
    assert rollout.observation.keys() == {3, 4}
    assert rollout.action.keys() == {1, (2, "b")}
