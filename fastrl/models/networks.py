"""Networks: what turns an observation of any space into a vector of features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from fastrl.config import ModelConfig
from fastrl.errors import ConfigError, EnvError, cause
from fastrl.free_memory import free_bytes
from fastrl.spaces import leaves

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
"""Non-linearities by their name in the configuration."""

# (channels, kernel, stride) of each layer, for sides of at least so many pixels: the net of Mnih
# et al. 2015 (https://doi.org/10.1038/nature14236), and two that small images leave something of.
_CONV_LAYERS = (
    (36, ((32, 8, 4), (64, 4, 2), (64, 3, 1))),
    (16, ((32, 3, 2), (64, 3, 2), (64, 3, 1))),
    (7, ((32, 3, 1), (64, 3, 1), (64, 3, 1))),
)
_COPIES = 4
"""The weights, their gradient, and two averages that an optimiser keeps."""
_SMALLEST_SIDE = 7
_SMALLEST_GREY_SIDE = 36


def orthogonal(layer: nn.Module, gain: float) -> None:
    """Give a linear or convolutional layer orthogonal weights and a bias of zero, in place."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.orthogonal_(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def mlp(inputs: int, hidden_sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Return linear layers, each followed by the activation; the identity without layers."""
    layers: list[nn.Module] = []
    for outputs in hidden_sizes:
        require_memory(inputs * outputs, "model.hidden_sizes")
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
        inputs = outputs
    return nn.Sequential(*layers)


def require_memory(num_weights: int, what: str) -> None:
    """Refuse a layer that does not fit: the kernel would rather end the process than fail.

    Args:
        num_weights: Of the layer.
        what: Key of the configuration, or space, that makes it so large.

    Raises:
        ConfigError: It does not fit, with its gradients and what the optimiser keeps.
    """
    if _COPIES * 4 * num_weights > free_bytes():
        size = f"{4 * num_weights / 2**20:,.0f} MiB"
        raise ConfigError(f"{what}: a layer of {size} does not fit here")


def is_image(space: spaces.Space[Any]) -> bool:
    """Say whether a leaf goes through a conv net.

    Images are boxes of three axes whose sides have at least 7 pixels; and grey images without a
    channel axis, which are told from matrices by being uint8 and at least 36 pixels wide and high.
    """
    if not isinstance(space, spaces.Box):
        return False
    if len(space.shape) == 2:
        return space.dtype == np.uint8 and min(space.shape) >= _SMALLEST_GREY_SIDE
    return len(space.shape) == 3 and min(_image_shape(space.shape)[1:]) >= _SMALLEST_SIDE


def has_images(space: spaces.Space[Any]) -> bool:
    """Say whether any leaf of a space goes through a conv net."""
    return any(is_image(leaf) for leaf in leaves(space).values())


def _usual_layers(side: int) -> Sequence[tuple[int, int, int]]:
    return next(layers for smallest, layers in _CONV_LAYERS if side >= smallest)


