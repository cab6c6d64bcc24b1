"""The bottleneck is where the time goes."""

import pytest

from fastrl.tuning import Candidate
from fastrl.tuning.explain import find_bottleneck


def shares(stepping=0.0, inference=0.0, waiting=0.0, hand_over=0.0):
    return {
        "stepping": stepping,
        "inference": inference,
        "waiting": waiting,
        "hand-over": hand_over,
    }


@pytest.mark.parametrize(
    ("candidate", "notes", "name"),
    [
        (Candidate(8, 2), {"shares": {"env-worker": shares(0.7, 0.3)}}, "env stepping"),
        (Candidate(8, 2), {"shares": {"env-worker": shares(0.3, 0.6, 0, 0.1)}}, "inference"),
        (Candidate(1, 2), {"shares": {"env-worker": shares(0.2, 0.3, 0, 0.5)}}, "hand-over"),
        (
            Candidate(8, 2),
            {"shares": {"env-worker": shares(0.7, 0.3)}, "learner_share": 0.8},
            "learner",
        ),
        (
            Candidate(8, 2, 1),
            {"shares": {"env-worker": shares(0.2, 0, 0.8), "model-worker": shares(0, 0.9, 0.1)}},
            "inference",
        ),
        (
            Candidate(8, 2, 1),
            {"shares": {"env-worker": shares(0.2, 0, 0.8), "model-worker": shares(0, 0.1, 0.9)}},
            "hand-over",
        ),
    ],
)
def test_bottleneck(candidate, notes, name):
    found = find_bottleneck(candidate, notes)
    assert found.name == name
    assert 0 < found.share <= 1
    assert name in str(found)
    assert found.advice in str(found)


def test_nothing_is_said_where_nothing_was_seen():
    assert find_bottleneck(Candidate(8, 2), {}) is None
