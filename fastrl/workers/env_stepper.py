"""Steps the environments of one env worker; the same code in a process and in `SerialSampler`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastrl.arguments import brief
from fastrl.closing import build_all, close_all
from fastrl.envs.agreement import Claim, check_spaces
from fastrl.envs.batched_env import BatchedEnv, Rows, StepViews, renumber
from fastrl.envs.calls import make_call, unpack_calls
from fastrl.envs.lookup import takes_argument
from fastrl.envs.state import StateError, load_state, pack, state_of, unpack
from fastrl.errors import EnvError
from fastrl.global_streams import StreamsState, load_streams_state
from fastrl.shared.counters import CLOSING
from fastrl.shared.finite import first_not_finite, is_finite
from fastrl.shared.table import NUM_BANKS, Table
from fastrl.workers.plan import SamplingPlan

_NEW_EPISODES = "; checkpoint.environments=false begins new episodes instead"


class EnvStepper:
    """The n environments of one env worker, in groups, on their slots of the table.

    Writes the fields of `Writer.ENV_WORKER` in its own slots and nothing else.

    Args:
        plan: What to sample.
        table: Where to.
        env_worker: Index of the worker.
        replaced: How many workers this one is the successor of; gives other seeds.
        resetting: ``[1]`` int64: told whether environments are being reset, as
            `Counter.RESETTING` says.
        begun: ``[1]`` int64: counts environments, as `Counter.BEGUN` says.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        table: Table,
        env_worker: int,
        replaced: int = 0,
        resetting: NDArray[np.int64] | None = None,
        begun: NDArray[np.int64] | None = None,
    ) -> None:
        topology = plan.topology
        self._plan, self._table, self._env_worker = plan, table, env_worker
        self._replaced = replaced
        self._slots = [topology.slots(env_worker, group) for group in range(topology.groups)]
        size = topology.envs_per_group
        self._first = [topology.env_index(env_worker, group)[0] for group in range(topology.groups)]
        self._claim = Claim()
        self._begun = np.zeros(1, np.int64) if begun is None else begun
        self._begun[0] = 0  # a predecessor may have counted
        self._envs = build_all(self._built(size, first) for first in self._first)
        self._views = [
            [self._bank_views(bank, slots) for slots in self._slots] for bank in range(NUM_BANKS)
        ]
        self._leaves = tuple(plan.env_spec.observation)
        self._unstarted = set(range(topology.groups))
        self._resetting = np.zeros(1, np.int64) if resetting is None else resetting
        self._resetting[0] = 0  # a predecessor may have closed its environments
        self._stepping = _tell_resets(self._envs, self._resetting)

    def begin(self, rollout: int) -> None:
        """Write the first observations of a rollout: those that ended the one before.

        Environments that have not started yet start an episode.
        """
        observation = self._table.banks[rollout % NUM_BANKS].observation
        previous = self._table.banks[(rollout - 1) % NUM_BANKS].observation
        for group, slots in enumerate(self._slots):
            if group in self._unstarted:
                self._reset(group, _rows(observation, 0, slots))
                continue
            for leaf, tensor in observation.items():
                tensor[0, slots] = previous[leaf][-1, slots]

    def take_over(self, bank: int, t: int, group: int) -> int:
        """Start episodes at ``t``, in the middle of a rollout; return how many this cuts off.

        The episodes that a predecessor has left are truncated in step ``t - 1``, and what it
        observed last is their final observation. May be repeated if it is interrupted.
        """
        slots, fields = self._slots[group], self._table.banks[bank]
        observation = _rows(fields.observation, t, slots)
        cut = 0
        if t > 0:
            terminated, truncated = (
                field.numpy()[t - 1, slots] for field in (fields.terminated, fields.truncated)
            )
            left = ~(terminated | truncated)
            # In this order: only an episode that is not marked yet has its observation at t.
            final = self._final_rows(bank, t - 1, slots)
            for last, observed in zip(final, observation, strict=True):
                last[left] = observed[left]
            if self._plan.env_spec.episode_info:
                fields.episode_info.numpy()[t - 1, slots][left] = np.nan
            truncated[left] = True
            cut = int(np.count_nonzero(left))
        self._reset(group, observation)
        return cut

    def step(self, bank: int, t: int, group: int) -> int:
        """Step one group with the actions at ``t``; return how many episodes ended."""
        views = self._views[bank][group][t]
        try:
            self._envs[group].step(views)
            if self._plan.check_steps:
                self._check(views)
        except EnvError as error:
            self._blame(error, views, self._first[group])
            raise
        return int(np.count_nonzero(views.terminated)) + int(np.count_nonzero(views.truncated))

    def _check(self, views: StepViews) -> None:
        """Refuse a step with a NaN or an infinity; takes about 2 µs."""
        names = ("reward", *(f"observation {leaf}".rstrip() for leaf in self._leaves))
        rows = (views.reward, *views.observation)
        for name, row in (*zip(names, rows, strict=True), *views.extras.items()):
            if row.dtype.kind == "f" and not is_finite(row):
                index = first_not_finite(row)
                who = f"env {index[0]} of '{self._plan.env_spec.id}'"
                raise EnvError(f"{who} gave the {name} {row[index]}")

    def _blame(self, error: EnvError, views: StepViews, first: int) -> None:
        """Name the environment of the run, and the policy where that is at fault."""
        named = renumber(error, first)
        finite = np.ones(len(views.reward), np.bool_)
        for row in views.action:
            finite &= np.isfinite(row).reshape(len(row), -1).all(axis=1)
        suspects = range(len(finite)) if named is None else [named - first]
        for index in suspects:
            if 0 <= index < len(finite) and not finite[index]:
                action = brief([row[index].tolist() for row in views.action], 80)
                told = (
                    f"env {first + index} of '{self._plan.env_spec.id}' was given the action "
                    f"{action}, which is not finite: the policy is at fault, not the environment"
                )
                error.args = (f"{told} ({error})", *error.args[1:])
                return

    def make_calls(self, content: bytes) -> None:
        """Make calls in all environments.

        Args:
            content: From `pack_calls`.

        Raises:
            EnvError: An environment has no such method or attribute, or raised; names it.
        """
        for call in unpack_calls(content):
            for env, first in zip(self._envs, self._first, strict=True):
                try:
                    make_call(env, call)
                except EnvError as error:
                    renumber(error, first)
                    raise

    def pack_state(self, streams: StreamsState) -> bytes:
        """Return what the steps of the next rollout depend on.

        Args:
            streams: The global streams of this worker.

        Raises:
            StateError: An environment cannot be saved; names it.
        """
        if self._unstarted:
            raise StateError("environments were replaced, and have not begun their episodes")
        groups = []
        for env, first in zip(self._envs, self._first, strict=True):
            with self._naming(first):
                groups.append(pack(state_of(env)))
        return pack({"groups": groups, "streams": streams})

    def unpack_state(self, content: bytes) -> None:
        """Reset all environments, and bring them and the global streams to where they were.

        Raises:
            StateError: What was saved does not fit an environment; names it.
        """
        state = unpack(content)
        for group, env in enumerate(self._envs):
            views = self._views[0][group][0]
            self._reset(group, tuple(map(np.empty_like, views.observation)))
            with self._naming(self._first[group], _NEW_EPISODES):
                load_state(env, unpack(state["groups"][group]))
        load_streams_state(state["streams"])

    @contextmanager
    def _naming(self, first: int, remedy: str = "") -> Iterator[None]:
        """Let errors of states name the environment of the run, and a remedy."""
        try:
            yield
        except StateError as error:
            if renumber(error, first) is None:
                error.args = (f"'{self._plan.env_spec.id}': {error}", *error.args[1:])
            error.args = (f"{error}{remedy}", *error.args[1:])
            raise

    def close(self) -> None:
        """Close all environments."""
        self._claim.release()
        self._resetting[0] = CLOSING
        close_all(self._envs)

    def _built(self, size: int, first: int) -> BatchedEnv:
        """Build a group whose first environment has the index ``first`` in the run.

        Raises:
            EnvError: It cannot be built, is another group, or has other spaces than were probed.
        """
        wanted, build = self._plan.env_spec, self._plan.build_env
        counted = {"begun": self._begun} if takes_argument(build, "begun") else {}
        before = int(self._begun[0])
        try:
            env = build(size, **counted)
        except EnvError as error:
            renumber(error, first)
            raise
        try:
            self._claim.add(env, first)
            who = f"env {first} of '{wanted.id}'"
            check_spaces(env.spec, wanted, who)
            if wanted.episode_info and env.spec.episode_info != wanted.episode_info:
                raise EnvError(
                    f"{who} has the episode_info {env.spec.episode_info}, the first has "
                    f"{wanted.episode_info}; all environments must have the same"
                )
            if env.spec.extras != wanted.extras:
                raise EnvError(
                    f"{who} has the extras {env.spec.extras}, the first has {wanted.extras}; all "
                    "environments must have the same"
                )
        except BaseException:
            env.close()
            raise
        self._begun[0] = before + size
        return env

    def _reset(self, group: int, observation: Rows) -> None:
        """Start an episode in every environment of a group, for the first time."""
        self._resetting[0], before = 1, int(self._begun[0])
        seeds = self._plan.env_seeds(self._env_worker, group, self._replaced)
        try:
            self._envs[group].reset(seeds, observation)
        except EnvError as error:
            renumber(error, self._first[group])
            raise
        self._resetting[0] = self._stepping
        self._begun[0] = before + len(seeds)
        self._unstarted.discard(group)

    def _bank_views(self, index: int, slots: slice) -> list[StepViews]:
        """Return the views of every step of a bank, made once: slicing costs 0.2 µs each time."""
        bank = self._table.banks[index]
        reward, terminated, truncated = (
            tensor.numpy() for tensor in (bank.reward, bank.terminated, bank.truncated)
        )
        spec = self._plan.env_spec
        info = bank.episode_info.numpy() if spec.episode_info else None
        extras = {name: bank.fields[name].numpy() for name in spec.extras}
        return [
            StepViews(
                action=_rows(bank.action, t, slots, writable=False),
                observation=_rows(bank.observation, t + 1, slots),
                reward=reward[t, slots],
                terminated=terminated[t, slots],
                truncated=truncated[t, slots],
                final_observation=self._final_rows(index, t, slots),
                episode_info=None if info is None else info[t, slots],
                extras={name: array[t, slots] for name, array in extras.items()},
            )
            for t in range(self._table.rollout_length)
        ]

    def _final_rows(self, bank: int, t: int, slots: slice) -> Rows:
        """Return where final observations of step t go: one row per slot, or one in every step."""
        leaves = self._table.banks[bank].final_observation
        return _rows(leaves, t if self._table.schema.keeps_final_observations else None, slots)


def _tell_resets(envs: Sequence[BatchedEnv], resetting: NDArray[np.int64]) -> int:
    """Have environments tell when they reset; return what stands for not resetting."""
    tells = [getattr(env, "tell_resets", None) for env in envs]
    for tell in tells:
        if tell is not None:
            tell(resetting)
    return 0 if all(tells) else 2


def _rows(
    leaves: Mapping[str, Tensor], t: int | None, slots: slice, *, writable: bool = True
) -> Rows:
    rows: list[NDArray[Any]] = []
    for tensor in leaves.values():
        row = tensor.numpy()[slots] if t is None else tensor.numpy()[t, slots]
        row.setflags(write=writable)
        rows.append(row)
    return tuple(rows)
