"""The inference engines that a configuration can name, and how one is built."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import cast

import torch

from fastrl import once, registry
from fastrl.arguments import brief, instance
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.inference import bfloat16 as rounding
from fastrl.models.inference.eager import EagerEngine, StagedEngine
from fastrl.models.inference.engine import InferenceEngine
from fastrl.models.policy import PolicyModel
from fastrl.system import existing_device

EngineBuilder = Callable[[PolicyModel, torch.device], InferenceEngine]
"""A function that ``sampler.engine`` names; the engine has a copy of the policy's parameters."""

_LOGGER = logging.getLogger(__name__)


def build_engine(
    model: PolicyModel, device: torch.device | str = "cpu", name: str | EngineBuilder = "auto"
) -> InferenceEngine:
    """Return an engine with a copy of the model's parameters.

    Args:
        model: The policy.
        device: Where it runs.
        name: A registered engine, ``package.module:function``, or such a function; built in are
            `auto`, `eager`, `compiled` and `bfloat16`.

    Raises:
        ConfigError: The name is unknown, the engine cannot be built, or there is no such device.
    """
    build = registry.chosen("engine", name, "sampler.engine") if isinstance(name, str) else name
    device, where = existing_device(device), f"sampler.engine: {brief(name)}"
    engine: InferenceEngine = instance(
        where, registry.call(build, where, model, device), InferenceEngine
    )
    return engine


def eager(model: PolicyModel, device: torch.device) -> InferenceEngine:
    """Return an engine that runs PyTorch."""
    return EagerEngine(model) if device.type == "cpu" else StagedEngine(model, device)


def auto(model: PolicyModel, device: torch.device) -> InferenceEngine:
    """Return an engine of compiled code where it can run the policy, else `eager`.

    It warns once in a run where the policy is of another class than `ActorCritic`, and where a
    supported policy does not compile.
    """
    return _compiled(model, device, demanded=False) or eager(model, device)


def compiled(model: PolicyModel, device: torch.device) -> InferenceEngine:
    """Return an engine of compiled code; `eager` with a warning where it cannot run the policy."""
    return _compiled(model, device, demanded=True) or eager(model, device)


def bfloat16(model: PolicyModel, device: torch.device) -> InferenceEngine:
    """Return an engine that runs PyTorch with the network's bodies in bfloat16.

    Where the device or the policy does not allow it, they are in float32, with a warning.
    """
    reason = rounding.why_not(model, device)
    if reason:
        _LOGGER.warning("inference runs eagerly in float32, not in bfloat16: %s", reason)
        return eager(model, device)
    converted = copy.deepcopy(cast(ActorCritic, model))
    rounding.convert(converted)
    engine = eager(converted, device)
    engine.name = "bfloat16"
    return engine


def _compiled(model: PolicyModel, device: torch.device, demanded: bool) -> InferenceEngine | None:
    try:
        # Imported here, as numba takes a fifth of a second and may be missing.
        from fastrl.models.inference import mlp_engine

        on_cpu = device.type == "cpu"
        reason = mlp_engine.why_not(model) if on_cpu else f"only a CPU runs it, not {device}"
        if not reason:
            return mlp_engine.MlpEngine(cast(ActorCritic, model))
    except Exception as error:  # a compiler fails in many ways, and is never needed
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        _LOGGER.warning("inference runs eagerly, as compiled code is not available: %s", reason)
        return None
    is_custom = on_cpu and type(model) is not ActorCritic
    if demanded or (is_custom and once.is_first(f"eager: {reason}")):
        _LOGGER.warning("inference runs eagerly, not in compiled code: %s", reason)
    return None
