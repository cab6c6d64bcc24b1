"""The directory of a run: its files, and the lock by which one process at a time trains in it."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from fastrl import registry
from fastrl.arguments import brief, nearest
from fastrl.config import Config, config_to_yaml, load_config
from fastrl.config.models import RUNS
from fastrl.errors import ConfigError, FastrlError
from fastrl.spec import EnvSpec
from fastrl.system import machine, versions
from fastrl.training.durable import (
    json_bytes,
    make_directory,
    open_inside,
    read_object,
    require_no_links,
    write_durably,
    writing,
)
from fastrl.training.saved_spec import SPACES, spec_to_json
from fastrl.training.trust import SIGNATURE, sign

_VERSIONS = "versions.json"
# What remains of a run that was killed while its directory was made.
_BEFORE_CONFIG = {
    ".lock",
    "checkpoints",
    _VERSIONS,
    ".versions.json.partial",
    SIGNATURE,
    f".{SIGNATURE}.partial",
    ".config.yaml.partial",
}
_LONGEST_LIST = 200
"""Characters that are shown of the plug-ins that a run had."""
_ATTEMPTS = 100
"""How many names are tried for a new directory."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class RunDirectory:
    """A run's directory, locked for this process until `close`.

    Methods raise `WriteError` if a file cannot be written.

    ``config.yaml`` holds every key as it is used, ``signature`` marks it as this user's,
    ``versions.json`` holds the packages, the plug-ins and the machine, and ``callbacks/`` files of
    callbacks.

    Attributes:
        path: The directory.
        name: Last part of the path.
        checkpoints: Directory of checkpoints.
        videos: Directory of videos.
        metrics: Rows of metrics, one JSON object per line.
        faults: Worker failures, one JSON object per line.
        workers: Where the time of each worker goes.
        tensorboard: Directory of TensorBoard's event files.
        wandb: The id of this run at Weights & Biases.
        spaces: The spaces of the environment.
        summary: The outcome, once training has ended.
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
            ConfigError: It holds a run or other files already, is in use, or cannot be written.
        """
        with writing(path, ConfigError):
            make_directory(path)
        run = cls(path, locked(path))
        try:
            _reject_used(path)
            require_own_files(path)
            with writing(path):
                run.checkpoints.mkdir(exist_ok=True)
            known: dict[str, Any] = {"versions": versions(), "machine": machine()}
            if plugins := registry.plugin_versions():
                known["plugins"] = plugins
            _replace(path / _VERSIONS, json_bytes(known))
            # The last one: it is what makes the directory a run.
            run.write_config(config)
        except FastrlError:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Lock the directory of a run, to resume it.

        Raises:
            ConfigError: It is not a run, is in use, or has links that lead out of it.
        """
        run = cls(path, locked(path))
        try:
            require_own_files(path)
        except FastrlError:
            run.close()
            raise
        return run

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
        _replace(self.summary, None if summary is None else json_bytes(summary))

    def close(self) -> None:
        """Unlock; safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _reject_used(path: Path) -> None:
    found = {each.name for each in path.iterdir()}
    if found <= _BEFORE_CONFIG:
        return
    if "config.yaml" in found:
        raise ConfigError(
            f"'{path}' holds a run already; go on with fastrl resume {path}, "
            "or choose another run_dir"
        )
    raise ConfigError(f"'{path}' holds other files; choose another run_dir")


def _replace(file: Path, content: bytes | None) -> None:
    """Write a file, or remove it where there is no content."""
    with writing(file):
        if content is None:
            file.unlink(missing_ok=True)
        else:
            write_durably(file, content)


