"""Error messages of a configuration: one line with the key, the mistake and the allowed values."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from fastrl.config.algorithms import (
    A2CConfig,
    APPOConfig,
    BCConfig,
    DAggerConfig,
    GAILConfig,
    LearnerConfig,
    OpenConfig,
    PPOConfig,
    section_type,
)
from fastrl.config.fields import Call, Section
from fastrl.config.models import Config

Key = tuple[str | int, ...]
"""A key as a path, with indices of lists."""

# Names in other libraries that differ too much from ours for a comparison by spelling.
_ALIASES = {
    "ent_coef": "algorithm.entropy_coef",
    "env_id": "env.id",
    "lr": "algorithm.learning_rate",
    "n_envs": "sampler.num_envs",
    "n_epochs": "algorithm.epochs",
    "n_steps": "sampler.rollout_length",
    "n_timesteps": "total_steps",
    "net_arch": "model.hidden_sizes",
    "num_steps": "sampler.rollout_length",
    "num_workers": "sampler.num_env_workers",
    "total_timesteps": "total_steps",
    "update_epochs": "algorithm.epochs",
    "vf_coef": "algorithm.value_coef",
}
_BOUNDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_SHOWN_CHARS = 60
_SHOWN_KEYS = 8


def first_problem(error: ValidationError) -> ErrorDetails:
    """Return the problem to report: an unknown key first, as it may cause the others."""
    problems = error.errors(include_url=False)
    return min(problems, key=lambda problem: problem["type"] != "extra_forbidden")


def explain(
    error: ErrorDetails,
    tree: Mapping[str, Any],
    algorithm: type[LearnerConfig] | None = None,
    root: type[Section] = Config,
) -> tuple[Key, str]:
    """Return the key that an error of pydantic is about, and a sentence about it.

    Args:
        error: One entry of ``ValidationError.errors()``, such as `first_problem`.
        tree: Validated tree.
        algorithm: Class of the section ``algorithm``; by default the one that the tree chooses.
        root: Class of the whole tree.
    """
    algorithm = algorithm or _algorithm(tree)
    key, owner = _locate(error, tree, algorithm, root)
    kind, value = error["type"], value_at(tree, key)
    if kind in ("conflict", "value_error", "assertion_error"):
        return key, error["msg"]
    if kind == "extra_forbidden":
        known = algorithm if root is Config else None
        return key, f"unknown key; {_suggestion(key, owner, known)}"
    if kind == "missing" and key == ("env",):
        return key, f"missing; give at least {key[0]}.id"
    allowed = _allowed(key, algorithm if key == ("algorithm",) else owner)
    if kind in ("missing", "union_tag_not_found") and value is None:
        return key, f"missing; must be {allowed}"
    return key, f"must be {allowed}; got {_show(value)}{_first_key(key, value)}"


def dotted(key: Key) -> str:
    """Return a key as it is written on the command line."""
    return ".".join(map(str, key))


def value_at(tree: Any, key: Key, default: Any = None) -> Any:
    """Return the value at a key of a tree, or the default."""
    for part in key:
        is_entry = isinstance(part, int) and isinstance(tree, list) and part < len(tree)
        if not is_entry and not (isinstance(tree, Mapping) and part in tree):
            return default
        tree = tree[part]
    return tree


@cache
def sections() -> dict[str, type[Section]]:
    """Return the keys of `Config` that are sections, and their classes."""
    return {
        name: section
        for name, field in Config.model_fields.items()
        for section in _sections_in(field.annotation)
        if section is not Call
    }


def _algorithm(tree: Mapping[str, Any]) -> type[LearnerConfig]:
    """Return the class of the section that a tree chooses; PPO's if it chooses none."""
    keys = tree.get("algorithm")
    if not isinstance(keys, Mapping):
        return PPOConfig
    if keys.get("class_path") is not None:
        return OpenConfig
    try:
        return section_type({"name": "ppo", **keys})
    except PydanticCustomError:
        return PPOConfig


def _locate(
    error: ErrorDetails,
    tree: Mapping[str, Any],
    algorithm: type[LearnerConfig],
    root: type[Section],
) -> tuple[Key, type[Section]]:
    """Return the key that an error is about, and the section that it belongs to.

    Pydantic's location also names the chosen members of unions, which are not in the tree.
    """
    key: Key = ()
    owner = root
    inner = [root]
    is_entry = False  # of a mapping from names to sections
    for number, part in enumerate(error["loc"], 1):
        node = value_at(tree, key)
        is_there = value_at(node, (part,), ...) is not ...
        is_last = number == len(error["loc"])
        # The first part is a section, which may be left out.
        if key and not is_there and (error["type"] != "missing" or not is_last):
            inner = [each for each in inner if each.__name__ == part] or inner
            continue
        key = (*key, part)
        if is_entry:
            is_entry = False
        elif isinstance(part, str):
            owner = inner[0]
            field = owner.model_fields.get(part)
            inner = _sections_in(field.annotation) if field is not None else []
            is_entry = field is not None and get_origin(field.annotation) is dict
            if key == ("algorithm",):
                inner = [algorithm]
        if not inner:
            break
    if error["type"] == "conflict" and error["ctx"]["key"]:
        key = (*key, *error["ctx"]["key"].split("."))
    return key, owner


