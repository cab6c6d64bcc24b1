"""Configurations made of chance: each is accepted, or refused in one line."""

from __future__ import annotations

import contextlib
import io
import random
import string
import time
import traceback
from typing import Any

from fastrl import cli
from fastrl.config import config_schema

_SLOW_S = 5.0


def fuzz_configurations(number: int, max_s: float, seed: int) -> dict[str, Any]:
    """Read so many command lines with ``fastrl config``; count what came of them."""
    pick, keys, began_s = random.Random(seed), sorted(_keys(config_schema())), time.monotonic()
    outcomes = {"accepted": 0, "refused": 0}
    wrong: list[str] = []
    slowest_s = 0.0
    for _ in range(number):
        if time.monotonic() - began_s > max_s:
            break
        arguments = ["config", *(_override(pick, keys) for _ in range(pick.randint(1, 5)))]
        if pick.random() < 0.7:
            arguments.insert(1, "env.id=CartPole-v1")
        before_s = time.monotonic()
        problem = _problem(arguments, outcomes)
        slowest_s = max(slowest_s, time.monotonic() - before_s)
        if problem:
            wrong.append(f"{arguments!r}: {problem}")
    return {
        "seconds": time.monotonic() - began_s,
        **outcomes,
        "wrong": wrong[:10],
        "slowest_s": slowest_s,
        "as_promised": not wrong and slowest_s < _SLOW_S and sum(outcomes.values()) == number,
    }


def _problem(arguments: list[str], outcomes: dict[str, int]) -> str:
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
    except BaseException:
        return traceback.format_exc()
    if code == 0:
        outcomes["accepted"] += 1
        return "" if not err.getvalue() else f"said {err.getvalue()!r}"
    outcomes["refused"] += 1
    lines = err.getvalue().splitlines()
    return "" if code == 2 and len(lines) == 1 else f"code {code}, {lines}"


def _keys(schema: dict[str, Any], prefix: str = "") -> set[str]:
    """Return every key that a schema knows."""
    found: set[str] = set()

    def visit(node: Any, prefix: str) -> None:  # noqa: ANN401
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

    visit(schema, prefix)
    return found


def _override(pick: random.Random, keys: list[str]) -> str:
    key = pick.choice(keys)
    if pick.random() < 0.15:
        place = pick.randrange(len(key) + 1)
        key = key[:place] + pick.choice(string.printable) + key[place + pick.randint(0, 2) :]
    return f"{key}{'' if pick.random() < 0.02 else '='}{_value(pick, 0)}"


def _value(pick: random.Random, depth: int) -> str:
    """Return a value as somebody might write it, or as nobody would."""
    kind = pick.randrange(12 if depth < 4 else 8)
    if kind == 0:
        return str(pick.randint(-(10**20), 10**20))
    if kind == 1:
        return str(pick.randint(-3, 300))
    if kind == 2:
        return repr(pick.uniform(-10, 10) * 10 ** pick.randint(-30, 30))
    if kind == 3:
        special = "null true false .nan .inf -.inf ~ '' \"\" {} [] ! & * ? : - @ `"
        return pick.choice(special.split())
    if kind == 4:
        words = "auto cpu cuda cuda:0 ppo a2c sync async serial process tanh linear CartPole-v1"
        return pick.choice(words.split())
    if kind == 5:
        text = "".join(pick.choices(string.printable, k=pick.randint(0, 20)))
        return text.replace("\x00", "")
    if kind == 6:
        return "".join(chr(pick.randint(1, 0x10FFFF - 0x800) % 0xD800) for _ in range(5))
    if kind == 7:
        return "!!python/object/apply:os.system ['exit 1']"
    inner = [_value(pick, depth + 1) for _ in range(pick.randint(0, 3))]
    if kind < 10:
        return f"[{', '.join(inner)}]"
    return "{" + ", ".join(f"k{index}: {value}" for index, value in enumerate(inner)) + "}"
