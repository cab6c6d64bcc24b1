"""Datasets are what minari reads, bit for bit, and what is no dataset is one line."""

import json

import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces

from fastrl.datasets import DatasetWriter, Episode, load_demonstrations
from fastrl.datasets.summary import summarize
from fastrl.envs.actions import ActionConverter
from fastrl.errors import ConfigError, EnvError
from fastrl.spec import EnvSpec
from tests.datasets.drawing import drawn, written

FLOATS = spaces.Box(-np.inf, np.inf, (3,), np.float32)
NESTED = spaces.Dict(
    camera=spaces.Box(0, 255, (40, 40, 3), np.uint8),
    arm=spaces.Tuple((spaces.Discrete(4, start=2), spaces.Box(-1, 1, (2, 2), np.float64))),
    flags=spaces.MultiBinary([2, 3]),
)
OBSERVATIONS = {
    "float32": FLOATS,
    "float64": spaces.Box(-9, 9, (2, 3), np.float64),
    "scalar": spaces.Box(0, 1, (), np.float32),
    "float16": spaces.Box(-1, 1, (2,), np.float16),
    "uint16": spaces.Box(0, 60_000, (2,), np.uint16),
    "image": spaces.Box(0, 255, (64, 64, 3), np.uint8),
    "bool": spaces.Box(0, 1, (4,), np.bool_),
    "discrete": spaces.Discrete(5, start=-2),
    "many": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "binary": spaces.MultiBinary(3),
    "nested": NESTED,
    "masked": spaces.Dict(observation=FLOATS, action_mask=spaces.MultiBinary(3)),
}
ACTIONS = {
    "discrete": spaces.Discrete(3, start=4),
    "many": spaces.MultiDiscrete([2, 3], start=[1, -1]),
    "binary": spaces.MultiBinary([2, 2]),
    "box": spaces.Box(-2, 2, (3,), np.float32),
    "box64": spaces.Box(-2, 2, (3,), np.float64),
    "nested": spaces.Dict(move=spaces.Discrete(2), force=spaces.Box(-1, 1, (2,), np.float32)),
}


@pytest.mark.parametrize(
    ("observed", "acted"),
    [*((name, "discrete") for name in OBSERVATIONS), *(("float32", name) for name in ACTIONS)],
)
def test_every_space_comes_back_bit_for_bit(observed, acted, tmp_path):
    spec = EnvSpec("Some-v0", OBSERVATIONS[observed], ACTIONS[acted])
    episodes = [drawn(spec, length, seed=length) for length in (4, 1, 7)]
    found = load_demonstrations(
        written(tmp_path / "set", spec, episodes), spec, fields=["log_prob"]
    )

    assert found.lengths.tolist() == [4, 1, 7]
    starts = [0, 4, 5]
    for episode, start, end in zip(episodes, starts, [4, 5, 12], strict=True):
        rows = slice(start, end)
        for path, leaf in episode.observation.items():
            assert torch.equal(found.observation[path][rows], torch.from_numpy(leaf[:-1]))
            assert torch.equal(found.next_observation[path][rows], torch.from_numpy(leaf[1:]))
            assert found.observation[path].dtype == spec.observation[path].dtype
        for path, leaf in episode.action.items():
            assert torch.equal(found.action[path][rows], torch.from_numpy(leaf))
        assert torch.equal(found.reward[rows], torch.from_numpy(episode.reward))
        assert torch.equal(
            found.fields["log_prob"][rows], torch.from_numpy(episode.fields["log_prob"])
        )
        ends = [False] * (len(episode) - 1) + [True]
        ended = found.terminated if episode.terminated else found.truncated
        assert ended[rows].tolist() == ends
    assert not (found.terminated & found.truncated).any()


def test_minari_reads_the_accepted_actions_and_the_spaces(tmp_path):
    spec = EnvSpec("CartPole-v1", NESTED, ACTIONS["many"])
    episode = drawn(spec)
    path = written(tmp_path / "poles-v3", spec, [episode])
    found = minari.MinariDataset(path / "data")
    assert (found.id, found.total_steps, found.total_episodes) == ("poles-v3", 4, 1)
    assert found.observation_space == NESTED
    assert found.action_space == ACTIONS["many"]
    assert found.env_spec.id == "CartPole-v1"
    [read] = found
    assert np.array_equal(read.actions, episode.action[""] + [1, -1])
    assert np.array_equal(read.observations["camera"], episode.observation["camera"])
    assert read.observations["arm"][1].dtype == np.float64
    assert np.array_equal(read.infos["log_prob"][1:], episode.fields["log_prob"])


