"""Distributions over actions: one independent part per leaf of the action space.

All randomness is passed as a tensor of noise: the same noise gives the same action in every
inference engine, so that engines are comparable. Parts work on columns of two flat tensors:
the parameters that the actor head produces, and the noise that a sample consumes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from gymnasium import spaces
from torch import Tensor, nn

from fastrl.arguments import instance
from fastrl.errors import SpaceError
from fastrl.spaces import at_path, leaves
from fastrl.spec import EnvSpec

ActionBounds = Literal["clip", "squash"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
LOG_STD_RANGE = (-20.0, 20.0)
"""Bounds of log standard deviations: wide enough for training, and far from an overflow of float32
in a sample, an inverse or a square."""
_IMPOSSIBLE = -1e9
"""Logit of padding: its probability is exactly 0, and 0 times it is 0, not NaN."""
_SHARPNESS = 2.0**40
"""Factor of sharp logits: logits near 1 that differ in their last bit then differ by 65,536."""
_EDGE = 1 - 1e-6
"""Largest initial log standard deviation relative to its bound of 1, where tanh has no inverse."""


class ActionPart(ABC):
    """Distribution of one leaf of the action space, elements independent of each other.

    Attributes:
        shape: Shape of the leaf.
        num_parameters: Columns of the actor head's output.
        num_noise: Columns of noise.
        dtype: Dtype of stored actions.
        num_log_std: Number of learned log standard deviations that are equal in every state, 0
            unless the leaf is continuous.
        state_std: Whether they depend on the state, as the second half of the parameters.
        normal_noise: Whether its noise is standard normal rather than uniform in [0, 1).
        likely_noise: Noise for which a sample is the most probable action after
            `ActionDistribution.sharpen`.
    """

    dtype = torch.float32
    num_log_std = 0
    state_std = False
    normal_noise = False
    likely_noise = 0.0

    def __init__(self, shape: tuple[int, ...], num_parameters: int, num_noise: int) -> None:
        self.shape, self.num_parameters, self.num_noise = shape, num_parameters, num_noise

    @abstractmethod
    def sample(self, parameters: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
        """Return actions ``[*, num_noise]`` in the stored dtype."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, action: Tensor, log_std: Tensor) -> Tensor:
        """Return the log-probability ``[*]`` of actions ``[*, num_noise]``, in nats."""

    @abstractmethod
    def entropy(self, parameters: Tensor, log_std: Tensor) -> Tensor:
        """Return the entropy ``[*]``, in nats."""

    def evaluate(
        self, parameters: Tensor, action: Tensor, log_std: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return `log_prob` and `entropy`; overridden if they share computations."""
        return self.log_prob(parameters, action, log_std), self.entropy(parameters, log_std)

    @abstractmethod
    def mode(self, parameters: Tensor) -> Tensor:
        """Return the most probable actions ``[*, num_noise]``."""


class Categoricals(ActionPart):
    """Independent categoricals: ``Discrete`` and ``MultiDiscrete``. One uniform per element."""

    dtype = torch.int64

    def __init__(self, sizes: list[int], shape: tuple[int, ...]) -> None:
        super().__init__(shape, sum(sizes), len(sizes))
        self.sizes = sizes
        self._grid = (len(sizes), max(sizes))
        self._ragged = len(set(sizes)) > 1
        if self._ragged:
            self._pad(sizes)

    def _pad(self, sizes: list[int]) -> None:
        """Prepare column indices of every element, padded to the largest."""
        starts = np.cumsum([0, *sizes[:-1]])
        column = np.arange(max(sizes))
        inside = column < np.array(sizes)[:, None]
        self._inside = torch.from_numpy(inside)
        self._columns = torch.from_numpy(np.where(inside, starts[:, None] + column, 0))

    def sample(self, parameters: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
        """Invert the cumulative distribution.

        The index is the number of boundaries at or below the noise, the last boundary excepted:
        never out of range, and never a category whose probability is 0.
        """
        boundaries = self._logits(parameters).softmax(-1).cumsum(-1)
        below_one = 1 - 2**-24
        threshold = noise.clamp(max=below_one).unsqueeze(-1) * boundaries[..., -1:]
        return (boundaries[..., :-1] <= threshold).sum(-1)

    def log_prob(self, parameters: Tensor, action: Tensor, log_std: Tensor) -> Tensor:
        """Return the sum of the elements' log-probabilities."""
        return _chosen(self._logits(parameters).log_softmax(-1), action)

    def entropy(self, parameters: Tensor, log_std: Tensor) -> Tensor:
        """Return the sum of the elements' entropies."""
        return self._entropy(self._logits(parameters).log_softmax(-1))

    def evaluate(
        self, parameters: Tensor, action: Tensor, log_std: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return `log_prob` and `entropy`, of one softmax."""
        log_probs = self._logits(parameters).log_softmax(-1)
        return _chosen(log_probs, action), self._entropy(log_probs)

    def mode(self, parameters: Tensor) -> Tensor:
        """Return the first of the most probable categories."""
        return self._logits(parameters).argmax(-1)

    def _logits(self, parameters: Tensor) -> Tensor:
        """Return logits ``[*, elements, largest size]``, padded where sizes differ."""
        if not self._ragged:
            return parameters.reshape(*parameters.shape[:-1], *self._grid)
        columns, inside = (t.to(parameters.device) for t in (self._columns, self._inside))
        return parameters[..., columns].masked_fill(~inside, _IMPOSSIBLE)

    def _entropy(self, log_probs: Tensor) -> Tensor:
        return -(log_probs.exp() * log_probs).sum((-2, -1))


def _chosen(log_probs: Tensor, action: Tensor) -> Tensor:
    return log_probs.gather(-1, action.long().unsqueeze(-1)).sum((-2, -1))


class MaskedCategoricals(Categoricals):
    """Categoricals some of whose options are invalid: their probability is exactly 0.

    Logits of invalid options are -inf, so they have no gradient, and entropy is over the valid
    ones. Without any valid option, the mode and samples are arbitrary, and all else is NaN.

    Args:
        part: The categoricals without a mask.
        mask: ``[*, sum of sizes] bool``: True where valid.
    """

    def __init__(self, part: Categoricals, mask: Tensor) -> None:
        ActionPart.__init__(self, part.shape, part.num_parameters, part.num_noise)
        self.sizes, self._grid, self._ragged = part.sizes, part._grid, part._ragged
        if self._ragged:
            self._columns, self._inside = part._columns, part._inside
            columns, inside = (t.to(mask.device) for t in (self._columns, self._inside))
            self._valid = mask[..., columns] & inside
        else:
            self._valid = mask.reshape(*mask.shape[:-1], *self._grid)

    def sample(self, parameters: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
        """Invert the cumulative distribution; the result is a valid option.

        It is the first valid option whose boundary is above the noise times the highest boundary
        of valid ones. A parallel sum may round boundaries of invalid options up.
        """
        boundaries = self._logits(parameters).softmax(-1).cumsum(-1).where(self._valid, 0.0)
        below_one = 1 - 2**-24
        threshold = noise.clamp(max=below_one).unsqueeze(-1) * boundaries.amax(-1, keepdim=True)
        return (boundaries > threshold).to(torch.uint8).argmax(-1)

    def _logits(self, parameters: Tensor) -> Tensor:
        return super()._logits(parameters).where(self._valid, -math.inf)

    def _entropy(self, log_probs: Tensor) -> Tensor:
        # -inf times a probability of 0 would be NaN, and so would its gradient.
        return -(log_probs.exp() * log_probs.where(self._valid, 0.0)).sum((-2, -1))


class Bernoullis(ActionPart):
    """Independent coins: ``MultiBinary``; the parameters are the logits of 1."""

    dtype = torch.int8
    likely_noise = 0.5

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, math.prod(shape), math.prod(shape))

    def sample(self, parameters: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
        """Return 1 where the noise is below the probability of 1."""
        return (noise < parameters.sigmoid()).to(self.dtype)

    def log_prob(self, parameters: Tensor, action: Tensor, log_std: Tensor) -> Tensor:
        """Return the sum of the coins' log-probabilities."""
        return (action * parameters - F.softplus(parameters)).sum(-1)

    def entropy(self, parameters: Tensor, log_std: Tensor) -> Tensor:
        """Return the sum of the coins' entropies."""
        return (F.softplus(parameters) - parameters * parameters.sigmoid()).sum(-1)

    def mode(self, parameters: Tensor) -> Tensor:
        """Return 1 where it is the more probable side."""
        return (parameters > 0).to(self.dtype)


class Gaussians(ActionPart):
    """Diagonal Gaussian with a learned standard deviation.

    The methods take the means for ``parameters``, and log standard deviations that are ``[K]``, or
    ``[*, K]`` if they depend on the state.

    Args:
        shape: Shape of the leaf, with K elements.
        state_std: Whether log standard deviations depend on the state.
    """

    normal_noise = True

    def __init__(self, shape: tuple[int, ...], state_std: bool = False) -> None:
        size = math.prod(shape)
        super().__init__(shape, 2 * size if state_std else size, size)
        self.num_log_std, self.state_std = 0 if state_std else size, state_std

    def sample(self, parameters: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
        """Return mean + standard deviation · noise."""
        return torch.addcmul(parameters, log_std.exp(), noise)

    def log_prob(self, parameters: Tensor, action: Tensor, log_std: Tensor) -> Tensor:
        """Return the sum of the elements' log-densities."""
        z = (action - parameters) * (-log_std).exp()
        return (-0.5 * z.square() - log_std - _LOG_SQRT_2PI).sum(-1)

    def entropy(self, parameters: Tensor, log_std: Tensor) -> Tensor:
        """Return the sum of the elements' differential entropies."""
        return (log_std + 0.5 + _LOG_SQRT_2PI).sum(-1).expand(parameters.shape[:-1])

    def mode(self, parameters: Tensor) -> Tensor:
        """Return the mean."""
        return parameters


class SquashedGaussians(Gaussians):
    """tanh of a diagonal Gaussian; actions are stored before the tanh.

    log_prob and entropy are those of tanh(u) in [-1, 1] (Haarnoja et al. 2018,
    https://arxiv.org/abs/1812.05905, appendix C); the map from there to the bounds of the space
    would only add a constant. The mode is that of u.

    Entropy has no closed form. It is H(u) + E[log(1 - tanh(u)²)], and the expectation is computed
    by Gauss-Hermite quadrature: without noise, differentiable, and within 1e-3 nats per element
    for standard deviations up to 2.
    """

    _NODES, _WEIGHTS = (torch.from_numpy(x).float() for x in np.polynomial.hermite_e.hermegauss(32))

    def log_prob(self, parameters: Tensor, action: Tensor, log_std: Tensor) -> Tensor:
        """Return the sum of the elements' log-densities after the tanh."""
        gaussian = super().log_prob(parameters, action, log_std)
        return gaussian - log_tanh_slope(action).sum(-1)

    def entropy(self, parameters: Tensor, log_std: Tensor) -> Tensor:
        """Return the sum of the elements' differential entropies after the tanh."""
        nodes, weights = (t.to(parameters.device) for t in (self._NODES, self._WEIGHTS))
        u = parameters.unsqueeze(-1) + log_std.exp().unsqueeze(-1) * nodes
        expected = log_tanh_slope(u) @ (weights / weights.sum())
        return super().entropy(parameters, log_std) + expected.sum(-1)


def log_tanh_slope(u: Tensor) -> Tensor:
    """Return log(1 - tanh(u)²), accurate also where the tanh is 1 in float32."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


def action_part(
    leaf: spaces.Space[Any], path: str, action_bounds: ActionBounds, state_std: bool = False
) -> ActionPart:
    """Return the distribution of a leaf; see `ActionDistribution`."""
    where = at_path(path)
    if isinstance(leaf, spaces.Discrete):
        return Categoricals([int(leaf.n)], ())
    if isinstance(leaf, spaces.MultiDiscrete):
        return Categoricals([int(n) for n in leaf.nvec.flat], tuple(leaf.shape))
    if isinstance(leaf, spaces.MultiBinary):
        return Bernoullis(tuple(leaf.shape))
    if not (isinstance(leaf, spaces.Box) and np.issubdtype(leaf.dtype, np.floating)):
        raise SpaceError(f"no action distribution for {leaf}{where}; use a Box of floats")
    if action_bounds == "clip":
        return Gaussians(tuple(leaf.shape), state_std)
    if not leaf.is_bounded():
        raise SpaceError(
            f"action_bounds 'squash' needs a Box with finite bounds, got {leaf}{where}; use 'clip'"
        )
    return SquashedGaussians(tuple(leaf.shape), state_std)


class ActionDistribution(nn.Module):
    """Joint distribution over all leaves of an action space, which are independent.

    Owns the learned ``log_std [num_log_std] float32`` of continuous leaves, unless it depends on
    the state. Methods take ``parameters [*, num_parameters]`` of any floating dtype and compute in
    float32; actions are dicts by leaf path, ``[*, *leaf.shape]`` in the dtypes of
    `fastrl.spaces.action_specs`. ``mask`` marks the valid options, ``[*, choices] bool``; see
    `EnvSpec.choices`.

    Attributes:
        parts: Distribution of each leaf, by path.
        num_parameters: Columns of ``parameters``, all parts side by side.
        noise_size: Columns of the noise that a sample consumes.
        middle_and_half: Middle of the bounds of log standard deviations, and half their
            distance; None for `LOG_STD_RANGE`.
        is_sharp: Whether `sharpen` was called: noise then selects the most probable actions.
        log_std: ``[num_log_std] float32``, learned; empty without continuous leaves, or if
            log standard deviations depend on the state. See `bounded_log_std`.

    Args:
        env_spec: Gives the action space.
        action_bounds: Distribution of ``Box`` leaves: ``clip`` is a plain Gaussian, ``squash`` a
            tanh-Gaussian.
        log_std_init: Initial log standard deviation.
        log_std_bounds: Bounds of log standard deviations; None for `LOG_STD_RANGE`.
        state_std: Whether log standard deviations depend on the state. Then the ``parameters`` of a
            continuous leaf are its means, followed by the input of `bounded`.

    Raises:
        SpaceError: A leaf is not supported, or cannot be squashed.
    """

    def __init__(
        self,
        env_spec: EnvSpec,
        action_bounds: ActionBounds = "clip",
        log_std_init: float = 0.0,
        *,
        log_std_bounds: tuple[float, float] | None = None,
        state_std: bool = False,
    ) -> None:
        super().__init__()
        instance("env_spec", env_spec, EnvSpec)
        self.parts = {
            path: action_part(leaf, path, action_bounds, state_std)
            for path, leaf in leaves(env_spec.action_space).items()
        }
        parts = self.parts.values()
        self.num_parameters = sum(part.num_parameters for part in parts)
        self.noise_size = sum(part.num_noise for part in parts)
        self._parameter_widths = [part.num_parameters for part in parts]
        self._noise_widths = [part.num_noise for part in parts]
        self._log_std_widths = [part.num_log_std for part in parts]
        self._mask_widths = [sum(part.sizes) for part in parts if isinstance(part, Categoricals)]
        self.middle_and_half, self.is_sharp = None, False
        if log_std_bounds is not None:
            low, high = log_std_bounds
            self.middle_and_half = middle, half = (low + high) / 2, (high - low) / 2
            inside = max(-_EDGE, min(_EDGE, (log_std_init - middle) / half))
            log_std_init = middle + half * math.atanh(inside)
        self._log_std_init = log_std_init
        self.log_std = nn.Parameter(torch.full((sum(self._log_std_widths),), log_std_init))

    def start_log_std(self, bias: Tensor) -> None:
        """Set the biases that give every state the initial log standard deviations, in place.

        Args:
            bias: ``[num_parameters]`` of the layer that computes ``parameters``.
        """
        columns = bias.detach().split(self._parameter_widths)
        for part, column in zip(self.parts.values(), columns, strict=True):
            if part.state_std:
                column[part.num_noise :] = self._log_std_init

    def bounded(self, log_std: Tensor) -> Tensor:
        """Return learned log standard deviations within their bounds.

        Without configured bounds they are clamped to `LOG_STD_RANGE`, which has no gradient
        outside. Configured bounds are narrow enough to be reached, and a clamp would hold a
        parameter beyond them permanently, so a tanh is used for them, with slope 1 in the
        middle and a gradient everywhere.
        """
        if self.middle_and_half is None:
            return log_std.clamp(*LOG_STD_RANGE)
        middle, half = self.middle_and_half
        return middle + half * ((log_std - middle) / half).tanh()

    def bounded_log_std(self) -> Tensor:
        """Return ``log_std`` within its bounds; see `bounded`."""
        return self.bounded(self.log_std)

    def draw_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return noise ``[*shape, noise_size] float32``: uniform and standard normal columns.

        Args:
            shape: Leading axes.
            generator: Source of randomness, on ``device``; torch's default if None.
            device: Device of the noise.
        """
        noise = torch.empty(*shape, self.noise_size, device=device)
        columns = noise.split(self._noise_widths, -1)
        for part, column in zip(self.parts.values(), columns, strict=True):
            if self.is_sharp:
                column.fill_(part.likely_noise)
            elif part.normal_noise:
                column.normal_(generator=generator)
            else:
                column.uniform_(generator=generator)
        return noise

    @torch.no_grad()
    def sharpen(self, head: nn.Linear) -> bool:
        """Turn samples into the most probable actions, in place; return whether that is possible.

        All engines then play the most probable action as fast as a sample. Logits are scaled by a
        power of two, which rounds nothing, so that only the largest has a probability. It is
        impossible for several categoricals of different sizes, whose padding has a logit.

        Args:
            head: The layer that computes ``parameters``.
        """
        parts = [part for part in self.parts.values() if not isinstance(part, Gaussians)]
        if any(isinstance(part, Categoricals) and len({*part.sizes}) > 1 for part in parts):
            return False
        columns = zip(
            head.weight.split(self._parameter_widths),
            head.bias.split(self._parameter_widths),
            strict=True,
        )
        for part, (weight, bias) in zip(self.parts.values(), columns, strict=True):
            if not isinstance(part, Gaussians):
                weight *= _SHARPNESS
                bias *= _SHARPNESS
        self.is_sharp = True
        return True

    def sample(
        self, parameters: Tensor, noise: Tensor, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the actions that ``noise [*, noise_size]`` selects; not differentiable."""
        columns = noise.split(self._noise_widths, -1)
        return {
            path: part.sample(p, e, s).reshape((*e.shape[:-1], *part.shape))
            for (path, part, p, s), e in zip(self._split(parameters, mask), columns, strict=True)
        }

    def log_prob(
        self, parameters: Tensor, action: Mapping[str, Tensor], mask: Tensor | None = None
    ) -> Tensor:
        """Return the log-probability ``[*] float32`` of actions, summed over leaves, in nats."""
        terms = []
        for path, part, columns, log_std in self._split(parameters, mask):
            flat = action[path].reshape(*columns.shape[:-1], part.num_noise)
            terms.append(part.log_prob(columns, flat, log_std))
        return sum(terms[1:], terms[0])

    def entropy(self, parameters: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the entropy ``[*] float32``, summed over leaves, in nats."""
        terms = [part.entropy(p, s) for _, part, p, s in self._split(parameters, mask)]
        return sum(terms[1:], terms[0])

    def evaluate(
        self, parameters: Tensor, action: Mapping[str, Tensor], mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return `log_prob` and `entropy`, ``[*] float32`` each, faster than one by one."""
        terms = []
        for path, part, columns, log_std in self._split(parameters, mask):
            flat = action[path].reshape(*columns.shape[:-1], part.num_noise)
            terms.append(part.evaluate(columns, flat, log_std))
        log_probs, entropies = zip(*terms, strict=True)
        return sum(log_probs[1:], log_probs[0]), sum(entropies[1:], entropies[0])

    def mode(self, parameters: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return the most probable actions."""
        return {
            path: part.mode(columns).reshape((*columns.shape[:-1], *part.shape))
            for path, part, columns, _ in self._split(parameters, mask)
        }

    def _split(
        self, parameters: Tensor, mask: Tensor | None
    ) -> list[tuple[str, ActionPart, Tensor, Tensor]]:
        """Return (path, part, its parameters, its log standard deviations) of each leaf."""
        masks = iter(()) if mask is None else iter(mask.split(self._mask_widths, -1))
        parameters = parameters.float()
        # Skipped if possible: autograd adds more time to a split and a clamp than they take.
        is_one = len(self.parts) == 1
        all_columns = [parameters] if is_one else parameters.split(self._parameter_widths, -1)
        log_std = self.bounded_log_std().float() if len(self.log_std) else self.log_std
        log_stds = [log_std] if is_one else log_std.split(self._log_std_widths)
        found = []
        for (path, part), columns, log_std in zip(
            self.parts.items(), all_columns, log_stds, strict=True
        ):
            if part.state_std:
                columns, unbounded = columns.chunk(2, -1)
                log_std = self.bounded(unbounded)
            if mask is not None and isinstance(part, Categoricals):
                part = MaskedCategoricals(part, next(masks))
            found.append((path, part, columns, log_std))
        return found
