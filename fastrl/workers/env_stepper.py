"""Steps the environments of one env worker, in a process or in `SerialSampler`."""

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
from fastrl.shared.counters import CLOSING, Counter
from fastrl.shared.table import NUM_BANKS
from fastrl.workers.plan import WorkerContext

_NO_CHOICE = "allowed no action: its action_mask has no valid one"
_NEW_EPISODES = "; checkpoint.environments=false begins new episodes instead"


class EnvStepper:
    """The n environments of one env worker, in groups, on their slots of the table.

    It writes only fields of the stages ``OBSERVED`` and ``STEPPED`` in these slots.

    Args:
        context: What to sample, and where to write.
        env_worker: Index of the worker.
        replaced: How often the worker was replaced; changes the seeds.
    """

    def __init__(self, context: WorkerContext, env_worker: int, replaced: int = 0) -> None:
        plan, topology = context.plan, context.plan.topology
        self._plan, self._table, self._env_worker = plan, context.table, env_worker
        row = context.counters.row(f"env-worker-{env_worker}")
        self._resetting, self._begun = row[Counter.RESETTING :][:1], row[Counter.BEGUN :][:1]
        self._resetting[0] = self._begun[0] = 0  # a predecessor may have written them
        self._replaced = replaced
        self._slots = [topology.slots(env_worker, group) for group in range(topology.groups)]
        size = topology.envs_per_group
        self._first = [topology.env_index(env_worker, group)[0] for group in range(topology.groups)]
        self._claim = Claim()
        self._envs = build_all(self._built(size, first) for first in self._first)
        self._views = [
            [self._bank_views(bank, slots) for slots in self._slots] for bank in range(NUM_BANKS)
        ]
        self._leaves = tuple(plan.env_spec.observation)
        mask = plan.env_spec.action_mask
        self._mask = None if mask is None else self._leaves.index(mask)
        self._unstarted = set(range(topology.groups))
        self._stepping = _report_resets(self._envs, self._resetting)

    def begin(self, rollout: int) -> None:
        """Write the first observations of a rollout: the last ones of the previous rollout.

        Environments that have not started begin an episode.
        """
        observation = self._table.banks[rollout % NUM_BANKS].observation
        previous = self._table.banks[(rollout - 1) % NUM_BANKS].observation
        begins = self._table.begins[rollout % NUM_BANKS]
        for group, slots in enumerate(self._slots):
            begins[slots] = group in self._unstarted
            if begins[slots.start]:
                self._reset(group, _rows(observation, 0, slots))
                continue
            for leaf, tensor in observation.items():
                tensor[0, slots] = previous[leaf][-1, slots]

    def take_over(self, bank: int, t: int, group: int) -> int:
        """Start episodes at ``t``, in the middle of a rollout; return how many this truncates.

        Unfinished episodes of a predecessor are truncated in step ``t - 1``, with their latest
        observation as the final one. Safe to repeat after an interruption.
        """
        slots, fields = self._slots[group], self._table.banks[bank]
        observation = _rows(fields.observation, t, slots)
        num_truncated = 0
        if t > 0:
            terminated, truncated = (
                field.numpy()[t - 1, slots] for field in (fields.terminated, fields.truncated)
            )
            left = ~(terminated | truncated)
            # Before the flags are set: only unmarked episodes have their observation at t.
            final = self._final_rows(bank, t - 1, slots)
            for last, observed in zip(final, observation, strict=True):
                last[left] = observed[left]
            if self._plan.env_spec.episode_info:
                fields.episode_info.numpy()[t - 1, slots][left] = np.nan
            truncated[left] = True
            num_truncated = int(np.count_nonzero(left))
        else:
            self._table.begins[bank, slots] = True
        self._reset(group, observation)
        return num_truncated

    def step(self, bank: int, t: int, group: int) -> int:
        """Step one group with the actions at ``t``; return how many episodes ended.

        Raises:
            EnvError: An environment failed; or a number is not finite, or no action is valid, and
                the plan checks steps.
        """
        views = self._views[bank][group][t]
        try:
            self._envs[group].step(views)
            if self._plan.check_steps:
                self._check(views)
        except EnvError as error:
            self._name_culprit(error, views, self._first[group])
            self._note_no_choice(error, bank, t, group)
            raise
        return int(np.count_nonzero(views.terminated)) + int(np.count_nonzero(views.truncated))

    def _check(self, views: StepViews) -> None:
        """Raise an `EnvError` for a bad number or mask; takes about 2 µs per array."""
        names = ("reward", *(f"observation {leaf}".rstrip() for leaf in self._leaves))
        rows = (views.reward, *views.observation)
        for name, row in (*zip(names, rows, strict=True), *views.extras.items()):
            # Counting takes two thirds of the time of `all`.
            if row.dtype.kind == "f" and np.count_nonzero(np.isfinite(row)) < row.size:
                index = tuple(np.argwhere(~np.isfinite(row))[0])
                who = f"env {index[0]} of '{self._plan.env_spec.id}'"
                raise EnvError(f"{who} gave the {name} {row[index]}")
        if self._mask is not None:
            valid = self._plan.env_spec.has_valid(views.observation[self._mask])
            if not valid.all():
                raise EnvError(f"env {valid.argmin()} of '{self._plan.env_spec.id}' {_NO_CHOICE}")

    def _note_no_choice(self, error: EnvError, bank: int, t: int, group: int) -> None:
        """Add to the error of a step that its environment left the policy no valid action."""
        spec = self._plan.env_spec
        named = renumber(error, 0)
        if spec.action_mask is None or named is None:
            return
        mask = self._table.banks[bank].observation[spec.action_mask][t, self._slots[group]]
        index = named - self._first[group]
        if 0 <= index < len(mask) and not spec.has_valid(mask)[index]:
            error.args = (f"{error} (before this step it {_NO_CHOICE})", *error.args[1:])

    def _name_culprit(self, error: EnvError, views: StepViews, first: int) -> None:
        """Add the environment of the run to an error, or the policy if its action is not finite."""
        named = renumber(error, first)
        finite = np.ones(len(views.reward), np.bool_)
        for row in views.action:
            finite &= np.isfinite(row).reshape(len(row), -1).all(axis=1)
        suspects = range(len(finite)) if named is None else [named - first]
        for index in suspects:
            if 0 <= index < len(finite) and not finite[index]:
                action = brief([row[index].tolist() for row in views.action], 80)
                message = (
                    f"env {first + index} of '{self._plan.env_spec.id}' was given the action "
                    f"{action}, which is not finite: the policy is at fault, not the environment"
                )
                error.args = (f"{message} ({error})", *error.args[1:])
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
                with self._naming(first):
                    make_call(env, call)

    def pack_state(self, streams: StreamsState) -> bytes:
        """Return the states of all environments and of this worker's global streams.

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
        """Reset all environments, then restore their states and the global streams.

        Raises:
            StateError: A state does not fit its environment; names it.
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
        """Let errors of a group name the environment of the run, and add a remedy."""
        try:
            yield
        except EnvError as error:
            if renumber(error, first) is None and isinstance(error, StateError):
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
            EnvError: It cannot be built, is another group's, or differs from the probed one.
        """
        wanted, build = self._plan.env_spec, self._plan.build_env
        counted = {"begun": self._begun} if takes_argument(build, "begun") else {}
        before = int(self._begun[0])
        with self._naming(first):
            env = build(size, **counted)
        try:
            self._claim.add(env, first)
            who = f"env {first} of '{wanted.id}'"
            check_spaces(env.spec, wanted, who)
            for what in ("episode_info", "extras"):
                own, first_has = getattr(env.spec, what), getattr(wanted, what)
                if own != first_has and (what == "extras" or first_has):
                    raise EnvError(
                        f"{who} has the {what} {own}, the first has {first_has}; all environments "
                        "must have the same"
                    )
        except BaseException:
            env.close()
            raise
        self._begun[0] = before + size
        return env

    def _reset(self, group: int, observation: Rows) -> None:
        """Start the first episode in every environment of a group."""
        self._resetting[0], before = 1, int(self._begun[0])
        seeds = self._plan.env_seeds(self._env_worker, group, self._replaced)
        with self._naming(self._first[group]):
            self._envs[group].reset(seeds, observation)
        self._resetting[0] = self._stepping
        self._begun[0] = before + len(seeds)
        self._unstarted.discard(group)

    def _bank_views(self, index: int, slots: slice) -> list[StepViews]:
        """Return the views of every step of a bank; kept, as slicing takes 0.2 µs per view."""
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
        """Return the rows of the final observations of step t."""
        leaves = self._table.banks[bank].final_observation
        return _rows(leaves, t if self._table.schema.keeps_final_observations else None, slots)


def _report_resets(envs: Sequence[BatchedEnv], resetting: NDArray[np.int64]) -> int:
    """Have environments write when they reset; return the value for "not resetting"."""
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
