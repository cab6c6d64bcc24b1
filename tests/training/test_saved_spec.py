"""Spaces as JSON: any supported one comes back as it was."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrl.spec import EnvSpec
from fastrl.training.saved_spec import read_spec, spec_to_json

SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
DTYPES = st.sampled_from(["float16", "float32", "float64", "uint8", "int16", "int64", "uint32"])


@st.composite
def boxes(draw):
    shape, dtype = draw(SHAPES), np.dtype(draw(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    size = shape if draw(st.booleans()) else ()
    low = np.broadcast_to(rng.uniform(0, 50, size), shape).astype(dtype)
    high = np.broadcast_to(rng.uniform(60, 99, size), shape).astype(dtype)
    if dtype.kind == "f" and draw(st.booleans()):
        low, high = np.where(rng.random(shape) < 0.5, -np.inf, low), high
        high = np.where(rng.random(shape) < 0.5, np.inf, high)
    return spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype.type)


@st.composite
def multi_discretes(draw):
    rng, shape = np.random.default_rng(draw(st.integers(0, 99))), draw(SHAPES) or (2,)
    dtype = draw(st.sampled_from([np.int64, np.int32]))
    start = rng.integers(-5, 5, shape)
    return spaces.MultiDiscrete(rng.integers(1, 9, shape), start=start, dtype=dtype)


LEAVES = st.one_of(
    boxes(),
    multi_discretes(),
    st.builds(spaces.Discrete, st.integers(1, 9), start=st.integers(-3, 3)),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 5), st.just((2, 3)))),
)
KEYS = st.one_of(st.text(min_size=1, max_size=3), st.integers(0, 9))
SPACES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
        st.lists(st.tuples(KEYS, inner), min_size=1, max_size=3, unique_by=lambda x: str(x[0])).map(
            spaces.Dict
        ),
    ),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(space=SPACES, limit=st.one_of(st.none(), st.integers(1, 9)))
def test_spaces_come_back_as_they_were(tmp_path_factory, space, limit):
    file = tmp_path_factory.mktemp("spec") / "spaces.json"
    spec = EnvSpec("Some-v0", space, spaces.Discrete(2), limit, ("a", "b/c"), ("Normalize",))
    text = spec_to_json(spec)
    # Other programs read it as well, so it holds no NaN and no Infinity.
    json.loads(text, parse_constant=pytest.fail)
    file.write_text(text)
    found = read_spec(file)
    assert found == spec
    assert (list(found.observation), found.observation) == (
        list(spec.observation),
        spec.observation,
    )


def test_pictures_take_a_number_for_each_bound():
    spec = EnvSpec("x", spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Discrete(2))
    assert len(spec_to_json(spec)) < 1000


def test_keys_that_json_lacks_are_not_saved(tmp_path):
    space = spaces.Dict([((1, 2), spaces.Discrete(2))])
    assert spec_to_json(EnvSpec("x", space, spaces.Discrete(2))) is None
    assert read_spec(tmp_path / "spaces.json") is None
