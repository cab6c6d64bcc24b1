"""Minibatches cover a rollout exactly once per epoch."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.learning import Batch


def batch_of(num_transitions: int) -> Batch:
    return Batch({}, {}, {"reward": torch.zeros(num_transitions)}, torch.device("cpu"))


@settings(max_examples=100)
@given(st.integers(1, 200), st.integers(1, 250), st.integers(0, 2**32))
def test_every_transition_appears_exactly_once_per_epoch(num_transitions, size, seed):
    batch, generator = batch_of(num_transitions), torch.Generator().manual_seed(seed)
    for _ in range(2):
        parts = list(batch.shuffled(size, generator))
        assert sorted(torch.cat(parts).tolist()) == list(range(num_transitions))
        assert {len(part) for part in parts[:-1]} <= {size}
        assert 1 <= len(parts[-1]) <= size


def test_order_differs_between_epochs_and_follows_from_the_generator():
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.cat(list(batch_of(50).shuffled(7, generator))) for _ in range(2))
    again = torch.cat(list(batch_of(50).shuffled(7, torch.Generator().manual_seed(3))))
    assert first.tolist() == again.tolist()
    assert first.tolist() != second.tolist()
