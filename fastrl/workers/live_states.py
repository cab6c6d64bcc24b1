"""The states of a policy with a memory, between the steps of episodes.

The state before a step lies in one half of `Table.live_state`, where the step before left it, and
acting writes the other half. Where an episode ended in the previous step or a new environment
begins, it is replaced by the initial state, in place. Doing so twice is the same as once, so a step
that is answered twice, as a worker was replaced, gets the same state both times.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from fastrl.errors import ConfigError
from fastrl.models.inference import InferenceEngine
from fastrl.shared.table import Table


class LiveStates:
    """The states of the slots of one policy runner.

    It writes ``policy_state`` in these slots: the state with which a segment or a rollout begins.

    Args:
        table: Holds the states.
        slots: Of the policy runner.
        engine: Returns the states in which episodes begin.

    Raises:
        ConfigError: It runs no policies with a memory.
    """

    def __init__(self, table: Table, slots: slice, engine: InferenceEngine) -> None:
        self._table, self._engine, self._first = table, engine, slots.start
        shape = (slots.stop - slots.start, table.schema.state_size)
        if engine.initial_state(1).shape != (1, shape[1]):
            raise ConfigError(f"the engine '{engine.name}' runs no policies with a memory")
        self._initial = np.zeros(shape, np.float32)
        self.read_initial()

    def read_initial(self) -> None:
        """Read the states in which episodes begin, which may depend on the weights."""
        np.copyto(self._initial, self._engine.initial_state(len(self._initial)).numpy())

    def bind(self, bank: int, t: int, slots: slice) -> tuple[Callable[[], None], Tensor]:
        """Return a call that resets the states before step t, and their tensor.

        It also stores those that begin a segment, and hands those of T to the next rollout.

        Returns:
            The call, and ``[slots, S] float32``: reset where an episode begins.
        """
        table, stride = self._table, self._table.schema.sequence_length
        fields, own = table.banks[bank], slice(slots.start - self._first, slots.stop - self._first)
        before, initial = table.live_state(bank, t)[slots], self._initial[own]
        state, copies = before.numpy(), []
        if t % stride == 0:
            copies.append(fields.policy_state[t // stride, slots].numpy())
        if t == table.rollout_length:
            copies.append(table.live_state(bank, t + 1)[slots].numpy())
        begins = (
            [table.begins[bank, slots]]
            if t == 0
            else [flags[t - 1, slots].numpy() for flags in (fields.terminated, fields.truncated)]
        )

        def call() -> None:
            for flags in begins:
                if np.count_nonzero(flags):
                    state[flags] = initial[flags]
            for copy in copies:
                np.copyto(copy, state)

        return call, before
