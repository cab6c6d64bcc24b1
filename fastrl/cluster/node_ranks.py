"""Ranks on the nodes of a Ray cluster: each learns with the environments of its node."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle

from fastrl.closing import Closing
from fastrl.cluster.connection import Connection, Node, NodeLostError
from fastrl.cluster.node_sampler import packages, require_packages, unpickled
from fastrl.cluster.peer import Answering
from fastrl.config import Config
from fastrl.errors import WorkerError
from fastrl.learning.ranks import Ranks, leading_ranks, ranks_at

_LOGGER = logging.getLogger(__name__)
_END_S = 30.0
"""How long the other ranks may take to end after rank 0."""

Follow = Callable[..., Any]
"""What the ranks of other nodes do; called with the keyword argument ``ranks``."""


class RankActor(Answering):
    """One rank on a node; see `Answering`, but that `run` takes as long as the run."""

    def __init__(self) -> None:
        self._follow: Follow | None = None

    def prepare(self, wanted: dict[str, str], content: bytes) -> None:
        """Import what the run needs.

        Args:
            wanted: The driver's `packages`.
            content: A `Follow`, of cloudpickle.

        Raises:
            ConfigError: Versions differ, or something cannot be imported here.
        """
        require_packages(wanted)
        self._follow = unpickled(content)

    def run(self, rank: int, size: int, address: str, port: int) -> None:
        """Follow rank 0 to the end of the run; see `fastrl.learning.ranks.ranks_at`."""
        assert self._follow is not None, "the driver prepares it first"
        self._follow(ranks=ranks_at(rank, size, address, port))


class NodeRanks(Closing):
    """Makes this process rank 0 of a run, and starts a rank on every other node of a cluster.

    Args:
        config: With a section ``cluster``.

    Raises:
        ConfigError: The cluster cannot be joined.
    """

    def __init__(self, config: Config) -> None:
        assert config.cluster is not None
        self._config, self._settings = config, config.cluster
        self._connection = Connection(config.cluster.address)
        self._died: set[str] = set()

    @contextmanager
    def ranks(self, follow: Follow) -> Iterator[Ranks]:
        """Start the ranks, and end them with the block.

        A node whose rank dies in the block is left out the next time.

        Args:
            follow: See `Follow`.

        Raises:
            ConfigError: A node lacks something; names the node.
            WorkerError: A node does not answer.
        """
        nodes = self._nodes()
        actors = [self._connection.start(node, RankActor, node.cores) for node in nodes]
        try:
            self._prepare(nodes, actors, follow)
            if not nodes:
                yield Ranks()
                return
            runs: list[Any] = []

            def start(port: int) -> None:
                place = len(nodes) + 1, self._connection.address, port
                runs.extend(
                    actor.ask.remote("run", rank, *place)
                    for rank, actor in enumerate(actors, start=1)
                )

            ranks = leading_ranks(len(nodes) + 1, self._connection.address, start)
            try:
                yield ranks
            finally:
                ranks.close()
                if ranks.died is not None:
                    self._died.add(nodes[ranks.died - 1].id)
                self._wait(runs, _END_S if ranks.lost is None else 0.0)
        finally:
            for actor in actors:
                self._connection.kill(actor)

    def close(self) -> None:
        """Leave the cluster."""
        self._connection.close()

    def _nodes(self) -> list[Node]:
        """Return the nodes of the other ranks."""
        found = [
            node
            for node in self._connection.nodes()
            if not node.is_own and node.id not in self._died
        ]
        most = self._settings.nodes
        if most != "all":
            found = found[: most - 1]
        if self._settings.elastic:
            total, unit = self._config.topology.num_envs, self._config.sampler.unit
            while found and total % (unit * (len(found) + 1)):
                idle = found.pop().host
                _LOGGER.warning(
                    "%s is left idle: sampler.num_envs cannot be divided among all machines", idle
                )
        return found

    def _prepare(self, nodes: list[Node], actors: list[Any], follow: Follow) -> None:
        content = cloudpickle.dumps(follow)
        asked = {
            actor.ask.remote("prepare", packages(), content): node
            for node, actor in zip(nodes, actors, strict=True)
        }
        timeout_s = self._config.sampler.start_timeout_s
        until_s = time.monotonic() + timeout_s
        while asked:
            ready = self._connection.ready(list(asked), max(0.0, until_s - time.monotonic()))
            for reference in ready:
                node = asked.pop(reference)
                try:
                    error = self._connection.get(reference, timeout_s)
                except NodeLostError as lost:
                    raise WorkerError("cluster", f"{node.host} {lost}") from lost
                if error is not None:
                    raise type(error)(f"{node.host}: {error}")
            if asked and time.monotonic() > until_s:
                silent = ", ".join(node.host for node in asked.values())
                raise WorkerError(
                    "cluster",
                    f"{silent} did not answer within {timeout_s:g} s (are its cores taken?)",
                )

    def _wait(self, runs: list[Any], seconds: float) -> None:
        """Wait until the ranks have ended, so that they close their workers themselves."""
        until_s = time.monotonic() + seconds
        while runs and (left_s := until_s - time.monotonic()) > 0:
            ready = self._connection.ready(runs, left_s)
            runs = [run for run in runs if run not in ready]
