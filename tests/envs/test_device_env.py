"""Environments that keep their own state on a device; the CPU stands for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl import registry
from fastrl.config import Config, EnvConfig, ModelConfig, PPOConfig, SamplerConfig
from fastrl.envs import DeviceEnv, DeviceStep, Family, StepViews
from fastrl.envs.calls import EnvCall
from fastrl.envs.device_env import DeviceBatch
from fastrl.envs.state import StateError, pack, unpack
from fastrl.errors import ConfigError, EnvError
from fastrl.learning import build_learner
from fastrl.sampling import DeviceSampler, SerialSampler, make_plan, make_sampler
from fastrl.spaces import TensorSpec
from fastrl.spec import Topology
from tests.sampling import counting
from tests.sampling.remembering import MemoryLedger, plan_of
from tests.sampling.test_masks import LENGTH, Batch, N, check, policy_of


class Exported:
    """An array of a library that offers nothing but DLPack."""

    def __init__(self, array):
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


EXPORTS = {"torch": torch.from_numpy, "numpy": np.asarray, "dlpack": Exported}


class OnDevice(DeviceEnv):
    """A `BatchedEnv` as a `DeviceEnv`, which writes all results into the same memory."""

    def __init__(self, batch, export="torch"):
        self.spec, self.num_envs, self.closed = batch.spec, batch.num_envs, False
        self._batch, self._export = batch, EXPORTS[export]
        self._views = StepViews.zeros(batch.spec, batch.num_envs)

    def reset(self, seed):
        first = seed % 1000
        self._batch.reset(range(first, first + self.num_envs), self._views.observation)
        return self._nested(self._views.observation)

    def step(self, action):
        views = dataclasses.replace(self._views, action=(action.numpy(),))
        self._batch.step(views)
        flags = (views.reward, views.terminated, views.truncated)
        observed = map(self._nested, (views.observation, views.final_observation))
        seen, final = observed
        return seen, *map(self._export, flags), final

    def _nested(self, rows):
        leaves = [self._export(row) for row in rows]
        is_nested = isinstance(self.spec.observation_space, spaces.Dict)
        return dict(zip(self.spec.observation, leaves, strict=True)) if is_nested else leaves[0]

    def close(self):
        self.closed = True


class Counting(OnDevice):
    """Counts, and offers its state."""

    def __init__(self, num_envs, export="torch"):
        super().__init__(counting.CountingEnvs(num_envs), export)

    def get_state(self):
        return self._batch._state.copy()

    def set_state(self, state):
        self._batch._state = state.copy()


class Counters(Family):
    prefix = "counters/"

    def names(self):
        return ("Odd", "Even")

    def build(self, name, num_envs, **kwargs):
        return Counting(num_envs, **kwargs)


def config(kind="device", **env):
    return Config(
        env=EnvConfig(**{"id": "tests.envs.test_device_env:Counting", **env}),
        sampler=SamplerConfig(
            kind=kind, envs_per_worker=N, num_env_workers=1, rollout_length=LENGTH
        ),
        model=ModelConfig(hidden_sizes=(8,)),
        algorithm=PPOConfig(minibatch_size=64, epochs=1),
    )


def ledger_of(plan, rollout, ledger=counting.Ledger):
    """The environments draw their seeds from a single one."""
    found = ledger(plan)
    found._expected[:, 0] = rollout.observation[0, :, 0]
    return found


@pytest.mark.parametrize("export", EXPORTS)
def test_no_transition_is_misplaced(export):
    plan, env = counting.make_plan(Topology(N, 1), LENGTH), Counting(N, export)
    with DeviceSampler(plan, env) as sampler:
        rollouts = [sampler.collect() for _ in range(3)]
    assert env.closed
    ledger = ledger_of(plan, rollouts[0])
    for rollout in rollouts:
        ledger.check(rollout)


def test_declared_fields_are_recorded():
    class Telling(Counting):
        def __init__(self, num_envs):
            super().__init__(num_envs)
            extras = {"twice": TensorSpec((), torch.float32)}
            self.spec = dataclasses.replace(self.spec, extras=extras)

        def step(self, action):
            found = DeviceStep(*super().step(action))
            return found._replace(extras={"twice": 2 * found.reward})

    env = Telling(N)
    plan = dataclasses.replace(counting.make_plan(Topology(N, 1), LENGTH), env_spec=env.spec)
    with DeviceSampler(plan, env) as sampler:
        rollout = sampler.collect()
    assert torch.equal(rollout.twice, 2 * rollout.reward)


def test_a_policy_with_a_memory_is_reset_with_the_episodes():
    plan = plan_of(Topology(N, 1), LENGTH, outputs=None, sequence_length=4)
    with DeviceSampler(plan, Counting(N)) as sampler:
        rollouts = [sampler.collect() for _ in range(3)]
    ledger = ledger_of(plan, rollouts[0], MemoryLedger)
    for rollout in rollouts:
        ledger.check(rollout)


@pytest.mark.parametrize("random_actions", [False, True])
def test_masks_hold(random_actions):
    env = OnDevice(Batch(N))
    plan = dataclasses.replace(
        counting.make_plan(Topology(N, 1), LENGTH),
        env_spec=env.spec,
        build_model=None if random_actions else lambda: policy_of(env.spec),
    )
    with DeviceSampler(plan, env) as sampler:
        check(sampler.collect(), env.spec)
        check(sampler.collect(), env.spec)


@pytest.mark.parametrize(
    ("kind", "sampler_type"), [("device", DeviceSampler), ("serial", SerialSampler)]
)
def test_a_configuration_names_them_by_factory_or_family(kind, sampler_type, monkeypatch):
    monkeypatch.setitem(
        registry._entries,
        ("environments", "counters"),
        registry.Entry("environments", "counters", Counters(), "this test"),
    )
    names = ("counters/Odd", "tests.envs.test_device_env:Counting")
    for name in names if kind == "device" else names[1:]:
        settings = config(kind, id=name, kwargs={"export": "numpy"})
        # A probe of other kinds than device takes a process.
        plan = make_plan(settings, env_spec=None if kind == "device" else Counting(1).spec)
        learner = build_learner(settings, plan.env_spec)
        with make_sampler(settings, plan, learner.weights()) as sampler:
            assert isinstance(sampler, sampler_type)
            for _ in range(2):
                rollout = sampler.collect()
                ended = rollout.terminated | rollout.truncated
                before, after = rollout.observation[:-1], rollout.observation[1:]
                assert torch.equal(after[..., 2], torch.where(ended, 0, before[..., 2] + 1))
                assert torch.equal(after[..., 3], torch.where(ended, 0, rollout.action))
                reward = counting.reward_of(*before[..., :3].unbind(-1), rollout.action)
                assert torch.equal(rollout.reward, reward.float())
                assert learner.update(rollout)["gradient_steps"] > 0
            assert rollout.truncated.any()
            sampler.call_envs([EnvCall("closed", (False,), sets=True)])
            with pytest.raises(EnvError, match="has no method 'harder'"):
                sampler.call_envs([EnvCall("harder")])


def test_gymnasium_steps_a_family_of_them():
    envs = Counters().vector("Odd", N, {})
    first, _ = envs.reset(seed=0)
    seen, reward, *_ = envs.step(np.full(N, 2))
    envs.close()
    assert reward.tolist() == [counting.reward_of(*row, 2) for row in first[:, :3].tolist()]
    assert set(seen[:, 3]) <= {0, 2}


def test_episodes_continue_from_a_saved_state():
    plan = counting.make_plan(Topology(N, 1), LENGTH)
    with DeviceSampler(plan, Counting(N)) as sampler:
        sampler.collect()
        state = unpack(pack(sampler.get_state()))
        expected = sampler.collect()
    plan = dataclasses.replace(plan, first_rollout=1)
    sampler = DeviceSampler(plan, Counting(N))
    sampler.set_state(state)
    with sampler:
        found = sampler.collect()
    for name in ("observation", "action", "reward", "final_value"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert not found.restarted.any()


class Levelled(Counting):
    """Has a level, which is part of its state."""

    level = 0

    def get_state(self):
        return {"level": self.level, "state": super().get_state()}

    def set_state(self, state):
        self.level = state["level"]
        super().set_state(state["state"])


def test_calls_after_a_state_hold():
    plan = counting.make_plan(Topology(N, 1), LENGTH)
    with DeviceSampler(plan, Levelled(N)) as sampler:
        sampler.collect()
        state = sampler.get_state()
    env = Levelled(N)
    sampler = DeviceSampler(dataclasses.replace(plan, first_rollout=1), env)
    sampler.set_state(state)
    sampler.call_envs([EnvCall("level", (3,), sets=True)])
    with sampler:
        sampler.collect()
        assert env.level == 3


def test_what_cannot_continue_says_so():
    plan = dataclasses.replace(
        counting.make_plan(Topology(N, 1), LENGTH), env_spec=Batch(N).spec, build_model=None
    )
    with DeviceSampler(plan, OnDevice(Batch(N))) as sampler:
        sampler.collect()
        with pytest.raises(StateError, match=r"has no get_state\(\) and set_state\(state\)"):
            sampler.get_state()
        with pytest.raises(StateError, match="another kind of environment"):
            sampler.set_state({"rollouts": 1, "tensors": []})


class Broken(Counting):
    """Breaks its contract in one way."""

    def __init__(self, num_envs, how):
        super().__init__(num_envs + (how == "number"))
        self._how = how
        if how == "actions":
            space = spaces.Dict({"a": counting.ACTIONS})
            self.spec = dataclasses.replace(self.spec, action_space=space)
        if how == "device":
            self.device = "meta"

    def step(self, action):
        seen, reward, terminated, truncated, final = super().step(action)
        if self._how == "raises":
            raise RuntimeError("the simulator exploded")
        if self._how == "shape":
            reward = reward[:, None]
        if self._how == "kind":
            terminated = None
        return (seen, reward, terminated, truncated, final)[: 4 if self._how == "short" else 5]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", r"'counting' failed in step\(\): .*the simulator exploded"),
        ("shape", r"'counting': reward must be \[4\] on cpu, got \[4, 1\] on cpu"),
        ("kind", "'counting': terminated must be a tensor or an array with DLPack, got None"),
        ("short", "'counting': the result of step must be a DeviceStep or a tuple of its first 5"),
        ("number", "'counting' has 5 environments, but 4 were requested"),
        ("actions", "'counting' must take one array of actions, got Dict"),
        ("device", "'counting' is on meta, but sampler.device is cpu; let its factory take"),
    ],
)
def test_a_broken_contract_is_told_in_one_line(how, message):
    plan = counting.make_plan(Topology(N, 1), LENGTH)
    with (
        pytest.raises(EnvError, match=f"^{message}") as told,
        DeviceSampler(plan, Broken(N, how)) as sampler,
    ):
        sampler.collect()
    assert "\n" not in str(told.value)


def test_what_does_not_live_on_a_device_is_rejected():
    with pytest.raises(EnvError, match=r"returned a CountingEnv; sampler.kind: device needs a"):
        make_plan(config(id="tests.counting_env:make"))
    settings = config().model_copy(update={"model": ModelConfig(previous_action_reward=True)})
    with pytest.raises(ConfigError, match=r"previous_action_reward: not supported for"):
        make_sampler(settings)


def test_observation_of_another_form_is_named():
    env = Counting(N)
    pair = spaces.Tuple([spaces.Box(-1, 1, (1,))] * 2)
    env.spec = dataclasses.replace(env.spec, observation_space=pair)
    with pytest.raises(EnvError, match=r"'counting': observation must be of the form of Tuple\("):
        DeviceBatch(env).reset([0] * N, ())
