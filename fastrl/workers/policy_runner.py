"""Runs the policy on slots of the table, in model workers, env workers and `SerialSampler`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastrl.errors import ConfigError, FastrlError
from fastrl.models.inference import InferenceEngine, PolicyOutput, RandomEngine, build_engine
from fastrl.shared.table import NUM_BANKS, Table
from fastrl.shared.weights import WeightStore
from fastrl.spec import only_given
from fastrl.workers.plan import SamplingPlan

_CACHED_BYTES = 64 << 20
"""Memory in bytes for prepared calls. Adjacent groups that are ready share a call, so a model
worker of k groups may need k² / 2 different ones per step; frequent ones are among the first."""
_NO_FLAGS = np.zeros(0, np.bool_)
_VIEW_BYTES = 1 << 10
"""Approximate bytes of a view of a tensor with its share of the call."""


class PolicyRequest(NamedTuple):
    """Slots ``start`` to ``stop`` need actions at step ``t`` of a bank, or only values at T."""

    bank: int
    t: int
    start: int
    stop: int

    @property
    def slots(self) -> slice:
        """The slots."""
        return slice(self.start, self.stop)


class PolicyRunner:
    """One copy of the policy for the slots of its env workers.

    It writes only fields of the stages ``ACTED`` and ``VALUED`` in those slots. Noise is drawn once
    per rollout for all of them, so that an action does not depend on which requests share a batch.

    Attributes:
        version: Version of the loaded weights.
    """

    def __init__(
        self, plan: SamplingPlan, table: Table, weights: WeightStore | None, policy: int
    ) -> None:
        self._plan, self._table, self._weights, self._policy = plan, table, weights, policy
        self._length = table.rollout_length
        self._slots = plan.topology.policy_slots(policy)
        self._engine = (
            RandomEngine(plan.env_spec)
            if plan.build_model is None
            else build_engine(plan.build_model(), plan.device(policy), plan.engine)
        )
        self._states = (
            LiveStates(table, self._slots, self._engine) if table.schema.state_size else None
        )
        self._noise = [self._draw_noise(0) for _ in range(NUM_BANKS)]
        self.version = 0
        self._calls: dict[PolicyRequest, Callable[[], None]] = {}
        self._max_calls = _CACHED_BYTES // (table.schema.num_tensors * _VIEW_BYTES)

    def begin(self, rollout: int) -> None:
        """Load the newest weights and draw the noise of a rollout, before its first request."""
        self.resume(rollout)
        if self._table.schema.has_value:
            self._table.banks[rollout % NUM_BANKS].final_value[:, self._slots] = 0.0

    def resume(self, rollout: int) -> None:
        """Continue a predecessor's rollout with the same noise and the newest weights."""
        if self._weights is not None:
            newest = self._weights.read(newer_than=self.version)
            if newest is not None:
                self.version, state_dict = newest
                self._engine.load(state_dict)
                if self._states is not None:
                    self._states.read_initial()
        self._noise[rollout % NUM_BANKS].copy_(self._draw_noise(rollout))

    def serve(self, requests: Sequence[PolicyRequest]) -> None:
        """Answer requests; adjacent ones of the same step share one forward pass.

        Raises:
            FastrlError: The device has too little memory; the error says for how many environments
                it is enough.
        """
        for request in _merge(requests):
            try:
                (self._calls.get(request) or self._cached(request))()
            except torch.OutOfMemoryError as error:
                raise self._out_of_memory(request) from error

    def _cached(self, request: PolicyRequest) -> Callable[[], None]:
        call = self._bind(request)
        if len(self._calls) < self._max_calls:
            self._calls[request] = call
        return call

    def _bind(self, request: PolicyRequest) -> Callable[[], None]:
        """Return a call that answers this request in every rollout.

        It contains its views, as slicing takes longer than a small network.
        """
        bank, t, slots = self._table.banks[request.bank], request.t, request.slots
        has_value = self._table.schema.has_value
        observed = {leaf: tensor[t, slots] for leaf, tensor in bank.observation.items()}
        observation, mask = self._plan.env_spec.split_mask(observed)
        carry: Callable[[], None] | None = None
        memory: dict[str, Tensor] = {}
        if self._states is not None:
            carry, memory["state"] = self._states.bind(request.bank, t, slots)
        if t < self._length:
            infer = self._bind_act(request, observation, {**memory, **only_given(mask=mask)})
        elif has_value:
            infer = self._engine.bind_values(observation, bank.value[t, slots], **memory)
        else:
            return carry or (lambda: None)
        values = t > 0 and has_value
        if not values and carry is None:
            return infer
        truncated = bank.truncated[t - 1, slots].numpy() if values else _NO_FLAGS

        def call() -> None:
            if np.count_nonzero(truncated):
                self._value_truncated(request)
            if carry is not None:
                carry()
            infer()

        return call

    def _bind_act(
        self, request: PolicyRequest, observation: Mapping[str, Tensor], further: dict[str, Tensor]
    ) -> Callable[[], None]:
        bank, t, slots = self._table.banks[request.bank], request.t, request.slots
        first, following = self._slots.start, None
        if self._states is not None:
            following = self._table.live_state(request.bank, t + 1)[slots]
        act = self._engine.bind(
            observation,
            self._noise[request.bank][t, slots.start - first : slots.stop - first],
            PolicyOutput(
                action={leaf: tensor[t, slots] for leaf, tensor in bank.action.items()},
                outputs={name: bank.fields[name][t, slots] for name in self._table.schema.outputs},
                state=following,
            ),
            **further,
        )
        version = bank.policy_version[t, slots].numpy()

        def call() -> None:
            act()
            version.fill(self.version)

        return call

    def _value_truncated(self, request: PolicyRequest) -> None:
        """Value the final observations of episodes that were truncated in the previous step.

        Existing values stay, because a replaced worker repeats the step when final observations may
        already be those of later episodes. The state is the one after the step, as final
        observations belong to the episodes that have ended.
        """
        bank, slots, before = self._table.banks[request.bank], request.slots, request.t - 1
        wanted = bank.truncated[before, slots] & (bank.final_value[before, slots] == 0)
        index = wanted.nonzero().squeeze(1) + slots.start
        if not len(index):
            return
        values = torch.empty(len(index))
        has_rows = self._table.schema.keeps_final_observations
        final = {
            leaf: (tensor[before] if has_rows else tensor)[index]
            for leaf, tensor in bank.final_observation.items()
        }
        memory = {}
        if self._states is not None:
            memory["state"] = self._table.live_state(request.bank, request.t)[index]
        self._engine.bind_values(self._plan.env_spec.split_mask(final)[0], values, **memory)()
        bank.final_value[before, index] = values

    def _out_of_memory(self, request: PolicyRequest) -> FastrlError:
        """Return an error with the number of environments for which the device has memory."""
        rows = request.stop - request.start
        fits = rows // 2
        while fits:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            try:
                self._bind(request._replace(stop=request.start + fits))()
                break
            except torch.OutOfMemoryError:
                fits //= 2
        remedy = f"{fits} fit" if fits else "not even one fits"
        return FastrlError(
            f"{self._plan.device(self._policy)} has no memory to infer {rows} environments at "
            f"once, {remedy}; lower sampler.num_envs or sampler.envs_per_worker, or raise "
            "sampler.groups or sampler.num_model_workers"
        )

    def _draw_noise(self, rollout: int) -> Tensor:
        """Return noise ``[T, slots, noise_size]`` for one rollout."""
        first, stop = self._slots.start, self._slots.stop
        parts = []
        for share, slots in enumerate(self._plan.topology.noise_shares()):
            if slots.start < stop and slots.stop > first:
                shape = (self._length, slots.stop - slots.start)
                noise = self._engine.draw_noise(shape, self._plan.policy_generator(share, rollout))
                parts.append(noise[:, max(0, first - slots.start) : stop - slots.start])
        return torch.cat(parts, 1)


