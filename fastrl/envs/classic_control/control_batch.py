"""Classic control behind `BatchedEnv`: n environments, stepped by one compiled call.

`build`, `make_vec` and `make_single` build them by id; `fastrl.envs.families` registers them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from fastrl.arguments import brief, instance, nearest, whole
from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.envs.batched_env import BatchShapes, Rows, StepViews
from fastrl.envs.classic_control import control_kernels
from fastrl.envs.classic_control.control_kernels import EnvArrays, Views
from fastrl.envs.classic_control.loop_ops import GOLDEN, MIX_1, MIX_2
from fastrl.envs.classic_control.render import FRAMES_PER_S, Renderer
from fastrl.envs.state import State, fitting
from fastrl.envs.tensor.base import TensorEnv, wrong_choice
from fastrl.envs.tensor.randomize import exposed, named, quantiles, randomizable
from fastrl.envs.tensor.tensor_by_id import make_tensor
from fastrl.envs.vector_facade import BatchedVectorEnv, Frame, SingleBatchedEnv
from fastrl.errors import EnvError
from fastrl.registry import NAMESPACE

_SAVED = ("state", "time", "noise", "params")
"""Arrays of `EnvArrays` that change, the last one only if parameters are randomised."""
LARGEST = 2**31 - 1
"""Greatest time limit in steps: time is kept as int32."""
_PENDULUM = {"x_init": "reset_angle", "y_init": "reset_speed"}
_GREATEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Options:
    """Options beyond those of gymnasium's environments.

    Attributes:
        params: Parameters by name: a number, or one for each environment, ``[n]``.
        max_episode_steps: Time limit in steps; None keeps the id's own.
        action_bounds: ``clip`` or ``squash``: conversion of bounded ``Box`` actions before the
            dynamics; None leaves actions unchanged, as in gymnasium.
        randomize: Distributions of parameters; see `fastrl.envs.tensor.randomize`.
        expose_params: Observe ``{"observation": …, "params": …}``, with the
            randomised parameters ``[R]``, which are then stored in rollouts and observed by
            policies.
        num_threads: Number of threads that step; use one inside an env worker.
    """

    params: Mapping[str, Any] | None = None
    max_episode_steps: int | None = None
    action_bounds: ActionBounds | None = "clip"
    randomize: Mapping[str, Any] | None = None
    expose_params: bool = False
    num_threads: int = 1


class ClassicControlBatch:
    """n environments of one kind; a `BatchedEnv`.

    An environment depends only on its own seed and actions; see `new_streams`.

    Attributes:
        spec: Spaces and fields of each environment.
        num_envs: Number of environments, n.
        randomized: Names of the parameters that are drawn for every episode.
        started: Whether episodes have begun.
        taken: ``[n]``: the actions of the last step; None if an episode has begun since.
    """

    def __init__(self, name: str, num_envs: int, options: Options | None = None) -> None:
        """Create n environments of an id of gymnasium; `reset` starts their episodes.

        Raises:
            EnvError: There is no such environment, or an option is invalid.
            SpaceError: Actions cannot be squashed.
        """
        options = instance("options", options or Options(), Options)
        self._env, _ = make_tensor(name)
        whole("num_threads", options.num_threads, at_most=LARGEST)
        if options.max_episode_steps is not None:
            whole("max_episode_steps", options.max_episode_steps, at_most=LARGEST)
        whole("num_envs", num_envs, at_most=LARGEST)
        instance("expose_params", options.expose_params, bool)
        self.num_envs = num_envs
        self._quantiles, drawn = quantiles(options.randomize, randomizable(self._env))
        params = _values(self._env, options.params or {}, num_envs)
        bounds = dict(zip(randomizable(self._env), _bounds(params), strict=True))
        self._env = self._env.within({**bounds, **drawn})
        self.randomized = tuple(self._quantiles)
        self._exposes = options.expose_params
        limit = options.max_episode_steps or self._env.spec.max_episode_steps
        self.spec = replace(self._env.spec, max_episode_steps=limit)
        if options.expose_params:
            self.spec = exposed(self.spec, len(self.randomized))
        self._noise_size = self._env.noise_size + len(self.randomized)
        fields = list(self._env.params_type._fields)
        self._randomized_rows = [fields.index(each) for each in self.randomized]
        converter = ActionConverter(self.spec.action_space, options.action_bounds)
        action = self.spec.action_space
        self._num_actions = int(action.n) if isinstance(action, spaces.Discrete) else 0
        self._convert = None if self._num_actions else converter.batch
        self._shapes = BatchShapes(self.spec, num_envs)
        self._batch = self._allocate(params)
        threads = min(options.num_threads, num_envs)
        ends = np.linspace(0, num_envs, threads + 1).astype(int).tolist()
        # The environments of each thread: the first, and the one after the last.
        self._ranges = list(pairwise(ends))
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        self.started = False
        self.taken: NDArray[Any] | None = None

    def reset(self, seeds: Sequence[int], observation: Rows) -> None:
        """Start an episode in every environment; see `BatchedEnv.reset`.

        Raises:
            EnvError: There is not one seed per environment, or the observations have another shape.
        """
        self._shapes.check_seeds(seeds)
        self._shapes.check_restart(observation)
        self._batch.noise[:] = new_streams(seeds)
        self.started = True
        self.restart(observation)

    def step(self, views: StepViews) -> None:
        """Step every environment once; see `BatchedEnv.step`.

        Raises:
            EnvError: The environments were never reset.
        """
        ended = self.advance(views, restart=not self.randomized)
        if ended and self.randomized:
            self.restart(views.observation, views.terminated | views.truncated)

    def advance(self, views: StepViews, *, restart: bool) -> int:
        """Step every environment once; return the number of episodes that ended.

        Args:
            views: See `StepViews`. If an episode ended and the next has not begun, the
                observation is the final one.
            restart: Begin the next episode if one is done, with the same parameters. Otherwise call
                `restart`.

        Raises:
            EnvError: The environments were never reset, the views have another shape, or a discrete
                action is outside of its space; no environment was stepped.
        """
        if not self.started:
            raise EnvError(f"'{self.spec.id}' was stepped before its first reset")
        bound = self._bind(views)
        self.taken = bound.action
        given = self._batch, bound, restart
        own, *others = self._ranges
        calls = [
            self._pool.submit(control_kernels.step, *given, *each)
            for each in others
            if self._pool is not None
        ]
        ended = int(control_kernels.step(*given, *own))
        ended += sum(int(call.result()) for call in calls)
        if self._exposes:
            self._show(views.observation[1])
            if ended:
                over = views.terminated | views.truncated
                views.final_observation[1][over] = views.observation[1][over]
        return ended

    def restart(
        self,
        observation: Rows,
        chosen: NDArray[np.bool_] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        """Begin the next episode, and write the first observations.

        Args:
            observation: Per leaf ``[n, *shape]``; rows of other environments do not change.
            chosen: ``[n]`` bool: environments; all by default.
            seeds: One for each chosen environment: the first episode of its stream begins.

        Raises:
            EnvError: The arrays have other shapes, or ``chosen`` is not bool.
        """
        if chosen is None:
            chosen = np.ones(self.num_envs, np.bool_)
        self._shapes.check_restart(observation, chosen)
        if seeds is not None:
            self._batch.noise[:, chosen] = new_streams(seeds)
        self.taken = None
        self._draw_params(chosen)
        control_kernels.begin(self._batch, chosen, observation[0])
        if self._exposes:
            self._show(observation[1])

    @contextmanager
    def beginning(self, options: Mapping[str, Any]) -> Iterator[None]:
        """Apply options of ``reset`` to episodes that begin in this context.

        Raises:
            EnvError: An option is unknown or invalid, or its parameter is randomised.
        """
        if not options:
            yield
            return
        fields, batch = self._env.params_type._fields, self._batch
        kept = batch.params.copy()
        params = dict(zip(fields, map(np.asarray, self.params()), strict=True))
        given = reset_parameters(self.spec.id, options, params)
        for name in given:
            if name in self.randomized:
                raise EnvError(f"reset options {list(options)}: env.randomize draws '{name}'")
        for name, value in given.items():
            numbers = np.broadcast_to(np.asarray(value, np.float32), self.num_envs)
            batch.params[fields.index(name)] = numbers if batch.params.ndim == 2 else numbers[0]
        try:
            yield
        finally:
            rows = [fields.index(name) for name in given]
            batch.params[rows] = kept[rows]

    def close(self) -> None:
        """End the threads, without which later steps take place in this one."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool, self._ranges = None, [(0, self.num_envs)]

    def get_state(self) -> State:
        """Return the state on which later steps depend, by name; see `fastrl.envs.state`."""
        names = [name for name in _SAVED if name != "params" or self.randomized]
        return {name: getattr(self._batch, name).copy() for name in names}

    def set_state(self, state: State) -> None:
        """Restore a state of `get_state`.

        Raises:
            StateError: It belongs to another environment or another number of environments.
        """
        for name, like in self.get_state().items():
            getattr(self._batch, name)[...] = fitting(state, name, like)
        self.started = True

    def state(self) -> Any:
        """Return a copy of all states, as the tensor program's class, of tensors ``[n]``."""
        rows = (*self._batch.state.copy(), self._batch.time.copy())
        return self._env.state_type(*map(torch.from_numpy, rows))

    def params(self) -> Any:
        """Return a copy of the parameters, as the tensor program's class, of ``[]`` or ``[n]``."""
        rows = self._batch.params.copy()
        limit = torch.tensor(self.spec.max_episode_steps, dtype=torch.int32)
        return self._env.params_type(*map(torch.as_tensor, rows), limit)

    def _allocate(self, params: NDArray[np.float32]) -> EnvArrays:
        kind: Any = control_kernels.BATCHES[self.spec.id]
        if self.randomized and params.ndim == 1:
            params = np.repeat(params[:, None], self.num_envs, axis=1)
        batch: EnvArrays = kind(
            params=params,
            state=np.zeros((len(self._env.state_type._fields) - 1, self.num_envs), np.float32),
            time=np.zeros(self.num_envs, np.int32),
            time_limit=self.spec.max_episode_steps,
            noise=np.zeros((2, self.num_envs), np.uint64),
            noise_size=self._noise_size,
        )
        return batch

    def _draw_params(self, chosen: NDArray[np.bool_]) -> None:
        """Draw the randomised parameters of environments that will begin an episode."""
        if not self.randomized:
            return
        envs, batch = np.flatnonzero(chosen), self._batch
        noise = torch.from_numpy(peek(batch.noise, envs, self._noise_size))
        columns = noise[:, self._env.noise_size :].unbind(1)
        for row, quantile, column in zip(
            self._randomized_rows, self._quantiles.values(), columns, strict=True
        ):
            batch.params[row, envs] = quantile(column).numpy()

    def _show(self, rows: NDArray[np.float32]) -> None:
        """Write the randomised parameters, ``[n, R]``."""
        rows[:] = self._batch.params[self._randomized_rows].T

    def _bind(self, views: StepViews) -> Views:
        self._shapes.check_views(views)
        if self._convert is None:
            action = views.action[0].view()
            # Actions may be writable or not, for which the compiler would make two versions.
            action.flags.writeable = False
            require_choices(self.spec.id, action, self._num_actions)
        else:
            action = self._convert(views.action).reshape(-1)
        return Views(
            action=action,
            observation=views.observation[0],
            reward=views.reward,
            terminated=views.terminated,
            truncated=views.truncated,
            final_observation=views.final_observation[0],
        )


def build(name: str, num_envs: int, **kwargs: Any) -> ClassicControlBatch:
    """Build n environments by id, ``CartPole-v1`` or ``fastrl/CartPole-v1``.

    Keyword arguments are fields of `Options`, and parameters such as ``gravity``.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or invalid.
    """
    return ClassicControlBatch(_name(name), num_envs, _options(kwargs))


def make_vec(
    name: str,
    num_envs: int,
    autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    render_mode: str | None = None,
    **kwargs: Any,
) -> BatchedVectorEnv:
    """Build n environments as a vector environment; see `build`.

    Actions are not changed, as in gymnasium, unless ``action_bounds`` is given. In mode NEXT_STEP
    the step after the end of an episode begins the next one, and its action is ignored.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or invalid.
    """
    batch = build(name, num_envs, **{"action_bounds": None, **kwargs})
    return BatchedVectorEnv(
        batch,
        autoreset_mode=autoreset_mode,
        render_mode=render_mode,
        painter=partial(_Pictures, batch),
        # Thousands of episodes may end in a step, too many for one object each.
        final_objects=False,
        metadata={"render_modes": ["rgb_array"], "render_fps": FRAMES_PER_S[batch.spec.id]},
    )


def make_single(
    name: str,
    render_mode: str | None = None,
    **kwargs: Any,
) -> SingleBatchedEnv:
    """Build one environment without a time limit, which `gymnasium.make` adds; see `make_vec`.

    Raises:
        EnvError: There is no such environment, or an argument is unknown or invalid.
    """
    options = _options({"action_bounds": None, **kwargs, "max_episode_steps": LARGEST})
    batch = ClassicControlBatch(_name(name), 1, options)
    return SingleBatchedEnv(
        batch,
        render_mode=render_mode,
        painter=partial(_Pictures, batch, draws_torque=True),
        fps=FRAMES_PER_S[batch.spec.id],
    )


