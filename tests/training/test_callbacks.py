"""Callbacks are told of a run, change its course, and go on exactly when it is resumed."""

from __future__ import annotations

import dataclasses
import shutil
import signal

import pytest
import torch

import fastrl
from fastrl.cli import main
from fastrl.config import CheckpointConfig, EnvConfig, EvaluationConfig, load_config
from fastrl.errors import ConfigError, FastrlError
from fastrl.learning import build_learner
from fastrl.learning.ppo import PPO
from fastrl.training import CallbackError, resume, train
from fastrl.training import session as sessions
from fastrl.training.callbacks import RunExtensions
from fastrl.training.checkpoint import CheckpointError, CheckpointStore
from fastrl.training.metrics import read_rows
from tests.training.clockwork import small_run
from tests.training.joining import Curriculum, Failing, Heard, Killing, Slow, Stopping
from tests.training.test_exact_resume import assert_exact, sampler
from tests.training.test_resume import MIDDLE, assert_same, final_state

HERE = "tests.training.joining"
CLIMBING = EnvConfig(id=f"{HERE}:Climbing")


def climbing(path, **changes):
    return small_run(path, **{"env": CLIMBING, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the directory of a run without callbacks, never changed."""
    return train(climbing(tmp_path_factory.mktemp("whole") / "run")).path


@pytest.fixture(scope="module")
def _curriculum(tmp_path_factory):
    path = tmp_path_factory.mktemp("curriculum") / "run"
    return train(climbing(path), callbacks=[Curriculum()]).path


@pytest.fixture
def curriculum(_curriculum, tmp_path):
    """Return a copy of a run with a curriculum."""
    return shutil.copytree(_curriculum, tmp_path / "run")


def observed(monkeypatch):
    """Return a list that gets the levels that each rollout observes."""
    found = []

    def note(extensions, rollout):
        found.append(set(rollout.observation[1:, :, 1].unique().tolist()))
        return rollout

    monkeypatch.setattr(RunExtensions, "transformed", note)
    return found


def test_callbacks_are_told_in_order(tmp_path):
    evaluation = EvaluationConfig(every_steps=10**6, episodes=2, final_episodes=2)
    checkpoint = CheckpointConfig(every_steps=128)
    first, second = Heard(), Heard()
    config = climbing(
        tmp_path / "run", total_steps=192, evaluation=evaluation, checkpoint=checkpoint
    )
    train(config, callbacks=[first, second])
    step = "step_{:012d}".format
    assert first.heard == [
        ("start", 0),
        ("checkpoint", 0, step(0)),
        ("rollout", 0, 64),
        ("update", 64, 1),
        ("rollout", 64, 64),
        ("update", 128, 2),
        ("checkpoint", 128, step(128)),
        ("rollout", 128, 64),
        ("update", 192, 3),
        ("checkpoint", 192, step(192)),
        ("evaluation", 192, 192),
        ("end", 192),
    ]
    assert second.heard == first.heard


def test_callbacks_of_a_configuration_are_built_when_the_run_starts(tmp_path):
    (tmp_path / "my.yaml").write_text(
        f"env: {{id: '{HERE}:Climbing'}}\n"
        f"callbacks: ['{HERE}:Heard', {{path: '{HERE}:stopping', kwargs: {{after: 2}}}}, hearing]\n"
        "sampler: {kind: serial, num_env_workers: 1, envs_per_worker: 4, rollout_length: 8}\n"
        "evaluation: {enabled: false}\n"
        "algorithm: {minibatch_size: 16}\n"
    )
    fastrl.register("callback", "hearing", Heard)
    config = load_config(tmp_path / "my.yaml", [f"run_dir={tmp_path / 'run'}"])
    assert train(config).outcome.steps == 64
    saved = load_config(tmp_path / "run" / "config.yaml")
    assert saved.callbacks == config.callbacks


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"callbacks": [f"{HERE}:Absent"]}, r"callbacks: '.*:Absent' cannot be imported"),
        (
            {"callbacks": [f"{HERE}:doubled"]},
            "callbacks: '.*:doubled' does not take its kwargs: mis",
        ),
        (
            {"callbacks": [{"path": f"{HERE}:doubled", "kwargs": {"rollout": 3}}]},
            "callback '.*:doubled' raised in its constructor: AttributeError",
        ),
        ({"callbacks": [f"{HERE}:Climbing"]}, "a callback must be a Callback, got"),
        (
            {"callbacks": [{"path": f"{HERE}:Stopping", "kwargs": {"after": 1, "befor": 2}}]},
            r"callbacks: '.*:Stopping' does not take its kwargs: .*'befor'",
        ),
        ({"transforms": [f"{HERE}:HERE"]}, "transforms: '.*:HERE' cannot be imported"),
        (
            {"transforms": [f"{HERE}:Stopping"]},
            "transforms: '.*:Stopping' does not take its kwargs",
        ),
        (
            {"transforms": [{"path": f"{HERE}:doubled", "kwargs": {"factr": 2}}]},
            "transforms: '.*:doubled' does not take a rollout and its kwargs: .*'factr'",
        ),
    ],
)
def test_what_cannot_be_built_is_told_before_there_is_a_directory(tmp_path, entry, told):
    config = climbing(tmp_path / "run", **entry)
    with pytest.raises(FastrlError, match=told):
        train(config)
    assert not (tmp_path / "run").exists()


def test_what_is_no_callback_is_told(tmp_path):
    for given in ([Heard], [print], 3):
        with pytest.raises(ConfigError, match=r"callback.* must be a .* got"):
            train(climbing(tmp_path / "run"), callbacks=given)


def test_configurations_name_callbacks_by_path_or_name(tmp_path, capsys):
    assert main(["train", "env.id=CartPole-v1", "callbacks=[a b]"]) == 2
    assert "callbacks.0: must be" in capsys.readouterr().err
    assert main(["train", "env.id=CartPole-v1", "callbacks=[{path: 'a:b', kwarg: {}}]"]) == 2
    assert (
        "callbacks.0.kwarg: unknown key; did you mean callbacks.0.kwargs?"
        in capsys.readouterr().err
    )
    assert main(["train", "env.id=CartPole-v1", "callbacks=[heering]"]) == 2
    assert "no callback 'heering'" in capsys.readouterr().err


class Metrics(Heard):
    """Logs in every hook, writes a file and reads the run."""

    def on_start(self, context):
        context.log("started", 1)
        (context.directory / "notes.txt").write_text("begun")

    def on_update(self, context, update):
        context.log("updates", update.updates)
        context.log("updates", torch.tensor(update.updates + 1.0))
        assert context.config.total_steps == 256
        assert (context.steps, context.updates) == (update.steps, update.updates)
        for name, value in (("", 1), ("text", "many"), (3, 1)):
            with pytest.raises(ConfigError, match="log: "):
                context.log(name, value)


def test_callbacks_log_metrics_and_write_files(tmp_path):
    train(climbing(tmp_path / "run", total_steps=256), callbacks=[Metrics()])
    rows = list(read_rows(tmp_path / "run" / "metrics.jsonl"))
    assert [row["callback/updates"] for row in rows] == [1.5, 2.5, 3.5, 4.5]
    assert [row.get("callback/started") for row in rows] == [1, None, None, None]
    assert (tmp_path / "run" / "callbacks" / "notes.txt").read_text() == "begun"


def test_run_that_was_stopped_is_evaluated_and_can_be_resumed(tmp_path):
    evaluation = EvaluationConfig(every_steps=10**6, episodes=2, final_episodes=2)
    done = train(climbing(tmp_path / "run", evaluation=evaluation), callbacks=[Stopping(2)])
    assert (done.outcome.steps, done.outcome.interrupted) == (128, None)
    assert done.outcome.evaluation is not None
    assert (tmp_path / "run" / "summary.json").exists()
    assert resume(tmp_path / "run", callbacks=[Stopping(2)]).outcome.steps == 512


class Scheduling(Heard):
    """Sets the learning rate, and reads it."""

    def on_update(self, context, update):
        self.hear(context.schedules["learning_rate"], context, update.metrics["learning_rate"])
        context.set_schedule("learning_rate", {1: 0.5, 3: None}.get(update.updates, 0.25))


def test_schedules_are_read_and_set_from_the_next_update_on(whole, tmp_path):
    heard = Scheduling()
    usual = [row["learning_rate"] for row in read_rows(whole / "metrics.jsonl")]
    train(climbing(tmp_path / "run"), callbacks=[heard])
    told = [each for each in heard.heard if isinstance(each[0], float)]
    next_rates, _, rates = zip(*told, strict=True)
    assert rates[:5] == (usual[0], 0.5, 0.25, usual[3], 0.25)
    assert next_rates[:2] == (usual[1], 0.5)


def test_schedules_that_cannot_be_are_told(tmp_path):
    wrong = {"lerning_rate": 0.1, "learning_rate": -1.0, "clip_range": float("nan"), 3: 0.1}

    class Setting(Heard):
        def on_update(self, context, update):
            for name, value in wrong.items():
                with pytest.raises(ConfigError, match=r"^set_schedule: .* got"):
                    context.set_schedule(name, value)

    train(climbing(tmp_path / "run", total_steps=64), callbacks=[Setting()])


@pytest.mark.parametrize("kind", ["serial", "processes"])
def test_curriculum_reaches_every_environment_and_those_of_replaced_workers(
    tmp_path, monkeypatch, kind
):
    found = observed(monkeypatch)
    heard = Curriculum(every=2)
    callbacks = [heard] if kind == "serial" else [heard, Killing()]
    done = train(climbing(tmp_path / "run", sampler=sampler(kind)), callbacks=callbacks)
    rows = [row["callback/level"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    assert found == [{1.0}, {1.0}, *({level} for level in rows[1:-1])]
    assert len(set(rows)) == 5
    if kind == "processes":
        faults = (done.path / "faults.jsonl").read_text().splitlines()
        assert [len(faults), "env-worker-1" in faults[0]] == [1, True]


@pytest.mark.parametrize("kind", ["serial", "model worker"])
def test_resumed_run_goes_on_exactly_with_callbacks_and_transforms(tmp_path, kind):
    extensions = {
        "callbacks": [f"{HERE}:Curriculum", {"path": f"{HERE}:Curriculum", "kwargs": {"every": 3}}],
        "transforms": [f"{HERE}:Shaping", {"path": f"{HERE}:doubled", "kwargs": {"factor": 0.5}}],
    }
    train(climbing(tmp_path / "run", sampler=sampler(kind), **extensions))
    assert_exact(tmp_path / "run")


class Moving(PPO):
    """Learns from targets that a running mean of all rewards was added to."""

    mean = 0.0

    def prepare(self, experience, policy):
        prepared = super().prepare(experience, policy)
        self.mean = 0.9 * self.mean + 0.1 * float(experience["reward"].mean())
        target = prepared.fields["target"] + self.mean
        return dataclasses.replace(prepared, fields={**prepared.fields, "target": target})

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


def test_resumed_run_goes_on_exactly_with_the_state_of_an_algorithm(tmp_path, monkeypatch):
    def build(config, env_spec, ranks):
        return build_learner(config, env_spec, algorithm=Moving(config.algorithm), ranks=ranks)

    monkeypatch.setattr(sessions, "build_learner", build)
    train(climbing(tmp_path / "run", callbacks=[f"{HERE}:Curriculum"]))
    assert_exact(tmp_path / "run")
    monkeypatch.setattr(Moving, "load_state_dict", lambda algorithm, state: None)
    with pytest.raises(AssertionError):
        assert_exact(tmp_path / "run")


def test_state_of_callbacks_matters(curriculum):
    """A callback that forgets goes on otherwise: the exact test above tests something."""
    resume(curriculum, checkpoint=MIDDLE, callbacks=[Curriculum()])
    once = final_state(curriculum)
    resume(curriculum, checkpoint=MIDDLE, callbacks=[Curriculum()])
    assert_same(once, final_state(curriculum))

    class Forgetful(Curriculum):
        pass

    resume(curriculum, checkpoint=MIDDLE, callbacks=[Forgetful()])
    with pytest.raises(AssertionError):
        assert_same(once, final_state(curriculum))


def test_resumed_run_whose_environments_begin_anew_has_their_settings(tmp_path, monkeypatch):
    checkpoint = CheckpointConfig(every_steps=64, keep_last=100, environments=False)
    train(climbing(tmp_path / "run", checkpoint=checkpoint), callbacks=[Curriculum()])
    expected = [row["callback/level"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    found = observed(monkeypatch)
    resume(tmp_path / "run", checkpoint=MIDDLE, callbacks=[Stopping(4)])
    assert found == [{expected[2]}]


class Insisting(Stopping):
    """Sets a level whenever a run begins or goes on."""

    def on_start(self, context):
        context.call_envs("set_level", 7 + context.updates)


@pytest.mark.parametrize("kind", ["serial", "processes"])
def test_calls_at_the_start_hold_in_environments_that_go_on(tmp_path, monkeypatch, kind):
    found = observed(monkeypatch)
    train(climbing(tmp_path / "run", sampler=sampler(kind)), callbacks=[Insisting(2)])
    resume(tmp_path / "run", callbacks=[Insisting(3)])
    assert found == [{7}, {7}, {9}]


def test_state_without_a_callback_is_told(curriculum, caplog):
    resume(curriculum, checkpoint=MIDDLE)
    assert f"a state of the callback '{HERE}:Curriculum', which this run lacks" in caplog.text


def test_callback_that_does_not_take_its_state_is_told(curriculum, monkeypatch):
    def refuse(callback, state):
        raise ValueError("too old")

    monkeypatch.setattr(Curriculum, "load_state_dict", refuse)
    with pytest.raises(CheckpointError, match=r"Curriculum' raised in load_state_dict: ValueErr"):
        resume(curriculum, checkpoint=MIDDLE, callbacks=[Curriculum()])


@pytest.mark.parametrize("where", ["on_rollout", "on_update", "on_checkpoint"])
def test_callback_that_raises_ends_the_run_saved(whole, tmp_path, where):
    heard = Heard()
    with pytest.raises(CallbackError) as caught:
        train(climbing(tmp_path / "run"), callbacks=[Failing(where), heard])
    assert (
        str(caught.value)
        == f"callback '{HERE}:Failing' raised in {where}: ValueError: no such thing"
    )
    last = CheckpointStore(tmp_path / "run" / "checkpoints").load("last")
    assert last.steps == 128
    assert heard.heard[-1] == ("end", 128)
    resume(tmp_path / "run")
    if where != "on_rollout":  # a rollout was under way
        assert_same(final_state(whole), final_state(tmp_path / "run"))


def test_callback_that_raises_at_the_start_or_end_is_named(tmp_path):
    for where in ("on_start", "on_end"):
        with pytest.raises(CallbackError, match=f"Failing' raised in {where}: ValueError: no such"):
            train(climbing(tmp_path / where, total_steps=128), callbacks=[Failing(where)])
    assert CheckpointStore(tmp_path / "on_end" / "checkpoints").load("last").steps == 128


def test_first_failure_is_the_one_that_is_raised(tmp_path, caplog):
    failing = [Failing("on_update"), Failing("on_end")]
    with pytest.raises(CallbackError, match="Failing' raised in on_update"):
        train(climbing(tmp_path / "run"), callbacks=failing)
    assert "Failing#2' raised in on_end: ValueError: no such thing" in caplog.text


def test_state_that_cannot_be_saved_is_told(tmp_path):
    told = r"Failing' failed in state_dict: the state has an object of type object at \['where'\]"
    with pytest.raises(CallbackError, match=told):
        train(climbing(tmp_path / "run"), callbacks=[Failing("state_dict")])


@pytest.mark.parametrize(
    ("how", "told"),
    [("exit", "raised in on_update: SystemExit: 3"), ("own", "failed in on_update: this cannot")],
)
def test_whatever_a_callback_raises_is_one_line(tmp_path, how, told, capsys):
    config = climbing(
        tmp_path / "run",
        callbacks=[{"path": f"{HERE}:Failing", "kwargs": {"where": "on_update", "how": how}}],
    )
    with pytest.raises(CallbackError, match=told):
        train(config)
    assert main(["resume", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said


def test_ctrl_c_in_a_callback_is_an_interrupt(whole, tmp_path):
    done = train(climbing(tmp_path / "run"), callbacks=[Failing("on_update", "interrupt")])
    assert (done.outcome.interrupted, done.outcome.steps) == (signal.SIGINT, 128)
    resume(tmp_path / "run")
    assert_same(final_state(whole), final_state(tmp_path / "run"))


def test_sigterm_breaks_a_long_callback_off(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("fastrl.training.interrupts.HURRY_S", 0.2)
    done = train(climbing(tmp_path / "run"), callbacks=[Slow()])
    assert (done.outcome.interrupted, done.outcome.steps) == (signal.SIGTERM, 128)
    resume(tmp_path / "run")
    assert_same(final_state(whole), final_state(tmp_path / "run"))


class Calling(Heard):
    """Makes one call in the environments."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def on_update(self, context, update):
        self.call(context)


def test_calls_that_cannot_be_made_are_told(tmp_path):
    wrong = [
        (lambda c: c.call_envs("fly"), "env 0 of '.*' has no method 'fly'"),
        (lambda c: c.set_env_attribute("wings", 2), "env 0 of '.*' has no attribute 'wings'"),
        (lambda c: c.call_envs("set_level", object()), r"call_envs\('set_level'\) cannot be saved"),
        (lambda c: c.set_env_attribute("level", print), r"set_env_attribute\('level'\) cannot be"),
        (lambda c: c.call_envs("reset"), "call_envs: the name must be text other than reset"),
        (lambda c: c.call_envs(3), "call_envs: the name must be text"),
    ]

    def call(context):
        for each, told in wrong:
            with pytest.raises(FastrlError, match=f"^{told}"):
                each(context)

    train(climbing(tmp_path / "run", total_steps=64), callbacks=[Calling(call)])


def test_call_that_raises_in_an_environment_ends_the_run_saved(tmp_path):
    config = climbing(tmp_path / "run", sampler=sampler("processes"))
    told = r"Calling' failed in on_update: env 0 .* raised in set_level\(\): ValueError: "
    with pytest.raises(CallbackError, match=told):
        train(config, callbacks=[Calling(lambda context: context.call_envs("set_level", 99))])
    last = CheckpointStore(tmp_path / "run" / "checkpoints").load("last")
    assert (last.steps, last.environments is not None) == (64, True)


@pytest.mark.parametrize("kind", ["serial", "processes"])
def test_call_at_the_start_that_cannot_be_made_is_told(tmp_path, kind):
    class Early(Heard):
        def on_start(self, context):
            context.call_envs("fly")

    with pytest.raises(FastrlError, match=r"env [04] of '.*' has no method 'fly'"):
        train(climbing(tmp_path / "run", sampler=sampler(kind)), callbacks=[Early()])


def test_runs_without_callbacks_hold_nothing_of_them(tmp_path):
    train(climbing(tmp_path / "run", total_steps=64))
    state = CheckpointStore(tmp_path / "run" / "checkpoints").load("last").state["extensions"]
    assert (state["callbacks"], state["transforms"]) == ({}, {})
    assert not (tmp_path / "run" / "callbacks").exists()
