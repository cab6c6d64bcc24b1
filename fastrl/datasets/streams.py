"""Arranges the steps of episodes as a rollout; for a policy with a memory end to end in slots."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastrl.datasets.demonstrations import Demonstrations
from fastrl.spaces import unflatten

PADDING = "padding"
"""Field ``[T, B] bool`` of a rollout of demonstrations: repeated rows, which give all streams one
length; the loss ignores them."""
_MOST_STREAMS = 16
"""Most slots of a rollout; states before sequences are computed for all of them at once."""
_LEAST_FILLED = 0.8
"""Least share of steps among a rollout's rows, unless it has one slot."""


def rollout_fields(
    demonstrations: Demonstrations, sequence_length: int | None = None
) -> dict[str, Any]:
    """Return all steps as fields of a rollout, those of ``demonstrations.fields`` among them.

    Args:
        demonstrations: N steps.
        sequence_length: None for one slot with the steps in order, T = N. Otherwise each of
            B slots is a stream of whole episodes, and L divides T; the field
            `PADDING` marks rows that do not continue the previous episode.
    """
    spec = demonstrations.env_spec
    if sequence_length is None:
        rows = torch.arange(len(demonstrations))[:, None]
    else:
        rows, is_padding = _streams(demonstrations.lengths, sequence_length)
    last, observed = demonstrations.episode[rows[-1]], {}
    for path, leaf in demonstrations.observation.items():
        observed[path] = leaf.new_empty((len(rows) + 1, *rows.shape[1:], *leaf.shape[1:]))
        observed[path][:-1] = _gathered(leaf, rows)
        observed[path][-1] = demonstrations.final_observation[path][last]
    acted = {path: _gathered(leaf, rows) for path, leaf in demonstrations.action.items()}
    fields = {
        "observation": unflatten(spec.observation_space, observed),
        "action": unflatten(spec.action_space, acted),
        "reward": _gathered(demonstrations.reward, rows),
        "terminated": _gathered(demonstrations.terminated, rows),
        "truncated": _gathered(demonstrations.truncated, rows),
        **{name: _gathered(field, rows) for name, field in demonstrations.fields.items()},
    }
    return fields if sequence_length is None else {**fields, PADDING: is_padding}


def joined_episodes(parts: Demonstrations, episode: Tensor) -> Demonstrations:
    """Join the parts of each episode; return the same steps, without further fields.

    Args:
        parts: Parts of episodes, in order of time for each episode.
        episode: ``[N] int64``: number of each step's episode.
    """
    order = episode.argsort(stable=True)
    lengths = episode[order].unique_consecutive(return_counts=True)[1]
    last = parts.episode[order[lengths.cumsum(0) - 1]]
    return replace(
        parts,
        observation={path: leaf[order] for path, leaf in parts.observation.items()},
        action={path: leaf[order] for path, leaf in parts.action.items()},
        reward=parts.reward[order],
        terminated=parts.terminated[order],
        final_observation={path: leaf[last] for path, leaf in parts.final_observation.items()},
        lengths=lengths,
        fields={},
    )


def _gathered(leaf: Tensor, rows: Tensor) -> Tensor:
    """Return rows ``[T, B]`` of ``leaf [N, *shape]``."""
    gathered: Tensor = leaf.index_select(0, rows.flatten()).unflatten(0, rows.shape)
    return gathered


def _streams(lengths: Tensor, sequence_length: int) -> tuple[Tensor, Tensor]:
    """Place episodes end to end in streams of similar length; use as many as are well filled.

    Args:
        lengths: ``[E] int64``: steps of each episode.
        sequence_length: L, which divides T.

    Returns:
        ``[T, B] int64``: the row of each step, and ``[T, B] bool``: the padding after the end of a
        stream, which repeats its beginning.
    """
    sizes, ends = lengths.tolist(), lengths.cumsum(0).tolist()
    for slots in range(min(_MOST_STREAMS, len(sizes)), 0, -1):
        streams = _balanced(sizes, slots)
        longest = max(sum(sizes[number] for number in stream) for stream in streams)
        length = -(-longest // sequence_length) * sequence_length
        if ends[-1] >= _LEAST_FILLED * length * slots:
            break
    times, columns, filled = torch.arange(length), [], []
    for stream in streams:
        parts = [torch.arange(ends[number] - sizes[number], ends[number]) for number in stream]
        column = torch.cat(parts)
        columns.append(column[times % len(column)])
        filled.append(times < len(column))
    return torch.stack(columns, 1), ~torch.stack(filled, 1)


def _balanced(sizes: Sequence[int], slots: int) -> list[list[int]]:
    """Return the episodes of each slot: the longest first, each in the slot with fewest steps."""
    heap: list[tuple[int, int]] = [(0, slot) for slot in range(slots)]
    streams: list[list[int]] = [[] for _ in range(slots)]
    for number in sorted(range(len(sizes)), key=lambda each: -sizes[each]):
        filled, slot = heap[0]
        streams[slot].append(number)
        heapq.heapreplace(heap, (filled + sizes[number], slot))
    return streams
