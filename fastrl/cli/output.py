"""Output of the command line: results go to standard output, all else to standard error.

Importing rich takes longer than everything else for ``fastrl --help``, so only functions that draw
import it.
"""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from fastrl.durable import write_output, writing
from fastrl.workers.descent import OF_GROUPS

if TYPE_CHECKING:
    from rich.console import Console


def progress_console() -> Console:
    """Return a console on standard error, which becomes quiet when its reader closes."""
    from fastrl.cli.consoles import QuietConsole

    return QuietConsole(stderr=True, emoji=False)


def show_wait(
    text: str, *, handles_sigterm: bool = False
) -> AbstractContextManager[Callable[[str], None]]:
    """Show a waiting activity; see `fastrl.live_display.waiting`."""
    from fastrl.live_display import waiting

    return waiting(progress_console(), text, handles_sigterm=handles_sigterm)


@contextmanager
def loading(*, quiet: bool = False, imports_torch: bool = True) -> Iterator[None]:
    """Show that packages are imported: on a terminal until they are, elsewhere as a line.

    Args:
        quiet: Show nothing.
        imports_torch: Whether the import takes seconds, so that a line is needed even if it cannot
            be erased.
    """
    shown: AbstractContextManager[object] = nullcontext()
    if not quiet and sys.stderr.isatty():
        shown = show_wait("loading …", handles_sigterm=True)
    elif not quiet and imports_torch and "torch" not in sys.modules:
        note("loading …")
    was_enabled = gc.isenabled()
    # Modules stay, and garbage collection among them takes a fifth of the time of their import.
    gc.disable()
    try:
        with _interrupted_after(), shown:
            yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _interrupted_after() -> Iterator[None]:
    """Raise the KeyboardInterrupt of a signal in the block after it; that of a second one at once.

    Packages that are being imported catch it, or are left half imported.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    heard = [each for each in OF_GROUPS if signal.getsignal(each) is signal.default_int_handler]
    for each in heard:
        signal.signal(each, handle)
    try:
        yield
    finally:
        for each in heard:
            signal.signal(each, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def write(text: str) -> None:
    """Write a result without wrapping and colours.

    Raises:
        WriteError: It cannot be written, for instance to a full disk.
    """
    with writing(Path("standard output")):
        _put(text, sys.stdout)


def write_json(tree: Any, file: Path | None = None) -> None:
    """Write a result as JSON, into a file if one is given.

    Raises:
        WriteError: The file cannot be written.
    """
    text = json.dumps(tree, indent=2)
    if file is None:
        write(text)
    else:
        with writing(file):
            write_output(file, f"{text}\n".encode())


def write_wrapped(text: str) -> None:
    """Write a result; on a terminal, wrap lines between words."""
    if not sys.stdout.isatty():
        write(text)
        return
    width = shutil.get_terminal_size().columns
    for line in textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False):
        write(line)


def note(text: str) -> None:
    """Write a remark on standard error."""
    _put(text, sys.stderr)


def _put(text: str, stream: TextIO) -> None:
    """Write lines at once; ignore a closed reader, as the work is more important."""
    with suppress(BrokenPipeError):
        stream.write(f"{text}\n")
        stream.flush()


def complain(text: str, kind: str) -> None:
    """Write an error on standard error.

    Args:
        text: The error; lines after the first one are a worker's traceback.
        kind: Section of ``docs/errors.md`` about the error.
    """
    line, newline, rest = text.partition("\n")
    note(f"fastrl: error: {line} [{kind}]{newline}{rest}")


def replace_unknown_characters() -> None:
    """Write question marks for characters that the encoding of a stream does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def open_closed_streams() -> None:
    """Open standard streams that were closed before this process started, on the null device.

    Otherwise the next opened file would have the descriptor, and output of native code would go
    into a checkpoint or into another process's pipe.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            # This is the lowest free descriptor, as those below are open.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def drop_lost_output() -> None:
    """Discard output that can no longer be written, for instance after the terminal was closed.

    At exit Python would try again, and exit with 120 instead of the command's code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
