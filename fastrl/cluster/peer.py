"""Requests to an actor of Ray, one at a time: base classes of the driver's side and the actor's."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

from fastrl.cluster.connection import Connection, Node, NodeLostError
from fastrl.errors import FastrlError

_PART_BYTES = 65_536
_MOST_PARTS = 8
_SLICE_S = 0.2
"""Duration of a wait for an answer; its deadline is checked between waits."""


def num_parts(num_bytes: int) -> int:
    """Return the number of parts of bytes in a call of Ray; 0 if they need its object store.

    Arguments and answers below 100 kB are part of the call. The store takes 3 ms more.
    """
    parts = -(-num_bytes // _PART_BYTES)
    return parts if parts <= _MOST_PARTS else 0


def split(content: bytes, num: int) -> list[bytes]:
    """Split bytes into parts of equal size; the last one may be shorter."""
    size = -(-len(content) // num)
    return [content[part * size : (part + 1) * size] for part in range(num)]


class Answering:
    """A base class of actors: every answer is a value or a `FastrlError`.

    Calls are made one after the other. Each returns soon, so an actor that does not answer is lost.
    """

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return the result of a method of this class, or its error."""
        call: Callable[..., Any] = getattr(self, method)
        try:
            return call(*arguments)
        except FastrlError as error:
            return error

    def ask_by_bytes(self, num: int, request: bytes, *vectors: Any) -> bytes | list[bytes]:
        """Return the answer of `ask`, pickled, in parts.

        Ray passes bytes unchanged, and takes 0.1 ms for any other object that it sends or receives.

        Args:
            num: Number of parts.
            request: Method and arguments, pickled.
            vectors: Further arguments.
        """
        method, arguments = pickle.loads(request)
        content = pickle.dumps(self.ask(method, *arguments, *vectors), protocol=5)
        parts = split(content, num)
        return parts if num > 1 else parts[0]


class Peer:
    """Sends requests to an actor, with at most one pending.

    Attributes:
        node: Node of the actor.
        asked: Method of the pending request; empty if there is none.
        reference: Reference to the answer, or to its first part.

    Args:
        connection: Connection to the cluster.
        node: See the attribute.
        actor: Class of the actor.
        num_cores: Number of cores of the actor.
    """

    def __init__(
        self, connection: Connection, node: Node, actor: type[Answering], num_cores: int
    ) -> None:
        self.node = node
        self.asked, self.reference = "", None
        self._rest: list[Any] = []
        self._parts = 0
        self._connection, self._until_s, self._timeout_s = connection, 0.0, 0.0
        self._actor = connection.start(node, actor, num_cores)

    def __str__(self) -> str:
        """Return the node's address."""
        return self.node.host

    def ask(
        self,
        timeout_s: float,
        method: str,
        *arguments: Any,
        vectors: Sequence[Any] = (),
        parts: int = 0,
    ) -> None:
        """Send a request whose answer must come within some seconds.

        Args:
            timeout_s: Seconds to wait.
            method: Name of a method of the actor.
            arguments: Arguments of the method.
            vectors: Further arguments of the method: bytes, or references to the object store.
            parts: Number of parts of the answer, see `num_parts`.
        """
        assert not self.asked, f"{self} has a request under way"
        self._parts = parts
        if parts:
            send = self._actor.ask_by_bytes
            request = pickle.dumps((method, arguments), protocol=5)
            sent = (send.options(num_returns=parts) if parts > 1 else send).remote(
                parts, request, *vectors
            )
        else:
            sent = self._actor.ask.remote(method, *arguments, *vectors)
        self.reference, *self._rest = sent if parts > 1 else [sent]
        self.asked, self._timeout_s = method, timeout_s
        self._until_s = time.monotonic() + timeout_s

    def check(self) -> None:
        """Check that an answer is not overdue.

        Raises:
            NodeLostError: The answer is overdue.
        """
        if self.asked and time.monotonic() > self._until_s:
            why = " (are its cores taken?)" if self.asked == "open" else ""
            raise NodeLostError(f"did not answer within {self._timeout_s:g} s{why}")

    def wait(self) -> Any:
        """Return the answer once there is one; see `answer`.

        Raises:
            NodeLostError: The answer is overdue, or lost.
            FastrlError: The actor raised it.
        """
        while not self._connection.ready([self.reference], _SLICE_S):
            self.check()
        return self.answer()

    def answer(self) -> Any:
        """Return the answer, which must be ready; afterwards the actor is idle.

        Raises:
            NodeLostError: The answer is lost.
            FastrlError: The actor raised it.
        """
        references, self.reference, self.asked = [self.reference, *self._rest], None, ""
        found, *rest = self._connection.get(references, self._timeout_s)
        if self._parts:
            found = pickle.loads(b"".join([found, *rest]))
        if isinstance(found, FastrlError):
            raise found
        return found

    def kill(self) -> None:
        """End the actor, and with it its child processes."""
        self.reference, self.asked = None, ""
        self._connection.kill(self._actor)
