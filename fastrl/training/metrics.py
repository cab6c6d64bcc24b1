"""Writers of metrics: a JSONL file always, and by configuration TensorBoard and other loggers."""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fastrl import registry
from fastrl.arguments import methods
from fastrl.closing import build_all, close_all
from fastrl.config import Config, LoggingConfig
from fastrl.config.fields import Call
from fastrl.durable import (
    WriteError,
    append_line,
    make_directory,
    read_bounded,
    read_object,
    write_durably,
    writing,
)
from fastrl.errors import ConfigError, cause, raised_as
from fastrl.imports import how_to_install
from fastrl.json_lines import row_of
from fastrl.training.run_directory import RunDirectory

_LONGEST_ERROR = 200
"""Most characters of an error of Weights & Biases."""
_LOGGER = logging.getLogger(__name__)
Row = Mapping[str, float | int]


class Sink(Protocol):
    """A target of rows, as a logger returns it.

    A logger is called with the `RunDirectory`, the `Config`, the steps of the checkpoint that
    training resumes from (it drops rows of later steps, if it has any), and the keyword arguments
    of the configuration.
    """

    def write(self, kind: str, row: Row) -> None:
        """Write a row of metrics, which has ``steps``; ``kind`` is training or evaluation."""

    def close(self) -> None:
        """Write what is still buffered."""


class MetricsLog:
    """Writes each row to every sink.

    Args:
        run: The run's directory.
        config: The run's configuration.
        steps: Steps of the resumed checkpoint; later rows are dropped.

    Raises:
        WriteError: Rows cannot be written, or a custom logger fails, now or later.
        ConfigError: Weights & Biases does not start, or a logger does not return a `Sink`.
    """

    def __init__(self, run: RunDirectory, config: Config, steps: int = 0) -> None:
        self._path = run.metrics
        with writing(self._path):
            self._sinks = build_all(_sinks(run, config, steps))

    def write(self, kind: str, row: Row) -> None:
        """Write a row of metrics; see `Sink.write`."""
        with writing(self._path):
            for sink in self._sinks:
                sink.write(kind, row)

    def close(self) -> None:
        """Write what is still buffered."""
        with writing(self._path):
            close_all(self._sinks)


def _sinks(run: RunDirectory, config: Config, steps: int) -> Iterator[Sink]:
    loggers = _loggers(config.logging)
    names = [path for path, _ in loggers]
    if "wandb" not in names:
        # A run of W&B would lack the rows that are written from here on.
        with writing(run.wandb):
            run.wandb.unlink(missing_ok=True)
    for path, kwargs in loggers:
        build = _logger(path)
        if build in _OURS:
            yield build(run, config, steps, **kwargs)
        else:
            yield _CustomSink(path, partial(build, run, config, steps, **kwargs))
    if "tensorboard" not in names and run.tensorboard.is_dir():
        TensorBoard(run, config, steps).close()


def _loggers(settings: LoggingConfig) -> list[tuple[str, dict[str, Any]]]:
    """Return all loggers, each with its arguments; fastrl's own first."""
    # Weights & Biases comes before rows are dropped from the file: if it fails, the next
    # session drops them again.
    chosen = {"wandb": settings.wandb, "jsonl": True, "tensorboard": settings.tensorboard}
    others = [
        (each.path, dict(each.kwargs)) if isinstance(each, Call) else (each, {})
        for each in settings.loggers
    ]
    named = dict(others)
    ours = [(name, named.get(name, {})) for name, on in chosen.items() if on or name in named]
    return [*ours, *(each for each in others if each[0] not in chosen)]


def _logger(path: str) -> Any:
    return registry.chosen("logger", path, "logging.loggers")


