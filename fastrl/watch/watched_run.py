"""The data of one watched run: its configuration, rows, workers, failures and videos."""

from __future__ import annotations

import json
import os
import re
import stat
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from fastrl.config.text import parse_yaml
from fastrl.curves import Curve, curve_of, is_number, shared_keys
from fastrl.errors import ConfigError
from fastrl.json_lines import object_of, row_of
from fastrl.watch.run_files import GrowingFile, ReplacedFile, directory_below, open_below

VIDEOS = {".mp4": "video/mp4", ".gif": "image/gif"}
"""Content types by the ending of a video."""

_TRAINING = b'{"kind": "training"'
"""Beginning of the most frequent rows."""
_MOST_ROWS = 1000
"""Number of training rows in memory; of twice as many, every second one is dropped."""
_MOST_OTHERS = 20_000
_MOST_FAULTS, _MOST_CURVES = 100, 100
_FRESH_S = 20.0
"""Age of the latest row up to which a run of another machine counts as running."""
_CLOCKS_S = 2.0
"""Seconds by which the clock of a file system may differ from the system's clock."""

_SECTION = re.compile(r"^(?=[A-Za-z_])", re.MULTILINE)
"""Pattern of the beginning of a configuration's section."""

State = Literal["running", "finished", "stopped"]


class WatchedRun:
    """A run directory, which is read repeatedly and never written.

    Attributes:
        name: Name as it is shown.
        tree: Configuration as it was written; empty if it cannot be read.
        shared: The keys in which the runs of one curve agree.
        family: These keys as text.
        problem: Reason why it cannot be read.
        rows: Rows of metrics by kind.
        faults: The latest failures of workers, as in ``faults.jsonl``.
        num_faults: Number of all failures.
        changes: Number of changes.
        workers: The content of ``workers.json``; empty if there is none.

    Args:
        root: The directory below which everything is read.
        parts: Names of the directories from there to the run.
        name: See the attribute.
    """

    def __init__(self, root: Path, parts: tuple[str, ...], name: str) -> None:
        self.name, self._root, self._parts = name, root, parts
        self.tree: dict[str, Any] = {}
        self.shared: dict[str, Any] = {}
        self.family = name
        self.problem = ""
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.faults: deque[dict[str, Any]] = deque(maxlen=_MOST_FAULTS)
        self.num_faults = self.changes = 0
        self.workers: dict[str, Any] = {}
        self._config = ReplacedFile(root, *parts, "config.yaml")
        self._metrics = GrowingFile(root, *parts, "metrics.jsonl")
        self._fault_lines = GrowingFile(root, *parts, "faults.jsonl")
        self._workers = ReplacedFile(root, *parts, "workers.json")
        self._summary = ReplacedFile(root, *parts, "summary.json")
        self._lock = ReplacedFile(root, *parts, ".lock")
        self._state: State | None = None
        self._curves: dict[tuple[str, str, str], Curve] = {}
        self._videos: list[str] = []

    def refresh(self) -> bool:
        """Read new data; return whether there is any."""
        changes = [
            self._refresh_config(),
            self._refresh_rows(),
            self._refresh_faults(),
            self._refresh_workers(),
            self._refresh_videos(),
            self._refresh_state(),
        ]
        if any(changes):
            self.changes += 1
            self._curves.clear()
        return any(changes)

    @property
    def state(self) -> State:
        """State of the run: in training, finished with the final evaluation, or stopped before."""
        return self._state or "stopped"

    @property
    def videos(self) -> Sequence[str]:
        """Names of the videos, the latest first."""
        return self._videos

    @property
    def began_s(self) -> float:
        """Time of the configuration file, in seconds since 1970."""
        return self._config.modified_s

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section of the configuration; empty if there is none."""
        found = self.tree.get(name)
        return found if isinstance(found, dict) else {}

    def curve(self, metric: str, kind: str, over: str) -> Curve:
        """Return a metric of the rows of a kind, over another one; see `curve_of`."""
        what = (metric, kind, over)
        if what not in self._curves:
            if len(self._curves) >= _MOST_CURVES:
                self._curves.clear()
            self._curves[what] = curve_of(self.rows.get(kind, ()), metric, over)
        return self._curves[what]

    def latest(self, kind: str = "training") -> Mapping[str, Any]:
        """Return the latest row of a kind; empty before the first."""
        rows = self.rows.get(kind)
        return rows[-1] if rows else {}

    def path_of_video(self, video: str) -> tuple[Path, tuple[str, ...]]:
        """Return the arguments of `open_below` for a video.

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
            self.tree = _parsed(text, f"{self.name}/config.yaml")
        except (ConfigError, UnicodeDecodeError) as error:
            self.problem = str(error)
        self.shared = shared_keys(self.tree)
        self.family = (
            json.dumps(self.shared, sort_keys=True, default=str) if self.tree else self.name
        )
        return True

    def _refresh_rows(self) -> bool:
        begins_anew, lines = self._metrics.news()
        if begins_anew:
            self.rows.clear()
        # A large file is read in part, as reading all rows would take long.
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
                name = entry.name
                is_video = Path(name).suffix in VIDEOS and not name.startswith(".")
                if stat.S_ISREG(status.st_mode) and is_video and name.isprintable():
                    found.append((status.st_mtime, name))
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
        """Return whether the process that locked the directory still runs on this machine."""
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


def _parsed(text: str, origin: str) -> dict[str, Any]:
    """Return the tree of a configuration.

    Reading YAML takes most of the time for a new run. So its sections are read one by one, and
    sections that other runs share only once.

    Raises:
        ConfigError: It is not YAML.
    """
    tree: dict[str, Any] = {}
    try:
        for section in _SECTION.split(text):
            tree |= _section(section) or {}
    except (ConfigError, TypeError, ValueError):
        found = parse_yaml(text, origin)
        return found if isinstance(found, dict) else {}
    return tree


@lru_cache(maxsize=2000)
def _section(text: str) -> Any:
    return parse_yaml(text, "")


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return the content of ``workers.json`` if it has the format of this version, else nothing."""
    activities, workers = found.get("activities"), found.get("workers")
    if not isinstance(activities, list) or not isinstance(workers, dict):
        return {}
    is_whole = all(isinstance(name, str) for name in activities) and all(
        isinstance(shares, list) and len(shares) == len(activities) and all(map(is_number, shares))
        for shares in workers.values()
    )
    return found if is_whole else {}
