"""Where metrics go: a JSONL file always; TensorBoard and Weights & Biases by configuration."""

from __future__ import annotations

import errno
import importlib
import json
import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fastrl.config import Config, LoggingConfig
from fastrl.errors import ConfigError
from fastrl.training.durable import writing
from fastrl.training.run_directory import RunDirectory

_MOST_STEPS = 2**62
Row = Mapping[str, float | int]


class Sink(Protocol):
    """Somewhere to write rows to."""

    def write(self, kind: str, row: Row) -> None:
        """Write a row of metrics, which has ``steps``; ``kind`` is training or evaluation."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class MetricsLog:
    """Writes each row to every sink.

    Args:
        run: The run's directory.
        config: The run's configuration.
        steps: Of the checkpoint that training goes on from: later rows are dropped.

    Raises:
        WriteError: They cannot be written.
    """

    def __init__(self, run: RunDirectory, config: Config, steps: int = 0) -> None:
        self._path = run.metrics
        logging: LoggingConfig = config.logging
        with writing(self._path):
            self._sinks: list[Sink] = [JsonLines(run.metrics, steps)]
            if logging.tensorboard:
                self._sinks.append(TensorBoard(run.tensorboard, steps))
            if logging.wandb:
                self._sinks.append(WeightsAndBiases(run, config))

    def write(self, kind: str, row: Row) -> None:
        """Write a row of metrics; see `Sink.write`.

        Raises:
            WriteError: It cannot be written.
        """
        with writing(self._path):
            for sink in self._sinks:
                sink.write(kind, row)

    def close(self) -> None:
        """Write what is left."""
        with writing(self._path):
            for sink in self._sinks:
                sink.close()


class JsonLines:
    """One JSON object per line: ``kind`` and the row; null for what is not finite.

    Args:
        path: The file.
        steps: Rows beyond are dropped, and with them one that a killed process left unfinished.
    """

    def __init__(self, path: Path, steps: int) -> None:
        kept = [json.dumps(row) + "\n" for row in read_rows(path) if row["steps"] <= steps]
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, row: Row) -> None:
        """Append a line."""
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._file.write(json.dumps({"kind": kind, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files with one scalar per number.

    Args:
        directory: Where they go.
        steps: TensorBoard hides what earlier files say from here on.
    """

    def __init__(self, directory: Path, steps: int) -> None:
        # Takes a sixth of a second to import.
        from torch.utils.tensorboard import SummaryWriter

        purge = steps + 1 if steps else None
        self._writer = SummaryWriter(str(directory), purge_step=purge)

    def write(self, kind: str, row: Row) -> None:
        """Add a scalar ``kind/name`` for each number."""
        steps = int(row["steps"])
        for name, value in row.items():
            if name != "steps" and math.isfinite(value):
                self._writer.add_scalar(f"{kind}/{name}", value, steps)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the same name at Weights & Biases, which goes on when this one does.

    Args:
        run: The run's directory.
        config: Is shown there.
    """

    def __init__(self, run: RunDirectory, config: Config) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project="fastrl",
            name=run.name,
            id=run.name,
            resume="allow",
            dir=str(run.path),
            config=config.model_dump(mode="json"),
        )
        # Its own steps may not go back, and evaluations come in after what they evaluate.
        self._run.define_metric("*", step_metric="steps")

    def write(self, kind: str, row: Row) -> None:
        """Log each number as ``kind/name``."""
        named = {f"{kind}/{name}": value for name, value in row.items() if math.isfinite(value)}
        self._run.log({**named, "steps": row["steps"]})

    def close(self) -> None:
        """Finish the upload."""
        self._run.finish()


def check_packages(logging: LoggingConfig) -> None:
    """Refuse a configuration for which a package is missing, before anything is written.

    Raises:
        ConfigError: Names the package and how to get it.
    """
    if logging.wandb and find_spec("wandb") is None:
        raise ConfigError("logging.wandb: needs the package 'wandb': pip install 'fastrl[wandb]'")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file of metrics, but those that are not whole.

    Raises:
        OSError: It cannot be read.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            steps = row.get("steps") if isinstance(row, dict) else None
            if type(steps) is int and 0 <= steps <= _MOST_STEPS:
                yield row
