from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from fastrl.training.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from fastrl.workers.supervisor import Supervisor


def checkpoint(steps: int, value: float = 0.0) -> Checkpoint:
    return Checkpoint(
        model={"weight": torch.full((3, 2), value), "count": torch.tensor(steps)},
        state={"learner": {"mean": torch.full((6,), value), "steps": steps}, "random": [1, 2]},
        about={"env": "CartPole-v1", "steps": steps},
    )


@pytest.fixture
def store(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return CheckpointStore(tmp_path / "checkpoints", keep_last=2)


def test_what_is_saved_is_loaded(store):
    saved = checkpoint(128, 0.5)
    path = store.save(saved)
    found = store.load("last")
    assert path.name == "step_000000000128"
    assert found.about == saved.about
    assert found.steps == 128
    assert found.model.keys() == saved.model.keys()
    assert all(torch.equal(found.model[name], saved.model[name]) for name in saved.model)
    assert torch.equal(found.state["learner"]["mean"], saved.state["learner"]["mean"])
    assert found.state["random"] == [1, 2]


def test_views_of_one_memory_are_saved(store):
    flat = torch.arange(6.0)
    model = {"a": flat[:4].clone().view(2, 2), "b": flat[2:].clone()[::2]}
    store.save(Checkpoint(model, {}, {"steps": 1}))
    assert torch.equal(store.load("last").model["b"], torch.tensor([2.0, 4.0]))


def test_state_is_readable_without_running_code(store):
    path = store.save(checkpoint(1))
    assert torch.load(path / "state.pt", weights_only=True)["learner"]["steps"] == 1


def test_last_ones_and_the_best_one_are_kept(store):
    for steps in (100, 200, 300):
        store.save(checkpoint(steps))
    store.save_best(checkpoint(350), {"return_mean": 1.0})
    for steps in (400, 500, 600):
        store.save(checkpoint(steps))
    assert store.names() == ["step_000000000350", "step_000000000500", "step_000000000600"]
    assert store.load("best").steps == 350
    store.save_best(checkpoint(700), {"return_mean": 2.0})
    assert store.names() == ["step_000000000600", "step_000000000700"]
    assert store.best() == {"checkpoint": "step_000000000700", "return_mean": 2.0}


def test_a_best_policy_whose_evaluation_took_long_is_kept(store):
    for steps in (200, 300, 400, 500):
        store.save(checkpoint(steps))
    store.save_best(checkpoint(100), {"return_mean": 1.0})
    assert store.load("best").steps == 100
    store.save(checkpoint(600))
    assert store.best()["checkpoint"] == store.names()[0] == "step_000000000100"


def test_checkpoint_is_found_by_name(store):
    store.save(checkpoint(100))
    store.save(checkpoint(200))
    assert store.load("step_000000000100").steps == 100
    with pytest.raises(CheckpointError, match=r"no checkpoint 'best'.*there are last, step_0+100"):
        store.load("best")


def test_no_checkpoint_is_said(store):
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        store.load("last")


def flip_a_byte(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)


def cut_off(path: Path) -> None:
    content = (path / "state.pt").read_bytes()
    (path / "state.pt").write_bytes(content[: len(content) // 2])


def change_meta(path: Path, **changes: object) -> None:
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | changes))


DAMAGE = {
    "flipped bit": (flip_a_byte, "is damaged: model.safetensors has changed"),
    "cut off": (cut_off, "is damaged: state.pt has changed"),
    "file missing": (lambda path: (path / "state.pt").unlink(), "is damaged: state.pt: No such"),
    "meta missing": (lambda path: (path / "meta.json").unlink(), "is damaged: meta.json: No such"),
    "meta cut off": (
        lambda path: (path / "meta.json").write_text('{"format": '),
        "is damaged: meta.json is not JSON",
    ),
    "meta is a list": (
        lambda path: (path / "meta.json").write_text("[]"),
        "is not a checkpoint of fastrl",
    ),
    "foreign": (lambda path: change_meta(path, format="other"), "is not a checkpoint of fastrl"),
    "newer": (lambda path: change_meta(path, format_version=99), "has format version 99"),
    "older": (
        lambda path: change_meta(path, format_version=0),
        "has format version 0; this version of fastrl reads version 1",
    ),
    "no steps": (lambda path: change_meta(path, steps="many"), "is damaged: meta.json lacks"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_or_foreign_checkpoint_is_refused_and_the_one_before_is_offered(store, kind):
    damage, complaint = DAMAGE[kind]
    store.save(checkpoint(100))
    damage(store.save(checkpoint(200)))
    with pytest.raises(CheckpointError) as caught:
        store.load("last")
    message = str(caught.value)
    assert complaint in message
    assert message.endswith("the one before it is step_000000000100")
    assert "\n" not in message
    assert store.load("step_000000000100").steps == 100


def test_state_that_would_run_code_is_refused(store):
    path = store.save(checkpoint(100))
    hostile = path / "state.pt"
    torch.save({"learner": Path("/")}, hostile)  # any class stands for a harmful one
    meta = json.loads((path / "meta.json").read_text())
    meta["sha256"]["state.pt"] = hashlib.sha256(hostile.read_bytes()).hexdigest()
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        store.load("last")
    assert "\n" not in str(caught.value)


def test_newer_checkpoints_are_set_aside_not_deleted(store, tmp_path):
    for steps in (100, 200):
        store.save(checkpoint(steps))
    store.set_aside_after("step_000000000100")
    assert store.names() == ["step_000000000100"]
    assert (tmp_path / "checkpoints" / "discarded_step_000000000200" / "meta.json").is_file()
    store.save(checkpoint(200, 7.0))
    assert store.load("last").model["weight"][0, 0] == 7.0


def test_full_disk_is_one_line(store, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastrl.training.checkpoint.write_and_sync", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        store.save(checkpoint(1))
    assert store.names() == []


def test_run_that_was_moved_meanwhile_is_not_made_again(tmp_path):
    store = CheckpointStore(tmp_path / "gone" / "checkpoints")
    with pytest.raises(CheckpointError, match="cannot be written: No such file or directory"):
        store.save(checkpoint(1))
    assert list(tmp_path.iterdir()) == []


def save_for_ever(directory):
    Path(directory).mkdir()
    store = CheckpointStore(Path(directory), keep_last=2)
    for steps in range(10**9):
        value = torch.full((200, 200), float(steps))
        saved = Checkpoint({"w": value}, {"same": value}, {"steps": steps})
        store.save_best(saved, {"return_mean": steps})


def test_kill_while_saving_leaves_only_whole_checkpoints(tmp_path):
    """A process may die at any moment: each checkpoint that has a name is complete."""
    pick = random.Random(0)
    for attempt in range(5):
        directory = tmp_path / str(attempt)
        # Forked where torch is imported already, so that attempts are cheap.
        supervisor = Supervisor(request_stop=lambda: None)
        supervisor.start("saver", save_for_ever, str(directory))
        deadline = time.monotonic() + 60
        while not directory.is_dir():
            supervisor.check()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(pick.uniform(0.0, 0.1))
        supervisor.kill("saver")
        supervisor.stop()
        store = CheckpointStore(directory)
        for name in store.names():
            found = store.load(name)
            assert (found.model["w"] == found.steps).all()
            assert (found.state["same"] == found.steps).all()
        store.clean()
        assert not [path for path in directory.glob(".*") if path.is_dir()]
        shutil.rmtree(directory)
