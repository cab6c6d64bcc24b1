"""The nodes of a cluster that sample: they join, are lost, and are used again when they return."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.closing import Closing
from fastrl.cluster.connection import Connection, Node, NodeLostError
from fastrl.cluster.node_sampler import NodeSampler
from fastrl.cluster.peer import Peer
from fastrl.config import Config
from fastrl.errors import FastrlError, WorkerError
from fastrl.spec import Topology
from fastrl.workers.handoff import Counter

_LOGGER = logging.getLogger(__name__)
_LOOK_S = 1.0
"""Interval at which the list of the cluster's nodes is read."""
_LONGEST_BREAK_S = 60.0
"""Longest pause before a node that fails repeatedly is tried again."""


class Seat:
    """A range of the run's slots, which one node fills, or another of its size if that is lost.

    Attributes:
        name: ``node-0``, ….
        topology: Topology of the node's sampler; ``first_env`` is the first slot.

    Args:
        index: Index of the seat.
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
    def slots(self) -> range:
        """Its slots of the run."""
        first = self.topology.first_env
        return range(first, first + self.topology.num_envs)

    @property
    def counters(self) -> NDArray[np.int64]:
        """``[workers, Counter] int64``: counts of the workers of all its nodes."""
        return self._before + self._now

    def update(self, counters: NDArray[np.int64]) -> None:
        """Set the counts of the workers of the current node."""
        self._now = np.array(counters)

    def leave(self) -> None:
        """Store the counts so far, to which those of the next node are added."""
        self._before, self._now = self.counters, np.zeros_like(self._before)


class Member(Peer):
    """The sampler of one node, with at most one pending request; see `Peer`.

    Attributes:
        seat: The slots that it fills.
        samples: Whether its sampler is ready.
        is_late: Whether it did not complete a rollout within a request.

    Args:
        connection: Connection to the cluster.
        node: Node of the sampler.
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


@dataclass
class _Failures:
    """The consecutive failures of one node, and the time of the next attempt."""

    count: int = 0
    again_s: float = 0.0


