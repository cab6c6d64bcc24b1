"""The types of configuration keys, and `Section`, the base class of all sections."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    JsonValue,
    Strict,
    StringConstraints,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fastrl import registry
from fastrl.errors import ConfigError

T = TypeVar("T")


def whole(value: Any) -> Any:
    """Return ``1e6`` as an integer; leave other floats to the validation."""
    is_whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
    return int(value) if is_whole else value


def sequence(value: Any) -> Any:
    """Return a list of YAML as a tuple; leave anything else to the validation."""
    return tuple(value) if isinstance(value, list) else value


def named_off(value: Any) -> Any:
    """Return false as ``off``, which YAML 1.1 reads as false; return other values unchanged."""
    return "off" if value is False else value


Entries = Annotated[tuple[T, ...], BeforeValidator(sequence)]

# The last function runs first, and the bounds stay part of the JSON schema.
Size = Annotated[int, Strict(), Field(ge=1, le=2**31 - 1), BeforeValidator(whole)]
MOST_PROCESSES = 4096
Few = Annotated[int, Strict(), Field(ge=1, le=MOST_PROCESSES), BeforeValidator(whole)]
"""Number of processes, threads and the like; many more would use up all memory."""
Count = Annotated[int, Strict(), Field(ge=0, le=2**31 - 1), BeforeValidator(whole)]
Steps = Annotated[int, Strict(), Field(ge=1, le=2**62), BeforeValidator(whole)]
Episodes = Annotated[int, Strict(), Field(ge=1, le=1_000_000), BeforeValidator(whole)]
Seed = Annotated[int, Strict(), Field(ge=0, le=2**32 - 1), BeforeValidator(whole)]
Float = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Seconds = Annotated[Float, Field(gt=0, le=1e9)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Bool = Annotated[bool, Strict()]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Section(BaseModel):
    """A part of the configuration: immutable, and without unknown keys.

    The text below a key, or the ``description`` of its `Field`, is its documentation.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


def conflict(key: str, problem: str) -> PydanticCustomError:
    """Return an error of a section's validator about one of its keys, which may be dotted."""
    return PydanticCustomError("conflict", "{problem}", {"key": key, "problem": problem})


def registered(kind: str, name: str, key: str = "") -> registry.Entry:
    """Return the registered entry of a name; the error names a key of the section, if given.

    Raises:
        PydanticCustomError: The name is not registered.
    """
    try:
        return registry.entry(kind, name)
    except ConfigError as error:
        raise conflict(key, str(error)) from None


@dataclass(frozen=True)
class Code:
    """Marks a key that names an object to import: ``package.module:name``.

    Trust, tuning and documentation find code in a configuration by this mark; see `code_of`. A
    key of the type ``str | Call`` may also be a mapping of ``path`` and ``kwargs``. Nothing is
    imported here.

    Attributes:
        kind: One of `registry.KINDS`, whose registered names are allowed, too; or empty.
    """

    kind: str = ""

    def __get_pydantic_core_schema__(
        self,
        source: Any,
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        """Return how a value is validated."""
        path = _PATH_OR_NAME if self.kind else _PATH
        text = core_schema.no_info_after_validator_function(self._checked, handler(path))
        if source is str:
            return text
        call = handler.generate_schema(NamedCall if self.kind else Call)
        return core_schema.tagged_union_schema(
            {
                "path": text,
                "call": core_schema.no_info_after_validator_function(self._checked_call, call),
            },
            discriminator=lambda value: "call" if isinstance(value, dict | Call) else "path",
        )

    def _checked(self, text: str, key: str = "") -> str:
        if ":" not in text:
            registered(self.kind, text, key)
        return text

    def _checked_call(self, call: Call) -> Call:
        self._checked(call.path, "path")
        return call


_MODULE = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"
_PATH = Annotated[
    str, StringConstraints(pattern=rf"^{_MODULE}$"), Field(examples=["package.module:name"])
]
_PATH_OR_NAME = Annotated[
    str,
    StringConstraints(pattern=rf"^({_MODULE}|[\w-]+)$"),
    Field(examples=["package.module:name", "registered-name"]),
]
ImportPath = Annotated[str, Code()]


class Call(Section):
    """An import path with keyword arguments."""

    path: ImportPath = Field(description="Import path 'package.module:name'.")
    kwargs: dict[str, JsonValue] = Field(default={}, description="Keyword arguments.")


class NamedCall(Call):
    """An import path or a registered name, with keyword arguments."""

    path: _PATH_OR_NAME = Field(description="Import path 'package.module:name', or a name.")


Callee = Annotated[str | Call, Code()]
"""An import path alone, or a mapping of ``path`` and ``kwargs``."""
Device = Annotated[
    str,
    StringConstraints(pattern=r"^(cpu|cuda(:\d{1,3})?)$"),
    Field(examples=["cpu", "cuda", "cuda:0"]),
]
Devices = Annotated[tuple[Device, ...], Strict(), Field(min_length=1), BeforeValidator(sequence)]
Schedule = Literal["constant", "linear", "cosine"]


def code_of(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, list[str]]]:
    """Yield each key of a section that names code: the key, its value, and its import paths."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section) and not isinstance(value, Call):
            yield from code_of(value, f"{prefix}{name}.")
        elif _names_code((field.annotation, *field.metadata)):
            yield f"{prefix}{name}", value, list(_import_paths(value))


def _names_code(annotation: Any) -> bool:
    """Return whether values of a type may name code."""
    parts = annotation if isinstance(annotation, tuple) else get_args(annotation)
    return isinstance(annotation, Code) or any(_names_code(part) for part in parts)


def _import_paths(value: Any) -> Iterator[str]:
    if isinstance(value, Call):
        value = value.path
    if isinstance(value, str):
        yield from [value] if ":" in value else []
    elif isinstance(value, list | tuple | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _import_paths(part)
