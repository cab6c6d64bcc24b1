"""What is written down of workers that failed: one JSON object per line."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from fastrl.sampling import Fault
from fastrl.training.durable import WriteError, open_inside


class FaultLog:
    """The file ``faults.jsonl`` of a run.

    Attributes:
        count: Faults in the whole run.

    Args:
        path: The file; made with the first fault.

    Raises:
        WriteError: Something else has its name.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.count = path, 0
        if not path.exists():
            return
        if not path.is_file():
            raise WriteError(f"'{path}' cannot be written: it is no file")
        with suppress(OSError), path.open("rb") as file:
            self.count = sum(1 for _ in file)

    def write(self, fault: Fault) -> None:
        """Append a fault, with the time of day.

        Raises:
            WriteError: It cannot be written.
        """
        row = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **fault.to_dict()}
        try:
            descriptor = open_inside(self._path, os.O_WRONLY | os.O_APPEND)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise WriteError.of(self._path, error) from error
        self.count += 1
