"""The example of a logger works as a configuration names it; a stub stands for MLflow."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastrl.config import LoggingConfig
from fastrl.errors import ConfigError
from fastrl.training import resume, train
from fastrl.training.metrics import read_rows
from tests.training.clockwork import small_run

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
LOGGER = {"path": "mlflow_logger:MLflow", "kwargs": {"experiment": "poles"}}


class Stub(SimpleNamespace):
    """Keeps what is logged, by run; the real package is large."""

    def __init__(self):
        super().__init__(runs=[], experiments=[], log_dict=lambda tree, name: json.dumps(tree))
        self.set_experiment = self.experiments.append

    def start_run(self, run_name, tags):
        assert not self.runs or self.runs[-1]["ended"]
        self.runs.append({"name": run_name, "tags": tags, "rows": [], "ended": False})

    def log_params(self, params):
        self.runs[-1]["params"] = params

    def log_metrics(self, metrics, step):
        self.runs[-1]["rows"].append((step, metrics))

    def end_run(self):
        self.runs[-1]["ended"] = True


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "mlflow_logger", raising=False)
    logging = LoggingConfig(tensorboard=False, loggers=[LOGGER])
    return small_run(tmp_path / "run", logging=logging)


def test_every_row_reaches_mlflow(config, tmp_path, monkeypatch):
    stub = Stub()
    monkeypatch.setitem(sys.modules, "mlflow", stub)
    train(config)
    resume(tmp_path / "run", [f"total_steps={2 * config.total_steps}"])
    assert stub.experiments == ["poles", "poles"]
    first, second = stub.runs
    assert (first["name"], first["tags"], first["ended"]) == ("run", None, True)
    assert second["tags"] == {"resumed_at": str(config.total_steps)}
    assert first["params"]["seed"] == config.seed
    rows = list(read_rows(tmp_path / "run" / "metrics.jsonl"))
    logged = first["rows"] + second["rows"]
    assert [step for step, _ in logged] == [row["steps"] for row in rows]
    assert logged[0][1]["training/loss"] == rows[0]["loss"]


def test_without_mlflow_it_is_one_line(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"^logging\.loggers: 'mlflow_logger:MLflow' .*mlflow"):
        train(config)
