"""The throughput test counts what was sampled, and says everything that its JSON promises."""

import dataclasses
import io
import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium import spaces
from rich.console import Console

from fastrl import (
    ConfigError,
    DeviceSampler,
    FastrlError,
    Protocol,
    WorkerError,
    make_plan,
    run_throughput,
)
from fastrl.cli import main
from fastrl.config import load_config
from fastrl.envs import EnvFactory
from fastrl.envs.tensor.tensor_by_id import configured
from fastrl.sampling import ProcessSampler
from fastrl.spec import EnvSpec, Topology
from fastrl.throughput import LimitProbe
from fastrl.throughput.benchmark import policy_name
from fastrl.throughput.limits import Limit
from fastrl.throughput.measure import ThroughputMeter, measure
from tests.sampling.counting import CountingEnvs, weights
from tests.sampling.counting import make_plan as make_counting_plan
from tests.sampling.test_pause import busy_plan
from tests.tuning.busy import used_s
from tests.tuning.failing_env import failing_once


class SlowEnvs(CountingEnvs):
    """Take a tenth of a second for a step."""

    def step(self, views):
        time.sleep(0.1)
        super().step(views)


class Forgetful(CountingEnvs):
    """Writes no rewards."""

    def step(self, views):
        super().step(dataclasses.replace(views, reward=np.zeros_like(views.reward)))


OVERRIDES = ["env.id=CartPole-v1", "sampler.num_env_workers=2", "sampler.envs_per_worker=4"]


@pytest.fixture(scope="module")
def report():
    config = load_config(None, [*OVERRIDES, "sampler.num_model_workers=1", "sampler.groups=2"])
    return run_throughput(config, Protocol(0.4, 2, 0.1), with_limit=True, command="fastrl x")


def test_json_has_every_promised_key_and_plain_types(report):
    found = json.loads(json.dumps(report.to_dict()))
    assert found["env"] == "CartPole-v1"
    assert found["topology"] == {
        "envs_per_worker": 4,
        "num_env_workers": 2,
        "num_model_workers": 1,
        "groups": 2,
    }
    assert found["policy"].startswith("64×64 tanh")
    assert found["fps_min"] <= found["fps_median"] <= found["fps_max"]
    assert {"machine", "versions", "command", "date", "mode"} <= found.keys()
    assert found["versions"]["torch"]


def test_efficiency_is_measured_against_the_limit_of_the_same_window(report):
    found = report.to_dict()
    ratios = sorted(f / x["fps"] for f, x in zip(found["fps"], found["limits"], strict=True))
    assert found["efficiency"] == pytest.approx(sum(ratios) / 2)
    assert 0 < found["efficiency"] < 1.2
    assert all(0 < x["t_policy_s"] < x["t_step_s"] < 1e-3 for x in found["limits"])


def test_every_process_is_accounted_for(report):
    found = report.to_dict()
    workers = {"env-worker-0", "env-worker-1", "model-worker-0"}
    assert workers | {"throughput-meter"} == found["memory_mib"].keys()
    assert workers == found["time_shares"].keys()
    for shares in found["time_shares"].values():
        assert sum(shares.values()) == pytest.approx(1)
    assert found["time_shares"]["model-worker-0"]["stepping"] == 0
    assert found["time_shares"]["env-worker-0"]["stepping"] > 0
    assert set(found["handoff_us"]) == {"env-worker", "model-worker"}


def test_meter_agrees_with_the_counters():
    with ProcessSampler(make_counting_plan(Topology(4, 2), 10)) as sampler:
        with ThroughputMeter(sampler.counters, interval_s=0.01) as meter:
            for _ in range(20):
                rollout = sampler.collect()
            meter.wait_since(time.monotonic_ns(), count=2)
            first, last = meter.readings[0], meter.readings[-1]
        assert last.frames == 20 * rollout.num_steps
        window = last - first
        assert window.time_ns == last.time_ns - first.time_ns
        assert window.steps_per_s * window.time_ns / 1e9 == pytest.approx(window.frames)


