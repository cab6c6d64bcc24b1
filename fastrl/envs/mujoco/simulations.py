"""n states of one MuJoCo model, stepped by mjbatch if available, else by MuJoCo's own functions.

mjbatch is compiled for one version of MuJoCo. `LoopBatch` has the part of its interface that
`Physics` needs, runs with every version, and computes the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from typing import Any, cast

import mujoco
import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.bool_] | NDArray[np.intp]

_INTEGRATION = int(mujoco.mjtState.mjSTATE_INTEGRATION)
# Parts of the state by field of `mjData`, if their names differ.
_OTHER_NAMES = {"warmstart": "qacc_warmstart"}
# Fields in the arena of `mjData`, whose sizes change from step to step.
_ARENA = ("contact", "efc_", "iefc_", "island_", "map_", "dof_island", "tendon_efcadr")
_NUMBERS = "biuf"


def new_batch(model: mujoco.MjModel, num_sims: int, num_threads: int) -> LoopBatch:
    """Return ``num_sims`` simulations of a model, shared by threads if mjbatch is available.

    Later changes of the model have no effect on them.
    """
    accelerated = accelerator()
    if accelerated is None:
        return LoopBatch(model, num_sims)
    return cast(LoopBatch, accelerated(model, num_sims, num_threads))


@cache
def accelerator() -> Callable[[mujoco.MjModel, int, int], Any] | None:
    """Return mjbatch's class, or None if it is missing or made for another MuJoCo."""
    try:
        needs = metadata.requires("mjbatch") or []
        pinned = [need for need in needs if need.startswith("mujoco==")]
        if pinned and f"mujoco=={mujoco.__version__}" not in pinned:
            # From another directory of packages it would load a second MuJoCo.
            return None
        import mjbatch
    except ImportError:
        return None
    batch: Callable[[mujoco.MjModel, int, int], Any] = mjbatch.Batch
    return batch


class LoopBatch:
    """Simulations of one model: a loop of calls of MuJoCo's functions over n states.

    Every array has one row per simulation and is live.

    One ``mjData`` stays in the cache for any number of simulations. Exchanging the state takes
    2.4 µs per simulation and step of HalfCheetah, of 67 µs in `mj_step`.
    """

    def __init__(self, model: mujoco.MjModel, num_sims: int) -> None:
        """Set the model's initial state in every simulation."""
        self._model = copy.copy(model)
        self._models = [self._model] * num_sims
        self._data = mujoco.MjData(self._model)
        size = mujoco.mj_stateSize(self._model, _INTEGRATION)
        self._state = np.empty((num_sims, size))
        self._rows = list(self._state)
        for row in self._rows:
            mujoco.mj_getState(self._model, self._data, row, _INTEGRATION)
        self._bound: dict[str, NDArray[Any]] = {"state": self._state}
        self._outputs: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self._expanded: dict[str, NDArray[Any]] = {}

    def bind(self, name: str) -> NDArray[Any]:
        """Return ``[n, *shape]`` of a field in ``mjData``, or ``state``.

        Raises:
            ValueError: There is no such field.
        """
        if name not in self._bound:
            self._bound[name] = self._bind(name)
        return self._bound[name]

    def expand(self, name: str) -> NDArray[Any]:
        """Return ``[n, *shape]`` own values of a field of the model.

        Raises:
            ValueError: There is no such field.
        """
        if name not in self._expanded:
            values = np.asarray(getattr(owner_of(self._model, name), name, None))
            if name.startswith("_") or values.dtype.kind not in _NUMBERS:
                raise ValueError(f"unknown field {name}")
            if values.ndim == 0 and not hasattr(self._model.opt, name):
                raise ValueError(f"unknown field {name}")
            if self._models[0] is self._model:
                self._models = [copy.copy(self._model) for _ in self._models]
            dtype = np.int32 if values.ndim == 0 and values.dtype.kind == "i" else values.dtype
            rows = np.empty((len(self._models), *values.shape), dtype)
            for index, model in enumerate(self._models):
                rows[index] = getattr(owner_of(model, name), name)
            self._expanded[name] = rows
        return self._expanded[name]

    def step(self, *, nstep: int) -> None:
        """Advance all by ``nstep`` time steps.

        Raises:
            RuntimeError: MuJoCo failed; the error names the simulation.
        """
        self._each(range(len(self._rows)), lambda model, data: mujoco.mj_step(model, data, nstep))

    def forward(self, ids: Rows) -> None:
        """Evaluate the dynamics of some.

        Raises:
            RuntimeError: MuJoCo failed; the error names the simulation.
        """
        self._each(self._indices(ids), mujoco.mj_forward)

    def set_const(self, ids: Rows) -> None:
        """Recompute derived fields of some models.

        Raises:
            RuntimeError: MuJoCo failed; the error names the simulation.
        """
        for index in self._indices(ids):
            model = self._current(index)
            try:
                mujoco.mj_setConst(model, self._data)
            except mujoco.FatalError as error:
                raise RuntimeError(f"sim {index}: {error}") from error
            for name, values in self._expanded.items():
                values[index] = getattr(owner_of(model, name), name)

    def _each(
        self,
        indices: Sequence[int],
        compute: Callable[[mujoco.MjModel, mujoco.MjData], None],
    ) -> None:
        data = self._data
        for index in indices:
            model, row = self._current(index), self._rows[index]
            mujoco.mj_setState(model, data, row, _INTEGRATION)
            try:
                compute(model, data)
            except mujoco.FatalError as error:
                raise RuntimeError(f"sim {index}: {error}") from error
            mujoco.mj_getState(model, data, row, _INTEGRATION)
            for source, bound in self._outputs:
                bound[index] = source

    def _indices(self, ids: Rows) -> list[int]:
        found: list[int] = (np.flatnonzero(ids) if ids.dtype == np.bool_ else ids).tolist()
        return found

    def _current(self, index: int) -> mujoco.MjModel:
        """Return a simulation's model, with the values of its expanded fields."""
        model = self._models[index]
        for name, values in self._expanded.items():
            assign(model, name, values[index])
        return model

    def _bind(self, name: str) -> NDArray[Any]:
        part = self._part(name)
        if part is not None:
            return part
        source = getattr(self._data, name, None)
        sized = isinstance(source, np.ndarray) and source.dtype.kind in _NUMBERS
        if not sized or name.startswith(("_", *_ARENA)):
            raise ValueError(f"unknown field {name}")
        assert isinstance(source, np.ndarray)
        bound = np.empty((len(self._rows), *source.shape), source.dtype)
        bound[:] = source
        self._outputs.append((source, bound))
        return bound

    def _part(self, name: str) -> NDArray[Any] | None:
        """Return a view of a field's columns of the state, or None."""
        start = 0
        for bit in range(int(mujoco.mjtState.mjNSTATE)):
            part = mujoco.mjtState(1 << bit)
            size = mujoco.mj_stateSize(self._model, int(part))
            own = part.name.removeprefix("mjSTATE_").lower()
            if name == _OTHER_NAMES.get(own, own):
                field = np.asarray(getattr(self._data, name, None))
                if field.dtype != self._state.dtype or field.size != size:
                    return None  # flags of equality constraints, ids of plugins
                return self._state[:, start : start + size].reshape(len(self._state), *field.shape)
            start += size
        return None


def owner_of(model: mujoco.MjModel, name: str) -> Any:
    """Return the owner of a field: the model or its options."""
    return model.opt if hasattr(model.opt, name) else model


def assign(model: mujoco.MjModel, name: str, value: Any) -> None:
    """Set a field of the model to a value of its shape."""
    owner = owner_of(model, name)
    if np.ndim(value):
        getattr(owner, name)[:] = value
    else:
        setattr(owner, name, value.item())
