"""A whole throughput test, from a configuration to a report."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from rich.console import Console

from fastrl.arguments import instance, taken
from fastrl.config import Config, ModelConfig
from fastrl.cores import usable_cores
from fastrl.errors import ConfigError
from fastrl.models.images import image_layouts
from fastrl.models.inference import build_engine
from fastrl.sampling.build import env_factory, make_plan, make_sampler
from fastrl.spec import EnvSpec
from fastrl.throughput.limits import LimitProbe
from fastrl.throughput.live import LiveFps
from fastrl.throughput.measure import Protocol, measure
from fastrl.throughput.report import Report
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.supervisor import call_in_child


def run_throughput(
    config: Config,
    protocol: Protocol,
    *,
    with_limit: bool = False,
    random_actions: bool = False,
    console: Console | None = None,
    command: str = "",
) -> Report:
    """Sample as fast as possible, without a learner, and report how fast that was.

    Args:
        config: What to sample, and how.
        protocol: How long to measure.
        with_limit: Measure the physical limit next to every window.
        random_actions: Sample without a policy.
        console: Where to show frames per second live; nowhere by default.
        command: The command line that repeats this test.

    Raises:
        EnvError: The environment cannot be built.
        WorkerError: A worker failed.
        ConfigError: The sampler is one for debugging, or the limit of a GPU is asked for.
    """
    taken("run_throughput", config, Config, "load_config reads one from a file")
    instance("protocol", protocol, Protocol)
    kind = config.sampler.kind
    if kind == "serial":
        raise ConfigError(
            "sampler.kind: throughput is measured with 'process' or 'device', got 'serial'"
        )
    if with_limit and kind == "device" and config.sampler.devices != ("cpu",):
        raise ConfigError("the limit is that of this machine's cores; with a GPU there is none")
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
        topology=plan.topology,
        rollout_length=plan.rollout_length,
        policy=policy,
        device=",".join(plan.devices) if plan.build_model else "cpu",
        mode=config.sampler.mode,
        measurement=measurement,
        command=command,
    )


def policy_name(config: Config, plan: SamplingPlan) -> str:
    """Return in words what network observations go through, and the engine that executes it."""
    network = config.model.class_path or _network_name(config.model, plan.env_spec)
    if config.sampler.kind == "device" and plan.device(0).type != "cpu":
        return network
    # In a process of its own, since an engine may start a GPU in the one that builds it.
    engine = call_in_child(partial(_engine_name, plan), config.sampler.start_timeout_s)
    return f"{network}, {engine} engine"


def _engine_name(plan: SamplingPlan) -> str:
    assert plan.build_model is not None
    return build_engine(plan.build_model(), plan.device(0), plan.engine).name


def _network_name(model: ModelConfig, env_spec: EnvSpec) -> str:
    images = [bool(x) for x in image_layouts(env_spec.observation_space, model).values()]
    parts = ["conv net"] if any(images) else []
    # What a single image goes through besides belongs to the conv net.
    if images != [True]:
        sizes = "×".join(str(size) for size in model.hidden_sizes)
        parts.append(f"{sizes} {model.activation}" if sizes else "linear")
    return " + ".join(parts)
