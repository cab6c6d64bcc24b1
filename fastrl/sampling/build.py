"""From a configuration to a sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastrl import registry
from fastrl.arguments import instance, taken
from fastrl.config import Config, resolved
from fastrl.cores import usable_cores
from fastrl.devices import existing_device
from fastrl.envs.make import EnvFactory
from fastrl.envs.tensor.configured import compiled_factory, configured
from fastrl.models.policy import build_model
from fastrl.sampling.device_sampler import DeviceSampler
from fastrl.sampling.faults import Fault, FaultPolicy
from fastrl.sampling.process_sampler import Deadlines, ProcessSampler
from fastrl.sampling.sampler import Sampler
from fastrl.sampling.serial_sampler import SerialSampler
from fastrl.spec import LOG_PROB_AND_VALUE, EnvSpec
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.supervisor import call_in_child

Weights = Mapping[str, Tensor] | None

_SPINS = 300
"""About 40 µs: longer than a hand-over takes when nobody has to be woken."""


def env_factory(config: Config) -> EnvFactory:
    """Return what builds the environments of a run, for sampling as well as for evaluation.

    Raises:
        EnvError: ``sampler.kind`` is device, and there is no tensor environment of this id.
    """
    # On one device compiled loops step where the configuration names gymnasium's id.
    build = compiled_factory if config.sampler.kind == "device" else EnvFactory.from_config
    return build(config.env)


def make_plan(
    config: Config, *, random_actions: bool = False, env_spec: EnvSpec | None = None
) -> SamplingPlan:
    """Probe the environment and lay out the run.

    The environment is built once in a short-lived process, so that nothing it imports or starts
    stays in this one.

    Args:
        config: A whole, validated configuration.
        random_actions: Draw actions at random instead of running a policy.
        env_spec: What the same environment was found to be before; by default it is probed.

    Raises:
        EnvError: The environment cannot be built, or a space of it is not supported.
        ConfigError: The topology does not fit this machine, or something that the configuration
            names cannot be imported.
    """
    config = _checked(config, "make_plan")
    if env_spec is not None:
        instance("env_spec", env_spec, EnvSpec)
    engine = registry.chosen("engine", config.sampler.engine, "sampler.engine")
    _sampler_builder(config)  # which may be missing, and that is said before anything is built
    topology, factory = config.topology, env_factory(config)
    if env_spec is None and config.sampler.kind == "device":
        # It steps in this process anyway.
        env_spec = factory.probe()
    elif env_spec is None:
        env_spec = call_in_child(
            factory.probing, config.sampler.start_timeout_s, config.env.close_timeout_s
        )
    named, own_class = config.model.class_path, None
    if named is not None and ":" not in named:
        # Workers do not know what this program has registered, so the class travels to them.
        own_class = registry.find("model", named, "model.class_path")
    free_cores = usable_cores() - topology.num_env_workers - topology.num_model_workers

    def build_policy():  # type: ignore[no-untyped-def]  # noqa: ANN202
        return build_model(env_spec, config.model, config.env.action_bounds, own_class)

    return SamplingPlan(
        env_spec=env_spec,
        topology=topology,
        rollout_length=config.sampler.rollout_length,
        seed=config.seed,
        build_env=factory.batched,
        build_model=None if random_actions else build_policy,
        devices=config.sampler.devices,
        engine=engine,
        lock_step=config.sampler.lock_step,
        torch_threads=config.sampler.torch_threads,
        check_steps=config.faults.bad_numbers == "truncate_episode",
        # A class from elsewhere is asked.
        outputs=LOG_PROB_AND_VALUE if config.model.class_path is None else None,
        wanted_fields=config.algorithm.wanted_fields,
        # The learner and the throughput process sleep nearly all the time while workers work.
        spins=_SPINS if free_cores >= 0 else 0,
    )


def _checked(config: Config, name: str) -> Config:
    return resolved(taken(name, config, Config, "load_config reads one from a file"))


def _sampler_builder(config: Config) -> Any:  # noqa: ANN401
    return registry.chosen("sampler", config.sampler.kind, "sampler.kind")


def initial_weights(plan: SamplingPlan) -> dict[str, Tensor] | None:
    """Return the first parameters of a run, which follow from its seed alone."""
    if plan.build_model is None:
        return None
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(plan.seed)
        return dict(plan.build_model().state_dict())


def make_sampler(
    config: Config,
    plan: SamplingPlan | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    on_fault: Callable[[Fault], None] | None = None,
) -> Sampler:
    """Build the sampler that a configuration describes; use it in a ``with`` block.

    Args:
        config: A whole, validated configuration.
        plan: From `make_plan`; made here by default.
        state_dict: First parameters; by default those that follow from the seed.
        on_fault: Told of every worker process that failed and is replaced.

    Raises:
        EnvError: The environment cannot be built, or a space of it is not supported.
        ConfigError: The topology does not fit this machine, or the sampler cannot be built.
        FastrlError: There is not enough memory for the shared table.
    """
    config = _checked(config, "make_sampler")
    plan = make_plan(config) if plan is None else instance("plan", plan, SamplingPlan)
    weights = initial_weights(plan) if state_dict is None else state_dict
    build, where = _sampler_builder(config), f"sampler.kind: '{config.sampler.kind}'"
    sampler = registry.call(build, where, config, plan, weights, on_fault)
    made: Sampler = instance(where, sampler, Sampler)
    return made


def process_sampler(
    config: Config,
    plan: SamplingPlan,
    weights: Weights,
    on_fault: Callable[[Fault], None] | None,
) -> Sampler:
    """Return a sampler with worker processes."""
    slowest_s = max(config.env.step_timeout_s, config.env.reset_timeout_s)
    deadlines = Deadlines(
        start_timeout_s=config.sampler.start_timeout_s,
        stall_timeout_s=slowest_s,
        step_timeout_s=config.env.step_timeout_s,
        reset_timeout_s=config.env.reset_timeout_s,
        close_timeout_s=config.env.close_timeout_s,
    )
    return ProcessSampler(
        plan,
        weights,
        asynchronous=config.sampler.mode == "async",
        deadlines=deadlines,
        faults=FaultPolicy(config.faults.max_restarts, on_fault),
        check_numbers=_checks_numbers(config),
        debug=config.sampler.debug,
    )


def serial_sampler(
    config: Config,
    plan: SamplingPlan,
    weights: Weights,
    on_fault: Callable[[Fault], None] | None,
) -> Sampler:
    """Return a sampler that does in this process what workers do."""
    debug, check_numbers = config.sampler.debug, _checks_numbers(config)
    return SerialSampler(plan, weights, debug=debug, check_numbers=check_numbers)


def device_sampler(
    config: Config,
    plan: SamplingPlan,
    weights: Weights,
    on_fault: Callable[[Fault], None] | None,
) -> Sampler:
    """Return a sampler with everything on one device."""
    device = plan.device(0)
    if device.type == "cpu":
        # A CPU is one device as well, and a plan for it steps compiled loops.
        return serial_sampler(config, plan, weights, on_fault)
    env, params = configured(config.env, existing_device(device))
    squash, check_numbers = config.env.action_bounds == "squash", _checks_numbers(config)
    return DeviceSampler(plan, env, params, weights, squash=squash, check_numbers=check_numbers)


def _checks_numbers(config: Config) -> bool:
    return config.faults.bad_numbers != "skip_update"
