"""Keys stand for the actions that a file, the environment or fastrl gives them."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from fastrl.errors import ConfigError
from fastrl.play.key_map import KeyMap, key_map
from tests.training.clockwork import Clockwork


def pressed(*keys):
    return frozenset(keys)


def test_the_longest_combination_of_pressed_keys_counts():
    keys = KeyMap({"none": 0, "left": 1, "up": 2, "up+left": 3}, spaces.Discrete(4), "x")
    assert keys.keys == ("left", "up")
    assert keys(pressed()) == keys(pressed("a")) == 0
    assert keys(pressed("left", "a")) == 1
    assert keys(pressed("left", "up", "a")) == 3


def test_without_an_action_for_no_key_the_first_one_is_repeated():
    keys = KeyMap({"a": 1, "b": 0}, spaces.Discrete(2), "x")
    assert keys(pressed()) == 1


def test_keys_of_a_file_come_first(tmp_path):
    (tmp_path / "keys.yaml").write_text('w: [0.5, 1]\nspace: [0, 0]\n"1": [1, 1]\n')
    env = gymnasium.Env()
    env.action_space = spaces.Box(-1, 1, (2,))
    keys = key_map(env, "Mine-v0", tmp_path / "keys.yaml")
    assert keys.keys == ("w", "space", "1")
    np.testing.assert_array_equal(keys(pressed("w")), np.array([0.5, 1], np.float32))
    assert keys(pressed("w")).dtype == np.float32


def test_keys_of_the_environment_are_those_of_gymnasium(tmp_path):
    class Atari(Clockwork):
        def get_keys_to_action(self):
            return {("w", " "): 2, (ord("a"),): 1, (): 0}

    keys = key_map(Atari(), "Atari", None)
    assert keys.keys == ("space", "w", "a")
    assert [keys(pressed("w", "space")), keys(pressed("a")), keys(pressed())] == [2, 1, 0]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "fastrl/CartPole-v1", "Pendulum-v1"])
def test_known_environments_have_keys(env_id):
    import fastrl.envs  # noqa: F401 (registers fastrl/…)

    with gymnasium.make(env_id) as env:
        keys = key_map(env, env_id, None)
        assert keys.keys == ("left", "right")
        assert env.action_space.contains(keys(pressed("right")))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lefft: 0", r"keys.yaml: 'lefft' is not a key; did you mean 'left'\?; write a character"),
        ("left: 7", r"keys.yaml: left: 7 is not an action of Discrete\(3\)"),
        ("left: [a]", r"keys.yaml: left: \['a'\] is not an action of Discrete\(3\)"),
        ("none: 0", "keys.yaml: it has no key"),
        ("- left", "keys.yaml: must be a mapping of keys to values"),
        ("left: {", "keys.yaml:1: "),
    ],
)
def test_files_that_do_not_fit_are_one_line(tmp_path, text, problem):
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        key_map(Clockwork(), "Clockwork", tmp_path / "keys.yaml")


def test_missing_keys_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no keys are known for 'Clockwork', whose actions are D"):
        key_map(Clockwork(), "Clockwork", None)
    with pytest.raises(ConfigError, match="no such file"):
        key_map(Clockwork(), "Clockwork", tmp_path / "none.yaml")
