"""Random input: values, overrides, YAML trees and spaces, valid or not."""

from __future__ import annotations

import random
import string
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from fastrl.config import config_schema, load_config

_WORDS = (
    "auto cpu cuda cuda:0 ppo a2c sync async serial process device tanh linear constant CartPole-v1"
)
_SPECIAL = "null true false .nan .inf -.inf ~ '' \"\" {} [] ! & * ? : - @ `"
_TAGS = (
    "!!python/object/apply:os.system ['exit 1']",
    "!!python/name:os.system",
    "!!python/object/new:subprocess.Popen [[exit]]",
    "!!binary aGk=",
    "!!set {a, b}",
    "&a [*a]",
)
_DEFAULTS = {
    f"{section}.{key}" if isinstance(content, dict) else section: found
    for section, content in load_config(None, ["env.id=CartPole-v1"]).model_dump().items()
    for key, found in (content if isinstance(content, dict) else {section: content}).items()
}
"""Default of every key."""
_DTYPES = ("float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint64", "bool")


def config_keys() -> list[str]:
    """Return every key of a configuration."""
    schema, found = config_schema(), set()

    def visit(node: Any, prefix: str) -> None:
        if isinstance(node, list):
            for each in node:
                visit(each, prefix)
        if not isinstance(node, dict):
            return
        name = str(node.get("$ref", "")).rpartition("/")[2]
        if name:
            visit(schema["$defs"][name], prefix)
        for key, child in node.get("properties", {}).items():
            found.add(prefix + key)
            visit(child, f"{prefix}{key}.")
        for key in ("anyOf", "oneOf", "allOf"):
            visit(node.get(key), prefix)

    visit(schema, "")
    return sorted(found)


def override(pick: random.Random, keys: list[str]) -> str:
    """Return an override, valid or not."""
    key = pick.choice(keys)
    wanted = value_of(pick, key)
    if pick.random() < 0.08:
        key = misspelt(pick, key)
    return f"{key}{'' if pick.random() < 0.02 else '='}{wanted}"


def value_of(pick: random.Random, key: str) -> str:
    """Return a value for a key: mostly one like its default, else anything."""
    default: Any = _DEFAULTS.get(key)
    if pick.random() < 0.15 or default is None:
        return value(pick)
    if isinstance(default, bool):
        return pick.choice(("true", "false"))
    if isinstance(default, int | float):
        near = default * pick.choice((0.5, 1, 1, 2, 3, 0, 1e3))
        return str(int(near)) if isinstance(default, int) else repr(near)
    if isinstance(default, tuple):
        return str([pick.randint(1, 99) for _ in range(pick.randint(0, 3))])
    return str(default) if pick.random() < 0.8 else pick.choice(_WORDS.split())


def misspelt(pick: random.Random, word: str) -> str:
    """Return a word with one character added, removed or replaced."""
    place = pick.randrange(len(word) + 1)
    return word[:place] + pick.choice(string.printable) + word[place + pick.randint(0, 2) :]


def value(pick: random.Random, depth: int = 0) -> str:
    """Return a value in YAML, or nearly."""
    kind = pick.randrange(12 if depth < 4 else 8)
    if kind == 0:
        return str(pick.randint(-(10**20), 10**20))
    if kind == 1:
        return str(pick.randint(-3, 300))
    if kind == 2:
        return repr(number(pick))
    if kind == 3:
        return pick.choice(_SPECIAL.split())
    if kind == 4:
        return pick.choice(_WORDS.split())
    if kind in (5, 6):
        return text(pick)
    if kind == 7:
        return pick.choice(_TAGS)
    inner = [value(pick, depth + 1) for _ in range(pick.randint(0, 3))]
    if kind < 10:
        return f"[{', '.join(inner)}]"
    return "{" + ", ".join(f"k{index}: {each}" for index, each in enumerate(inner)) + "}"


def number(pick: random.Random) -> float:
    """Return a float of any magnitude, or none."""
    if pick.random() < 0.1:
        return pick.choice((float("nan"), float("inf"), float("-inf"), 0.0, -0.0))
    return pick.uniform(-10, 10) * 10.0 ** pick.randint(-30, 30)


def text(pick: random.Random) -> str:
    """Return up to 20 characters, printable ones or any."""
    if pick.random() < 0.5:
        return "".join(pick.choices(string.printable, k=pick.randint(0, 20)))
    return "".join(chr(pick.randint(1, 0xD7FF)) for _ in range(pick.randint(1, 6)))


