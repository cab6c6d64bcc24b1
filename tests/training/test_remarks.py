"""What a run remarks on: what is seldom meant, and signs that nothing is learnt, each once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from hypothesis import given
from hypothesis import strategies as st

from fastrl import Config, EnvSpec, load_config
from fastrl.cli import main
from fastrl.envs.env_factory import EnvFactory
from fastrl.training.remarks import LearningSigns, coarse_observations, remarks
from tests.training.reach import Reach

HEALTHY = {"explained_variance": 0.9, "value_loss": 0.3, "policy_loss": -0.01}
UNEXPLAINED = {**HEALTHY, "explained_variance": 0.001}
DWARFED = {**HEALTHY, "value_loss": 4000.0}


def said(rows, shares=True):
    signs = LearningSigns(value_coef=0.5, is_body_shared=shares)
    return [sign for row in rows for sign in signs.found_in(row)]


def test_a_run_that_learns_gets_no_remark():
    assert said([HEALTHY] * 100) == []


def test_a_sign_must_last_and_is_reported_once():
    assert said([UNEXPLAINED] * 9 + [HEALTHY]) == []
    (line,) = said([UNEXPLAINED] * 50)
    assert "explained_variance" in line
    assert "docs/guide/not_learning.md" in line


def test_a_large_value_loss_matters_only_to_a_shared_body():
    (line,) = said([DWARFED] * 50)
    assert "model.shared_body=false" in line
    assert said([DWARFED] * 50, shares=False) == []


def test_metrics_without_these_numbers_are_passed_over():
    assert said([{}, {"explained_variance": float("nan")}] * 30) == []


@pytest.mark.parametrize(("name", "count"), [("ppo", 1), ("bc", 0)])
def test_demonstrations_that_are_not_learnt_from_are_named(name, count):
    keys = ["env.id=CartPole-v1", f"algorithm.name={name}", "dataset.path=anywhere"]
    lines = [*remarks(load_config(None, keys), EnvFactory("CartPole-v1").probe())]
    told = f"dataset has no effect: {name} learns from no demonstrations"
    assert lines.count(told) == count


@pytest.mark.parametrize("sign", ["explained_variance stays below 0.05"])
def test_the_log_of_a_run_points_to_the_guide(tmp_path, capsys, sign):
    overrides = [
        "env.id=tests.training.reach:Noise",
        "total_steps=4000",
        f"run_dir={tmp_path / 'run'}",
        "logging.every_steps=100",
        "evaluation.enabled=false",
        "sampler.kind=serial",
        "sampler.num_env_workers=1",
        "sampler.envs_per_worker=2",
        "sampler.rollout_length=64",
        "algorithm.epochs=1",
    ]
    assert main(["train", *overrides]) == 0
    assert sign in capsys.readouterr().err
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(row)["explained_variance"] for row in rows[-10:]) < 0.05


ACTION = spaces.Box(-1, 1, (2,))


def remarked(env_spec, before=None, **sections):
    config = Config.model_validate({"env": {"id": "x", **sections.pop("env", {})}})
    config = config.model_copy(update={"model": config.model.model_copy(update=sections)})
    return list(remarks(config, env_spec, before))


def acts_in(*bounds):
    return EnvSpec("x", spaces.Box(-1, 1, (3,)), spaces.Box(*bounds, (2,), np.float32))


def test_range_of_which_the_first_actions_try_hardly_anything_is_named():
    (line,) = remarked(acts_in(-1000, 1000))
    assert line == (
        "actions range from -1000 to 1000, and the first ones of the policy have a standard "
        "deviation of 1: hardly any of that range is tried; try env.action_bounds=squash, see "
        "docs/guide/not_learning.md"
    )
    assert remarked(acts_in(-1000, 1000), env={"action_bounds": "squash"}) == []
    assert remarked(acts_in(-100, 100), log_std_init=3.0) == []


@pytest.mark.parametrize("bounds", [(-0.001, 0.001), (5, 6), (-6, -5), (999, 1000)])
def test_range_to_which_nearly_all_first_actions_are_clipped_is_named(bounds):
    (line,) = remarked(acts_in(*bounds))
    assert f"actions range from {bounds[0]:g} to {bounds[1]:g}" in line
    assert "clipped to a bound" in line


@given(st.floats(0.1, 25), st.floats(-0.5, 0.5))
def test_usual_ranges_of_actions_get_no_remark(half, shift):
    low, high = half * (shift - 1), half * (shift + 1)
    assert remarked(acts_in(low, high)) == []


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0, np.inf), (-3e38, 3e38)])
def test_actions_without_bounds_get_no_remark(bounds):
    assert remarked(acts_in(*bounds)) == []


LINEAR = {"learning_rate": 1e-3, "learning_rate_schedule": "linear", "clip_schedule": "linear"}


def went_on(total_steps, steps, **algorithm):
    """Return what is said of a run of 1000 steps that goes on after ``steps``."""
    before, now = (
        Config.model_validate({"env": {"id": "x"}, "algorithm": algorithm, "total_steps": total})
        for total in (1000, total_steps)
    )
    return list(remarks(now, acts_in(-1, 1), before, steps))


def test_jump_of_a_schedule_after_more_steps_were_asked_for_is_named():
    (line,) = went_on(2000, 1000, **LINEAR)
    assert line == (
        "total_steps is 2,000 and was 1,000: schedules go by the new end, and "
        "algorithm.learning_rate from 0 to 0.0005, algorithm.clip_range from 0 to 0.1 jump up"
    )
    (line,) = went_on(4000, 500, learning_rate=1e-3, learning_rate_schedule="cosine")
    assert line.endswith("algorithm.learning_rate from 0.0005 to 0.000962 jumps up")


@pytest.mark.parametrize(
    ("total_steps", "steps", "algorithm"),
    [
        (1000, 500, LINEAR),
        (800, 500, LINEAR),
        (2000, 500, {}),
        (2000, 500, {"learning_rate_schedule": "kl_adaptive", "target_kl": 0.01}),
        (2000, 500, {"name": "a2c"}),
    ],
)
def test_schedules_that_do_not_jump_up_get_no_remark(total_steps, steps, algorithm):
    assert went_on(total_steps, steps, **algorithm) == []


class Inside(gymnasium.Env):
    """Holds what it normalises by in an environment that it is made of."""

    def __init__(self):
        self.env = NormalizeObservation(Reach())
        self.observation_space, self.action_space = self.env.observation_space, ACTION


@pytest.mark.parametrize(
    ("make", "names", "instead"),
    [
        (lambda: NormalizeReward(Reach()), "NormalizeReward", "algorithm.normalize_rewards"),
        (lambda: NormalizeObservation(Reach()), "NormalizeObservation", "model.normalize_obs"),
        (Inside, "NormalizeObservation", "model.normalize_observations=true"),
        (
            lambda num_envs: SyncVectorEnv([lambda: NormalizeObservation(Reach())] * num_envs),
            "NormalizeObservation",
            "model.normalize_observations=true",
        ),
        (
            lambda num_envs: gymnasium.wrappers.vector.NormalizeReward(
                SyncVectorEnv([Reach] * num_envs)
            ),
            "NormalizeReward",
            "algorithm.normalize_rewards=true",
        ),
    ],
)
def test_wrapper_with_statistics_of_its_own_is_named_with_the_key_to_use(make, names, instead):
    (line,) = remarked(EnvFactory(make).probe())
    assert line.startswith(f"{names} keeps running statistics")
    assert instead in line


def test_several_wrappers_with_statistics_are_named_each():
    wrappers = ["gymnasium.wrappers:NormalizeObservation", "gymnasium.wrappers:NormalizeReward"]
    env_spec = EnvFactory("tests.training.reach:Reach", wrappers=wrappers).probe()
    assert env_spec.running_statistics == ("NormalizeReward", "NormalizeObservation")
    assert len(remarked(env_spec)) == 2


def coarse(rows, dtype=np.float64):
    env_spec = EnvSpec("x", spaces.Box(-np.inf, np.inf, (2,), dtype), ACTION)
    stored = env_spec.observation[""].dtype
    return list(coarse_observations(torch.as_tensor(rows).to(stored), env_spec))


def walk(start, step, size=64):
    """Return observations ``[65, 4, 2]`` that go on by a step, beside others near 0."""
    rows = np.random.default_rng(0).normal(size=(size + 1, 4, 2))
    rows[..., 1] = start + step * np.arange(size + 1)[:, None]
    return rows


@pytest.mark.parametrize("start", [1.7e9, -1.7e9])
def test_observations_that_float32_blurs_are_named(start):
    (line,) = coarse(walk(start, 0.05))
    assert line == (
        "observations hold numbers of about 1,700,000,000, which float32 tells apart in steps of "
        "128: smaller changes are lost; subtract an offset in a wrapper "
        "(model.normalize_observations comes after that)"
    )
    assert len(coarse(walk(101_325.0, 1e-3))) == 1
    assert len(coarse(walk(int(start), 1), np.int64)) == 1


@given(
    st.floats(-1e10, 1e10) | st.floats(-1e5, 1e5),
    st.floats(1e-4, 1e3),
)
def test_observations_without_a_remark_keep_their_differences_and_the_advice_helps(start, step):
    rows = walk(start, step)
    stored = rows.astype(np.float32).astype(np.float64)
    if coarse(rows):
        assert coarse(rows - [0.0, start]) == []
    elif np.ptp(stored[..., 1]):  # what seems not to change may be a constant
        errors = (stored - stored[0]) - (rows - rows[0])
        assert np.abs(errors).max() < max(64 * step / 16, 1e-3)


@pytest.mark.parametrize(
    "rows",
    [
        walk(0.0, 1e-9),
        walk(1.0, 1e-9),
        walk(1e5, 0.0),
        walk(0.0, 1e7),
        walk(np.nan, 1.0),
        walk(np.inf, 1.0),
    ],
)
def test_other_observations_get_no_remark(rows):
    assert coarse(rows) == []
    assert coarse(rows.astype(np.float32), np.float32) == []


QUICK = [
    "env.id=tests.training.clocks:Clock",
    "sampler.kind=serial",
    "sampler.num_env_workers=1",
    "sampler.envs_per_worker=2",
    "sampler.rollout_length=16",
    "algorithm.minibatch_size=32",
    "evaluation.enabled=false",
]


def test_a_run_and_its_resumption_say_once_each_what_is_seldom_meant(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *QUICK, "total_steps=96", f"run_dir={run}"]) == 0
    told = capsys.readouterr().err
    assert told.count("observations 'time' hold numbers of about") == 1
    assert "action_bounds" not in told
    overrides = ["total_steps=192", "env.action_bounds=squash"]
    assert main(["resume", str(run), "--trust", *overrides]) == 0
    line = (
        "env.action_bounds: the policy was trained with 'clip' until now, and its actions change "
        "with 'squash'"
    )
    assert capsys.readouterr().err.count(line) == 1


def configurations():
    """Yield one configuration of each environment, and the others as slow."""
    seen = set()
    for path in sorted(Path("configs").glob("*.yaml")):
        env_id = re.search(r"^env:\n(?:  .*\n)*?  id: (\S+)", path.read_text(), re.MULTILINE)
        name = env_id[1] if env_id else path.stem
        yield pytest.param(path, id=path.stem, marks=pytest.mark.slow if name in seen else ())
        seen.add(name)


@pytest.mark.parametrize("path", list(configurations()))
def test_committed_configurations_get_no_remark(path):
    config = load_config(path)
    needed = {"LunarLander": "Box2D", "minigrid": "minigrid", "popgym": "popgym"}
    for begin, package in needed.items():
        if config.env.id.startswith(begin):
            pytest.importorskip(package)
    spec = EnvFactory.from_config(config.env).probe()
    expected = ("are images of", "masks of valid actions come from")
    told = remarks(config, spec, config)
    assert [line for line in told if not any(part in line for part in expected)] == []
