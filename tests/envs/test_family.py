"""Families of environments from outside the package come through the same door as fastrl's own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import fastrl
from fastrl import EnvSpec, load_config, make_sampler, registry
from fastrl.envs import EnvFactory, Family
from fastrl.envs.catalogue import list_environments
from fastrl.envs.family import family_of, own_families
from fastrl.errors import ConfigError, EnvError
from fastrl.training.trust import named_code
from fastrl.tuning.tune import sources
from fastrl.vector import ArgumentError
from tests.counting_env import CountingEnv


class Corridor:
    """n corridors: an observation is the place, an episode ends at the far end or after a while."""

    def __init__(self, num_envs, length, limit):
        seen = spaces.Box(0, length, (1,), np.float32)
        self.spec = EnvSpec("hall/Short", seen, spaces.Discrete(2), limit)
        self.num_envs, self.length, self.limit = num_envs, length, limit
        self.place, self.steps = np.zeros((2, num_envs), np.int64)

    def reset(self, seeds, observation):
        self.place[:], self.steps[:] = np.array(seeds) % 2, 0
        observation[0][:, 0] = self.place

    def step(self, views):
        self.place += views.action[0]
        self.steps += 1
        views.reward[:] = self.place
        views.terminated[:] = self.place >= self.length
        views.truncated[:] = ~views.terminated & (self.steps >= self.limit)
        ended = views.terminated | views.truncated
        views.final_observation[0][ended, 0] = self.place[ended]
        self.place[ended] = self.steps[ended] = 0
        views.observation[0][:, 0] = self.place

    def close(self):
        pass


class Halls(Family):
    """Batches of corridors, and single counting environments in their place."""

    prefix = "hall/"

    def names(self):
        return ("Short", "Long")

    def build(self, name, num_envs, *, max_episode_steps=9, **kwargs):
        return Corridor(num_envs, {"Short": 3, "Long": 30, **kwargs}[name], max_episode_steps)

    def single(self, name, **kwargs):
        return CountingEnv(**kwargs)


class Lines(Family):
    """Vector environments that reset in the next step, and do not say so."""

    prefix = "line:"

    def build(self, name, num_envs):
        return gymnasium.vector.SyncVectorEnv([CountingEnv] * num_envs)


class Counters(Family):
    """Single environments, with a colon."""

    prefix = "count:"
    batched = False

    def build(self, kind, **kwargs):
        return CountingEnv(observation=kind, **kwargs)


@pytest.fixture
def families(monkeypatch):
    registry.registered("environments")
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    fastrl.register("environments", "hall", Halls())
    fastrl.register("environments", "count", Counters())
    fastrl.register("environments", "line", Lines())


def sampled(*overrides):
    common = ["sampler.num_env_workers=2", "sampler.envs_per_worker=2", "sampler.rollout_length=8"]
    with make_sampler(load_config(None, [*common, *overrides])) as sampler:
        rollout = sampler.collect()
        return rollout.reward.numpy().copy(), rollout.observation.numpy().copy()


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize("env_id", ["hall/Short", "count:vector"])
def test_family_is_sampled_from_a_configuration_in_workers_as_in_this_process(env_id):
    alone, apart = (sampled(f"env.id={env_id}", f"sampler.kind={k}") for k in ("serial", "process"))
    for one, other in zip(alone, apart, strict=True):
        np.testing.assert_array_equal(one, other)
    assert alone[0].any()


@pytest.mark.usefixtures("families")
def test_factory_gives_arguments_that_build_names():
    env = EnvFactory("hall/Long", {"Long": 7}, max_episode_steps=5).batched(3)
    assert (env.num_envs, env.length, env.limit) == (3, 7, 5)
    assert EnvFactory("hall/Long").batched(1).limit == 9
    assert isinstance(EnvFactory("hall/Long", {"length": 4}).single().unwrapped, CountingEnv)
    assert EnvFactory("count:vector", max_episode_steps=2).probe().max_episode_steps == 2


@pytest.mark.usefixtures("families")
def test_vector_interface_comes_with_the_batch():
    envs = fastrl.make_vec("hall/Short", 4, num_workers=2)
    assert (envs.backend, envs.num_envs) == ("native", 4)
    seen, _ = envs.reset(seed=0)
    np.testing.assert_array_equal(seen[:, 0], [0, 1, 0, 1])
    for _ in range(2):
        seen, _, terminated, *_ = envs.step(np.ones(4, np.int64))
    np.testing.assert_array_equal(terminated, [False, True, False, True])
    np.testing.assert_array_equal(seen[:, 0], [2, 0, 2, 0])
    envs.close()
    with pytest.raises(
        ArgumentError, match="'line:x' supports only the autoreset mode NEXT_STEP, not"
    ):
        fastrl.make_vec("line:x", 2, backend="native")
    envs = fastrl.make_vec("count:vector", 2, backend="serial")
    assert envs.reset(seed=0)[0].shape == (2, 4)
    envs.close()


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("hall/Shor", {}, r"^unknown environment 'hall/Shor'; did you mean 'hall/Short'\?$"),
        ("hall/", {}, r"^unknown environment 'hall/'; did you mean 'hall/Long'\?$"),
        ("hal/Short", {}, "^unknown environment 'hal/Short'"),
        ("count:vector", {"wings": 2}, r"^'count:vector' cannot be built with {'wings': 2}: "),
        ("hall/Short", {"wrappers": [gymnasium.Wrapper]}, "takes no wrappers of single env"),
        ("hall/Short", {"randomize": {"length": 1}}, "takes no argument 'randomize'$"),
    ],
)
def test_mistakes_say_what_would_be_right(env_id, kwargs, message):
    given = kwargs if {"wrappers", "randomize"} & kwargs.keys() else {"kwargs": kwargs}
    with pytest.raises(EnvError, match=message) as caught:
        EnvFactory(env_id, **given).batched(2)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize("family", [Halls, object(), Counters(), "tests.envs.test_family:Corridor"])
def test_what_is_no_family_is_reported_where_it_is_asked_for(family):
    fastrl.register("environments", "pond", family)
    assert EnvFactory("CartPole-v1").family is None
    with pytest.raises(
        ConfigError, match=r"^environments 'pond' must be a fastrl\.envs\.Family wi"
    ):
        EnvFactory("pond/Small")
    (listed,) = list_environments("pond")
    assert listed.problem.startswith("environments 'pond' must be")


@pytest.mark.usefixtures("families")
def test_other_tools_know_it():
    assert [each.id for each in list_environments("hall/")] == ["hall/Long", "hall/Short"]
    for env_id in ("hall/Short", "count:vector"):
        config = load_config(None, [f"env.id={env_id}"])
        assert named_code(config) == []
        assert any(path.endswith("test_family.py") for path in sources(config))


def test_ids_of_fastrl_s_own_families_are_all_theirs():
    for family in own_families():
        for name in family.names():
            assert family_of(family.prefix + name) is family


SCRIPT = """
import numpy as np
import fastrl
from gymnasium.envs.classic_control import CartPoleEnv
from fastrl.envs import Family