def yaml_tree(pick: random.Random, keys: list[str]) -> str:
    """Return the text of a configuration file: sections, some keys of each, and noise."""
    sections: dict[str, list[str]] = {}
    for key in pick.sample(keys, pick.randint(0, 8)):
        section, _, name = key.rpartition(".")
        wanted = value_of(pick, key)
        name = misspelt(pick, name) if pick.random() < 0.05 else name
        sections.setdefault(section, []).append(f"{name}: {wanted}")
    lines = []
    if pick.random() < 0.8:
        sections.setdefault("env", []).insert(0, "id: CartPole-v1")
    for section, entries in sections.items():
        if section and pick.random() < 0.05:
            lines.append(f"{section}: {value(pick)}")
            continue
        lines += [f"{section}:"] if section else []
        lines += [f"{'  ' if section else ''}{entry}" for entry in entries]
    if pick.random() < 0.1:
        lines.append(f"base: {pick.choice(('config.yaml', 'nowhere.yaml', '/', '../x', '[]'))}")
    if pick.random() < 0.1:
        lines.insert(pick.randrange(len(lines) + 1), text(pick))
    return "\n".join(lines)


def space(pick: random.Random, depth: int = 0) -> spaces.Space[Any]:
    """Return any space that gymnasium can make and sample, supported or not."""
    while True:
        try:
            made = _space(pick, depth)
            batch_space(made).sample()
        except (AssertionError, ValueError, TypeError, OverflowError):
            continue  # gymnasium cannot make it, or raises in `sample`
        return made


def _space(pick: random.Random, depth: int) -> spaces.Space[Any]:
    kind = pick.randrange(12 if depth < 3 else 9)
    seed = pick.randrange(2**31)
    if kind < 4:
        return _box(pick, seed)
    if kind < 6:
        return spaces.Discrete(pick.choice((1, 2, 5, 100)), seed, pick.choice((0, -3, 7)))
    if kind == 6:
        sizes = np.array([pick.randint(1, 5) for _ in range(pick.choice((1, 2, 4)))])
        return spaces.MultiDiscrete(sizes.reshape(2, -1) if len(sizes) == 4 else sizes, seed=seed)
    if kind == 7:
        return spaces.MultiBinary(pick.choice((1, 3, (2, 2))), seed)
    if kind == 8:
        return (
            _unsupported(pick, seed) if pick.random() < 0.2 else spaces.Box(-1, 1, (2,), seed=seed)
        )
    children = [space(pick, depth + 1) for _ in range(pick.randint(0, 3))]
    if kind == 9:
        return spaces.Tuple(children, seed)
    names = pick.sample(["", "a", "b", "c/d", "c", "d", "state dict", "é", "0"], len(children))
    return spaces.Dict(dict(zip(names, children, strict=True)), seed)


def oddity(pick: random.Random) -> Any:
    """Return an unexpected value in place of a number, an array or a dictionary."""
    return pick.choice(
        [
            None,
            pick.randint(-9, 9),
            number(pick),
            10**400,
            True,
            text(pick),
            text(pick).encode("utf-8", "replace"),
            [],
            (),
            {},
            {text(pick): 1},
            [[1], [2, 3]],
            object(),
            int,
            1j,
            np.zeros(pick.choice([(), (0,), (1,), (2,), (3, 4)]), pick.choice(_DTYPES)),
            np.full(pick.choice([(), (1,), (2,)]), np.nan),
            np.array([None, 1]),
            np.array(["a", "b"]),
        ]
    )


def _box(pick: random.Random, seed: int) -> spaces.Box:
    dtype: Any = np.dtype(pick.choice(_DTYPES))
    shape = tuple(
        pick.choice((0, 1, 1, 2, 3, 4, 7, 36)) for _ in range(pick.choice((0, 1, 1, 2, 3)))
    )
    low, high = sorted(pick.choice((-np.inf, -1e30, -5, 0, 1, 200, 255, np.inf)) for _ in "lh")
    return spaces.Box(low, high, shape, dtype.type, seed)


def _unsupported(pick: random.Random, seed: int) -> spaces.Space[Any]:
    unit = spaces.Box(0, 1, (2,))
    return pick.choice(
        [
            spaces.Text(5, seed=seed),
            spaces.Sequence(unit, seed),
            spaces.Graph(unit, None, seed),
            spaces.OneOf([unit, spaces.Discrete(2)], seed),
        ]
    )
