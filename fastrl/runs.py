"""Where runs are: one that is given by its name, its checkpoints, a new one, and shared runs.

Nothing here imports torch, so that commands reject a wrong name at once; configurations are
imported when one is read, so that shells complete names quickly.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrl import registry
from fastrl.arguments import brief, file_path, nearest, taken
from fastrl.durable import check_new_directory, open_inside, read_object, writing
from fastrl.errors import CheckpointError, ConfigError, FastrlError

if TYPE_CHECKING:
    from fastrl.config import Config

RUNS = Path("runs")
"""Where runs are by default."""
VERSIONS, SIGNATURE, LOCK = "versions.json", "signature", ".lock"
"""Names of files in a run's directory."""
STEP, BEST = "step_", "best.json"
"""Beginning of the names of checkpoints, and the file beside them that names the best one."""
BESIDE_CONFIG = frozenset({"checkpoints", "metrics.jsonl", VERSIONS})
"""Files by which a run differs from other directories with a config.yaml."""

# Files of a run that was killed while its directory was made.
_BEFORE_CONFIG = {
    LOCK,
    "checkpoints",
    VERSIONS,
    f".{VERSIONS}.partial",
    SIGNATURE,
    f".{SIGNATURE}.partial",
    ".config.yaml.partial",
}
_LONGEST_LIST = 200
"""Most characters in the list of a run's plug-ins."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


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


class Checkpoints:
    """The checkpoints of a run by name.

    Args:
        directory: Directory of the checkpoints.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def names(self) -> list[str]:
        """Return the names of all checkpoints, oldest first."""
        return sorted(path.name for path in self._directory.glob(f"{STEP}*") if path.is_dir())

    def best(self) -> dict[str, Any] | None:
        """Return the result of the best evaluation, and the name ``checkpoint``; None before it."""
        found = read_object(self._directory / BEST)
        mean = found.get("return_mean")
        is_whole = isinstance(mean, float | int) and math.isfinite(mean)
        return found if is_whole and found.get("checkpoint") in self.names() else None

    def resolve(self, name: str) -> str:
        """Return the full name of a checkpoint.

        Args:
            name: As in `names`, or ``last`` or ``best``.

        Raises:
            CheckpointError: There is none.
        """
        if not isinstance(name, str):
            raise CheckpointError(f"a checkpoint must be a name, got {brief(name)}")
        names, best = self.names(), self.best()
        if not names:
            raise CheckpointError(f"there is no checkpoint in '{self._directory}'")
        if name == "last":
            return names[-1]
        if name == "best" and best is not None:
            return str(best["checkpoint"])
        if name not in names:
            known = ", ".join(["last", *(["best"] if best else []), *names])
            raise CheckpointError(
                f"no checkpoint '{name}' in '{self._directory}'; there are {known}"
            )
        return name


def locate(run: str | Path, checkpoint: str | None = None) -> tuple[Path, str]:
    """Return the directory of a run, and the name of one of its checkpoints.

    Args:
        run: Directory of the run, its name under ``runs/``, or the directory of a checkpoint.
        checkpoint: Name of a checkpoint, ``last`` or ``best``; by default the best one if
            there is one, else the last.

    Raises:
        ConfigError: There is no such run.
    """
    if checkpoint is None and isinstance(run, str | Path):
        given = Path(run)
        if given.parent.name == "checkpoints" and not (given / "config.yaml").exists():
            return find_run(given.parent.parent), given.name
    path = find_run(run)
    if checkpoint is None:
        checkpoint = "last" if Checkpoints(path / "checkpoints").best() is None else "best"
    return path, checkpoint


