"""Policies of runs, used without their environments."""

from __future__ import annotations

import copy
import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from fastrl import load_policy
from fastrl.envs.env_factory import EnvFactory
from fastrl.errors import ConfigError, EnvError
from fastrl.spaces import flatten, leaves, unflatten
from fastrl.training import CheckpointError, evaluate_run
from fastrl.training.evaluation import EvaluationProtocol
from tests.training.spacious import KINDS, Spacious


def leaves_of(space, value):
    return [np.asarray(leaf) for leaf in flatten(space, value)]


def stacked(space, observations):
    columns = zip(*(flatten(space, each) for each in observations), strict=True)
    return rebuilt(space, [np.stack(column) for column in columns])


def rebuilt(space, parts):
    return unflatten(space, dict(zip(leaves(space), parts, strict=True)))


def samples(kind, count):
    space = KINDS[kind][0]
    space.seed(5)
    return [space.sample() for _ in range(count)]


def returns_by_hand(policy, kind, seeds, deterministic):
    """Play one episode per seed, all at once; those that are over stay in the batch."""
    observation_space, action_space = KINDS[kind]
    envs = [Spacious(kind) for _ in seeds]
    observed = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    returns, playing, state = [0.0] * len(seeds), set(range(len(seeds))), None
    while playing:
        batch = stacked(observation_space, observed)
        actions, state = policy.act(batch, state, deterministic=deterministic)
        columns = leaves_of(action_space, actions)
        for slot in list(playing):
            action = rebuilt(action_space, [column[slot] for column in columns])
            observed[slot], reward, over, _, _ = envs[slot].step(action)
            returns[slot] += float(np.float32(reward))
            if over:
                playing.remove(slot)
    return tuple(returns)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_policy_plays_the_episodes_of_an_evaluation(spacious_run, kind, deterministic):
    run = spacious_run(kind)
    result = evaluate_run(run, episodes=3, seed=7, deterministic=deterministic).result
    seeds = EvaluationProtocol(3, 7).episode_seeds()
    policy = load_policy(run, seed=7)
    assert returns_by_hand(policy, kind, seeds, deterministic) == result.returns


@pytest.mark.parametrize("kind", KINDS)
def test_one_observation_gives_one_action_that_is_a_row_of_the_batch(spacious_run, kind):
    policy, (observation_space, action_space) = load_policy(spacious_run(kind)), KINDS[kind]
    observations = samples(kind, 4)
    batch = stacked(observation_space, observations)
    columns = leaves_of(action_space, policy.act(batch)[0])
    for row, observation in enumerate(observations):
        action, state = policy.act(observation)
        assert state is None
        assert action_space.contains(action)
        for alone, column in zip(leaves_of(action_space, action), columns, strict=True):
            np.testing.assert_allclose(alone, column[row], rtol=1e-5, atol=1e-6)


