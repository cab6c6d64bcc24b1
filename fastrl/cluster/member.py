"""The sampler of one node, as the driver sees it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.cluster.connection import Connection, Node, NodeLostError
from fastrl.cluster.node_sampler import NodeSampler
from fastrl.errors import FastrlError
from fastrl.shared.counters import Counter
from fastrl.spec import Topology


class Seat:
    """A share of the run's slots, which a node holds, and after it another one of the same size.

    Attributes:
        name: ``node-0``, ….
        topology: Of the sampler that holds it; has its first slot.

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
        """``[workers, Counter] int64``: what all holders have done."""
        return self._before + self._now

    def update(self, counters: NDArray[np.int64]) -> None:
        """Set what the present holder has done."""
        self._now = np.array(counters)

    def leave(self) -> None:
        """Let the next holder count from 0."""
        self._before, self._now = self.counters, np.zeros_like(self._before)


class Member:
    """Asks the actor of one node, with at most one request under way.

    Attributes:
        node: Where it is.
        seat: What it holds.
        samples: Whether its sampler is made.
        is_late: Whether it has begun a rollout and not returned it yet.
        asked: The method that it is asked for; empty if it is idle.
        reference: Of the answer.

    Args:
        connection: To the cluster.
        node: See the attribute.
        seat: See the attribute.
    """

    def __init__(self, connection: Connection, node: Node, seat: Seat) -> None:
        self.node, self.seat = node, seat
        self.samples = self.is_late = False
        self.asked, self.reference = "", None
        self._connection, self._until_s, self._timeout_s = connection, 0.0, 0.0
        cores = seat.topology.num_env_workers + seat.topology.num_model_workers
        self._actor = connection.start(node, NodeSampler, cores)

    def __str__(self) -> str:
        """Return name and address."""
        return f"{self.seat.name} ({self.node.host})"

    def ask(self, timeout_s: float, method: str, *arguments: Any) -> None:
        """Send a request whose answer must come within some seconds."""
        assert not self.asked, f"{self} has a request under way"
        self.reference = self._actor.ask.remote(method, *arguments)
        self.asked, self._timeout_s = method, timeout_s
        self._until_s = time.monotonic() + timeout_s

    def check(self) -> None:
        """Check that an answer is not overdue.

        Raises:
            NodeLostError: It is.
        """
        if self.asked and time.monotonic() > self._until_s:
            why = " (are its cores taken?)" if self.asked == "open" else ""
            raise NodeLostError(f"did not answer within {self._timeout_s:g} s{why}")

    def answer(self) -> Any:
        """Return the answer, which must be ready; afterwards it is idle.

        Raises:
            NodeLostError: There is none.
            FastrlError: The node raised it.
        """
        reference, self.reference, self.asked = self.reference, None, ""
        found = self._connection.get(reference, self._timeout_s)
        if isinstance(found, FastrlError):
            raise found
        return found

    def kill(self) -> None:
        """End the actor; its workers end with it."""
        self.reference, self.asked = None, ""
        self._connection.kill(self._actor)