def test_minari_lists_a_dataset_that_lies_in_its_collection(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    spec = EnvSpec("Some-v0", FLOATS, ACTIONS["box"])
    written(tmp_path / "mine-v0", spec, [drawn(spec)])
    assert minari.load_dataset("mine-v0").total_steps == 4


def test_a_failed_writer_leaves_nothing(tmp_path):
    spec = EnvSpec("Some-v0", FLOATS, ACTIONS["discrete"])

    def episodes():
        yield drawn(spec)
        raise KeyError("reward")

    with pytest.raises(ConfigError, match="cannot be written: KeyError"):
        written(tmp_path / "set", spec, episodes())
    assert list(tmp_path.iterdir()) == []
    written(tmp_path / "set", spec, [drawn(spec)])
    with pytest.raises(ConfigError, match="exists already"):
        DatasetWriter(tmp_path / "set", spec)


def test_a_key_that_files_cannot_have_is_one_line_at_once(tmp_path):
    observed = spaces.Tuple([spaces.Dict({"a": FLOATS, "a/b": FLOATS})])
    spec = EnvSpec("Some-v0", observed, spaces.Discrete(2))
    with pytest.raises(ConfigError, match="cannot have the key 'a/b'"):
        DatasetWriter(tmp_path / "set", spec)
    assert not any(tmp_path.iterdir())


def test_several_parts_are_one_dataset(tmp_path):
    spec = EnvSpec("Some-v0", FLOATS, ACTIONS["box"])
    for number in (1, 0):
        written(tmp_path / f"part-{number}", spec, [drawn(spec, 2 + number)])
    assert load_demonstrations(tmp_path).lengths.tolist() == [2, 3]


def test_each_difference_of_the_spaces_is_named(tmp_path):
    spec = EnvSpec("Some-v0", NESTED, ACTIONS["box"])
    path = written(tmp_path / "set", spec, [drawn(spec)])
    other = EnvSpec(
        "Other-v0",
        spaces.Dict(
            camera=spaces.Box(0, 255, (41, 40, 3), np.uint8), arm=NESTED["arm"], sound=FLOATS
        ),
        spaces.Box(-1, 1, (3,)),
    )
    with pytest.raises(ConfigError) as caught:
        load_demonstrations(path, other)
    text = str(caught.value)
    for part in (
        "'camera'",
        "no observation 'sound'",
        "no observation 'flags'",
        "action is Box(-2",
    ):
        assert part in text
    assert "arm" not in text


def test_what_differs_only_in_stored_types_is_the_same(tmp_path):
    wide = EnvSpec("Some-v0", spaces.Box(-9, 9, (2, 3), np.float64), spaces.Discrete(3))
    narrow = EnvSpec("Some-v0", spaces.Box(-np.inf, np.inf, (2, 3)), spaces.Discrete(3))
    path = written(tmp_path / "set", wide, [drawn(wide)])
    assert len(load_demonstrations(path, narrow)) == 4


def test_squashed_actions_come_back(tmp_path):
    # The second number has a single value.
    spec = EnvSpec("Some-v0", FLOATS, spaces.Box(np.float32([-2, 1]), np.float32([3, 1])))
    episode = drawn(spec)
    sampled = np.float32([[-1, 0], [0, 0], [0.5, 0], [20, 0]])
    with DatasetWriter(tmp_path / "set", spec, "squash") as writer:
        writer.add([Episode(episode.observation, {"": sampled}, episode.reward, False)])
    found = load_demonstrations(tmp_path / "set", spec, action_bounds="squash").action[""]
    assert np.allclose(found[:3], sampled[:3], atol=1e-5)
    assert 6 < found[3, 0] < 8
    with pytest.raises(ConfigError, match="'clip' or 'squash' or None, got 'squeeze'"):
        load_demonstrations(tmp_path / "set", spec, action_bounds="squeeze")


def test_episodes_beyond_those_wanted_are_not_read(tmp_path):
    spec = EnvSpec("Some-v0", FLOATS, ACTIONS["discrete"])
    for name in ("one", "two"):
        path = written(tmp_path / name, spec, [drawn(spec)])
    (path / "data" / "main_data.hdf5").write_text("damaged")
    assert len(load_demonstrations(tmp_path, episodes=1)) == 4
    with pytest.raises(ConfigError, match=r"episode 1 of .* cannot be read"):
        load_demonstrations(tmp_path)


def test_fewer_episodes_are_read_and_more_are_one_line(tmp_path):
    spec = EnvSpec("Some-v0", FLOATS, ACTIONS["box"])
    path = written(tmp_path / "set", spec, [drawn(spec, 2), drawn(spec, 3)])
    assert load_demonstrations(path, episodes=1).lengths.tolist() == [2]
    with pytest.raises(ConfigError, match="has 2 episodes; 3 expected"):
        load_demonstrations(path, episodes=3)
    with pytest.raises(ConfigError, match="infos have no numbers 'speed'"):
        load_demonstrations(path, fields=["speed"])


def test_what_is_no_dataset_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="none' is not a directory"):
        load_demonstrations(tmp_path / "none")
    with pytest.raises(ConfigError, match="File name too long"):
        load_demonstrations(tmp_path / ("long" * 100))
    with pytest.raises(ConfigError, match="is not a dataset"):
        load_demonstrations(tmp_path)
    spec = EnvSpec("Some-v0", FLOATS, ACTIONS["discrete"])
    path = written(tmp_path / "set", spec, [drawn(spec)])
    file = path / "data" / "main_data.hdf5"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="cannot be read: "):
        load_demonstrations(path)
    file = path / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    for number in (None, 2.5, "many", -1):
        file.write_text(json.dumps({**metadata, "total_episodes": number}))
        with pytest.raises(ConfigError, match="set': total_episodes must be a whole number"):
            load_demonstrations(path)


