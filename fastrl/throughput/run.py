"""A whole throughput test, from a configuration to a report."""

from __future__ import annotations

from contextlib import ExitStack

from rich.console import Console

from fastrl.arguments import instance, taken
from fastrl.config import Config
from fastrl.cores import usable_cores
from fastrl.errors import ConfigError
from fastrl.models.images import image_layouts
from fastrl.sampling.build import env_factory, make_plan, make_sampler
from fastrl.spec import EnvSpec
from fastrl.throughput.limits import LimitProbe
from fastrl.throughput.live import LiveFps
from fastrl.throughput.measure import Protocol, measure
from fastrl.throughput.report import Report


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
        policy="random" if random_actions else policy_name(config, plan.env_spec),
        device=",".join(plan.devices) if plan.build_model else "cpu",
        mode=config.sampler.mode,
        measurement=measurement,
        command=command,
    )


def policy_name(config: Config, env_spec: EnvSpec) -> str:
    """Return in words what network observations go through, and what executes it."""
    model = config.model
    if model.class_path:
        return model.class_path
    images = [bool(x) for x in image_layouts(env_spec.observation_space, model).values()]
    parts = ["conv net"] if any(images) else []
    # What a single image goes through besides belongs to the conv net.
    if images != [True]:
        sizes = "×".join(str(size) for size in model.hidden_sizes)
        parts.append(f"{sizes} {model.activation}" if sizes else "linear")
    return f"{' + '.join(parts)}, {config.sampler.engine} engine"