class Roster(Closing):
    """Maintains a `Member` on every node that must sample.

    Args:
        config: Configuration of the run.
        connection: Connection to the cluster.
        opening: Returns the arguments of `NodeSampler.open` for a member.
        lost: Called with a lost member, the cause, and the number of its consecutive failures.
    """

    def __init__(
        self,
        config: Config,
        connection: Connection,
        opening: Callable[[Member], tuple[Any, ...]],
        lost: Callable[[Member, str, int], None],
    ) -> None:
        assert config.cluster is not None
        self._config, self._settings, self._connection = config, config.cluster, connection
        self._opening, self._lost = opening, lost
        self._members: dict[str, Member] = {}
        self._failures: dict[str, _Failures] = defaultdict(_Failures)
        self._looked_s, self._begun, self._last = 0.0, False, "none has a core"
        self.seats: list[Seat] = []

    def __iter__(self) -> Iterator[Member]:
        """Iterate over the members whose samplers are ready, by seat."""
        found = (member for member in self._members.values() if member.samples)
        return iter(sorted(found, key=lambda member: member.seat.topology.first_env))

    def begin(self) -> None:
        """Make a sampler on every node, and wait until all of them are ready.

        Raises:
            FastrlError: A sampler cannot be made, or there is no node.
        """
        self.look()
        while not all(member.samples for member in self._members.values()):
            self.receive(_LOOK_S)
        if not self._members:
            raise WorkerError("cluster", f"no node of the cluster samples: {self._last}")
        self._begun = True

    def look(self) -> None:
        """Make samplers on nodes that have joined or returned; drop nodes that have left."""
        now_s = time.monotonic()
        if now_s < self._looked_s + _LOOK_S:
            return
        self._looked_s = now_s
        alive = {node.id: node for node in self._connection.nodes()}
        for id_ in [id_ for id_ in self._members if id_ not in alive]:
            self.lose(self._members[id_], "has left the cluster")
        most = self._settings.nodes
        for id_, node in alive.items():
            is_full = most != "all" and len(self._members) >= most
            if id_ in self._members or is_full or now_s < self._failures[id_].again_s:
                continue
            self._open(node)

    def receive(self, seconds: float) -> list[tuple[Member, Any]]:
        """Wait some seconds; return the members that have answered, and their answers.

        An answer is a `FastrlError` if the node raised it. Members without an answer within their
        deadline are lost. Answers of samplers that were being made are handled here.

        Raises:
            FastrlError: The sampler of one of the first nodes cannot be made.
        """
        asked = {member.reference: member for member in self._members.values() if member.asked}
        if not asked:
            time.sleep(min(seconds, 0.05))
            return []
        found = []
        for reference in self._connection.ready(list(asked), seconds):
            member = asked[reference]
            was_opening = member.asked == "open"
            try:
                answer = member.answer()
            except NodeLostError as error:
                self.lose(member, str(error))
                continue
            except FastrlError as error:
                answer = error
            if was_opening:
                self._opened(member, answer)
            else:
                found.append((member, answer))
        for member in list(self._members.values()):
            try:
                member.check()
            except NodeLostError as error:
                self.lose(member, str(error))
        return found

    def _opened(self, member: Member, answer: Any) -> None:
        if not self._begun:
            raise_if(member, answer)
        if isinstance(answer, FastrlError):
            self.lose(member, str(answer))
            return
        member.samples = True
        if answer:
            _LOGGER.warning("%s begins new episodes: %s", member, answer)

    def delivered(self, member: Member) -> None:
        """Record that a node has sampled a rollout, which resets its number of failures."""
        self._failures.pop(member.node.id, None)

    def lose(self, member: Member, cause: str) -> None:
        """Remove a member; its node is tried again later."""
        del self._members[member.node.id]
        member.kill()
        member.seat.leave()
        failures = self._failures[member.node.id]
        failures.count += 1
        pause_s = min(_LONGEST_BREAK_S, 2.0 ** (failures.count - 2)) if failures.count > 1 else 0.0
        failures.again_s = time.monotonic() + pause_s
        self._looked_s = 0.0
        self._last = f"{member} {cause}"
        self._lost(member, cause, failures.count)

    def close(self) -> None:
        """Close the samplers of all members; kill those that take too long."""
        ending, timeout_s = list(self._members.values()), self._config.env.close_timeout_s + 2.0
        for member in ending:
            if not member.asked and member.samples:
                member.ask(timeout_s, "close")
        asked = [member.reference for member in ending if member.asked == "close"]
        self._connection.wait(asked, timeout_s)
        for member in ending:
            member.kill()
        self._members.clear()

    def _open(self, node: Node) -> None:
        member = Member(self._connection, node, self._seat(node))
        self._members[node.id] = member
        member.ask(self._config.sampler.start_timeout_s, "open", *self._opening(member))

    def _seat(self, node: Node) -> Seat:
        """Return a free seat of the size that a node needs, or a new one."""
        wanted = self._config.sampler_on(node.cores).topology(node.cores)
        taken = {id(member.seat) for member in self._members.values()}
        for seat in self.seats:
            if id(seat) not in taken and seat.topology.sizes == wanted.sizes:
                return seat
        first = sum(seat.topology.num_envs for seat in self.seats)
        topology: Topology = dataclasses.replace(wanted, first_env=first)
        self.seats.append(Seat(len(self.seats), topology))
        return self.seats[-1]


def raise_if(member: Member, answer: Any) -> None:
    """Raise an error that a node has returned, with the node's name."""
    if isinstance(answer, WorkerError):
        where = f"{member}: {answer.args[0]}"
        raise WorkerError(f"{member.seat.name}/{answer.worker}", where, answer.remote_traceback)
    if isinstance(answer, FastrlError):
        raise type(answer)(f"{member}: {answer}")
