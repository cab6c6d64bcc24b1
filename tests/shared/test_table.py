"""The table: one writer per field, no overlap, and poison that shows."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.errors import FastrlError
from fastrl.shared.table import NUM_BANKS, Layout, Schema, Table
from fastrl.spec import EnvSpec, Topology

SPEC = EnvSpec(
    "test",
    spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Box(0, 255, (4, 4, 3), np.uint8)}),
    spaces.MultiDiscrete([2, 3]),
    episode_info=("is_success", "distance"),
)
WRITTEN = [
    "observation",
    "reward",
    "terminated",
    "truncated",
    "action",
    "log_prob",
    "value",
    "final_value",
    "policy_version",
]


def tensors(table: Table):
    """Every tensor of the table."""
    for bank in table.banks:
        for value in bank.fields.values():
            yield from value.values() if isinstance(value, dict) else [value]


def test_no_two_fields_share_a_byte():
    table = Table(Schema(SPEC), 3, 5)
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors(table))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert len(spans) == NUM_BANKS * Schema(SPEC).num_tensors


@settings(max_examples=100)
@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(0, 9),
    st.integers(1, 3),
)
def test_slots_are_partitioned_among_groups_and_among_policies(n, workers, models, groups):
    topology = Topology(n * groups, workers, min(models, workers), groups)
    owners = np.zeros(topology.num_envs, int)
    for worker, group in topology.all_groups():
        owners[topology.slots(worker, group)] += 1
    assert (owners == 1).all()

    owners = np.zeros(topology.num_envs, int)
    for policy in range(topology.num_policies):
        served = np.zeros(topology.num_envs, int)
        for group in range(groups):
            owners[topology.group_slots(policy, group)] += 1
            for worker in topology.env_workers_of(policy):
                assert topology.policy_of(worker) == policy
                served[topology.slots(worker, group)] += 1
        assert (served[topology.policy_slots(policy)] == 1).all()
        assert served.sum() == len(topology.env_workers_of(policy)) * n * groups
    assert (owners == 1).all()


def test_env_indices_do_not_depend_on_groups():
    for groups in (1, 2, 4):
        topology = Topology(8, 3, 1, groups)
        assert [
            i
            for worker in range(3)
            for group in range(groups)
            for i in topology.env_index(worker, group)
        ] == list(range(24))


@pytest.mark.parametrize("name", ["reward", "log_prob", "value", "policy_version", "action"])
def test_poison_shows_where_a_field_was_not_written(name):
    table = Table(Schema(SPEC), 3, 5)
    table.poison(1)
    for entry in WRITTEN:
        value = getattr(table.banks[1], entry)
        for tensor in value.values() if isinstance(value, dict) else [value]:
            tensor.zero_()
    table.check_no_poison(1)
    victim = getattr(table.banks[1], name)
    table.poison(1)
    kept = victim[""] if isinstance(victim, dict) else victim
    poison = kept[1, 4].clone()
    table.banks[1].observation["a"].zero_()
    for entry in WRITTEN:
        value = getattr(table.banks[1], entry)
        for tensor in value.values() if isinstance(value, dict) else [value]:
            tensor.zero_()
    kept[1, 4] = poison
    with pytest.raises(FastrlError, match=rf"'{name}' was never written at \(1, 4"):
        table.check_no_poison(1)


def test_memory_that_is_not_there_is_one_clear_line():
    huge = EnvSpec("test", spaces.Box(0, 1, (1024, 1024)), spaces.Discrete(2))
    told = r"not enough memory for [\d,]+ MiB.* MiB are free; .*rollout_length"
    with pytest.raises(FastrlError, match=told):
        Table(Schema(huge), 2**20, 1024)


def test_float64_observations_are_stored_as_float32():
    spec = EnvSpec("test", spaces.Box(-1, 1, (2,), np.float64), spaces.Discrete(2))
    table = Table(Schema(spec), 2, 2)
    assert table.banks[0].observation[""].dtype == torch.float32


def test_rows_of_a_layout_are_the_bytes_of_its_slots():
    space = spaces.Dict({"a": spaces.Box(0, 255, (2, 3), np.uint8), "b": spaces.Box(-1, 1, (3,))})
    layout = Layout(Schema(EnvSpec("x", space, spaces.Discrete(3))), 4, 5)
    memory = np.zeros(layout.num_bytes, np.uint8)
    for rows in layout.rows(memory):
        rows[:, 2] = 1
    for _, _, tensor in layout.schema.tensors(layout.bank(memory).fields):
        by_slot = (
            tensor if len(tensor) == 5 and tensor.shape[1:2] != (5,) else tensor.transpose(0, 1)
        )
        assert by_slot[2].ne(0).all()
        assert not by_slot[[0, 1, 3, 4]].any()