def find_run(name: str | Path) -> Path:
    """Return the directory of a run, given by its path or by its name under ``runs/``.

    Raises:
        ConfigError: There is no such run.
    """
    if not isinstance(name, str | Path) or not str(name):
        raise ConfigError(f"a run is given by its directory or its name, got {brief(name)}")
    path = Path(name)
    candidates = [path] if path.is_absolute() else [path, RUNS / path]
    for candidate in candidates:
        with suppress(OSError, ValueError):  # not a path, such as one with a NUL
            if (candidate / "config.yaml").is_file():
                return candidate
    hint = ""
    with suppress(OSError):  # another process may remove some
        recent = sorted(RUNS.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
        hint = nearest(str(name), (file.parent.name for file in recent))
        if recent and not hint:
            hint = f"; the latest is {recent[-1].parent}"
    raise ConfigError(f"'{name}' is not the directory of a run{hint}")


def require_own_files(path: Path) -> None:
    """Reject the directory of a run that holds symbolic links, except those of wandb.

    Raises:
        ConfigError: It holds one.
    """
    try:
        require_no_links(path, ignored=("wandb",))
    except OSError as error:
        raise ConfigError(
            f"'{error.filename or path}' cannot be written to: {error.strerror or error}; a run "
            "writes only inside its directory"
        ) from None


def make_run_directory(config: Config, name: str | None) -> RunDirectory:
    """Make the directory of a new run at `new_run_path`; its ``config.yaml`` has it as ``run_dir``.

    Runs that start in the same second get different directories.

    Raises:
        ConfigError: As for `new_run_path` and `RunDirectory.create`.
    """
    is_named = name is not None or config.run_dir is not None
    path = new_run_path(config, name)
    for _ in range(0 if is_named else _ATTEMPTS):
        with suppress(OSError):  # `create` reports all but a name that another run has just taken
            path.mkdir(parents=True)
            break
        path = new_run_path(config, name)
    return RunDirectory.create(path, config.model_copy(update={"run_dir": str(path)}))


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of the run in ``path``, with changes laid over it.

    Raises:
        ConfigError: It is not valid; names plug-ins that the run had and that are not installed.
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
    then = read_object(path / _VERSIONS).get("plugins")
    if not isinstance(then, dict):
        return ""
    lost = sorted(then.keys() - registry.plugin_versions().keys())
    return ", ".join(f"{name} {then[name]}" for name in lost)[:_LONGEST_LIST]


def new_run_path(config: Config, name: str | None) -> Path:
    """Return the path of a new run: ``run_dir``, or a new directory under ``runs/``.

    Args:
        config: Names the environment, the algorithm and the seed.
        name: Of the directory under ``runs/``; by default made from the configuration and the time.

    Raises:
        ConfigError: The name is not a plain file name, or there is a ``run_dir`` as well.
    """
    if name is not None:
        if config.run_dir is not None:
            raise ConfigError(f"--name '{name}' and run_dir '{config.run_dir}': give one of them")
        return named_run(name, "--name")
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


def named_run(name: str, option: str) -> Path:
    """Return the path of a run of a name under ``runs/``.

    Args:
        name: The name.
        option: Where it is from, for errors.

    Raises:
        ConfigError: It is not a plain file name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{option} {brief(name)}: must be 1 to 100 letters, digits, '.', '_' and '-', "
            "the first a letter or a digit"
        )
    return RUNS / name


def check_new_run(config: Config, name: str | None) -> None:
    """Reject a new run whose name or directory cannot be used, before time is spent on it.

    Raises:
        ConfigError: As for `new_run_path`, or the directory is in use, holds other files or cannot
            be made.
    """
    path = new_run_path(config, name)
    if path.is_dir():
        os.close(locked(path))
        _reject_used(path)
        return
    above = next(each for each in (path, *path.parents) if os.path.exists(each))
    if not above.is_dir():
        raise ConfigError(f"'{path}' cannot be made: '{above}' is not a directory")
    if not os.access(above, os.W_OK):
        raise ConfigError(f"'{path}' cannot be made: '{above}' is read-only")


def locked(path: Path) -> int:
    """Return the descriptor of a lock that the system releases when this process ends."""
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
    with suppress(OSError):  # the process id only serves the error above
        before = os.pread(descriptor, 20, 0)
        if not before or before.isdigit():
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor
