"""n simulations of one MuJoCo model, stepped by one call.

A batch of `fastrl.envs.mujoco.simulations` keeps a state vector per simulation and one ``mjData``
per thread, so that the memory of a step stays in the cache for any number of simulations. The state
is ``mjSTATE_INTEGRATION``, warm start included: stepping it equals stepping a separate ``mjData``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from fastrl.arguments import brief, nearest
from fastrl.envs.mujoco.simulations import Rows, assign, new_batch, owner_of
from fastrl.envs.mujoco_clock import mujoco_library, untimed
from fastrl.envs.state import State, fitting
from fastrl.errors import EnvError, one_line

Floats = NDArray[np.float64]

_STATE = ("qpos", "qvel", "ctrl")
# Fields that MuJoCo computes after the constraint solver, and only on request.
_POST_CONSTRAINT = frozenset({"cacc", "cfrc_int", "cfrc_ext"})
# Values of the model without meaningful dynamics; for some of them MuJoCo returns NaN.
_POSITIVE = frozenset({"body_inertia", "body_mass", "geom_size", "timestep"})
_NOT_NEGATIVE = frozenset(
    {"density", "dof_armature", "dof_frictionloss", "geom_friction", "viscosity"}
)


def bound(name: str) -> str:
    """Return the bound of values of a field of the model; empty if any finite number is valid."""
    if name in _POSITIVE:
        return "above 0 where the model's own value is, and not negative elsewhere"
    return "not negative" if name in _NOT_NEGATIVE else ""


def within(name: str, values: NDArray[Any], base: NDArray[Any]) -> NDArray[np.bool_]:
    """Return flags of values that are finite and within `bound`; ``base``: the model's."""
    fits: NDArray[np.bool_] = np.isfinite(values)
    if name in _POSITIVE:
        fits &= (values > 0) | ((values == 0) & (base <= 0))
    elif name in _NOT_NEGATIVE:
        fits &= values >= 0
    return fits


class Fields:
    """Fields of ``mjData`` by MuJoCo's names, each ``[n, *shape]`` with one row per simulation.

    ``qpos``, ``qvel`` and ``ctrl`` are always available; others if the environment reads them.
    """

    qpos: Floats
    qvel: Floats
    ctrl: Floats

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Make each array an attribute."""
        self.__dict__.update(arrays)

    def __getattr__(self, name: str) -> Floats:
        """Raise an error that names the missing field.

        Raises:
            AttributeError: The environment does not read the field.
        """
        raise AttributeError(f"the field '{name}' is not read; return it from `fields` as well")


class Physics:
    """Simulations of one model.

    Attributes:
        model: The template, with its names and sizes; per-simulation values are in `parameter`.
        now: Live fields of all simulations, written by `step` and `restart`.
    """

    def __init__(
        self, path: Path, num_sims: int, fields: Sequence[str], num_threads: int = 1
    ) -> None:
        """Load a model and create ``num_sims`` simulations of it.

        Args:
            path: An MJCF file.
            num_sims: Number of simulations, n.
            fields: Fields of ``mjData`` that are read, beyond ``qpos``, ``qvel`` and ``ctrl``.
            num_threads: Number of threads that share the simulations.

        Raises:
            EnvError: The model cannot be loaded, or has no such field.
        """
        wanted = _POST_CONSTRAINT.intersection(fields)
        self.model = _load(path, contact_forces=bool(wanted))
        self._batch = batch = new_batch(self.model, num_sims, num_threads)

        def step(nstep: int) -> None:
            batch.step(nstep=nstep)

        self._step = untimed(step)
        self._forward = untimed(batch.forward)
        self._state: Floats = self._batch.bind("state")
        self._initial = self._state[0].copy()
        self.now = Fields({name: self._bind(name) for name in (*_STATE, *fields)})
        self._cleared = tuple(wanted) if wanted and not _forward_evaluates(self.model) else ()
        self._expanded: dict[str, NDArray[Any]] = {}
        everyone = np.arange(num_sims)
        self.restart(everyone, self.initial_qpos, np.zeros(self.model.nv))

    @property
    def initial_qpos(self) -> Floats:
        """``[nq]``: the model's reference configuration, a copy."""
        return np.array(self.model.qpos0)

    def __reduce__(self) -> str:
        """Reject copies and pickles, whose arrays would not be those of simulations.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "simulations of MuJoCo cannot be copied or pickled; build the environment again, and "
            "use its get_state() and set_state(state)"
        )

    def step(self, nstep: int) -> None:
        """Advance every simulation by ``nstep`` time steps under ``now.ctrl``.

        Fields derived from the state are then as after `mj_step`: those of the last
        evaluation of the dynamics, before the state was advanced.

        Raises:
            EnvError: MuJoCo failed in a simulation; the error names its index.
        """
        try:
            self._step(nstep)
        except RuntimeError as error:
            raise _failed("step", error) from error

    def restart(self, rows: Rows, qpos: Floats, qvel: Floats) -> None:
        """Reset simulations, given by a mask or sorted indices, and evaluate their fields.

        ``qpos [k, nq]`` and ``qvel [k, nv]`` may be one row for all.

        Raises:
            EnvError: MuJoCo failed in a simulation; the error names its index.
        """
        now = self.now
        self._state[rows] = self._initial
        now.qpos[rows] = qpos
        now.qvel[rows] = qvel
        try:
            self._forward(rows)
        except RuntimeError as error:
            raise _failed("reset", error) from error
        for name in self._cleared:
            # Otherwise they would be those of the simulation that the thread stepped last.
            getattr(now, name)[rows] = 0.0

    def get_state(self) -> State:
        """Return copies of the states, of the fields and of the per-simulation parameters."""
        fields = {name: np.array(each) for name, each in vars(self.now).items()}
        parameters = {name: np.array(each) for name, each in self._expanded.items()}
        return {"state": self._state.copy(), "fields": fields, "parameters": parameters}

    def set_state(self, state: State) -> None:
        """Restore a state of `get_state`; call `derive` afterwards for parameters.

        Raises:
            StateError: It belongs to other simulations.
        """
        pairs = [(fitting(state, "state", self._state), self._state)]
        kinds = {"fields": vars(self.now), "parameters": self._expanded}
        for kind, arrays in kinds.items():
            pairs += [(fitting(state[kind], name, each), each) for name, each in arrays.items()]
        for saved, live in pairs:
            live[...] = saved

    def expand(self, name: str) -> NDArray[Any]:
        """Return writable ``[n, *shape]`` per-simulation values of a field of the model.

        Fields of ``mjOption`` (``gravity``, ``timestep``) count as the model's.

        Raises:
            EnvError: The model has no such field, or it cannot differ between simulations.
        """
        if name not in self._expanded:
            try:
                self._expanded[name] = self._batch.expand(name)
            except ValueError as error:
                known = {*dir(self.model), *dir(self.model.opt)}
                hint = nearest(name, (each for each in known if not each.startswith("_")))
                raise EnvError(f"the model's field '{name}': {error}{hint}") from None
        return self._expanded[name]

    def assign(self, name: str, values: Sequence[Any]) -> None:
        """Set a field of the model separately for every simulation; see `expand`.

        Raises:
            EnvError: The model has no such field, or a value is invalid.
        """
        rows = self.expand(name)
        base = rows[0].copy()
        for index, value in enumerate(values):
            try:
                rows[index] = value
            except (TypeError, ValueError) as error:
                raise EnvError(
                    f"the model's field '{name}' of env {index} must have the shape "
                    f"{base.shape}: {error}"
                ) from None
            if not within(name, rows[index], base).all():
                raise EnvError(
                    f"the model's field '{name}' of env {index} must be "
                    f"{bound(name) or 'finite'}, got {brief(value)}"
                )

    def derive(self, rows: Rows) -> None:
        """Recompute values that MuJoCo derives from expanded fields, such as masses of subtrees."""
        try:
            self._batch.set_const(rows)
        except RuntimeError as error:
            raise _failed("mj_setConst", error) from error

    def parameter(self, name: str) -> NDArray[Any]:
        """Return a field of the model: ``[n, *shape]`` if it is expanded, else ``[*shape]``."""
        if name in self._expanded:
            return self._expanded[name]
        return np.asarray(getattr(owner_of(self.model, name), name))

    def copy_to(self, index: int, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Write one simulation's parameters and state to a copy of the model and its data."""
        for name, values in self._expanded.items():
            assign(model, name, values[index])
        if self._expanded:
            mujoco.mj_setConst(model, data)
        mujoco.mj_setState(model, data, self._state[index], mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(model, data)

    def _bind(self, name: str) -> NDArray[Any]:
        try:
            bound: NDArray[Any] = self._batch.bind(name)
        except ValueError as error:
            known = (each for each in dir(mujoco.MjData) if not each.startswith("_"))
            raise EnvError(f"mjData's field '{name}': {error}{nearest(name, known)}") from None
        return bound


def _load(path: Path, *, contact_forces: bool) -> mujoco.MjModel:
    try:
        if not contact_forces:
            model = mujoco.MjModel.from_xml_path(str(path))
        else:
            register_contact_forces()
            spec = mujoco.MjSpec.from_file(str(path))
            spec.activate_plugin(CONTACT_FORCES_PLUGIN)
            spec.add_plugin(name=CONTACT_FORCES_PLUGIN, plugin_name=CONTACT_FORCES_PLUGIN)
            model = spec.compile()
    except (ValueError, OSError) as error:
        raise EnvError(f"cannot load '{path}': {one_line(error, None)}") from error
    if not 0 < model.opt.timestep < np.inf:
        raise EnvError(f"'{path}': the option timestep must be above 0 s, got {model.opt.timestep}")
    if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
        # This solver does not use islands, but MuJoCo searches for them: 4 % of a humanoid's step.
        # Newton's solver uses them, and without them may differ in the last bits.
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND
    return model


def _forward_evaluates(model: mujoco.MjModel) -> bool:
    """Return whether `mj_forward` evaluates contact forces, as it does for some sensors."""
    data = mujoco.MjData(model)
    data.cfrc_ext[:] = np.nan
    mujoco.mj_forward(model, data)
    return not np.isnan(data.cfrc_ext).all()


def _failed(where: str, error: RuntimeError) -> EnvError:
    # A batch names the first one: "sim 3: …".
    text = one_line(error, None).replace("sim ", "env ", 1)
    return EnvError(f"MuJoCo failed in {where}: {text}")


CONTACT_FORCES_PLUGIN = "fastrl.contact_forces"

_Int = ctypes.c_int
_Pointer = ctypes.c_void_p
_Nstate = ctypes.CFUNCTYPE(_Int, _Pointer, _Int)
_Init = ctypes.CFUNCTYPE(_Int, _Pointer, _Pointer, _Int)
_Reset = ctypes.CFUNCTYPE(None, _Pointer, _Pointer, _Pointer, _Int)
_Compute = ctypes.CFUNCTYPE(None, _Pointer, _Pointer, _Int, _Int)


class _Plugin(ctypes.Structure):
    """``mjpPlugin`` of mjplugin.h; every callback is a pointer, null without one."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("nattribute", _Int),
        ("attributes", _Pointer),
        ("capabilityflags", _Int),
        ("needstage", _Int),
        ("nstate", _Nstate),
        ("nsensordata", _Pointer),
        ("init", _Init),
        ("destroy", _Pointer),
        ("copy", _Pointer),
        ("reset", _Reset),
        ("compute", _Compute),
        ("advance", _Pointer),
        ("visualize", _Pointer),
        ("actuator_act_dot", _Pointer),
        ("sdf", _Pointer * 5),
    )


@cache
def register_contact_forces() -> _Plugin:
    """Register an engine plugin that evaluates ``mj_rnePostConstraint`` as a step ends.

    `mj_step` does not compute ``cfrc_ext``, ``cfrc_int`` and ``cacc`` unless a sensor needs them,
    and such a sensor sees only the first stage of a Runge-Kutta step. If they are computed when
    plugins advance, they equal those of a call after the step. The C function is the
    callback itself: no Python runs in a step. An evaluation takes 0.4 µs on the ant's model, of
    25 µs per substep.

    Returns:
        The registered plugin; the cache keeps its callbacks alive.

    Raises:
        EnvError: MuJoCo's library cannot be found, or refused the plugin.
    """
    library = mujoco_library()
    if library is None:
        raise EnvError(f"cannot find MuJoCo's library in {Path(mujoco.__file__).parent}")
    plugin = _Plugin()
    library.mjp_defaultPlugin(ctypes.byref(plugin))
    plugin.name = CONTACT_FORCES_PLUGIN.encode()
    plugin.nstate = _Nstate(lambda model, instance: 0)
    plugin.init = _Init(lambda model, state, instance: 0)
    plugin.reset = _Reset(lambda model, state, memory, instance: None)
    plugin.compute = _Compute(lambda model, state, instance, capability: None)
    plugin.advance = ctypes.cast(library.mj_rnePostConstraint, _Pointer)
    if library.mjp_registerPlugin(ctypes.byref(plugin)) < 0:
        raise EnvError(f"MuJoCo {mujoco.__version__} refused the plugin {CONTACT_FORCES_PLUGIN}")
    return plugin