def test_limit_is_measured_while_all_workers_wait():
    plan = busy_plan(Topology(32, 1, 1, 1), 2, 0.005)  # a step takes 0.16 s
    moved = []

    with ProcessSampler(plan, weights(1), asynchronous=True) as sampler:

        def measure_limit(seconds):
            before_s = used_s(sampler.pids().values())
            counters = sampler.counters.snapshot()
            time.sleep(0.1)
            moved.append((sampler.counters.snapshot() != counters).any())
            moved.append(used_s(sampler.pids().values()) - before_s > 0.04)
            return Limit(1, 1.0, 0.0)

        measure(sampler, Protocol(0.1, 2, 0.0), SimpleNamespace(measure=measure_limit))
    assert moved == [False] * 4


def test_steps_that_take_long_are_measured_within_a_few_of_them():
    """A rollout of these would take half a minute."""
    plan = dataclasses.replace(
        make_counting_plan(Topology(2, 1, 0, 1), 256),
        build_env=lambda num_envs: SlowEnvs(num_envs),
    )
    with ProcessSampler(plan, weights(1), asynchronous=True) as sampler:
        began_s = time.monotonic()
        found = measure(sampler, Protocol(0.3, 2, 0.1))
        assert time.monotonic() - began_s < 20
    # Whole steps of 0.1 s for two environments, however short the window.
    assert found.frames >= 2 * 2 * 3
    assert found.fps_median < 21


