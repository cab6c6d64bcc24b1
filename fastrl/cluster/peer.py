"""Requests to an actor of Ray, one at a time: the driver's side and the actor's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastrl.cluster.connection import Connection, Node, NodeLostError
from fastrl.errors import FastrlError


class Answering:
    """A base class of actors: every answer is a value or a `FastrlError`.

    Calls come one after the other. Each returns soon, so that an actor that does not answer can be
    taken for lost.
    """

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return what a method of this class returns, or the error that it raises."""
        call: Callable[..., Any] = getattr(self, method)
        try:
            return call(*arguments)
        except FastrlError as error:
            return error


class Peer:
    """Asks an actor, with at most one request under way.

    Attributes:
        node: Where the actor is.
        asked: The method that it is asked for; empty if it is idle.
        reference: Of the answer.

    Args:
        connection: To the cluster.
        node: See the attribute.
        actor: Its class.
        num_cores: That it occupies.
    """

    def __init__(
        self, connection: Connection, node: Node, actor: type[Answering], num_cores: int
    ) -> None:
        self.node = node
        self.asked, self.reference = "", None
        self._connection, self._until_s, self._timeout_s = connection, 0.0, 0.0
        self._actor = connection.start(node, actor, num_cores)

    def __str__(self) -> str:
        """Return the node's address."""
        return self.node.host

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
        """Return the answer, which must be ready; afterwards the actor is idle.

        Raises:
            NodeLostError: There is none.
            FastrlError: The actor raised it.
        """
        reference, self.reference, self.asked = self.reference, None, ""
        found = self._connection.get(reference, self._timeout_s)
        if isinstance(found, FastrlError):
            raise found
        return found

    def kill(self) -> None:
        """End the actor, and with it its child processes."""
        self.reference, self.asked = None, ""
        self._connection.kill(self._actor)
