"""Gymnasium's vector environment over any backend: what `fastrl.make_vec` returns."""

from __future__ import annotations

import copy as copying
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import (
    batch_differing_spaces,
    batch_space,
    concatenate,
    create_empty_array,
)
from numpy.typing import ArrayLike, NDArray

from fastrl.spaces import leaves, unflatten
from fastrl.vector.action_rows import ActionObjects, ActionRows
from fastrl.vector.driver import Driver, Request
from fastrl.vector.exchange import NUM_BANKS, UNSEEDED, Bank
from fastrl.vector.failures import ArgumentError, at_least_one, brief
from fastrl.vector.infos import Infos, combine, gather
from fastrl.vector.seeds import (
    check_all_or_none,
    checked_mask,
    checked_options,
    checked_seeds,
)
from fastrl.vector.session import Pending, Session
from fastrl.vector.spec import VectorPlan
from fastrl.vector.stepping import ObservationMode

Output = Literal["numpy", "torch"]
StepResult = tuple[Any, Any, Any, Any, Infos]
_NOTHING, _STEP = Pending.NOTHING, Pending.STEP


class FastVectorEnv(Session, VectorEnv[Any, Any, Any]):
    """Steps environments behind gymnasium's interface; see `fastrl.make_vec`.

    `gymnasium.vector.VectorEnv` is a direct base, too: some libraries look no further than those.

    Attributes:
        plan: Who steps which environments.
        backend: ``serial``, ``threads``, ``processes`` or ``native``.
        output: ``numpy`` or ``torch``.
        env_kwargs: The parameters of every instance, those drawn included.
        autoreset_mode: When the next episode begins where one ended; so is
            ``metadata["autoreset_mode"]``.
        observation_mode: ``same``, ``different``, or the observation spaces of all environments
            and of one.
    """

    def __init__(
        self,
        plan: VectorPlan,
        driver: Driver,
        backend: str,
        *,
        copy: bool = True,
        output: Output = "numpy",
        observation_mode: ObservationMode | None = None,
    ) -> None:
        super().__init__(plan, driver)
        self.backend = backend
        self.env_kwargs = [dict(each) for each in plan.env_kwargs]
        self._copy, self.output = copy, output
        spec = driver.spec
        self.spec, self.render_mode = spec.spec, spec.render_mode
        self.autoreset_mode = plan.autoreset
        self.metadata = dict(spec.metadata) | {"autoreset_mode": plan.autoreset}
        self.single_action_space = spec.action_space
        self.action_space = batch_space(spec.action_space, self.num_envs)
        self.single_observation_space = spec.observation_space
        self.observation_space = batch_space(spec.observation_space, self.num_envs)
        if driver.different_spaces:
            self.observation_space = batch_differing_spaces(driver.different_spaces)
        self.observation_mode = observation_mode or (
            "different" if driver.different_spaces else "same"
        )
        if isinstance(self.observation_mode, tuple):
            self._take_spaces(*self.observation_mode)
        self._paths = tuple(leaves(spec.observation_space)) if spec.fits_rows else ()
        self._single = self._paths == ("",)
        self._plain = self._single and copy and output == "numpy"
        self._actions: ActionRows | ActionObjects
        self._objects: list[Any] | None = None
        if spec.fits_rows:
            self._actions = ActionRows(spec, driver.exchange.action)
        else:
            self._actions = objects = ActionObjects(spec, self.num_envs)
            self._objects = objects.actions
        self._banks = driver.exchange.banks
        self._quick_step = None if self._objects is not None else driver.step_now
        self._bank = 0
        self._was_reset = False
        self._in_flight = np.zeros(self.num_envs, np.bool_)
        self._sent_reset = np.zeros(self.num_envs, np.bool_)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Any, Infos]:
        """Start an episode in every environment, or in some.

        Args:
            seed: One for each environment, or the first of consecutive ones; None lets each go
                on with its own random stream.
            options: Handed to every environment. ``reset_mask``, ``[num_envs]`` bool, is taken
                out: it names the environments to reset.

        Raises:
            ArgumentError: Seeds or mask do not fit.
            EnvFailure: An environment raised, died or overran the deadline.
        """
        self.reset_async(seed, options)
        return self.reset_wait()

    def reset_async(
        self,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a `reset`, to be finished by `reset_wait`."""
        self._begin("reset_async", Pending.RESET)
        try:
            seeds = checked_seeds(seed, self.num_envs)
            given = checked_options(options)
            mask = checked_mask(given, self.num_envs, was_reset=self._was_reset)
            if seed is None and self._next_seeds is not None:
                seeds, self._next_seeds = self._next_seeds, None
            if self.plan.native is not None:
                check_all_or_none(seeds, mask)
        except Exception:
            self._pending = _NOTHING
            raise
        for index in np.flatnonzero(mask).tolist():
            if seeds[index] is not None:
                self._seeds[index] = seeds[index]
        self._flip(keep=not mask.all())
        with self._explaining("reset"):
            self._driver.begin_request(
                Request("reset", (self._bank, given), (seeds, mask.tolist()), fatal=True)
            )

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, Infos]:
        """Finish a `reset`.

        Args:
            timeout: Seconds; by default the deadline that `make_vec` was given.
        """
        self._expect("reset_wait", Pending.RESET)
        with self._explaining("reset"):
            parts = self._driver.end_request(self._deadline(timeout))
        self._pending = _NOTHING
        self._was_reset = True
        return self._observation(self._banks[self._bank]), combine(parts, self.num_envs)

    def step(self, actions: Any) -> StepResult:  # noqa: ANN401
        """Step every environment once.

        Args:
            actions: A sample of ``action_space``: arrays, lists, or tensors of torch.

        Returns:
            Observations, rewards float64, terminated, truncated and infos.

        Raises:
            ArgumentError: The actions do not fit; no environment was stepped.
            EnvFailure: An environment raised, died or overran the deadline.
        """
        quick = self._quick_step
        if quick is None or self.closed or self._pending is not _NOTHING or not self._was_reset:
            self.step_async(actions)
            return self.step_wait()
        # The same in one go, for who steps here and now: the many small calls on the detour would
        # cost as much as a step of a cheap environment.
        self._actions.write(actions)
        self._bank = bank = (self._bank + 1) % NUM_BANKS
        try:
            columns = quick(bank)
        except BaseException as error:
            self._end(error, "step")
        return self._stepped(combine((columns,), self.num_envs) if columns else {})

    def step_async(self, actions: Any) -> None:  # noqa: ANN401
        """Begin a `step`, to be finished by `step_wait`."""
        # Written out, without calls and context managers: all of them together would cost more than
        # a step of a cheap environment does.
        if self.closed or self._pending is not _NOTHING:
            self._begin("step_async", _STEP)
        self._pending = _STEP
        try:
            if not self._was_reset:
                raise ArgumentError("reset the environments before the first step")
            self._actions.write(actions)
        except Exception:
            self._pending = _NOTHING
            raise
        self._flip()
        try:
            self._driver.begin_step(self._bank, self._objects)
        except BaseException as error:
            self._end(error, "step")

    def step_wait(self, timeout: float | None = None) -> StepResult:
        """Finish a `step`.

        Args:
            timeout: Seconds; by default the deadline that `make_vec` was given.
        """
        if self.closed or self._pending is not _STEP:
            self._expect("step_wait", _STEP)
        try:
            parts = self._driver.end_step(self.plan.timeout_s if timeout is None else timeout)
        except BaseException as error:
            self._end(error, "step")
        self._pending = _NOTHING
        return self._stepped(combine(parts, self.num_envs) if any(parts) else {})

    def async_reset(self, seed: int | Sequence[int | None] | None = None) -> None:
        """Begin a reset of every environment, whose observations `recv` returns as they come.

        Args:
            seed: As in `reset`.

        Raises:
            ArgumentError: Seeds do not fit, or observations or actions are no arrays of fixed size.
        """
        seeds = checked_seeds(seed, self.num_envs)
        self._check_rows("async_reset")
        rows = [UNSEEDED if each is None else each for each in seeds]
        if max(rows) > np.iinfo(np.int64).max:
            raise ArgumentError(f"seed: async_reset takes numbers below 2**63, got {max(rows)}")
        self._begin("async_reset", Pending.SEND)
        self._flip()
        self._seeds = [
            new if new is not None else old for new, old in zip(seeds, self._seeds, strict=True)
        ]
        self._driver.exchange.reset_seed[:] = rows
        self._sent_reset[:] = True
        self._was_reset = True
        self._dispatch(np.arange(self.num_envs))

    def send(self, actions: Any, env_ids: ArrayLike | None = None) -> None:  # noqa: ANN401
        """Let some environments step, each as soon as its worker is free; returns at once.

        Args:
            actions: One for each of ``env_ids``, batched like ``action_space``.
            env_ids: ``[k]`` different environments that are not under way; all by default.

        Raises:
            ArgumentError: Actions or indices do not fit; no environment was stepped.
        """
        indices = np.arange(self.num_envs) if env_ids is None else np.asarray(env_ids)
        first = self._pending is not Pending.SEND
        if first:
            self._begin("send", Pending.SEND)
        try:
            self._check_sendable(indices)
            self._actions.write_some(actions, indices)
        except Exception:
            self._settle_pending()
            raise
        if first:
            self._flip(keep=len(indices) < self.num_envs)
        self._dispatch(indices)

    def recv(self, batch_size: int | None = None, timeout: float | None = None) -> StepResult:
        """Return what the first environments that are ready have to say.

        Args:
            batch_size: How many to wait for; by default all that are under way.
            timeout: Seconds; by default the deadline that `make_vec` was given.

        Returns:
            As `step` does, with ``batch_size`` rows in the order in which environments were
            ready; ``infos["env_id"]`` says which they are. Everything is a copy.

        Raises:
            ArgumentError: Fewer environments are under way.
            EnvFailure: An environment raised, died or overran the deadline.
        """
        self._expect("recv", Pending.SEND)
        under_way = int(self._in_flight.sum())
        count = under_way if batch_size is None else at_least_one("batch_size", batch_size)
        if count > under_way:
            raise ArgumentError(f"batch_size: {under_way} environments are under way, got {count}")
        with self._explaining("step"):
            ready = self._driver.receive(count, self._deadline(timeout))
        ids = np.array(ready.envs, np.int64)
        self._in_flight[ids] = self._sent_reset[ids] = False
        self._settle_pending()
        bank = self._banks[self._bank]
        infos = combine([gather(ready.infos)], count)
        infos["env_id"] = ids
        rows = [self._given(row[ids]) for row in bank.observation]
        return (
            unflatten(
                self._driver.spec.observation_space, dict(zip(self._paths, rows, strict=True))
            ),
            *(self._given(each[ids]) for each in (bank.reward, bank.terminated, bank.truncated)),
            infos,
        )

    @property
    def envs(self) -> list[Any]:
        """The environments, to be read and changed where the caller steps them (``serial``).

        Steps and resets of single ones are not noticed. On other backends the name is unknown, as
        in gymnasium's `AsyncVectorEnv`.
        """
        found = self._driver.environments
        if found is None:
            raise AttributeError("envs")
        return list(found)

    def _take_spaces(self, whole: Space[Any], single: Space[Any]) -> None:
        """Describe observations by spaces of the caller.

        Raises:
            ArgumentError: The space of one environment has another shape or dtype.
        """
        found = self.single_observation_space
        if not is_space_dtype_shape_equiv(single, found):
            raise ArgumentError(
                f"observation_mode: the space of one environment, {brief(single)}, has another "
                f"shape or dtype than that of the environments, {brief(found)}"
            )
        self.observation_space, self.single_observation_space = whole, single

    def _check_rows(self, name: str) -> None:
        if not self._paths:
            raise ArgumentError(f"{name}: observations or actions are no arrays of fixed size")

    def _check_sendable(self, indices: NDArray[np.intp]) -> None:
        if not self._was_reset:
            raise ArgumentError("reset the environments before the first step")
        self._check_rows("send")
        if indices.ndim != 1 or indices.dtype.kind not in "iu" or not len(indices):
            raise ArgumentError(f"env_ids must be a list of whole numbers, got {indices}")
        if indices.min() < 0 or indices.max() >= self.num_envs:
            raise ArgumentError(f"env_ids must be below {self.num_envs}, got {indices}")
        if len(np.unique(indices)) < len(indices) or self._in_flight[indices].any():
            raise ArgumentError(f"env_ids: some are under way already, got {indices}")

    def _dispatch(self, indices: NDArray[np.intp]) -> None:
        self._in_flight[indices] = True
        with self._explaining("step"):
            self._driver.send(indices.tolist(), self._bank)

    def _settle_pending(self) -> None:
        if not self._in_flight.any():
            self._pending = _NOTHING

    def _doing(self, env_index: int, doing: str) -> str:
        return "reset" if self._sent_reset[env_index] else doing

    def _action_of(self, env_index: int) -> Any:  # noqa: ANN401
        return self._actions.of(env_index)

    def _observation(self, bank: Bank) -> Any:  # noqa: ANN401
        space = self._driver.spec.observation_space
        if self._single:
            row = bank.observation[0]
            return self._given(row.copy() if self._copy else row)
        if not self._paths:
            items = self._driver.observation_objects()
            empty: Any = create_empty_array(space, n=self.num_envs, fn=np.zeros)
            return copying.deepcopy(concatenate(space, items, empty))
        rows = [row.copy() for row in bank.observation] if self._copy else bank.observation
        given = (self._given(row) for row in rows)
        return unflatten(space, dict(zip(self._paths, given, strict=True)))

    def _stepped(self, infos: Infos) -> StepResult:
        """Return what a step of all environments has left in the bank."""
        bank = self._banks[self._bank]
        plain = self._plain
        observation = bank.observation[0].copy() if plain else self._observation(bank)
        flags = bank.reward.copy(), bank.terminated.copy(), bank.truncated.copy()
        if self.output == "torch":
            return observation, *map(self._given, flags), infos
        return observation, *flags, infos

    def _given(self, array: NDArray[Any]) -> Any:  # noqa: ANN401
        return torch.from_numpy(array) if self.output == "torch" else array

    def _flip(self, *, keep: bool = False) -> None:
        """Write into the other bank, so that what was returned last stays as it is.

        Args:
            keep: Some environments are not going to write: their rows are copied.
        """
        last, self._bank = self._bank, (self._bank + 1) % NUM_BANKS
        if keep:
            banks = self._banks
            pairs = zip(banks[self._bank].observation, banks[last].observation, strict=True)
            for row, seen in pairs:
                row[...] = seen
