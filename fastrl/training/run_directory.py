"""The directory of a run: what is where in it, and that one process at a time trains in it."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from fastrl import registry
from fastrl.arguments import brief
from fastrl.config import Config, config_to_yaml, load_config
from fastrl.errors import ConfigError, FastrlError
from fastrl.machine import machine, versions
from fastrl.spec import EnvSpec
from fastrl.training.durable import (
    make_directory,
    open_inside,
    require_no_links,
    write_durably,
    writing,
)
from fastrl.training.saved_spec import SPACES, spec_to_json
from fastrl.training.trust import SIGNATURE, sign

RUNS = Path("runs")
"""Where runs are that were not given a directory."""

_VERSIONS = "versions.json"
# What a run that was killed while its directory was made has left.
_BEFORE_CONFIG = {
    ".lock",
    "checkpoints",
    _VERSIONS,
    ".versions.json.partial",
    SIGNATURE,
    f".{SIGNATURE}.partial",
    ".config.yaml.partial",
}
_TOLD = 200
"""Characters that are shown of the plug-ins that a run had."""
_NAMES = 100
"""How often a new name is tried for."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class RunDirectory:
    """A run's directory, locked for this process until `close`.

    ``config.yaml`` holds every key as it is used, ``signature`` says that this user wrote it,
    ``versions.json`` holds the packages, the plug-ins and the machine, ``spaces.json`` what the
    environment observes and accepts,
    ``metrics.jsonl`` and ``tensorboard/`` the metrics, ``wandb.json`` what Weights & Biases calls
    the run, ``faults.jsonl`` the workers that failed, ``checkpoints/``, ``videos/`` and
    ``callbacks/`` what their names say, and ``summary.json`` the outcome once training has ended.

    Attributes:
        path: The directory.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path, self._lock = path, lock

    @classmethod
    def create(cls, path: Path, config: Config) -> RunDirectory:
        """Make the directory of a new run and write its configuration and versions.

        Raises:
            ConfigError: It holds a run or other files already, is in use, or cannot be written.
        """
        try:
            make_directory(path)
            run = cls(path, _locked(path))
        except OSError as error:
            raise ConfigError(f"'{path}' cannot be written: {error.strerror or error}") from None
        try:
            run._refuse_used()
            require_own_files(path)
            with writing(path):
                (path / "checkpoints").mkdir(exist_ok=True)
            known = {"versions": versions(), "machine": machine()}
            found = registry.plugin_versions()
            run._write_json(_VERSIONS, {**known, **({"plugins": found} if found else {})})
            # The last one: it is what makes the directory a run.
            run.write_config(config)
        except FastrlError:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Lock the directory of a run, to go on with it.

        Raises:
            ConfigError: It is no run, is in use, or has links that lead out of it.
        """
        run = cls(path, _locked(path))
        try:
            require_own_files(path)
        except FastrlError:
            run.close()
            raise
        return run

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.resolve().name

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    @property
    def videos(self) -> Path:
        """Where videos are."""
        return self.path / "videos"

    @property
    def metrics(self) -> Path:
        """Rows of metrics, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def has_metrics(self) -> bool:
        """Whether the run has come so far that it has written some."""
        return self.metrics.is_file() and self.metrics.stat().st_size > 0

    @property
    def has_summary(self) -> bool:
        """Whether the run has come to its end, its final evaluation included."""
        return (self.path / "summary.json").exists()

    @property
    def faults(self) -> Path:
        """Workers that failed, one JSON object per line."""
        return self.path / "faults.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Where TensorBoard looks."""
        return self.path / "tensorboard"

    @property
    def wandb(self) -> Path:
        """Which run at Weights & Biases this one is."""
        return self.path / "wandb.json"

    def write_config(self, config: Config) -> None:
        """Replace the configuration, and sign what it says about code.

        Raises:
            WriteError: It cannot be written.
        """
        sign(self.path, config)
        with writing(self.path / "config.yaml"):
            write_durably(self.path / "config.yaml", config_to_yaml(config).encode())

    def write_spec(self, spec: EnvSpec) -> None:
        """Replace what the environment observes and accepts.

        Raises:
            WriteError: It cannot be written.
        """
        text, file = spec_to_json(spec), self.path / SPACES
        with writing(file):
            if text is None:
                file.unlink(missing_ok=True)
            else:
                write_durably(file, text.encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the outcome.

        Raises:
            WriteError: It cannot be written.
        """
        self._write_json("summary.json", summary)

    def remove_summary(self) -> None:
        """Forget the outcome, since training goes on."""
        with writing(self.path / "summary.json"):
            (self.path / "summary.json").unlink(missing_ok=True)

    def close(self) -> None:
        """Unlock; safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _refuse_used(self) -> None:
        found = {each.name for each in self.path.iterdir()}
        if found <= _BEFORE_CONFIG:
            return
        self.close()
        if "config.yaml" in found:
            raise ConfigError(
                f"'{self.path}' holds a run already; go on with fastrl resume {self.path}, "
                "or choose another run_dir"
            )
        raise ConfigError(f"'{self.path}' holds other files; choose another run_dir")

    def _write_json(self, name: str, tree: Mapping[str, Any]) -> None:
        with writing(self.path / name):
            write_durably(self.path / name, (json.dumps(tree, indent=2) + "\n").encode())


def find_run(name: str | Path) -> Path:
    """Return the directory of a run that was given by its path, or by its name under ``runs/``.

    Raises:
        ConfigError: There is no such run.
    """
    if not isinstance(name, str | Path):
        raise ConfigError(f"a run is given by its directory or its name, got {brief(name)}")
    path = Path(name)
    candidates = [path] if path.is_absolute() else [path, RUNS / path]
    for candidate in candidates:
        with suppress(OSError, ValueError):  # no path at all, such as one with a NUL
            if (candidate / "config.yaml").is_file():
                return candidate
    hint = ""
    with suppress(OSError):  # they come and go
        recent = sorted(RUNS.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
        hint = f"; the latest is {recent[-1].parent}" if recent else ""
    raise ConfigError(f"'{name}' is not the directory of a run{hint}")


def require_own_files(path: Path) -> None:
    """Reject the directory of a run that holds symbolic links, apart from those of wandb.

    Raises:
        ConfigError: It holds one.
    """
    try:
        require_no_links(path, passed_over=("wandb",))
    except OSError as error:
        raise ConfigError(
            f"'{error.filename or path}' cannot be written to: {error.strerror or error}; a run "
            "writes only inside its directory"
        ) from None


def make_run_directory(config: Config, name: str | None) -> RunDirectory:
    """Make the directory of a new run, where `new_run_path` says.

    Of runs that are started in the same second each gets a directory of its own.

    Args:
        config: The run; what is written has this directory as its ``run_dir``.
        name: As for `new_run_path`.

    Raises:
        ConfigError: As for `new_run_path` and `RunDirectory.create`.
    """
    is_named = name is not None or config.run_dir is not None
    path = new_run_path(config, name)
    for _ in range(0 if is_named else _NAMES):
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # somebody else's, since we looked
            path = new_run_path(config, name)
        except OSError:  # told below
            break
        else:
            break
    return RunDirectory.create(path, config.model_copy(update={"run_dir": str(path)}))


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of the run in ``path``, with changes laid over it.

    Raises:
        ConfigError: It is not valid; names plug-ins that were there when the run began.
    """
    try:
        return load_config(path / "config.yaml", overrides)
    except ConfigError as error:
        lost = _lost_plugins(path)
        if not lost:
            raise
        raise ConfigError(
            f"{error}; this run had plug-ins that are not installed: {lost}"
        ) from None


def _lost_plugins(path: Path) -> str:
    """Return the plug-ins of a run's first session that are not installed here."""
    with suppress(OSError, ValueError, RecursionError, AttributeError):
        then = json.loads((path / _VERSIONS).read_text(encoding="utf-8")).get("plugins", {})
        lost = sorted(then.keys() - registry.plugin_versions().keys())
        return ", ".join(f"{name} {then[name]}" for name in lost)[:_TOLD]
    return ""


def new_run_path(config: Config, name: str | None) -> Path:
    """Return where a new run goes: ``run_dir``, or a directory under ``runs/`` that does not exist.

    Args:
        config: Names the environment, the algorithm and the seed.
        name: Of the directory under ``runs/``; by default made from the configuration and the time.

    Raises:
        ConfigError: The name is no plain file name, or there is a ``run_dir`` as well.
    """
    if name is not None:
        if config.run_dir is not None:
            raise ConfigError(f"--name '{name}' and run_dir '{config.run_dir}': give one of them")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"--name '{name}': must be 1 to 100 letters, digits, '.', '_' and '-', "
                "the first a letter or a digit"
            )
        return RUNS / name
    if config.run_dir is not None:
        return Path(config.run_dir)
    env = _UNSAFE.sub("-", config.env.id).strip("-.")[:60] or "run"
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    base = f"{env}-{config.algorithm.name}-s{config.seed}-{stamp}"
    path, number = RUNS / base, 1
    while path.exists():
        number += 1
        path = RUNS / f"{base}-{number}"
    return path


def _locked(path: Path) -> int:
    """Return the descriptor of a lock that ends with this process, however it ends."""
    file = path / ".lock"
    try:
        descriptor = open_inside(file, os.O_RDWR)
    except OSError as error:
        raise ConfigError(f"'{file}' cannot be locked: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        by = f" by process {owner}" if owner.isdecimal() else ""
        raise ConfigError(f"'{path}' is being trained in{by}; wait for it or stop it") from None
    except OSError as error:  # some network file systems have no locks
        os.close(descriptor)
        raise ConfigError(f"'{path}' cannot be locked: {error.strerror}") from None
    with suppress(OSError):  # only says who it is
        before = os.pread(descriptor, 20, 0)
        if not before or before.isdigit():
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor
