"""The global random streams of Python, NumPy and torch.

Environments should draw from their own generator, which `reset` seeds, but many use these streams.
Processes of one fork server start with equal streams, so each worker seeds its streams.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

StreamsState = tuple[Any, Any, torch.Tensor]
"""States of Python, NumPy and torch."""

_LOCK = threading.RLock()
"""Lock for building models and for setting the streams, which all threads share."""


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Make the models that are built in the block depend only on the seed, also in threads.

    The caller's CPU stream of torch is restored.
    """
    with _LOCK, torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        yield


def seed_global_streams(sequence: np.random.SeedSequence) -> None:
    """Seed the streams of this process, those of torch on GPUs included.

    Args:
        sequence: Equal sequences give equal streams.
    """
    torch.manual_seed(_seed_on_cpu(sequence))


class StreamsOfWorkers:
    """The global streams of several workers that run in turn in this process.

    On the CPU, each worker draws the same numbers as in a separate process, and the streams of
    the caller are unchanged.

    Args:
        sequences: One per worker, see `seed_global_streams`.
    """

    def __init__(self, sequences: Sequence[np.random.SeedSequence]) -> None:
        self._sequences = sequences
        self._states: list[StreamsState | None] = [None] * len(sequences)
        self._current: int | None = None

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Restore the caller's streams at the end of a block, also after an error."""
        callers = streams_state()
        try:
            yield
        finally:
            self._set_aside()
            load_streams_state(callers)

    def turn_to(self, worker: int) -> None:
        """Continue the streams of a worker, within `borrowed`."""
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
        """Return the streams of a worker after a `turn_to`, outside of `borrowed`."""
        state = self._states[worker]
        assert state is not None
        return state

    def _set_aside(self) -> None:
        if self._current is not None:
            self._states[self._current], self._current = streams_state(), None


@contextmanager
def seeded_streams(*key: int) -> Iterator[None]:
    """Draw from streams seeded by the key alone; restore the caller's afterwards."""
    streams = StreamsOfWorkers([np.random.SeedSequence(key)])
    with streams.borrowed():
        streams.turn_to(0)
        yield


def sequence_after_numpys(number: int) -> np.random.SeedSequence:
    """Derive a sequence from NumPy's global stream, without drawing from it.

    A program that seeds that stream gets the same sequence in every run.

    Args:
        number: Distinguishes sequences that are derived from the same state.
    """
    _, keys, position, *_ = np.random.get_state(legacy=True)
    entropy = [*(int(key) for key in keys), int(position)]
    return np.random.SeedSequence(entropy, spawn_key=(number,))


def _seed_on_cpu(sequence: np.random.SeedSequence) -> int:
    # With equal seeds, the streams of Python and NumPy would be equal: both are Mersenne Twisters.
    words = sequence.generate_state(18)
    random.seed(int.from_bytes(words[:8].tobytes(), "little"))
    np.random.seed(words[8:16])
    seed = int.from_bytes(words[16:].tobytes(), "little") >> 1
    with _LOCK:
        torch.default_generator.manual_seed(seed)
    return seed


def streams_state() -> StreamsState:
    """Return the states of this process's streams, on the CPU, as plain data."""
    return random.getstate(), np.random.get_state(legacy=True), torch.default_generator.get_state()


def load_streams_state(state: StreamsState) -> None:
    """Restore states from `streams_state`."""
    of_python, of_numpy, of_torch = state
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    with _LOCK:
        torch.default_generator.set_state(of_torch)