@pytest.mark.parametrize("sleeps", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_faults_and_deadlines_are_those_of_the_configuration(tmp_path, sleeps):
    overrides = [*failing_once(tmp_path / "flag", sleeps), *OVERRIDES[1:]]
    found = run_throughput(load_config(None, overrides), Protocol(0.2, 1, 0.0))
    assert found.measurement.frames > 0
    (tmp_path / "flag").unlink()
    strict = load_config(None, [*overrides, "faults.max_restarts=0"])
    told = "no env step within 0.5 s" if sleeps == "true" else "exit code 3"
    with pytest.raises(WorkerError, match=told):
        run_throughput(strict, Protocol(0.2, 1, 0.0))


def test_rollouts_are_checked_as_the_configuration_says():
    overrides = ["env.id=tests.throughput.test_throughput:Forgetful", *OVERRIDES[1:]]
    overrides += ["sampler.rollout_length=8"]  # so that some are complete within the window
    config = load_config(None, overrides)
    found = run_throughput(config, Protocol(0.1, 1, 0.0), random_actions=True)
    assert found.measurement.frames > 0
    debug = load_config(None, [*overrides, "sampler.debug=true"])
    with pytest.raises(FastrlError, match="'reward' was never written"):
        run_throughput(debug, Protocol(0.1, 1, 0.0), random_actions=True)


def test_random_actions_need_no_policy():
    config = load_config(None, ["env.id=Pendulum-v1", *OVERRIDES[1:]])
    report = run_throughput(config, Protocol(0.2, 1, 0.0), random_actions=True)
    assert report.policy == "random"
    assert report.measurement.fps_median > 0


def device_config(*overrides):
    return load_config(
        None,
        ["env.id=CartPole-v1", "sampler={kind: device, envs_per_worker: 8}", *overrides],
    )


def test_one_device_is_measured_with_its_policy_in_whole_rollouts():
    config = device_config("sampler.rollout_length=16")
    found = run_throughput(config, Protocol(0.3, 2, 0.0), with_limit=True).to_dict()
    assert found["frames"] > 0
    assert found["frames"] % (8 * 16) == 0
    assert found["policy"].startswith("64×64 tanh")
    assert (found["mode"], found["device"]) == ("sync", "cpu")
    assert found["memory_mib"].keys() == {"env-worker-0"}  # no other process is needed
    shares = found["time_shares"]["env-worker-0"]
    assert shares["stepping"] > 0
    assert shares["inference"] > 0
    assert sum(shares.values()) == pytest.approx(1)
    assert len(found["limits"]) == 2


def test_tensor_programs_are_measured_like_any_sampler():
    config = device_config("sampler.rollout_length=8")
    plan = make_plan(config)
    env, params = configured(config.env, plan.device(0))
    with DeviceSampler(plan, env, params) as sampler:
        found = measure(sampler, Protocol(0.1, 1, 0.0))
    assert found.frames > 0
    assert found.frames % (8 * 8) == 0
    assert found.fps_median > 0


def test_sampler_for_debugging_is_not_measured():
    config = load_config(None, ["env.id=CartPole-v1", "sampler.kind=serial"])
    with pytest.raises(ConfigError, match="'process' or 'device'"):
        run_throughput(config, Protocol())


def test_limit_without_a_policy_is_the_bare_environment():
    config = load_config(None, OVERRIDES)
    plan = make_plan(config, random_actions=True)
    with LimitProbe(plan, EnvFactory.from_config(config.env), cores=1) as probe:
        limit = probe.measure(0.2)
    assert limit.t_policy_s == 0
    assert limit.fps == pytest.approx(1 / limit.t_step_s)


def test_limit_of_a_native_environment_is_its_batch():
    overrides = ["sampler.envs_per_worker=32", "sampler.num_env_workers=1"]
    times = []
    for name in ("fastrl/HalfCheetah-v5", "HalfCheetah-v5"):
        config = load_config(None, [f"env.id={name}", *overrides])
        plan = make_plan(config, random_actions=True)
        with LimitProbe(plan, EnvFactory.from_config(config.env), cores=1) as probe:
            times.append(probe.measure(0.2).t_step_s)
    # Counted per step of one environment, not of the batch.
    assert times[0] < 8 * times[1]


def test_command_prints_a_table_and_writes_the_json(tmp_path, monkeypatch, capsys):
    target = tmp_path / "result.json"
    arguments = ["throughput", "--env", "CartPole-v1", "-n", "4", "-N", "2"]
    arguments += ["--seconds", "0.1", "--repeats", "2", "--warm-up", "0", "--json", str(target)]
    monkeypatch.setattr(sys, "argv", ["fastrl", *arguments])
    assert main(arguments) == 0
    assert "frames per second" in capsys.readouterr().out
    found = json.loads(target.read_text())
    assert found["topology"]["envs_per_worker"] == 4
    assert found["command"].startswith("fastrl throughput --env CartPole-v1 -n 4")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--env", "CartPol-v1"], "did you mean 'CartPole-v1'"),
        (["--env", "CartPole-v1", "-n", "0"], "sampler.envs_per_worker"),
        (["--env", "CartPole-v1", "--device", "gpu"], "sampler.device"),
        (["--env", "CartPole-v1", "--mode", "fast"], "sampler.mode"),
        (["--env", "CartPole-v1", "--json", "/no/such/place/x.json"], "/no/such/place"),
        (["--env", "CartPole-v1", "--json", "/"], "--json: '/' is a directory; name a file"),
        (["--env", "CartPole-v1", "--device", "cuda:99"], "no device 'cuda:99'"),
        (["sampler.num_workers=3", "--env", "CartPole-v1"], "num_env_workers"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, told, capsys):
    assert main(["throughput", *arguments]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert told in err


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"repeats": 0}, {"warm_up_s": -1.0}])
def test_measurement_without_windows_is_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be a .* number"):
        Protocol(**wrong)


@pytest.mark.parametrize(
    ("space", "name"),
    [
        (spaces.Box(0, 255, (3, 64, 64), np.uint8), "conv net, packed engine"),
        (spaces.Box(-1, 1, (4,)), "64×64 tanh, compiled engine"),
        (
            spaces.Dict({"a": spaces.Box(-1, 1, (4,)), "action_mask": spaces.MultiBinary(2)}),
            "64×64 tanh, compiled engine",
        ),
        (
            spaces.Dict({"a": spaces.Box(0, 255, (64, 64, 3), np.uint8), "b": spaces.Discrete(2)}),
            "conv net + 64×64 tanh, packed engine",
        ),
    ],
)
def test_report_names_the_network_that_the_policy_is(space, name):
    config = load_config(None, ["env.id=Any-v0", "sampler.num_env_workers=1"])
    plan = make_plan(config, env_spec=EnvSpec("Any-v0", space, spaces.Discrete(2)))
    assert policy_name(config, plan) == name