def _sections_in(annotation: Any) -> list[type[Section]]:
    """Return the sections that values of a type may be or contain."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections_in(part)]


def _suggestion(key: Key, owner: type[Section], algorithm: type[LearnerConfig] | None) -> str:
    """Return the known key that an unknown one was probably meant to be.

    ``algorithm`` is None outside of a `Config`; then only ``owner`` is searched.
    """
    name, own = str(key[-1]), list(owner.model_fields)
    if algorithm is not None and key[0] == "algorithm" and len(key) == 2:
        for other in (PPOConfig, A2CConfig, APPOConfig, BCConfig, DAggerConfig, GAILConfig):
            if name in other.model_fields:
                return f"it belongs to algorithm.name: {other.model_fields['name'].default}"
    prefix = "".join(f"{part}." for part in key[:-1])
    everywhere: list[str] = []
    if algorithm is not None:
        classes = {**sections(), "algorithm": algorithm}
        everywhere += Config.model_fields
        everywhere += [f"{each}.{k}" for each in classes for k in classes[each].model_fields]
    elsewhere = [known for known in everywhere if known.rpartition(".")[2] == name]
    elsewhere += [_ALIASES[name]] if algorithm is not None and name in _ALIASES else []
    near = [prefix + k for k in difflib.get_close_matches(name, own, n=1, cutoff=0.75)]
    near = near or [prefix + k for k in own if prefix and name in k.split("_")]
    by_leaf = {known.rpartition(".")[2]: known for known in reversed(everywhere)}
    leaf = difflib.get_close_matches(name, by_leaf, n=1, cutoff=0.6)
    candidates = elsewhere or near or [by_leaf[match] for match in leaf]
    if candidates:
        return f"did you mean {' or '.join(candidates)}?"
    return f"known are {', '.join(own)}"


def _allowed(key: Key, owner: type[Section]) -> str:
    """Describe the values that a key of a section may have."""
    schema = owner.model_json_schema()
    if key == ("algorithm",):
        return _describe(schema, {})
    *_, last = (number for number, part in enumerate(key) if isinstance(part, str))
    found = schema["properties"].get(key[last])
    if found is None:  # an entry of a mapping
        found = schema["properties"].get(key[last - 1], {}).get("additionalProperties", {})
    for _ in key[last + 1 :]:
        parts = [found, *found.get("anyOf", ())]
        found = next((part["items"] for part in parts if "items" in part), {})
    return _describe(found, schema.get("$defs", {}))


def _first_key(key: Key, value: Any) -> str:
    """Return the key that was probably meant, if a value was given to a whole section."""
    first = {str: ("name", "id"), bool: ("enabled",)}.get(type(value), ())
    section = sections().get(str(key[0])) if len(key) == 1 else None
    for name in first:
        if section is not None and name in section.model_fields:
            return f"; did you mean {dotted(key)}.{name}?"
    return ""


def _describe(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """Describe a JSON schema in words, as far as sections use it."""
    if "anyOf" in schema or "oneOf" in schema:
        parts = schema.get("anyOf") or schema["oneOf"]
        return " or ".join(dict.fromkeys(_describe(part, defs) for part in parts))
    if "$ref" in schema:
        return _describe(defs[schema["$ref"].rpartition("/")[2]], defs)
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values:
        return " or ".join(_show(value) for value in values)
    if "prefixItems" in schema:
        entries = [_describe(entry, defs) for entry in schema["prefixItems"]]
        return f"a list of {len(entries)}, each {' or '.join(dict.fromkeys(entries))}"
    return _describe_kind(schema, defs)


def _describe_kind(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if kind in ("integer", "number"):
        # Print all digits of an integer.
        bounds = [
            f"{word} {schema[bound] if isinstance(schema[bound], int) else f'{schema[bound]:.15g}'}"
            for bound, word in _BOUNDS.items()
            if bound in schema
        ]
        noun = "an integer" if kind == "integer" else "a number"
        return f"{noun} {' and '.join(bounds)}".rstrip()
    if kind == "array":
        count = " that is not empty" if schema.get("minItems") else ""
        return f"a list{count}, each {_describe(schema['items'], defs)}"
    if kind == "string":
        if examples := " or ".join(_show(example) for example in schema.get("examples", ())):
            return f"text such as {examples}"
        return f"text of 1 to {schema['maxLength']} characters" if "maxLength" in schema else "text"
    if keys := [*schema.get("properties", ())]:
        others = ", …" if len(keys) > _SHOWN_KEYS else ""
        return f"a mapping with keys among {', '.join(keys[:_SHOWN_KEYS])}{others}"
    words = {"boolean": "true or false", "null": "null", "object": "a mapping"}
    return words.get(str(kind), "JSON")


def _show(value: Any) -> str:
    """Return a value as YAML would write it on one line, shortened if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
