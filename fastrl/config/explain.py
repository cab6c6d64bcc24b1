"""One line for each way a configuration can be wrong: which key, what is wrong, what is right."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic_core import ErrorDetails, PydanticCustomError

from fastrl.config.algorithms import (
    A2CConfig,
    LearnerConfig,
    OpenConfig,
    PPOConfig,
    section_type,
)
from fastrl.config.fields import Call, Section
from fastrl.config.models import Config

# What other libraries call these; too far from our names for a comparison of letters.
_ALIASES = {
    "ent_coef": "algorithm.entropy_coef",
    "env_id": "env.id",
    "lr": "algorithm.learning_rate",
    "n_envs": "sampler.envs_per_worker",
    "n_epochs": "algorithm.epochs",
    "n_steps": "sampler.rollout_length",
    "n_timesteps": "total_steps",
    "net_arch": "model.hidden_sizes",
    "num_envs": "sampler.envs_per_worker",
    "num_steps": "sampler.rollout_length",
    "num_workers": "sampler.num_env_workers",
    "total_timesteps": "total_steps",
    "update_epochs": "algorithm.epochs",
    "vf_coef": "algorithm.value_coef",
}
_SHOWN_CHARS = 60
_ENTRY_KEYS = " and ".join(Call.model_fields)


def explain(
    error: ErrorDetails, tree: Mapping[str, Any], algorithm: type[LearnerConfig] | None = None
) -> tuple[tuple[str, ...], str]:
    """Return the key that an error of pydantic is about, and what to tell about it.

    Args:
        error: One entry of ``ValidationError.errors()`` of `Config`.
        tree: What was validated.
        algorithm: Class of the section ``algorithm``; by default what the tree chooses.

    Returns:
        The key as a path, and one sentence without it.
    """
    classes = {**sections(), "algorithm": algorithm or _algorithm(tree)}
    kind, key = error["type"], _key(error)
    if kind in ("conflict", "value_error", "assertion_error"):
        return key, error["msg"]
    if kind == "extra_forbidden" and len(error["loc"]) > 3:
        return key, f"unknown key '{error['loc'][-1]}' of an entry; known are {_ENTRY_KEYS}"
    if kind == "extra_forbidden":
        return key, f"unknown key; {_suggestion(key, classes)}"
    if kind == "missing" and len(key) == 1:
        return key, f"missing; give at least {key[0]}.id"
    if key[0] in classes and len(key) == 1:
        keys = ", ".join(classes[key[0]].model_fields)
        return key, f"must be a mapping with keys among {keys}; got {_show(_value(tree, key))}"
    allowed = _allowed(key, classes)
    # What is missing may also be an entry of a list that is there.
    if kind in ("missing", "union_tag_not_found") and _value(tree, key) is None:
        return key, f"missing; must be {allowed}"
    return key, f"must be {allowed}; got {_show(_value(tree, key))}"


def dotted(key: tuple[str, ...]) -> str:
    """Return a key as it is written on the command line."""
    return ".".join(key)


@cache
def sections() -> dict[str, type[Section]]:
    """Return the keys of `Config` that are sections, and their classes."""
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def _algorithm(tree: Mapping[str, Any]) -> type[LearnerConfig]:
    """Return the class of the section that a tree chooses; PPO's where it chooses none."""
    keys = tree.get("algorithm")
    if not isinstance(keys, Mapping):
        return PPOConfig
    if keys.get("class_path") is not None:
        return OpenConfig
    try:
        return section_type({"name": "ppo", **keys})
    except PydanticCustomError:
        return PPOConfig


def _key(error: ErrorDetails) -> tuple[str, ...]:
    """Return section and key; pydantic goes on into lists."""
    path = [str(part) for part in error["loc"]]
    if not path:
        return ("",)
    if error["type"] == "conflict":
        path.append(error["ctx"]["key"])
    return tuple(path[:2] if path[0] in sections() else path[:1])


def _suggestion(key: tuple[str, ...], classes: Mapping[str, type[Section]]) -> str:
    """Return which known key an unknown one was probably meant to be."""
    name = key[-1]
    if key[0] == "algorithm":
        for other in (PPOConfig, A2CConfig):
            if name in other.model_fields:
                return f"it belongs to algorithm.name: {other.model_fields['name'].default}"
    own = list((classes[key[0]] if len(key) > 1 else Config).model_fields)
    prefix = f"{key[0]}." if len(key) > 1 else ""
    everywhere = [*Config.model_fields]
    everywhere += [f"{section}.{k}" for section in classes for k in classes[section].model_fields]
    elsewhere = [known for known in everywhere if known.rpartition(".")[2] == name]
    if name in _ALIASES:
        elsewhere.append(_ALIASES[name])
    near = [prefix + k for k in difflib.get_close_matches(name, own, n=1, cutoff=0.75)]
    near = near or [prefix + k for k in own if prefix and name in k.split("_")]
    by_leaf = {known.rpartition(".")[2]: known for known in reversed(everywhere)}
    leaf = difflib.get_close_matches(name, by_leaf, n=1, cutoff=0.6)
    candidates = elsewhere or near or [by_leaf[match] for match in leaf]
    if candidates:
        return f"did you mean {' or '.join(candidates)}?"
    return f"known are {', '.join(own)}"


def _allowed(key: tuple[str, ...], classes: Mapping[str, type[Section]]) -> str:
    """Return in words which values a key may have."""
    owner = classes[key[0]] if len(key) > 1 else Config
    schema = owner.model_json_schema()["properties"].get(key[-1])
    return _describe(schema) if schema else ""


def _describe(schema: Mapping[str, Any]) -> str:
    """Return a JSON schema in words, as far as `Config` uses it."""
    if "anyOf" in schema or "oneOf" in schema:
        parts = schema.get("anyOf") or schema["oneOf"]
        return " or ".join(dict.fromkeys(_describe(part) for part in parts))
    if "$ref" in schema:
        return f"a mapping of {_ENTRY_KEYS}"
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values:
        return " or ".join(_show(value) for value in values)
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("an integer" if kind == "integer" else "a number") + _bounds(schema)
    if "prefixItems" in schema:
        entries = [_describe(entry) for entry in schema["prefixItems"]]
        return f"a list of {len(entries)}, each {' or '.join(dict.fromkeys(entries))}"
    if kind == "array":
        count = " that is not empty" if schema.get("minItems") else ""
        return f"a list{count}, each {_describe(schema['items'])}"
    if kind == "string":
        examples = " or ".join(_show(example) for example in schema.get("examples", ()))
        longest = schema.get("maxLength", "any number of")
        return f"text such as {examples}" if examples else f"text of 1 to {longest} characters"
    return {"boolean": "true or false", "null": "null", "object": "a mapping"}.get(
        str(kind), "JSON"
    )


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    bounds = {text: schema[bound] for bound, text in words.items() if bound in schema}
    # All digits of a whole number, as it may be written so.
    parts = [
        f"{text} {bound}" if isinstance(bound, int) else f"{text} {bound:.15g}"
        for text, bound in bounds.items()
    ]
    return f" {' and '.join(parts)}" if parts else ""


def _value(tree: Any, key: tuple[str, ...]) -> Any:  # noqa: ANN401
    """Return the value at a key, None where there is none."""
    for part in key:
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _show(value: Any) -> str:  # noqa: ANN401
    """Return a value as YAML would write it on one line, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
