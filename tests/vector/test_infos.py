"""Infos of any kind arrive as they were told, whatever the backend and whatever is reused."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import cycle

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrl
from fastrl.vector.infos import separate
from tests.vector.test_same_as_gymnasium import assert_same

NUM_ENVS, STEPS = 3, 5


class ScriptedEnv(gymnasium.Env):
    """Tells prescribed infos in turn; may write all that it returns into the same objects."""

    observation_space = spaces.Dict({"count": spaces.Box(0, 99, (2,), np.float32)})
    action_space = spaces.Discrete(2)

    def __init__(self, scripts, reuses, render_mode=None):
        self.reuses, self.count, self.calls = reuses, 0, 0
        self.info, self.seen = {}, np.zeros(2, np.float32)
        self.scripts, self.render_mode = scripts, render_mode

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            infos, self.ends = self.scripts[seed]
            self.script = cycle(infos)
        return self._observe(), self._tell()

    def step(self, action):
        self.count += 1
        return self._observe(), float(self.count), self.count in self.ends, False, self._tell()

    def _observe(self):
        self.calls += 1
        if not self.reuses:
            self.seen = np.zeros(2, np.float32)
        self.seen[:] = self.calls
        return {"count": self.seen}

    def _tell(self):
        if not self.reuses:
            return rewritten({}, next(self.script))
        rewrite(self.info, next(self.script))
        return self.info


def rewritten(old, new):
    rewrite(old, new)
    return old


def rewrite(old, new):
    """Make a dict equal to another one, in the same objects as far as possible."""
    for key in old.keys() - new.keys():
        del old[key]
    for key, value in new.items():
        had = old.get(key)
        if isinstance(value, dict):
            old[key] = rewritten(had if isinstance(had, dict) else {}, value)
        elif isinstance(value, list):
            old[key] = had if isinstance(had, list) else []
            old[key][:] = value
        elif not isinstance(value, np.ndarray):
            old[key] = value
        elif isinstance(had, np.ndarray) and (had.shape, had.dtype) == (value.shape, value.dtype):
            had[...] = value
        else:
            old[key] = value.copy()


def equal(ours, told):
    if isinstance(told, dict):
        return (
            isinstance(ours, dict)
            and ours.keys() == told.keys()
            and all(equal(ours[key], told[key]) for key in told)
        )
    if isinstance(told, np.ndarray):
        return np.shape(ours) == told.shape and np.array_equal(ours, told)
    return bool(np.all(ours == told)) and np.shape(ours) == np.shape(told)


NUMBERS = [
    st.integers(-9, 9),
    st.sampled_from([0.5, 2.5, -1.25]),
    st.booleans(),
    st.sampled_from([np.int8(3), np.int8(-4)]),
    st.sampled_from([np.float32(0.5), np.float32(7)]),
    st.sampled_from([np.uint64(4)]),
]
OTHERS = [
    st.sampled_from(["", "a", "bc"]),
    st.none(),
    st.sampled_from([np.True_]),
    st.lists(st.integers(0, 3), max_size=2),
]


def arrays(shape, dtype):
    return st.integers(0, 5).map(
        lambda first: (np.arange(np.prod(shape)) + first).reshape(shape).astype(dtype)
    )


SHAPES = [(), (1,), (3,), (1, 3), (0,)]
ARRAYS = [arrays(shape, dtype) for shape in SHAPES for dtype in (np.int64, np.float32, np.bool_)]
HUGE = st.sampled_from([2**63, -(2**70), 1])
DURATIONS = st.sampled_from([np.timedelta64(3, "s"), np.timedelta64(3, "ms")])
ANY = st.one_of(*NUMBERS, *OTHERS, *ARRAYS, HUGE, DURATIONS)
KEYS = ("a", "b", "c")


def dicts(value):
    return st.dictionaries(st.sampled_from(KEYS), value, max_size=3)


ANY_INFO = dicts(st.one_of(ANY, dicts(st.one_of(ANY, dicts(ANY)))))
ALIKE = st.sampled_from([*NUMBERS, *OTHERS, *ARRAYS])


@st.composite
def infos_of_one_kind(draw):
    """Values of a key are of the same type in all environments, but a key may be missing."""
    kinds = {key: draw(ALIKE) for key in KEYS}
    kinds["nested"] = st.fixed_dictionaries({}, optional={key: draw(ALIKE) for key in KEYS})
    return st.fixed_dictionaries({}, optional=kinds)


def scripts_of(info):
    ends = st.sets(st.integers(1, STEPS), max_size=3)
    one = st.tuples(st.lists(info, min_size=1, max_size=4), ends)
    return st.lists(one, min_size=NUM_ENVS, max_size=NUM_ENVS)


def expected(scripts):
    """Return what the environments tell: per step and environment the info, and the reset's."""
    infos = [cycle(infos) for infos, _ in scripts]
    first = [next(each) for each in infos]
    steps = []
    for step in range(1, STEPS + 1):
        pairs = zip(infos, scripts, strict=True)
        steps.append(
            [(next(each), next(each) if step in ends else None) for each, (_, ends) in pairs]
        )
    return first, steps