class _Pictures:
    """Pictures of the environments of a batch; see `Painter`."""

    def __init__(self, batch: ClassicControlBatch, *, draws_torque: bool = False) -> None:
        self._batch, self._renderer = batch, Renderer(batch.spec.id)
        self._draws_torque = draws_torque
        self.close = self._renderer.close

    def picture(self, index: int) -> Frame:
        batch = self._batch
        taken = batch.taken if self._draws_torque else None
        torque = None if taken is None else float(taken[index])
        return self._renderer.render(batch.state(), index, batch.params(), torque)


def _name(env_id: str) -> str:
    return instance("name", env_id, str).removeprefix(NAMESPACE)


def _options(kwargs: dict[str, Any]) -> Options:
    known = {field.name for field in fields(Options)} - {"params"}
    options = {key: kwargs[key] for key in kwargs if key in known}
    return Options(params={key: kwargs[key] for key in kwargs if key not in known}, **options)


def require_choices(name: str, actions: NDArray[np.int64], num_actions: int) -> None:
    """Reject discrete actions ``[n]`` that are not int64 from 0 to ``num_actions`` - 1.

    Raises:
        EnvError: There is one; the error names the first and its environment.
    """
    if actions.dtype != np.int64:
        raise EnvError(f"actions are of dtype {actions.dtype}; expected int64")
    if control_kernels.count_outside(actions, num_actions):
        index = int(np.flatnonzero((actions < 0) | (actions >= num_actions))[0])
        raise wrong_choice(f"env {index} of '{name}'", num_actions, actions[index])


