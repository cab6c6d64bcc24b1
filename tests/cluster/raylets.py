"""Raylets on this machine that represent the machines of a cluster."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any, Self

import psutil
import ray
from ray.cluster_utils import Cluster

# Ray notices a frozen raylet later than the driver's own deadline in these tests.
_HEALTH_CHECKS = {"health_check_period_ms": 1000, "health_check_failure_threshold": 12}


class Raylets:
    """A head without cores, and raylets that can be added and killed.

    Attributes:
        nodes: The raylets with cores.
    """

    def __enter__(self) -> Self:
        self.nodes: list[Any] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 0,
                    "include_dashboard": False,
                    "object_store_memory": 150 * 2**20,
                    "_system_config": _HEALTH_CHECKS,
                },
            )
            ray.init(self.address, log_to_driver=False, configure_logging=False)
        return self

    def __exit__(self, *_: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.shutdown()
            self._cluster.shutdown()

    @property
    def address(self) -> str:
        """Address for ``cluster.address``."""
        return str(self._cluster.address)

    def add(self, cores: int = 2, store_mib: int = 100) -> Any:
        """Start a raylet."""
        node = self._cluster.add_node(num_cpus=cores, object_store_memory=store_mib * 2**20)
        wait_until(lambda: any(x["NodeID"] == node.node_id and x["Alive"] for x in ray.nodes()))
        self.nodes.append(node)
        return node

    def remove(self, node: Any) -> None:
        """Kill a raylet, even a frozen one."""
        self._cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def two(self) -> list[Any]:
        """Start and kill raylets until Ray knows two; return `nodes`."""
        for node in self.nodes[2:]:
            self.remove(node)
        while len(self.nodes) < 2:
            self.add()
        # The head of the cluster and these.
        wait_until(lambda: sum(x["Alive"] for x in ray.nodes()) == 3)
        return self.nodes


def raylet(node: Any) -> psutil.Process:
    """Return the process of a raylet."""
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def actor(node: Any, name: str = "NodeSampler") -> psutil.Process:
    """Wait for the actor of a node and return its process."""
    found: list[psutil.Process] = []

    def look() -> bool:
        found[:] = [each for each in raylet(node).children() if name in each.name()]
        found[:] = found or [
            each for each in raylet(node).children() if name in " ".join(each.cmdline())
        ]
        return bool(found)

    wait_until(look)
    return found[0]


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until a condition holds."""
    until_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until_s, "it never happened"
        time.sleep(0.05)


def freeze(process: psutil.Process) -> None:
    """Stop a process with SIGSTOP until `thaw`."""
    os.kill(process.pid, signal.SIGSTOP)


def thaw(process: psutil.Process) -> None:
    """Continue a stopped process."""
    os.kill(process.pid, signal.SIGCONT)
