"""A transition passes through the files that the page about the architecture lists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fastrl import build_learner, load_config, make_plan, make_sampler
from fastrl.training import Trainer
from fastrl.training.interrupts import Interrupts
from tests.test_architecture import DOCS, PACKAGE, layer_of

GROUND = layer_of("config")
"""Modules from here down are used everywhere."""


def files_entered(call):
    """Return the files of the package in which a call runs functions, in this thread."""
    found = set()

    def note(frame, event, _):
        if event == "call":
            found.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    inside = [Path(file) for file in found if Path(file).is_relative_to(PACKAGE)]
    return {path.relative_to(PACKAGE).as_posix() for path in inside}


def is_above_ground(file):
    return layer_of(file.removesuffix(".py").replace("/", ".")) > GROUND


def entered_in_an_update(kind):
    settings = [f"sampler.kind={kind}", "sampler.engine=eager", "sampler.rollout_length=8"]
    config = load_config(None, ["env.id=Pendulum-v1", "sampler.num_envs=2", *settings])
    plan = make_plan(config)
    learner = build_learner(config, plan.env_spec)
    learner.use_autograd()
    with make_sampler(config, plan) as sampler, Interrupts() as interrupts:

        def train(steps):
            Trainer(sampler, learner, steps, interrupts).run(lambda update: False)

        train(16)  # what is built once
        return files_entered(lambda: train(32))


def test_a_transition_passes_through_the_files_that_the_page_lists():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    section = page.partition("## The files of a transition\n")[2].partition("\n## ")[0]
    road = re.findall(r"^\| `(\S+)`", section, re.MULTILINE)
    beside = {Path(name).name for name in re.findall(r"`([\w/]+\.py)`", section)}
    # The first stands in for the loop of a worker, which runs in another process.
    entered = entered_in_an_update("serial") - {"sampling/serial_sampler.py"}
    entered |= entered_in_an_update("process")
    others = {file for file in entered - {*road} if is_above_ground(file)}
    assert {file for file in others if Path(file).name not in beside} == set()
    # Beside what is entered: a contract.
    assert {*road} - entered == {"envs/batched_env.py"}
    assert len(road) <= 20
