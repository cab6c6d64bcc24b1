"""Image encoders with packed weights, in the order in which the CPU's convolutions read them.

PyTorch keeps weights in plain order, so oneDNN, which computes its convolutions and products on
CPUs, reorders them in every call. Here they are packed once per load, and ReLU is part of the layer
before it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastrl.errors import cause
from fastrl.models.networks import ImageEncoder
from fastrl.models.policy import PolicyModel

Step = Callable[[Tensor], Tensor]

_LOGGER = logging.getLogger(__name__)
_ATTRIBUTES: tuple[str, list[float], str] = ("relu", [], "")
"""Operation on the result of a layer."""
_BATCH = 16
"""Batch size for which weights are packed, independent of the first batch, so that results do not
depend on it."""


class PackedLayers(nn.Sequential):
    """The layers of an `ImageEncoder`, with the same parameters, without gradients."""

    _steps: list[Step] | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features of images ``[n, channels, height, width]``, channels last in memory."""
        if self._steps is None:
            return self._pack(pixels)
        for step in self._steps:
            pixels = step(pixels)
        return pixels

    def _pack(self, x: Tensor) -> Tensor:
        """Pack the weights for images like ``x``, and return their features."""
        operations: Any = torch.ops.mkldnn
        steps: list[Step] = []
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                sizes = (list(layer.padding), list(layer.stride), list(layer.dilation), 1)
                weight = operations._reorder_convolution_weight(
                    layer.weight, *sizes, [_BATCH, *x.shape[1:]]
                )
                steps.append(partial(_convolve, operations, weight, layer.bias, sizes))
            elif isinstance(layer, nn.Linear):
                # In memory its inputs are ordered by pixel, then by channel.
                _, *shape = x.shape
                weight = layer.weight.view(-1, *shape).permute(0, 2, 3, 1).flatten(1).contiguous()
                weight = operations._reorder_linear_weight(weight, _BATCH)
                steps.append(partial(_multiply, operations, weight, layer.bias))
            else:  # ReLU is a part of the layer before it, and Flatten of the one after it
                continue
            x = steps[-1](x)
        self._steps = steps
        return x

    def _load_from_state_dict(self, *given: Any) -> None:
        self._steps = None
        super()._load_from_state_dict(*given)

    def _apply(self, *given: Any, **options: Any) -> PackedLayers:
        self._steps = None
        return super()._apply(*given, **options)  # type: ignore[no-untyped-call,no-any-return]


def packed(model: PolicyModel) -> PolicyModel | None:
    """Return a copy of a policy that computes images by `PackedLayers`; None if impossible."""
    if not isinstance(model, nn.Module):
        return None
    copied = copy.deepcopy(model)
    found = [each for each in copied.modules() if type(each) is ImageEncoder]
    if not found or not torch.backends.mkldnn.is_available():
        return None
    try:
        for encoder in found:
            _require_equal(encoder)
            encoder.layers = PackedLayers(*encoder.layers)
    except Exception as error:  # the operations are internal ones of PyTorch
        _LOGGER.debug("conv nets are not packed: %s", cause(error))
        return None
    return copied


@torch.inference_mode()
def _require_equal(encoder: ImageEncoder) -> None:
    """Raise an error unless packed layers agree with plain ones on two images."""
    images = torch.rand(2, *encoder.shape, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    found = PackedLayers(*encoder.layers)(images)
    if not torch.allclose(found, encoder.layers(images), rtol=1e-3, atol=1e-4):
        raise ValueError("packed layers disagree with plain ones")


def _convolve(
    operations: Any, weight: Tensor, bias: Tensor | None, sizes: Any, x: Tensor
) -> Tensor:
    found: Tensor = operations._convolution_pointwise(x, weight, bias, *sizes, *_ATTRIBUTES)
    return found


def _multiply(operations: Any, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    rows = x.permute(0, 2, 3, 1).flatten(1)
    found: Tensor = operations._linear_pointwise(rows, weight, bias, *_ATTRIBUTES)
    return found
