"""The kinds of values that configuration keys have, and the class of all sections."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Strict,
    StringConstraints,
    Tag,
)
from pydantic_core import PydanticCustomError


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
ImportPath = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"),
    Field(examples=["package.module:name"]),
]
Choice = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z_][\w.]*:[A-Za-z_][\w.]*|[\w-]+)$"),
    Field(examples=["package.module:name", "registered_name"]),
]
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


class Call(Section):
    """What is imported, and the keyword arguments that it is called with."""

    path: ImportPath = Field(description="Import path 'package.module:name'.")
    kwargs: dict[str, JsonValue] = Field(default={}, description="Keyword arguments.")


class NamedCall(Call):
    """The same for what may be registered by a name."""

    path: Choice = Field(description="Import path 'package.module:name', or a registered name.")


# The function keeps errors to the one form that was meant.
_form = Discriminator(lambda value: "call" if isinstance(value, dict | Call) else "path")
Callee = Annotated[Annotated[ImportPath, Tag("path")] | Annotated[Call, Tag("call")], _form]
"""An import path alone, or a mapping of ``path`` and ``kwargs``."""
NamedCallee = Annotated[Annotated[Choice, Tag("path")] | Annotated[NamedCall, Tag("call")], _form]
"""The same for what may be registered by a name."""