def test_a_policy_travels_with_its_random_stream(spacious_run):
    _, space = KINDS["nested"]
    policy = load_policy(spacious_run("nested"), seed=3)
    observation = samples("nested", 1)[0]
    policy.act(observation, deterministic=False)
    copies = pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy)
    wanted, _ = policy.act(observation, deterministic=False)
    for each in copies:
        found, _ = each.act(observation, deterministic=False)
        pairs = zip(leaves_of(space, found), leaves_of(space, wanted), strict=True)
        assert all((one == other).all() for one, other in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_give_tensors(spacious_run, kind):
    policy, (observation_space, action_space) = load_policy(spacious_run(kind)), KINDS[kind]
    for observation in (samples(kind, 1)[0], stacked(observation_space, samples(kind, 3))):
        parts = map(torch.as_tensor, flatten(observation_space, observation))
        tensors, _ = policy.act(rebuilt(observation_space, list(parts)))
        wanted = leaves_of(action_space, policy.act(observation)[0])
        for tensor, array in zip(flatten(action_space, tensors), wanted, strict=True):
            assert isinstance(tensor, torch.Tensor)
            assert tensor.numpy().dtype == array.dtype
            assert (tensor.numpy() == array).all()


def test_samples_follow_from_the_seed_and_leave_the_callers_stream(spacious_run):
    before = torch.get_rng_state()

    def actions(seed):
        policy = load_policy(spacious_run("clipped"), seed=seed)
        noise = [policy.act(np.zeros((5, 3)), deterministic=False)[0][:, 1] for _ in range(2)]
        return np.stack(noise)

    assert (actions(1) == actions(1)).all()
    assert (actions(1) != actions(2)).any()
    assert (actions(None) != actions(None)).any()
    assert torch.equal(torch.get_rng_state(), before)


def test_observations_are_copied_and_may_be_of_any_layout(spacious_run):
    policy = load_policy(spacious_run("squashed"))
    batch = np.random.default_rng(0).normal(size=(4, 2, 3))
    wanted, _ = policy.act(batch)
    turned = np.asfortranarray(batch)
    turned.flags.writeable = False
    assert (policy.act(turned)[0] == wanted).all()
    np.testing.assert_allclose(policy.act(batch[::-1])[0], wanted[::-1], rtol=1e-5)
    assert (policy.act(batch.tolist())[0] == wanted).all()


def test_neither_environment_nor_its_module_is_needed(spacious_run, monkeypatch):
    def broken(*_, **__):
        raise AssertionError("an environment was built")

    monkeypatch.setattr(EnvFactory, "_build", broken)
    assert load_policy(spacious_run("discrete")).act(3)[0] in KINDS["discrete"][1]


def test_run_of_a_former_version_is_probed(spacious_run, tmp_path):
    run = shutil.copytree(spacious_run("nested"), tmp_path / "run")
    (run / "spaces.json").unlink()
    observation = samples("nested", 1)[0]
    actions = [load_policy(path).act(observation)[0] for path in (run, spacious_run("nested"))]
    for old, new in zip(*(leaves_of(KINDS["nested"][1], each) for each in actions), strict=True):
        assert (old == new).all()


def test_checkpoint_is_chosen_by_name_or_by_its_directory(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(trained, tmp_path / "runs" / "mine")
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    first, last = (
        load_policy(run, checkpoint=name).model.state_dict() for name in (names[0], "last")
    )
    for given in (f"mine/checkpoints/{names[0]}", run / "checkpoints" / names[0]):
        found = load_policy(given).model.state_dict()
        assert all(torch.equal(found[key], first[key]) for key in first)
    found = load_policy("mine").model.state_dict()
    assert all(torch.equal(found[key], last[key]) for key in last)
    assert not all(torch.equal(first[key], last[key]) for key in last)
    with pytest.raises(CheckpointError, match=r"^no checkpoint 'step_9' in"):
        load_policy("mine/checkpoints/step_9")
    # A user may keep runs in a directory of this name.
    shutil.copytree(run, tmp_path / "checkpoints" / "mine")
    assert load_policy(tmp_path / "checkpoints" / "mine").act(np.zeros(3))[0] in range(3)


@pytest.mark.parametrize(
    ("kind", "observation", "message"),
    [
        (
            "clipped",
            np.zeros(4),
            "the observation has the shape (4,); expected (3,), or (n, 3) for n environments",
        ),
        (
            "clipped",
            np.zeros((2, 2, 3)),
            "the observation has the shape (2, 2, 3); expected (3,), or (n, 3) for n environments",
        ),
        ("clipped", np.zeros((0, 3)), "the observation has the shape (0, 3); expected (3,), or (n"),
        (
            "scalar",
            np.zeros((1, 1), int),
            "the observation has the shape (1, 1); expected (), or (n,) for n environments",
        ),
        ("clipped", "north", "the observation has the shape (); expected (3,)"),
        ("clipped", ["a", "b", "c"], "env 0 returned an observation of dtype <U1"),
        ("clipped", [[1.0], [1.0, 2.0]], "the observation is not an array: "),
        ("discrete", 2.5, "env 0 returned an observation of dtype float64"),
        ("image", np.full((2, 9, 9, 3), 256), "env 0 returned an observation with the number 256"),
        ("nested", np.zeros(3), "the observation, a ndarray, is not of its space Dict("),
        ("nested", {"camera": 0}, "the observation, a dict, is not of its space Dict("),
        (
            "nested",
            {
                "camera": np.zeros((2, 9, 9, 3), np.uint8),
                "arm": (np.zeros((3, 2)), np.ones(2, int)),
            },
            "the observation 'arm/1' has the shape (2,); expected (3,)",
        ),
    ],
)
def test_observation_of_another_space_is_one_line(spacious_run, kind, observation, message):
    with pytest.raises(EnvError) as caught:
        load_policy(spacious_run(kind)).act(observation)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["state", "mask"])
def test_state_and_mask_are_for_policies_that_take_them(spacious_run, name):
    with pytest.raises(ConfigError, match=f"^{name} must be None: the policy takes no {name}$"):
        load_policy(spacious_run("discrete")).act(3, **{name: np.ones(4)})


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: [],
        lambda tree: tree.pop("action_space"),
        lambda tree: tree["observation_space"].update(kind="Sphere"),
        lambda tree: tree["observation_space"].update(shape=[2**40]),
        lambda tree: tree["observation_space"].update(dtype="object"),
        lambda tree: tree["observation_space"].update(low=[1, 2]),
        lambda tree: tree["action_space"].update(n=-1),
        lambda tree: tree["action_space"].update(n="many"),
    ],
)
def test_damaged_spaces_are_one_line(trained, tmp_path, change):
    run = shutil.copytree(trained, tmp_path / "run")
    tree = json.loads((run / "spaces.json").read_text())
    changed = change(tree)
    (run / "spaces.json").write_text(json.dumps(tree if changed is None else changed))
    with pytest.raises(CheckpointError, match=r"spaces\.json' is damaged: ") as caught:
        load_policy(run)
    assert "\n" not in str(caught.value)


def test_a_seed_that_is_no_number_is_one_line(spacious_run):
    with pytest.raises(ConfigError, match=r"^seed must be a whole number of at least 0, got 'x'"):
        load_policy(spacious_run("discrete"), seed="x")


def test_observations_that_are_not_finite_are_rejected(spacious_run):
    policy = load_policy(spacious_run("clipped"))
    for bad in ([0.0, np.nan, 0.0], np.full((2, 3), np.inf), torch.tensor([0, -np.inf, 0])):
        with pytest.raises(EnvError, match="the observation has a number that is not finite: "):
            policy.act(bad)
