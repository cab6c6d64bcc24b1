"""Trials on the nodes of a Ray cluster, in a directory that all machines share."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastrl.cluster.connection import Connection, Node, NodeLostError
from fastrl.cluster.node_sampler import packages, require_packages
from fastrl.cluster.peer import Answering, Peer
from fastrl.config import Config
from fastrl.errors import ConfigError, FastrlError
from fastrl.sweeps.trial_process import TrialProcess, environment, shares

_ASKED_S = 1.0
"""Seconds after which a node answers, whether its trial has ended or not."""
_POLL_S = 0.05


@dataclass(frozen=True)
class Order:
    """The arguments of a trial on a node.

    Attributes:
        arguments: Arguments of the command ``fastrl``.
        share: Index of the share of the node's cores.
        jobs: Number of shares.
        cores: Number of the node's cores that Ray may use.
        log: File of the trial's output.
        code: See `TrialProcess`.
        directory: The working directory of the sweep.
        sweep: A file of the sweep, which the node must see on a shared disk.
        environment: Environment variables that affect learning.
    """

    arguments: Sequence[str]
    share: int
    jobs: int
    cores: int
    log: Path
    code: bytes
    directory: str
    sweep: Path
    environment: Mapping[str, str]


class TrialActor(Answering):
    """Runs one trial on a node; see `Answering`."""

    def __init__(self) -> None:
        self._process: TrialProcess | None = None

    def open(self, wanted: dict[str, str], order: Order) -> None:
        """Start the trial.

        Args:
            wanted: The driver's `packages`.
            order: The arguments of the trial.

        Raises:
            ConfigError: Versions differ, or this machine does not see the sweep's directory.
            WriteError: The log cannot be written.
        """
        require_packages(wanted)
        if not order.sweep.is_file() or not Path(order.directory).is_dir():
            raise ConfigError(
                f"does not see '{order.sweep.parent}' and '{order.directory}'; a sweep over a "
                "cluster runs in a directory that all machines share"
            )
        os.chdir(order.directory)
        os.environ |= order.environment
        cores = shares(order.jobs, order.cores)[order.share]
        self._process = TrialProcess(cores, order.arguments, order.log, order.code)

    def watch(self, seconds: float, stops: bool) -> str | None:
        """Wait for the end of the trial; return its `TrialProcess.problem`, None while it runs.

        Args:
            seconds: Longest time to wait.
            stops: Whether to request the run to save and end.
        """
        assert self._process is not None, "the driver opens it first"
        if stops:
            self._process.stop()
        until_s = time.monotonic() + seconds
        while not self._process.ended:
            if time.monotonic() > until_s:
                return None
            time.sleep(_POLL_S)
        return self._process.problem()


class NodeTrial:
    """A trial on a node, with the methods of `TrialProcess`.

    Attributes:
        is_lost: Whether it has ended because the node does not answer.

    Args:
        peer: Actor of the trial.
        connection: Connection to the cluster.
        order: The arguments of the trial.
        config: Configuration with a section ``cluster``.
    """

    def __init__(self, peer: Peer, connection: Connection, order: Order, config: Config) -> None:
        assert config.cluster is not None
        self.is_lost = False
        self._peer, self._connection = peer, connection
        self._timeout_s = _ASKED_S + config.cluster.node_timeout_s
        self._stops, self._problem = False, ""
        self._has_ended = False
        peer.ask(config.sampler.start_timeout_s, "open", packages(), order)

    @property
    def ended(self) -> bool:
        """Whether it has ended; sends the node a new request after each answer.

        Raises:
            ConfigError: The node lacks a package or file; the error names the node.
        """
        if self._has_ended:
            return True
        try:
            self._look()
        except NodeLostError as error:
            self.is_lost = True
            self._end(f"{self._peer} {error}")
        except FastrlError as error:
            raise type(error)(f"{self._peer}: {error}") from error
        return self._has_ended

    def _look(self) -> None:
        if not self._connection.ready([self._peer.reference], 0.0):
            self._peer.check()
            return
        problem = self._peer.answer()
        if problem is not None:
            self._end(problem)
        else:
            self._peer.ask(self._timeout_s, "watch", _ASKED_S, self._stops)

    def _end(self, problem: str) -> None:
        self._has_ended, self._problem = True, problem
        self.kill()

    def stop(self) -> None:
        """Request the run to save and end, within a second."""
        self._stops = True

    def kill(self) -> None:
        """Kill it and its workers; safe to call twice."""
        self._peer.kill()

    def problem(self) -> str:
        """Return the reason of its failure in one line."""
        return self._problem


@contextmanager
def node_starts(
    config: Config, sweep: Path, count: int, jobs: int | None
) -> Iterator[Sequence[Callable[[Sequence[str], Path, bytes], NodeTrial]]]:
    """Join a cluster for this block; yield functions that start a trial on a share of a node.

    They are to be used from the last, and take arguments, log and code as for `TrialProcess`.

    Args:
        config: Configuration with a section ``cluster``.
        sweep: A file in the directory of the sweep.
        count: Number of trials.
        jobs: Trials on each node at a time, at most one per core; by default the largest number
            possible.

    Raises:
        ConfigError: The cluster cannot be joined, or no node has a core.
    """
    assert config.cluster is not None
    address, most = config.cluster.address, config.cluster.nodes
    with Connection(address) as connection:
        nodes = connection.nodes()
        nodes = nodes if most == "all" else nodes[:most]
        if not nodes:
            raise ConfigError(f"cluster.address: no node of '{address}' has a core")
        most_jobs = jobs or math.ceil(count / len(nodes))

        def start(
            node: Node, index: int, arguments: Sequence[str], log: Path, code: bytes
        ) -> NodeTrial:
            own_jobs = min(most_jobs, node.cores)
            order = Order(
                arguments=arguments,
                share=index,
                jobs=own_jobs,
                cores=node.cores,
                log=log,
                code=code,
                directory=os.getcwd(),
                sweep=sweep.resolve(),
                environment=environment(),
            )
            peer = Peer(connection, node, TrialActor, node.cores // own_jobs)
            return NodeTrial(peer, connection, order, config)

        places = [(node, index) for node in nodes for index in range(min(most_jobs, node.cores))]
        places.sort(key=lambda place: -place[1])
        yield [partial(start, node, index) for node, index in places]