def play(envs):
    seeds = list(range(NUM_ENVS))
    results = [envs.reset(seed=seeds)]
    results += [envs.step(np.zeros(NUM_ENVS, np.int64)) for _ in range(STEPS)]
    envs.close()
    return results


def play_made(build, backend):
    return play(
        fastrl.make_vec(build, NUM_ENVS, backend=backend, num_workers=2, autoreset="same_step")
    )


def play_sent(build):
    envs = fastrl.make_vec(build, NUM_ENVS, backend="serial", autoreset="same_step")
    envs.async_reset(seed=list(range(NUM_ENVS)))
    observation, *_, infos = envs.recv()
    results = [(observation, infos)]
    for _ in range(STEPS):
        envs.send(np.zeros(NUM_ENVS, np.int64))
        results.append(envs.recv())
    for *_, infos in results:
        assert infos.pop("env_id").tolist() == list(range(NUM_ENVS))
    envs.close()
    return results


def play_awaited(build):
    async def run():
        envs = fastrl.vector.make_concurrent(build, NUM_ENVS, autoreset="same_step")
        results = [await envs.reset(seed=list(range(NUM_ENVS)))]
        results += [await envs.step(np.zeros(NUM_ENVS, np.int64)) for _ in range(STEPS)]
        await envs.close()
        return results

    return asyncio.run(run())


WAYS = {
    "serial": partial(play_made, backend="serial"),
    "threads": partial(play_made, backend="threads"),
    "send": play_sent,
    "awaited": play_awaited,
}


def check_all_arrived(results, scripts):
    """Every value of every environment is found under its key, and no other."""
    first, steps = expected(scripts)
    for ours, told in zip(separate(results[0][1], NUM_ENVS), first, strict=True):
        assert equal(ours, told), (ours, told)
    calls = [1] * NUM_ENVS
    for (observation, _, _, _, infos), told in zip(results[1:], steps, strict=True):
        for index, ours in enumerate(separate(infos, NUM_ENVS)):
            info, fresh = told[index]
            calls[index] += 1
            if fresh is not None:
                assert np.all(ours.pop("final_obs")["count"] == calls[index])
                final = ours.pop("final_info")
                assert equal(final, info), (final, info)
                info = fresh
                calls[index] += 1
            assert equal(ours, info), (ours, info)
            assert np.all(observation["count"][index] == calls[index])


@settings(max_examples=15)
@given(scripts=scripts_of(ANY_INFO), reuses=st.booleans())
def test_every_info_arrives_as_it_was_told(scripts, reuses):
    build = partial(ScriptedEnv, scripts, reuses)
    results = {name: way(build) for name, way in WAYS.items()}
    for each in results.values():
        check_all_arrived(each, scripts)
        assert_same(tuple(each), tuple(results["serial"]))


@settings(max_examples=15)
@given(scripts=infos_of_one_kind().flatmap(scripts_of), reuses=st.booleans())
def test_infos_of_one_kind_are_those_of_sync_vector_env(scripts, reuses):
    build = partial(ScriptedEnv, scripts, False)
    theirs = SyncVectorEnv([build] * NUM_ENVS, autoreset_mode=AutoresetMode.SAME_STEP)
    wanted = tuple(play(theirs))
    for way in WAYS.values():
        assert_same(tuple(way(partial(ScriptedEnv, scripts, reuses))), wanted)


def test_worker_processes_and_sb3_give_the_same_infos():
    uneven = [{"a": 2, "b": np.zeros(length)} for length in (1, 2, 3)]
    scripts = [
        ([{**uneven[0], "c": {"d": 1}}, {"a": 2.5, "c": {"d": 0.5}}], {2}),
        ([uneven[1], {"a": 3, "c": [1]}, {"a": True, "b": "text"}], {1, 3}),
        ([uneven[2], {"a": 2**63}, {}], set()),
    ]
    build = partial(ScriptedEnv, scripts, True)
    check_all_arrived(play_made(build, "processes"), scripts)
    envs = fastrl.vector.to_sb3(
        fastrl.make_vec(build, NUM_ENVS, backend="serial", autoreset="same_step")
    )
    envs._seeds = list(range(NUM_ENVS))
    envs.reset()
    first, steps = expected(scripts)
    assert equal(dict(enumerate(envs.reset_infos)), dict(enumerate(first)))
    for told in steps:
        infos = envs.step(np.zeros(NUM_ENVS, np.int64))[-1]
        for index, (info, fresh) in enumerate(told):
            infos[index].pop("TimeLimit.truncated")
            assert (infos[index].pop("terminal_observation", None) is None) == (fresh is None)
            assert equal(infos[index], info)
            assert fresh is None or equal(envs.reset_infos[index], fresh)
    envs.close()
