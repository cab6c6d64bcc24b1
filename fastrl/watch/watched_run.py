"""One run as it is watched: its configuration, rows, workers, failures and videos."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fastrl.config.text import parse_yaml
from fastrl.curves import shared_keys
from fastrl.errors import ConfigError
from fastrl.json_lines import object_of, row_of
from fastrl.watch.run_files import GrowingFile, ReplacedFile, directory_below, open_below

VIDEOS = {".mp4": "video/mp4", ".gif": "image/gif"}
"""Content types by the ending of a video."""

_TRAINING = b'{"kind": "training"'
"""How the most frequent rows begin."""
_MOST_ROWS = 1000
"""Rows of training that are kept; of twice as many, every second one is dropped."""
_MOST_OTHERS = 20_000
_MOST_FAULTS = 100
_FRESH_S = 20.0
"""Age of the latest row up to which a run of another machine is taken to be running."""
_CLOCKS_S = 2.0
"""By which the clock of a file system may differ from that of the system."""

State = Literal["running", "finished", "stopped"]


class WatchedRun:
    """A run's directory, which is read again and again and never written.

    Attributes:
        name: As it is shown.
        tree: The configuration as it was written; empty if it cannot be read.
        problem: Why it cannot be read.
        rows: By kind.
        faults: The latest failures of workers, as in ``faults.jsonl``.
        num_faults: The number of all of them.
        workers: The content of ``workers.json``; empty where there is none.

    Args:
        root: The directory below which everything is read.
        parts: Names of the directories from there to the run.
        name: See above.
    """

    def __init__(self, root: Path, parts: tuple[str, ...], name: str) -> None:
        self.name, self._root, self._parts = name, root, parts
        self.tree: dict[str, Any] = {}
        self.problem = ""
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.faults: deque[dict[str, Any]] = deque(maxlen=_MOST_FAULTS)
        self.num_faults = 0
        self.workers: dict[str, Any] = {}
        self._config = ReplacedFile(root, *parts, "config.yaml")
        self._metrics = GrowingFile(root, *parts, "metrics.jsonl")
        self._fault_lines = GrowingFile(root, *parts, "faults.jsonl")
        self._workers = ReplacedFile(root, *parts, "workers.json")
        self._summary = ReplacedFile(root, *parts, "summary.json")
        self._lock = ReplacedFile(root, *parts, ".lock")
        self._state: State | None = None
        self._stride = 1
        self._videos: list[str] = []

    def refresh(self) -> bool:
        """Read what is new; return whether anything is."""
        changes = [
            self._refresh_config(),
            self._refresh_rows(),
            self._refresh_faults(),
            self._refresh_workers(),
            self._refresh_videos(),
            self._refresh_state(),
        ]
        return any(changes)

    @property
    def state(self) -> State:
        """Whether it is being trained, has been evaluated at the end, or was stopped before."""
        return self._state or "stopped"

    @property
    def shared(self) -> dict[str, Any]:
        """The keys in which the runs of one curve agree."""
        return shared_keys(self.tree)

    @property
    def videos(self) -> Sequence[str]:
        """Names of the videos, the latest first."""
        return self._videos

    @property
    def began_s(self) -> float:
        """When the configuration was written, in seconds since 1970."""
        return self._config.modified_s

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section of the configuration; empty if there is none."""
        found = self.tree.get(name)
        return found if isinstance(found, dict) else {}

    def latest(self, kind: str = "training") -> Mapping[str, Any]:
        """Return the latest row of a kind; empty before the first."""
        rows = self.rows.get(kind)
        return rows[-1] if rows else {}

    def path_of_video(self, video: str) -> tuple[Path, tuple[str, ...]]:
        """Return what `open_below` opens a video with.

        Raises:
            KeyError: There is no such video.
        """
        if video not in self._videos:
            raise KeyError(video)
        return self._root, (*self._parts, "videos", video)

    def _refresh_config(self) -> bool:
        if not self._config.has_changed():
            return False
        self.tree, self.problem = {}, ""
        try:
            text = self._config.content.decode()
            found = parse_yaml(text, f"{self.name}/config.yaml")
            self.tree = found if isinstance(found, dict) else {}
        except (ConfigError, UnicodeDecodeError) as error:
            self.problem = str(error)
        return True

    def _refresh_rows(self) -> bool:
        begins_anew, lines = self._metrics.news()
        if begins_anew:
            self.rows.clear()
            self._stride = 1
        # A file of many rows is read in part, as reading all of them would take long.
        stride = max(1, sum(line.startswith(_TRAINING) for line in lines) // _MOST_ROWS)
        number = 0
        for line in lines:
            if line.startswith(_TRAINING):
                number += 1
                if number % stride:
                    continue
            row = row_of(line)
            if row is not None and isinstance(kind := row.get("kind"), str):
                self._keep(kind, row)
        return begins_anew or bool(lines)

    def _keep(self, kind: str, row: dict[str, Any]) -> None:
        rows = self.rows[kind]
        rows.append(row)
        if len(rows) > (2 * _MOST_ROWS if kind == "training" else _MOST_OTHERS):
            del rows[:-1:2]

    def _refresh_faults(self) -> bool:
        begins_anew, lines = self._fault_lines.news()
        if begins_anew:
            self.faults.clear()
            self.num_faults = 0
        self.num_faults += len(lines)
        for line in lines[-_MOST_FAULTS:]:
            fault = object_of(line)
            if fault is not None:
                self.faults.append(fault)
        return begins_anew or bool(lines)

    def _refresh_workers(self) -> bool:
        if not self._workers.has_changed():
            return False
        self.workers = _checked(object_of(self._workers.content) or {})
        return True

    def _refresh_videos(self) -> bool:
        found: list[tuple[float, str]] = []
        with (
            suppress(OSError),
            directory_below(self._root, *self._parts, "videos") as directory,
            os.scandir(directory) as entries,
        ):
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and Path(entry.name).suffix in VIDEOS:
                    found.append((status.st_mtime, entry.name))
        before = self._videos
        self._videos = [name for _, name in sorted(found, reverse=True)]
        return self._videos != before

    def _refresh_state(self) -> bool:
        self._summary.has_changed()
        self._lock.has_changed()
        before = self._state
        if self._summary.content:
            self._state = "finished"
        else:
            self._state = "running" if self._is_owned() or self._is_fresh() else "stopped"
        return self._state != before

    def _is_owned(self) -> bool:
        """Return whether the process that locked the directory is still there, on this machine."""
        import psutil

        owner = re.fullmatch(rb"\s*(\d{1,9})\s*", self._lock.content)
        if owner is None:
            return False
        with suppress(psutil.Error, OSError):
            began_s = psutil.Process(int(owner[1])).create_time()
            return bool(began_s <= self._lock.modified_s + _CLOCKS_S)
        return False

    def _is_fresh(self) -> bool:
        with suppress(OSError), open_below(self._root, *self._parts, "metrics.jsonl") as file:
            age_s = datetime.now(UTC).timestamp() - os.fstat(file.fileno()).st_mtime
            return age_s < _FRESH_S
        return False


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return the content of ``workers.json`` if it is as this version writes it, else nothing."""
    activities, workers = found.get("activities"), found.get("workers")
    if not isinstance(activities, list) or not isinstance(workers, dict):
        return {}
    is_whole = all(isinstance(name, str) for name in activities) and all(
        isinstance(shares, list)
        and len(shares) == len(activities)
        and all(isinstance(share, int | float) for share in shares)
        for shares in workers.values()
    )
    return found if is_whole else {}
