"""Environments that are stepped all at once by their own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableSequence, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.envs.batched_env import renumber
from fastrl.envs.family import Vector
from fastrl.errors import EnvError
from fastrl.spaces import flatten, leaves, unflatten
from fastrl.vector.exchange import Exchange
from fastrl.vector.failures import ArgumentError
from fastrl.vector.infos import Columns
from fastrl.vector.native_build import NativeBuild


class NativeGroup:
    """A batch behind the interface of `EnvGroup`.

    Args:
        vector: The batch; its environments step all together.
        exchange: Where actions are read and results written.
        envs: Indices of the environments.
        at: Its element 0 says which environment an error names, else which comes first.
        native: How the batch was built.

    Attributes:
        begin_close: Called just before the batch is closed.
    """

    action_objects: Sequence[Any] | None = None

    def __init__(
        self,
        vector: Vector,
        exchange: Exchange,
        envs: range,
        at: MutableSequence[int],
        native: NativeBuild,
    ) -> None:
        self.envs, self._at = envs, at
        self._vector, self._family = vector, native.family
        self._tell = native.family.infos_of_single if native.as_single else None
        self.begin_close: Callable[[], None] = lambda: None
        self.observation_objects: list[Any] = []
        at[0] = envs.start
        rows = slice(envs.start, envs.stop)
        self._banks = [bank.part(rows) for bank in exchange.banks]
        self._action = tuple(leaf[rows] for leaf in exchange.action)
        self._space = vector.single_observation_space

    def step(self, bank: int) -> Columns:
        """Step every environment once; return their infos."""
        actions = [leaf.copy() for leaf in self._action]
        self._check_finite(actions)
        space = self._vector.single_action_space
        paths = dict(zip(_paths(space), actions, strict=True))
        try:
            found = self._vector.step(unflatten(space, paths))
        except EnvError as error:
            named = renumber(error, self.envs.start)
            self._at[0] = self.envs.start if named is None else named
            raise
        seen, reward, terminated, truncated, infos = found
        views = self._banks[bank]
        self._write(seen, bank)
        views.reward[:] = reward
        views.terminated[:] = terminated
        views.truncated[:] = truncated
        ended = views.terminated | views.truncated
        columns = self._columns(infos, ended)
        if self._tell is None:
            return columns
        told = self._tell(self._vector, views.terminated, ended, self.envs.start)
        return columns | dict(told.items()) if columns else told

    def _check_finite(self, actions: Sequence[NDArray[Any]]) -> None:
        for leaf in actions:
            if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                bad = np.argwhere(~np.isfinite(leaf))[0]
                self._at[0] = self.envs.start + int(bad[0])
                raise EnvError(f"the action holds {leaf[tuple(bad)]}; expected finite numbers")

    def step_one(self, env_index: int, bank: int) -> dict[str, Any]:
        """Refuse: these environments step all together.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError("native environments step all together; use step, or another backend")

    def reset(
        self,
        bank: int,
        options: Mapping[str, Any] | None,
        seeds: Sequence[int | None],
        mask: Sequence[bool],
    ) -> Columns:
        """Start an episode in those environments that ``mask`` names; return their infos."""
        chosen = np.array(mask)
        given = dict(options or {})
        wanted = [seed for seed, each in zip(seeds, mask, strict=True) if each]
        if not chosen.all():
            given["reset_mask"] = chosen
        if not chosen.any():
            return {}
        seed: Any = None
        if None not in wanted:
            seed = self._family.seeds([int(each or 0) for each in wanted])
        observation, infos = self._vector.reset(seed=seed, options=given or None)
        self._write(observation, bank)
        self._banks[bank].terminated[chosen] = self._banks[bank].truncated[chosen] = False
        return self._columns(infos, chosen)

    def call(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], mask: Sequence[bool]
    ) -> list[Any]:
        """Call a method of the batch that returns one value per environment, or read one."""
        batched = getattr(self._vector, "batched", self._vector)
        found = getattr(self._vector if hasattr(self._vector, name) else batched, name)
        found = found(*args, **kwargs) if callable(found) else found
        whole = not isinstance(found, list | tuple | np.ndarray) or len(found) != len(mask)
        values = [found] * len(mask) if whole else list(found)
        return [value for value, wanted in zip(values, mask, strict=True) if wanted]

    def set_attr(self, name: str, values: Sequence[Any], mask: Sequence[bool]) -> list[Any]:
        """Refuse: a batch has no attributes of single environments.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError(
            "native environments take parameters through env_kwargs only; take another backend"
        )

    def apply(
        self, function: Callable[[Any, Any], Any], arguments: Sequence[Any], mask: Sequence[bool]
    ) -> list[Any]:
        """Refuse: there are no single environments.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError("native environments exist as a batch only; take another backend")

    def different_spaces(self) -> list[Any]:
        """Return nothing: all have the same."""
        return []

    def close(self) -> None:
        """Close the batch; safe to call twice."""
        self.begin_close()
        self._vector.close()

    def _write(self, observation: Any, bank: int) -> None:  # noqa: ANN401
        rows = self._banks[bank].observation
        for row, found in zip(rows, flatten(self._space, observation), strict=True):
            np.copyto(row, found, casting="same_kind")

    def _columns(
        self, infos: Mapping[str, Any], ended: NDArray[np.bool_]
    ) -> dict[str, tuple[list[int], Any]]:
        """Return infos in vector form as columns; without a mask they are of all environments."""
        columns: dict[str, tuple[list[int], Any]] = {}
        for key, values in infos.items():
            if key.startswith("_") and key[1:] in infos:
                continue
            mask = infos.get(f"_{key}", ended if key.startswith("final_") else None)
            here = np.flatnonzero(mask) if mask is not None else np.arange(len(self.envs))
            indices = (here + self.envs.start).tolist()
            if key == "env_id":
                continue
            if isinstance(values, dict):
                columns[key] = (indices, self._columns(values, ended))
            elif key == "final_obs":
                columns[key] = (
                    indices,
                    [_one(self._space, values, index) for index in here.tolist()],
                )
            elif len(here):
                columns[key] = (indices, np.asarray(values)[here])
        return {key: column for key, column in columns.items() if column[0]}


def _paths(space: Any) -> list[str]:  # noqa: ANN401
    return list(leaves(space))


def _one(space: Any, values: Any, index: int) -> Any:  # noqa: ANN401
    if isinstance(values, np.ndarray) and values.dtype == object:
        return values[index]
    leaves_ = [np.array(np.asarray(each)[index]) for each in flatten(space, values)]
    return unflatten(space, dict(zip(_paths(space), leaves_, strict=True)))
