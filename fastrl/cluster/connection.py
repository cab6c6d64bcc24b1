"""The connection to a Ray cluster (only this module calls Ray), and the speed of its links."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.closing import Closing
from fastrl.errors import ConfigError, FastrlError, WorkerError, one_line
from fastrl.imports import how_to_install
from fastrl.system import usable_cores

_LOGGER = logging.getLogger(__name__)
_REACHED_S = 10.0
"""Deadline for the head of a cluster to accept a connection."""
_LINK_BYTES, _LINK_ROUNDS, _LINK_S = 2**25, 4, 60.0
"""Measurement of a link: bytes, number of rounds, and deadline."""


class NodeLostError(FastrlError):
    """A node has died, is unreachable, or has lost an answer."""

    kind = "cluster"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, or a part of one.

    Attributes:
        id: Ray's id of the node.
        host: Address of the node.
        cores: Number of its cores that Ray may use.
        store_bytes: Size of its object store.
        is_own: Whether this process runs on it.
    """

    id: str
    host: str
    cores: int
    store_bytes: int
    is_own: bool


class Connection(Closing):
    """Connects this process to a cluster, for actors on its nodes.

    Args:
        address: ``local``, ``auto`` or ``host:port``, see `fastrl.config.models.ClusterConfig`.

    Attributes:
        address: Address of this machine, as the others reach it.

    Raises:
        ConfigError: The package ray is missing, or there is no such cluster.
    """

    def __init__(self, address: str) -> None:
        if address.startswith("ray://"):
            raise ConfigError(
                f"cluster.address: must be local, auto or host:port, got '{address}', which would "
                "send everything through one process; run fastrl on a machine of the cluster with "
                "cluster.address=auto"
            )
        try:
            import ray
        except ImportError as error:
            raise ConfigError(f"cluster needs the package ray; {how_to_install('ray')}") from error
        self._ray: Any = ray
        self._session: Path | None = None
        self._is_own = not ray.is_initialized()
        if self._is_own:
            self._connect(address)
        self._own_id = ray.get_runtime_context().get_node_id()
        self.address: str = self._ray.util.get_node_ip_address()

    def _connect(self, address: str) -> None:
        given: dict[str, Any] = {"address": address}
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # By default Ray's workers, which sample here, have niceness 15.
            os.environ.setdefault("RAY_worker_niceness", "0")
            given |= {"num_cpus": usable_cores(), "include_dashboard": False}
        elif address != "auto":
            _check_reachable(address)
        try:
            with _ours():
                joined = self._ray.init(
                    **given, log_to_driver=False, configure_logging=False, namespace="fastrl"
                )
        except (OSError, RuntimeError, ValueError) as error:
            hint = "; name a shorter directory by RAY_TMPDIR" if "AF_UNIX" in str(error) else ""
            raise ConfigError(
                f"cluster.address: this process cannot join the cluster '{address}': "
                f"{one_line(error, 300)}{hint}"
            ) from error
        if address == "local":
            self._session = Path(joined.address_info["session_dir"])
        # Ray prints pages about a lost node to standard output, among the results of commands.
        self._ray._private.worker.print_to_stdstream = _log

    def nodes(self) -> list[Node]:
        """Return the nodes with cores that Ray reports as alive, this machine's first.

        Raises:
            WorkerError: The head of the cluster does not answer.
        """
        try:
            listed = self._ray.nodes()
        except (self._ray.exceptions.RayError, OSError, RuntimeError) as error:
            problem = f"the head of the cluster does not answer: {_reason(error)}"
            raise WorkerError("cluster", problem) from error
        found = [
            Node(
                id=each["NodeID"],
                host=each["NodeManagerAddress"],
                cores=int(each["Resources"].get("CPU", 0)),
                store_bytes=int(each["Resources"].get("object_store_memory", 0)),
                is_own=each["NodeID"] == self._own_id,
            )
            for each in sorted(listed, key=_place)
            if each["Alive"]
        ]
        return sorted((node for node in found if node.cores), key=lambda node: not node.is_own)

    def start(self, node: Node, actor: type[Any], num_cores: int) -> Any:
        """Return the handle of a new actor on a node, where it may still wait for free cores.

        Ray never restarts it, since Ray does not know seeds and versions.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
        made = self._ray.remote(actor).options(
            num_cpus=min(num_cores, node.cores),
            max_restarts=0,
            max_task_retries=0,
            enable_task_events=False,
            scheduling_strategy=strategy,
        )
        return made.remote()

    def put(self, value: Any) -> Any:
        """Return a reference to a value in the object store, for arguments of calls."""
        return self._ray.put(value)

    def ready(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """Wait at most ``seconds`` for an answer; return the references that are ready."""
        found: list[Any] = self._ray.wait(list(references), num_returns=1, timeout=seconds)[0]
        if len(references) > 1 and found:
            found = self._ray.wait(list(references), num_returns=len(references), timeout=0)[0]
        return found

    def wait(self, references: Sequence[Any], seconds: float) -> None:
        """Wait until all answers are ready, at most ``seconds``."""
        if references:
            self._ray.wait(list(references), num_returns=len(references), timeout=seconds)

    def get(self, references: Any, seconds: float) -> Any:
        """Return an answer, or a list of those to several references.

        Raises:
            NodeLostError: An answer is lost.
        """
        try:
            return self._ray.get(references, timeout=seconds)
        except self._ray.exceptions.RayTaskError as error:
            raise NodeLostError(one_line(error.cause, 300)) from error
        except (self._ray.exceptions.RayError, TimeoutError) as error:
            raise NodeLostError(_reason(error)) from error

    def kill(self, actor: Any) -> None:
        """End an actor at once."""
        with suppress(Exception):  # Ray raises if it has ended
            self._ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """Leave the cluster; end it if this process started it."""
        if self._is_own:
            self._is_own = False
            with _ours():
                self._ray.shutdown()
            if self._session is not None:
                _remove(self._session)


def _remove(session: Path) -> None:
    """Remove the logs and sockets that Ray keeps of a cluster that has ended."""
    shutil.rmtree(session, ignore_errors=True)
    latest = session.with_name("session_latest")
    with suppress(OSError):
        if latest.readlink() == session:
            latest.unlink()


def _check_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"cluster.address: must be local, auto or host:port, got '{address}'")
    try:
        socket.create_connection((host, int(port)), _REACHED_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cluster.address: nothing answers at {address}: {one_line(error)}; "
            "ray start --head prints the address of a head"
        ) from error


def _log(said: dict[str, Any], **_: Any) -> None:
    _LOGGER.debug("%s", said["lines"])


@contextmanager
def _ours() -> Iterator[None]:
    """Restore this process's signal handlers, which Ray replaces, and hide Ray's warnings."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _place(node: dict[str, Any]) -> tuple[str, int]:
    return node["NodeManagerAddress"], node["NodeManagerPort"]


