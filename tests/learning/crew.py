"""Processes that act as the ranks of a run, reused by several tests."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import torch

from fastrl.learning.ranks import Ranks, ranks_at
from fastrl.workers.processes import _context

WITHIN_S = 120.0
CONTEXT = _context()
"""Context whose fork server, that of workers, has imported torch already."""
Crew = Callable[..., list[Any]]
"""Function of the number of ranks, a function and its arguments; returns each rank's result.

The function is importable, and gets the `Ranks` before its arguments.
"""


@contextmanager
def crew(most: int) -> Iterator[Crew]:
    """Run up to ``size`` processes."""
    with ProcessPoolExecutor(most, CONTEXT) as pool:
        yield partial(_on_ranks, pool)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _on_ranks(pool: ProcessPoolExecutor, size: int, play: Callable[..., Any], *args: Any) -> Any:
    port = free_port()
    # Each rank occupies a process until all have started, so no two share one.
    jobs = [pool.submit(_as_rank, rank, size, port, play, args) for rank in range(size)]
    return [job.result(WITHIN_S) for job in jobs]


def _as_rank(rank: int, size: int, port: int, play: Callable[..., Any], args: Any) -> Any:
    torch.set_num_threads(1)
    with closing(ranks_at(rank, size, "127.0.0.1", port)) as ranks:
        return play(ranks, *args)


def alone(play: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a single rank."""
    return play(Ranks(), *args)
