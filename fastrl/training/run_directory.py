"""The run directory: its files, and the lock that allows only one process to train in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastrl import registry
from fastrl.closing import closing_on_error
from fastrl.config import Config, config_to_yaml
from fastrl.durable import (
    WriteError,
    json_bytes,
    make_directory,
    require_no_links,
    write_durably,
    writing,
)
from fastrl.errors import ConfigError
from fastrl.runs import LOCK, VERSIONS, locked, locked_for_new_run, new_run_path
from fastrl.spec import EnvSpec
from fastrl.system import machine, versions
from fastrl.training.saved_spec import SPACES, spec_to_json
from fastrl.training.trust import sign

_ATTEMPTS = 100
"""Number of names that are tried for a new directory."""


class RunDirectory:
    """A run's directory, locked for this process until `close`.

    Methods raise `WriteError` if a file cannot be written.

    ``config.yaml`` contains the resolved value of every key, ``signature`` marks it as this user's,
    ``versions.json`` contains packages, plug-ins and the machine, and ``callbacks/`` files of
    callbacks.

    Attributes:
        path: The directory.
        name: Last part of the path.
        checkpoints: Directory of checkpoints.
        videos: Directory of videos.
        metrics: Rows of metrics, one JSON object per line.
        faults: Worker failures, one JSON object per line.
        workers: Times of each worker.
        tensorboard: Directory of TensorBoard's event files.
        wandb: File with the id of this run at Weights & Biases.
        spaces: File with the spaces of the environment.
        summary: File with the outcome, once training has ended.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self.name, self._lock = path, path.resolve().name, lock
        self.checkpoints, self.videos = path / "checkpoints", path / "videos"
        self.metrics, self.faults = path / "metrics.jsonl", path / "faults.jsonl"
        self.tensorboard, self.wandb = path / "tensorboard", path / "wandb.json"
        self.workers, self.spaces = path / "workers.json", path / SPACES
        self.summary = path / "summary.json"

    @classmethod
    def create(cls, path: Path, config: Config) -> RunDirectory:
        """Make the directory of a new run and write its configuration and versions.

        Raises:
            ConfigError: It contains a run or other files already, is in use, or cannot be written.
        """
        with writing(path, ConfigError):
            make_directory(path)
        run = cls(path, locked_for_new_run(path))
        with closing_on_error(run):
            run._check()
            known: dict[str, Any] = {"versions": versions(), "machine": machine()}
            if plugins := registry.plugin_versions():
                known["plugins"] = plugins
            _replace(path / VERSIONS, json_bytes(known))
            # Written last, because it makes the directory a run.
            run.write_config(config)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Lock the directory of a run, to resume it.

        Raises:
            ConfigError: It is not a run, is in use, or contains links to other directories.
        """
        run = cls(path, locked(path))
        with closing_on_error(run):
            run._check()
        return run

    def _check(self) -> None:
        """Reject links, and make the directory of checkpoints if it is missing."""
        require_own_files(self.path)
        with writing(self.path):
            self.checkpoints.mkdir(exist_ok=True)

    def require(self) -> None:
        """Check that the directory is still there, before something is written to it.

        Raises:
            WriteError: It was removed or moved since it was locked.
        """
        with suppress(OSError):
            now = (self.path / LOCK).stat()
            if os.path.samestat(os.fstat(self._lock), now) and self.checkpoints.is_dir():
                return
        raise WriteError(
            f"'{self.path}' was removed or moved while it was trained in; nothing more is saved"
        )

    @property
    def has_metrics(self) -> bool:
        """Whether the run has written any metrics."""
        return self.metrics.is_file() and self.metrics.stat().st_size > 0

    def write_config(self, config: Config) -> None:
        """Replace the configuration, and sign its keys that name code."""
        sign(self.path, config)
        _replace(self.path / "config.yaml", config_to_yaml(config).encode())

    def write_spec(self, spec: EnvSpec) -> None:
        """Replace the spaces, or remove them if JSON cannot hold them."""
        text = spec_to_json(spec)
        _replace(self.spaces, None if text is None else text.encode())

    def write_summary(self, summary: Mapping[str, Any] | None) -> None:
        """Replace the summary; None removes it."""
        self.require()
        _replace(self.summary, None if summary is None else json_bytes(summary))

    def close(self) -> None:
        """Unlock; safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _replace(file: Path, content: bytes | None) -> None:
    """Write a file, or remove it if there is no content."""
    with writing(file):
        if content is None:
            file.unlink(missing_ok=True)
        else:
            write_durably(file, content)


def require_own_files(path: Path, purpose: str = "written to") -> None:
    """Reject a run directory with symbolic links, except those of wandb.

    Args:
        path: The directory.
        purpose: What it cannot be with links, for errors.

    Raises:
        ConfigError: It contains one.
    """
    try:
        require_no_links(path, ignored=("wandb",))
    except OSError as error:
        raise ConfigError(
            f"'{error.filename or path}' cannot be {purpose}: {error.strerror or error}; a run "
            "has its files only inside its directory"
        ) from None


def make_run_directory(config: Config, name: str | None) -> RunDirectory:
    """Make the directory of a new run at `new_run_path`, and set it as ``run_dir``.

    Runs that start in the same second get different directories.

    Raises:
        ConfigError: As for `new_run_path` and `RunDirectory.create`.
    """
    is_named = name is not None or config.run_dir is not None
    path = new_run_path(config, name)
    for _ in range(0 if is_named else _ATTEMPTS):
        with suppress(OSError):  # `create` reports all errors but a name that is in use
            path.mkdir(parents=True)
            break
        path = new_run_path(config, name)
    return RunDirectory.create(path, config.model_copy(update={"run_dir": str(path)}))
