"""Domain randomisation: fields of the model drawn from distributions, per environment and episode.

A specification maps fields of ``mjModel`` (or of its options, such as ``gravity``) to a change of
the model's own value::

    body_mass:      {scale: {uniform: [0.8, 1.2]}}
    geom_friction:  {scale: {log_uniform: [0.5, 2]}, of: [floor], shared: true}
    gravity:        {add: {normal: [[0, 0, 0], [0, 0, 0.3]]}}
    timestep:       {set: {choice: [0.008, 0.01]}, every: env}

``scale``, ``add`` and ``set`` take a distribution (see `fastrl.envs.parameter_distributions`) or a
constant. ``of`` selects elements of the field by name or index. ``shared`` draws one number for all
of them. ``every: env`` keeps the first draw, ``every: episode`` (the default) draws anew. A mass,
inertia, size or time step stays above 0, and a friction, armature, density or viscosity does not
become negative: a distribution that could leave these bounds is an error, except that ``normal``
draws again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from fastrl.arguments import nearest
from fastrl.envs.mujoco.physics import Physics, bound, within
from fastrl.envs.mujoco.simulations import Rows
from fastrl.envs.parameter_distributions import Distribution, distribution, numbers
from fastrl.errors import EnvError

_OPERATIONS: dict[str, Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]] = {
    "scale": np.multiply,
    "add": np.add,
    "set": lambda base, drawn: np.broadcast_to(drawn, base.shape),
}
_TRIES = 1000
"""Most draws until a normal one is within the field's bounds."""
_OPTIONS = ("of", "shared", "every")
_EVERY = ("episode", "env")
# Fields on which no derived constant of the model depends.
_UNDERIVED = (
    "actuator_biasprm", "actuator_ctrlrange", "actuator_forcerange", "actuator_gainprm",
    "dof_damping", "dof_frictionloss", "geom_friction", "geom_gap", "geom_margin", "geom_solimp",
    "geom_solref", "jnt_range", "jnt_solimp", "jnt_solref", "jnt_stiffness",
)  # fmt: skip
# Names of the elements of a field, by the field's prefix.
_NAMED = {
    "body": mujoco.mjtObj.mjOBJ_BODY,
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
    "jnt": mujoco.mjtObj.mjOBJ_JOINT,
    "dof": mujoco.mjtObj.mjOBJ_JOINT,
    "site": mujoco.mjtObj.mjOBJ_SITE,
    "actuator": mujoco.mjtObj.mjOBJ_ACTUATOR,
    "tendon": mujoco.mjtObj.mjOBJ_TENDON,
}


@dataclass(frozen=True)
class _Rule:
    """The rule of one field: draws some elements of its rows ``values [n, *shape]``."""

    name: str
    values: NDArray[Any]
    base: NDArray[Any]
    elements: Any
    operation: str
    distribution: Distribution
    shared: bool
    every_episode: bool
    where: str

    def apply(self, row: int, generator: np.random.Generator) -> None:
        shape = () if self.shared else self.base.shape
        value = self._of(self.distribution.sample(generator, shape))
        for _ in range(_TRIES):
            fits = within(self.name, value, self.base)
            if fits.all():
                break
            again = self._of(self.distribution.sample(generator, shape))
            value = again if self.shared else np.where(fits, value, again)
        else:
            raise self._out_of_bounds(value)
        self.values[row, self.elements] = value

    def check(self) -> None:
        """Reject a distribution with values that the field cannot take.

        Raises:
            EnvError: There is one; the error names it.
        """
        kept = self.values[0].copy()
        try:
            for end in self.distribution.ends:
                value = self._of(end)
                if not within(self.name, value, self.base).all():
                    raise self._out_of_bounds(value)
            self.apply(0, np.random.default_rng(0))
        except (ValueError, IndexError, TypeError) as error:
            raise EnvError(
                f"{self.where}: does not fit values of shape {self.base.shape}: {error}"
            ) from error
        finally:
            self.values[0] = kept

    def _of(self, drawn: NDArray[Any]) -> NDArray[Any]:
        return _OPERATIONS[self.operation](self.base, drawn)

    def _out_of_bounds(self, value: NDArray[Any]) -> EnvError:
        wanted = bound(self.name) or "finite"
        return EnvError(f"{self.where}: must be {wanted}; it may become {np.min(value):.4g}")


