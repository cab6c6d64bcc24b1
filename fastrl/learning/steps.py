"""Steps of demonstrations and of rollouts as a discriminator sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastrl.datasets import Demonstrations
from fastrl.learning.experience import Experience
from fastrl.spec import ACTION_MASK, EnvSpec

Leaves = Mapping[str, Tensor]


@dataclass(frozen=True)
class Steps:
    """N steps, and after them a step in the absorbing state for each that terminated.

    Rows are numbered from 0 to N + A, of which the last A are in the absorbing state.

    Attributes:
        observation: Per leaf ``[N, *shape]``.
        action: Per leaf ``[N, *shape]``, as a policy samples it.
        following: Per leaf ``[N, *shape]``: the next observation; None where it is not used.
        terminated: ``[N] bool``.
        mask: ``[N, choices] bool``: valid actions; None without masks.
        absorbing: Whether terminations lead to the absorbing state.
        log_prob: ``[N] float32``: of the actions under a policy with a memory, which depends on the
            steps before; None without.
    """

    observation: Leaves
    action: Leaves
    following: Leaves | None
    terminated: Tensor
    mask: Tensor | None = None
    absorbing: bool = True
    log_prob: Tensor | None = None

    @cached_property
    def sources(self) -> Tensor:
        """``[N + A] int64``: the step that each row is, or that led to the absorbing state."""
        steps = torch.arange(len(self.terminated), device=self.terminated.device)
        return torch.cat([steps, self.terminated.nonzero().flatten()]) if self.absorbing else steps

    def __len__(self) -> int:
        """Return N + A."""
        return len(self.sources)

    def rows(self, index: Tensor, device: torch.device) -> Rows:
        """Return some rows on a device.

        Args:
            index: ``[n] int64``.
            device: Where they go.
        """
        source = self.sources[index]

        def gathered(leaves: Leaves) -> dict[str, Tensor]:
            return {path: leaf[source].to(device) for path, leaf in leaves.items()}

        is_absorbing = index >= len(self.terminated)
        ends = is_absorbing | (self.terminated[source] & self.absorbing)
        return Rows(
            observation=gathered(self.observation),
            action=gathered(self.action),
            following=None if self.following is None else gathered(self.following),
            is_absorbing=is_absorbing.to(device),
            ends=ends.to(device),
            mask=None if self.mask is None else self.mask[source].to(device),
            source=source,
            log_prob=None if self.log_prob is None else self.log_prob[source].to(device),
        )

    def parts(self, size: int, device: torch.device) -> Iterator[Rows]:
        """Yield the N steps in order, without the absorbing state, some rows at a time."""
        for index in torch.arange(len(self.terminated)).split(size):
            yield self.rows(index.to(self.terminated.device), device)


@dataclass(frozen=True)
class Rows:
    """Some rows of `Steps`.

    Attributes:
        observation: Per leaf ``[n, *shape]``; arbitrary in the absorbing state.
        action: The same.
        following: The same, or None.
        is_absorbing: ``[n] bool``: where the step is in the absorbing state.
        ends: ``[n] bool``: where it leads there.
        mask: ``[n, choices] bool`` or None.
        source: ``[n] int64``: see `Steps.sources`; where the steps are.
        log_prob: ``[n] float32`` or None; arbitrary in the absorbing state.
    """

    observation: Leaves
    action: Leaves
    following: Leaves | None
    is_absorbing: Tensor
    ends: Tensor
    mask: Tensor | None
    source: Tensor
    log_prob: Tensor | None


def demonstrated(
    found: Demonstrations, env_spec: EnvSpec, *, absorbing: bool, follows: bool
) -> Steps:
    """Return the steps of demonstrations.

    Args:
        found: The demonstrations.
        env_spec: Their environment.
        absorbing: See `Steps`.
        follows: Whether next observations are used.
    """
    observation, mask = env_spec.split_mask(found.observation)
    following = env_spec.split_mask(found.next_observation)[0] if follows else None
    return Steps(observation, found.action, following, found.terminated, mask, absorbing)


def sampled(experience: Experience, *, absorbing: bool, follows: bool) -> Steps:
    """Return the steps of a rollout, row t · B + b for slot b at time t.

    Args:
        experience: The rollout, with the field ``final_observation`` if ``follows``.
        absorbing: See `Steps`.
        follows: Whether next observations are used.
    """
    ended = experience["terminated"] | experience["truncated"]
    mask, following = experience.fields.get(ACTION_MASK), None
    if follows:
        following = {}
        for path, leaf in experience.observation.items():
            final = experience[f"final_observation/{path}".rstrip("/")]
            at = ended.view(*ended.shape, *[1] * (leaf.ndim - 2))
            following[path] = torch.where(at, final, leaf[1:]).flatten(0, 1)
    return Steps(
        {path: leaf[:-1].flatten(0, 1) for path, leaf in experience.observation.items()},
        {path: leaf.flatten(0, 1) for path, leaf in experience.action.items()},
        following,
        experience["terminated"].flatten(),
        None if mask is None else mask[:-1].flatten(0, 1),
        absorbing,
    )
