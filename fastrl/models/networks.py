"""Networks that turn an observation of any space into a vector of features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fastrl.config import ModelConfig
from fastrl.errors import ConfigError, EnvError, cause
from fastrl.models.images import SMALLEST_SIDE, ImageLayout, image_layouts
from fastrl.spaces import leaves
from fastrl.system import free_bytes

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
"""Non-linearities by their name in the configuration."""

# (channels, kernel, stride) of each layer, by the image's smallest side: the net of Mnih
# et al. 2015 (https://doi.org/10.1038/nature14236), and two for smaller images.
_CONV_LAYERS = (
    (36, ((32, 8, 4), (64, 4, 2), (64, 3, 1))),
    (16, ((32, 3, 2), (64, 3, 2), (64, 3, 1))),
    (SMALLEST_SIDE, ((32, 3, 1), (64, 3, 1), (64, 3, 1))),
)
_EPSILON = 1e-8
"""Added to variances before the square root."""
_COPIES = 4
"""Copies in memory: the weights, their gradient, and two averages of an optimiser."""
_WIDEST_SPAN = 2**24
"""Wider bounds are those of the dtype rather than of the observations."""
_WIDE = 64
"""Least options of a wide choice, whose weights' columns are added up; by counts of operations."""


def orthogonal(layer: nn.Module, gain: float) -> None:
    """Set orthogonal weights and a zero bias in a linear or convolutional layer, in place."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.orthogonal_(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def mlp(
    inputs: int, hidden_sizes: Sequence[int], activation: str, key: str = "hidden_sizes"
) -> nn.Sequential:
    """Return linear layers, each followed by the activation; the identity if there are none.

    Args:
        inputs: Number of input features.
        hidden_sizes: Width of each layer.
        activation: One of `ACTIVATIONS`.
        key: Key of the widths in the model's section, for errors.

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
    """Reject a layer that does not fit into memory, before the system kills the process.

    Args:
        num_weights: Number of the layer's weights.
        what: Key of the configuration, or space, that determines the size.

    Raises:
        ConfigError: It does not fit with its gradients and the optimiser's averages.
    """
    if _COPIES * 4 * num_weights > free_bytes():
        size = f"{4 * num_weights / 2**20:,.0f} MiB"
        raise ConfigError(f"{what}: a layer of {size} does not fit into memory")


def _usual_layers(layout: ImageLayout) -> Sequence[tuple[int, int, int]]:
    side = min(layout.height, layout.width)
    for smallest, layers in _CONV_LAYERS:
        if side >= smallest:
            return layers
    raise ConfigError(
        f"model.image_layout: {layout} are too small for the default convolutions; set "
        "model.conv_layers, or flat for no image"
    )


class LeafEncoder(nn.Module):
    """Turns one leaf ``[n, *shape]`` into features ``[n, num_features] float32``.

    Attributes:
        num_features: Width of the output.
        is_wide: Whether it is a one-hot vector with so many options that a `Body` adds up columns
            of its first layer's weights instead.
    """

    num_features: int
    is_wide = False

    def weighted(self, leaf: Tensor, weights: Tensor) -> Tensor:
        """Return the features times weights ``[num_features, outputs]``."""
        features: Tensor = self(leaf)
        return features.to(weights.dtype) @ weights


