"""What the guide says is so."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from fastrl.envs import EnvFactory
from fastrl.envs.crafter_native import CrafterOptions

GUIDE = (Path(__file__).parents[3] / "docs" / "guide" / "crafter.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def test_example_runs(capsys):
    (code,) = blocks("python")
    exec(code, {})
    assert capsys.readouterr().out == "(8, 64, 64, 3) (8, 16) (8, 22)\n"


def test_configuration_is_that_of_the_defaults():
    (text,) = blocks("yaml")
    env = yaml.safe_load(text)["env"]
    assert CrafterOptions.of(**env["kwargs"]) == CrafterOptions()
    assert EnvFactory(env["id"], env["kwargs"]).probe() == EnvFactory(env["id"]).probe()


def test_symbols_are_as_described():
    (size,) = {
        space.shape
        for name, space in EnvFactory("fastrl/Crafter-v1", {"symbolic": True})
        .probe()
        .observation_space.items()
        if name == "map"
    }
    assert f"| `map` | `{list(size)} uint8`" in GUIDE
