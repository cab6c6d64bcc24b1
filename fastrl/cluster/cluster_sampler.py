"""The sampler of a Ray cluster, which joins the rollouts of all nodes for one learner."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from fastrl import registry
from fastrl.closing import closing_on_error
from fastrl.cluster.connection import Connection
from fastrl.cluster.node_sampler import Collected, Opening, packages
from fastrl.cluster.peer import num_parts, split
from fastrl.cluster.roster import Member, Roster, raise_if
from fastrl.config import Config
from fastrl.envs.calls import EnvCall, latest
from fastrl.envs.state import State, StateError
from fastrl.errors import ConfigError, WorkerError
from fastrl.program_code import packed
from fastrl.sampling.build import spins_of
from fastrl.sampling.sampler import BaseSampler, Memory, SamplerStats
from fastrl.sampling.worker_pool import Fault
from fastrl.shared.rollouts import JoinedRollouts, Rollout, SentRollout
from fastrl.shared.table import Layout
from fastrl.shared.weights import WeightLayout, check_parameters, copy_parameters
from fastrl.workers.handoff import Counter
from fastrl.workers.plan import SamplingPlan

_SLICE_S = 0.2
"""Duration of a wait for answers; deadlines and nodes are checked between waits."""
_ASKED_S = 1.0
"""Seconds after which a node answers, whether its rollout is complete or not."""
_LOGGER = logging.getLogger(__name__)


class ClusterSampler(BaseSampler):
    """Collects one rollout from the sampler of each node; see `Sampler` for the contract.

    B is the sum over the nodes that delivered, so it changes when nodes join or are lost, or if
    ``cluster.wait`` is a fraction; `Rollout.slots` lists the slots of the run. If a node
    is lost, so is its current rollout, and its successor begins new episodes.

    Args:
        config: Configuration with a section ``cluster``.
        plan: Plan of the run; each node has its own topology.
        weights: First parameters; None if actions are random.
        on_fault: Called with each failure of a worker or a node that is replaced.

    Raises:
        ConfigError: The cluster cannot be joined, or a key is not supported.
    """

    def __init__(
        self,
        config: Config,
        plan: SamplingPlan,
        weights: Mapping[str, Tensor] | None,
        on_fault: Callable[[Fault], None] | None = None,
    ) -> None:
        assert config.cluster is not None
        _check(config)
        super().__init__(plan)
        self._config, self._settings = config, config.cluster
        self._on_fault = on_fault
        self._begun = False
        self._weights = None if plan.build_model is None else WeightLayout(weights or {})
        self._version = 0
        self._sent: list[Any] = []
        self._vector = np.zeros(self._weights.num_bytes if self._weights else 0, np.uint8)
        self._views = self._weights.views(self._vector) if self._weights else {}
        self._calls: list[EnvCall] = []
        self._late_calls: list[EnvCall] = []
        self._resumed: State | None = None
        self._last_fault = "none was ever ready"
        self._unused: dict[str, State] = {}
        self._arrived: dict[str, tuple[Member, SentRollout]] = {}
        self._joined = JoinedRollouts(plan.schema, plan.rollout_length)
        self._num_bytes = cache(lambda num: Layout(plan.schema, plan.rollout_length, num).num_bytes)
        self._connection = Connection(config.cluster.address)
        self._roster = Roster(config, self._connection, self._opening, self._on_lost)
        if weights is not None and self._weights is not None:
            self.publish(weights)

    def start(self) -> None:
        """Make the samplers of all nodes, and wait for them; see `Sampler`."""
        self._check_open()
        if self._begun:
            return
        with closing_on_error(self):
            self._check_store()
            self._roster.begin()
            self._begun = True
            self.topology = next(iter(self._roster)).seat.topology

    def collect(self) -> Rollout:
        """Return the rollouts of the nodes, joined side by side; see `Sampler`."""
        self.start()
        with closing_on_error(self):
            self._roster.look()
            self._request()
            until_s = time.monotonic() + self._config.sampler.start_timeout_s
            while not self._is_enough():
                for member, answer in self._roster.receive(_SLICE_S):
                    self._take(member, answer)
                self._roster.look()
                self._continue()
                if any(True for _ in self._roster):
                    until_s = time.monotonic() + self._config.sampler.start_timeout_s
                elif time.monotonic() > until_s:
                    raise WorkerError("cluster", f"no node samples any more; {self._last_fault}")
            return self._assembled()

    def _request(self) -> None:
        """Request a rollout from every node."""
        for member in self._roster:
            if not member.asked and member.seat.name not in self._arrived:
                self._ask(member)

    def _ask(self, member: Member) -> None:
        """Request a rollout, with the newest weights if the node begins one."""
        member.ask(
            _ASKED_S + self._settings.node_timeout_s,
            "collect",
            _ASKED_S,
            self._version,
            vectors=() if member.is_late else self._sent,
            parts=num_parts(self._num_bytes(member.seat.topology.num_envs)),
        )

    def _continue(self) -> None:
        """Send new requests to late nodes, and to new ones only if no other node is sampling.

        Otherwise an update would wait for the first rollout of a node that has just joined.
        """
        for member in self._under_way():
            if not member.asked:
                self._ask(member)
        if not self._arrived and not self._under_way():
            self._request()

    def _under_way(self) -> list[Member]:
        return [each for each in self._roster if each.asked == "collect" or each.is_late]

    def _is_enough(self) -> bool:
        most = len(self._under_way()) + len(self._arrived)
        wanted = most if self._settings.wait == "all" else math.ceil(self._settings.wait * most)
        return bool(self._arrived) and len(self._arrived) >= wanted

    def _take(self, member: Member, answer: Any) -> None:
        """Store the answer of a node to a request for a rollout."""
        raise_if(member, answer)
        assert isinstance(answer, Collected)
        seat = member.seat
        seat.update(answer.counters)
        for fault in answer.faults:
            self._report(dataclasses.replace(fault, worker=f"{seat.name}/{fault.worker}"))
        member.is_late = answer.rollout is None
        if answer.rollout is not None:
            self._arrived[seat.name] = member, answer.rollout
            self._roster.delivered(member)

    def _assembled(self) -> Rollout:
        """Copy the received rollouts into the next bank, so that object stores can free them."""
        arrived = sorted(self._arrived.values(), key=lambda each: each[0].seat.topology.first_env)
        self._arrived.clear()
        index = self._next_rollout
        self._next_rollout += 1
        return self._joined.join(index, [(sent, member.seat.slots) for member, sent in arrived])

    def _publish(self, state_dict: Mapping[str, Tensor], version: int | None = None) -> int:
        """Store new parameters, which nodes receive with the next request."""
        check_parameters(state_dict, self._views)
        copy_parameters(state_dict, self._views)
        self._version = self._version + 1 if version is None else version
        # Pending requests have, or refer to, copies of the previous version.
        parts = num_parts(len(self._vector))
        self._sent = (
            split(self._vector.tobytes(), parts) if parts else [self._connection.put(self._vector)]
        )
        return self._version

    def stats(self, *, details: bool = False) -> SamplerStats:
        """See `Sampler`; from the nodes' latest answers."""
        seats = self._roster.seats
        workers = tuple(name for seat in seats for name in seat.workers)
        none = np.zeros((0, len(Counter)), np.int64)
        counters = np.concatenate([none, *(seat.counters for seat in seats)])
        memory: dict[str, Memory] = {}
        latencies: dict[str, float] = {}
        if details and not self._closed:
            for member, found in self._asked("stats"):
                memory |= {f"{member.seat.name}/{name}": m for name, m in found.memory.items()}
                latencies |= found.handoff_us
        return SamplerStats.of_counters(time.monotonic_ns(), workers, counters, latencies, memory)

    def pause(self, timeout_s: float = 120.0) -> None:
        """See `Sampler`."""
        self._check_open()
        with closing_on_error(self):
            list(self._asked("pause", timeout_s, timeout_s=timeout_s))

    def call_envs(self, calls: Sequence[EnvCall]) -> None:
        """See `Sampler`; a node that joins or returns repeats the latest calls."""
        self._check_open()
        if not calls:
            return
        self._calls = latest([*self._calls, *calls])
        if self._resumed is not None:
            self._late_calls = latest([*self._late_calls, *calls])
        if self._begun:
            timeout_s = max(self._config.env.step_timeout_s, self._config.env.reset_timeout_s)
            list(self._asked("call_envs", list(calls), timeout_s=timeout_s))

    def get_state(self) -> State | None:
        """See `Sampler`; nodes that are lost meanwhile begin new episodes."""
        self._check_open()
        if self._next_rollout == 0:
            return self._resumed
        if self._config.sampler.mode == "async":
            raise StateError("sampler.mode is async: a rollout is always in progress")
        if any(member.asked or member.is_late for member in self._roster):
            raise StateError("a rollout is in progress on a late node")
        timeout_s = self._config.env.step_timeout_s
        nodes = {m.seat.name: found for m, found in self._asked("get_state", timeout_s=timeout_s)}
        return {"rollouts": self._num_rollouts, "nodes": nodes}

    def set_state(self, state: State) -> None:
        """See `Sampler`; nodes of other sizes than before begin new episodes, with a warning."""
        self._check_open()
        if not isinstance(state, dict) or not isinstance(state.get("nodes"), dict):
            raise StateError("the state belongs to another kind of sampler")
        self._resumed, self._unused = state, dict(state["nodes"])

    def close(self) -> None:
        """End the samplers of all nodes, and leave the cluster; see `Sampler`."""
        if self._closed:
            return
        self._closed = True
        try:
            self._roster.close()
        finally:
            self._connection.close()

    def _opening(self, member: Member) -> tuple[Any, ...]:
        """Return the arguments of a node that takes a seat."""
        seat, sampler = member.seat, self._config.sampler_on(member.node.cores)
        config = self._config.model_copy(update={"cluster": None, "sampler": sampler})
        state = self._unused.pop(seat.name, None)
        done = self._num_rollouts
        if isinstance(state, dict):
            done = int(state["rollouts"])
        plan = dataclasses.replace(
            self._plan,
            topology=seat.topology,
            devices=sampler.devices,
            engine=registry.chosen("engine", sampler.engine, "sampler.engine"),
            torch_threads=sampler.torch_threads,
            spins=spins_of(seat.topology, member.node.cores),
            first_rollout=done,
        )
        opening = Opening(
            config=config,
            plan=plan,
            weights=None if self._weights is None else self._views,
            version=self._version,
            calls=self._calls,
            state=state,
            late_calls=self._late_calls,
        )
        return packages(), packed(self._config, opening)

    def _asked(
        self, method: str, *arguments: Any, timeout_s: float | None = None
    ) -> list[tuple[Member, Any]]:
        """Send a request to each node once it is idle; return the answers of all."""
        timeout_s = self._settings.node_timeout_s + (timeout_s or 0.0)
        found: dict[Member, Any] = {}
        waiting, asked = list(self._roster), set()
        while waiting:
            for member in waiting:
                if not member.asked and member not in asked:
                    member.ask(timeout_s, method, *arguments)
                    asked.add(member)
            for member, answer in self._roster.receive(_SLICE_S):
                if isinstance(answer, Collected):
                    self._take(member, answer)
                else:
                    found[member] = answer
            present = set(self._roster)
            waiting = [each for each in waiting if each in present and each not in found]
        for member, answer in found.items():
            raise_if(member, answer)
        return list(found.items())

    def _on_lost(self, member: Member, cause: str, failures: int) -> None:
        lost = "; its rollout in flight is lost" if member.samples else ""
        cause = f"{member} {cause}{lost}"
        rollout = self._num_rollouts
        self._report(Fault(member.seat.name, cause, "", failures, rollout))

    def _report(self, fault: Fault) -> None:
        self._last_fault = fault.cause
        if self._on_fault is None:
            _LOGGER.warning("%s", fault)
        else:
            self._on_fault(fault)

    def _check_store(self) -> None:
        """Reject an object store that is too small for the rollouts of the run.

        Raises:
            ConfigError: It is too small; the error names the node and the size that it needs.
        """
        nodes = self._connection.nodes()
        sizes = [
            self._num_bytes(self._config.sampler_on(node.cores).topology(node.cores).num_envs)
            for node in nodes
        ]
        for node, size in zip(nodes, sizes, strict=True):
            # Rollouts need space on their node, and on the learner's.
            needed = 2 * size + (2 * sum(sizes) if node.is_own else 0)
            if not num_parts(size) and node.store_bytes < needed:
                raise ConfigError(
                    f"cluster: the object store of {node.host} has "
                    f"{node.store_bytes / 2**20:,.0f} MiB, but rollouts of {size / 2**20:,.0f} MiB "
                    f"per node need {needed / 2**20:,.0f} MiB there: ray start "
                    f"--object-store-memory={needed}, or a smaller sampler.rollout_length"
                )


def _check(config: Config) -> None:
    """Reject settings that a cluster does not support."""
    assert config.cluster is not None
    if config.cluster.mode == "gradients":
        raise ConfigError(
            "cluster.mode: with gradients, fastrl train starts a sampler and a learner on each "
            "node; one sampler for the whole cluster needs rollouts"
        )
    if config.sampler.kind != "process":
        raise ConfigError(
            f"sampler.kind: must be process with cluster, got '{config.sampler.kind}'"
        )
