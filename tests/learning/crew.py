"""Processes that play the ranks of a run, for several tests one after the other."""

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
"""Starts processes by the fork server of workers, which has imported torch already."""
Crew = Callable[..., list[Any]]
"""Called with the number of ranks, a function and its arguments; returns the result of each rank.

The function is importable, and gets the `Ranks` before its arguments.
"""


@contextmanager
def crew(most: int) -> Iterator[Crew]:
    """Up to so many processes."""
    with ProcessPoolExecutor(most, CONTEXT) as pool:
        yield partial(_on_ranks, pool)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _on_ranks(pool: ProcessPoolExecutor, size: int, play: Callable[..., Any], *args: Any) -> Any:
    port = free_port()
    # Each occupies a process until all are there, so every rank has a process of its own.
    jobs = [pool.submit(_as_rank, rank, size, port, play, args) for rank in range(size)]
    return [job.result(WITHIN_S) for job in jobs]


def _as_rank(rank: int, size: int, port: int, play: Callable[..., Any], args: Any) -> Any:
    torch.set_num_threads(1)
    with closing(ranks_at(rank, size, "127.0.0.1", port)) as ranks:
        return play(ranks, *args)


def alone(play: Callable[..., Any], *args: Any) -> Any:
    """The result of a rank on its own."""
    return play(Ranks(), *args)
