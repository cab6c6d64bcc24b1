"""The sampler of one node, as the driver sees it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastrl.cluster.connection import Connection, Node
from fastrl.cluster.node_sampler import NodeSampler
from fastrl.cluster.peer import Peer
from fastrl.shared.counters import Counter
from fastrl.spec import Topology


class Seat:
    """A range of the run's slots that one node fills, and another of its size if that is lost.

    Attributes:
        name: ``node-0``, ….
        topology: Of the node's sampler; ``first_env`` is the first slot.

    Args:
        index: Of the seat.
        topology: See the attribute.
    """

    def __init__(self, index: int, topology: Topology) -> None:
        self.name, self.topology = f"node-{index}", topology
        kinds = ("env", topology.num_env_workers), ("model", topology.num_model_workers)
        self.workers = tuple(
            f"{self.name}/{kind}-worker-{worker}"
            for kind, count in kinds
            for worker in range(count)
        )
        self._before: NDArray[np.int64] = np.zeros((len(self.workers), len(Counter)), np.int64)
        self._now = np.zeros_like(self._before)

    @property
    def counters(self) -> NDArray[np.int64]:
        """``[workers, Counter] int64``: what the workers of all its nodes have done."""
        return self._before + self._now

    def update(self, counters: NDArray[np.int64]) -> None:
        """Set what the workers of the present node have done."""
        self._now = np.array(counters)

    def leave(self) -> None:
        """Keep the counts so far; those of the next node are added."""
        self._before, self._now = self.counters, np.zeros_like(self._before)


class Member(Peer):
    """The sampler of one node, with at most one request under way; see `Peer`.

    Attributes:
        seat: The slots that it fills.
        samples: Whether its sampler is made.
        is_late: Whether it has begun a rollout and did not complete it within a request.

    Args:
        connection: To the cluster.
        node: Where it is.
        seat: See the attribute.
    """

    def __init__(self, connection: Connection, node: Node, seat: Seat) -> None:
        self.seat = seat
        self.samples = self.is_late = False
        cores = seat.topology.num_env_workers + seat.topology.num_model_workers
        super().__init__(connection, node, NodeSampler, cores)

    def __str__(self) -> str:
        """Return name and address."""
        return f"{self.seat.name} ({self.node.host})"
