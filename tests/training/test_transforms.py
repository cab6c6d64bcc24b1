"""Transforms change rollouts between collecting and learning."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastrl import Callback
from fastrl.training import CallbackError, train
from fastrl.training.checkpoint import CheckpointStore
from fastrl.training.metrics import read_rows
from tests.training.clockwork import small_run

HERE = "tests.training.joining"


class Seen(Callback):
    """Keeps copies of the rollouts that are learnt from."""

    def __init__(self):
        self.rollouts = []

    def on_rollout(self, context, rollout):
        fields = {name: rollout.fields[name].clone() for name in rollout.fields if name in KEPT}
        self.rollouts.append(dataclasses.replace(rollout, fields=fields))


KEPT = ("reward", "bonus", "extra")


def learnt_from(path, *transforms, **changes):
    seen = Seen()
    train(small_run(path, transforms=transforms, **changes), callbacks=[seen])
    return seen.rollouts


def test_transforms_change_and_add_fields_in_their_order(tmp_path):
    plain = learnt_from(tmp_path / "plain")
    half = {"path": f"{HERE}:doubled", "kwargs": {"factor": 0.5}}
    found = learnt_from(tmp_path / "run", f"{HERE}:doubled", half)
    assert (found[0].bonus == 0.5).all()
    assert torch.equal(found[0].reward, plain[0].reward)
    found = learnt_from(tmp_path / "other", f"{HERE}:doubled")
    assert torch.equal(found[0].reward, 2 * plain[0].reward)


def test_added_fields_reach_a_loss(tmp_path):
    half = {"path": f"{HERE}:doubled", "kwargs": {"factor": 0.5}}
    algorithm = {"class_path": "tests.outside:Rewarded"}
    train(small_run(tmp_path / "run", transforms=[half], algorithm=algorithm))
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["bonus"] for row in rows if row["kind"] == "training"][-1] == 0.5


def test_what_is_learnt_changes_and_what_environments_gave_is_reported(tmp_path):
    paths = {"plain": (), "shaped": (f"{HERE}:Shaping",)}
    for name, transforms in paths.items():
        train(small_run(tmp_path / name, transforms=transforms, total_steps=64))
    plain, shaped = (next(iter(read_rows(tmp_path / name / "metrics.jsonl"))) for name in paths)
    assert plain["return_mean"] == shaped["return_mean"]
    assert plain["value_loss"] != shaped["value_loss"]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("nothing", "must return a Rollout, got a NoneType; dataclasses.replace"),
        ("shape", r": 'reward' must be float32 \[8, 8\], got float32 \[8\]"),
        ("dtype", r": 'reward' must be float32 \[8, 8\], got float64 \[8, 8\]"),
        (
            "bonus",
            r": the new field 'bonus' must be a tensor \[T, B, …\] = \[8, 8, …\] or .* \[8\]",
        ),
        ("number", r": the new field 'bonus' must be .* got a float"),
        ("error", "raised in its call: AttributeError: 'Tensor' object has no attribute 'nothing'"),
    ],
)
def test_transforms_that_fail_are_named_and_the_run_is_saved(tmp_path, how, told):
    wrong = {"path": f"{HERE}:Wrong", "kwargs": {"how": how}}
    with pytest.raises(
        CallbackError, match=f"^transform '{HERE}:Wrong',? ?{told}".replace("' ?", "'")
    ):
        train(small_run(tmp_path / "run", transforms=[wrong]))
    assert CheckpointStore(tmp_path / "run" / "checkpoints").load("last").steps == 0
