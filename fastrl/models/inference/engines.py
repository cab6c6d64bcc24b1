"""Builds inference engines; `auto`, `eager`, `compiled` and `bfloat16` are built in."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastrl import once, registry
from fastrl.arguments import brief, instance, methods
from fastrl.models.inference.engine import EagerEngine, InferenceEngine, StagedEngine
from fastrl.models.inference.packed import packed
from fastrl.models.networks import ImageEncoder
from fastrl.models.policy import ActorCritic, PolicyModel
from fastrl.system import existing_device

EngineBuilder = Callable[[PolicyModel, torch.device], InferenceEngine]
"""A function that ``sampler.engine`` names: it builds an engine with a copy of the parameters."""

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Flags of CPUs that compute in bfloat16."""
_LOGGER = logging.getLogger(__name__)


def build_engine(
    model: PolicyModel, device: torch.device | str = "cpu", name: str | EngineBuilder = "auto"
) -> InferenceEngine:
    """Return an engine with a copy of the model's parameters.

    Args:
        model: The policy.
        device: Device of the engine.
        name: A registered engine, ``package.module:function``, or such a function; built in are
            `auto`, `eager`, `compiled` and `bfloat16`.

    Raises:
        ConfigError: The name is unknown, the engine cannot be built, or there is no such device.
        ArgumentError: The model is not a policy.
    """
    methods("model", model, ("act", "draw_noise"))
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
    """Return an engine of compiled code if it can run the policy, else one that runs PyTorch.

    On a CPU the latter computes conv nets by `packed` layers. It warns once in a run if the
    policy is of another class than `ActorCritic`, or if a supported policy does not compile.
    """
    return _compiled(model, device, demanded=False) or _by_torch(model, device)


def compiled(model: PolicyModel, device: torch.device) -> InferenceEngine:
    """Return an engine of compiled code; if it cannot run the policy, warn and do as `auto`."""
    return _compiled(model, device, demanded=True) or _by_torch(model, device)


def bfloat16(model: PolicyModel, device: torch.device) -> InferenceEngine:
    """Return an engine that runs PyTorch with the network's bodies in bfloat16.

    Heads, distributions and all outputs stay float32. A conv net takes half the time (64 × 64
    pixels, batches of 64, AMD EPYC with AVX512-BF16: 54 µs per frame instead of 100). If the
    device or the policy does not support it, all is float32, with a warning.
    """
    rounded = rounded_to_bfloat16(_packed_on(model, device), device)
    if rounded is None:
        return _by_torch(model, device)
    engine = eager(rounded, device)
    engine.name = "bfloat16"
    return engine


def rounded_to_bfloat16(model: PolicyModel, device: torch.device) -> PolicyModel | None:
    """Return a copy of a policy that computes in bfloat16; None, with a warning, if unsupported."""
    reason = why_not_bfloat16(model, device)
    if reason:
        _LOGGER.warning("inference runs in float32, not in bfloat16: %s", reason)
        return None
    converted = copy.deepcopy(cast(ActorCritic, model))
    _compute_in_bfloat16(converted)
    return converted


def _by_torch(model: PolicyModel, device: torch.device) -> InferenceEngine:
    """Return an engine that runs PyTorch, with `packed` layers on a CPU."""
    usual = _packed_on(model, device)
    engine = eager(usual, device)
    if usual is not model:
        engine.name = "packed"
    return engine


def _packed_on(model: PolicyModel, device: torch.device) -> PolicyModel:
    """Return a copy of a policy with `packed` layers on a CPU; else the policy itself."""
    found = packed(model) if device.type == "cpu" else None
    return model if found is None else found


def _compiled(model: PolicyModel, device: torch.device, demanded: bool) -> InferenceEngine | None:
    try:
        # Imported here, as importing numba takes 0.2 s, and it may be missing.
        from fastrl.models.inference import mlp_engine

        on_cpu = device.type == "cpu"
        reason = mlp_engine.why_not(model) if on_cpu else f"only a CPU runs it, not {device}"
        if not reason:
            return mlp_engine.MlpEngine(cast(ActorCritic, model))
    except Exception as error:  # compilers fail in many ways, and PyTorch can always run instead
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        _LOGGER.warning("inference runs eagerly, as compiled code is not available: %s", reason)
        return None
    is_custom = on_cpu and type(model) is not ActorCritic
    if demanded or (is_custom and once.is_first(f"eager: {reason}")):
        _LOGGER.warning("inference runs eagerly, not in compiled code: %s", reason)
    return None


def why_not_bfloat16(
    model: object, device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")
) -> str:
    """Return why a policy cannot run in bfloat16 on a device; empty if it can."""
    if type(model) is not ActorCritic:
        return "only fastrl's own networks are converted"
    if device.type == "cuda":
        return "" if torch.cuda.is_bf16_supported() else "this GPU does not compute in it"
    return "" if _cpu_flags(cpuinfo) & _BFLOAT16_FLAGS else "this CPU does not compute in it"


def _compute_in_bfloat16(model: ActorCritic) -> None:
    """Make the bodies of a policy compute in bfloat16, in place.

    Parameters that are loaded later are rounded as they are copied.
    """
    for body in filter(None, (model.actor_body, model.critic_body)):
        images = [encoder.layers for encoder in body.encoders if isinstance(encoder, ImageEncoder)]
        for layers in (*images, body.mlp):
            layers.to(torch.bfloat16)
            layers.register_forward_pre_hook(_round_input)
        body.register_forward_hook(_widen_output)


def _round_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.to(torch.bfloat16) for tensor in inputs)


def _widen_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def _cpu_flags(cpuinfo: Path) -> set[str]:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}
