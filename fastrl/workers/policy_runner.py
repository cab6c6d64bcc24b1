"""Runs the policy on slots of the table.

Used by model workers, by env workers where M is 0, and by `SerialSampler`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastrl.errors import FastrlError
from fastrl.models.inference import (
    InferenceEngine,
    PolicyOutput,
    RandomEngine,
    build_engine,
)
from fastrl.shared.table import NUM_BANKS, Table
from fastrl.shared.weights import WeightStore
from fastrl.workers.plan import SamplingPlan

_KEPT_BYTES = 64 << 20
"""For calls that are kept. Groups that happen to be ready together are served in one call, so a
model worker of k groups may come to make k² / 2 different ones in every step; those that are made
often are among the first."""
_VIEW_BYTES = 1 << 10
"""About what a view of a tensor takes, with its share of the call."""


class Request(NamedTuple):
    """Slots ``start`` to ``stop`` that wait for the policy at step ``t`` of a bank.

    At ``t == T`` only the value is wanted.
    """

    bank: int
    t: int
    start: int
    stop: int


class PolicyRunner:
    """One copy of the policy, serving the slots of its env workers.

    Writes the fields of `Writer.MODEL_WORKER` in those slots and nothing else. Randomness is drawn
    once per rollout for all of them, so that an action does not depend on which requests happened
    to be served together.

    Attributes:
        version: Of the weights that it runs.
    """

    def __init__(
        self, plan: SamplingPlan, table: Table, weights: WeightStore | None, policy: int
    ) -> None:
        self._plan, self._table, self._weights, self._policy = plan, table, weights, policy
        self._length = table.rollout_length
        self._slots = plan.topology.policy_slots(policy)
        self._engine = self._build_engine(plan, policy)
        self._noise = [self._draw_noise(0) for _ in range(NUM_BANKS)]
        self.version = 0
        self._calls: dict[Request, Callable[[], None]] = {}
        self._most_calls = _KEPT_BYTES // (table.schema.num_tensors * _VIEW_BYTES)

    def begin(self, rollout: int) -> None:
        """Load the newest weights and draw the noise of a rollout, before its first request."""
        self.resume(rollout)
        if self._table.schema.has_value:
            self._table.banks[rollout % NUM_BANKS].final_value[:, self._slots] = 0.0

    def resume(self, rollout: int) -> None:
        """Go on with a rollout that a predecessor has begun: same noise, newest weights."""
        if self._weights is not None:
            newest = self._weights.read(newer_than=self.version)
            if newest is not None:
                self.version, state_dict = newest
                self._engine.load(state_dict)
        self._noise[rollout % NUM_BANKS].copy_(self._draw_noise(rollout))

    def serve(self, requests: Sequence[Request]) -> None:
        """Answer requests; adjacent ones of the same step share one forward pass.

        Raises:
            FastrlError: The device has too little memory; says what would fit.
        """
        for request in _merge(requests):
            try:
                (self._calls.get(request) or self._kept(request))()
            except torch.OutOfMemoryError as error:
                raise self._out_of_memory(request) from error

    def _kept(self, request: Request) -> Callable[[], None]:
        """Return a call that serves this request, kept for later unless there are too many."""
        if len(self._calls) >= self._most_calls:
            return self._bind(request)
        call = self._calls[request] = self._bind(request)
        return call

    def _bind(self, request: Request) -> Callable[[], None]:
        """Return a call that serves this request in every later rollout.

        Views are made here, once: slicing costs more than a small network.
        """
        bank, t, slots = self._table.banks[request.bank], request.t, _slots(request)
        has_value = self._table.schema.has_value
        observation = {leaf: tensor[t, slots] for leaf, tensor in bank.observation.items()}
        if t < self._length:
            infer = self._bind_act(request, observation)
        elif has_value:
            infer = self._engine.bind_values(observation, bank.value[t, slots])
        else:
            return _do_nothing
        if t == 0 or not has_value:
            return infer
        truncated = bank.truncated[t - 1, slots].numpy()

        def call() -> None:
            if np.count_nonzero(truncated):
                self._value_truncated(request)
            infer()

        return call

    def _bind_act(self, request: Request, observation: dict[str, Tensor]) -> Callable[[], None]:
        bank, t, slots = self._table.banks[request.bank], request.t, _slots(request)
        first = self._slots.start
        act = self._engine.bind(
            observation,
            self._noise[request.bank][t, slots.start - first : slots.stop - first],
            PolicyOutput(
                action={leaf: tensor[t, slots] for leaf, tensor in bank.action.items()},
                outputs={name: bank.fields[name][t, slots] for name in self._table.schema.outputs},
            ),
        )
        version = bank.policy_version[t, slots].numpy()

        def call() -> None:
            act()
            version.fill(self.version)

        return call

    def _value_truncated(self, request: Request) -> None:
        """Value the final observations of episodes that were truncated in the step before.

        Those that have a value keep it: this step is served again after a worker was replaced, and
        by then their final observations may be those of later episodes.
        """
        bank, slots, before = self._table.banks[request.bank], _slots(request), request.t - 1
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
        self._engine.bind_values(final, values)()
        bank.final_value[before, index] = values

    def _out_of_memory(self, request: Request) -> FastrlError:
        """Return an error that says how many environments the device has memory for."""
        rows = request.stop - request.start
        observation, schema = self._table.banks[request.bank].observation, self._table.schema
        fits = rows // 2
        while fits:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            part = {
                leaf: tensor[request.t, _part(request, fits)]
                for leaf, tensor in observation.items()
            }
            try:
                noise = self._noise[request.bank][0, :fits]
                out = PolicyOutput.zeros(fits, self._plan.env_spec.action, schema.outputs)
                self._engine.act(part, noise, out)
                break
            except torch.OutOfMemoryError:
                fits //= 2
        remedy = f"{fits} fit" if fits else "not even one fits"
        return FastrlError(
            f"{self._plan.device(self._policy)} has no memory to infer {rows} environments at "
            f"once, {remedy}; lower sampler.envs_per_worker, or raise sampler.groups or "
            "sampler.num_model_workers"
        )

    def _draw_noise(self, rollout: int) -> Tensor:
        """Return noise ``[T, slots, noise_size]`` for one rollout."""
        shape = (self._length, self._slots.stop - self._slots.start)
        generator = self._plan.policy_generator(self._policy, rollout)
        return self._engine.draw_noise(shape, generator)

    def _build_engine(self, plan: SamplingPlan, policy: int) -> InferenceEngine:
        if plan.build_model is None:
            return RandomEngine(plan.env_spec)
        return build_engine(plan.build_model(), plan.device(policy), plan.engine)


def _do_nothing() -> None:
    """Serve a request that wants a value from a policy without one."""


def _part(request: Request, rows: int) -> slice:
    return slice(request.start, request.start + rows)


def _slots(request: Request) -> slice:
    return slice(request.start, request.stop)


def _merge(requests: Sequence[Request]) -> Sequence[Request]:
    """Join requests of the same step whose slots are adjacent."""
    if len(requests) == 1:
        return requests
    merged: list[Request] = []
    for request in sorted(requests):
        last = merged[-1] if merged else None
        if last and (last.bank, last.t, last.stop) == (request.bank, request.t, request.start):
            merged[-1] = last._replace(stop=request.stop)
        else:
            merged.append(request)
    return merged
