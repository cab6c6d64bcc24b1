"""Domain randomisation: fields of the model drawn from distributions, per environment and episode.

A specification maps fields of ``mjModel`` (or of its options, such as ``gravity``) to what is done
to the model's own value::

    body_mass:      {scale: {uniform: [0.8, 1.2]}}
    geom_friction:  {scale: {log_uniform: [0.5, 2]}, of: [floor], shared: true}
    gravity:        {add: {normal: [[0, 0, 0], [0, 0, 0.3]]}}
    timestep:       {set: {choice: [0.008, 0.01]}, every: env}

``scale``, ``add`` and ``set`` take a distribution or a constant; parameters of a distribution are
numbers, or lists that broadcast against the elements. ``of`` selects elements of the field by name
or index. ``shared`` draws one number for all of them. ``every: env`` keeps the first draw for
good, ``every: episode`` (the default) draws anew. A mass, inertia, size or time step stays above 0,
and a friction, armature, density or viscosity does not become negative: a distribution that could
leave these bounds is an error, but that ``normal`` draws again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from fastrl.arguments import nearest, nearest_or_all
from fastrl.envs.mujoco.physics import Physics, bound, within
from fastrl.envs.mujoco.simulations import Rows
from fastrl.errors import EnvError

Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]]

_OPERATIONS: dict[str, Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]] = {
    "scale": np.multiply,
    "add": np.add,
    "set": lambda base, drawn: np.broadcast_to(drawn, base.shape),
}
_TRIES = 1000
"""Draws until a normal one is within the field's bounds."""
_OPTIONS = ("of", "shared", "every")
_EVERY = ("episode", "env")
# Fields that no derived constant of the model depends on.
_UNDERIVED = (
    "actuator_biasprm", "actuator_ctrlrange", "actuator_forcerange", "actuator_gainprm",
    "dof_damping", "dof_frictionloss", "geom_friction", "geom_gap", "geom_margin", "geom_solimp",
    "geom_solref", "jnt_range", "jnt_solimp", "jnt_solref", "jnt_stiffness",
)  # fmt: skip
# What the elements of a field are called, by the field's prefix.
_NAMED = {
    "body": mujoco.mjtObj.mjOBJ_BODY,
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
    "jnt": mujoco.mjtObj.mjOBJ_JOINT,
    "dof": mujoco.mjtObj.mjOBJ_JOINT,
    "site": mujoco.mjtObj.mjOBJ_SITE,
    "actuator": mujoco.mjtObj.mjOBJ_ACTUATOR,
    "tendon": mujoco.mjtObj.mjOBJ_TENDON,
}


class _Distribution(NamedTuple):
    """What is drawn, and its least and greatest values; none where it has no ends."""

    draw: Draw
    ends: tuple[NDArray[Any], ...] = ()


