"""Loads a `Config` from YAML files and overrides, and saves it.

A file may name another with ``base: other.yaml``; its own keys replace those of the other file.
Overrides such as ``sampler.num_env_workers=4`` come last. Mappings are merged key by key;
everything else is replaced.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Union

from pydantic import Field, ValidationError, create_model
from pydantic_core import PydanticCustomError

from fastrl import registry
from fastrl.arguments import brief, file_path, taken
from fastrl.config.algorithms import (
    LearnerConfig,
    OpenConfig,
    checked_section_type,
    own_section_type,
    section_type,
)
from fastrl.config.explain import Key, dotted, explain, first_problem, sections, value_at
from fastrl.config.models import OWN_SECTION, Config, named_sampler
from fastrl.config.text import MAX_DEPTH, dump_yaml, parse_yaml
from fastrl.durable import write_output, writing
from fastrl.errors import ConfigError

_MAX_FILE_BYTES = 256 * 1024
_MAX_BASES = 32


@dataclass(frozen=True)
class _Source:
    """A tree of keys and its source."""

    origin: str
    tree: dict[str, Any]

    def has(self, key: Key) -> bool:
        return value_at(self.tree, key, ...) is not ...


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a file, with its base files and overrides.

    Import paths are not imported; installed plug-ins are, if fastrl does not know a name.

    Args:
        path: A YAML file; None for the defaults alone.
        overrides: ``section.key=value`` each, the value in YAML; later ones take precedence.

    Raises:
        ConfigError: The configuration is invalid; names the file, the key and the allowed values.
    """
    files = [] if path is None else _read_layers(file_path("path", path), [])
    asked = [_parse_override(text) for text in _texts(overrides)]
    layers = [*files, *asked]
    # Before layers are merged, so that a name changes only the keys for which it stands.
    for layer in layers:
        if "sampler" in layer.tree:
            layer.tree["sampler"] = named_sampler(layer.tree["sampler"])
    tree: dict[str, Any] = {}
    nothing: dict[str, Any] = {}
    together = reduce(_merged, (layer.tree for layer in asked), nothing)
    for above in (*(file.tree for file in files), together):
        kept = _without_other_algorithm(_without_other_size(tree, above), above)
        tree = _merged(kept, above)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        source = "configuration" if path is None else str(path)
        raise ConfigError(_message(error, tree, layers, source)) from None


def resolved(config: Config) -> Config:
    """Import the algorithm of ``algorithm.class_path`` and validate its section.

    Raises:
        ConfigError: It cannot be imported, or a key of its section is wrong.
    """
    section = taken("resolved", config, Config).algorithm
    if not isinstance(section, OpenConfig):
        return config
    own = own_section_type(section.class_path)
    tree = {**dict(config), "algorithm": section.given}
    try:
        return Config.model_validate(tree, context={OWN_SECTION: own})
    except ValidationError as error:
        raise ConfigError(_message(error, tree, [], "configuration", own)) from None


def config_to_yaml(config: Config) -> str:
    """Return a configuration as YAML with every key, which `load_config` reads back as equal."""
    taken("config_to_yaml", config, Config)
    return dump_yaml(config.model_dump(mode="python", warnings="none"))


