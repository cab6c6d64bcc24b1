"""From YAML files and overrides to a `Config`, and back.

A file may name another with ``base: other.yaml``; its own keys are laid over that one's. Overrides
such as ``sampler.num_env_workers=4`` are laid over the files. Mappings are merged key by key,
everything else is replaced.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

from pydantic import Field, ValidationError, create_model

from fastrl import registry
from fastrl.arguments import brief, taken
from fastrl.config.algorithms import (
    LearnerConfig,
    OpenConfig,
    checked_section_type,
    own_section_type,
)
from fastrl.config.explain import dotted, explain, sections
from fastrl.config.models import OWN_SECTION, Config, named_sampler
from fastrl.config.text import MAX_DEPTH, dump_yaml, parse_yaml, printable
from fastrl.errors import ConfigError

_MAX_FILE_BYTES = 256 * 1024
_MAX_BASES = 32


@dataclass(frozen=True)
class _Layer:
    """A tree of keys and where it comes from."""

    origin: str
    tree: dict[str, Any]

    def has(self, key: tuple[str, ...]) -> bool:
        node: Any = self.tree
        for part in key:
            if not isinstance(node, Mapping) or part not in node:
                return False
            node = node[part]
        return True


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a file with its bases and the overrides laid over it.

    Nothing that the file names is imported here.

    Args:
        path: A YAML file; None for the defaults alone.
        overrides: ``section.key=value`` each, the value in YAML; later ones win.

    Raises:
        ConfigError: With one line that names the file, the key, what is wrong and what is right.
    """
    if path is not None and not isinstance(path, str | Path):
        raise ConfigError(f"a configuration is given by the path of its file, got {brief(path)}")
    layers = [] if path is None else _read_layers(Path(path), [])
    layers += [_parse_override(text) for text in _texts(overrides)]
    tree: dict[str, Any] = {}
    for layer in layers:
        # Before they are merged, so that a name changes only the keys that it stands for.
        if "sampler" in layer.tree:
            layer.tree["sampler"] = named_sampler(layer.tree["sampler"])
        tree = _merged(tree, layer.tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        source = "configuration" if path is None else str(path)
        raise ConfigError(_message(error, tree, layers, source)) from None


def resolved(config: Config) -> Config:
    """Return a configuration whose sections are all validated: where a run starts.

    The algorithm that ``algorithm.class_path`` names is imported, and its section with it.

    Raises:
        ConfigError: It cannot be imported, or a key of its section is wrong.
    """
    section = config.algorithm
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
    return dump_yaml(config.model_dump(mode="python", warnings="none"))


def save_config(config: Config, path: str | Path) -> None:
    """Write a configuration as YAML with every key.

    Raises:
        ConfigError: The file cannot be written, or it is no configuration.
    """
    taken("save_config", config, Config)
    if not isinstance(path, str | Path):
        raise ConfigError(f"save_config takes the path of a file, got {brief(path)}")
    try:
        Path(path).write_text(config_to_yaml(config), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(printable(f"{path}: cannot be written: {_reason(error)}")) from None


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file, for editors and for documentation.

    It has the sections of all registered algorithms, those of installed plug-ins included. A file
    may leave to its base, or to overrides, what a whole configuration needs; so no key is required
    by this schema, but for ``class_path`` where an algorithm is not registered.
    """
    default = Config.model_fields["algorithm"]
    field = Field(default=default.default, description=default.description)
    # A union that is only known now.
    union: Any = Union[(*_algorithm_sections(), OpenConfig)]
    # Named and documented like its base.
    whole = create_model(
        "Config", __base__=Config, __doc__=Config.__doc__, algorithm=(union, field)
    )
    schema = whole.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)
    own = schema["$defs"]["OpenConfig"]
    own["properties"] = {"class_path": own["properties"]["class_path"]}
    own["required"] = ["class_path"]
    base = {"type": "string", "description": "File, relative to this one, that this one refines."}
    schema["properties"] = {"base": base, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _algorithm_sections() -> Iterator[type[LearnerConfig]]:
    """Yield the section of each registered algorithm, fastrl's own first; broken ones are left out.

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


def _read_layers(path: Path, above: list[Path]) -> list[_Layer]:
    """Return a file's layers, the most basic one first.

    Args:
        path: The file.
        above: The files that led here by ``base``.
    """
    if len(above) >= _MAX_BASES:
        raise ConfigError(printable(f"{path}: base: more than {_MAX_BASES} files on each other"))
    text = _read_text(path, f"{above[-1]}: base: " if above else "")
    tree = parse_yaml(text, str(path))
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(printable(f"{path}: must be a mapping of keys to values"))
    base = tree.pop("base", None)
    # 'sampler:' with every key below it commented out is a section without changes.
    empty = [key for key in sections() if key in tree and tree[key] is None]
    layer = _Layer(str(path), {key: tree[key] for key in tree if key not in empty})
    resolved = [file.resolve() for file in (*above, path)]
    first = resolved.index(resolved[-1])
    if first < len(above):
        chain = " -> ".join(file.name for file in resolved[first:])
        raise ConfigError(printable(f"{above[-1]}: base: files refine each other: {chain}"))
    if base is None:
        return [layer]
    if not isinstance(base, str) or not base:
        raise ConfigError(printable(f"{path}: base: must be the name of a YAML file; got {base!r}"))
    return [*_read_layers(path.parent / base, [*above, path]), layer]


def _read_text(path: Path, where: str) -> str:
    try:
        if not path.is_file():
            raise ConfigError(printable(f"{where}{path}: {_why_no_file(path)}"))
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(printable(f"{where}{path}: larger than {_MAX_FILE_BYTES} bytes"))
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(printable(f"{where}{path}: not a text file in UTF-8")) from None
    except (OSError, ValueError, RuntimeError) as error:
        problem = f"{where}{path}: cannot be read: {_reason(error)}"
        raise ConfigError(printable(problem)) from None


def _why_no_file(path: Path) -> str:
    if path.exists():
        return "not a file"
    siblings = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"no such file; did you mean {path.parent / near[0]}?" if near else "no such file"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _texts(overrides: Sequence[str]) -> list[str]:
    """Return the overrides, once it is sure that there is a text for each."""
    if isinstance(overrides, Iterable) and not isinstance(overrides, str | bytes | Mapping):
        found = list(overrides)
        if all(isinstance(text, str) for text in found):
            return found
    raise ConfigError(f'overrides are a list of texts, such as ["seed=1"]; got {brief(overrides)}')


def _parse_override(text: str) -> _Layer:
    name, equals, value = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            printable(f"override '{text}': must be key=value, such as sampler.envs_per_worker=64")
        )
    if len(parts) > MAX_DEPTH:
        raise ConfigError(printable(f"override: {name[:60]}…: nested too deeply"))
    tree: Any = parse_yaml(value, f"override: {name}", numbered=False)
    for part in reversed(parts):
        tree = {part: tree}
    return _Layer("override", tree)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        merged[key] = value
    return merged


def _message(
    error: ValidationError,
    tree: Mapping[str, Any],
    layers: list[_Layer],
    source: str,
    algorithm: type[LearnerConfig] | None = None,
) -> str:
    """Return the first problem in one line; an unknown key before what may follow from it."""
    problems = error.errors(include_url=False)
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    key, text = explain(first, tree, algorithm)
    origin = next((layer.origin for layer in reversed(layers) if layer.has(key)), source)
    return printable(f"{origin}: {dotted(key)}: {text}")