def _merge(requests: Sequence[PolicyRequest]) -> Sequence[PolicyRequest]:
    """Join requests of the same step whose slots are adjacent."""
    if len(requests) == 1:
        return requests
    merged: list[PolicyRequest] = []
    for request in sorted(requests):
        last = merged[-1] if merged else None
        if last and (last.bank, last.t, last.stop) == (request.bank, request.t, request.start):
            merged[-1] = last._replace(stop=request.stop)
        else:
            merged.append(request)
    return merged


class LiveStates:
    """The states of a policy with a memory between the steps of episodes, in a runner's slots.

    The state before a step is in one half of `Table.live_state`, and acting writes the next state
    to the other half. If an episode ended in the previous step or a new environment begins, the
    state is replaced by the initial one, in place. A step that is answered twice, because a worker
    was replaced, has the same state both times.

    It writes ``policy_state`` in these slots: the state at the start of each segment and rollout.

    Args:
        table: Table with the states.
        slots: Slots of the policy runner.
        engine: Engine, which returns the initial states of episodes.

    Raises:
        ConfigError: The engine runs no policies with a memory.
    """

    def __init__(self, table: Table, slots: slice, engine: InferenceEngine) -> None:
        self._table, self._engine, self._first = table, engine, slots.start
        shape = (slots.stop - slots.start, table.schema.state_size)
        if engine.initial_state(1).shape != (1, shape[1]):
            raise ConfigError(f"the engine '{engine.name}' runs no policies with a memory")
        self._initial = np.zeros(shape, np.float32)
        self.read_initial()

    def read_initial(self) -> None:
        """Read the initial states of episodes, which may depend on the weights."""
        np.copyto(self._initial, self._engine.initial_state(len(self._initial)).numpy())

    def bind(self, bank: int, t: int, slots: slice) -> tuple[Callable[[], None], Tensor]:
        """Return a call that resets the states before step t, and their tensor.

        It also stores the states at the start of segments, and copies those of T to the next
        rollout.

        Returns:
            The call, and ``[slots, S] float32``: reset if an episode begins.
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
