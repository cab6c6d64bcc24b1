"""Live displays on a terminal or in a notebook, which are redrawn and finally erased."""

from __future__ import annotations

import io
import os
import signal
import termios
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from fastrl.arguments import instance
from fastrl.closing import unwinding

_SPINS_PER_S = 12.5
_NOTEBOOK_WIDTH = 100
_NOTEBOOK_REFRESH_S = 0.25
FIRST_LINE_S, _EVERY_S = 2.0, 10.0
"""Seconds until the first plain line, and between later ones, if nothing can be redrawn."""
_LOCAL_MODES = 3
"""Index of the local modes in the attributes of a terminal."""
_FAILURES = (OSError, ValueError, termios.error)
"""Errors of reading the attributes of a missing or closed terminal."""


class LiveDisplay(Live):
    """A display that is always erased from the terminal, also after an error.

    A terminal echoes ``^C`` at the cursor, which is at the end of the display. After a line of
    full width that would start another line, and the wrong lines would be erased. So control keys
    are not echoed while the display is shown.

    Args:
        console: The console of a terminal.
        shown: Returns the content to draw; called in another thread.
        refresh_per_second: Redraws per second.
        handles_sigterm: Whether SIGTERM and SIGHUP leave the block, which erases it, before the
            process ends; see `unwinding`. If users' code in the main thread may never return to
            Python, the process must end at once instead.
    """

    def __init__(
        self,
        console: Console,
        shown: Callable[[], RenderableType],
        refresh_per_second: float = 4,
        *,
        handles_sigterm: bool = True,
    ) -> None:
        super().__init__(
            console=console,
            get_renderable=shown,
            refresh_per_second=refresh_per_second,
            transient=True,
        )
        self._restoring, self._handles_sigterm = ExitStack(), handles_sigterm

    def start(self, refresh: bool = False) -> None:
        """Start drawing."""
        with ExitStack() as stack:
            if self._handles_sigterm:
                stack.enter_context(unwinding())
            stack.enter_context(_unwritten_control_keys(self.console))
            super().start(refresh)
            self._restoring = stack.pop_all()

    def stop(self) -> None:
        """Erase the display and restore the terminal."""
        # rich draws it once more; a lower terminal could erase only a part of it.
        self._get_renderable = str
        with self._restoring:
            super().stop()


class _InThread:
    """The text that a thread shows until it is stopped."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start showing."""
        thread = threading.Thread(target=self._run, name="display", daemon=True)
        with suppress(RuntimeError):  # the system has no thread left; work without a display
            thread.start()
            self._thread = thread

    def stop(self) -> None:
        """Stop showing."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        """Start showing."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop showing."""
        self.stop()

    @abstractmethod
    def _run(self) -> None:
        """Show until it is done."""


class LineDisplay(_InThread):
    """A plain line for each change, if nothing can be redrawn.

    Args:
        console: Console for the lines.
        shown: Returns the line; called in another thread.
        first_s: Seconds until the first line; shorter work has no line.
        every_s: Seconds between later lines.
    """

    def __init__(
        self,
        console: Console,
        shown: Callable[[], object],
        first_s: float = FIRST_LINE_S,
        every_s: float = _EVERY_S,
    ) -> None:
        super().__init__()
        self._console, self._shown = console, shown
        self._first_s, self._every_s = first_s, every_s

    def _run(self) -> None:
        last, wait_s = "", self._first_s
        while not self._done.wait(wait_s):
            line, wait_s = str(self._shown()), self._every_s
            if line == last:
                continue
            last = line
            try:
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            except OSError:  # the terminal or the reader of a pipe was closed
                return


