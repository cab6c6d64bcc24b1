"""Policies with a memory after training: evaluated, loaded, exported, recorded and resumed."""

from __future__ import annotations

import json

import minari
import numpy as np
import pytest
import torch

from fastrl import export_run, load_policy
from fastrl.config import EnvConfig, ModelConfig, SamplerConfig
from fastrl.envs.env_factory import EnvFactory
from fastrl.envs.masked_tasks import MaskedTMaze
from fastrl.errors import ConfigError, FastrlError
from fastrl.training import evaluate_run, record_dataset, record_run, train
from fastrl.training.evaluation import EvaluationProtocol
from fastrl.training.recording import Recorder
from tests.sampling.remembering import Steps
from tests.training.clockwork import Uneven, small_run
from tests.training.test_exact_resume import SAVEABLE, assert_exact, sampler
from tests.training.test_resume import SAMPLERS

UNEVEN = "tests.training.clockwork:Uneven"
STEPS = ModelConfig(class_path="tests.sampling.remembering:Steps")
OBSERVATION = np.zeros(2, np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the directory of a small run whose policy takes the actions 0 and 1 in turn."""
    path = tmp_path_factory.mktemp("runs") / "run"
    train(small_run(path, total_steps=64, env=EnvConfig(id=UNEVEN), model=STEPS))
    return path


@pytest.fixture
def policy(run):
    return load_policy(run, seed=0)


def play(policy, seed):
    """Return the return of an episode, and its length."""
    env, state, total, length, over = Uneven(), None, 0.0, 0, False
    observation, _ = env.reset(seed=seed)
    while not over:
        action, state = policy.act(observation, state)
        observation, reward, over, _, _ = env.step(action)
        total, length = total + reward, length + 1
    return total, length


def test_evaluation_begins_every_episode_anew(run, policy):
    """More episodes than are played at once, so that slots are used again."""
    result = evaluate_run(run, episodes=40, seed=7).result
    assert result.returns == tuple(length // 2 for length in result.lengths)
    seeds = EvaluationProtocol(40, 7).episode_seeds()
    assert [*zip(result.returns, result.lengths, strict=True)] == [
        play(policy, seed) for seed in seeds
    ]


def test_video_begins_every_episode_anew(run, policy, tmp_path, monkeypatch):
    monkeypatch.setattr(Uneven, "metadata", {"render_modes": ["rgb_array"]})
    monkeypatch.setattr(Uneven, "render", lambda env: np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr(Uneven, "__init__", lambda env, render_mode=None: None)
    protocol = EvaluationProtocol(5, 7)
    returns = Recorder(EnvFactory(UNEVEN), policy.env_spec, protocol)(
        policy.model, tmp_path / "x.gif"
    )
    assert returns == [play(policy, seed)[0] for seed in protocol.episode_seeds()]


def test_state_is_carried_for_one_environment_and_for_several(policy):
    begin = policy.initial_state(3)
    assert begin.tolist() == [[Steps.BEGIN, Steps.BEGIN]] * 3
    batch, states = np.stack([OBSERVATION] * 3), None
    for t in range(5):
        actions, states = policy.act(batch, states)
        assert actions.tolist() == [t % 2] * 3
        assert states.tolist() == [[Steps.BEGIN + t + 1, Steps.BEGIN + (t + 1) / 2]] * 3
    states[1] = begin[1]
    actions, states = policy.act(batch, states)
    assert actions.tolist() == [1, 0, 1]
    action, state = policy.act(OBSERVATION, states[1])
    assert (action, state.shape, state.dtype) == (1, (2,), np.float32)
    assert states[1].tolist() == [4.0, 3.5]


def test_states_are_tensors_where_observations_are(policy):
    action, state = policy.act(torch.from_numpy(OBSERVATION))
    assert isinstance(state, torch.Tensor)
    for kept in (state, state.numpy(), state.tolist()):
        action, after = policy.act(torch.from_numpy(OBSERVATION), kept, deterministic=True)
        assert int(action) == 1
        assert torch.equal(after, state + torch.tensor([1.0, 0.5]))


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (np.zeros(3), r"the state has the shape \(3,\); expected \(2,\)"),
        (np.zeros((1, 2)), r"the state has the shape \(1, 2\); expected \(2,\)"),
        ("none", "the state is not an array of numbers: .*"),
        (object(), "the state is not an array of numbers: .*"),
    ],
)
def test_states_that_do_not_fit_are_one_line(policy, state, told):
    with pytest.raises(ConfigError, match=f"^{told}$"):
        policy.act(OBSERVATION, state)


def test_policy_must_return_its_next_state(policy, monkeypatch):
    mode = Steps.mode
    monkeypatch.setattr(
        Steps, "mode", lambda *args, **state: mode(*args, **state)._replace(state=None)
    )
    with pytest.raises(FastrlError, match=r"Steps has a memory: .* \[1, 2\], but .* no state$"):
        policy.act(OBSERVATION)


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated:DeprecationWarning")
def test_torchscript_carries_the_state(run, tmp_path):
    module = torch.jit.load(export_run(run, "torchscript", tmp_path / "policy.pt"))
    assert module.initial_state.tolist() == [Steps.BEGIN] * 2
    state = module.initial_state.expand(4, 2)
    for t in range(6):
        actions, state = module(torch.zeros(4, 2), state)
        assert actions.tolist() == [t % 2] * 4
        assert state.tolist() == [[Steps.BEGIN + t + 1, Steps.BEGIN + (t + 1) / 2]] * 4


def test_onnx_carries_the_state(run, policy, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    file = export_run(run, "onnx", tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(file.read_bytes())
    assert [each.name for each in session.get_inputs()] == ["observation", "state"]
    assert [each.name for each in session.get_outputs()] == ["action", "next_state"]
    initial = json.loads(session.get_modelmeta().custom_metadata_map["initial_state"])
    state = np.tile(np.array(initial, np.float32), (4, 1))
    np.testing.assert_array_equal(state, policy.initial_state(4))
    given = {"observation": np.zeros((4, 2), np.float32), "state": state}
    for t in range(6):
        actions, given["state"] = session.run(None, given)
        assert actions.tolist() == [t % 2] * 4


@pytest.mark.parametrize(
    ("kind", "model"),
    [*((kind, STEPS) for kind in SAMPLERS), ("model worker", ModelConfig(recurrent="gru"))],
    ids=[*SAMPLERS, "gru"],
)
def test_resumed_run_goes_on_with_the_states_of_its_episodes(tmp_path, kind, model):
    settings = {"env": EnvConfig(id=SAVEABLE), "sampler": sampler(kind), "model": model}
    train(small_run(tmp_path / "run", **settings))
    assert_exact(tmp_path / "run")


def test_memory_and_masks_go_on_together(tmp_path):
    env = EnvConfig(id="MaskedTMaze-v0", kwargs={"length": 2})
    settings = {
        "env": env,
        "sampler": sampler("model worker"),
        "model": ModelConfig(recurrent="gru"),
    }
    train(small_run(tmp_path / "run", **settings))
    assert_exact(tmp_path / "run")


def test_one_device_goes_on_with_the_states_of_its_episodes(tmp_path):
    device = SamplerConfig(kind="device", envs_per_worker=8, rollout_length=8)
    env = EnvConfig(id="CartPole-v1")
    train(small_run(tmp_path / "run", env=env, sampler=device, model=STEPS))
    assert_exact(tmp_path / "run")


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """Return the directory of a small run with a memory and masks."""
    path = tmp_path_factory.mktemp("runs") / "masked"
    env = EnvConfig(id="MaskedTMaze-v0", kwargs={"length": 2})
    model = ModelConfig(recurrent="lstm", recurrent_size=16, hidden_sizes=())
    train(small_run(path, total_steps=128, env=env, model=model))
    return path


def test_memory_and_masks_play_the_episodes_of_an_evaluation(masked):
    """More episodes than are played at once, so that slots are used again."""
    policy, found = load_policy(masked), []
    for seed in EvaluationProtocol(40, 7).episode_seeds():
        env, state, rewards, is_over = MaskedTMaze(length=2), None, [], False
        observation, _ = env.reset(seed=seed)
        while not is_over:
            action, state = policy.act(observation, state)
            assert observation["action_mask"][action]
            observation, reward, is_over, _, _ = env.step(action)
            rewards.append(reward)
        found.append((sum(rewards), len(rewards)))
    result = evaluate_run(masked, episodes=40, seed=7).result
    assert [*zip(result.returns, result.lengths, strict=True)] == found
    assert len(set(result.lengths)) > 3


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated:DeprecationWarning")
def test_exported_policies_take_mask_and_state_together(masked, tmp_path):
    policy = load_policy(masked)
    onnxruntime = pytest.importorskip("onnxruntime")
    module = torch.jit.load(export_run(masked, "torchscript", tmp_path / "policy.pt"))
    file = export_run(masked, "onnx", tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(file.read_bytes())
    names = [each.name for each in session.get_inputs()]
    random, state = torch.Generator().manual_seed(0), policy.initial_state(5)
    assert torch.equal(module.initial_state, torch.from_numpy(state[0]))
    carried = torch.from_numpy(state)
    for _ in range(4):
        mask = torch.rand(5, 4, generator=random) < 0.5
        mask[:, 1] = True
        seen = {"observation": torch.randn(5, 2, generator=random), "action_mask": mask}
        inputs = [seen[path] for path in policy.env_spec.observation]
        given = dict(zip(names, [each.numpy() for each in (*inputs, carried)], strict=True))
        action, carried = module(*inputs, carried)
        for found, after in ((action.numpy(), carried.numpy()), session.run(None, given)):
            np.testing.assert_allclose(after, carried.numpy(), atol=1e-6)
            assert np.array_equal(found, action.numpy())
        wanted, state = policy.act({key: leaf.numpy() for key, leaf in seen.items()}, state)
        assert np.array_equal(action.numpy(), wanted)
        np.testing.assert_allclose(carried.numpy(), state, atol=1e-6)


def test_videos_and_datasets_of_memory_and_masks_are_those_of_an_evaluation(
    masked, tmp_path, monkeypatch
):
    monkeypatch.setattr(MaskedTMaze, "metadata", {"render_modes": ["rgb_array"]})
    monkeypatch.setattr(MaskedTMaze, "render", lambda env: np.zeros((8, 8, 3), np.uint8), False)
    _, returns = record_run(masked, tmp_path / "x.gif", episodes=5, seed=7)
    assert tuple(returns) == evaluate_run(masked, episodes=5, seed=7).result.returns
    found, policy = record_dataset(masked, tmp_path / "set", episodes=6), load_policy(masked)
    for episode in minari.MinariDataset(found.path / "data"):
        state = None
        for t, taken in enumerate(episode.actions):
            seen = {key: leaf[t] for key, leaf in episode.observations.items()}
            action, state = policy.act(seen, state)
            assert action == taken