class Randomization:
    """Draws the parameters of n simulations."""

    def __init__(self, physics: Physics, specification: Mapping[str, Any]) -> None:
        """Check a specification, and copy the fields that it names for every simulation.

        Raises:
            EnvError: A field, option or distribution is unknown or invalid.
        """
        if not isinstance(specification, Mapping):
            raise EnvError(f"randomize: expected a mapping of fields, got {specification!r}")
        self._physics = physics
        self._rules = [_rule(physics, name, each) for name, each in specification.items()]
        options = dir(physics.model.opt)
        self._derived = any(
            name not in options and name not in _UNDERIVED for name in specification
        )

    def draw(self, rows: Rows, generators: Sequence[np.random.Generator], *, first: bool) -> None:
        """Draw the parameters of the simulations in ``rows``, from one generator of each of the n.

        Rules with ``every: env`` are drawn only if this is the ``first`` draw.
        """
        indices = np.flatnonzero(rows) if rows.dtype == bool else rows
        rules = [rule for rule in self._rules if first or rule.every_episode]
        for index in indices.tolist():
            for rule in rules:
                rule.apply(index, generators[index])
        if rules:
            self.derive(rows)

    def derive(self, rows: Rows) -> None:
        """Recompute the values that MuJoCo derives from the drawn parameters."""
        if self._derived:
            self._physics.derive(rows)


def _rule(physics: Physics, name: str, specification: object) -> _Rule:
    where = f"randomize.{name}"
    if not isinstance(specification, Mapping):
        raise EnvError(f"{where}: expected a mapping such as {{scale: {{uniform: [0.8, 1.2]}}}}")
    known = (*_OPERATIONS, *_OPTIONS)
    for key in specification:
        if key not in known:
            raise EnvError(f"{where}: unknown key '{key}'{nearest(str(key), known)}")
    operations = [key for key in specification if key in _OPERATIONS]
    if len(operations) != 1:
        raise EnvError(f"{where}: expected one of {', '.join(_OPERATIONS)}, got {operations}")
    every = specification.get("every", "episode")
    if every not in _EVERY:
        raise EnvError(f"{where}.every: expected one of {', '.join(_EVERY)}, got {every!r}")
    shared = specification.get("shared", False)
    if not isinstance(shared, bool):
        raise EnvError(f"{where}.shared: expected true or false, got {shared!r}")
    values = physics.expand(name)
    operation, of = operations[0], specification.get("of")
    elements = ... if of is None else _elements(physics.model, name, of)
    drawn, drawn_at = specification[operation], f"{where}.{operation}"
    try:
        base = values[0, elements].copy()
    except IndexError as error:
        raise EnvError(
            f"{where}: does not fit values of shape {values.shape[1:]}: {error}"
        ) from None
    rule = _Rule(
        name=name,
        values=values,
        base=base,
        elements=elements,
        operation=operation,
        distribution=(
            distribution(drawn, drawn_at)
            if isinstance(drawn, Mapping)
            else Distribution("constant", (numbers(drawn, drawn_at),))
        ),
        shared=shared,
        every_episode=every == "episode",
        where=where,
    )
    rule.check()
    return rule


def _elements(model: mujoco.MjModel, field: str, of: object) -> NDArray[np.intp]:
    """Return the indices of the elements of ``field`` that ``of`` names."""
    wanted: list[Any] = list(of) if isinstance(of, list | tuple) else [of]
    found: list[int] = []
    for each in wanted:
        if isinstance(each, bool) or not isinstance(each, str | int):
            where = f"randomize.{field}.of"
            raise EnvError(f"{where}: elements are names or whole numbers, got {each!r}")
        found.extend(_named(model, field, each) if isinstance(each, str) else [each])
    return np.array(found, dtype=np.intp)


def _named(model: mujoco.MjModel, field: str, name: str) -> list[int]:
    prefix = field.partition("_")[0]
    if prefix not in _NAMED:
        raise EnvError(f"randomize.{field}.of: its elements have no names; write indices")
    index = mujoco.mj_name2id(model, _NAMED[prefix], name)
    if index < 0:
        names = (mujoco.mj_id2name(model, _NAMED[prefix], i) for i in range(_count(model, prefix)))
        hint = nearest(name, [each for each in names if each])
        raise EnvError(f"randomize.{field}.of: the model has no '{name}'{hint}")
    if prefix != "dof":
        return [index]
    return [dof for dof in range(model.nv) if model.dof_jntid[dof] == index]


def _count(model: mujoco.MjModel, prefix: str) -> int:
    names = {"actuator": "nu", "jnt": "njnt", "dof": "njnt"}
    return int(getattr(model, names.get(prefix, f"n{prefix}")))
