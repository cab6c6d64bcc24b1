"""Minibatches cover a rollout exactly once per epoch."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.learning.algorithm import minibatches


@settings(max_examples=100)
@given(st.integers(1, 200), st.integers(1, 250), st.integers(0, 2**32))
def test_every_transition_appears_exactly_once_per_epoch(num_transitions, size, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        parts = list(minibatches(num_transitions, size, generator))
        assert sorted(torch.cat(parts).tolist()) == list(range(num_transitions))
        assert {len(part) for part in parts[:-1]} <= {size}
        assert 1 <= len(parts[-1]) <= size


def test_order_differs_between_epochs_and_follows_from_the_generator():
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.cat(list(minibatches(50, 7, generator))) for _ in range(2))
    again = torch.cat(list(minibatches(50, 7, torch.Generator().manual_seed(3))))
    assert first.tolist() == again.tolist()
    assert first.tolist() != second.tolist()