def save_config(config: Config, path: str | Path) -> None:
    """Write a configuration as YAML with every key.

    Raises:
        ConfigError: The file cannot be written, or ``config`` is not a configuration.
    """
    taken("save_config", config, Config)
    file = file_path("path", path)
    with writing(file, ConfigError):
        write_output(file, config_to_yaml(config).encode())


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file, for editors and for documentation.

    It contains the sections of all registered algorithms, including those of plug-ins. No key is
    required, as it may be in the base or in overrides, except ``class_path`` of an algorithm that
    is not registered.
    """
    default = Config.model_fields["algorithm"]
    field = Field(default=default.default, description=default.description)
    # A union that is only known at run time.
    union: Any = Union[(*_algorithm_sections(), OpenConfig)]
    # Named and documented like its base.
    whole = create_model(
        "Config", __base__=Config, __doc__=Config.__doc__, algorithm=(union, field)
    )
    schema = whole.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)
        for key in part.get("properties", {}).values():
            key["description"] = " ".join(key.get("description", "").split())
    own = schema["$defs"]["OpenConfig"]
    own["properties"] = {"class_path": own["properties"]["class_path"]}
    own["required"] = ["class_path"]
    base = {"type": "string", "description": "File, relative to this one, that this one refines."}
    schema["properties"] = {"base": base, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _algorithm_sections() -> Iterator[type[LearnerConfig]]:
    """Yield the section of each registered algorithm, fastrl's own first, without broken ones.

    Each allows the registered name alone.
    """
    found = [entry for entry in registry.entries() if entry.kind == "algorithm"]
    for entry in sorted(found, key=lambda entry: (entry.source != "fastrl", entry.name)):
        with suppress(ConfigError):
            section = registry.section_of("algorithm", entry.name, "algorithm.name")
            known = checked_section_type(section, entry.name)
            description = known.model_fields["name"].description
            name: Any = (Literal[entry.name], Field(entry.name, description=description))
            yield create_model(known.__name__, __base__=known, __doc__=known.__doc__, name=name)


def _read_layers(path: Path, above: list[Path]) -> list[_Source]:
    """Return a file and its bases, the last base first; ``above`` are files that refer to it."""
    if len(above) >= _MAX_BASES:
        raise ConfigError(f"{path}: base: more than {_MAX_BASES} files in a chain")
    tree = read_mapping(path, f"{above[-1]}: base: " if above else "")
    base = tree.pop("base", None)
    # 'sampler:' without keys, for instance if they are comments, changes nothing.
    empty = [
        key
        for key in sections()
        if key in tree and tree[key] is None and Config.model_fields[key].default is not None
    ]
    layer = _Source(str(path), {key: tree[key] for key in tree if key not in empty})
    resolved = [file.resolve() for file in (*above, path)]
    first = resolved.index(resolved[-1])
    if first < len(above):
        chain = " -> ".join(file.name for file in resolved[first:])
        raise ConfigError(f"{above[-1]}: base: files refer to each other: {chain}")
    if base is None:
        return [layer]
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{path}: base: must be the name of a YAML file; got {base!r}")
    return [*_read_layers(path.parent / base, [*above, path]), layer]


def read_mapping(path: Path, where: str = "") -> dict[str, Any]:
    """Return the tree of a YAML file; it is empty if the file is.

    Args:
        path: The file.
        where: See `read_text`.

    Raises:
        ConfigError: See `read_text` and `parse_yaml`; or it is not a mapping.
    """
    tree = parse_yaml(read_text(path, where), str(path))
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a mapping of keys to values")
    return tree or {}


def read_text(path: Path, where: str = "") -> str:
    """Return the text of a configuration file.

    Args:
        path: The file.
        where: Prefix of its path in errors.

    Raises:
        ConfigError: It is missing, too large or not text.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"{where}{path}: {_why_no_file(path)}")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"{where}{path}: larger than {_MAX_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{where}{path}: not a text file in UTF-8") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{where}{path}: cannot be read: {reason}") from None


def _why_no_file(path: Path) -> str:
    if path.exists():
        return "not a file"
    siblings = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"no such file; did you mean {path.parent / near[0]}?" if near else "no such file"


def _texts(overrides: Sequence[str]) -> list[str]:
    """Return the overrides after a check that they are texts."""
    if isinstance(overrides, Iterable) and not isinstance(overrides, str | bytes | Mapping):
        found = list(overrides)
        if all(isinstance(text, str) for text in found):
            return found
    raise ConfigError(f'overrides are a list of texts, such as ["seed=1"]; got {brief(overrides)}')


def _parse_override(text: str) -> _Source:
    name, equals, value = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"override '{text}': must be key=value, such as sampler.envs_per_worker=64"
        )
    if len(parts) > MAX_DEPTH:
        raise ConfigError(f"override: {name[:60]}…: nested too deeply")
    tree: Any = parse_yaml(value, f"override: {name}", numbered=False)
    for part in reversed(parts):
        tree = {part: tree}
    return _Source("override", tree)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        merged[key] = value
    return merged


def _without_other_size(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree without the sampler's size that the sizes in ``above`` replace.

    Two of B, n and N determine the third. So a file with ``envs_per_worker`` can refine one with
    ``num_envs``, and vice versa; and if a file has all three, as a tuned one does, B stays and N
    is refined.
    """
    lower, upper = below.get("sampler"), above.get("sampler")
    if not isinstance(lower, dict) or not isinstance(upper, dict):
        return below
    total, n, workers = "num_envs", "envs_per_worker", "num_env_workers"
    given = {key for key in (total, n, workers) if upper.get(key) not in (None, "auto")}
    replaced = ""
    if n in given:
        replaced = workers if total in given else total
    elif given and (total in given or lower.get(total) is not None):
        replaced = n
    return {**below, "sampler": {key: lower[key] for key in lower if key != replaced}}


def _without_other_algorithm(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree without the keys that the algorithm named by ``above`` lacks.

    So ``algorithm.name=a2c`` refines a file with PPO's ``epochs``.
    """
    lower, upper = below.get("algorithm"), above.get("algorithm")
    if not isinstance(lower, dict) or not isinstance(upper, dict) or "name" not in upper:
        return below
    try:
        before, after = (section_type({"name": "ppo", **keys}) for keys in (lower, upper))
    except PydanticCustomError:  # validation reports a wrong name later
        return below
    other = before.model_fields.keys() - after.model_fields.keys()
    return {**below, "algorithm": {key: lower[key] for key in lower if key not in other}}


def _message(
    error: ValidationError,
    tree: Mapping[str, Any],
    layers: list[_Source],
    source: str,
    algorithm: type[LearnerConfig] | None = None,
) -> str:
    """Return the first problem in one line."""
    key, text = explain(first_problem(error), tree, algorithm)
    # A list with all its entries comes from one layer.
    written = tuple(takewhile(lambda part: isinstance(part, str), key))
    origin = next((layer.origin for layer in reversed(layers) if layer.has(written)), source)
    return f"{origin}: {dotted(key)}: {text}"
