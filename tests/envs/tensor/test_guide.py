"""The guide's examples run as they stand, and the notebook was executed from top to bottom."""

from __future__ import annotations

import json
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
def test_examples_in_yaml_are_configurations(block, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(block)
    spec = EnvFactory.from_config(load_config(path).env).probe()
    assert ("params" in spec.observation) == ("expose_params" in block)


def test_notebook_holds_the_results_of_one_run_without_errors():
    text = (DOCS / "examples" / "tensor_envs.ipynb").read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [each for each in outputs if each["output_type"] in ("error",)]
    assert not [each for each in outputs if each.get("name") == "stderr"]
    shown = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "image/gif"} <= shown
