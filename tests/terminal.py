"""A terminal whose screen a test can read."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping

_SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")


class Screen:
    """Lines on a terminal of a given size, and those that were scrolled out of it.

    Knows what rich writes: colours, erased lines, and movements of the cursor.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.lines: list[list[str]] = [[]]
        self._x = self._y = 0
        self._rest = ""

    def __str__(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.lines).rstrip("\n")

    def feed(self, text: str) -> None:
        """Process output that was written to the terminal."""
        text, self._rest = self._rest + text, ""
        at = 0
        while at < len(text):
            if text[at] == "\x1b":
                found = _SEQUENCE.match(text, at)
                if found is None:
                    self._rest = text[at:]
                    return
                self._control(found[3], int(found[2]) if found[2].isdigit() else 0)
                at = found.end()
            else:
                self._put(text[at])
                at += 1

    def _put(self, sign: str) -> None:
        if sign == "\n":
            self._down()
        elif sign == "\r":
            self._x = 0
        elif sign.isprintable():
            if self._x == self.columns:  # a full line wraps only at the next character
                self._x = 0
                self._down()
            line = self.lines[self._y]
            line += " " * (self._x + 1 - len(line))
            line[self._x] = sign
            self._x += 1

    def _control(self, letter: str, number: int) -> None:
        if letter == "A":
            top = max(0, len(self.lines) - self.rows)
            self._y = max(top, self._y - max(1, number))
            self._x = min(self._x, self.columns - 1)
        elif letter == "K" and number == 2:
            self.lines[self._y] = []

    def _down(self) -> None:
        self._y += 1
        if self._y == len(self.lines):
            self.lines.append([])


class Terminal:
    """A process with its own controlling terminal, like a command of a shell.

    Args:
        command: Command to start.
        columns: Width of the terminal in characters.
        rows: Height of the terminal in lines.
        env: Environment variables; those of the tests by default.
        **options: See `subprocess.Popen`.
    """

    def __init__(
        self,
        command: list[str],
        columns: int,
        rows: int,
        env: Mapping[str, str] = os.environ,
        **options: object,
    ) -> None:
        self.ours, self.theirs = pty.openpty()
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, size)
        self.screen, self.before = Screen(columns, rows), termios.tcgetattr(self.theirs)
        take = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
        take += "; os.execvp(sys.argv[1], sys.argv[1:])"
        self.process = subprocess.Popen(
            [command[0], "-c", take, *command],
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            start_new_session=True,
            # Exported sizes are those of another terminal.
            env={k: v for k, v in env.items() if k not in ("COLUMNS", "LINES")},
            **options,
        )

    def wait_for(self, text: str, timeout_s: float = 60.0) -> None:
        """Wait until the screen shows a text."""
        deadline = time.monotonic() + timeout_s
        while text not in str(self.screen):
            assert time.monotonic() < deadline, f"'{text}' is not shown:\n{self.screen}"
            self._read(0.05)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.ours, text.encode())

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait until the process has ended; return its exit code."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on:\n{self.screen}"
            self._read(0.05)
        while self._read(0.0):
            pass
        return self.process.returncode

    def close(self) -> None:
        """End the process and the terminal."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self.ours], [], [], timeout_s)[0]:
            return False
        self.screen.feed(os.read(self.ours, 65536).decode(errors="replace"))
        return True
