"""The random streams of Python, NumPy and torch that all code of a process shares.

Environments should draw from their own stream, which `reset` seeds; many draw from these. Processes
that come from one fork server begin with equal ones, so each worker seeds its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

StreamsState = tuple[Any, Any, torch.Tensor]
"""Of Python, NumPy and torch."""


def seed_global_streams(sequence: np.random.SeedSequence) -> None:
    """Seed the streams of this process, those of torch on GPUs included.

    Args:
        sequence: Equal ones give equal streams.
    """
    torch.manual_seed(_seed_on_cpu(sequence))


class StreamsOfWorkers:
    """The global streams of workers that take turns in this process.

    Each worker draws what it would draw in a process of its own, on the CPU, and the caller's
    streams stay where they were.

    Args:
        sequences: Of each worker, see `seed_global_streams`.
    """

    def __init__(self, sequences: Sequence[np.random.SeedSequence]) -> None:
        self._sequences = sequences
        self._states: list[StreamsState | None] = [None] * len(sequences)
        self._current: int | None = None

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Give the streams back to the caller at the end of a block, however it ends."""
        callers = streams_state()
        try:
            yield
        finally:
            self._set_aside()
            load_streams_state(callers)

    def turn_to(self, worker: int) -> None:
        """Go on with the streams of a worker, inside of `borrowed`."""
        # Setting a state takes about 100 µs, most of it for NumPy's.
        if worker == self._current:
            return
        self._set_aside()
        state = self._states[worker]
        if state is None:
            _seed_on_cpu(self._sequences[worker])
        else:
            load_streams_state(state)
        self._current = worker

    def state_of(self, worker: int) -> StreamsState:
        """Return the state of a worker's streams, outside of `borrowed`; it has had a turn."""
        state = self._states[worker]
        assert state is not None
        return state

    def _set_aside(self) -> None:
        if self._current is not None:
            self._states[self._current], self._current = streams_state(), None


@contextmanager
def seeded_streams(*key: int) -> Iterator[None]:
    """Draw from streams that follow from the key alone; the caller's are as before afterwards."""
    streams = StreamsOfWorkers([np.random.SeedSequence(key)])
    with streams.borrowed():
        streams.turn_to(0)
        yield


def sequence_after_numpys(number: int) -> np.random.SeedSequence:
    """Return a sequence that follows from NumPy's global stream, which stays where it is.

    A program that has seeded that stream gets the same one again, and one that has not another.

    Args:
        number: Tells sequences from each other between which nothing was drawn.
    """
    _, keys, position, *_ = np.random.get_state(legacy=True)
    entropy = [*(int(key) for key in keys), int(position)]
    return np.random.SeedSequence(entropy, spawn_key=(number,))


def _seed_on_cpu(sequence: np.random.SeedSequence) -> int:
    # Equal seeds would make Python's stream and NumPy's the same, as both are Mersenne Twisters.
    words = sequence.generate_state(18)
    random.seed(int.from_bytes(words[:8].tobytes(), "little"))
    np.random.seed(words[8:16])
    seed = int.from_bytes(words[16:].tobytes(), "little") >> 1
    torch.default_generator.manual_seed(seed)
    return seed


def streams_state() -> StreamsState:
    """Return the states of this process's streams, on the CPU, as plain data."""
    return random.getstate(), np.random.get_state(legacy=True), torch.default_generator.get_state()


def load_streams_state(state: StreamsState) -> None:
    """Go on with streams of such states."""
    of_python, of_numpy, of_torch = state
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    torch.default_generator.set_state(of_torch)
