"""Reads and writes a subset of YAML, without its surprising or harmful features.

The reader is `yaml.safe_load`'s without tags (so all values are text, numbers, booleans, null,
lists and mappings), without anchors (a few lines of them expand to gigabytes), without duplicate
keys (the last one would win silently), and with numbers as in YAML 1.2, where ``1e-3`` is a number
and ``010`` and ``1:30`` are text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import yaml

from fastrl.errors import ConfigError

MAX_DEPTH = 32
"""Most levels of nesting; each takes a few frames of Python's stack."""

_INT_TAG = "tag:yaml.org,2002:int"
_FLOAT_TAG = "tag:yaml.org,2002:float"
_MERGE_TAG = "tag:yaml.org,2002:merge"
_NULL_TAG = "tag:yaml.org,2002:null"
_BOOL_TAG = "tag:yaml.org,2002:bool"
_INT = re.compile(r"[-+]?(?:0x[0-9a-fA-F]+|0b[01]+|0|[1-9](?:_?[0-9])*)$")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.inf|\.Inf|\.INF)$|\.(?:nan|NaN|NAN)$"
)
_MAX_INT_BITS = 64


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` without tags, anchors, duplicate keys and keys that are not text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class declares it so
        first: [(tag, regexp) for tag, regexp in resolvers if tag in (_NULL_TAG, _BOOL_TAG)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    key_tags: ClassVar[frozenset[str]] = frozenset({"tag:yaml.org,2002:str"})
    depth = 0

    def reject_extras(self, event: yaml.Event, index: Any) -> None:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _refusal("anchors and aliases are not supported; use base: to share", event)
        if getattr(event, "tag", None) is not None:
            raise _refusal("tags are not supported; remove the '!'", event)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self.reject_extras(event, index)
        if self.depth >= MAX_DEPTH:
            raise _refusal(f"nested more than {MAX_DEPTH} levels deep", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in self.key_tags:
                raise _refusal("keys must be text; put quotes around this one", key)
            if key.value in seen:
                raise _refusal(f"duplicate key '{key.value}'", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int:
        # Python does not read or print much longer decimal numbers.
        number = int(node.value, 0) if len(node.value) <= 100 else 1 << _MAX_INT_BITS
        if number.bit_length() > _MAX_INT_BITS:
            raise _refusal(f"integer does not fit into {_MAX_INT_BITS} bits", node)
        return number


class _ForeignLoader(_Loader):
    """Reads tags of YAML's own types, and mappings that are merged into others by ``<<: *name``.

    Other aliases are rejected, so that a text expands at most to a multiple of its length.
    """

    key_tags = _Loader.key_tags | {_MERGE_TAG}

    def reject_extras(self, event: yaml.Event, index: Any) -> None:
        if isinstance(event, yaml.AliasEvent) and getattr(index, "tag", None) != _MERGE_TAG:
            raise _refusal("an alias is only supported as '<<: *name'", event)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: no anchors, and quotes around text that looks like a number."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.Node:
        # PyYAML folds the rarer line breaks, such as U+0085, into others unless they are escaped.
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def represent_list_inline(self, data: Sequence[Any]) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Loader.add_constructor(_INT_TAG, _Loader.construct_number)
for _class in (_Loader, _ForeignLoader, _Dumper):
    _class.add_implicit_resolver(_INT_TAG, _INT, list("-+0123456789"))
    _class.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+.0123456789"))
_ForeignLoader.add_implicit_resolver(_MERGE_TAG, re.compile("<<$"), ["<"])
_Dumper.add_representer(str, _Dumper.represent_text)
for _sequence in (list, tuple):
    _Dumper.add_representer(_sequence, _Dumper.represent_list_inline)


def parse_yaml(text: str, origin: str, numbered: bool = True) -> Any:
    """Return the tree of a YAML text; None if it is empty.

    Args:
        text: One YAML document.
        origin: Source of the text, for errors.
        numbered: Whether errors name the line.

    Raises:
        ConfigError: The text is not YAML, or uses features outside of the subset.
    """
    return _parsed(text, _Loader, origin, numbered)


def parse_foreign_yaml(text: str, origin: str) -> Any:
    """Return the tree of a YAML text of another program, which may have tags and merged mappings.

    Raises:
        ConfigError: The text is not YAML, or has tags of other types than YAML's own.
    """
    try:
        return _parsed(text, _ForeignLoader, origin)
    except ValueError as error:  # a tag that does not match its text
        raise ConfigError(f"{origin}: {error}") from None


def _parsed(text: str, loader: type[yaml.SafeLoader], origin: str, numbered: bool = True) -> Any:
    try:
        return yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = origin if mark is None or not numbered else f"{origin}:{mark.line + 1}"
        raise ConfigError(f"{where}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        problem = str(error).partition("\n")[0]
        raise ConfigError(f"{origin}: not YAML: {problem}") from None


def dump_yaml(tree: dict[str, Any]) -> str:
    """Return YAML that `parse_yaml` reads back as an equal tree, keys in their order."""
    text: str = yaml.dump(
        tree, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True
    )
    return text


def _refusal(problem: str, where: Any) -> yaml.MarkedYAMLError:
    """Return an error at an event or a node; their stubs disagree about the type of marks."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)