def _bounds(params: NDArray[np.float32]) -> list[tuple[float, float]]:
    """Return the least and the greatest value of each parameter ``[P]`` or ``[P, n]``."""
    return [(float(np.min(row)), float(np.max(row))) for row in params]


def _values(
    env: TensorEnv[Any, Any], given: Mapping[str, Any], num_envs: int
) -> NDArray[np.float32]:
    """Return parameters ``[P]``, or ``[P, n]`` if some differ between environments."""
    values = {**env.defaults, **named(env, given)}
    columns = [
        _numbers(env.written.get(name, name), values[name], num_envs) for name in randomizable(env)
    ]
    return np.stack(np.broadcast_arrays(*columns)).astype(np.float32)


def _numbers(name: str, value: object, num_envs: int) -> NDArray[np.float64]:
    try:
        given = np.asarray(value)
    except ValueError:  # lists of several lengths
        given = np.full((), None)
    numbers = given.astype(np.float64) if given.dtype.kind in "fiu" else np.full((), np.nan)
    fits = numbers.shape in ((), (num_envs,)) and bool((np.abs(numbers) <= _GREATEST).all())
    if not fits:
        raise EnvError(
            f"env.kwargs.{name}: expected a finite number, or {num_envs} of them, got {value!r}"
        )
    return numbers


