"""A whole throughput test, from a configuration to a report as JSON and as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from fastrl.arguments import instance, taken
from fastrl.config import Config, ModelConfig
from fastrl.envs.tensor.tensor_by_id import find_tensor
from fastrl.errors import ConfigError
from fastrl.models.images import image_layouts
from fastrl.models.inference import build_engine
from fastrl.models.policy import check_model_class
from fastrl.sampling.build import env_factory, make_plan, make_sampler, require_environments
from fastrl.sampling.sampler import SHARES
from fastrl.spec import EnvSpec, Topology
from fastrl.system import circumstances, machine, usable_cores
from fastrl.throughput.limits import Limit, LimitProbe
from fastrl.throughput.live import LiveFps
from fastrl.throughput.measure import Measurement, Protocol, Training, measure
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.supervisor import call_in_child

COLUMNS = {
    "environment": "environment",
    "policy": "with policy",
    "training": "with training",
}
"""The three speeds, and their names in tables."""


@dataclass(frozen=True)
class Column:
    """One of the three speeds of a configuration.

    Attributes:
        mode: ``sync`` or ``async``.
        measurement: The measurement.
    """

    mode: str
    measurement: Measurement


@dataclass(frozen=True)
class Report:
    """The result of one throughput test.

    Attributes:
        env: Id of the environment.
        topology: n, N, M and groups.
        rollout_length: T.
        policy: Network and engine that chose the actions, or ``random``.
        device: Device of the policy.
        mode: ``sync`` or ``async``.
        measurement: The measurement.
        command: The command line that repeats it.
        columns: With training: the speed of the environments with random actions, that with the
            policy, which is ``measurement``, and that of training from end to end, by `COLUMNS`.
    """

    env: str
    topology: Topology
    rollout_length: int
    policy: str
    device: str
    mode: str
    measurement: Measurement
    command: str
    columns: Mapping[str, Column] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        about = ("env", "rollout_length", "policy", "device", "mode")
        return {
            **{name: getattr(self, name) for name in about},
            "topology": self.topology.sizes,
            **_to_dict(self.measurement),
            "columns": {
                name: {"mode": column.mode, **_to_dict(column.measurement)}
                for name, column in self.columns.items()
            },
            **circumstances(command=self.command),
        }

    def to_rich(self) -> Group:
        """Return the tables that the command line prints."""
        tables = [self._summary(), self._workers(self.measurement, "Where the time went")]
        if "training" in self.columns:
            tables.insert(0, self._speeds())
            trained = self.columns["training"].measurement
            tables.append(self._workers(trained, "Where the time went while training"))
        return Group(*tables)

    def _speeds(self) -> Table:
        """Return the three speeds, each with its limit."""
        table = Table(title=f"Steps per second of {self.env}", title_justify="left")
        table.add_column("")
        for name in self.columns:
            table.add_column(COLUMNS[name], justify="right")
        found = [column.measurement for column in self.columns.values()]
        rows = {
            "steps per second": [f"{each.fps_median:,.0f}" for each in found],
            "over the windows": [f"{min(x.fps):,.0f} … {max(x.fps):,.0f}" for x in found],
            "limit": [_number(each.limit_fps) for each in found],
            "share of the limit": [_share(each.efficiency) for each in found],
            "on one core": [*map(_added_time, COLUMNS, found)],
            "mode": [column.mode for column in self.columns.values()],
        }
        trained = self.columns["training"].measurement
        if trained.products_limit_fps is not None:
            rows["limit with torch's products only"] = ["", "", _number(trained.products_limit_fps)]
            rows["share of that limit"] = ["", "", _share(trained.products_efficiency)]
        for label, cells in rows.items():
            table.add_row(label, *cells)
        return table

    def _summary(self) -> Table:
        found, topology = self.measurement, self.topology
        table = Table(title=f"Throughput of {self.env}", title_justify="left", show_header=False)
        rows = {
            "frames per second": spread(found.fps),
            "n, N, M, groups": f"{topology.envs_per_worker}, {topology.num_env_workers}, "
            f"{topology.num_model_workers}, {topology.groups}   (T = {self.rollout_length}, "
            f"{self.mode})",
            "policy": f"{self.policy} on {self.device}",
            "frames counted": f"{found.frames:,}",
            "first transition after": f"{found.start_s:.1f} s",
        }
        if found.limits and found.limit_fps and found.efficiency:
            limit = found.limits[len(found.limits) // 2]
            rows["limit"] = (
                f"{found.limit_fps:,.0f}  ({limit.cores} cores / ({limit.t_step_s * 1e6:.2f} µs "
                f"env + {limit.t_policy_s * 1e6:.2f} µs policy))"
            )
            rows["sampling efficiency"] = f"{found.efficiency:.1%}"
        if "training" in self.columns and (update := self._update()):
            rows["update"] = update
        for woken, median_us in found.handoff_us.items():
            rows[f"handoff to {woken.replace('-', ' ')}"] = f"{median_us:.0f} µs median"
        rows["machine"] = f"{machine()['cpu']}, {machine()['cores']} cores"
        for label, value in rows.items():
            table.add_row(label, value)
        return table

    def _update(self) -> str:
        """Describe the time of an update; empty if it was not measured."""
        limits = self.columns["training"].measurement.limits
        times = [limit.learning for limit in limits if limit.learning is not None]
        if not times:
            return ""
        text = f"{1e6 * median(each.t_learn_s for each in times):.2f} µs per step on one core"
        shares = [each.products_share for each in times if each.products_share is not None]
        rates = [each.flop / each.t_products_s for each in times if each.flop and each.t_products_s]
        if shares and rates:
            text += (
                f"; its matrix products take torch {median(shares):.0%} of that, at "
                f"{median(rates) / 1e9:,.0f} GFLOP/s"
            )
        return text

    def _workers(self, found: Measurement, title: str) -> Table:
        table = Table(title=title, title_justify="left")
        table.add_column("process")
        for label in (*SHARES, "MiB unique", "MiB in use"):
            table.add_column(label, justify="right")
        for name, memory in found.memory.items():
            shares = found.shares.get(name, {})
            cells = (f"{shares[label]:.1%}" if label in shares else "" for label in SHARES)
            table.add_row(name, *cells, f"{memory.unique_mib:.0f}", f"{memory.rss_mib:.0f}")
        return table


def has_limit(config: Config) -> bool:
    """Return whether the limit can be measured, which requires this machine's cores."""
    on_cores = config.sampler.kind != "device" or config.sampler.devices == ("cpu",)
    return on_cores and config.cluster is None


