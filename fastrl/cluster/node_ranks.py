"""Ranks on the nodes of a Ray cluster, each of which learns with the environments of its node."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastrl.closing import Closing
from fastrl.cluster.connection import Connection, Node, NodeLostError
from fastrl.cluster.node_sampler import packages, require_packages
from fastrl.cluster.peer import Answering, Peer
from fastrl.config import Config
from fastrl.errors import FastrlError, WorkerError
from fastrl.learning.ranks import Ranks, leading_ranks, ranks_at
from fastrl.program_code import packed, unpacked

_LOGGER = logging.getLogger(__name__)
_END_S = 30.0
"""Time in which the other ranks must end after rank 0."""

Follow = Callable[..., Any]
"""Function of the ranks on other nodes; called with the keyword argument ``ranks``."""


class RankActor(Answering):
    """One rank on a node; see `Answering`. Unlike other calls, `run` takes as long as the run."""

    def __init__(self) -> None:
        self._follow: Follow | None = None

    def open(self, wanted: dict[str, str], content: bytes) -> None:
        """Import the code of the run.

        Args:
            wanted: The driver's `packages`.
            content: A `Follow`, `packed`.

        Raises:
            ConfigError: Versions differ, or something cannot be imported here.
        """
        require_packages(wanted)
        self._follow = unpacked(content)

    def run(self, rank: int, size: int, address: str, port: int) -> None:
        """Follow rank 0 to the end of the run; see `fastrl.learning.ranks.ranks_at`."""
        assert self._follow is not None, "the driver opens it first"
        self._follow(ranks=ranks_at(rank, size, address, port))


class NodeRanks(Closing):
    """Makes this process rank 0 of a run, and starts a rank on every other node of a cluster.

    Args:
        config: Configuration with a section ``cluster``.

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

        A node whose rank dies in the block is not used again.

        Args:
            follow: See `Follow`.

        Raises:
            ConfigError: A node lacks a package or a module; the error names the node.
            WorkerError: A node does not answer.
        """
        nodes = self._nodes()
        peers = [Peer(self._connection, node, RankActor, node.cores) for node in nodes]
        try:
            self._open(peers, follow)
            if not nodes:
                yield Ranks()
                return

            def start(port: int) -> None:
                place = len(nodes) + 1, self._connection.address, port
                for rank, peer in enumerate(peers, start=1):
                    peer.ask(math.inf, "run", rank, *place)

            ranks = leading_ranks(len(nodes) + 1, self._connection.address, start)
            try:
                yield ranks
            finally:
                ranks.close()
                if ranks.died is not None:
                    self._died.add(nodes[ranks.died - 1].id)
                # The ranks close their workers before they end.
                runs = [peer.reference for peer in peers if peer.asked]
                self._connection.wait(runs, _END_S if ranks.lost is None else 0.0)
        finally:
            for peer in peers:
                peer.kill()

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

    def _open(self, peers: list[Peer], follow: Follow) -> None:
        content = packed(self._config, follow)
        for peer in peers:
            peer.ask(self._config.sampler.start_timeout_s, "open", packages(), content)
        for peer in peers:
            try:
                peer.wait()
            except NodeLostError as lost:
                raise WorkerError("cluster", f"{peer} {lost}") from lost
            except FastrlError as error:
                raise type(error)(f"{peer}: {error}") from error
