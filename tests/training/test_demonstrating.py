"""Recorded datasets hold whole episodes, as they were played in the workers."""

from __future__ import annotations

import minari
import numpy as np
import pytest
import torch

from fastrl import load_policy
from fastrl.config import Config
from fastrl.datasets import load_demonstrations
from fastrl.errors import ConfigError
from fastrl.spaces import flatten
from fastrl.training import record_dataset, record_function, train
from tests.counting_env import action_mark, decode, length_of, reward_of
from tests.datasets import playing
from tests.datasets.playing import counting_config
from tests.training.clockwork import small_run


@pytest.mark.parametrize(
    ("observed", "acted", "policy"),
    [
        ("vector", "discrete", "by_place"),
        ("image", "box", "by_pixels"),
        ("dict", "dict", "by_keys"),
    ],
)
def test_every_step_of_a_function_is_where_it_was_played(observed, acted, policy, tmp_path):
    config = counting_config(
        observation=observed, action=acted, uneven=True, ending="alternate", length=7
    )
    path = tmp_path / "counted"
    found = record_function(config, f"tests.datasets.playing:{policy}", path, episodes=14)
    assert len(found.lengths) == 14
    function, seen = getattr(playing, policy), {}
    for episode in minari.MinariDataset(path / "data"):
        space = minari.MinariDataset(path / "data").observation_space
        rows = zip(*flatten(space, episode.observations), strict=True)
        places = [decode(observed, row) for row in rows]
        tag, number = places[0].tag, places[0].episode
        length = length_of(tag, number, 7, uneven=True)
        assert [place.step for place in places] == list(range(length + 1))
        assert {(place.tag, place.episode) for place in places} == {(tag, number)}
        assert episode.rewards.tolist() == [reward_of(number, n + 1) for n in range(length)]
        assert episode.terminations.tolist() == [False] * (length - 1) + [number % 2 == 0]
        assert episode.truncations.tolist() == [False] * (length - 1) + [number % 2 == 1]
        actions = episode.actions
        for step in range(length):
            action = (
                {key: value[step] for key, value in actions.items()}
                if isinstance(actions, dict)
                else actions[step]
            )
            assert places[step + 1].last_action == action_mark(action)
            if observed == "vector":
                assert action == function(episode.observations[step])
        seen.setdefault(tag, []).append(number)
    # Each of six environments contributes its first episodes, however long they are.
    assert sorted(len(numbers) for numbers in seen.values()) == [2, 2, 2, 2, 3, 3]
    assert all(numbers == list(range(len(numbers))) for numbers in seen.values())


def test_masks_travel_along(tmp_path):
    config = Config(
        env={"id": "tests.masked_env:CheckingEnv", "kwargs": {"actions": "discrete"}},
        sampler={"envs_per_worker": 2, "num_env_workers": 1, "rollout_length": 8},
    )
    path = tmp_path / "masked"
    record_function(config, "tests.datasets.playing:first_valid", path, episodes=3)
    found = load_demonstrations(path)
    _, mask = found.env_spec.split_mask(found.observation)
    assert mask.dtype == torch.bool
    assert mask.gather(1, found.action[""][:, None]).all()
    with pytest.raises(ConfigError, match="first_invalid returned an action that the mask forbids"):
        record_function(config, "tests.datasets.playing:first_invalid", tmp_path / "other")


def test_a_run_is_recorded_with_what_its_policy_puts_out(tmp_path):
    run = train(small_run(tmp_path / "run", total_steps=64)).path
    for name, deterministic in (("sampled", False), ("likely", True), ("usual", None)):
        recorded = record_dataset(
            run, tmp_path / name, episodes=6, deterministic=deterministic, seed=3
        )
        assert len(recorded.returns) == 6
    sampled = load_demonstrations(tmp_path / "sampled", fields=["log_prob"])
    likely = load_demonstrations(tmp_path / "likely")
    usual = load_demonstrations(tmp_path / "usual")
    assert torch.equal(likely.action[""], usual.action[""])
    assert (sampled.fields["log_prob"] < 0).all()
    assert sampled.returns.tolist() == load_demonstrations(tmp_path / "sampled").returns.tolist()
    policy = load_policy(run)
    actions, _ = policy.act(likely.observation[""].numpy())
    assert np.array_equal(actions, likely.action[""].numpy())


def test_what_cannot_be_recorded_is_one_line(tmp_path):
    config = counting_config()
    with pytest.raises(ConfigError, match=r"--policy: 'tests.datasets.playing:nothing' cannot be"):
        record_function(config, "tests.datasets.playing:nothing", tmp_path / "set")
    with pytest.raises(ConfigError, match="wrong returned 'left', which is not an action"):
        record_function(config, "tests.datasets.playing:wrong", tmp_path / "set", episodes=1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="episodes"):
        record_function(config, "tests.datasets.playing:by_place", tmp_path / "set", episodes=0)
