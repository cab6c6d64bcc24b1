"""The distribution over whole actions: one independent part per leaf of the action space."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastrl.models.action_parts import LOG_STD_RANGE, ActionBounds, ActionPart, action_part
from fastrl.spaces import leaves
from fastrl.spec import EnvSpec


class ActionDistribution(nn.Module):
    """Joint distribution over all leaves of an action space, which are independent.

    Owns the learned ``log_std [num_log_std] float32`` of continuous leaves. Methods take
    ``parameters [*, num_parameters]`` of any floating dtype and compute in float32; actions are
    dicts by leaf path, ``[*, *leaf.shape]`` in the dtypes of `fastrl.spaces.action_specs`.

    Attributes:
        parts: Distribution of each leaf, by path.
        num_parameters: Columns of ``parameters``: those of all parts side by side.
        noise_size: Columns of the noise that a sample consumes.
        log_std: ``[num_log_std] float32``, learned; empty without continuous leaves. Used within
            `LOG_STD_RANGE`, and without a gradient outside.

    Args:
        env_spec: Gives the action space.
        action_bounds: Distribution of ``Box`` leaves: ``clip`` is a plain Gaussian, ``squash`` a
            tanh-Gaussian.
        log_std_init: Initial log standard deviation.

    Raises:
        SpaceError: A leaf has no distribution here, or cannot be squashed.
    """

    def __init__(
        self,
        env_spec: EnvSpec,
        action_bounds: ActionBounds = "clip",
        log_std_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.parts = {
            path: action_part(leaf, path, action_bounds)
            for path, leaf in leaves(env_spec.action_space).items()
        }
        parts = self.parts.values()
        self.num_parameters = sum(part.num_parameters for part in parts)
        self.noise_size = sum(part.num_noise for part in parts)
        self._parameter_widths = [part.num_parameters for part in parts]
        self._noise_widths = [part.num_noise for part in parts]
        self._log_std_widths = [part.num_log_std for part in parts]
        self.log_std = nn.Parameter(torch.full((sum(self._log_std_widths),), log_std_init))

    def bounded_log_std(self) -> Tensor:
        """Return ``log_std`` within `LOG_STD_RANGE`, where it is the same bit for bit."""
        return self.log_std.clamp(*LOG_STD_RANGE)

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

    def mode(self, parameters: Tensor) -> dict[str, Tensor]:
        """Return the most probable actions."""
        return {
            path: part.mode(columns).reshape((*columns.shape[:-1], *part.shape))
            for path, part, columns, _ in self._split(parameters)
        }

    def _split(self, parameters: Tensor) -> list[tuple[str, ActionPart, Tensor, Tensor]]:
        """Return (path, part, its parameters, its log standard deviations) of each leaf."""
        columns = parameters.float().split(self._parameter_widths, -1)
        log_stds = self.bounded_log_std().float().split(self._log_std_widths)
        paths, parts = self.parts.keys(), self.parts.values()
        return list(zip(paths, parts, columns, log_stds, strict=True))


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