def new_streams(seeds: Sequence[int]) -> NDArray[np.uint64]:
    """Return uint64 ``[2, n]``: the key of each seed's stream, and 0 numbers drawn from it.

    Number c of the stream with key k is SplitMix64's output c from state k (Steele, Lea and Flood
    2014, https://doi.org/10.1145/2660193.2660195), of which the upper 24 bits make a float32 in
    [0, 1). The key is the first output from the seed, so that streams of neighbouring seeds are
    unrelated. Only the count is stored, and an environment's numbers do not depend on other ones.
    """
    states = np.array([int(seed) % 2**64 for seed in seeds], np.uint64)
    return np.stack([_outputs(states), np.zeros_like(states)])


def peek(streams: NDArray[np.uint64], envs: Any, size: int) -> NDArray[np.float32]:
    """Return the next ``size`` numbers of m streams, ``[m, size]``, without drawing them.

    ``envs`` selects from the streams ``[2, n]``: a slice, a mask or indices.
    """
    keys, counts = (stream[envs, None] for stream in streams)
    numbers = counts + np.arange(size, dtype=np.uint64)
    states: NDArray[np.uint64] = keys + numbers * np.uint64(GOLDEN)
    return (_outputs(states) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _outputs(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = states + np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
    return z ^ (z >> np.uint64(31))


def reset_parameters(
    name: str, options: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the parameters for options of gymnasium's ``reset``.

    Args:
        name: Id of gymnasium's environment.
        options: Options; defaults depend on the parameters.
        params: Parameters by name: a number, or an array ``[n]``.

    Raises:
        EnvError: An option is unknown or not a number, or the bounds are in the wrong order.
    """
    known = tuple(_PENDULUM) if "reset_angle" in params else ("low", "high")
    for key, value in options.items():
        if key not in known:
            hint = nearest(str(key), known) or f"; it knows {' and '.join(known)}"
            raise EnvError(f"'{name}' has no reset option '{key}'{hint}")
        if not isinstance(value, Real) or isinstance(value, bool) or not np.isfinite(float(value)):
            raise EnvError(f"reset option '{key}' must be a number, got {brief(value)}")
        if key in _PENDULUM and value < 0:
            raise EnvError(f"reset option '{key}' must not be negative, got {float(value)}")
    if "reset_angle" in params:
        return {_PENDULUM[key]: float(value) for key, value in options.items()}
    if "reset_low" in params:
        low, high = _reset_bounds(options, params["reset_low"], params["reset_high"])
        return {"reset_low": low, "reset_high": high}
    center, bound = params["reset_center"], params["reset_bound"]
    low, high = _reset_bounds(options, center - bound, center + bound)
    return {"reset_center": (low + high) / 2, "reset_bound": (high - low) / 2}


def _reset_bounds(options: Mapping[str, Any], low: Any, high: Any) -> tuple[Any, Any]:
    low, high = (
        float(options[key]) if key in options else value
        for key, value in (("low", low), ("high", high))
    )
    if np.any(low > high):
        raise EnvError(
            f"reset option 'low' must not be above 'high', got {np.max(low)} and {np.min(high)}"
        )
    return low, high
