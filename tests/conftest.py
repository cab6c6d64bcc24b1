"""Fixtures and settings for the tests of all packages."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter

import pytest
from hypothesis import settings

# Several processes of the tests share the cores, and threads of torch that spin while they wait for
# each other take them away: with it, tests of networks take three times as long. Read by OpenMP
# when torch is loaded, and inherited by all processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from fastrl.config import Config, EnvConfig, PPOConfig, SamplerConfig

# The cores of CI are shared, so how long an example takes says nothing about the code.
settings.register_profile("fastrl", deadline=None, print_blob=True, max_examples=25)
# Many more examples: pytest --hypothesis-profile=long.
settings.register_profile("long", settings.get_profile("fastrl"), max_examples=500)
settings.load_profile("fastrl")

# A shell starts what runs in its background deaf to Ctrl-C, and every process inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # after tests were deselected
def pytest_collection_modifyitems(config, items):
    """Start parallel runs with the files of long tests, so that none runs alone at the end.

    The mark of a long test is its longer timeout.
    """
    if not hasattr(config, "workerinput"):
        return
    timeouts, sizes = Counter(), Counter()
    for item in items:
        marker = item.get_closest_marker("timeout")
        timeouts[item.path] = max(timeouts[item.path], marker.args[0] if marker else 0)
        sizes[item.path] += 1
    items.sort(key=lambda item: (-timeouts[item.path], -sizes[item.path]))


@pytest.fixture(scope="session", autouse=True)
def _files_of_the_user_go_with_what_the_tests_leave(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3")))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _waits_are_no_lines():
    """Silence progress lines, whose number depends on the load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastrl.live_display.FIRST_LINE_S", 1000.0)
        yield


@pytest.fixture(autouse=True)
def _modules_of_temporary_files_are_forgotten(tmp_path_factory):
    before = set(sys.modules)
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in sys.modules.keys() - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(folder):
            del sys.modules[name]


@pytest.fixture
def tiny_config() -> Config:
    """The smallest run that still has several workers, environments and minibatches."""
    return Config(
        total_steps=64,
        env=EnvConfig(id="CartPole-v1"),
        sampler=SamplerConfig(envs_per_worker=2, num_env_workers=2, rollout_length=8),
        algorithm=PPOConfig(epochs=2, minibatch_size=16),
    )