def _to_dict(found: Measurement) -> dict[str, Any]:
    """Return a measurement as plain JSON types."""
    return {
        "frames": found.frames,
        "fps_median": found.fps_median,
        "fps_min": min(found.fps),
        "fps_max": max(found.fps),
        "fps": found.fps,
        "limit_fps": found.limit_fps,
        "limits": [
            asdict(limit) | {"fps": limit.fps, "products_fps": limit.products_fps}
            for limit in found.limits
        ],
        "efficiency": found.efficiency,
        "products_limit_fps": found.products_limit_fps,
        "products_efficiency": found.products_efficiency,
        "start_s": found.start_s,
        "time_shares": found.shares,
        "handoff_us": found.handoff_us,
        "memory_mib": {name: asdict(memory) for name, memory in found.memory.items()},
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def spread(fps: Sequence[float]) -> str:
    """Return the median and the range of the windows' frames per second."""
    return f"{median(fps):,.0f}  ({min(fps):,.0f} … {max(fps):,.0f} over {len(fps)} windows)"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _added_time(column: str, found: Measurement) -> str:
    """Return the time per step that a column adds to the previous one; empty if not measured."""
    times_of: dict[str, Callable[[Limit], float | None]] = {
        "environment": lambda limit: limit.t_step_s,
        "policy": lambda limit: limit.t_policy_s,
        "training": lambda limit: limit.learning.t_learn_s if limit.learning else None,
    }
    times = [time for limit in found.limits if (time := times_of[column](limit)) is not None]
    plus = "" if column == "environment" else "+ "
    return f"{plus}{median(times) * 1e6:.2f} µs" if times else ""


def run_throughput(
    config: Config,
    protocol: Protocol,
    *,
    with_limit: bool = False,
    random_actions: bool = False,
    train: Config | None = None,
    console: Console | None = None,
    command: str = "",
) -> Report:
    """Sample as fast as possible, without a learner, and report the speed.

    Args:
        config: Configuration to sample; see `Config.for_throughput` for defaults.
        protocol: Durations and repeats.
        with_limit: Measure the physical limit next to every window.
        random_actions: Sample without a policy.
        train: Measure the environments with random actions and training from end to end as well,
            each in as many windows: ``config`` with the ``sampler.mode`` of training.
        console: Console for live frames per second; none by default.
        command: The command line that repeats this test.

    Raises:
        EnvError: The environment cannot be built.
        WorkerError: A worker failed.
        ConfigError: The sampler is the one for debugging, the limit of a GPU was requested, or
            training on a cluster.
    """
    taken("run_throughput", config, Config, "load_config reads one from a file")
    instance("protocol", protocol, Protocol)
    config = config.for_throughput()
    require_environments(config)
    kind = config.sampler.kind
    if kind == "serial":
        raise ConfigError(
            "sampler.kind: throughput is measured with 'process' or 'device', got 'serial'"
        )
    if with_limit and not has_limit(config):
        where = "a GPU" if config.cluster is None else "a cluster"
        raise ConfigError(f"the limit of {where} cannot be measured, only that of these cores")
    if train is not None and (random_actions or config.cluster is not None):
        problem = "random actions" if random_actions else "a cluster"
        raise ConfigError(f"training is measured with a policy and on this machine, not {problem}")
    if not random_actions:
        check_model_class(config.model)
    with LiveFps(console) as live:
        with live.showing("building the environment …"):
            plan = make_plan(config, random_actions=random_actions)
            policy = "random" if random_actions else policy_name(config, plan)
        test = _Test(protocol, live, with_limit)
        columns: dict[str, Column] = {}
        if train is not None:
            bare = make_plan(config, random_actions=True, env_spec=plan.env_spec)
            columns["environment"] = Column(config.sampler.mode, test.measured(config, bare)[0])
        found, topology = test.measured(config, plan)
        if train is not None:
            columns["policy"] = Column(config.sampler.mode, found)
            train = train.for_throughput()
            with live.showing("building the learner; the first time this compiles …"):
                training = Training(train, plan.env_spec, with_limit=with_limit)
            trained, _ = test.measured(train, plan, training)
            columns["training"] = Column(train.sampler.mode, trained)
    return Report(
        env=config.env.id,
        topology=topology,
        rollout_length=plan.rollout_length,
        policy=policy,
        device=",".join(plan.devices) if plan.build_model else "cpu",
        mode=config.sampler.mode,
        measurement=found,
        command=command,
        columns=columns,
    )


@dataclass(frozen=True)
class _Test:
    """The common parts of the measurements of one test."""

    protocol: Protocol
    live: LiveFps
    with_limit: bool

    def measured(
        self, config: Config, plan: SamplingPlan, training: Training | None = None
    ) -> tuple[Measurement, Topology]:
        """Measure a sampler of a plan; return the result, and the topology of the sampler."""
        weights = None if training is None else training.learner.weights()
        with ExitStack() as stack:
            sampler = make_sampler(config, plan, weights)
            stack.callback(sampler.close)
            probe = None
            if self.with_limit:
                with self.live.showing("starting bare environments …"):
                    probe = LimitProbe(plan, env_factory(config), usable_cores())
                stack.callback(probe.close)
            found = measure(sampler, self.protocol, probe, self.live, training)
            return found, sampler.topology


def policy_name(config: Config, plan: SamplingPlan) -> str:
    """Describe the network of a policy and its engine."""
    network, on_cpu = network_name(config.model, plan.env_spec), plan.device(0).type == "cpu"
    if config.sampler.kind == "device" and not (on_cpu and find_tensor(config.env.id)):
        return network
    # In a separate process, since building an engine may allocate GPU memory.
    engine = call_in_child(partial(_engine_name, plan), config.sampler.start_timeout_s)
    return f"{network}, {engine} engine"


def _engine_name(plan: SamplingPlan) -> str:
    assert plan.build_model is not None
    return build_engine(plan.build_model(), plan.device(0), plan.engine).name


def network_name(model: ModelConfig, env_spec: EnvSpec) -> str:
    """Describe the network of a policy."""
    if model.class_path:
        return model.class_path
    images = [bool(x) for x in image_layouts(env_spec.input_space, model).values()]
    parts = ["conv net"] if any(images) else []
    # A single image passes only the layers of the conv net.
    if images != [True]:
        sizes = "×".join(str(size) for size in model.hidden_sizes)
        parts.append(f"{sizes} {model.activation}" if sizes else "linear")
    if model.recurrent is not None:
        layers = "×".join([str(model.recurrent_size)] * model.recurrent_layers)
        parts.append(f"{layers} {model.recurrent.upper()}")
    return " + ".join(parts)
