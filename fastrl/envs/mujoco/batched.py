"""A `BatchedEnv` for any MuJoCo model: subclass it with an MJCF file and three NumPy functions.

::

    class Jumper(MujocoBatchedEnv):
        xml_file = "./jumper.xml"
        frame_skip = 4
        time_limit = 500

        def observation(self, now):
            return now.qpos, now.qvel

        def reward(self, step):
            return {"height": step.now.qpos[:, 0], "effort": -0.01 * np.square(step.action).sum(1)}

        def terminated(self, now):
            return now.qpos[:, 0] < 0.1

The class is a factory for `fastrl.envs.EnvFactory`: ``my_module:Jumper``. Its
`single` is one environment behind gymnasium's interface, a batch of one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import Field, dataclass, fields
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco.mujoco_env import expand_model_path
from gymnasium.utils.seeding import np_random
from numpy.typing import NDArray

from fastrl.arguments import brief, is_whole, nearest, whole
from fastrl.envs.actions import ActionBounds, ActionConverter
from fastrl.envs.batched_env import BatchShapes, Rows, StepViews
from fastrl.envs.mujoco.physics import Fields, Floats, Physics
from fastrl.envs.mujoco.randomization import Randomization
from fastrl.envs.mujoco.rendering import Photographer, View
from fastrl.envs.state import State, fitting, fitting_list
from fastrl.envs.vector_facade import SingleBatchedEnv
from fastrl.errors import EnvError
from fastrl.spec import EnvSpec

_NEVER = 2**63 - 1
_NOT_NEGATIVE = frozenset({"reset_noise_scale"})
Terms = Mapping[str, Any]


@dataclass(frozen=True)
class Parameters:
    """Base class of the keyword arguments of an environment; it has none."""


@dataclass
class Step:
    """One step of n environments: the argument of `MujocoBatchedEnv.reward`.

    Attributes:
        now: Fields after the step.
        action: ``[n, nu]`` float32 (float64 if it was passed to gymnasium's interface), as passed
            to MuJoCo, which clamps it to the actuators' ranges.
        before: Result of `MujocoBatchedEnv.tracked` before the step.
        after: Result of it after the step.
        terminated: ``[n]`` bool, as `MujocoBatchedEnv.terminated` returned it; None for never.
    """

    now: Fields
    action: NDArray[Any]
    before: Any
    after: Any
    terminated: NDArray[np.bool_] | None


class MujocoBatchedEnv(ABC):
    """n environments with one MuJoCo model; see `BatchedEnv` for the contract of its methods.

    Computations use float64; observations and rewards are cast to the dtype of the views they
    are written to, which may be float64. Functions that a subclass defines work on ``[n, …]`` rows
    and must treat all rows in the same way.

    Attributes:
        spec: Spaces and fields of each environment.
        num_envs: Number of environments, n.
        physics: The simulations.
        params: The keyword arguments, an instance of `Params`.
        terms: Terms of the last step's rewards, by name.
        dt: Seconds of simulated time per step; ``[n]`` if the time step is randomised.
        exact: Observations and rewards may be of any floating dtype; see `BatchedEnv`.
    """

    exact = True

    id: ClassVar[str] = ""
    """Name in messages; by default the name of the class."""
    xml_file: ClassVar[str]
    """Path of the MJCF file; gymnasium's own asset unless it starts with ``/``, ``.`` or ``~``."""
    frame_skip: ClassVar[int]
    """Time steps of the simulation per step of the environment."""
    time_limit: ClassVar[int | None] = None
    """Steps after which an episode is truncated by default."""
    Params: ClassVar[type[Any]] = Parameters
    """Dataclass of the keyword arguments; may have ``xml_file`` and ``frame_skip``."""
    _name: ClassVar[str]

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = None,
        randomize: Mapping[str, Any] | None = None,
        *,
        num_threads: int = 1,
        action_bounds: ActionBounds | None = "clip",
        **kwargs: Any,
    ) -> None:
        """Load the model and create the simulations; `reset` starts their episodes.

        Args:
            num_envs: Number of environments, n.
            max_episode_steps: Time limit in steps; None keeps the class's, -1 is no limit.
            randomize: Distributions of fields of the model; see `fastrl.envs.mujoco.randomization`.
            num_threads: Number of threads that step; use one inside an env worker.
            action_bounds: ``clip`` or ``squash``: conversion of actions to the actuators' ranges
                before rewards are computed; None leaves that to MuJoCo, so that costs are those of
                the actions as given, as in gymnasium's robots.
            **kwargs: Fields of `Params`.

        Raises:
            EnvError: An argument is unknown or invalid, or the model cannot be loaded.
        """
        self.num_envs = whole("num_envs", num_envs)
        num_threads = min(whole("num_threads", num_threads), num_envs)
        self.params = parse(self._name, self.Params, kwargs)
        path = _model_path(getattr(self.params, "xml_file", None) or self.xml_file)
        self.physics = Physics(path, num_envs, self.fields(), num_threads)
        self._nstep = _frame_skip(getattr(self.params, "frame_skip", None), self.frame_skip)
        self._randomization = Randomization(self.physics, randomize) if randomize else None
        self.dt = _dt(self.physics, self._nstep)
        self.setup()

        parts = self.observation(self.physics.now)
        _check_observation(self._name, parts, num_envs)
        size = sum(part.shape[1] for part in parts)
        self.spec = EnvSpec(
            self._name,
            spaces.Box(-np.inf, np.inf, (size,), np.float64),
            _action_space(self.physics),
            _limit(max_episode_steps, self.time_limit),
        )
        self._shapes = BatchShapes(self.spec, num_envs)
        self._actions = ActionConverter(self.spec.action_space, action_bounds)
        self._limit = self.spec.max_episode_steps or _NEVER
        self._clock = 0
        self._deadlines = np.full(num_envs, _NEVER)
        self._next_deadline = _NEVER
        self._generators: list[np.random.Generator] = []
        self._parameter_generators: list[np.random.Generator] = []
        self._tracked: Any = None
        self.terms: dict[str, Any] = {}
        self._looked = False

    def __init_subclass__(cls) -> None:
        """Use the name of a subclass without an id."""
        super().__init_subclass__()
        cls._name = cls.id or cls.__name__

    # Methods that a subclass defines.

    def fields(self) -> Sequence[str]:
        """Return the fields of ``mjData`` that are read beyond ``qpos``, ``qvel`` and ``ctrl``."""
        return ()

    def setup(self) -> None:  # noqa: B027
        """Look up indices and the like for the functions below, after the model is loaded."""

    def initial(self, generator: np.random.Generator) -> tuple[Floats, Floats]:
        """Draw the first state of one environment's episode.

        Args:
            generator: Generator of the environment, seeded as in gymnasium.

        Returns:
            qpos: ``[nq]``.
            qvel: ``[nv]``.
        """
        return self.physics.initial_qpos, np.zeros(self.physics.model.nv)

    def tracked(self, now: Fields) -> Any:
        """Return an array ``[n, …]`` whose value before the step the reward needs."""
        return None

    @abstractmethod
    def observation(self, now: Fields) -> Sequence[NDArray[Any]]:
        """Return parts ``[n, k]`` of the observation, which are concatenated."""

    @abstractmethod
    def reward(self, step: Step) -> Terms:
        """Return the terms that add up to the reward: ``[n]``, or one number for all."""

    def terminated(self, now: Fields) -> NDArray[np.bool_] | None:
        """Return flags of terminal states, ``[n]`` bool; None if there are no terminal states."""
        return None

    # Methods that a sampler calls.

    def reset(self, seeds: Sequence[int], observation: Rows) -> None:
        """Start an episode in every environment; see `BatchedEnv.reset`.

        An environment's first observation equals gymnasium's for the same seed.

        Raises:
            EnvError: There is not one seed per environment.
        """
        self._shapes.check_seeds(seeds)
        self._shapes.check_restart(observation)
        streams = [_streams(seed) for seed in seeds]
        self._generators, self._parameter_generators = map(list, zip(*streams, strict=True))
        self._begin(np.ones(self.num_envs, np.bool_), observation[0], first=True)

    def restart(
        self,
        observation: Rows,
        chosen: NDArray[np.bool_] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        """Start the next episode.

        Args:
            observation: One array ``[n, size]``, written where an episode starts.
            chosen: ``[n]`` bool: in which environments; in all by default.
            seeds: One for each environment that is chosen: the first episode of its stream starts.

        Raises:
            EnvError: The environments were never seeded by `reset`, or an array does not fit.
        """
        self._check_seeded()
        chosen = np.ones(self.num_envs, np.bool_) if chosen is None else chosen
        self._shapes.check_restart(observation, chosen)
        if seeds is not None:
            for index, seed in zip(np.flatnonzero(chosen).tolist(), seeds, strict=True):
                self._generators[index], self._parameter_generators[index] = _streams(seed)
        self._begin(chosen, observation[0], first=seeds is not None)

    def step(self, views: StepViews) -> None:
        """Step every environment once; see `BatchedEnv.step`.

        Raises:
            EnvError: It was never reset, the views are invalid, MuJoCo reports that an environment
                is unstable (with its index), or a function of the subclass returns a wrong type
                or shape.
        """
        self._check_seeded()
        self._shapes.check_views(views)
        physics, now = self.physics, self.physics.now
        action = self._actions.batch(views.action)
        now.ctrl[:] = action
        physics.step(self._nstep)
        terminal = self.terminated(now)
        after = self._track()
        terms = self.reward(Step(now, action, self._tracked, after, terminal))
        self._tracked = after
        if not self._looked:
            self._looked = True
            _check_terms(self._name, terms, self.num_envs)
            _check_flags(self._name, terminal, self.num_envs)
        self.terms = dict(terms)
        views.reward[:] = _sum(terms)
        if terminal is None:
            views.terminated.fill(False)
        else:
            views.terminated[:] = terminal
        self._clock += 1
        if self._clock >= self._next_deadline:
            np.greater(self._deadlines <= self._clock, views.terminated, out=views.truncated)
        else:
            views.truncated.fill(False)
        _write(self.observation(now), views.observation[0], ...)
        ended = views.terminated | views.truncated
        if ended.any():
            # The terms may be views of fields, which restarting overwrites.
            self.terms = {name: np.array(term) for name, term in self.terms.items()}
            views.final_observation[0][ended] = views.observation[0][ended]
            self._begin(ended, views.observation[0], first=False)

    def get_state(self) -> State:
        """Return the state on which later steps depend; see `fastrl.envs.state`.

        A subclass whose functions store values in attributes adds these, and restores them in
        `set_state`.
        """
        return {
            "physics": self.physics.get_state(),
            "elapsed": self._limit - (self._deadlines - self._clock),
            "tracked": deepcopy(self._tracked),
            "generators": deepcopy(self._generators),
            "parameter_generators": deepcopy(self._parameter_generators),
        }

    def set_state(self, state: State) -> None:
        """Restore a state of `get_state`, after a reset.

        Raises:
            StateError: It belongs to another environment or another number of environments.
        """
        elapsed = fitting(state, "elapsed", self._deadlines)
        self.physics.set_state(state["physics"])
        if self._randomization is not None:
            self._randomization.derive(np.arange(self.num_envs))
            self.dt = _dt(self.physics, self._nstep)
        self._clock, self._deadlines[:] = 0, self._limit - elapsed
        self._next_deadline = int(self._deadlines.min())
        tracked = self._track()
        self._tracked = None if tracked is None else fitting(state, "tracked", tracked).copy()
        self._generators, self._parameter_generators = (
            fitting_list(state, name, np.random.Generator, self.num_envs)
            for name in ("generators", "parameter_generators")
        )

    def info(self) -> dict[str, NDArray[Any]]:
        """Return the terms of the last step's rewards by name, each ``[n]``."""
        return {name: np.broadcast_to(term, self.num_envs) for name, term in self.terms.items()}

    def close(self) -> None:  # noqa: B027
        """Do nothing: the simulations are freed with the object."""

    @classmethod
    def single(
        cls,
        *,
        render_mode: str | None = None,
        view: View | None = None,
        **kwargs: Any,
    ) -> SingleBatchedEnv:
        """Build one such environment behind gymnasium's interface, to evaluate and to record.

        Args:
            render_mode: ``rgb_array`` or None.
            view: Size and camera of pictures.
            **kwargs: Arguments of the class; ``action_bounds`` is None by default.

        Raises:
            EnvError: An argument is unknown or invalid, or the model cannot be loaded.
        """
        batched = cls(1, **kwargs)
        if "action_bounds" not in kwargs:
            batched._actions = ActionConverter(batched.spec.action_space, None)
        return SingleBatchedEnv(
            batched,
            render_mode=render_mode,
            painter=partial(Photographer, batched.physics, view or View()),
            fps=frames_per_s(batched),
        )

    def _check_seeded(self) -> None:
        if not self._generators:
            raise EnvError(f"'{self.spec.id}' was stepped before its first reset")

    def _begin(self, chosen: NDArray[np.bool_], rows: NDArray[Any], *, first: bool) -> None:
        """Start episodes, and write their first observations into rows."""
        if self._randomization is not None:
            self._randomization.draw(chosen, self._parameter_generators, first=first)
        # The model's time steps may have changed.
        self.dt = _dt(self.physics, self._nstep)
        indices = np.flatnonzero(chosen).tolist()
        drawn = [self.initial(self._generators[index]) for index in indices]
        if first:
            model = self.physics.model
            _check_initial(self._name, drawn[0], int(model.nq), int(model.nv))
        qpos, qvel = (np.array(column) for column in zip(*drawn, strict=True))
        self.physics.restart(chosen, qpos, qvel)
        self._deadlines[chosen] = min(self._clock + self._limit, _NEVER)
        self._next_deadline = int(self._deadlines.min())
        _write(self.observation(self.physics.now), rows, chosen)
        tracked = self._track()
        if self._tracked is None:
            self._tracked = tracked
        else:
            self._tracked[chosen] = tracked[chosen]

    def _track(self) -> Any:
        tracked = self.tracked(self.physics.now)
        # The next step overwrites fields, of which the tracked array may be a view.
        return None if tracked is None else np.array(tracked)


def frames_per_s(batched: MujocoBatchedEnv) -> int:
    """Return the number of pictures per second of simulated time."""
    return round(1 / float(np.min(batched.dt)))


def _streams(seed: int) -> tuple[np.random.Generator, np.random.Generator]:
    """Return the random streams of a seed: gymnasium's, and one of parameters.

    The latter is its own, so that the draws of `initial` are gymnasium's either way.
    """
    own = np.random.SeedSequence(int(seed), spawn_key=(1,))
    return np_random(int(seed))[0], np.random.default_rng(own)


def _write(parts: Sequence[NDArray[Any]], rows: NDArray[Any], chosen: Any) -> None:
    """Write the rows of an index or a mask."""
    column = 0
    for part in parts:
        end = column + part.shape[1]
        rows[chosen, column:end] = part[chosen]
        column = end


def _sum(terms: Terms) -> Any:
    # In float64: the sum of two flags would be a flag, and small integers would wrap around.
    total, *others = (np.asarray(term, np.float64) for term in terms.values())
    for term in others:
        total = total + term
    return total


def _dt(physics: Physics, nstep: int) -> Any:
    timestep = physics.parameter("timestep")
    return timestep * nstep if timestep.ndim else float(timestep) * nstep


def _limit(asked: int | None, default: int | None) -> int | None:
    limit = default if asked is None else asked
    if limit is None or (is_whole(limit) and limit == -1):
        return None
    return whole("max_episode_steps", limit, 1, math.inf, ", or -1 for no limit")


def _frame_skip(asked: Any, default: int) -> int:
    return whole("frame_skip", default if asked is None else asked)


def _model_path(xml_file: str | Path) -> Path:
    try:
        path = Path(expand_model_path(str(xml_file)))
    except OSError as error:
        raise EnvError(f"xml_file: {error}") from None
    if not path.is_file():
        raise EnvError(f"xml_file: '{xml_file}' is not a file")
    return path


def _action_space(physics: Physics) -> spaces.Box:
    model = physics.model
    limited = model.actuator_ctrllimited[:, None].astype(bool)
    bounds = np.where(limited, model.actuator_ctrlrange, (-np.inf, np.inf)).astype(np.float32)
    return spaces.Box(bounds[:, 0], bounds[:, 1], dtype=np.float32)


def parse(name: str, params: type[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the keyword arguments as an instance of ``params``.

    Raises:
        EnvError: An argument is unknown, or has another type than its default.
    """
    known = {field.name: field for field in fields(params)}
    for key, value in kwargs.items():
        if key not in known:
            hint = nearest(key, known) or f"; it takes {', '.join(known) or 'no arguments'}"
            raise EnvError(f"'{name}' takes no '{key}'{hint}")
        default = known[key].default
        # An argument of several types is checked by the code that uses it.
        if "|" not in str(known[key].type) and not _resembles(value, known[key]):
            raise EnvError(f"'{name}': {key} should be like {default!r}, got {brief(value)}")
        if key in _NOT_NEGATIVE and value < 0:
            raise EnvError(f"'{name}': {key} must not be negative, got {value!r}")
    return params(**kwargs)


def _check_observation(name: str, parts: Any, num_envs: int) -> None:
    """Reject observations that are not parts ``[n, k]``."""
    wanted = f"'{name}'.observation must return a sequence of arrays ({num_envs}, k)"
    if not isinstance(parts, Sequence):
        raise EnvError(f"{wanted}, got {_shown(parts)}")
    for part in parts:
        if not isinstance(part, np.ndarray) or part.ndim != 2 or len(part) != num_envs:
            raise EnvError(f"{wanted}, got one of {_shown(part)}")


def _check_terms(name: str, terms: Any, num_envs: int) -> None:
    """Reject rewards that are not terms by name."""
    wanted = f"'{name}'.reward must return terms by name, each ({num_envs},) or a number"
    if not isinstance(terms, Mapping) or not terms:
        raise EnvError(f"{wanted}, got {_shown(terms)}")
    for key, term in terms.items():
        if not _is_per_env(term, num_envs, "fiub"):
            raise EnvError(f"{wanted}, got for '{key}' {_shown(term)}")


def _check_flags(name: str, flags: Any, num_envs: int) -> None:
    """Reject terminations that are neither flags nor None."""
    if flags is not None and not _is_per_env(flags, num_envs, "b"):
        raise EnvError(
            f"'{name}'.terminated must return None or ({num_envs},) bool, got {_shown(flags)}"
        )


def _check_initial(name: str, drawn: Any, nq: int, nv: int) -> None:
    """Reject first states that are not a pair of positions and velocities."""
    wanted = f"'{name}'.initial must return qpos ({nq},) and qvel ({nv},)"
    if not isinstance(drawn, Sequence) or len(drawn) != 2:
        raise EnvError(f"{wanted}, got {_shown(drawn)}")
    if (np.shape(drawn[0]), np.shape(drawn[1])) != ((nq,), (nv,)):
        raise EnvError(f"{wanted}, got {_shown(drawn[0])} and {_shown(drawn[1])}")


def _is_per_env(value: Any, num_envs: int, kinds: str) -> bool:
    return np.shape(value) in ((), (num_envs,)) and np.asarray(value).dtype.kind in kinds


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype}"
    return brief(value)


def _resembles(value: Any, field: Field[Any]) -> bool:
    default = field.default
    match default:
        case bool():
            return isinstance(value, bool | np.bool_)
        case int() if field.type in (int, "int"):
            return is_whole(value)
        case int() | float():
            return _is_number(value) and (math.isfinite(value) or not math.isfinite(default))
        case str():
            return isinstance(value, str | Path) and value != ""
        case tuple():
            numbers = isinstance(value, Sequence | np.ndarray) and len(value) == len(default)
            return numbers and all(_is_number(each) for each in value)
    return True


def _is_number(value: object) -> bool:
    """Return whether a value is a number, which may be infinite."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:
        return False
