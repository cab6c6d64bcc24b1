"""Networks: what turns an observation of any space into a vector of features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from fastrl.config import ModelConfig
from fastrl.errors import ConfigError, EnvError, cause
from fastrl.free_memory import free_bytes
from fastrl.models.images import SMALLEST_SIDE, ImageLayout, image_layouts
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
    (SMALLEST_SIDE, ((32, 3, 1), (64, 3, 1), (64, 3, 1))),
)
_COPIES = 4
"""The weights, their gradient, and two averages that an optimiser keeps."""
_WIDEST_SPAN = 2**24
"""Bounds that are further apart say what numbers the dtype has, not which of them come."""


def orthogonal(layer: nn.Module, gain: float) -> None:
    """Give a linear or convolutional layer orthogonal weights and a bias of zero, in place."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.orthogonal_(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def mlp(
    inputs: int, hidden_sizes: Sequence[int], activation: str, key: str = "hidden_sizes"
) -> nn.Sequential:
    """Return linear layers, each followed by the activation; the identity without layers.

    Args:
        inputs: Features that come in.
        hidden_sizes: Width of each layer.
        activation: One of `ACTIVATIONS`.
        key: Of the model's section, which gives the widths.

    Raises:
        ConfigError: A layer does not fit into memory.
    """
    layers: list[nn.Module] = []
    for outputs in hidden_sizes:
        require_memory(inputs * outputs, f"model.{key}")
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


def _usual_layers(layout: ImageLayout) -> Sequence[tuple[int, int, int]]:
    side = min(layout.height, layout.width)
    for smallest, layers in _CONV_LAYERS:
        if side >= smallest:
            return layers
    raise ConfigError(
        f"model.image_layout: {layout} are too small for the usual convolutions; set "
        "model.conv_layers, or flat for no image"
    )


class LeafEncoder(nn.Module):
    """Turns one leaf ``[n, *shape]`` into features ``[n, num_features] float32``.

    Attributes:
        num_features: Width of the output.
    """

    num_features: int


class ImageEncoder(LeafEncoder):
    """Convolutions and one linear layer, ReLU after each; see `ModelConfig.conv_layers`.

    The frames of a stack become channels. Pixels are scaled as `Scaling` says.
    """

    def __init__(self, space: spaces.Box, layout: ImageLayout, config: ModelConfig) -> None:
        super().__init__()
        channels, height, width = layout.channels, layout.height, layout.width
        features = config.conv_features
        layers: list[nn.Module] = []
        for outputs, kernel, stride in config.conv_layers or _usual_layers(layout):
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
        self._arrange = layout.arrange
        self.scaling = Scaling(space, layout)

    def forward(self, image: Tensor) -> Tensor:
        """Return features of images ``[n, *shape]``."""
        features: Tensor = self.layers(self.scaling(self._arrange(image)))
        return features


class VectorEncoder(LeafEncoder):
    """Flattens a ``Box`` or ``MultiBinary``; bytes are scaled as `Scaling` says."""

    def __init__(self, space: spaces.Box | spaces.MultiBinary) -> None:
        super().__init__()
        self.num_features = math.prod(space.shape)
        self.scaling = Scaling(space)

    def forward(self, vector: Tensor) -> Tensor:
        """Return ``[n, num_features]``."""
        floats: Tensor = self.scaling(vector)
        return floats.flatten(1) if floats.ndim > 1 else floats[:, None]


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
        # Not len, which an exporter would take for a constant.
        rows = index.shape[0]
        columns = index.reshape(rows, -1).long() + self._offset
        joined = torch.zeros(rows, self.num_features, device=index.device)
        try:
            return joined.scatter_(-1, columns, 1.0)
        except RuntimeError as error:
            raise EnvError(
                f"an observation is not in its space {self._space}: {cause(error)}"
            ) from error