class _CustomSink:
    """A custom logger, whose failures end the run with one line.

    Raises:
        ConfigError: The logger lacks a method of `Sink`.
        WriteError: The logger fails.
    """

    def __init__(self, path: str, build: Callable[[], Sink]) -> None:
        where = f"logging.loggers: '{path}'"
        self._problem = f"{where} failed"
        with raised_as(WriteError, self._problem):
            self._sink = build()
        methods(where, self._sink, ("write", "close"))

    def write(self, kind: str, row: Row) -> None:
        """See `Sink`."""
        with raised_as(WriteError, self._problem):
            self._sink.write(kind, row)

    def close(self) -> None:
        """See `Sink`."""
        with raised_as(WriteError, self._problem):
            self._sink.close()


class JsonLines:
    """One JSON object per line: ``kind`` and the row; null for values that are not finite.

    Args:
        run: Run directory of the file.
        config: The run's configuration.
        steps: Later rows are dropped, and so is an unfinished row of a killed process.
    """

    def __init__(self, run: RunDirectory, config: Config, steps: int) -> None:
        self._path = run.metrics
        kept = [json.dumps(row) + "\n" for row in read_rows(run.metrics) if row["steps"] <= steps]
        write_durably(run.metrics, "".join(kept).encode())

    def write(self, kind: str, row: Row) -> None:
        """Append a line."""
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        append_line(self._path, {"kind": kind, **finite})

    def close(self) -> None:
        """Do nothing: each line is written at once."""


class TensorBoard:
    """Event files with one scalar per number.

    torch's writer is not used: it writes in a thread, which prints its errors,
    and only every two minutes.

    Args:
        run: Run directory of the files.
        config: The run's configuration.
        steps: Steps of the resumed checkpoint; TensorBoard hides later ones in earlier files.

    Raises:
        OSError: Files cannot be written, now or later.
    """

    def __init__(self, run: RunDirectory, config: Config, steps: int) -> None:
        # Imported here, as it takes 0.1 s.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        make_directory(run.tensorboard)
        second = _unused_second(run.tensorboard)
        name = f"events.out.tfevents.{second}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = (run.tensorboard / name).open("xb")
        self._records = RecordWriter(self._file)
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._add(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=steps + 1, session_log=start)

    def write(self, kind: str, row: Row) -> None:
        """Add a scalar ``kind/name`` for each number."""
        scalars = [
            self._summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in row.items()
            if name != "steps" and math.isfinite(value)
        ]
        self._add(step=int(row["steps"]), summary=self._summary(value=scalars))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, **content: Any) -> None:
        event = self._event(wall_time=time.time(), **content)  # noqa: TID251 (of the format)
        self._records.write(event.SerializeToString())
        self._file.flush()


