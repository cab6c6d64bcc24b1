"""Policies of environments with masks: evaluated, loaded, exported, recorded and resumed."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from fastrl import load_policy, resume, train
from fastrl.config import Config, EnvConfig, EvaluationConfig, ModelConfig, PPOConfig, SamplerConfig
from fastrl.errors import ConfigError, EnvError
from fastrl.training import evaluate_run, export_run, record_run
from fastrl.training.session import final_protocol
from tests.masked_env import CheckingEnv

SOURCES = ["key", "info", "method"]


@pytest.fixture(scope="module", params=SOURCES)
def run(request, tmp_path_factory):
    """Return (source, run) of a policy that was trained a little."""
    path = tmp_path_factory.mktemp(request.param) / "run"
    config = Config(
        seed=2,
        total_steps=256,
        run_dir=str(path),
        env=EnvConfig(
            id="tests.masked_env:CheckingEnv",
            kwargs={"actions": "nested", "source": request.param},
        ),
        sampler=SamplerConfig(kind="serial", num_envs=4, rollout_length=16),
        model=ModelConfig(hidden_sizes=(8,)),
        algorithm=PPOConfig(minibatch_size=32, epochs=2),
        evaluation=EvaluationConfig(every_steps=10**6, final_episodes=5),
    )
    return request.param, train(config)


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_loaded_policy_plays_the_episodes_of_an_evaluation(run, deterministic):
    source, trained = run
    protocol = final_protocol(trained.config)
    evaluated = evaluate_run(trained.path, episodes=3, deterministic=deterministic).result
    policy = load_policy(trained.path, seed=protocol.seed)
    envs = [CheckingEnv("nested", source) for _ in range(3)]
    seeds = protocol.episode_seeds()[:3]
    returns, playing = [0.0] * 3, {0, 1, 2}
    seen = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    while playing:
        # All episodes at once, as in the evaluation; CheckingEnv rejects invalid actions.
        masks = np.stack([env._mask() for env in envs])
        if source == "key":
            batch = {key: np.stack([each[key] for each in seen]) for key in seen[0]}
            actions, _ = policy.act(batch, deterministic=deterministic)
        else:
            actions, _ = policy.act(np.stack(seen), mask=masks, deterministic=deterministic)
        for slot in list(playing):
            action = {
                "move": actions["move"][slot],
                "box": actions["box"][slot],
                "tools": tuple(each[slot] for each in actions["tools"]),
            }
            seen[slot], reward, terminated, truncated, _ = envs[slot].step(action)
            returns[slot] += reward
            if terminated or truncated:
                playing.remove(slot)
    assert tuple(returns) == evaluated.returns
    assert evaluated.lengths == (7, 7, 7)


def test_a_mask_is_passed_beside_or_within_the_observation(run):
    source, trained = run
    policy = load_policy(trained.path)
    seen, mask = np.zeros(2, np.float32), np.zeros(11, np.int8)
    mask[[3, 5, 8, 10]] = 1
    for observation, given in (
        ({"seen" if source == "key" else "observation": seen, "action_mask": mask}, None),
        ({"seen": seen} if source == "key" else seen, mask),
        ({"seen": seen} if source == "key" else seen, torch.from_numpy(mask).bool()),
        (
            {"seen": seen} if source == "key" else seen,
            {"move": [0, 0, 0, 1], "tools": (([0, 1], [0, 0, 1]), [0, 1])},
        ),
    ):
        action, state = policy.act(observation, mask=given)
        assert state is None
        assert action["move"] == 2
        assert [each.tolist() for each in action["tools"]] == [[1, 2], 1]


def test_wrong_masks_are_one_line(run):
    source, trained = run
    policy = load_policy(trained.path)
    seen = {"seen": np.zeros(2, np.float32)} if source == "key" else np.zeros(2, np.float32)
    with pytest.raises(ConfigError, match=r"has masks of valid actions: pass mask=…, 11 numbers"):
        policy.act(seen)
    with pytest.raises(EnvError, match=r"expected an array \(11,\)"):
        policy.act(seen, mask=np.ones(10))
    with pytest.raises(EnvError, match="the mask allows no action"):
        policy.act(seen, mask=np.zeros(11, bool))


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated:DeprecationWarning")
def test_masks_are_an_input_of_exported_policies(run, tmp_path):
    _, trained = run
    path = export_run(trained.path, "torchscript", tmp_path / "policy.pt")
    module = torch.jit.load(io.BytesIO(path.read_bytes()))
    policy = load_policy(trained.path)
    seen = torch.randn(6, 2)
    mask = torch.rand(6, 11) < 0.5
    mask[:, [0, 4, 6, 9]] = True
    key = next(iter(policy.env_spec.inputs))
    by_path = {key: seen, "action_mask": mask}
    found = module(*(by_path[path] for path in policy.env_spec.observation))
    wanted, _ = policy.act({key: seen.numpy(), "action_mask": mask.numpy()})
    assert np.array_equal(found[0].numpy(), wanted["move"])


@pytest.mark.parametrize("run", SOURCES[:1], indirect=True)
def test_the_mask_of_an_onnx_file_has_its_name(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    _, trained = run
    path = export_run(trained.path, "onnx", tmp_path / "policy.onnx")
    inputs = onnxruntime.InferenceSession(path.read_bytes()).get_inputs()
    assert {each.name: each.shape[1:] for each in inputs}["action_mask"] == [11]


def test_videos_obey_masks(run, tmp_path):
    _, trained = run
    _, returns = record_run(trained.path, tmp_path / "video.gif", episodes=2)
    assert returns == [7.0, 7.0]


def test_a_run_with_masks_is_resumed(run):
    _, trained = run
    continued = resume(trained.path, ["total_steps=512"])
    assert continued.outcome.steps == 512


def test_runs_say_where_masks_come_from(tmp_path, capsys):
    from rich.console import Console

    output = io.StringIO()
    config = Config(
        total_steps=64,
        run_dir=str(tmp_path / "run"),
        env=EnvConfig(id="Taxi-v4"),
        sampler=SamplerConfig(kind="serial", num_envs=2, rollout_length=32),
        evaluation=EvaluationConfig(every_steps=10**6, final_episodes=1, max_steps=50),
    )
    train(config, console=Console(file=output, width=200))
    said = output.getvalue() + capsys.readouterr().err
    assert said.count("masks of valid actions come from info['action_mask']") == 1


def test_evaluations_reject_an_observation_that_allows_no_action(tmp_path):
    config = Config(
        total_steps=64,
        run_dir=str(tmp_path / "run"),
        env=EnvConfig(id="tests.masked_env:CheckingEnv"),
        sampler=SamplerConfig(kind="serial", num_envs=4, rollout_length=16),
        evaluation=EvaluationConfig(
            every_steps=10**6, final_episodes=2, env_kwargs={"empty_at": 3}
        ),
    )
    with pytest.raises(
        Exception, match=r"the action_mask of episode 0 .* is without a valid action"
    ):
        train(config)
