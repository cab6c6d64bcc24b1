"""The guide's examples run as they stand, and those in YAML are configurations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastrl.config import load_config
from fastrl.envs import EnvFactory

DOCS = Path(__file__).parents[3] / "docs"
GUIDE = (DOCS / "guide" / "tensor_envs.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def test_examples_in_python_run():
    names = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["returns"].shape == (100,)
    assert (names["returns"] < 0).all()
    assert names["observations"].shape == (64, 4)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_examples_in_yaml_are_configurations(block, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(block)
    for code in blocks("python"):
        if named := re.match(r"# (\w+\.py)\n", code):
            (tmp_path / named[1]).write_text(code)
    spec = EnvFactory.from_config(load_config(path).env).probe()
    assert ("params" in spec.observation) == ("expose_params" in block)