def _unused_second(directory: Path) -> int:
    """Wait for a second whose event file sorts behind all others, and return it.

    TensorBoard reads event files in the order of their names, which begin with the second in which
    they are made. In the wrong order rows would be hidden.
    """
    started = {path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*")}
    while str(second := int(time.time())) in started:  # noqa: TID251 (as TensorBoard names them)
        time.sleep(0.01)
    return second


class WeightsAndBiases:
    """A run at Weights & Biases, which is resumed with this run.

    Its id is drawn once and stored in ``wandb.json`` with the inode of the directory, as a copy of
    the directory is another run. Each row is one step there, counted from 0, so that dropping later
    rows rewinds that run. If the server cannot rewind, a new run there gets all rows that are
    kept. Videos of evaluations go with the next row.

    Args:
        run: The run's directory.
        config: Configuration that is shown there.
        steps: Steps of the resumed checkpoint; later rows are dropped.
        project: Name of the project there.
        entity: The user or team; None for the default one of the user who is logged in.
        group: Group of runs, such as all seeds of a configuration; None for none.
        tags: Labels of the run.

    Raises:
        ConfigError: Weights & Biases does not start.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: Config,
        steps: int,
        *,
        project: str = "fastrl",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        self._init_arguments = {
            "project": project,
            "entity": entity,
            "group": group,
            "tags": list(tags),
            "name": run.name,
            "dir": str(run.path),
            "config": config.model_dump(mode="json"),
        }
        self._videos = run.videos
        self._shown_ns, _ = _newest(run.videos)
        rows = list(read_rows(run.metrics))
        kept = [row for row in rows if row["steps"] <= steps]
        known = _wandb_id(run)
        if known is not None and len(kept) == len(rows):
            self._run = self._start(id=known, resume="allow")
        elif known is None or not kept or not self._rewind(known, len(kept)):
            self._begin(run, kept)

    def _rewind(self, known: str, num_rows: int) -> bool:
        """Drop all rows after the first ``num_rows``; return whether that was possible."""
        try:
            self._run = self._start(id=known, resume_from=f"{known}?_step={num_rows - 1}")
        except ConfigError as error:
            _LOGGER.warning("%s; rows cannot be removed there, so a new run gets all rows", error)
            return False
        return True

    def _begin(self, run: RunDirectory, rows: list[dict[str, Any]]) -> None:
        """Begin a new run there with these rows."""
        new = secrets.token_hex(8)
        self._run = self._start(id=new, resume="allow")
        for row in rows:
            self.write(row.get("kind", "training"), {k: v for k, v in row.items() if k != "kind"})
        known = {"id": new, "inode": run.path.stat().st_ino}
        write_durably(run.wandb, (json.dumps(known) + "\n").encode())

    def _start(self, **how: str) -> Any:
        try:
            wandb: Any = importlib.import_module("wandb")
            run = wandb.init(**self._init_arguments, **how)
        except Exception as error:  # its errors have no common base
            problem = cause(error)[:_LONGEST_ERROR]
            raise ConfigError(
                f"logging.wandb: Weights & Biases does not start: {problem}"
            ) from error
        # Steps of W&B may not decrease, and evaluations come later than the updates they evaluate.
        run.define_metric("*", step_metric="steps")
        return run

    def write(self, kind: str, row: Row) -> None:
        """Log each number as ``kind/name``."""
        finite = {name: value for name, value in row.items() if _is_finite(value)}
        named = {f"{kind}/{name}": value for name, value in finite.items()}
        self._run.log({**named, **self._new_video(), "steps": row["steps"]})

    def _new_video(self) -> dict[str, Any]:
        """Return the latest video, unless it was sent already or is older than this process."""
        made_ns, video = _newest(self._videos)
        if made_ns <= self._shown_ns:
            return {}
        self._shown_ns = made_ns
        return {"evaluation/video": importlib.import_module("wandb").Video(video)}

    def close(self) -> None:
        """Finish the upload."""
        self._run.finish()


def _wandb_id(run: RunDirectory) -> str | None:
    """Return the id of this directory at Weights & Biases, or None."""
    known = read_object(run.wandb)
    is_own = known.get("inode") == run.path.stat().st_ino
    return str(known["id"]) if is_own and known.get("id") else None


def _newest(videos: Path) -> tuple[int, str]:
    """Return the time and the path of the latest video; 0 if there is none."""
    found = ((path.stat().st_mtime_ns, str(path)) for path in videos.glob("step_*"))
    return max(found, default=(0, ""))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


_OURS = (JsonLines, TensorBoard, WeightsAndBiases)


def check_loggers(settings: LoggingConfig) -> None:
    """Reject loggers that cannot be built before anything is written.

    Raises:
        ConfigError: A package is missing, or a logger cannot be imported or does not take its
            arguments.
    """
    for path, kwargs in _loggers(settings):
        if path == "wandb" and find_spec("wandb") is None:
            raise ConfigError(
                f"logging.wandb: needs the package 'wandb': {how_to_install('wandb')}"
            )
        problem = f"logging.loggers: '{path}' does not take (run, config, steps) and its kwargs"
        registry.check_arguments(_logger(path), problem, "run", "config", 0, **kwargs)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file of metrics, if there is one; skip incomplete rows.

    Raises:
        OSError: It cannot be read.
    """
    if not path.exists():
        return
    for line in read_bounded(path).split(b"\n"):
        row = row_of(line)
        if row is not None:
            yield row