@dataclass(frozen=True)
class _Rule:
    """How one field is drawn."""

    name: str
    values: NDArray[Any]
    base: NDArray[Any]
    elements: NDArray[np.intp] | None
    operation: str
    distribution: _Distribution
    shared: bool
    every_episode: bool
    where: str

    def apply(self, row: int, generator: np.random.Generator) -> None:
        base = self.base if self.elements is None else self.base[self.elements]
        value = self._drawn(base, generator)
        for _ in range(_TRIES):
            fits = within(self.name, value, base)
            if fits.all():
                break
            again = self._drawn(base, generator)
            value = again if self.shared else np.where(fits, value, again)
        else:
            raise self._out_of_bounds(value)
        if self.elements is None:
            self.values[row] = value
        else:
            self.values[row, self.elements] = value

    def _drawn(self, base: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        drawn = self.distribution.draw(generator, () if self.shared else base.shape)
        return _OPERATIONS[self.operation](base, drawn)

    def check_ends(self) -> None:
        """Reject a distribution with values that the field cannot take.

        Raises:
            EnvError: Says which value.
        """
        base = self.base if self.elements is None else self.base[self.elements]
        for end in self.distribution.ends:
            value = _OPERATIONS[self.operation](base, end)
            if not within(self.name, value, base).all():
                raise self._out_of_bounds(value)

    def _out_of_bounds(self, value: NDArray[Any]) -> EnvError:
        wanted = bound(self.name) or "finite"
        return EnvError(f"{self.where}: must be {wanted}; it may become {np.min(value):.4g}")


class Randomization:
    """Draws the parameters of n simulations."""

    def __init__(self, physics: Physics, specification: Mapping[str, Any]) -> None:
        """Check a specification and give every simulation its own copy of the fields it names.

        Raises:
            EnvError: A field, option or distribution is unknown or does not fit.
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
        """Draw the parameters of the simulations in ``rows``.

        Args:
            rows: ``[n]`` mask, or sorted indices.
            generators: One per simulation, of all n.
            first: Whether rules that hold for good are drawn too.
        """
        indices = np.flatnonzero(rows) if rows.dtype == bool else rows
        rules = [rule for rule in self._rules if first or rule.every_episode]
        for index in indices.tolist():
            for rule in rules:
                rule.apply(index, generators[index])
        if rules:
            self.derive(rows)

    def derive(self, rows: Rows) -> None:
        """Recompute what MuJoCo derives from the drawn parameters, if anything."""
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
    of = specification.get("of")
    rule = _Rule(
        name=name,
        values=values,
        base=values[0].copy(),
        elements=None if of is None else _elements(physics.model, name, of),
        operation=operations[0],
        distribution=_distribution(specification[operations[0]], f"{where}.{operations[0]}"),
        shared=shared,
        every_episode=every == "episode",
        where=where,
    )
    _try(rule)
    return rule


def _try(rule: _Rule) -> None:
    """Draw once and put the value back, so that what does not fit shows at the start."""
    kept = rule.values[0].copy()
    try:
        rule.check_ends()
        rule.apply(0, np.random.default_rng(0))
    except (ValueError, IndexError, TypeError) as error:
        wanted = "" if rule.elements is None else f" of elements {rule.elements.tolist()}"
        raise EnvError(
            f"{rule.where}: does not fit values of shape {rule.base.shape}{wanted}: {error}"
        ) from error
    finally:
        rule.values[0] = kept


def _distribution(specification: object, where: str) -> _Distribution:
    if not isinstance(specification, Mapping):
        constant = _numbers(specification, where)
        return _Distribution(lambda generator, shape: constant, (constant,))
    if len(specification) != 1:
        raise EnvError(f"{where}: expected one distribution, got {list(specification)}")
    ((name, arguments),) = specification.items()
    where = f"{where}.{name}"
    if name == "choice":
        choices = _numbers(arguments, where)
        if choices.ndim == 0 or not len(choices):
            raise EnvError(f"{where}: expected a list of values, got {arguments!r}")
        return _Distribution(
            lambda generator, shape: choices[generator.integers(len(choices), size=shape)],
            (choices.min(0), choices.max(0)),
        )
    if name not in _TWO_PARAMETERS:
        known = ("choice", *_TWO_PARAMETERS)
        hint = nearest_or_all(str(name), known)
        raise EnvError(f"{where}: unknown distribution '{name}'{hint}")
    if not isinstance(arguments, Sequence) or len(arguments) != 2:
        raise EnvError(f"{where}: expected two values, got {arguments!r}")
    first, second = (_numbers(each, where) for each in arguments)
    if name == "log_uniform" and min(first.min(), second.min()) <= 0:
        raise EnvError(f"{where}: expected numbers above 0, got {arguments!r}")
    sample = _TWO_PARAMETERS[name]
    return _Distribution(
        lambda generator, shape: sample(generator, first, second, _common(shape, first, second)),
        () if name == "normal" else (first, second),
    )


def _common(shape: tuple[int, ...], *parameters: NDArray[Any]) -> tuple[int, ...]:
    return np.broadcast_shapes(shape, *(each.shape for each in parameters))


def _log_uniform(
    generator: np.random.Generator, low: NDArray[Any], high: NDArray[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    return np.exp(generator.uniform(np.log(low), np.log(high), shape))


_TWO_PARAMETERS: dict[str, Callable[..., NDArray[Any]]] = {
    "uniform": np.random.Generator.uniform,
    "log_uniform": _log_uniform,
    "normal": np.random.Generator.normal,
}


def _numbers(value: object, where: str) -> NDArray[Any]:
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise EnvError(f"{where}: expected numbers, got {value!r}") from None
    if not np.isfinite(numbers).all():
        raise EnvError(f"{where}: expected finite numbers, got {value!r}")
    return numbers


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