def _channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[-1] in (1, 3, 4)


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channels, height, width) of ``[H, W, C]``, ``[C, H, W]`` or ``[H, W]``."""
    if len(shape) == 2:
        return (1, shape[0], shape[1])
    if _channels_last(shape):
        return (shape[2], shape[0], shape[1])
    return (shape[0], shape[1], shape[2])


class LeafEncoder(nn.Module):
    """Turns one leaf ``[n, *shape]`` into features ``[n, num_features] float32``.

    Attributes:
        num_features: Width of the output.
    """

    num_features: int


class ImageEncoder(LeafEncoder):
    """Convolutions and one linear layer, ReLU after each; see `ModelConfig.conv_layers`.

    The channel axis is the last one where that has a length of 1, 3 or 4, otherwise the first, so
    a stack of frames may be ``[4, 84, 84]`` or ``[84, 84, 4]``. uint8 is scaled to [0, 1].
    """

    def __init__(self, space: spaces.Box, config: ModelConfig) -> None:
        super().__init__()
        channels, height, width = _image_shape(space.shape)
        features = config.conv_features
        layers: list[nn.Module] = []
        for outputs, kernel, stride in config.conv_layers or _usual_layers(min(height, width)):
            if kernel > min(height, width):
                raise ConfigError(
                    f"model.conv_layers: a kernel of {kernel} does not fit into the {height} × "
                    f"{width} pixels that are left of {space.shape}"
                )
            require_memory(channels * outputs * kernel**2, "model.conv_layers")
            layers += [nn.Conv2d(channels, outputs, kernel, stride), nn.ReLU()]
            channels = outputs
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        require_memory(channels * height * width * features, "model.conv_features")
        layers += [nn.Flatten(), nn.Linear(channels * height * width, features), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.num_features = features
        self._add_channel = len(space.shape) == 2
        self._channels_last = _channels_last(space.shape)
        self._scale = _scale(space)

    def forward(self, image: Tensor) -> Tensor:
        """Return features of images ``[n, *shape]``."""
        if self._add_channel:
            image = image.unsqueeze(1)
        elif self._channels_last:
            image = image.permute(0, 3, 1, 2)
        features: Tensor = self.layers(_to_float(image, self._scale))
        return features


class VectorEncoder(LeafEncoder):
    """Flattens a ``Box`` or ``MultiBinary``; uint8 boxes are scaled to [0, 1]."""

    def __init__(self, space: spaces.Box | spaces.MultiBinary) -> None:
        super().__init__()
        self.num_features = math.prod(space.shape)
        self._scale = _scale(space)

    def forward(self, vector: Tensor) -> Tensor:
        """Return ``[n, num_features]``."""
        return _to_float(vector.flatten(1) if vector.ndim > 1 else vector[:, None], self._scale)


class OneHotEncoder(LeafEncoder):
    """One-hot vectors of ``Discrete`` and of each element of ``MultiDiscrete``, joined."""

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        super().__init__()
        self._space = space
        sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.flat
        first = np.cumsum([0, *sizes])
        start = np.atleast_1d(np.asarray(space.start)).ravel()
        self.num_features = int(first[-1])
        # Adding this to an observation gives the columns that are 1.
        self.register_buffer("_offset", torch.from_numpy(first[:-1] - start), persistent=False)
        self._offset: Tensor

    def forward(self, index: Tensor) -> Tensor:
        """Return ``[n, num_features]``."""
        columns = index.reshape(len(index), -1).long() + self._offset
        joined = torch.zeros(len(index), self.num_features, device=index.device)
        try:
            return joined.scatter_(-1, columns, 1.0)
        except RuntimeError as error:
            raise EnvError(
                f"an observation is not in its space {self._space}: {cause(error)}"
            ) from error


def _scale(space: spaces.Space[Any]) -> float:
    return 1 / 255 if isinstance(space, spaces.Box) and space.dtype == np.uint8 else 1.0


def _to_float(tensor: Tensor, scale: float) -> Tensor:
    # Converting first and scaling in place takes half the time of multiplying integers by a float.
    floats = tensor.float()
    if scale == 1.0:
        return floats
    return floats * scale if floats is tensor else floats.mul_(scale)


def leaf_encoder(space: spaces.Space[Any], config: ModelConfig) -> LeafEncoder:
    """Return the encoder of one leaf of an observation space."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return OneHotEncoder(space)
    if is_image(space):
        return ImageEncoder(space, config)  # type: ignore[arg-type]
    return VectorEncoder(space)  # type: ignore[arg-type]


class Body(nn.Module):
    """Encodes every leaf of an observation, joins the features, and passes them through an MLP.

    A single image goes without the MLP, as is usual: the conv net's own linear layer of
    ``conv_features`` takes its place.

    Attributes:
        num_features: Width of the output.
    """

    def __init__(self, space: spaces.Space[Any], config: ModelConfig) -> None:
        super().__init__()
        found = leaves(space)
        self.encoders = nn.ModuleList(leaf_encoder(leaf, config) for leaf in found.values())
        only_image = len(found) == 1 and is_image(space)
        hidden_sizes = () if only_image else config.hidden_sizes
        inputs = sum(encoder.num_features for encoder in self._leaf_encoders())
        self.mlp = mlp(inputs, hidden_sizes, config.activation)
        self.num_features = hidden_sizes[-1] if hidden_sizes else inputs
        if config.orthogonal_init:
            self.apply(lambda layer: orthogonal(layer, math.sqrt(2)))

    def forward(self, observation: Sequence[Tensor]) -> Tensor:
        """Return features ``[n, num_features]`` of leaves ``[n, *shape]`` in the space's order."""
        encoded = [f(x) for f, x in zip(self._leaf_encoders(), observation, strict=True)]
        joined = encoded[0] if len(encoded) == 1 else torch.cat(encoded, dim=-1)
        features: Tensor = self.mlp(joined)
        return features

    def _leaf_encoders(self) -> list[LeafEncoder]:
        return [encoder for encoder in self.encoders if isinstance(encoder, LeafEncoder)]
