"""Estimates the speed of training on more machines: the faster mode, and its limit.

The plan follows from figures of one machine. With ``sampler.mode: sync`` the parts of an update
follow each other; with ``async`` they overlap, and the longest one counts.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from rich.console import Group
from rich.table import Table

from fastrl.arguments import brief, finite_number, whole
from fastrl.config import Config
from fastrl.errors import ConfigError
from fastrl.learning import build_learner
from fastrl.learning.learner import learner_threads
from fastrl.sampling.build import make_plan, make_sampler, require_environments
from fastrl.shared.table import Layout
from fastrl.system import torch_threads
from fastrl.workers.plan import SamplingPlan

Mode = Literal["rollouts", "gradients"]
MODES: tuple[Mode, ...] = ("rollouts", "gradients")

_NETWORK = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([MG])(b|B)(?:/s|ps)?")
_SERIES = (1, 2, 3, 5, 7, 10, 20, 30, 50, 70)
_MEASURED_S, _MOST_UPDATES = 3.0, 20
_ADVICE = {
    "all-reduce": "; a larger algorithm.minibatch_size needs fewer",
    "learner": "; fewer algorithm.epochs or a GPU for algorithm.device would help",
}


@dataclass(frozen=True)
class Workload:
    """Measured speeds of one machine.

    Attributes:
        steps_per_s: Environment steps that one machine samples per second, without a learner.
        rollout_steps: Environment steps in a rollout of one machine.
        bytes_per_step: Bytes of a step in a rollout.
        learn_s_per_step: Seconds of an update per step that is learnt from, on one machine.
        parameter_bytes: Bytes of the parameters, and of their gradient.
        epochs: Passes over a rollout.
        minibatch_size: Steps of a minibatch, over all machines; None for the whole rollout.
        overlaps: Whether sampling and learning overlap (``sampler.mode: async``).
    """

    steps_per_s: float
    rollout_steps: int
    bytes_per_step: float
    learn_s_per_step: float
    parameter_bytes: int
    epochs: int = 1
    minibatch_size: int | None = None
    overlaps: bool = False

    def __post_init__(self) -> None:
        """Reject impossible values.

        Raises:
            ConfigError: A value is not positive and finite.
        """
        for name in ("steps_per_s", "bytes_per_step", "learn_s_per_step", "parameter_bytes"):
            finite_number(name, getattr(self, name), above=0)
        whole("rollout_steps", self.rollout_steps)


@dataclass(frozen=True)
class Network:
    """Links of equal machines.

    Attributes:
        bytes_per_s: Bytes per second of each machine's link, in each direction.
        latency_s: Latency of a message in seconds.
        is_measured: Whether the bytes per second were measured.
    """

    bytes_per_s: float
    latency_s: float = 1e-4
    is_measured: bool = False

    @classmethod
    def parse(cls, text: str) -> Network:
        """Return the network of a text such as ``10Gb`` (bits per second) or ``1.2GB`` (bytes).

        Raises:
            ConfigError: The text has another form.
        """
        found = _NETWORK.fullmatch(text)
        speed = float(found[1]) if found else 0.0
        if not found or not speed:
            raise ConfigError(f"--network must be a speed such as 10Gb or 1.2GB; got {brief(text)}")
        return cls(speed * {"M": 1e6, "G": 1e9}[found[2]] / {"b": 8, "B": 1}[found[3]])


@dataclass(frozen=True)
class PlannedUpdate:
    """One update of several machines: its parts in seconds, by name.

    Attributes:
        parts: ``sampling`` on each node, ``network``: the link of the learner's machine,
            ``learner`` and ``all-reduce``.
        seconds: Seconds from one update to the next.
        steps_per_s: Environment steps per second of all machines.
    """

    parts: dict[str, float]
    seconds: float
    steps_per_s: float

    @property
    def limit(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=lambda part: self.parts[part])


def update_of(work: Workload, network: Network, nodes: int, mode: Mode) -> PlannedUpdate:
    """Estimate an update from one rollout of each machine.

    Args:
        work: Measured speeds of one machine.
        network: Network between the machines.
        nodes: Number of machines; one of them is also the learner.
        mode: ``rollouts``: rollouts of the other machines come through the learner's link, and
            weights go back. ``gradients``: each machine learns from its own rollout, and every
            minibatch, which all machines share, ends with a ring all-reduce.
    """
    others, own = nodes - 1, work.rollout_steps
    parts = {"sampling": own / work.steps_per_s}
    if mode == "rollouts":
        arriving = others * own * work.bytes_per_step
        leaving = others * work.parameter_bytes
        parts["network"] = max(arriving, leaving) / network.bytes_per_s
        parts["learner"] = nodes * own * work.learn_s_per_step
    else:
        # Each machine has a part of every minibatch.
        size = max(work.minibatch_size or nodes * own, nodes)
        sums = work.epochs * math.ceil(nodes * own / size)
        ring_s = 2 * others / nodes * work.parameter_bytes / network.bytes_per_s
        parts["learner"] = own * work.learn_s_per_step
        parts["all-reduce"] = sums * (ring_s + 2 * others * network.latency_s)
    seconds = sum(parts.values())
    if work.overlaps:
        learning = sum(parts[part] for part in parts if part in ("learner", "all-reduce"))
        seconds = max(learning, parts["sampling"], parts.get("network", 0.0))
    return PlannedUpdate(parts, seconds, nodes * own / seconds)


@dataclass(frozen=True)
class ScalingPlan:
    """Frames per second over the number of machines, for both modes.

    Attributes:
        env: Id of the environment.
        work: Measured speeds of one machine.
        network: Network between the machines.
        nodes: Numbers of machines.
    """

    env: str
    work: Workload
    network: Network
    nodes: Sequence[int]

    @cached_property
    def _updates(self) -> dict[tuple[int, Mode], PlannedUpdate]:
        return {
            (nodes, mode): update_of(self.work, self.network, nodes, mode)
            for nodes in self.nodes
            for mode in MODES
        }

    def faster(self, nodes: int) -> Mode:
        """Return the faster mode; rollouts, which is simpler, if both are equal."""
        return max(MODES, key=lambda mode: self._updates[nodes, mode].steps_per_s)

    def verdict(self) -> list[str]:
        """Return sentences about the mode to choose and its limit."""
        most = max(self.nodes)
        best = self.faster(most)
        rates = {mode: self._updates[most, mode].steps_per_s for mode in MODES}
        other = next(mode for mode in MODES if mode != best)
        found = [
            f"cluster.mode: {best} is faster on {most} nodes: {rates[best]:,.0f} steps/s, "
            f"{rates[best] / rates[other]:.2g} × {other}, whose limit is "
            f"{self._updates[most, other].limit}"
        ]
        turns = [n for n in self.nodes if self.faster(n) != best]
        if turns:
            found.append(f"up to {max(turns)} nodes {other} is at least as fast")
        for mode in MODES:
            limits = {n: self._updates[n, mode].limit for n in self.nodes}
            first = next((n for n in self.nodes if limits[n] != "sampling"), None)
            if first is None:
                found.append(f"{mode}: sampling is the longest part throughout")
            else:
                name = limits[first]
                found.append(
                    f"{mode}: from {first} node{'s' if first > 1 else ''} on the {name} takes "
                    f"longer than sampling{_ADVICE.get(name, '')}"
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        rows = [
            {"nodes": nodes, "faster": self.faster(nodes)}
            | {mode: asdict(update := self._updates[nodes, mode]) | {"limit": update.limit}
               for mode in MODES}
            for nodes in self.nodes
        ]  # fmt: skip
        return {
            "work": asdict(self.work),
            "network": asdict(self.network),
            "nodes": rows,
            "verdict": self.verdict(),
        }

    def to_rich(self) -> Group:
        """Return the tables that the command line prints."""
        return Group(self._assumptions(), self._rates(), "\n".join(self.verdict()))

    def _assumptions(self) -> Table:
        work, network = self.work, self.network
        title = f"Plan for {max(self.nodes)} nodes like this one, on paper"
        table = Table(title=title, title_justify="left", show_header=False)
        size = work.minibatch_size or "all"
        rows = {
            "sampling": f"{work.steps_per_s:,.0f} steps/s of a node, measured",
            "rollout": f"{work.rollout_steps:,} steps of a node, {work.bytes_per_step:,.0f} bytes "
            "each, from the fields of a step",
            "learning": f"{work.learn_s_per_step * 1e6:,.2f} µs per step, measured",
            "gradient": f"{work.parameter_bytes:,} bytes; {work.epochs} epochs of minibatches of "
            f"{size} steps of all nodes",
            "network": f"{network.bytes_per_s * 8 / 1e9:,.3g} Gb/s per node and direction, "
            f"{'measured' if network.is_measured else 'not measured'}; "
            f"{network.latency_s * 1e6:,.0f} µs per message, not measured",
            "assumed": "sampling and learning "
            + ("overlap and do not slow each other" if work.overlaps else "follow each other")
            + "; nodes are equal, none waits for another; the links are otherwise idle",
        }
        for label, value in rows.items():
            table.add_row(label, value)
        return table

    def _rates(self) -> Table:
        table = Table(title=f"Training steps per second of {self.env}", title_justify="left")
        for column in ("nodes", *(f"{mode}{part}" for mode in MODES for part in ("", ": limit"))):
            table.add_column(column, justify="left" if ": " in column else "right")
        table.add_column("faster")
        for nodes in self.nodes:
            updates = [self._updates[nodes, mode] for mode in MODES]
            cells = [text for update in updates
                     for text in (f"{update.steps_per_s:,.0f}", update.limit)]  # fmt: skip
            table.add_row(str(nodes), *cells, self.faster(nodes))
        return table


def plan_scaling(
    config: Config, steps_per_s: float, most_nodes: int, network: Network
) -> ScalingPlan:
    """Measure updates on this machine, and estimate the speed of several such machines.

    Args:
        config: The run.
        steps_per_s: Steps per second that this machine samples, see
            `fastrl.throughput.run_throughput`.
        most_nodes: The largest number of machines.
        network: Network between the machines.

    Raises:
        FastrlError: The environment, the model or the algorithm cannot be built.
    """
    whole("most_nodes", most_nodes)
    config = config.for_throughput()
    # Its update is the one for a whole rollout.
    sampler = config.sampler.model_copy(update={"wait": "all"})
    config = config.model_copy(update={"sampler": sampler})
    require_environments(config)
    plan = make_plan(config)
    learn_s, parameter_bytes = _measured_update(config, plan)
    steps = plan.rollout_length * plan.topology.num_envs
    work = Workload(
        steps_per_s=steps_per_s,
        rollout_steps=steps,
        bytes_per_step=rollout_bytes(plan) / steps,
        learn_s_per_step=learn_s / steps,
        parameter_bytes=parameter_bytes,
        epochs=getattr(config.algorithm, "epochs", 1),
        minibatch_size=getattr(config.algorithm, "minibatch_size", None),
        overlaps=config.sampler.mode == "async",
    )
    nodes = [*(n for n in _SERIES if n < most_nodes), most_nodes]
    return ScalingPlan(config.env.id, work, network, nodes)


def rollout_bytes(plan: SamplingPlan) -> int:
    """Return the size of a rollout of one machine."""
    return Layout(plan.schema, plan.rollout_length, plan.topology.num_envs).num_bytes


def _measured_update(config: Config, plan: SamplingPlan) -> tuple[float, int]:
    """Return the mean seconds of an update without the first, and the bytes of the parameters."""
    learner = build_learner(config, plan.env_spec)
    spent: list[float] = []
    threads = torch_threads(learner_threads(config, plan.env_spec))
    with threads, make_sampler(config, plan, learner.weights()) as sampler:
        while len(spent) < 2 or (sum(spent[1:]) < _MEASURED_S and len(spent) < _MOST_UPDATES):
            rollout = sampler.collect()
            # Workers that fill the other bank share the cores, as in training.
            begin = time.perf_counter()
            learner.update(rollout)
            spent.append(time.perf_counter() - begin)
    size = sum(each.numel() * each.element_size() for each in learner.model.parameters())
    return sum(spent[1:]) / len(spent[1:]), size