class Carts(Family):
    prefix = "carts/"
    batched = False
    def build(self, name, *, max_episode_steps=20):
        return CartPoleEnv()

fastrl.register("environments", "carts", Carts())
given = ["env.id=carts/One", "sampler.num_env_workers=1", "sampler.envs_per_worker=2"]
config = fastrl.load_config(None, [*given, "sampler.rollout_length=4"])
with fastrl.make_sampler(config) as sampler:
    print(tuple(sampler.collect().observation.shape))
"""


def test_family_of_the_script_itself_reaches_workers(tmp_path):
    (tmp_path / "main.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "main.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "(5, 2, 4)\n", done.stderr


PLUGIN = """
import fastrl
from fastrl.envs import Family

class Ponds(Family):
    prefix = "pond/"
    batched = False
    def build(self, name, **kwargs):
        from gymnasium.envs.classic_control import PendulumEnv
        return PendulumEnv(**kwargs)

POND = Ponds()
"""


def test_family_of_an_installed_plug_in_is_found(tmp_path):
    (tmp_path / "ponds.py").write_text(PLUGIN)
    (tmp_path / "ponds_entry.py").write_text(
        "import fastrl\nfastrl.register('environments', 'pond', 'ponds:POND')\n"
    )
    info = tmp_path / "ponds-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ponds\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fastrl.plugins]\nponds = ponds_entry\n")
    code = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from fastrl.envs import EnvFactory
        EnvFactory("CartPole-v1"), EnvFactory("fastrl/CartPole-v1"), EnvFactory("sea/Big")
        assert "ponds" not in sys.modules, "imported before it is asked for"
        print(EnvFactory("pond/Deep", {{"g": 2.0}}).probe().id)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "pond/Deep\n", done.stderr
