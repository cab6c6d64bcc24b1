"""A node with other packages than the driver."""

import pytest

pytest.importorskip("ray")

from fastrl.cluster.connection import Connection, NodeLostError
from fastrl.cluster.node_sampler import NodeSampler, packages
from fastrl.config import Config, EnvConfig
from fastrl.errors import ConfigError
from fastrl.program_code import packed


def test_other_versions_are_named():
    answer = NodeSampler().ask("open", packages() | {"torch": "1.0"}, b"")
    assert isinstance(answer, ConfigError)
    assert "but the driver has torch 1.0; install the same versions" in str(answer)


def test_a_module_that_a_node_lacks_is_named(monkeypatch):
    content = packed(Config(env=EnvConfig(id="CartPole-v1")), pytest.fixture).replace(
        b"_pytest", b"_absent"
    )
    answer = NodeSampler().ask("open", packages(), content)
    assert isinstance(answer, ConfigError)
    assert "lacks what the run imports: No module named '_absent'" in str(answer)


class NotThere:
    """An actor as one whose package a node lacks."""

    def __init__(self):
        raise ModuleNotFoundError("No module named 'fastrl'")

    def ask(self):
        """Never called."""


@pytest.mark.ray
def test_a_node_without_fastrl_is_named_in_one_line(raylets, nodes):
    with Connection(raylets.address) as connection:
        actor = connection.start(connection.nodes()[0], NotThere, 1)
        with pytest.raises(NodeLostError) as caught:
            connection.get(actor.ask.remote(), 60.0)
    assert str(caught.value) == "cannot start: ModuleNotFoundError: No module named 'fastrl'"
