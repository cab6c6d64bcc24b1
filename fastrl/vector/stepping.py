"""How environments are stepped, said in our words or in those of `gymnasium.make_vec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from gymnasium.spaces import Space
from gymnasium.vector import AutoresetMode

from fastrl.arguments import nearest
from fastrl.vector.failures import ArgumentError, brief

Backend = Literal["auto", "serial", "threads", "processes", "native"]
Autoreset = Literal["same_step", "next_step", "disabled"]
ObservationMode = Literal["same", "different"] | tuple[Space[Any], Space[Any]]

_MODES: Mapping[str, AutoresetMode] = {
    "same_step": AutoresetMode.SAME_STEP,
    "next_step": AutoresetMode.NEXT_STEP,
    "disabled": AutoresetMode.DISABLED,
}
_BACKENDS = {"sync": "serial", "async": "processes", "vector_entry_point": "native"}
_TAKEN = ("autoreset_mode", "copy", "observation_mode")
_WITHOUT_EFFECT = ("shared_memory", "context", "daemon")
"""Arguments of gymnasium's `AsyncVectorEnv` that change no result: workers are started our way."""


@dataclass(frozen=True)
class Stepping:
    """How environments are stepped; None and the defaults mean that nothing was chosen.

    Attributes:
        backend: Who steps; see `fastrl.make_vec`.
        autoreset: When the next episode begins where one ended.
        copy: Whether observations are copies.
        observation_mode: How the observation spaces of the environments become one.
    """

    backend: str = "auto"
    autoreset: AutoresetMode | None = None
    copy: bool = True
    observation_mode: ObservationMode | None = None

    @classmethod
    def of(
        cls,
        backend: str,
        autoreset: AutoresetMode | str | None,
        copy: bool,
        observation_mode: Any,  # noqa: ANN401
    ) -> Stepping:
        """Check the arguments of `fastrl.make_vec`.

        Raises:
            ArgumentError: One is not among those that are known.
        """
        checked(backend, Backend, "backend")
        return cls(
            backend,
            checked_mode(autoreset, "autoreset"),
            copy,
            _checked_observation_mode(observation_mode),
        )

    def joined(
        self,
        vectorization_mode: Any,  # noqa: ANN401
        vector_kwargs: Mapping[str, Any] | None,
        autoreset_mode: AutoresetMode | str | None,
    ) -> Stepping:
        """Return it together with what is said in gymnasium's words.

        Args:
            vectorization_mode: ``sync``, ``async`` or ``vector_entry_point``.
            vector_kwargs: Arguments of gymnasium's `SyncVectorEnv` or `AsyncVectorEnv`.
            autoreset_mode: As ``autoreset``.

        Raises:
            ArgumentError: One is unknown, or contradicts another one.
        """
        found = self
        if vectorization_mode is not None:
            name = str(getattr(vectorization_mode, "value", vectorization_mode))
            checked(name, _BACKENDS, "vectorization_mode")
            found = found._with("backend", _BACKENDS[name], f"vectorization_mode='{name}'")
        found = found._with(
            "autoreset", checked_mode(autoreset_mode, "autoreset_mode"), "autoreset_mode"
        )
        given = _checked_vector_kwargs(vector_kwargs)
        where = "vector_kwargs['{}']".format
        mode = checked_mode(given.get("autoreset_mode"), where("autoreset_mode"))
        found = found._with("autoreset", mode, where("autoreset_mode"))
        found = found._with("copy", given.get("copy"), where("copy"))
        spaces = _checked_observation_mode(given.get("observation_mode"))
        return found._with("observation_mode", spaces, where("observation_mode"))

    def _with(self, name: str, value: Any, said: str) -> Stepping:  # noqa: ANN401
        """Return it with one more choice, unless that was made otherwise before."""
        earlier = getattr(self, name)
        if value is None or value == earlier:
            return self
        if earlier != getattr(Stepping, name):
            raise ArgumentError(
                f"{said} contradicts {name}={_shown(earlier)}; leave one of them out"
            )
        return replace(self, **{name: value})


def checked(value: Any, known: Any, name: str) -> None:  # noqa: ANN401
    """Check that a value is one of a `Literal`, or of the keys of a mapping.

    Raises:
        ArgumentError: It is not; names the nearest.
    """
    names = tuple(known) if isinstance(known, Mapping) else get_args(known)
    if value not in names:
        hint = nearest(str(value), names)
        raise ArgumentError(f"{name} must be one of {', '.join(names)}, got '{value}'{hint}")


def checked_mode(value: AutoresetMode | str | None, name: str) -> AutoresetMode | None:
    """Return the autoreset mode that a word of ours or of gymnasium's names; None for None.

    Raises:
        ArgumentError: There is none.
    """
    if value is None or isinstance(value, AutoresetMode):
        return value
    for word, mode in _MODES.items():
        if str(value).lower() in (word, mode.value.lower()):
            return mode
    raise ArgumentError(
        f"{name} must be one of {', '.join(_MODES)}, got '{value}'{nearest(str(value), _MODES)}"
    )


def _checked_observation_mode(value: Any) -> ObservationMode | None:  # noqa: ANN401
    if value is None or (isinstance(value, str) and value in ("same", "different")):
        return value  # type: ignore[return-value]
    if isinstance(value, tuple) and len(value) == 2:
        whole, single = value
        if isinstance(whole, Space) and isinstance(single, Space):
            return whole, single
    raise ArgumentError(
        "observation_mode must be 'same', 'different' or a tuple of the observation space of all "
        f"environments and that of one, got {brief(repr(value))}"
    )


def _checked_vector_kwargs(given: Any) -> Mapping[str, Any]:  # noqa: ANN401
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ArgumentError(f"vector_kwargs must be a mapping, got {brief(repr(given))}")
    known = (*_TAKEN, *_WITHOUT_EFFECT)
    for name in given:
        if name not in known:
            raise ArgumentError(
                f"vector_kwargs: '{name}' is unknown here{nearest(str(name), known)}; known are "
                f"{', '.join(known)}"
            )
    return given


def _shown(value: Any) -> str:  # noqa: ANN401
    names = {mode: name for name, mode in _MODES.items()}
    return repr(names[value]) if isinstance(value, AutoresetMode) else brief(repr(value))
