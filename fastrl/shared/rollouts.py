"""Rollouts as views of shared memory, their episodes, and rollouts of several samplers joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastrl.shared.table import NUM_BANKS, Bank, FieldAccess, Layout, Schema, Table


@dataclass(frozen=True)
class Episodes:
    """The episodes that ended within one rollout, in order of their end.

    Attributes:
        returns: ``[E]`` float64: undiscounted sum of rewards.
        lengths: ``[E]`` int64: lengths in environment steps.
        end_step: ``[E]`` int64: t of the last step.
        slot: ``[E]`` int64: column of the rollout.
        info: By name ``[E]`` float32: the values that `EnvSpec.episode_info` names.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    end_step: NDArray[np.int64]
    slot: NDArray[np.int64]
    info: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of episodes that ended."""
        return len(self.returns)

    @classmethod
    def joined(cls, parts: Sequence[Episodes], starts: Sequence[int]) -> Episodes:
        """Return the episodes of rollouts that are joined side by side.

        Args:
            parts: Episodes of each rollout.
            starts: The column at which each rollout begins.
        """
        slots = [part.slot + start for part, start in zip(parts, starts, strict=True)]
        slot = np.concatenate(slots)
        end_step = np.concatenate([part.end_step for part in parts])
        order = np.lexsort((slot, end_step))
        return cls(
            returns=np.concatenate([part.returns for part in parts])[order],
            lengths=np.concatenate([part.lengths for part in parts])[order],
            end_step=end_step[order],
            slot=slot[order],
            info={
                name: np.concatenate([part.info[name] for part in parts])[order]
                for name in parts[0].info
            },
        )


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Rollout(FieldAccess):
    """T steps of B environments, as views of shared memory.

    In synchronous mode the views are valid until the second `Sampler.collect` from now, in
    asynchronous mode until the next one: clone tensors that you keep.

    Every field is an attribute and an item of ``fields``. Those of the default policy are listed
    here; another policy may return others, see `fastrl.models.PolicyModel`.
    ``dataclasses.replace(rollout, reward=…, bonus=…)`` returns a rollout with replaced and new
    fields.

    Attributes:
        fields: By name, in the order of the schema: tensors, or nested like a space.
        observation: Nested like the space; leaves ``[T+1, B, *shape]``.
        action: Nested like the space; leaves ``[T, B, *shape]``, as the policy sampled them
            (before clipping or squashing, discrete ones counted from 0).
        reward: ``[T, B]`` float32.
        terminated: ``[T, B]`` bool.
        truncated: ``[T, B]`` bool; never set together with ``terminated``.
        log_prob: ``[T, B]`` float32.
        value: ``[T+1, B]`` float32.
        final_value: ``[T, B]`` float32: V(final observation) where truncated, else 0.
        policy_version: ``[T, B]`` int64: version of the weights that chose the action.
        policy_state: ``[K+1, B, S]`` float32: the state of a policy with a memory before every
            L-th step, with K = T / L, reset where an episode begins there; with row K the next
            rollout begins. Only if the policy has a memory.
        final_observation: Nested like the space; leaves ``[T, B, *shape]``: the last observation
            of the episode that ended in a step; other rows hold arbitrary numbers. Only if the
            algorithm requests it.
        episodes: The episodes that ended in this rollout.
        index: 0 for the first rollout of a sampler.
        slots: ``[B]`` int64: slot in the run of each column. None: column b is slot b. Only
            rollouts of a cluster, whose machines may change, and of ``sampler.wait`` have it.
        counted_steps: Number of environment steps that the rollout adds to a run; None for T · B.
            It differs if rows are learnt from again, or only evaluated.
        restarted: ``[B]`` bool: the first step begins an episode although no step of the previous
            rollout ended one. True in the first rollout of a sampler, unless it resumed the
            episodes of another, and where a worker was replaced between two rollouts. None means
            False everywhere.
    """

    if TYPE_CHECKING:
        observation: Any
        action: Any
        reward: Tensor
        terminated: Tensor
        truncated: Tensor
        log_prob: Tensor
        value: Tensor
        final_value: Tensor
        policy_version: Tensor
        policy_state: Tensor
        final_observation: Any

    fields: Mapping[str, Any]
    episodes: Episodes
    index: int
    restarted: Tensor | None
    slots: Tensor | None
    counted_steps: int | None

    def __init__(
        self,
        fields: Mapping[str, Any] | None = None,
        *,
        episodes: Episodes,
        index: int,
        restarted: Tensor | None = None,
        slots: Tensor | None = None,
        counted_steps: int | None = None,
        **others: Any,
    ) -> None:
        """Hold the fields of ``fields`` and ``others``; the latter replace those of the same name.

        Args:
            fields: By name.
            episodes: See the attributes.
            index: See the attributes.
            restarted: See the attributes.
            slots: See the attributes.
            counted_steps: See the attributes.
            **others: Further fields.
        """
        found = {**(fields or {}), **others}
        vars(self).update(
            fields=found,
            episodes=episodes,
            index=index,
            restarted=restarted,
            slots=slots,
            counted_steps=counted_steps,
        )

    @property
    def num_steps(self) -> int:
        """Number of environment steps of the rollout: ``counted_steps``, or T · B."""
        return self.reward.numel() if self.counted_steps is None else self.counted_steps

    def __repr__(self) -> str:
        """Return the sizes in one line."""
        length, slots = self.reward.shape
        ended = len(self.episodes)
        return f"Rollout(index={self.index}, T={length}, B={slots}, {ended} episodes ended)"


def rollout_fields(schema: Schema, bank: Bank) -> dict[str, Any]:
    """Return the fields of a bank that are part of a `Rollout`, nested like their spaces."""
    return {
        field.name: field.nested(bank.fields[field.name]) for field in schema if field.in_rollout
    }


class EpisodeTracker:
    """Turns sealed banks into rollouts and tracks episodes across their boundaries."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._returns = np.zeros(table.num_slots)
        self._lengths = np.zeros(table.num_slots, np.int64)
        self._ended = np.zeros(table.num_slots, np.int64)
        self._sealed = 0
        self._cuts: dict[int, list[slice]] = {}
        self._resumed = False

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Return the state of unfinished episodes after the latest rollout, ``[B]`` each."""
        return {"returns": self._returns, "lengths": self._lengths, "ended": self._ended}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Resume unfinished episodes, before the first rollout."""
        for name, own in self.get_state().items():
            own[:] = state[name]
        self._resumed = True

    def restart(self, slots: slice, rollout: int, done: int) -> None:
        """Record that new environments use these slots after ``done`` steps of a rollout.

        In the middle of a rollout this truncates the previous episodes. Episodes that end
        between two rollouts have no last transition, so `Rollout.restarted` marks their slots and
        `Rollout.episodes` does not contain them.
        """
        if done in (0, self._table.rollout_length):
            self._cuts.setdefault(rollout + (done > 0), []).append(slots)
            passed = self._unsealed(slots, rollout, done)
        else:
            passed = self._unsealed(slots, rollout, done - 1) + 1
        self._ended[slots] = -passed

    def episodes_since_restart(self, slots: slice, rollout: int, done: int) -> NDArray[np.int64]:
        """Return the number of episodes of each environment since its start, ``[slots]``."""
        ended: NDArray[np.int64] = self._ended[slots] + self._unsealed(slots, rollout, done)
        return ended

    def _unsealed(self, slots: slice, rollout: int, done: int) -> NDArray[np.int64]:
        """Return the number of episodes since the last sealed rollout."""
        ended = np.zeros(slots.stop - slots.start, np.int64)
        for index in range(self._sealed, rollout + 1):
            bank = self._table.banks[index % NUM_BANKS]
            flags = bank.terminated.numpy()[:, slots] | bank.truncated.numpy()[:, slots]
            ended += flags[: done if index == rollout else None].sum(axis=0)
        return ended

    def seal(self, index: int) -> Rollout:
        """Return rollout ``index``, whose bank is complete; call once per rollout, in order."""
        bank = self._table.banks[index % NUM_BANKS]
        begins = index == 0 and not self._resumed
        restarted = torch.full((self._table.num_slots,), begins)
        for lost in self._cuts.pop(index, ()):
            self._returns[lost], self._lengths[lost] = 0.0, 0
            restarted[lost] = True
        self._sealed = index + 1
        return Rollout(
            rollout_fields(self._table.schema, bank),
            episodes=self._episodes(bank),
            index=index,
            restarted=restarted,
        )

    def _episodes(self, bank: Bank) -> Episodes:
        """Sum rewards up to each end and carry unfinished episodes over to the next rollout."""
        rewards = bank.reward.numpy().cumsum(axis=0, dtype=np.float64)
        rewards += self._returns
        steps, slots = np.nonzero(bank.terminated.numpy() | bank.truncated.numpy())
        self._ended += np.bincount(slots, minlength=len(self._ended))
        order = np.lexsort((steps, slots))
        ends, columns = steps[order], slots[order]
        returns, lengths = rewards[ends, columns], ends + 1 + self._lengths[columns]

        self._returns, self._lengths = rewards[-1], self._lengths + len(rewards)
        is_last = np.append(columns[1:] != columns[:-1], True)[: len(columns)]
        self._returns[columns[is_last]] -= returns[is_last]
        self._lengths[columns[is_last]] -= lengths[is_last]

        follows = ~np.append(True, is_last[:-1])[: len(columns)]
        returns[follows], lengths[follows] = (
            totals[follows] - totals[np.flatnonzero(follows) - 1] for totals in (returns, lengths)
        )
        by_time = np.lexsort((columns, ends))
        ends, columns = ends[by_time], columns[by_time]
        info = self._episode_info(bank, ends, columns)
        return Episodes(returns[by_time], lengths[by_time], ends, columns, info)

    def _episode_info(
        self, bank: Bank, ends: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float32]]:
        names = self._table.schema.env_spec.episode_info
        if not names:
            return {}
        figures = bank.episode_info.numpy()[ends, columns]
        return {name: figures[:, index] for index, name in enumerate(names)}


