"""The guide's list of keys is the one that the models have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic_core import PydanticUndefined

from fastrl.config import (
    A2CConfig,
    ActorCriticConfig,
    AIRLConfig,
    APPOConfig,
    BCConfig,
    Config,
    DAggerConfig,
    GAILConfig,
    ImpalaConfig,
    LearnerConfig,
    PPOConfig,
)
from fastrl.config.explain import sections
from fastrl.config.fields import Section

RELATIVES: tuple[tuple[type[LearnerConfig], type[LearnerConfig]], ...] = (
    (APPOConfig, PPOConfig),
    (ImpalaConfig, A2CConfig),
    (GAILConfig, PPOConfig),
    (AIRLConfig, GAILConfig),
)
GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "configuration.md"


def rows_of(section: type[Section], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        default = field.default
        if isinstance(default, Section) or (default is PydanticUndefined and not prefix):
            continue
        text = "required" if default is PydanticUndefined else f"`{json.dumps(default)}`"
        description = " ".join((field.description or "").split())
        yield f"| `{prefix}{name}` | {text} | {description} |"


def table(*rows: str) -> str:
    return "\n".join(("| key | default | |", "|---|---|---|", *rows))


def relative_to(other: type[LearnerConfig], section: type[LearnerConfig]) -> Iterator[str]:
    """Yield a sentence, and the rows in which a section differs from another one."""
    missing = [f"`{name}`" for name in other.model_fields if name not in section.model_fields]
    without = f" but {', '.join(missing)}" if missing else ""
    yield f"It has the keys of `{other.model_fields['name'].default}`{without}, and these:"
    known = set(rows_of(other, "algorithm."))
    yield table(*(row for row in rows_of(section, "algorithm.") if row not in known))


def reference() -> str:
    parts = [table(*rows_of(Config, ""))]
    for name in Config.model_fields:
        if name != "algorithm":
            if kind := sections().get(name):
                parts += [f"### {name}", kind.__doc__ or "", table(*rows_of(kind, f"{name}."))]
        else:
            for algorithm in (PPOConfig, A2CConfig, BCConfig, DAggerConfig):
                parts += [
                    f"### algorithm, with name: {algorithm.model_fields['name'].default}",
                    algorithm.__doc__ or "",
                    table(*rows_of(algorithm, "algorithm.")),
                ]
            for algorithm, other in RELATIVES:
                parts += [
                    f"### algorithm, with name: {algorithm.model_fields['name'].default}",
                    algorithm.__doc__ or "",
                    *relative_to(other, algorithm),
                ]
    return "\n\n".join(parts) + "\n"


def test_guide_lists_every_key_with_default_and_description():
    guide = GUIDE.read_text()
    assert guide.endswith(reference()), "replace the end of the guide by what reference() returns"


def test_reference_names_the_keys_that_both_algorithms_have():
    for name in ActorCriticConfig.model_fields:
        assert reference().count(f"| `algorithm.{name}` |") >= 2