class ImageEncoder(LeafEncoder):
    """Convolutions and one linear layer, ReLU after each; see `ModelConfig.conv_layers`.

    The frames of a stack become channels. Pixels are scaled as `Scaling` says.

    Attributes:
        shape: Channels, height and width of the images that ``layers`` process.
    """

    def __init__(self, space: spaces.Box, layout: ImageLayout, config: ModelConfig) -> None:
        super().__init__()
        self.shape = channels, height, width = layout.channels, layout.height, layout.width
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
        # With channels last an update takes 0.7 of the time (float32, CPU, 256 images 4 × 84 × 84).
        pixels = self._arrange(image).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.layers(self.scaling(pixels))
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
    """One-hot vectors of ``Discrete`` and of each element of ``MultiDiscrete``, joined.

    Attributes:
        choices: The first value, and the number of options, of each element.
    """

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        super().__init__()
        self._space = space
        sizes = (
            [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.ravel().tolist()
        )
        first = np.cumsum([0, *sizes])
        start = np.atleast_1d(np.asarray(space.start)).ravel()
        self.choices = tuple(zip(start.tolist(), sizes, strict=True))
        self.num_features = int(first[-1])
        self.is_wide = self.num_features >= _WIDE * len(sizes)
        # Adding this to an observation gives the columns that are 1.
        self.register_buffer("_offset", torch.from_numpy(first[:-1] - start), persistent=False)
        self._offset: Tensor

    def columns(self, index: Tensor) -> Tensor:
        """Return the columns that are 1 in each row, ``[n, elements] int64``."""
        # Not len, which an exporter would record as a constant.
        return index.reshape(index.shape[0], -1).long() + self._offset

    def forward(self, index: Tensor) -> Tensor:
        """Return ``[n, num_features]``."""
        joined = torch.zeros(index.shape[0], self.num_features, device=index.device)
        try:
            return joined.scatter_(-1, self.columns(index), 1.0)
        except RuntimeError as error:
            raise self._outside(error) from error

    def weighted(self, leaf: Tensor, weights: Tensor) -> Tensor:
        """Return the features times weights ``[num_features, outputs]``."""
        if not self.is_wide:
            return super().weighted(leaf, weights)
        try:
            return functional.embedding(self.columns(leaf), weights.contiguous()).sum(1)
        except IndexError as error:
            raise self._outside(error) from error

    def _outside(self, error: Exception) -> EnvError:
        return EnvError(f"an observation is not in its space {self._space}: {cause(error)}")


def columns_by_kind(encoders: Iterable[nn.Module]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the columns of vectors, of narrow one-hot vectors and of wide ones."""
    kinds: tuple[list[Tensor], ...] = ([], [], [])
    first = 0
    for encoder in encoders:
        assert isinstance(encoder, LeafEncoder)
        kind = isinstance(encoder, OneHotEncoder) + encoder.is_wide
        kinds[kind].append(torch.arange(first, first + encoder.num_features))
        first += encoder.num_features
    nothing = torch.empty(0, dtype=torch.int64)
    vectors, narrow, wide = (torch.cat([nothing, *found]) for found in kinds)
    return vectors, narrow, wide


class RunningNormalizer(nn.Module):
    """Subtracts the mean and divides by the standard deviation of all observations so far.

    The statistics change only in `update`, so sampling and evaluation do not change them. They are
    float64 buffers of the state dict: ``mean`` and ``var`` ``[*shape]`` and ``count`` ``[]``.
    Before the first update the input is not scaled.

    Args:
        shape: Shape of one observation.
        clip: Bound of the absolute output, in standard deviations.
    """

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.mean: Tensor
        self.var: Tensor
        self.count: Tensor

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Add observations ``[*, *shape]`` to the statistics."""
        rows = batch.reshape(-1, *self.mean.shape).double()
        if len(rows):
            self.join(rows.mean(0), rows.var(0, correction=0), len(rows))

    @torch.no_grad()
    def join(self, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
        """Add ``count`` observations, at least 1, with this mean and variance ``[*shape]``.

        Joins the moments of both sets (Chan, Golub and LeVeque 1983, equations 2.1), which stays
        precise where sums of squares would cancel.
        """
        total = self.count + count
        difference = mean - self.mean
        squares = (
            self.var * self.count + var * count + difference.square() * self.count * count / total
        )
        self.mean += difference * count / total
        self.var.copy_(squares / total)
        self.count.copy_(total)

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return copies of ``mean``, ``var`` and ``count``."""
        return self.mean.clone(), self.var.clone(), self.count.clone()

    def set_moments(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Replace the statistics."""
        for own, new in zip((self.mean, self.var, self.count), (mean, var, count), strict=True):
            own.copy_(new)

    def scale(self) -> Tensor:
        """Return 1 / standard deviation, ``[*shape] float32``."""
        return (self.var + _EPSILON).rsqrt().float()

    def forward(self, observation: Tensor) -> Tensor:
        """Return ``observation`` ``[*, *shape]`` normalised and clipped, in float32."""
        normalised = (observation.float() - self.mean.float()) * self.scale()
        return normalised.clamp(-self.clip, self.clip)


def is_bounded(space: spaces.Space[Any], layout: ImageLayout | None) -> bool:
    """Return whether a leaf is scaled by its bounds, and so needs no normalisation.

    True for bytes, and for images with finite bounds; other boxes may hold numbers of any size.
    """
    if not isinstance(space, spaces.Box):
        return False
    if layout is None:
        return space.dtype == np.uint8
    with np.errstate(over="ignore"):
        span = space.high.astype(np.float64) - space.low.astype(np.float64)
    return bool((span <= _WIDEST_SPAN).all())


def normalizer(leaf: spaces.Space[Any], layout: ImageLayout | None, wanted: bool) -> nn.Module:
    """Return a normaliser for unbounded numbers; other leaves are scaled already."""
    if wanted and isinstance(leaf, spaces.Box) and not is_bounded(leaf, layout):
        return RunningNormalizer(tuple(leaf.shape))
    return nn.Identity()


class Scaling(nn.Module):
    """Converts numbers to float32, and maps the bounds of bytes and images to [0, 1].

    Bounds within [-1, 1] are not changed.

    Args:
        space: One leaf; see `is_bounded`.
        layout: Layout of images, scaled after `ImageLayout.arrange`; None for other leaves.
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
        """Store values ``[*shape]``, as one number if all are equal, which is faster."""
        if (values == values.flat[0]).all():
            setattr(self, name, float(values.flat[0]))
            return
        tensor = torch.from_numpy(values).float()
        arranged = tensor if layout is None else layout.arrange(tensor[None])[0]
        delattr(self, name)
        # Not in checkpoints, since it follows from the space.
        self.register_buffer(name, arranged.contiguous(), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return ``[n, *shape] float32``."""
        # Converting and then scaling in place takes half the time of multiplying integers.
        floats = numbers.float()
        if isinstance(self.low, Tensor) or self.low != 0.0:
            floats = floats - self.low if floats is numbers else floats.sub_(self.low)
        elif isinstance(self.scale, float) and self.scale == 1.0:
            return floats
        return floats * self.scale if floats is numbers else floats.mul_(self.scale)


def leaf_encoder(
    space: spaces.Space[Any], layout: ImageLayout | None, config: ModelConfig
) -> LeafEncoder:
    """Return the encoder of one leaf of an observation space, an image if it has a layout."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return OneHotEncoder(space)
    if layout is not None:
        return ImageEncoder(space, layout, config)  # type: ignore[arg-type]
    return VectorEncoder(space)  # type: ignore[arg-type]


class Body(nn.Module):
    """Encodes every leaf of an observation, joins the features, and passes them through an MLP.

    A single image has no MLP, as is usual: the conv net ends with a linear layer of
    ``conv_features``.

    Attributes:
        num_features: Width of the output.
        gathers: Whether a leaf is wide, so that the first layer adds columns; see `LeafEncoder`.

    Args:
        space: Observation space.
        config: Sizes, activation and initialisation.
        is_critic: Whether ``critic_hidden_sizes``, if given, replaces ``hidden_sizes``.

    Raises:
        ConfigError: A layer does not fit into an image or into memory.
    """

    def __init__(
        self, space: spaces.Space[Any], config: ModelConfig, is_critic: bool = False
    ) -> None:
        super().__init__()
        has_sizes = is_critic and config.critic_hidden_sizes is not None
        key = "critic_hidden_sizes" if has_sizes else "hidden_sizes"
        found = leaves(space)
        layouts = image_layouts(space, config)
        encoders = [leaf_encoder(leaf, layouts[path], config) for path, leaf in found.items()]
        self.encoders = nn.ModuleList(encoders)
        only_image = len(found) == 1 and all(layouts.values())
        hidden_sizes: tuple[int, ...] = () if only_image else getattr(config, key)
        inputs = sum(encoder.num_features for encoder in encoders)
        self.mlp = mlp(inputs, hidden_sizes, config.activation, key)
        self.gathers = bool(hidden_sizes) and any(encoder.is_wide for encoder in encoders)
        self.num_features = hidden_sizes[-1] if hidden_sizes else inputs
        if config.orthogonal_init:
            self.apply(lambda layer: orthogonal(layer, math.sqrt(2)))

    def forward(self, observation: Sequence[Tensor]) -> Tensor:
        """Return features ``[n, num_features]`` of leaves ``[n, *shape]`` in the space's order."""
        if self.gathers:
            return self._gathered(observation)
        encoded = [f(x) for f, x in zip(self.encoders, observation, strict=True)]
        joined = encoded[0] if len(encoded) == 1 else torch.cat(encoded, dim=-1)
        features: Tensor = self.mlp(joined)
        return features

    def _gathered(self, observation: Sequence[Tensor]) -> Tensor:
        """Return the features; the first layer is a sum over leaves."""
        layers: Any = self.mlp
        encoders: Any = self.encoders
        first, *others = layers
        weights = first.weight.t().split([encoder.num_features for encoder in encoders])
        features: Tensor = first.bias
        for encoder, leaf, part in zip(encoders, observation, weights, strict=True):
            features = features + encoder.weighted(leaf, part)
        for layer in others:
            features = layer(features)
        return features
