"""Whole runs in their directories."""

from __future__ import annotations

import io
import json
import re
import shutil

import pytest
import torch
from rich.console import Console

from fastrl.config import (
    EnvConfig,
    EvaluationConfig,
    FaultsConfig,
    LoggingConfig,
    PPOConfig,
    SamplerConfig,
    load_config,
)
from fastrl.errors import ConfigError, EnvError, FastrlError, WorkerError
from fastrl.training import evaluate_run, record_run, resume, train
from fastrl.training.checkpoint import CheckpointError, CheckpointStore
from fastrl.training.metrics import read_rows
from tests.training.clockwork import small_run

PROCESSES = SamplerConfig(envs_per_worker=4, num_env_workers=2, rollout_length=8)


def rows(path, kind):
    return [row for row in read_rows(path / "metrics.jsonl") if row["kind"] == kind]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with everything switched on."""
    path = tmp_path_factory.mktemp("finished") / "run"
    evaluation = EvaluationConfig(every_steps=128, episodes=3, final_episodes=5)
    logging = LoggingConfig(every_steps=64)
    done = train(small_run(path, sampler=PROCESSES, evaluation=evaluation, logging=logging))
    return done


def test_summary_has_what_it_promises(finished):
    summary = json.loads((finished.path / "summary.json").read_text())
    outcome = finished.outcome
    assert list(summary) == [
        "env",
        "algorithm",
        "seed",
        "steps",
        "wall_s",
        "steps_per_s",
        "eval_return_mean",
        "eval_return_std",
        "eval_episodes",
        "eval_cut",
    ]
    assert summary["env"] == "tests.training.clockwork:Clockwork"
    assert (summary["algorithm"], summary["seed"], summary["steps"]) == ("ppo", 3, 512)
    assert summary["steps_per_s"] == pytest.approx(512 / summary["wall_s"])
    assert summary["eval_episodes"] == 5
    assert summary["eval_return_mean"] == outcome.evaluation.return_mean


def test_rows_of_training_say_how_it_goes(finished):
    found = rows(finished.path, "training")
    assert [row["steps"] for row in found] == list(range(64, 513, 64))
    for row in found:
        assert 0 <= row["sampling_share"] + row["learning_share"] <= 1
        assert row["fps"] > 0
        assert row["policy_lag"] == 0
        assert 0 <= row["clip_fraction"] <= 1
        assert row["approx_kl"] >= 0
        assert row["explained_variance"] <= 1
    assert found[-1]["episodes"] == 128
    assert found[-1]["length_mean"] == 4


def test_evaluations_are_written_down_and_the_best_is_kept(finished):
    (final,) = rows(finished.path, "final_evaluation")
    assert (final["steps"], final["episodes"], final["cut"]) == (512, 5, 0)
    found = rows(finished.path, "evaluation")
    during = {row["steps"]: row["return_mean"] for row in found}
    assert during
    assert all(row["episodes"] == 3 for row in found)
    best = CheckpointStore(finished.path / "checkpoints").best()
    known = {**during, 512: final["return_mean"]}
    assert best["return_mean"] == max(known.values()) == known[best["steps"]]


def test_final_policy_is_the_best_where_no_earlier_one_is_better(tmp_path):
    evaluation = EvaluationConfig(every_steps=64, episodes=1, final_episodes=2)
    done = train(small_run(tmp_path / "run", evaluation=evaluation))
    assert 512 not in {row["steps"] for row in rows(done.path, "evaluation")}
    assert rows(done.path, "final_evaluation")[-1]["steps"] == 512
    found = evaluate_run(done.path)
    best = CheckpointStore(done.path / "checkpoints").best()
    assert (best["checkpoint"], best["steps"]) == (found.checkpoint, found.steps)
    assert (best["return_mean"], best["episodes"]) == (found.result.return_mean, 2)
    first = evaluate_run(done.path, checkpoint="step_000000000064").result.return_mean
    last = done.outcome.evaluation.return_mean
    assert first < last <= found.result.return_mean


def test_configuration_is_saved_resolved(finished):
    config = finished.config
    assert config.sampler.num_env_workers == 2
    assert config.run_dir == str(finished.path)


def test_run_is_evaluated_again_with_the_same_result(finished):
    found = evaluate_run(finished.path, checkpoint="last")
    assert (found.checkpoint, found.steps) == ("step_000000000512", 512)
    assert found.result == finished.outcome.evaluation
    assert len(evaluate_run(finished.path, episodes=7).result.returns) == 7


def test_best_checkpoint_is_evaluated_unless_another_is_named(finished):
    best = CheckpointStore(finished.path / "checkpoints").best()
    assert evaluate_run(finished.path, episodes=1).checkpoint == best["checkpoint"]
    named = evaluate_run(finished.path, episodes=1, checkpoint="step_000000000064")
    assert named.steps == 64
    with pytest.raises(CheckpointError, match="no checkpoint 'step_7'"):
        evaluate_run(finished.path, checkpoint="step_7")


def test_sampled_actions_differ_from_the_likeliest(finished):
    first = CheckpointStore(finished.path / "checkpoints").names()[0]
    sampled = [
        evaluate_run(
            finished.path, episodes=40, deterministic=False, seed=seed, checkpoint=first
        ).result
        for seed in (0, 0, 1)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    assert len(set(sampled[0].returns)) > 1


def test_video_goes_into_the_run(finished):
    path, returns = record_run(finished.path, finished.path / "videos" / "x.gif", episodes=2)
    assert path.stat().st_size > 0
    assert len(returns) == 2


def test_training_stops_at_the_score_and_keeps_that_policy(tmp_path):
    evaluation = EvaluationConfig(every_steps=64, episodes=4, final_episodes=4, stop_at=0.0)
    config = small_run(tmp_path / "run", total_steps=10**7, evaluation=evaluation)
    done = train(config)
    assert done.outcome.steps < 10**7
    assert done.outcome.interrupted is None
    best = CheckpointStore(done.path / "checkpoints").best()
    assert best["return_mean"] == done.outcome.evaluation.return_mean >= 0.0
    assert best["steps"] <= done.outcome.steps


def test_passing_policy_is_judged_by_the_final_number_of_episodes(tmp_path):
    evaluation = EvaluationConfig(every_steps=64, episodes=1, final_episodes=6, stop_at=0.0)
    done = train(small_run(tmp_path / "run", total_steps=10**7, evaluation=evaluation))
    assert len(done.outcome.evaluation.returns) == 6
    best = CheckpointStore(done.path / "checkpoints").best()["checkpoint"]
    assert done.outcome.evaluation == evaluate_run(done.path, checkpoint=best).result


def test_asynchronous_training_tells_its_lag(tmp_path):
    sampler = PROCESSES.model_copy(update={"mode": "async"})
    done = train(small_run(tmp_path / "run", sampler=sampler, total_steps=1024))
    lags = [row["policy_lag"] for row in rows(done.path, "training")]
    assert done.outcome.steps == 1024
    assert all(0 <= lag <= 1 for lag in lags)
    assert any(lag == 1 for lag in lags)


@pytest.mark.parametrize(("kind", "error"), [("process", WorkerError), ("serial", EnvError)])
def test_what_was_learnt_is_saved_when_an_environment_breaks(tmp_path, kind, error):
    path = tmp_path / "run"
    sampler = PROCESSES.model_copy(update={"kind": kind})
    env = EnvConfig(id="tests.training.clockwork:Breaking")
    faults = FaultsConfig(max_restarts=0)
    config = small_run(path, sampler=sampler, env=env, faults=faults)
    with pytest.raises(error, match="the simulator exploded"):
        train(
            config.model_copy(
                update={"checkpoint": config.checkpoint.model_copy(update={"every_steps": None})}
            )
        )
    # Three rollouts of 8 steps come before the 30th.
    store = CheckpointStore(path / "checkpoints")
    assert store.names() == ["step_000000000000", "step_000000000192"]
    assert store.load("last").about["updates"] == 3
    assert [row["steps"] for row in rows(path, "training")] == [64, 128, 192]
    assert not (path / "summary.json").exists()
    with pytest.raises(error):
        resume(path)
    assert store.load("last").steps == 384


def test_run_goes_on_when_environments_break_and_says_so(tmp_path):
    env = EnvConfig(id="tests.training.clockwork:Breaking")
    done = train(small_run(tmp_path / "run", sampler=PROCESSES, env=env))
    assert done.outcome.steps == 512
    faults = [json.loads(line) for line in (done.path / "faults.jsonl").read_text().splitlines()]
    assert len(faults) >= 2
    for fault in faults:
        assert "the simulator exploded" in fault["cause"]
        assert "in step" in fault["remote_traceback"]
        (suspect,) = fault["suspects"]
        assert suspect.keys() == {"env", "seed", "episode", "action"}
    restarts = [row["restarts"] for row in rows(done.path, "training")]
    assert restarts == sorted(restarts)
    assert restarts[-1] == len(faults)


@pytest.mark.parametrize(
    ("kind", "env_id"), [("process", "Undefined"), ("serial", "Undefined"), ("serial", "Unbounded")]
)
def test_number_that_is_not_finite_ends_the_run_and_is_named(tmp_path, kind, env_id):
    sampler = PROCESSES.model_copy(update={"kind": kind})
    env = EnvConfig(id=f"tests.training.clockwork:{env_id}")
    config = small_run(tmp_path / "run", sampler=sampler, env=env)
    number, field = {"Undefined": ("nan", "observation"), "Unbounded": ("inf", "reward")}[env_id]
    told = rf"^{field} is {number} at step [56] of rollout 3, in env \d of 'tests.*{env_id}'; see "
    with pytest.raises(EnvError, match=told):
        train(config)
    assert CheckpointStore(tmp_path / "run" / "checkpoints").load("last").steps == 192


@pytest.mark.parametrize("env_id", ["Undefined", "Unrewarded"])
def test_episode_of_a_bad_number_is_truncated(tmp_path, env_id):
    env = EnvConfig(id=f"tests.training.clockwork:{env_id}")
    faults = FaultsConfig(bad_numbers="truncate_episode", max_restarts=100)
    done = train(small_run(tmp_path / "run", sampler=PROCESSES, env=env, faults=faults))
    assert done.outcome.steps == 512
    (first, *_) = (done.path / "faults.jsonl").read_text().splitlines()
    # The first of either worker's environments.
    told = r"EnvError: env [04] of 'tests\.training\.clockwork"
    assert re.search(told, json.loads(first)["cause"])


@pytest.mark.parametrize("env_id", ["Undefined", "Unrewarded"])
def test_update_of_a_bad_number_is_left_out(tmp_path, env_id):
    env = EnvConfig(id=f"tests.training.clockwork:{env_id}")
    done = train(
        small_run(tmp_path / "run", env=env, faults=FaultsConfig(bad_numbers="skip_update"))
    )
    assert done.outcome.steps == 512
    skipped = [row["skipped_updates"] for row in rows(done.path, "training")]
    assert skipped == [0, 0, 0, 1, 0, 0, 0, 0]
    checkpoint = CheckpointStore(done.path / "checkpoints").load("last")
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.model.values())
    assert checkpoint.about["updates"] == 8


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    path = tmp_path / "run"
    env = EnvConfig(id="tests.training.clockwork:Overflowing")
    config = small_run(path, env=env)
    algorithm = config.algorithm.model_copy(
        update={"normalize_rewards": False, "reward_scale": 1000.0}
    )
    with pytest.raises(FastrlError, match="learning diverged"):
        train(config.model_copy(update={"algorithm": algorithm}))
    store = CheckpointStore(path / "checkpoints")
    assert store.names()[-1] == "step_000000000192"
    for tensor in store.load("last").model.values():
        assert torch.isfinite(tensor).all()


def test_mistakes_leave_nothing_behind(tmp_path):
    for env_id, error in (("NoSuchEnv-v0", EnvError), ("no.module:make", EnvError)):
        with pytest.raises(error):
            train(small_run(tmp_path / "run", env=EnvConfig(id=env_id)))
    config = small_run(tmp_path / "run")
    algorithm = config.algorithm.model_copy(update={"device": "cuda:77"})
    with pytest.raises(ConfigError, match="CUDA"):
        train(config.model_copy(update={"algorithm": algorithm}))
    assert not list(tmp_path.iterdir())


def test_run_without_evaluation_has_none_in_its_summary(tmp_path):
    done = train(small_run(tmp_path / "run"))
    summary = json.loads((done.path / "summary.json").read_text())
    assert summary["eval_return_mean"] is None
    assert summary["eval_episodes"] == 0
    assert done.outcome.evaluation is None


def test_video_without_a_name_goes_into_the_run(finished, monkeypatch):
    monkeypatch.setattr("fastrl.formats.find_spec", lambda name: None)
    path, _ = record_run(finished.path, checkpoint="last")
    assert path == finished.path / "videos" / "step_000000000512.gif"
    assert record_run(finished.path, str(path))[0] == path


def test_videos_of_an_environment_without_pictures_are_refused_before_training(tmp_path):
    evaluation = EvaluationConfig(video=True)
    env = EnvConfig(id="tests.training.clockwork:Uneven")
    with pytest.raises(EnvError, match="videos need render_mode='rgb_array'"):
        train(small_run(tmp_path / "run", env=env, evaluation=evaluation))
    assert not (tmp_path / "run").exists()


def test_environment_of_the_evaluation_is_looked_at_before_training(tmp_path):
    evaluation = EvaluationConfig(env_kwargs={"colour": "red"})
    with pytest.raises(EnvError, match=r"cannot be built with \{'colour': 'red'\}"):
        train(small_run(tmp_path / "run", evaluation=evaluation))
    assert not (tmp_path / "run").exists()


def test_too_many_environments_are_refused_before_anything_is_made_for_each(tmp_path, monkeypatch):
    def seeds(*_):
        raise AssertionError("two billion of them would fill the memory")

    monkeypatch.setattr("fastrl.workers.plan.SamplingPlan.env_seeds", seeds)
    sampler = SamplerConfig(kind="serial", envs_per_worker=2**31 - 1, num_env_workers=1)
    with pytest.raises(
        FastrlError, match=r"^not enough memory for .*lower sampler\.rollout_length"
    ):
        train(small_run(tmp_path / "run", sampler=sampler))


def test_minibatch_larger_than_a_rollout_is_remarked_upon(tmp_path):
    with io.StringIO() as told:
        config = small_run(tmp_path / "run", total_steps=64, algorithm=PPOConfig(minibatch_size=99))
        train(config, console=Console(file=told, width=200))
        assert (
            "algorithm.minibatch_size (99) is more than the 64 transitions of a rollout: every "
            "epoch is one gradient step" in told.getvalue()
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: train("config.yaml"), "train takes a Config, got 'config.yaml'; load_config"),
        (lambda run: train({"env": {"id": "A"}}), "train takes a Config, got "),
        (
            lambda run: train(load_config(None, ["env.id=A"]), name=3),
            "--name 3: must be 1 to 100",
        ),
        (lambda run: evaluate_run(None), "a run is given by its directory or its name, got None"),
        (lambda run: evaluate_run(run, episodes=0), "episodes must be a whole number"),
        (lambda run: record_run(run, "x.gif", episodes=0), "episodes must be a whole number"),
        (lambda run: record_run(run, "x"), "'x' must end in .mp4 or .gif"),
        (lambda run: resume(3), "a run is given by its directory or its name, got 3"),
        (lambda run: resume(run, "total_steps=9"), "overrides are a list of texts"),
        (lambda run: resume(run, ["run_dir=x"]), "run_dir: a resumed run stays in its directory, "),
        (lambda run: resume(run, ["init_from=x"]), "init_from: a resumed run keeps its weights"),
    ],
)
def test_argument_that_is_wrong_is_one_line(finished, call, message):
    with pytest.raises(ConfigError) as caught:
        call(finished.path)
    assert str(caught.value).startswith(message)


def test_checkpoint_of_something_else_is_one_line(finished, tmp_path):
    path = shutil.copytree(finished.path, tmp_path / "run")
    written = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(written.replace(":Clockwork", ":Uneven"))
    with pytest.raises(CheckpointError, match=r"of the environment '.*:Clockwork', this run is of"):
        evaluate_run(path, trust=True)
    (path / "config.yaml").write_text(written.replace("hidden_sizes: [8]", "hidden_sizes: [9]"))
    told = r"^checkpoint step_\d+ belongs to another model: actor_body\.mlp\.0\.bias is \(8,\)"
    with pytest.raises(CheckpointError, match=told):
        evaluate_run(path, trust=True)


def test_run_that_is_at_its_end_says_how_many_steps_it_takes_to_go_on(finished):
    told = r"has trained its 512 steps; to continue: fastrl resume .* total_steps="
    for changes, enough in (((), 1024), (("total_steps=300",), 600), (("total_steps=8",), 1024)):
        with pytest.raises(ConfigError, match=f"{told}{enough}$"):
            resume(finished.path, changes)