class NotebookDisplay(_InThread):
    """A display in the output of a notebook's cell, as HTML that is replaced.

    It needs no widgets, so it works in every notebook.

    Args:
        shown: Returns the content to draw; called in another thread.
    """

    def __init__(self, shown: Callable[[], RenderableType]) -> None:
        super().__init__()
        self._shown = shown
        self._handle: Any = None

    def start(self) -> None:
        """Start drawing."""
        from IPython.display import display

        self._handle = display(self._drawn(), raw=True, display_id=True)
        super().start()

    def stop(self) -> None:
        """Erase the display."""
        super().stop()
        if self._handle is not None:
            self._handle.update({"text/html": "", "text/plain": ""}, raw=True)

    def _run(self) -> None:
        last = None
        while not self._done.wait(_NOTEBOOK_REFRESH_S):
            if (drawn := self._drawn()) != last:
                self._handle.update(drawn, raw=True)
                last = drawn

    def _drawn(self) -> dict[str, str]:
        console = Console(
            record=True, file=io.StringIO(), width=_NOTEBOOK_WIDTH, force_jupyter=False
        )
        console.print(self._shown())
        html = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>", clear=False)
        return {"text/html": html, "text/plain": console.export_text()}


def check_console(console: object) -> None:
    """Raise an `ArgumentError` for an argument that is neither a console of rich nor None."""
    if console is not None:
        instance("console", console, Console, "rich.console.Console() makes one")


def display_on(
    console: Console | None,
    shown: Callable[[], RenderableType],
    refresh_per_second: float = 4,
    *,
    handles_sigterm: bool = True,
    lines_s: tuple[float, float] | None = None,
) -> LiveDisplay | NotebookDisplay | LineDisplay | None:
    """Return a display for a terminal or a notebook; elsewhere one of lines, or None.

    Args:
        console: Console that shows it, or None.
        shown: As for `LiveDisplay`.
        refresh_per_second: Redraws per second on a terminal.
        handles_sigterm: As for `LiveDisplay`.
        lines_s: ``first_s`` and ``every_s`` of a `LineDisplay`; None for no lines.

    Raises:
        ArgumentError: ``console`` is neither a console nor None.
    """
    check_console(console)
    if console is not None and console.is_terminal:
        return LiveDisplay(console, shown, refresh_per_second, handles_sigterm=handles_sigterm)
    if console is not None and console.is_jupyter:
        return NotebookDisplay(shown)
    return None if console is None or lines_s is None else LineDisplay(console, shown, *lines_s)


@contextmanager
def waiting(
    console: Console | None, text: str, *, handles_sigterm: bool = False
) -> Iterator[Callable[[str], None]]:
    """Show a waiting activity: erased at the end, or as a line if it takes more than two seconds.

    Args:
        console: Console that shows it, or None.
        text: Name of the activity.
        handles_sigterm: See `LiveDisplay`.

    Yields:
        A function that sets another text; without a display it does nothing.
    """
    shown = _Waiting(text)
    display = display_on(
        console,
        lambda: shown,
        _SPINS_PER_S,
        handles_sigterm=handles_sigterm,
        lines_s=(FIRST_LINE_S, _EVERY_S),
    )
    with display or nullcontext():
        yield lambda text: shown.update(text=Text(text))


class _Waiting(Spinner):
    """A spinner, which is only its text if nothing can be drawn."""

    def __init__(self, text: str) -> None:
        super().__init__("dots", Text(text), style="status.spinner")

    def __str__(self) -> str:
        return str(self.text)


@contextmanager
def _unwritten_control_keys(console: Console) -> Iterator[None]:
    """Stop the terminal of a console from echoing ``^C`` and the like during the block."""
    try:
        terminal = console.file.fileno()
        is_changed = _may_change(terminal) and _write_control_keys(terminal, False)
    except _FAILURES:
        is_changed = False
    try:
        yield
    finally:
        if is_changed:
            # Otherwise a process in the background would be stopped.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            with suppress(*_FAILURES):
                _write_control_keys(terminal, True)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _may_change(terminal: int) -> bool:
    """Return whether this process is in the foreground; a change would stop a background one."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # not the controlling terminal of this process
        return os.isatty(terminal)


def _write_control_keys(terminal: int, wanted: bool) -> bool:
    """Make a terminal echo control keys or not; return whether this changed something."""
    attributes = termios.tcgetattr(terminal)
    if bool(attributes[_LOCAL_MODES] & termios.ECHOCTL) == wanted:
        return False
    attributes[_LOCAL_MODES] ^= termios.ECHOCTL
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
    return True
