"""The notebooks run from the first cell to the last, and the site shows what they did."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
CELL_S = 100
"""Deadline of a cell on a busy machine; all notebooks together take less than a minute."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return an empty directory; a kernel that is started now leaves nothing elsewhere."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    # SDL, which draws, says on standard error that it is missing.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def outputs_of(notebook):
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [output for cell in cells for output in cell["outputs"]]


def require_no_trouble(notebook):
    outputs = outputs_of(notebook)
    assert [each for each in outputs if each["output_type"] == "error"] == []
    assert [each for each in outputs if each.get("name") == "stderr"] == []


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, place):
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(place)}}
    nbclient.NotebookClient(notebook, timeout=CELL_S, resources=resources).execute()
    require_no_trouble(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_holds_the_results_of_one_run(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    require_no_trouble(notebook)
    text = json.dumps(outputs_of(notebook))
    assert os.path.expanduser("~") not in text
    assert "/tmp/" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\(([^)#\s]+)", text)]
    lost = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert lost == []
