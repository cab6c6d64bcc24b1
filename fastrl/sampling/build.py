"""Builds a sampler from a configuration; `sampler` has the interface of samplers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fastrl import registry
from fastrl.arguments import instance, taken
from fastrl.closing import closing_on_error
from fastrl.config import Config, resolved
from fastrl.datasets import check_dataset, load_dataset, named_dataset
from fastrl.envs.env_factory import EnvFactory
from fastrl.envs.tensor.previous import TensorEnvWithPrevious
from fastrl.envs.tensor.tensor_by_id import configured, device_factory, find_tensor
from fastrl.errors import ConfigError
from fastrl.global_streams import seeded_weights
from fastrl.imports import import_object
from fastrl.models.policy import build_model, check_model_class
from fastrl.sampling.dataset_sampler import DatasetSampler
from fastrl.sampling.device_sampler import DeviceSampler
from fastrl.sampling.process_sampler import ProcessSampler
from fastrl.sampling.sampler import Sampler
from fastrl.sampling.serial_sampler import SerialSampler
from fastrl.sampling.uneven_sampler import UnevenSampler
from fastrl.sampling.worker_pool import Fault, FaultPolicy
from fastrl.spec import LOG_PROB_AND_VALUE, EnvSpec, Topology
from fastrl.system import existing_device, usable_cores
from fastrl.workers.plan import SamplingPlan
from fastrl.workers.supervisor import call_in_child
from fastrl.workers.watchdog import Deadlines

Weights = Mapping[str, Tensor] | None
OnFault = Callable[[Fault], None] | None

_SPINS = 300
"""Attempts before a wait: about 40 µs, longer than a handoff to a process that is awake."""


def env_factory(config: Config) -> EnvFactory:
    """Return the factory of a run's environments, for sampling and evaluation.

    Raises:
        EnvError: ``sampler.kind`` is device, but the environment cannot be stepped on a device.
        ConfigError: On a device, the previous action and reward cannot be added to observations.
    """
    taken("env_factory", config, Config, "load_config reads one from a file")
    build = device_factory if config.sampler.kind == "device" else EnvFactory.from_config
    factory = build(config.env)
    previous = config.model.previous_action_reward
    if previous and factory.must_be_on_device:
        raise ConfigError(
            f"model.previous_action_reward: not supported for '{config.env.id}' with "
            "sampler.kind: device; let the environment add them to its observations"
        )
    return dataclasses.replace(
        factory, previous_action_reward=previous, spare_envs=config.sampler.spare_envs
    )


def make_plan(
    config: Config, *, random_actions: bool = False, env_spec: EnvSpec | None = None
) -> SamplingPlan:
    """Probe the environment and return the plan of a run.

    The environment is built once in a short-lived process, so that its imports and processes do
    not stay in this one.

    Args:
        config: A complete, validated configuration.
        random_actions: Draw actions at random instead of running a policy.
        env_spec: The spec of the environment from an earlier probe; by default it is probed.

    Raises:
        EnvError: The environment cannot be built, or one of its spaces is not supported.
        ConfigError: The topology does not fit this machine, or a name of the configuration cannot
            be imported.
    """
    config = _checked(config, "make_plan")
    if env_spec is not None:
        instance("env_spec", env_spec, EnvSpec)
    engine = registry.chosen("engine", config.sampler.engine, "sampler.engine")
    sampler_builder(config)  # raises for an unknown one before anything is built
    topology, factory = config.topology, env_factory(config)
    if env_spec is None and config.sampler.kind == "device":
        # A device's environments are stepped in this process anyway.
        env_spec = factory.probe()
    elif env_spec is None:
        env_spec = call_in_child(
            factory.probing, config.sampler.start_timeout_s, config.env.close_timeout_s
        )
    factory = factory.with_masks_of(env_spec)
    # The class is sent, as workers lack the registrations and the script of this process.
    own_class = None if random_actions else check_model_class(config.model)
    # Other classes declare outputs and memory themselves.
    is_plain = config.model.class_path is None and config.model.recurrent is None

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
        outputs=LOG_PROB_AND_VALUE if is_plain else None,
        wanted_fields=config.algorithm.wanted_fields,
        # Samplers of algorithms define their own sequences.
        sequence_length=None if config.algorithm.own_sampler else config.sequence_length,
        spins=spins_of(topology, usable_cores()),
    )


def spins_of(topology: Topology, cores: int) -> int:
    """Return `SamplingPlan.spins` for a machine: workers spin only if each has a core."""
    # The learner sleeps while workers work.
    return _SPINS if cores >= topology.num_env_workers + topology.num_model_workers else 0


def _checked(config: Config, name: str) -> Config:
    return resolved(taken(name, config, Config, "load_config reads one from a file"))


def sampler_builder(config: Config) -> Any:
    """Return the function that makes the sampler of environments: ``sampler.kind``, or a cluster.

    Raises:
        ConfigError: It cannot be imported.
    """
    if config.cluster is not None:
        # Imported only here, as it is a higher package and needs the package ray.
        return import_object("fastrl.cluster.cluster_sampler:ClusterSampler", "cluster")
    return registry.chosen("sampler", config.sampler.kind, "sampler.kind")


def initial_weights(plan: SamplingPlan) -> dict[str, Tensor] | None:
    """Return the first parameters of a run, which depend only on its seed."""
    if plan.build_model is None:
        return None
    with seeded_weights(plan.seed):
        return dict(plan.build_model().state_dict())


def make_sampler(
    config: Config,
    plan: SamplingPlan | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    on_fault: OnFault = None,
) -> Sampler:
    """Return the sampler of a configuration; use it in a ``with`` block.

    Args:
        config: A complete, validated configuration.
        plan: From `make_plan`; made here by default.
        state_dict: First parameters; by default `initial_weights`.
        on_fault: Called with each worker failure that leads to a replacement.

    Raises:
        EnvError: The environment cannot be built, or one of its spaces is not supported.
        ConfigError: The topology does not fit this machine, or the sampler cannot be built.
        FastrlError: There is not enough memory for the shared table.
    """
    config = _checked(config, "make_sampler")
    plan = make_plan(config) if plan is None else instance("plan", plan, SamplingPlan)
    weights = initial_weights(plan) if state_dict is None else state_dict
    where = "cluster" if config.cluster else f"sampler.kind: '{config.sampler.kind}'"
    if config.algorithm.own_sampler is not None:
        where = f"algorithm.name: '{config.algorithm.name}'"
        build = registry.find("sampler", config.algorithm.own_sampler, "algorithm.name")
    else:
        build = sampler_builder(config)
    sampler = registry.call(build, where, config, plan, weights, on_fault)
    made: Sampler = instance(where, sampler, Sampler)
    return made


def process_sampler(
    config: Config, plan: SamplingPlan, weights: Weights, on_fault: OnFault
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
    kwargs: dict[str, Any] = {
        "deadlines": deadlines,
        "faults": FaultPolicy(config.faults.max_restarts, on_fault),
        "check_numbers": _checks_numbers(config),
        "debug": config.sampler.debug,
    }
    if config.sampler.wait != "all":
        return UnevenSampler(plan, weights, wait=config.sampler.wait, **kwargs)
    return ProcessSampler(plan, weights, asynchronous=config.sampler.mode == "async", **kwargs)


def serial_sampler(
    config: Config, plan: SamplingPlan, weights: Weights, on_fault: OnFault
) -> Sampler:
    """Return a sampler without worker processes."""
    debug, check_numbers = config.sampler.debug, _checks_numbers(config)
    return SerialSampler(plan, weights, debug=debug, check_numbers=check_numbers)


def device_sampler(
    config: Config, plan: SamplingPlan, weights: Weights, on_fault: OnFault
) -> Sampler:
    """Return a sampler with everything on one device."""
    device = existing_device(plan.device(0))
    given: dict[str, Any] = {
        "squash": config.env.action_bounds == "squash",
        "check_numbers": _checks_numbers(config),
    }
    if find_tensor(config.env.id) is None:
        factory = env_factory(config).with_masks_of(plan.env_spec)
        own = factory.on_device(plan.topology.num_envs, device)
        with closing_on_error(own):
            return DeviceSampler(plan, own, None, weights, **given)
    if device.type == "cpu":
        # The plan's environments are compiled loops in this case.
        return serial_sampler(config, plan, weights, on_fault)
    env, params = configured(config.env, device)
    if config.model.previous_action_reward:
        env = TensorEnvWithPrevious(env)
    return DeviceSampler(plan, env, params, weights, **given)


def dataset_sampler(
    config: Config, plan: SamplingPlan, weights: Weights, on_fault: OnFault
) -> Sampler:
    """Return a sampler of demonstrations in place of environments."""
    demonstrations = load_dataset(config, plan.env_spec)
    held_out = getattr(config.algorithm, "validation_fraction", 0.0)
    sequence_length = config.sequence_length if plan.schema.state_size else None
    return DatasetSampler(plan, demonstrations, held_out, sequence_length)


def check_sources(config: Config, plan: SamplingPlan) -> None:
    """Check a run's dataset or expert, before the run has a directory.

    Raises:
        ConfigError: The dataset is missing or does not match the environment.
    """
    section = config.algorithm
    # The learners of other algorithms read it when they are built, which is early enough, too.
    if section.needs_dataset and section.own_sampler is not None:
        path, episodes, key = named_dataset(config)
        bounds = config.env.action_bounds
        check_dataset(path, plan.env_spec, episodes=episodes, action_bounds=bounds, key=key)


def require_environments(config: Config) -> None:
    """Reject an algorithm with its own sampler, whose speed is not that of environments.

    Raises:
        ConfigError: The algorithm has its own sampler.
    """
    if config.algorithm.own_sampler is not None:
        raise ConfigError(
            f"algorithm.name: sampling is measured without {config.algorithm.name}, which has its "
            "own sampler; add algorithm.name=ppo"
        )


def _checks_numbers(config: Config) -> bool:
    return config.faults.bad_numbers != "skip_update"
