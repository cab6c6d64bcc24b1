"""A file in place of a checkpoint is rejected with one line, and no code of it runs."""

from __future__ import annotations

import hashlib
import io
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrl.config import EnvConfig
from fastrl.envs.state import pack, unpack
from fastrl.errors import FastrlError
from fastrl.training import resume, train
from fastrl.training.checkpoint import CheckpointStore
from tests.training.clockwork import small_run

ENVIRONMENTS = "environments.safetensors"

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
TREES = st.recursive(
    SCALARS | st.builds(torch.zeros, st.integers(0, 3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=6,
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)
)


@pytest.fixture
def run(trained, tmp_path):
    """A run of one update, and a function that puts other contents into its last checkpoint."""
    path = tmp_path / "run"

    def tamper(state=None, about=None, raw=None, environments=None):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(trained, path)
        store = CheckpointStore(path / "checkpoints")
        directory = path / "checkpoints" / store.names()[-1]
        if state is not None or raw is not None:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            (directory / "state.pt").write_bytes(buffer.getvalue() if raw is None else raw)
        if environments is not None:
            (directory / ENVIRONMENTS).write_bytes(environments)
        meta = json.loads((directory / "meta.json").read_text())
        meta |= about or {}
        for name in ("state.pt", ENVIRONMENTS):
            if (directory / name).exists():
                content = (directory / name).read_bytes()
                meta["sha256"][name] = hashlib.sha256(content).hexdigest()
        (directory / "meta.json").write_text(json.dumps(meta))
        return path

    tamper()
    return tamper


def assert_refused_or_resumed(path):
    """Any outcome but a traceback of something else."""
    try:
        done = resume(path, ["total_steps=128"])
    except FastrlError as error:
        told = str(error)
    else:
        told = f"{done.outcome.steps} steps"
    assert len(told.splitlines()) == 1


FUZZ = settings(
    max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@given(state=TREES)
@FUZZ
def test_any_state(run, state):
    assert_refused_or_resumed(run(state))


@given(part=st.sampled_from(["learner", "random", "extensions", "latest_episodes"]), state=TREES)
@FUZZ
def test_any_part_of_the_state(run, part, state):
    whole = torch.load(
        CheckpointStore(run() / "checkpoints")._directory / "step_000000000064" / "state.pt",
        weights_only=True,
    )
    assert_refused_or_resumed(run({**whole, part: state}))


@given(key=st.sampled_from(["episodes", "wall_s", "env", "episode_info", "updates"]), value=JSON)
@FUZZ
def test_any_number_about_it(run, key, value):
    assert_refused_or_resumed(run(about={key: value}))


@given(raw=st.binary(max_size=200))
@FUZZ
def test_any_bytes(run, raw):
    assert_refused_or_resumed(run(raw=raw))


@given(raw=st.binary(max_size=200))
@FUZZ
def test_any_bytes_for_environments(run, raw):
    assert_refused_or_resumed(run(environments=raw))


@given(state=TREES)
@FUZZ
def test_any_state_of_environments(run, state):
    assert_refused_or_resumed(run(environments=pack(state)))


@pytest.fixture(scope="module")
def saveable(tmp_path_factory):
    """The state of environments in a run of such that can be saved."""
    path = tmp_path_factory.mktemp("saveable") / "run"
    train(small_run(path, env=EnvConfig(id="tests.training.saveable:Saveable"), total_steps=64))
    return path, unpack(CheckpointStore(path / "checkpoints").load("last").environments)


WORKER = st.fixed_dictionaries(
    {}, optional={"groups": st.lists(TREES.map(pack) | TREES, max_size=2), "streams": TREES}
)


@given(
    part=st.sampled_from(["workers", "seeded", "observation", "episodes", "layout"]), data=st.data()
)
@settings(FUZZ, max_examples=10)
def test_any_part_of_the_state_of_environments(saveable, tmp_path, part, data):
    origin, whole = saveable
    path = tmp_path / "run"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(origin, path)
    directory = path / "checkpoints" / "step_000000000064"
    value = data.draw(TREES)
    if part == "workers" and data.draw(st.booleans()):
        value = [pack(data.draw(WORKER)) for _ in range(2)]
    content = pack({**whole, part: value})
    (directory / ENVIRONMENTS).write_bytes(content)
    meta = json.loads((directory / "meta.json").read_text())
    meta["sha256"][ENVIRONMENTS] = hashlib.sha256(content).hexdigest()
    (directory / "meta.json").write_text(json.dumps(meta))
    assert_refused_or_resumed(path)
