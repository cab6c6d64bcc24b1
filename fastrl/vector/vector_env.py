"""`FastVectorEnv`: gymnasium's vector environment over any backend, built by `make_vec`."""

from __future__ import annotations

import contextlib
import copy as copying
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from threading import TIMEOUT_MAX
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from gymnasium import Space
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import (
    batch_differing_spaces,
    batch_space,
    concatenate,
    create_empty_array,
)
from numpy.typing import ArrayLike, NDArray

from fastrl.arguments import at_least_one
from fastrl.closing import Closing
from fastrl.envs.action_masks import METHOD, InfoMasks, flat_mask, has_method, observes_mask
from fastrl.envs.vector_facade import checked_mask, checked_options, checked_seeds
from fastrl.errors import ArgumentError, one_line
from fastrl.shared.table import NUM_BANKS
from fastrl.spaces import leaves, nested
from fastrl.spec import ACTION_MASK
from fastrl.vector.driver import STEP, Driver, ErrorAnswer, Request
from fastrl.vector.exchange import UNSEEDED, ActionRows
from fastrl.vector.failures import NOT_FINITE, EnvFailure, is_finite_action
from fastrl.vector.groups import attribute, check_call, set_attribute
from fastrl.vector.infos import Infos, combine, gather
from fastrl.vector.vector_arguments import ObservationMode
from fastrl.vector.vector_plan import VectorPlan

Output = Literal["numpy", "torch"]
StepResult = tuple[Any, Any, Any, Any, Infos]
_METHOD = "fastrl: a method"


