"""What is wrong with a section ``cluster`` is one line, before time is spent."""

import subprocess
import sys

import pytest

from fastrl.config import ClusterConfig, Config, EnvConfig
from fastrl.errors import ConfigError
from fastrl.sampling import make_plan, make_sampler


@pytest.fixture(scope="module")
def plan():
    return make_plan(Config(env=EnvConfig(id="CartPole-v1")))


@pytest.mark.parametrize(
    ("section", "sampler", "problem"),
    [
        ({"address": "ray://head:10001"}, {}, r"cluster\.address: .*'ray://.*=auto"),
        (
            {"address": "head"},
            {},
            r"cluster\.address: must be local, auto or host:port, got 'head'",
        ),
        ({"address": "127.0.0.1:1"}, {}, r"cluster\.address: nothing answers at 127\.0\.0\.1:1"),
        ({"mode": "gradients"}, {}, r"cluster\.mode: .* the whole cluster needs rollouts"),
        ({}, {"kind": "serial"}, r"sampler\.kind: must be process with cluster, got 'serial'"),
    ],
)
def test_settings_that_cannot_work(plan, section, sampler, problem):
    pytest.importorskip("ray")
    tree = {"env": {"id": "CartPole-v1"}, "sampler": sampler, "cluster": section}
    with pytest.raises(ConfigError, match=problem):
        make_sampler(Config.model_validate(tree), plan)


def test_a_missing_package_is_named(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    config = Config(env=EnvConfig(id="CartPole-v1"), cluster=ClusterConfig())
    with pytest.raises(ConfigError, match=r"cluster needs the package ray; pip install"):
        make_sampler(config, plan)


def test_ray_is_imported_only_for_a_cluster():
    code = "import sys, fastrl.cli, fastrl.training.run, fastrl.tuning, fastrl.sampling.build; "
    code += "sys.exit(any(name.partition('.')[0] == 'ray' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
