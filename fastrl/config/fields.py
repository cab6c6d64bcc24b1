"""The kinds of values that configuration keys have, and the class of all sections."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    JsonValue,
    Strict,
    StringConstraints,
    Tag,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fastrl import registry
from fastrl.errors import ConfigError

_PATH = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"


def whole(value: Any) -> Any:  # noqa: ANN401
    """Let ``1e6`` stand for an integer; other floats stay what they are and are refused."""
    is_whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
    return int(value) if is_whole else value


def sequence(value: Any) -> Any:  # noqa: ANN401
    """Let YAML's lists stand for tuples, and nothing else: a set has no order."""
    return tuple(value) if isinstance(value, list) else value


# The function comes last, so that it runs first and the bounds stay part of the JSON schema.
Size = Annotated[int, Strict(), Field(ge=1, le=2**31 - 1), BeforeValidator(whole)]
Few = Annotated[int, Strict(), Field(ge=1, le=4096), BeforeValidator(whole)]
"""Processes, threads and the like: far more would take all memory before anything could fail."""
Count = Annotated[int, Strict(), Field(ge=0, le=2**31 - 1), BeforeValidator(whole)]
Steps = Annotated[int, Strict(), Field(ge=1, le=2**62), BeforeValidator(whole)]
Episodes = Annotated[int, Strict(), Field(ge=1, le=1_000_000), BeforeValidator(whole)]
Seed = Annotated[int, Strict(), Field(ge=0, le=2**32 - 1), BeforeValidator(whole)]
Float = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Seconds = Annotated[Float, Field(gt=0, le=1e9)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Bool = Annotated[bool, Strict()]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]


@dataclass(frozen=True)
class Code:
    """Marks text of a key that names what is imported: ``package.module:name``.

    What marks a key is all that trust, tuning and documentation know of it; see `code_of`.

    Attributes:
        kind: Of `registry.KINDS`: a registered name of this kind may stand there as well. Whether
            there is one is checked; an import path is not imported.
    """

    kind: str = ""

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # noqa: ANN401
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        """Return how the text is validated."""
        text = core_schema.str_schema(
            pattern=rf"^({_PATH}|[\w-]+)$" if self.kind else rf"^{_PATH}$"
        )
        return core_schema.no_info_after_validator_function(self._checked, text)

    def _checked(self, text: str) -> str:
        if ":" not in text:
            registered(self.kind, text)
        return text


def registered(kind: str, name: str) -> registry.Entry:
    """Return what is registered under a name.

    Raises:
        PydanticCustomError: Nothing is.
    """
    try:
        return registry.entry(kind, name)
    except ConfigError as error:
        raise conflict("name", str(error)) from None


ImportPath = Annotated[str, Code(), Field(examples=["package.module:name"])]
Device = Annotated[
    str,
    StringConstraints(pattern=r"^(cpu|cuda(:\d{1,3})?)$"),
    Field(examples=["cpu", "cuda", "cuda:0"]),
]
Devices = Annotated[tuple[Device, ...], Strict(), Field(min_length=1), BeforeValidator(sequence)]
Schedule = Literal["constant", "linear", "cosine"]


class Section(BaseModel):
    """A part of the configuration: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def conflict(key: str, problem: str) -> PydanticCustomError:
    """Return an error of a whole section that is nevertheless one key's."""
    return PydanticCustomError("conflict", "{problem}", {"key": key, "problem": problem})


def code_of(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, list[str]]]:
    """Yield each key that names code: the key, its value, and the import paths in it.

    Args:
        section: A configuration, or a part of it.
        prefix: What goes before its keys.
    """
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section) and not isinstance(value, Call):
            yield from code_of(value, f"{prefix}{name}.")
        elif names_code((field.annotation, *field.metadata)):
            yield f"{prefix}{name}", value, list(_import_paths(value))


def names_code(annotation: Any) -> bool:  # noqa: ANN401
    """Say whether values of a type may name code."""
    is_call = isinstance(annotation, type) and issubclass(annotation, Call)
    if is_call or isinstance(annotation, Code):
        return True
    parts = annotation if isinstance(annotation, tuple) else get_args(annotation)
    return any(names_code(part) for part in parts)


def _import_paths(value: Any) -> Iterator[str]:  # noqa: ANN401
    if isinstance(value, Call):
        value = value.path
    if isinstance(value, str):
        yield from [value] if ":" in value else []
    elif isinstance(value, list | tuple | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _import_paths(part)


class Call(Section):
    """What is imported, and the keyword arguments that it is called with."""

    path: ImportPath = Field(description="Import path 'package.module:name'.")
    kwargs: dict[str, JsonValue] = Field(default={}, description="Keyword arguments.")


def is_call(value: object) -> bool:
    """Say which of the two forms of a `Callee` is meant, so that errors are about that one."""
    return isinstance(value, dict | Call)


Callee = Annotated[
    Annotated[ImportPath, Tag("path")] | Annotated[Call, Tag("call")],
    Discriminator(lambda value: "call" if is_call(value) else "path"),
]
"""An import path alone, or a mapping of ``path`` and ``kwargs``."""