def test_no_environment_that_a_dataset_names_is_imported(tmp_path):
    spec = EnvSpec("CartPole-v1", FLOATS, ACTIONS["discrete"])
    path = written(tmp_path / "set", spec, [drawn(spec)])
    file = path / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["env_spec"] = metadata["env_spec"].replace("gymnasium.envs", "hostile.envs")
    file.write_text(json.dumps(metadata))
    assert len(load_demonstrations(path)) == 4
    del metadata["action_space"]
    file.write_text(json.dumps(metadata))
    with pytest.raises(ConfigError, match=r"has no action_space in metadata\.json"):
        load_demonstrations(path)


def test_a_forbidden_action_is_named(tmp_path):
    spec = EnvSpec("Some-v0", OBSERVATIONS["masked"], spaces.Discrete(3))
    episode = drawn(spec)
    episode.observation["action_mask"][2, episode.action[""][2]] = False
    path = written(tmp_path / "set", spec, [drawn(spec), episode])
    with pytest.raises(
        ConfigError, match=r"episode 1 of .*: action of step 2 is invalid by its mask"
    ):
        load_demonstrations(path)


def test_bad_numbers_and_foreign_actions_are_named(tmp_path):
    spec = EnvSpec("Some-v0", FLOATS, spaces.Discrete(3))
    episode = drawn(spec)
    episode.observation[""][2, 1] = np.nan
    path = written(tmp_path / "nan", spec, [episode])
    with pytest.raises(
        ConfigError, match=r"episode 0 .*observation has a number that is not finite"
    ):
        load_demonstrations(path)
    many = Episode(drawn(spec).observation, {"": np.array([0, 1, 2, 3])}, episode.reward, False)
    path = written(tmp_path / "many", spec, [many])
    with pytest.raises(ConfigError, match="3 is not an action"):
        load_demonstrations(path)
    for action in (-1, 0.5, np.nan):
        with pytest.raises(EnvError, match=f"{action} is not an action"):
            ActionConverter(spec.action_space).sampled((np.array([action]),))


PLACES = spaces.Dict(
    box=spaces.Box(0, 255, (2,), np.uint8), many=spaces.MultiDiscrete([2, 3], start=[1, 0])
)


def damaged(tmp_path, label, numbers):
    """Return a dataset of an episode of 4 steps with other numbers in an array, or without it."""
    spec = EnvSpec("Some-v0", PLACES, spaces.Discrete(3))
    path = written(tmp_path / "set", spec, [drawn(spec)])
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        del file[f"episode_0/{label}"]
        if numbers is not None:
            file[f"episode_0/{label}"] = numbers
    return path


@pytest.mark.parametrize(
    ("label", "numbers", "message"),
    [
        ("observations/box", None, "cannot be read: KeyError: 'box'"),
        ("observations/many", np.zeros((4, 2)), "must have 5 observations with 4 rewards"),
        ("actions", np.zeros(0), "must have 4 actions with 4 rewards"),
        ("rewards", np.zeros(0), "must have 0 terminations with 0 rewards"),
        ("rewards", np.full(4, b"1"), "must have one number per step as rewards"),
        (
            "rewards",
            np.full(4, np.nan),
            "(has no finite rewards|reward has a number that is not f)",
        ),
    ],
)
def test_damaged_episodes_are_neither_read_nor_summarised(label, numbers, message, tmp_path):
    path = damaged(tmp_path, label, numbers)
    for read in (load_demonstrations, summarize):
        with pytest.raises(ConfigError, match=f"dataset: episode 0 of .*{message}"):
            read(path)


@pytest.mark.parametrize(
    ("label", "numbers", "message"),
    [
        ("observations/box", np.full((5, 2), 0.5), "observation/box: 0.5 does not fit uint8"),
        ("observations/box", np.full((5, 2), 300), "observation/box: 300 does not fit uint8"),
        ("observations/many", np.full((5, 2), 3), "observation/many: 3 is not one of MultiD"),
        ("observations/many", np.full((5, 2), np.nan), "observation/many: nan does not fit int64"),
        ("actions", np.full(4, 1.5), "action: 1.5 does not fit int64"),
        ("terminations", np.full(4, 0.5), "terminations: 0.5 does not fit bool"),
        ("rewards", np.full(4, 1e300), "reward has a number that is not finite"),
    ],
)
def test_no_number_changes_when_it_is_read(label, numbers, message, tmp_path):
    path = damaged(tmp_path, label, numbers)
    with pytest.raises(ConfigError, match=f"episode 0 of .*: {message}"):
        load_demonstrations(path)