def check_checkpoint(run: str | Path, checkpoint: str | None = None) -> None:
    """Reject a run or a checkpoint that does not exist; see `locate`.

    Raises:
        ConfigError: There is no such run.
        CheckpointError: There is no such checkpoint.
    """
    path, name = locate(run, checkpoint)
    Checkpoints(path / "checkpoints").resolve(name)


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of the run in ``path``, with overrides.

    Raises:
        ConfigError: It is not valid; the error names the run's plug-ins that are not installed.
    """
    from fastrl.config import load_config

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
    then = read_object(path / VERSIONS).get("plugins")
    if not isinstance(then, dict):
        return ""
    lost = sorted(then.keys() - registry.plugin_versions().keys())
    return ", ".join(f"{name} {then[name]}" for name in lost)[:_LONGEST_LIST]


def _check_named_places(config: Config) -> None:
    """Reject a run or a dataset that a configuration learns from and that does not exist.

    Raises:
        ConfigError: It does not exist; the error names the key.
    """
    from fastrl.config import DAggerConfig

    section = config.algorithm
    expert = section.expert if isinstance(section, DAggerConfig) else None
    for key, run in (("init_from", config.init_from), ("algorithm.expert", expert)):
        try:
            if run is not None:
                check_checkpoint(run)
        except FastrlError as error:
            raise ConfigError(f"{key}: {error}") from None
    dataset = None if config.dataset is None else config.dataset.path
    if section.needs_dataset and dataset is not None and not Path(dataset).is_dir():
        raise ConfigError(f"dataset.path: '{dataset}' is not a directory")


def new_run_path(config: Config, name: str | None) -> Path:
    """Return the path of a new run: ``run_dir``, or a new directory under ``runs/``.

    Args:
        config: Names the environment, the algorithm and the seed.
        name: Name of the directory under ``runs/``; by default made from configuration and time.

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
        option: Option with the name, for errors.

    Raises:
        ConfigError: It is not a plain file name.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{option} {brief(name)}: must be 1 to 100 letters, digits, '.', '_' and '-', "
            "the first a letter or a digit"
        )
    return RUNS / name


def shared_folder(repo: str | Path) -> Path | None:
    """Return the folder that holds a shared run, or None for a repository on the hub.

    Raises:
        ConfigError: ``repo`` names neither.
    """
    if isinstance(repo, Path):
        return repo
    taken("repo", repo, str, "name owner/name or a folder")
    if repo.startswith(("/", "./", "../", "~")):
        try:
            return file_path("repo", repo).expanduser()
        except RuntimeError:  # of ~name
            raise ConfigError(f"'{repo}' names no user of this machine") from None
    if not _ON_HUB.fullmatch(repo):
        raise ConfigError(f"'{repo}' is neither owner/name on the hub nor a folder such as ./name")
    return None


def check_push(repo: str | Path) -> Path | None:
    """Return the new folder that a run is shared in, or None for a repository on the hub.

    Raises:
        ConfigError: ``repo`` names neither, or the folder is not empty.
    """
    folder = shared_folder(repo)
    if folder is not None:
        check_new_directory(folder)
    return folder


def check_pull(
    repo: str | Path, directory: str | Path | None, revision: str | None
) -> tuple[Path | None, Path]:
    """Return the folder that a shared run is copied from, None for the hub, and the new directory.

    Args:
        repo: See `shared_folder`.
        directory: The directory; None for the last part of ``repo`` under ``runs/``.
        revision: Revision of a repository on the hub; None for the latest.

    Raises:
        ConfigError: There is no such folder, or the directory cannot be used.
    """
    folder = shared_folder(repo)
    target = named_run(Path(repo).name, "DIR") if directory is None else directory
    target = file_path("directory", target)
    if folder is not None and revision is not None:
        raise ConfigError("--revision chooses from a repository on the hub, not from a folder")
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"there is no folder '{folder}'")
    check_new_directory(target)
    return folder, target


def check_new_run(config: Config, name: str | None) -> None:
    """Reject a new run whose name or directory cannot be used, before time is spent on it.

    Raises:
        ConfigError: As for `new_run_path`; or the directory is in use, contains other files or
            cannot be made; or a run or a dataset that it learns from does not exist.
    """
    path = new_run_path(config, name)
    _check_named_places(config)
    if path.is_dir():
        os.close(locked_for_new_run(path))
        return
    above = next(each for each in (path, *path.parents) if os.path.exists(each))
    if not above.is_dir():
        raise ConfigError(f"'{path}' cannot be made: '{above}' is not a directory")
    if not os.access(above, os.W_OK):
        raise ConfigError(f"'{path}' cannot be made: '{above}' is read-only")


def locked_for_new_run(path: Path) -> int:
    """Lock a directory for a new run; see `locked`.

    Raises:
        ConfigError: It cannot be locked, is in use, or contains a run or other files, among which
            nothing is written.
    """
    with writing(path, ConfigError):
        found = {each.name for each in path.iterdir()}
    is_run = "config.yaml" in found and not found.isdisjoint(BESIDE_CONFIG)
    if not is_run and (others := sorted(found - _BEFORE_CONFIG)):
        raise ConfigError(
            f"'{path}' contains other files, such as '{others[0]}'; choose another run_dir"
        )
    lock = locked(path)
    if (path / "config.yaml").exists():
        os.close(lock)
        raise ConfigError(
            f"'{path}' contains a run already; continue it with fastrl resume {path}, "
            "or choose another run_dir"
        )
    return lock


def locked(path: Path) -> int:
    """Return the descriptor of a lock that the system releases when this process ends."""
    file = path / LOCK
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
