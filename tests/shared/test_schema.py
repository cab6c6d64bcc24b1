"""A field is declared once, and lies in banks and rollouts with its axes, shape and dtype."""

import dataclasses

import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrl.errors import ConfigError, FastrlError
from fastrl.shared.rollouts import EpisodeTracker
from fastrl.shared.table import NUM_BANKS, Axes, Field, Schema, Stage, Table
from fastrl.spaces import TensorSpec
from fastrl.spec import EnvSpec

T, B, L = 6, 3, 2
SPEC = EnvSpec("test", spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
LEADING = {
    Axes.TIME: (T, B),
    Axes.TIME_PLUS_ONE: (T + 1, B),
    Axes.SEGMENT: (T // L + 1, B),
    Axes.SLOT: (B,),
}
DTYPES = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.float64]
TENSORS = st.builds(
    TensorSpec, st.lists(st.integers(1, 3), max_size=2).map(tuple), st.sampled_from(DTYPES)
)
FIELDS = st.builds(
    Field,
    st.from_regex(r"my_[a-z0-9_]{1,8}", fullmatch=True),
    st.sampled_from(Axes),
    st.one_of(TENSORS, st.dictionaries(st.sampled_from(["a", "b/c"]), TENSORS, min_size=1)),
    st.sampled_from(Stage),
    stride=st.just(L),
)


def schema_of(*extras):
    """Return a schema with further fields."""
    schema = Schema(SPEC)
    for field in extras:
        schema._add(field)
    return schema


def held(table, bank, field):
    """Return the tensors of a field in a bank."""
    found = table.schema.tensors(table.banks[bank].fields)
    return [tensor for each, _, tensor in found if each is field]


@settings(max_examples=100)
@given(st.lists(FIELDS, max_size=4, unique_by=lambda field: field.name))
def test_any_field_comes_out_of_a_bank_as_it_went_in(extras):
    schema = schema_of(*extras)
    table = Table(schema, T, B)
    buffer, random = EpisodeTracker(table), torch.Generator().manual_seed(0)
    for bank in range(NUM_BANKS):
        table.poison(bank)
        for field in schema:
            for tensor, spec in zip(held(table, bank, field), field.leaves.values(), strict=True):
                assert tensor.dtype == spec.dtype
                assert tensor.shape == (*LEADING[field.axes], *spec.shape)
                tensor.copy_(torch.randint(0, 2, tensor.shape, generator=random))
        wrote = {f.name: [t.clone() for t in held(table, bank, f)] for f in schema}
        table.check_no_poison(bank)
        rollout = buffer.seal(bank)
        for field in extras:
            found_here = [t for f, _, t in schema.tensors(rollout.fields) if f is field]
            for found, expected in zip(found_here, wrote[field.name], strict=True):
                assert torch.equal(found, expected)


@pytest.mark.parametrize("axes", Axes)
def test_what_is_not_written_and_what_is_not_finite_is_found(axes):
    extra = Field("x", axes, TensorSpec((2,), torch.float32), Stage.STEPPED, stride=L)
    schema = schema_of(extra)
    table = Table(schema, T, B)
    everywhere = [tensor for field in schema for tensor in held(table, 0, field)]
    for tensor in everywhere:
        tensor.zero_()
    table.check_no_poison(0)
    assert table.first_bad_number(0) is None
    table.banks[0].x[-1 if axes is not Axes.SLOT else ..., -1, 1] = torch.nan
    with pytest.raises(FastrlError, match="field 'x' was never written"):
        table.check_no_poison(0)
    found = table.first_bad_number(0)
    assert (found.field, found.where[-2:]) == ("x", (B - 1, 1))
    assert found.where[0] == {Axes.TIME: T - 1, Axes.SLOT: 0}.get(axes, T)


def test_a_field_that_is_written_at_some_steps_alone_is_not_checked_elsewhere():
    spec = TensorSpec((), torch.float32)
    extra = Field("x", Axes.TIME, spec, Stage.STEPPED, where=("truncated",))
    schema = schema_of(extra)
    table = Table(schema, T, B)
    table.poison(0)
    for field in schema:
        if not field.where:
            for tensor in held(table, 0, field):
                tensor.zero_()
    table.check_no_poison(0)
    assert table.first_bad_number(0) is None


@pytest.mark.parametrize("name", ["reward", "index", "class", "two words", "_hidden"])
def test_names_that_cannot_be_attributes_or_are_taken_are_refused(name):
    spec = dataclasses.replace(SPEC, extras={name: TensorSpec((), torch.float32)})
    with pytest.raises(ConfigError, match=name):
        Schema(spec)