def test_report_names_the_memory_of_the_policy():
    keys = ["env.id=Any-v0", "sampler.num_env_workers=1", "model.recurrent=gru"]
    config = load_config(None, [*keys, "model.recurrent_layers=2"])
    spec = EnvSpec("Any-v0", spaces.Box(-1, 1, (4,)), spaces.Discrete(2))
    named = policy_name(config, make_plan(config, env_spec=spec))
    assert named == "64×64 tanh + 64×64 GRU, compiled engine"


@pytest.fixture(scope="module")
def trained():
    config = load_config(None, [*OVERRIDES, "sampler.rollout_length=16"])
    asynchronous = config.sampler.model_copy(update={"mode": "async"})
    sampled = config.model_copy(update={"sampler": asynchronous})
    return run_throughput(sampled, Protocol(0.2, 2, 0.0), with_limit=True, train=config)


def test_three_speeds_have_limits_that_fall(trained):
    found = json.loads(json.dumps(trained.to_dict()))
    columns = found["columns"]
    assert list(columns) == ["environment", "policy", "training"]
    assert [column["mode"] for column in columns.values()] == ["async", "async", "sync"]
    for column in columns.values():
        assert len(column["fps"]) == len(column["limits"]) == 2
        assert 0 < column["efficiency"] < 1.2
    assert found["fps_median"] == columns["policy"]["fps_median"]
    environment, policy, training = (column["limits"][0] for column in columns.values())
    assert environment["t_policy_s"] == 0 < policy["t_policy_s"]
    assert policy["learning"] is None
    assert policy["products_fps"] is None
    busy_s = training["t_step_s"] + training["t_policy_s"]
    learning = training["learning"]
    cores = training["cores"]
    assert training["fps"] == pytest.approx(cores / (busy_s + learning["t_learn_s"]))
    assert training["products_fps"] == pytest.approx(cores / (busy_s + learning["t_products_s"]))


def test_steps_that_were_learnt_from_are_counted_in_whole_rollouts(trained):
    found = trained.columns["training"].measurement
    assert found.frames > 0
    assert found.frames % (2 * 4 * 16) == 0
    assert "throughput-meter" not in found.memory


def test_tables_show_the_three_speeds(trained):
    console = Console(file=io.StringIO(), width=120)
    console.print(trained.to_rich())
    text = console.file.getvalue()
    for part in (
        "with policy",
        "with training",
        "share of the limit",
        "limit with torch's products only",
        "GFLOP/s",
        "Where the time went while training",
    ):
        assert part in text


def test_command_trains_as_configured_and_samples_asynchronously(tmp_path):
    target = tmp_path / "result.json"
    arguments = ["throughput", *OVERRIDES, "sampler.rollout_length=8", "--train"]
    arguments += ["--seconds", "0.1", "--repeats", "1", "--warm-up", "0", "--json", str(target)]
    assert main(arguments) == 0
    columns = json.loads(target.read_text())["columns"]
    assert [column["mode"] for column in columns.values()] == ["async", "async", "sync"]
    assert columns["training"]["limits"][0]["learning"]["flop"] > 0


def test_training_is_measured_with_a_policy(capsys):
    assert main(["throughput", "CartPole-v1", "--train", "--no-policy"]) == 2
    assert "--train measures random actions as well" in capsys.readouterr().err
    config = load_config(None, OVERRIDES)
    with pytest.raises(ConfigError, match="not random actions"):
        run_throughput(config, Protocol(), random_actions=True, train=config)
