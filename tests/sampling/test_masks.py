"""Sampled actions are valid, with masks that change in every step, wherever they come from."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.config import Config, EnvConfig, FaultsConfig, ModelConfig, SamplerConfig
from fastrl.envs.tensor import TensorEnv
from fastrl.envs.tensor.rollout import Rollouts
from fastrl.envs.tensor.tensor_policy import ModulePolicy
from fastrl.errors import EnvError, WorkerError
from fastrl.models import build_model
from fastrl.sampling import DeviceSampler, make_plan, make_sampler
from fastrl.spaces import flatten
from fastrl.spec import EnvSpec, Topology
from fastrl.training import train
from tests.masked_env import known_mask, make_vector

N, LENGTH = 4, 12
TOPOLOGIES = {
    "serial": {"kind": "serial", "num_env_workers": 1},
    "process": {"num_env_workers": 2, "envs_per_worker": N // 2},
    "model worker": {
        "num_env_workers": 2, "envs_per_worker": N // 2, "num_model_workers": 1, "groups": 2,
    },
}  # fmt: skip


def config(topology="serial", *, actions="discrete", source="key", env_id=None, **faults):
    kwargs = {"actions": actions, "source": source} if env_id is None else {}
    kwargs |= {name: faults.pop(name) for name in ("empty_at",) if name in faults}
    sampler = {"num_envs": N} if topology == "serial" else {}
    return Config(
        seed=1,
        env=EnvConfig(id=env_id or "tests.masked_env:CheckingEnv", kwargs=kwargs),
        sampler=SamplerConfig(rollout_length=LENGTH, **sampler, **TOPOLOGIES[topology]),
        model=ModelConfig(hidden_sizes=(8,)),
        faults=FaultsConfig(**faults),
    )


def check(rollout, spec):
    """Check that masks are the known ones, and that all actions were valid."""
    mask = rollout.observation["action_mask"]
    seen = next(leaf for key, leaf in rollout.observation.items() if key != "action_mask")
    assert mask.dtype == torch.bool
    columns = []
    for leaf in flatten(spec.action_space, rollout.action):
        if not leaf.is_floating_point():
            rows = leaf.reshape(LENGTH, N, -1)
            columns += list(rows.unbind(-1))
    start = 0
    assert len(columns) == len(spec.choices)
    for size, column in zip(spec.choices, columns, strict=True):
        assert mask[:-1, :, start : start + size].gather(-1, column[..., None]).all()
        start += size
    return (seen[..., 1] * 100).round().long()


SPACES = [("discrete", "info"), ("multi", "method"), ("nested", "key"), ("nested", "info")]


@pytest.mark.parametrize(
    ("topology", "actions", "source", "random_actions"),
    [
        *(("serial", *space, random) for space in SPACES for random in (False, True)),
        *(("process", *space, number % 2 == 0) for number, space in enumerate(SPACES[1:3])),
        *(("model worker", *space, number % 2 == 1) for number, space in enumerate(SPACES[1:3])),
    ],
)
def test_every_action_is_valid_and_every_mask_that_of_its_step(
    topology, actions, source, random_actions
):
    settings = config(topology, actions=actions, source=source)
    plan = make_plan(settings, random_actions=random_actions)
    assert plan.env_spec.mask_source == ("observation" if source == "key" else source)
    with make_sampler(settings, plan) as sampler:
        for number in range(3):
            rollout = sampler.collect()
            steps = check(rollout, plan.env_spec)
            assert steps[0].tolist() == [number * LENGTH] * N
            assert torch.equal(steps[:, 0], number * LENGTH + torch.arange(LENGTH + 1))
            if topology == "serial":
                for slot, seed in enumerate(plan.env_seeds(0, 0)):
                    for t in range(LENGTH + 1):
                        wanted = known_mask(plan.env_spec.choices, seed, int(steps[t, slot]))
                        got = rollout.observation["action_mask"][t, slot].numpy()
                        assert np.array_equal(got, wanted)


def test_processes_sample_what_one_process_samples():
    found = []
    for kind in ("serial", "process"):
        settings = config()
        sampler = SamplerConfig(
            kind=kind,
            rollout_length=LENGTH,
            num_env_workers=2,
            envs_per_worker=N // 2,
            num_model_workers=1,
            lock_step=True,
        )
        with make_sampler(settings.model_copy(update={"sampler": sampler})) as made:
            rollout = made.collect()
            found.append([rollout.action.clone(), rollout.log_prob.clone()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("source", ["info", "method", "key"])
@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_vector_environments(source, mode):
    settings = config(env_id=f"tests.sampling.test_masks:{source}_{mode}")
    plan = make_plan(settings)
    assert plan.env_spec.action_mask == "action_mask"
    with make_sampler(settings, plan) as sampler:
        for _ in range(3):
            check(sampler.collect(), plan.env_spec)


def _vector(source, mode):
    return lambda num_envs: make_vector(num_envs, source=source, mode=mode)


info_same_step, method_same_step, key_same_step = (
    _vector(source, "SameStep") for source in ("info", "method", "key")
)
info_next_step, method_next_step, key_next_step = (
    _vector(source, "NextStep") for source in ("info", "method", "key")
)
info_disabled, method_disabled, key_disabled = (
    _vector(source, "Disabled") for source in ("info", "method", "key")
)


class Batch:
    """A `BatchedEnv` that observes its mask: the options that its step count leaves."""

    def __init__(self, num_envs):
        seen = spaces.Dict(
            [("seen", spaces.Box(-1, 1, (2,))), ("action_mask", spaces.MultiBinary(5))]
        )
        self.spec, self.num_envs = EnvSpec("batch", seen, spaces.Discrete(5)), num_envs

    def reset(self, seeds, observation):
        self._step = 0
        self._observe(observation)

    def step(self, views):
        assert self._mask()[views.action[0]].all()
        self._step += 1
        views.reward[:] = 1
        views.terminated[:] = False
        views.truncated[:] = self._step % 7 == 0
        for final, now in zip(views.final_observation, views.observation, strict=True):
            final[:] = now
        self._observe(views.observation)

    def close(self):
        pass

    def _mask(self):
        return known_mask((5,), 0, self._step)

    def _observe(self, observation):
        observation[0][:] = self._step / 100
        observation[1][:] = self._mask()


def test_batched_environments():
    settings = config(env_id="tests.sampling.test_masks:Batch")
    plan = make_plan(settings)
    with make_sampler(settings, plan) as sampler:
        check(sampler.collect(), plan.env_spec)
        check(sampler.collect(), plan.env_spec)


class MaskedTensors(TensorEnv):
    """Valid is the option ``time % 5``, and the one after it."""

    class State(NamedTuple):
        time: torch.Tensor

    class Params(NamedTuple):
        max_episode_steps: torch.Tensor

    state_type, params_type = State, Params
    defaults: ClassVar = {"max_episode_steps": 6}
    noise_size = 1
    spec = EnvSpec(
        "tensors",
        spaces.Dict([("seen", spaces.Box(-1, 1, (2,))), ("action_mask", spaces.MultiBinary(5))]),
        spaces.Discrete(5),
    )

    def initial(self, noise, params):
        return self.State(torch.zeros_like(noise[..., 0], dtype=torch.int32))

    def transition(self, state, action, params):
        is_valid = self._mask(state).gather(-1, action[..., None])[..., 0]
        reward = torch.where(is_valid, 1.0, -1e9)
        return self.State(state.time + 1), reward, torch.zeros_like(is_valid)

    def observe(self, state):
        seen = torch.stack([state.time, state.time], -1) / 10
        return {"seen": seen, "action_mask": self._mask(state)}

    def _mask(self, state):
        option = torch.arange(5)
        first = (state.time % 5)[..., None]
        return (option == first) | (option == (first + 1) % 5)


def policy_of(spec):
    return build_model(spec, ModelConfig(hidden_sizes=(8,)))


@pytest.mark.parametrize("random_actions", [False, True])
def test_tensor_environments_on_a_device(random_actions):
    env = MaskedTensors()
    plan = dataclasses.replace(
        make_plan(config(env_id="tests.sampling.test_masks:Batch"), random_actions=random_actions),
        env_spec=env.spec,
        topology=Topology(N, 1),
        build_model=None if random_actions else lambda: policy_of(env.spec),
    )
    with DeviceSampler(plan, env, env.default_params()) as sampler:
        rollout = sampler.collect()
    assert (rollout.reward == 1).all()
    assert len(rollout.action.unique()) == 5
    assert rollout.log_prob.max() < 1e-6


def test_a_switch_leaves_masks_out():
    settings = config(source="info")
    off = settings.env.model_copy(update={"action_mask": "off"})
    spec = make_plan(settings.model_copy(update={"env": off})).env_spec
    assert spec.action_mask is None
    assert isinstance(spec.observation_space, spaces.Box)
    settings = config(source="key")
    off = settings.env.model_copy(update={"action_mask": "off"})
    spec = make_plan(settings.model_copy(update={"env": off})).env_spec
    assert spec.action_mask is None
    assert "action_mask" in spec.inputs


def test_a_mask_without_valid_action_is_an_error_with_environment_and_step():
    settings = config(env_id="tests.sampling.test_masks:Emptied")
    message = r"observation/action_mask allows no action at step 5 of rollout 0, in env 2 of"
    with make_sampler(settings) as sampler, pytest.raises(EnvError, match=message):
        sampler.collect()


def test_the_environment_that_rejects_an_action_gets_the_reason():
    settings = config(empty_at=5)
    message = r"env 0 .*is invalid \(before this step it allowed no action"
    with make_sampler(settings) as sampler, pytest.raises((EnvError, WorkerError), match=message):
        sampler.collect()


class Emptied(Batch):
    """Allows no action to env 2 in step 5, and accepts any."""

    def step(self, views):
        views.action[0].setflags(write=True)
        views.action[0][:] = self._mask().argmax()
        super().step(views)
        if self._step == 5:
            views.observation[1][2:3] = 0


def test_faults_end_the_episode_where_they_are_configured_to():
    settings = config("process", empty_at=5, bad_numbers="truncate_episode", max_restarts=9)
    faults = []
    with make_sampler(settings, on_fault=faults.append) as sampler:
        sampler.collect()
    assert faults
    assert "allowed no action" in faults[0].cause


def test_an_update_with_an_empty_mask_is_skipped(tmp_path):
    settings = config(env_id="tests.sampling.test_masks:Emptied", bad_numbers="skip_update")
    settings = settings.model_copy(
        update={"total_steps": 3 * N * LENGTH, "run_dir": str(tmp_path / "run")}
    )
    lines = (train(settings).path / "metrics.jsonl").read_text().splitlines()
    skipped = [json.loads(line).get("skipped_updates", 0) for line in lines]
    assert sum(skipped) == 1


@pytest.mark.slow  # 40 s of torch.compile; the same program uncompiled: the test above
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_masks_within_a_compiled_graph_change_nothing():
    env, policy = MaskedTensors(), ModulePolicy(policy_of(MaskedTensors.spec))
    found = []
    for steps_per_graph in (0, 4):
        rollouts = Rollouts(env, policy, env.default_params(), steps_per_graph=steps_per_graph)
        generator = torch.Generator().manual_seed(0)
        start = rollouts.start(3, generator)
        found.append(rollouts.run(None, start, rollouts.draw_noise(8, 3, generator))[0])
    assert torch.equal(found[0].action[""], found[1].action[""])
    assert (found[1].reward == 1).all()
