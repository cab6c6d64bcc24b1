"""Chooses the inference engine for a policy and a device."""

from __future__ import annotations

import copy
import logging
from typing import cast

import torch

from fastrl import once
from fastrl.devices import existing_device
from fastrl.errors import ConfigError
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.inference import bfloat16
from fastrl.models.inference.eager import EagerEngine, StagedEngine
from fastrl.models.inference.engine import InferenceEngine
from fastrl.models.policy import PolicyModel

_LOGGER = logging.getLogger(__name__)
_NAMES = ("auto", "eager", "compiled", "bfloat16")


def build_engine(
    model: PolicyModel, device: torch.device | str = "cpu", name: str = "auto"
) -> InferenceEngine:
    """Return an engine with a copy of the model's parameters.

    Args:
        model: The policy.
        device: Where it runs.
        name: ``eager`` runs PyTorch; ``compiled`` runs compiled code, or PyTorch with a warning
            where the policy or the device is not supported; ``auto`` does so, and warns once in a
            run where the policy is of another class than `ActorCritic`. Either warns where a
            supported policy does not compile. ``bfloat16`` runs PyTorch with the network's bodies
            in bfloat16, or in float32 with a warning where the device or the policy does not
            allow it.

    Raises:
        ConfigError: The name is unknown, or there is no such device.
    """
    if name not in _NAMES:
        raise ConfigError(f"unknown inference engine '{name}'; choose one of {', '.join(_NAMES)}")
    device = existing_device(device)
    if name == "bfloat16":
        model = _in_bfloat16(model, device)
    elif name != "eager":
        compiled = _compiled(model, device, demanded=name == "compiled")
        if compiled is not None:
            return compiled
    return EagerEngine(model) if device.type == "cpu" else StagedEngine(model, device)


def _in_bfloat16(model: PolicyModel, device: torch.device) -> PolicyModel:
    """Return a converted copy, or the model itself where that is not possible."""
    reason = bfloat16.why_not(model, device)
    if reason:
        _LOGGER.warning("inference runs eagerly in float32, not in bfloat16: %s", reason)
        return model
    converted = copy.deepcopy(cast(ActorCritic, model))
    bfloat16.convert(converted)
    return converted


def _compiled(model: PolicyModel, device: torch.device, demanded: bool) -> InferenceEngine | None:
    try:
        # Imported here, as numba takes a fifth of a second and may be missing.
        from fastrl.models.inference import mlp_engine, mlp_program

        on_cpu = device.type == "cpu"
        reason = mlp_program.why_not(model) if on_cpu else f"only a CPU runs it, not {device}"
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