@dataclass(frozen=True)
class SentRollout:
    """A rollout of one sampler, sent to a learner that joins several.

    Attributes:
        memory: ``[num_bytes] uint8``: a bank, see `Layout`.
        episodes: See `Rollout`.
        restarted: See `Rollout`.
    """

    memory: NDArray[np.uint8]
    episodes: Episodes
    restarted: NDArray[np.bool_]


class JoinedRollouts:
    """Copies rollouts of several samplers into the memory of the learner, two banks in turn.

    Args:
        schema: The fields.
        rollout_length: T.
    """

    def __init__(self, schema: Schema, rollout_length: int) -> None:
        self._layout_of = cache(partial(Layout, schema, rollout_length))
        # Of each bank: its memory, and the fields of a `Rollout`.
        self._banks: dict[int, tuple[NDArray[np.uint8], dict[str, Any]]] = {}

    def join(self, index: int, parts: Sequence[tuple[SentRollout, range]]) -> Rollout:
        """Return one rollout.

        Args:
            index: See `Rollout`.
            parts: The rollouts, each with its slots of the run.
        """
        sizes = [len(slots) for _, slots in parts]
        layout, found = self._layout_of(sum(sizes)), self._banks.get(index % NUM_BANKS)
        if found is None or found[1]["reward"].shape[1] != sum(sizes):
            memory = np.empty(layout.num_bytes, np.uint8)
            found = memory, rollout_fields(layout.schema, layout.bank(memory))
            self._banks[index % NUM_BANKS] = found
        memory, fields = found
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        banks = [
            self._layout_of(size).rows(sent.memory)
            for size, (sent, _) in zip(sizes, parts, strict=True)
        ]
        for target, *sources in zip(layout.rows(memory), *banks, strict=True):
            for start, source in zip(starts, sources, strict=True):
                target[:, start : start + source.shape[1]] = source
        return Rollout(
            fields,
            episodes=Episodes.joined([sent.episodes for sent, _ in parts], starts),
            index=index,
            restarted=torch.from_numpy(np.concatenate([sent.restarted for sent, _ in parts])),
            slots=torch.cat([torch.arange(slots.start, slots.stop) for _, slots in parts]),
        )
