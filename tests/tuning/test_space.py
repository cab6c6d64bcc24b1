"""The space of candidates: what is allowed, what lies next to what, where to begin."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.tuning import Candidate, Space

SPACES = st.builds(
    Space,
    cores=st.integers(1, 3),
    max_envs_per_worker=st.sampled_from([8, 64]),
    batch=st.sampled_from([None, (8, 8), (96, 96), (10, 60), (7, 7)]),
    devices=st.sampled_from([("cpu",), ("cpu", "cuda:0"), ("cpu", "cuda:0", "cuda:0,cuda:1")]),
    max_torch_threads=st.sampled_from([1, 4]),
    engines=st.sampled_from([("auto",), ("auto", "bfloat16")]),
)


@settings(max_examples=10)
@given(SPACES, st.data())
def test_whatever_is_proposed_is_allowed_and_makes_sense(space, data):
    found = list(space.all())
    start = Candidate(16, space.cores)
    if found:
        start = data.draw(st.sampled_from(found))
    for c in [*space.neighbours(start), *space.seeds(start)]:
        assert space.contains(c)
        assert c != start
        assert c.num_model_workers <= c.num_env_workers <= 2 * space.cores
        assert c.envs_per_worker % c.groups == 0
        low, high = space.batch or (1, 10**9)
        assert low <= c.num_envs <= high
        assert c.num_model_workers or c.device == "cpu"


@settings(max_examples=5)
@given(SPACES.filter(lambda space: space.cores < 3 and space.max_envs_per_worker == 8))
def test_every_candidate_can_be_reached_step_by_step(space):
    found = set(space.all())
    if not found:
        return
    # With B fixed to a number of few divisors there may be no way but through seeds.
    reached = {space.nearest(Candidate(16, space.cores)), *space.seeds(Candidate(16, space.cores))}
    edge = list(reached)
    while edge:
        for neighbour in space.neighbours(edge.pop()):
            if neighbour not in reached:
                reached.add(neighbour)
                edge.append(neighbour)
    assert found <= reached


@settings(max_examples=10)
@given(SPACES)
def test_nearest_is_allowed_unless_nothing_is(space):
    found = set(space.all())
    nearest = space.nearest(Candidate(48, 3, 2, 2, "cuda:0"))
    assert space.contains(nearest) or not found


def test_a_fixed_batch_leaves_only_its_divisors():
    space = Space(2, batch=(12, 12))
    assert {(c.envs_per_worker, c.num_env_workers) for c in space.all()} == {
        (12, 1),
        (6, 2),
        (4, 3),
        (3, 4),
    }


def test_a_batch_may_be_smaller_than_the_number_of_cores():
    space = Space(8, batch=(7, 7))
    default = space.nearest(Candidate(16, 8))
    assert all(c.num_envs == 7 for c in [default, *space.seeds(default)])


def test_a_large_machine_has_no_more_candidates_than_can_be_looked_through():
    found = set(Space(64).all())
    assert len(found) < 20_000
    workers = {c.num_env_workers for c in found}
    assert workers >= {*range(1, 17), 63, 64, 128}
    assert {c.num_model_workers for c in found if c.num_env_workers == 64} >= {*range(17), 32, 64}
    assert {c.num_env_workers for c in Space(64, batch=(84, 84)).all()} >= {21, 28, 42, 84}


def test_what_does_not_fit_into_memory_is_left_out():
    space = Space(2, fits=lambda c: c.num_envs <= 64)
    assert max(c.num_envs for c in space.all()) == 64
    assert Candidate(64, 2) not in space.neighbours(Candidate(32, 2))


@pytest.mark.parametrize(
    ("candidate", "label"),
    [
        (Candidate(64, 2), "n=64 N=2 M=0"),
        (Candidate(64, 2, 1, 2, "cuda:0"), "n=64 N=2 M=1 groups=2 cuda:0"),
        (
            Candidate(8, 2, engine="bfloat16", torch_threads=2),
            "n=8 N=2 M=0 bfloat16 threads=2",
        ),
    ],
)
def test_labels_say_what_is_unusual(candidate, label):
    assert candidate.label == label
    assert Candidate(**candidate.to_dict()) == candidate
