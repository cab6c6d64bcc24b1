"""The link between two machines of a cluster, measured."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from fastrl.cluster.connection import Connection, NodeLostError
from fastrl.errors import ConfigError, WorkerError

_NUM_BYTES = 2**25
_ROUNDS = 4
_DEADLINE_S = 60.0


class Source:
    """Sends bytes from the node that it is on."""

    def send(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return so many bytes, through the object store of Ray."""
        return np.ones(num_bytes, np.uint8)


def link_bytes_per_s(address: str) -> float:
    """Return how fast rollouts travel from another node to this one: the fastest of some rounds.

    Args:
        address: Of the cluster, see `fastrl.config.models.ClusterConfig`.

    Raises:
        ConfigError: The cluster cannot be joined, or has no other node.
        WorkerError: The other node does not answer.
    """
    with Connection(address) as connection:
        others = [node for node in connection.nodes() if not node.is_own]
        if not others:
            raise ConfigError(
                f"cluster.address: '{address}' has no second machine, so there is no link to "
                "measure; name its speed by --network"
            )
        actor = connection.start(others[0], Source, 1)
        try:
            # The first round starts the actor.
            spent_s = []
            for _ in range(1 + _ROUNDS):
                began_s = time.perf_counter()
                connection.get(actor.send.remote(_NUM_BYTES), _DEADLINE_S)
                spent_s.append(time.perf_counter() - began_s)
        except NodeLostError as error:
            raise WorkerError("cluster", f"{others[0].host}: {error}") from error
        finally:
            connection.kill(actor)
    return _NUM_BYTES / min(spent_s[1:])
