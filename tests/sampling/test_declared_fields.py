"""Fields that a policy, an environment or an algorithm declares come out of every sampler."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl import PolicyStep, TensorSpec, build_model, load_config, make_plan, make_sampler
from fastrl.config import ModelConfig, PPOConfig
from fastrl.envs.tensor import make_tensor
from fastrl.errors import ConfigError, EnvError, FastrlError
from fastrl.sampling import DeviceSampler, ProcessSampler, SerialSampler
from fastrl.sampling.worker_pool import FaultPolicy
from fastrl.shared.table import Axes
from fastrl.spec import EnvSpec, Topology
from fastrl.workers.plan import SamplingPlan
from tests.sampling import counting
from tests.sampling.counting import ACTIONS, NUMBERS, CountingPolicy
from tests.sampling.faulty import Failures, Point, with_failing_env_workers
from tests.sampling.putting_out import (
    PutsOut,
    TellingCartPole,
    WithLogits,
    Writes,
    filled,
    led_to,
)

LENGTH, ROLLOUTS = 7, 3
SMALL = Topology(4, 2)
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64),
]
SPECS = st.builds(
    TensorSpec,
    st.lists(st.integers(1, 3), max_size=2).map(tuple),
    st.sampled_from(DTYPES),
)
DECLARED = st.lists(
    st.tuples(st.from_regex(r"my_[a-z0-9_]{1,8}", fullmatch=True), SPECS),
    max_size=5,
    unique_by=lambda pair: pair[0],
)
KINDS = {
    "serial": ("sampler.kind=serial",),
    "M=0": (),
    "M=1, async": ("sampler.mode=async", "sampler.num_model_workers=1"),
    "device, compiled loops": ("sampler.kind=device",),
    "device": ("sampler.kind=device",),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_users_policy_puts_out_is_an_attribute_of_the_rollout(kind):
    config = load_config(
        None,
        [
            "env.id=CartPole-v1",
            "sampler.rollout_length=8",
            "sampler.envs_per_worker=4",
            "model.class_path=tests.sampling.putting_out:WithLogits",
            *(("sampler.num_env_workers=2",) if "device" not in kind else ()),
            *KINDS[kind],
        ],
    )
    plan = make_plan(config)
    model = WithLogits(plan.env_spec)
    if kind == "device":
        sampler = DeviceSampler(plan, *make_tensor("CartPole-v1"), model.state_dict())
    else:
        sampler = make_sampler(config, plan, model.state_dict())
    with sampler:
        for _ in range(ROLLOUTS):
            rollout = sampler.collect()
            expected, _ = model({"": rollout.observation[:-1]})
            torch.testing.assert_close(rollout.logits, expected.detach())
            assert rollout.fields["logits"] is rollout.logits
    assert {"log_prob", "value", "final_value", "policy_version"} < rollout.fields.keys()


def plan_of(outputs, extras, topology=SMALL, **changes):
    plan = counting.make_plan(
        topology,
        LENGTH,
        build_model=lambda: PutsOut(outputs),
        build_env=lambda num_envs: Writes(num_envs, extras),
        **changes,
    )
    spec = dataclasses.replace(plan.env_spec, extras=extras)
    return dataclasses.replace(plan, env_spec=spec)


def check(rollout, outputs, extras):
    """Compare every declared field with what was written."""
    seen = rollout.observation[:-1]
    reached = led_to(seen, rollout.action)
    for declared, numbers in ((outputs, seen), (extras, reached)):
        for name, spec in declared.items():
            found = getattr(rollout, name)
            assert found.dtype == spec.dtype
            assert torch.equal(found, filled(spec, numbers))
    assert not {"value", "log_prob", "final_value"} & rollout.fields.keys()


def split(declared):
    """Let the policy declare every other field, and the environment the rest."""
    return dict(declared[::2]), dict(declared[1::2])


@settings(max_examples=10)
@given(DECLARED, st.integers(1, 2), st.integers(0, 1))
def test_serial_sampling_brings_any_fields_as_they_were_written(
    declared, groups, num_model_workers
):
    outputs, extras = split(declared)
    plan = plan_of(outputs, extras, Topology(4, 2, num_model_workers, groups))
    with SerialSampler(plan, debug=True) as sampler:
        for _ in range(ROLLOUTS):
            check(sampler.collect(), outputs, extras)


@pytest.mark.parametrize(("num_model_workers", "asynchronous"), [(0, True), (1, False)])
@settings(max_examples=2)
@given(declared=DECLARED)
def test_processes_bring_any_fields_as_they_were_written(num_model_workers, asynchronous, declared):
    outputs, extras = split(declared)
    plan = plan_of(outputs, extras, Topology(4, 2, num_model_workers, 2))
    with ProcessSampler(plan, asynchronous=asynchronous, debug=True) as sampler:
        for _ in range(ROLLOUTS):
            check(sampler.collect(), outputs, extras)


@settings(max_examples=8)
@given(DECLARED)
def test_device_sampling_brings_any_fields_as_they_were_written(declared):
    outputs, env = dict(declared), TellingCartPole()
    plan = SamplingPlan(
        env_spec=env.spec,
        topology=Topology(5, 1),
        rollout_length=30,
        seed=3,
        build_env=lambda num_envs: None,
        build_model=lambda: PutsOut(outputs, num_actions=2),
        wanted_fields=("final_observation",),
    )
    with DeviceSampler(plan, env, env.default_params()) as sampler:
        rollout = sampler.collect()
    for name, spec in outputs.items():
        assert getattr(rollout, name).dtype == spec.dtype
        assert torch.equal(getattr(rollout, name), filled(spec, rollout.observation[:-1]))
    assert torch.equal(rollout.place, rollout.observation[1:, :, :2].double())
    ended, final = rollout.terminated | rollout.truncated, rollout.final_observation
    assert torch.equal(final[~ended], rollout.observation[1:][~ended])
    x, _, theta, _ = final[ended].unbind(-1)
    assert len(x)
    assert ((x.abs() > 2.4) | (theta.abs() > 12 * torch.pi / 180)).all()


def check_final_observations(rollout):
    """Compare the final observation of every step in which an episode ended; return how many."""
    ended = rollout.terminated | rollout.truncated
    reached = led_to(rollout.observation[:-1], rollout.action)
    assert torch.equal(rollout.final_observation[ended], reached[ended])
    return int(ended.sum())


@pytest.mark.parametrize("num_model_workers", [0, 1])
def test_every_final_observation_is_there_where_the_algorithm_asks_for_it(num_model_workers):
    topology = Topology(4, 2, num_model_workers, 2)
    plan = counting.make_plan(topology, 40, wanted_fields=("final_observation",))
    with SerialSampler(plan, debug=True) as serial, ProcessSampler(plan, debug=True) as processes:
        for sampler in (serial, processes):
            ledger = counting.Ledger(plan)
            for _ in range(ROLLOUTS):
                rollout = sampler.collect()
                ledger.check(rollout)
                # Several episodes of a slot end within a rollout.
                assert check_final_observations(rollout) > topology.num_envs


@pytest.mark.parametrize("num_model_workers", [0, 1])
def test_final_observations_survive_a_worker_that_is_replaced(num_model_workers, tmp_path):
    plan = counting.make_plan(
        Topology(4, 2, num_model_workers, 2), 11, wanted_fields=("final_observation",)
    )
    failing = with_failing_env_workers(plan, Failures(tmp_path, [Point("step", 7)]))
    ledger = counting.Ledger(plan)
    with ProcessSampler(failing, faults=FaultPolicy(max_restarts=9), debug=True) as sampler:
        for _ in range(4):
            rollout = sampler.collect()
            ledger.check(rollout, faults=True)
            check_final_observations(rollout)
    assert ledger.cuts


def test_final_observations_are_no_field_where_nothing_asks_for_them():
    plan = counting.make_plan(Topology(4, 1), 5)
    with SerialSampler(plan) as sampler:
        rollout = sampler.collect()
    assert "final_observation" not in rollout.fields
    assert plan.schema.fields["final_observation"].axes is Axes.SLOT


def test_an_algorithm_asks_by_an_attribute_of_its_section(monkeypatch):
    monkeypatch.setattr(PPOConfig, "wanted_fields", ("final_observation",))
    config = load_config(None, ["env.id=CartPole-v1", "sampler.kind=serial"])
    assert make_plan(config).wanted_fields == ("final_observation",)


def test_a_policy_without_value_is_named_where_the_value_is_read():
    with SerialSampler(plan_of({}, {})) as sampler:
        rollout = sampler.collect()
    with pytest.raises(AttributeError, match="Rollout has no field 'value'; it has observation, "):
        _ = rollout.value


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ({"reward": TensorSpec((), torch.float32)}, "the name 'reward' is taken"),
        ({"episodes": TensorSpec((), torch.float32)}, "the name 'episodes' is taken"),
        ({"my field": TensorSpec((), torch.float32)}, "a public identifier, got 'my field'"),
        ({"x": TensorSpec((), torch.bfloat16)}, "'x' cannot be stored as torch.bfloat16"),
        ({"value": TensorSpec((2,), torch.float32)}, "'value' must be TensorSpec"),
        ({"x": (3,)}, "PutsOut.outputs must map names to TensorSpec, got 'x': "),
        (["x"], "PutsOut.outputs must map names to TensorSpec"),
    ],
)
def test_an_impossible_declaration_is_one_line(outputs, told):
    with pytest.raises(ConfigError, match=told) as caught:
        SerialSampler(plan_of(outputs, {}))
    assert "\n" not in str(caught.value)


def test_an_algorithm_that_asks_for_an_unknown_field_is_told_what_there_is():
    plan = counting.make_plan(Topology(4, 1), 5, wanted_fields=("last_observation",))
    with pytest.raises(
        ConfigError, match="'last_observation'; a learner may use final_observation"
    ):
        SerialSampler(plan)


class Forgets(CountingPolicy):
    """Returns what its class says."""

    returned = None

    def act(self, observation, noise):
        return self.returned(super().act(observation, noise))


RETURNED = {
    "a tuple": (lambda step: (step.action, 0, 0), "but returned a tuple"),
    "no value": (
        lambda step: step._replace(outputs={"log_prob": step.outputs["log_prob"]}),
        r"the outputs log_prob \[4\], value \[4\], but returned the outputs log_prob \[4\]",
    ),
    "another shape": (
        lambda step: PolicyStep(step.action, {**step.outputs, "value": step.outputs["value"][:1]}),
        r"but returned the outputs log_prob \[4\], value \[1\]",
    ),
    "another shape of an action": (
        lambda step: step._replace(action={k: leaf[:1] for k, leaf in step.action.items()}),
        r"Mine\.act: 'action.*' must have the shape \[4.*\], got \[1",
    ),
    "an action without its path": (
        lambda step: step._replace(action=next(iter(step.action.values()))),
        "the action must map leaf paths to tensors, .* got a Tensor",
    ),
}


@pytest.mark.parametrize("case", RETURNED)
def test_a_policy_that_returns_something_else_is_told_in_one_line(case):
    returned, told = RETURNED[case]
    policy = type("Mine", (Forgets,), {"returned": staticmethod(returned)})
    plan = counting.make_plan(Topology(4, 1), 5, build_model=policy)
    with SerialSampler(plan) as sampler, pytest.raises(FastrlError, match=told) as caught:
        sampler.collect()
    assert "Mine.act" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_that_declares_no_value_needs_no_method_for_it(monkeypatch):
    spec = EnvSpec("counting", NUMBERS, ACTIONS)
    config = ModelConfig(class_path="tests.sampling.putting_out:PutsOut", kwargs={})
    monkeypatch.setattr("tests.sampling.putting_out.PutsOut.value", None)
    monkeypatch.setattr("tests.sampling.putting_out.PutsOut.__init__", CountingPolicy.__init__)
    with pytest.raises(ConfigError, match="lacks the methods value of PolicyModel"):
        build_model(spec, config)
    monkeypatch.setattr("tests.sampling.putting_out.PutsOut.outputs", {}, raising=False)
    assert build_model(spec, config).outputs == {}


def test_environments_with_other_extras_are_refused():
    plan = plan_of({}, {"x": TensorSpec((), torch.float32)})
    plan = dataclasses.replace(plan, build_env=lambda num_envs: Writes(num_envs, {}))
    with pytest.raises(EnvError, match="has the extras"):
        SerialSampler(plan).start()
