"""A whole throughput test, from a configuration to a report as JSON and as tables."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from fastrl.arguments import instance, taken
from fastrl.config import Config, ModelConfig
from fastrl.errors import ConfigError
from fastrl.models.images import image_layouts
from fastrl.models.inference import build_engine
from fastrl.models.policy import check_model_class
from fastrl.sampling.build import env_factory, make_plan, make_sampler, require_environments
from fastrl.sampling.stats import SHARES
from fastrl.spec import EnvSpec, Topology
from fastrl.system import machine, usable_cores, versions
from fastrl.throughput.limits import LimitProbe
from fastrl.throughput.live import LiveFps
from fastrl.throughput.measure import Measurement, Protocol, measure
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.supervisor import call_in_child


@dataclass(frozen=True)
class Report:
    """The result of one throughput test.

    Attributes:
        env: Id of the environment.
        topology: n, N, M and groups.
        rollout_length: T.
        policy: What chose the actions, ``random`` for none.
        device: Where the policy ran.
        mode: ``sync`` or ``async``.
        measurement: What was measured.
        command: The command line that repeats it.
    """

    env: str
    topology: Topology
    rollout_length: int
    policy: str
    device: str
    mode: str
    measurement: Measurement
    command: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        found = self.measurement
        about = ("env", "rollout_length", "policy", "device", "mode", "command")
        return {
            **{name: getattr(self, name) for name in about},
            "topology": self.topology.sizes,
            "frames": found.frames,
            "fps_median": found.fps_median,
            "fps_min": min(found.fps),
            "fps_max": max(found.fps),
            "fps": found.fps,
            "limit_fps": found.limit_fps,
            "limits": [asdict(limit) | {"fps": limit.fps} for limit in found.limits],
            "efficiency": found.efficiency,
            "start_s": found.start_s,
            "time_shares": found.shares,
            "handoff_us": found.handoff_us,
            "memory_mib": {name: asdict(memory) for name, memory in found.memory.items()},
            "machine": machine(),
            "versions": versions(),
            "date": datetime.now(UTC).date().isoformat(),
        }

    def to_rich(self) -> Group:
        """Return the tables that the command line prints."""
        return Group(self._summary(), self._workers())

    def _summary(self) -> Table:
        found, topology = self.measurement, self.topology
        table = Table(title=f"Throughput of {self.env}", title_justify="left", show_header=False)
        rows = {
            "frames per second": f"{found.fps_median:,.0f}  "
            f"({min(found.fps):,.0f} … {max(found.fps):,.0f} over {len(found.fps)} windows)",
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
        for woken, median_us in found.handoff_us.items():
            rows[f"handoff to {woken.replace('-', ' ')}"] = f"{median_us:.0f} µs median"
        rows["machine"] = f"{machine()['cpu']}, {machine()['cores']} cores"
        for label, value in rows.items():
            table.add_row(label, value)
        return table

    def _workers(self) -> Table:
        found = self.measurement
        table = Table(title="Where the time went", title_justify="left")
        table.add_column("process")
        for label in (*SHARES, "MiB unique", "MiB in use"):
            table.add_column(label, justify="right")
        for name, memory in found.memory.items():
            shares = found.shares.get(name, {})
            cells = (f"{shares[label]:.1%}" if label in shares else "" for label in SHARES)
            table.add_row(name, *cells, f"{memory.unique_mib:.0f}", f"{memory.rss_mib:.0f}")
        return table


def run_throughput(
    config: Config,
    protocol: Protocol,
    *,
    with_limit: bool = False,
    random_actions: bool = False,
    console: Console | None = None,
    command: str = "",
) -> Report:
    """Sample as fast as possible, without a learner, and report the speed.

    Args:
        config: What to sample, and how; see `Config.for_throughput` for its defaults.
        protocol: How long to measure.
        with_limit: Measure the physical limit next to every window.
        random_actions: Sample without a policy.
        console: Where to show frames per second live; nowhere by default.
        command: The command line that repeats this test.

    Raises:
        EnvError: The environment cannot be built.
        WorkerError: A worker failed.
        ConfigError: The sampler is one for debugging, or the limit of a GPU was requested.
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
    if with_limit and kind == "device" and config.sampler.devices != ("cpu",):
        raise ConfigError("the limit of a GPU cannot be measured, only that of the cores")
    if with_limit and config.cluster is not None:
        raise ConfigError("the limit of a cluster cannot be measured, only that of this machine")
    if not random_actions:
        check_model_class(config.model)
    plan = make_plan(config, random_actions=random_actions)
    policy = "random" if random_actions else policy_name(config, plan)
    sampler = make_sampler(config, plan)
    with ExitStack() as stack:
        stack.callback(sampler.close)
        live = stack.enter_context(LiveFps(console))
        probe = None
        if with_limit:
            with live.showing("starting bare environments …"):
                probe = stack.enter_context(LimitProbe(plan, env_factory(config), usable_cores()))
        measurement = measure(sampler, protocol, probe, live)
    return Report(
        env=config.env.id,
        topology=sampler.topology,
        rollout_length=plan.rollout_length,
        policy=policy,
        device=",".join(plan.devices) if plan.build_model else "cpu",
        mode=config.sampler.mode,
        measurement=measurement,
        command=command,
    )


def policy_name(config: Config, plan: SamplingPlan) -> str:
    """Return in words the network of a policy and the engine that executes it."""
    network = config.model.class_path or _network_name(config.model, plan.env_spec)
    if config.sampler.kind == "device" and plan.device(0).type != "cpu":
        return network
    # In a separate process, since an engine may allocate GPU memory in the one that builds it.
    engine = call_in_child(partial(_engine_name, plan), config.sampler.start_timeout_s)
    return f"{network}, {engine} engine"


def _engine_name(plan: SamplingPlan) -> str:
    assert plan.build_model is not None
    return build_engine(plan.build_model(), plan.device(0), plan.engine).name


def _network_name(model: ModelConfig, env_spec: EnvSpec) -> str:
    images = [bool(x) for x in image_layouts(env_spec.input_space, model).values()]
    parts = ["conv net"] if any(images) else []
    # A single image passes no layers but those of the conv net.
    if images != [True]:
        sizes = "×".join(str(size) for size in model.hidden_sizes)
        parts.append(f"{sizes} {model.activation}" if sizes else "linear")
    if model.recurrent is not None:
        layers = "×".join([str(model.recurrent_size)] * model.recurrent_layers)
        parts.append(f"{layers} {model.recurrent.upper()}")
    return " + ".join(parts)
