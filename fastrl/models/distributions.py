"""The distribution over whole actions: one independent part per leaf of the action space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fastrl.models.action_parts import LOG_STD_RANGE, ActionBounds, ActionPart, action_part
from fastrl.spaces import leaves
from fastrl.spec import EnvSpec

_EDGE = 1 - 1e-6
"""As near to a bound, of 1, as a log standard deviation may begin: there a tanh has no inverse."""


class ActionDistribution(nn.Module):
    """Joint distribution over all leaves of an action space, which are independent.

    Owns the learned ``log_std [num_log_std] float32`` of continuous leaves, unless it depends on
    the state. Methods take ``parameters [*, num_parameters]`` of any floating dtype and compute in
    float32; actions are dicts by leaf path, ``[*, *leaf.shape]`` in the dtypes of
    `fastrl.spaces.action_specs`.

    Attributes:
        parts: Distribution of each leaf, by path.
        num_parameters: Columns of ``parameters``: those of all parts side by side.
        noise_size: Columns of the noise that a sample consumes.
        middle_and_half: Of the bounds of log standard deviations: their middle, and half their
            distance; None for `LOG_STD_RANGE`.
        log_std: ``[num_log_std] float32``, learned; empty without continuous leaves, and where
            log standard deviations depend on the state. See `bounded_log_std`.

    Args:
        env_spec: Gives the action space.
        action_bounds: Distribution of ``Box`` leaves: ``clip`` is a plain Gaussian, ``squash`` a
            tanh-Gaussian.
        log_std_init: Initial log standard deviation.
        log_std_bounds: Bounds of log standard deviations; None for `LOG_STD_RANGE`.
        state_std: Whether log standard deviations depend on the state. The ``parameters`` of a
            continuous leaf are then its means, followed by what `bounded` makes them of.

    Raises:
        SpaceError: A leaf has no distribution here, or cannot be squashed.
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
        self.middle_and_half = None
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
        """Return log standard deviations within their bounds, of what is learned.

        Without bounds of the configuration they are clamped to `LOG_STD_RANGE`: the same bit for
        bit inside, and without a gradient outside. Bounds of the configuration are close enough to
        be reached, and a clamp would hold a parameter beyond them for ever. They are approached by
        a tanh instead, of slope 1 in the middle and with a gradient everywhere.
        """
        if self.middle_and_half is None:
            return log_std.clamp(*LOG_STD_RANGE)
        middle, half = self.middle_and_half
        return middle + half * ((log_std - middle) / half).tanh()

    def bounded_log_std(self) -> Tensor:
        """Return ``log_std`` as it is used; see `bounded`."""
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
            device: Where the noise is wanted.
        """
        noise = torch.empty(*shape, self.noise_size, device=device)
        columns = noise.split(self._noise_widths, -1)
        for part, column in zip(self.parts.values(), columns, strict=True):
            if part.normal_noise:
                column.normal_(generator=generator)
            else:
                column.uniform_(generator=generator)
        return noise

    def sample(self, parameters: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the actions that ``noise [*, noise_size]`` selects; not differentiable."""
        columns = noise.split(self._noise_widths, -1)
        return {
            path: part.sample(p, e, s).reshape((*e.shape[:-1], *part.shape))
            for (path, part, p, s), e in zip(self._split(parameters), columns, strict=True)
        }

    def log_prob(self, parameters: Tensor, action: Mapping[str, Tensor]) -> Tensor:
        """Return the log-probability ``[*] float32`` of actions, summed over leaves, in nats."""
        terms = []
        for path, part, columns, log_std in self._split(parameters):
            flat = action[path].reshape(*columns.shape[:-1], part.num_noise)
            terms.append(part.log_prob(columns, flat, log_std))
        return _sum(terms)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Return the entropy ``[*] float32``, summed over leaves, in nats."""
        return _sum([part.entropy(p, s) for _, part, p, s in self._split(parameters)])

    def evaluate(self, parameters: Tensor, action: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return `log_prob` and `entropy`, ``[*] float32`` each, in less time than one by one."""
        terms = []
        for path, part, columns, log_std in self._split(parameters):
            flat = action[path].reshape(*columns.shape[:-1], part.num_noise)
            terms.append(part.evaluate(columns, flat, log_std))
        log_probs, entropies = zip(*terms, strict=True)
        return _sum(log_probs), _sum(entropies)

    def mode(self, parameters: Tensor) -> dict[str, Tensor]:
        """Return the most probable actions."""
        return {
            path: part.mode(columns).reshape((*columns.shape[:-1], *part.shape))
            for path, part, columns, _ in self._split(parameters)
        }

    def _split(self, parameters: Tensor) -> list[tuple[str, ActionPart, Tensor, Tensor]]:
        """Return (path, part, its parameters, its log standard deviations) of each leaf."""
        parameters = parameters.float()
        # Autograd takes longer for a split and a clamp than they do, also where nothing is split.
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
            found.append((path, part, columns, log_std))
        return found


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