class FastVectorEnv(VectorEnv[Any, Any, Any], Closing):
    """A vector environment of gymnasium over any backend; see `fastrl.make_vec`.

    Attributes:
        plan: Plan of the environments and workers.
        closed: Whether it was closed, by `close` or by a failure.
        backend: ``serial``, ``threads``, ``processes`` or ``native``.
        output: ``numpy`` or ``torch``.
        env_kwargs: The parameters of every environment, including drawn ones.
        autoreset_mode: Mode in which the next episode begins; also in
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
        self.plan, self.num_envs, self.backend = plan, plan.num_envs, backend
        self._driver, self._exchange = driver, driver.exchange
        self._finalizer = weakref.finalize(self, driver.close)
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
        self._fits_rows = self._exchange.fits_rows
        self._is_leaf = self._fits_rows and list(leaves(spec.observation_space)) == [""]
        self._plain = self._is_leaf and copy and output == "numpy"
        self._actions = ActionRows(spec.action_space, self._exchange)
        self._banks, self._bank = self._exchange.banks, 0
        self._steps = [Request(STEP, (bank,), fatal=True) for bank in range(NUM_BANKS)]
        # The pending call: step, reset, call or send; empty if there is none.
        self._pending = ""
        self._was_reset, self._why_closed = False, ""
        self._seeds: list[int | None] = [None] * self.num_envs
        self._next_seeds: list[int | None] | None = None
        self._masks = InfoMasks(spec.action_space, self.num_envs)
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
            seed: One for each environment, or the first of consecutive ones; None uses the
                seeds of `seed`, if any; otherwise random streams continue.
            options: Passed to every environment. ``reset_mask``, ``[num_envs]`` bool, is removed
                and selects the environments to reset.

        Raises:
            ArgumentError: Seeds or mask are invalid.
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
        self._check_idle("reset_async")
        seeds = checked_seeds(seed, self.num_envs)
        given = checked_options(options)
        mask = checked_mask(given, self.num_envs, was_reset=self._was_reset)
        if seed is None and self._next_seeds is not None:
            seeds, self._next_seeds = self._next_seeds, None
        seeded = mask & [each is not None for each in seeds]
        if self.plan.native is not None and seeded.any() and (mask & ~seeded).any():
            raise ArgumentError("seed: native environments need one for each, or none")
        for index in np.flatnonzero(seeded).tolist():
            self._seeds[index] = seeds[index]
        self._flip(keep=not mask.all())
        request = Request("reset", (self._bank, given), (seeds, mask.tolist()), fatal=True)
        self._pending = "reset"
        with self._explaining("reset"):
            self._driver.begin(request)

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, Infos]:
        """Finish a `reset`.

        Args:
            timeout: Seconds; by default ``timeout_s`` of `make_vec`.
        """
        parts = self._answers("reset_wait", "reset", "reset", timeout)
        self._was_reset = True
        infos = combine(parts, self.num_envs)
        self._masks.note(infos)
        return self._observation(), infos

    def step(self, actions: Any) -> StepResult:
        """Step every environment once.

        Args:
            actions: A sample of ``action_space``: arrays, lists, or tensors of torch.

        Returns:
            Observations, rewards float64, terminated, truncated and infos.

        Raises:
            ArgumentError: The actions are invalid; no environment was stepped.
            EnvFailure: An environment raised, died or overran the deadline.
        """
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Any) -> None:
        """Begin a `step`, to be finished by `step_wait`."""
        # Without context managers, which take as long as a step of a fast environment.
        if self.closed or self._pending:
            self._check_idle("step_async")
        if not self._was_reset:
            raise ArgumentError("reset the environments before the first step")
        self._actions.write(actions)
        self._pending, self._bank = "step", (self._bank + 1) % NUM_BANKS
        try:
            self._driver.begin(self._steps[self._bank])
        except BaseException as error:
            self._fail(error, "step")

    def step_wait(self, timeout: float | None = None) -> StepResult:
        """Finish a `step`.

        Args:
            timeout: Seconds; by default ``timeout_s`` of `make_vec`.
        """
        if self.closed or self._pending != "step":
            self._expect("step_wait", "step")
        try:
            parts = self._driver.end(self._deadline(timeout))
        except BaseException as error:
            self._fail(error, "step")
        self._pending = ""
        bank = self._banks[self._bank]
        flags = bank.reward.copy(), bank.terminated.copy(), bank.truncated.copy()
        infos = combine(parts, self.num_envs) if any(parts) else {}
        if ACTION_MASK in infos:
            self._masks.note(infos)
        if self.output == "torch":
            return self._observation(), *map(torch.from_numpy, flags), infos
        observation = bank.observation[0].copy() if self._plain else self._observation()
        return observation, *flags, infos

    def async_reset(self, seed: int | Sequence[int | None] | None = None) -> None:
        """Begin a reset of every environment, whose observations `recv` returns.

        Args:
            seed: As in `reset`.

        Raises:
            ArgumentError: Seeds are invalid, or observations or actions are not arrays of fixed
                size.
        """
        seeds = checked_seeds(seed, self.num_envs)
        self._check_rows("async_reset")
        rows = [UNSEEDED if each is None else each for each in seeds]
        if max(rows) > np.iinfo(np.int64).max:
            raise ArgumentError(f"seed: async_reset takes numbers below 2**63, got {max(rows)}")
        self._check_idle("async_reset")
        self._flip()
        self._seeds = [
            old if new is None else new for new, old in zip(seeds, self._seeds, strict=True)
        ]
        self._exchange.reset_seed[:] = rows
        self._sent_reset[:] = True
        self._was_reset = True
        self._dispatch(np.arange(self.num_envs))

    def send(self, actions: Any, env_ids: ArrayLike | None = None) -> None:
        """Begin a step of some environments, each as soon as its worker is free; returns at once.

        Args:
            actions: One for each of ``env_ids``, batched like ``action_space``.
            env_ids: ``[k]`` different environments without a pending step; all by default.

        Raises:
            ArgumentError: Actions or indices are invalid; no environment was stepped.
        """
        indices = np.arange(self.num_envs) if env_ids is None else np.asarray(env_ids)
        first = self._pending != "send"
        if first:
            self._check_idle("send")
        self._check_sendable(indices)
        self._actions.write_some(actions, indices)
        if first:
            self._flip(keep=len(indices) < self.num_envs)
        self._dispatch(indices)

    def recv(self, batch_size: int | None = None, timeout: float | None = None) -> StepResult:
        """Return the results of the first environments that are ready.

        Args:
            batch_size: Number of environments to wait for; by default all pending ones.
            timeout: Seconds; by default ``timeout_s`` of `make_vec`.

        Returns:
            As `step`, with ``batch_size`` rows in the order in which environments were
            ready; ``infos["env_id"]`` contains their indices. Everything is a copy.

        Raises:
            ArgumentError: Fewer environments are pending.
            EnvFailure: An environment raised, died or overran the deadline.
        """
        self._expect("recv", "send")
        under_way = int(self._in_flight.sum())
        count = under_way if batch_size is None else at_least_one("batch_size", batch_size)
        if count > under_way:
            raise ArgumentError(f"batch_size: {under_way} environments are pending, got {count}")
        with self._explaining("step"):
            ready = self._driver.receive(count, self._deadline(timeout))
        ids = np.array([index for index, _ in ready], np.int64)
        self._in_flight[ids] = self._sent_reset[ids] = False
        if not self._in_flight.any():
            self._pending = ""
        bank = self._banks[self._bank]
        infos = combine([gather(list(range(count)), [info for _, info in ready])], count)
        self._masks.note(infos, ids)
        infos["env_id"] = ids
        flags = (self._given(each[ids]) for each in (bank.reward, bank.terminated, bank.truncated))
        return self._nested([row[ids] for row in bank.observation]), *flags, infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the masks of valid actions, ``[num_envs, choices] bool``.

        They come from the key ``action_mask`` of observations, else from that of the latest infos,
        else from a method ``action_masks()`` of the environments. The columns are the options of
        all ``Discrete`` and ``MultiDiscrete`` leaves of the action space, one after the other.

        Raises:
            ArgumentError: The environments have no masks, or none before their first reset.
            EnvError: A mask does not match the actions.
        """
        if observes_mask(self):
            mask = flat_mask(self.single_action_space, self._observation()[ACTION_MASK])
            return np.asarray(mask != 0)
        if (found := self._masks.rows) is not None:
            return found.copy()
        if not self._have_method():
            raise ArgumentError(f"'{self.plan.name}' has no masks of valid actions")
        space = self.single_action_space
        return np.stack([flat_mask(space, mask) != 0 for mask in self.call(METHOD)])

    @property
    def has_action_masks(self) -> bool:
        """Whether there are masks; masks in infos are known after the first reset."""
        return bool(observes_mask(self)) or self._masks.rows is not None or self._have_method()

    def _have_method(self) -> bool:
        if observes_mask(self) is None or self.plan.native is not None:
            return False
        return all(self.parallel(lambda env, _: has_method(env)))

    def seed(self, seeds: int | Sequence[int | None]) -> None:
        """Use these seeds in the next `reset` without seeds."""
        self._next_seeds = checked_seeds(seeds, self.num_envs)

    def render(self) -> tuple[Any, ...]:
        """Return the frame of every environment."""
        return self.call("render")

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment, or read an attribute.

        Raises:
            AttributeError: The environments have no attribute of this name.
            EnvFailure: An environment died or overran the deadline.
        """
        self.call_async(name, *args, **kwargs)
        return self.call_wait()

    def call_async(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Begin a `call`, to be finished by `call_wait`."""
        self._begin_call(name, range(self.num_envs), args, kwargs)

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """Finish a `call`."""
        return self._results("call_wait", timeout)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every environment.

        Args:
            name: Name of the attribute.
            values: A list or tuple with one value per environment, or one value for all.

        Raises:
            ArgumentError: There is not one value per environment.
        """
        self.set_some(name, self._spread(values, "values"), range(self.num_envs))

    def set_some(self, name: str, values: Sequence[Any], indices: Sequence[int]) -> None:
        """Set an attribute of some environments; ``values`` has one for each environment."""
        if self.plan.native is not None:
            raise ArgumentError(
                "native environments take parameters through env_kwargs only; use another backend"
            )
        self._apply("set_attr", partial(set_attribute, name=name), values, indices, name)
        self._results("set_attr", None)

    def call_some(self, name: str, indices: Sequence[int], *args: Any, **kwargs: Any) -> list[Any]:
        """Call a method, or read an attribute, of some environments, in the order of indices."""
        self._begin_call(name, indices, args, kwargs)
        by_index = dict(zip(sorted(set(indices)), self.call_wait(), strict=True))
        return [by_index[index] for index in indices]

    def parallel(
        self,
        function: Callable[[Any, Any], Any],
        arguments: Any = None,
    ) -> tuple[Any, ...]:
        """Return ``function(env, argument)`` for every environment, evaluated in its worker.

        Args:
            function: Function, sent to worker processes by value.
            arguments: A list or tuple with one per environment, or one argument for all.

        Raises:
            ArgumentError: There is not one argument per environment.
        """
        if self.plan.native is not None:
            raise AttributeError("native environments exist as a batch only; use another backend")
        given = self._spread(arguments, "arguments")
        self._apply("parallel", function, given, range(self.num_envs), "parallel")
        return self._results("parallel", None)

    def pids(self) -> dict[str, int]:
        """Return the process id of every worker by name; empty if there are no processes."""
        return self._driver.pids()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments; never hangs."""
        self._finalizer()

    @property
    def envs(self) -> list[Any]:
        """The environments, to read and change; only on the backend ``serial``.

        They must not be stepped or reset singly. Other backends have no such attribute, like
        gymnasium's `AsyncVectorEnv`.
        """
        found = self._driver.environments()
        if found is None:
            raise AttributeError("envs")
        return list(found)

    @property
    def np_random_seed(self) -> Any:
        """The seed of every environment."""
        return self.get_attr("np_random_seed")

    @property  # type: ignore[misc]
    def np_random(self) -> Any:
        """The random generator of every environment; copies if they are in other processes."""
        return self.get_attr("np_random")

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of every environment, or a function that calls a method of all."""
        if name.startswith("_") or "_driver" not in self.__dict__ or self.closed:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        found = self.parallel(_look_up, name)
        if all(isinstance(each, str) and each == _METHOD for each in found):
            return partial(self.call, name)
        return found

    def _take_spaces(self, whole: Space[Any], single: Space[Any]) -> None:
        """Use the caller's observation spaces.

        Raises:
            ArgumentError: The space of one environment has another shape or dtype.
        """
        found = self.single_observation_space
        if not is_space_dtype_shape_equiv(single, found):
            raise ArgumentError(
                f"observation_mode: the space of one environment, {one_line(single)}, has another "
                f"shape or dtype than that of the environments, {one_line(found)}"
            )
        self.observation_space, self.single_observation_space = whole, single

    def _check_rows(self, name: str) -> None:
        if self.plan.native is not None:
            raise ArgumentError(
                "native environments step all together; use step, or another backend"
            )
        if not self._fits_rows:
            raise ArgumentError(f"{name}: observations or actions are not arrays of fixed size")

    def _check_sendable(self, indices: NDArray[np.intp]) -> None:
        if not self._was_reset:
            raise ArgumentError("reset the environments before the first step")
        self._check_rows("send")
        if indices.ndim != 1 or indices.dtype.kind not in "iu" or not len(indices):
            raise ArgumentError(f"env_ids must be a list of whole numbers, got {indices}")
        if indices.min() < 0 or indices.max() >= self.num_envs:
            raise ArgumentError(f"env_ids must be below {self.num_envs}, got {indices}")
        if len(np.unique(indices)) < len(indices) or self._in_flight[indices].any():
            raise ArgumentError(f"env_ids: some have a pending step already, got {indices}")

    def _dispatch(self, indices: NDArray[np.intp]) -> None:
        self._pending, self._in_flight[indices] = "send", True
        with self._explaining("step"):
            self._driver.send(indices.tolist(), self._bank)

    def _observation(self) -> Any:
        """Return the observations in the current bank."""
        rows = self._banks[self._bank].observation
        if self._fits_rows:
            return self._nested([row.copy() for row in rows] if self._copy else rows)
        space = self._driver.spec.observation_space
        empty: Any = create_empty_array(space, n=self.num_envs, fn=np.zeros)
        return copying.deepcopy(concatenate(space, rows[0].tolist(), empty))

    def _nested(self, rows: Sequence[NDArray[Any]]) -> Any:
        """Return one array per leaf in the form of the observation space."""
        if self._is_leaf:
            return self._given(rows[0])
        return nested(self._driver.spec.observation_space, map(self._given, rows))

    def _given(self, array: NDArray[Any]) -> Any:
        return torch.from_numpy(array) if self.output == "torch" else array

    def _flip(self, *, keep: bool = False) -> None:
        """Write into the other bank from now on, so that the last results stay valid.

        Args:
            keep: Copy the observations, because some environments will not write theirs.
        """
        last, self._bank = self._bank, (self._bank + 1) % NUM_BANKS
        if keep:
            banks = self._banks
            pairs = zip(banks[self._bank].observation, banks[last].observation, strict=True)
            for row, seen in pairs:
                row[...] = seen

    def _deadline(self, timeout: float | None) -> float:
        return self.plan.timeout_s if timeout is None else min(timeout, TIMEOUT_MAX)

    def _check_idle(self, name: str) -> None:
        if self.closed:
            why = f" after {self._why_closed}" if self._why_closed else ""
            raise ClosedEnvironmentError(f"`{name}`: the vector environment was closed{why}")
        if self._pending:
            raise AlreadyPendingCallError(
                f"`{name}`: a call to `{self._pending}` is pending", self._pending
            )

    def _expect(self, name: str, pending: str) -> None:
        if self.closed:
            self._check_idle(name)
        if self._pending != pending:
            raise NoAsyncCallError(f"`{name}`: no call is pending", name)

    def _begin_call(
        self, name: str, indices: Sequence[int], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        check_call(name, "the vector environment")
        function = partial(attribute, name=name, args=args, kwargs=kwargs)
        self._apply("call_async", function, [None] * self.num_envs, indices, name)

    def _apply(
        self,
        caller: str,
        function: Callable[[Any, Any], Any],
        arguments: Sequence[Any],
        indices: Sequence[int],
        what: str,
    ) -> None:
        """Begin ``function(env, argument)`` in some environments; ``arguments`` has one each."""
        chosen, user_call = set(indices), caller.removesuffix("_async")
        mask = [index in chosen for index in range(self.num_envs)]
        self._check_idle(caller)
        self._pending = "call"
        with self._explaining(f"call to '{what}'"):
            self._driver.begin(Request("apply", (function,), (arguments, mask), caller=user_call))

    def _answers(self, name: str, pending: str, doing: str, timeout: float | None) -> list[Any]:
        self._expect(name, pending)
        with self._explaining(doing):
            parts = self._driver.end(self._deadline(timeout))
        self._pending = ""
        return parts

    def _results(self, name: str, timeout: float | None) -> tuple[Any, ...]:
        parts = self._answers(name, "call", "call", timeout)
        for part in parts:
            if isinstance(part, ErrorAnswer):
                error, trace = part.error, part.remote_traceback
                note = f"raised by env {part.env_index} of '{self.plan.name}'"
                # An error from another process has lost its traceback.
                error.add_note(note if error.__traceback__ else f"{note}\n\n{trace}".rstrip())
                raise error
        return tuple(result for part in parts for result in part)

    def _spread(self, values: Any, name: str) -> list[Any]:
        if not isinstance(values, list | tuple):
            return [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ArgumentError(
                f"{name}: got {len(values)} for {self.num_envs} environments; a list or tuple "
                "must hold one for each"
            )
        return list(values)

    @contextlib.contextmanager
    def _explaining(self, doing: str) -> Iterator[None]:
        """Pass errors to `_fail`."""
        try:
            yield
        except BaseException as error:
            self._fail(error, doing)

    def _fail(self, error: BaseException, doing: str) -> NoReturn:
        """Close the environments and raise the error; add action and seed to a failure.

        An `ArgumentError` closes nothing, as it is raised before any change.
        """
        if isinstance(error, ArgumentError):
            self._pending = ""
            raise error
        # Otherwise the next call would read the answers to an interrupted one.
        self._why_closed = f"an interrupted {doing}"
        if isinstance(error, EnvFailure):
            self._pending = ""
            self._explain(error, doing)
            self._why_closed = one_line(error.args[0], 200)
        with contextlib.suppress(Exception):  # the first error is more important
            self.close()
        self.closed = True
        raise error

    def _explain(self, failure: EnvFailure, doing: str) -> None:
        """Name in a failure the environment, its last seed and its action."""
        index = failure.env_index
        assert index is not None
        failure.seed = seed = self._seeds[index]
        if self._sent_reset[index]:
            doing = "reset"
        elif doing == "step":
            failure.action = action = self._actions.of(index)
            doing += f"(action={one_line(action)})"
            if not is_finite_action(action):
                doing += NOT_FINITE
        seeded = f"last seed {seed}" if seed is not None else "never seeded"
        failure.explain(self.plan.name, f"in {doing}", seeded)


def _look_up(env: Any, name: str) -> Any:
    found = env.get_wrapper_attr(name)
    return _METHOD if callable(found) else found