def is_bounded(space: spaces.Space[Any], layout: ImageLayout | None) -> bool:
    """Say whether a leaf is scaled by its bounds, so that there is nothing left to normalise.

    Bytes are, and images whose bounds are finite; other boxes hold numbers of any size.
    """
    if not isinstance(space, spaces.Box):
        return False
    if layout is None:
        return space.dtype == np.uint8
    with np.errstate(over="ignore"):
        span = space.high.astype(np.float64) - space.low.astype(np.float64)
    return bool((span <= _WIDEST_SPAN).all())


class Scaling(nn.Module):
    """Converts numbers to float32, and maps the bounds of bytes and images to [0, 1].

    Bounds within [-1, 1] are left as they are.

    Args:
        space: One leaf; see `is_bounded`.
        layout: Of images, which are scaled after `ImageLayout.arrange`; None for other leaves.
    """

    low: Tensor | float
    scale: Tensor | float

    def __init__(self, space: spaces.Space[Any], layout: ImageLayout | None = None) -> None:
        super().__init__()
        self.low, self.scale = 0.0, 1.0
        if not isinstance(space, spaces.Box) or not is_bounded(space, layout):
            return
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        if low.min() >= -1 and high.max() <= 1:
            return
        self._keep("low", low, layout)
        self._keep("scale", 1 / np.where(high > low, high - low, 1.0), layout)

    def _keep(self, name: str, values: NDArray[np.float64], layout: ImageLayout | None) -> None:
        """Keep values ``[*shape]``, as one number where they are equal, which is quicker."""
        if (values == values.flat[0]).all():
            setattr(self, name, float(values.flat[0]))
            return
        tensor = torch.from_numpy(values).float()
        arranged = tensor if layout is None else layout.arrange(tensor[None])[0]
        delattr(self, name)
        # What follows from the space is no part of checkpoints.
        self.register_buffer(name, arranged.contiguous(), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return ``[n, *shape] float32``."""
        # Converting first and scaling in place takes half the time of multiplying integers by a
        # float.
        floats = numbers.float()
        if isinstance(self.low, Tensor) or self.low != 0.0:
            floats = floats - self.low if floats is numbers else floats.sub_(self.low)
        elif isinstance(self.scale, float) and self.scale == 1.0:
            return floats
        return floats * self.scale if floats is numbers else floats.mul_(self.scale)


def leaf_encoder(
    space: spaces.Space[Any], layout: ImageLayout | None, config: ModelConfig
) -> LeafEncoder:
    """Return the encoder of one leaf of an observation space, an image where it has a layout."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return OneHotEncoder(space)
    if layout is not None:
        return ImageEncoder(space, layout, config)  # type: ignore[arg-type]
    return VectorEncoder(space)  # type: ignore[arg-type]


class Body(nn.Module):
    """Encodes every leaf of an observation, joins the features, and passes them through an MLP.

    A single image goes without the MLP, as is usual: the conv net's own linear layer of
    ``conv_features`` takes its place.

    Attributes:
        num_features: Width of the output.

    Args:
        space: What is observed.
        config: Sizes, activation and initialisation.
        is_critic: Whether ``critic_hidden_sizes``, where it is given, goes for ``hidden_sizes``.

    Raises:
        ConfigError: A layer does not fit into an image or into memory.
    """

    def __init__(
        self, space: spaces.Space[Any], config: ModelConfig, is_critic: bool = False
    ) -> None:
        super().__init__()
        own_sizes = is_critic and config.critic_hidden_sizes is not None
        key = "critic_hidden_sizes" if own_sizes else "hidden_sizes"
        found = leaves(space)
        layouts = image_layouts(space, config)
        self.encoders = nn.ModuleList(
            leaf_encoder(leaf, layouts[path], config) for path, leaf in found.items()
        )
        only_image = len(found) == 1 and all(layouts.values())
        hidden_sizes: tuple[int, ...] = () if only_image else getattr(config, key)
        inputs = sum(encoder.num_features for encoder in self._leaf_encoders())
        self.mlp = mlp(inputs, hidden_sizes, config.activation, key)
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