_REASONS = {
    "ActorUnavailableError": "cannot be reached",
    "RayActorError": "has died",
    "ObjectLostError": "has lost an answer",
}
"""Explanations of Ray's errors, by their names or those of base classes."""


def _reason(error: BaseException) -> str:
    """Return the meaning of Ray's error, which may have pages of text, in one line."""
    text = str(error).strip()
    if "error raised in its creation task" in text:
        return f"cannot start: {one_line(text.splitlines()[-1], 200)}"
    names = [each.__name__ for each in type(error).__mro__]
    for name, reason in _REASONS.items():
        if name in names:
            return reason
    return f"{names[0]}: {one_line(text, 200)}" if text else names[0]


class _LinkSource:
    """An actor that sends bytes from its node."""

    def send(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return this number of bytes, through the object store of Ray."""
        return np.ones(num_bytes, np.uint8)


def link_bytes_per_s(address: str) -> float:
    """Return the bandwidth from another node to this one: the fastest of some rounds.

    Args:
        address: Address of the cluster, see `fastrl.config.models.ClusterConfig`.

    Raises:
        ConfigError: The cluster cannot be joined, or has no other node.
        WorkerError: The other node does not answer.
    """
    with Connection(address) as connection:
        others = [node for node in connection.nodes() if not node.is_own]
        if not others:
            raise ConfigError(
                f"cluster.address: '{address}' has no second machine, so there is no link to "
                "measure; give its speed by --network"
            )
        actor = connection.start(others[0], _LinkSource, 1)
        try:
            # The first round starts the actor.
            spent_s = []
            for _ in range(1 + _LINK_ROUNDS):
                began_s = time.perf_counter()
                connection.get(actor.send.remote(_LINK_BYTES), _LINK_S)
                spent_s.append(time.perf_counter() - began_s)
        except NodeLostError as error:
            raise WorkerError("cluster", f"{others[0].host}: {error}") from error
        finally:
            connection.kill(actor)
    return _LINK_BYTES / min(spent_s[1:])
