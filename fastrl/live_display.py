"""Displays that are redrawn on a terminal or in a notebook, and erased when they end."""

from __future__ import annotations

import io
import os
import signal
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner

from fastrl.arguments import instance

_SPINS_PER_S = 12.5
_NOTEBOOK_WIDTH = 100
_NOTEBOOK_REFRESH_S = 0.25
_LOCAL_MODES = 3
"""Index of the local modes in the attributes of a terminal."""
_FAILURES = (OSError, ValueError, termios.error)
"""Errors of reading the attributes of a terminal that is missing or gone."""


class LiveDisplay(Live):
    """A display that leaves nothing on the terminal, however it ends.

    A terminal echoes ``^C`` at the cursor, which is at the end of the display. After a line of
    full width that would start another line, and the wrong lines would be erased. So control keys
    are not echoed while the display is shown.

    Args:
        console: The console of a terminal.
        shown: Returns what to draw; called in another thread.
        refresh_per_second: How often it is redrawn.
        handles_sigterm: Whether SIGTERM erases it before the process ends. If users' code in the
            main thread may never return to Python, the process must end at once instead.
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
            stack.enter_context(_unwritten_control_keys(self.console))
            if self._handles_sigterm:
                stack.enter_context(_before_sigterm(self.stop))
            super().start(refresh)
            self._restoring = stack.pop_all()

    def stop(self) -> None:
        """Erase the display and restore the terminal."""
        # rich draws it once more; a terminal with fewer lines could erase only a part of it.
        self._get_renderable = str
        with self._restoring:
            super().stop()


class NotebookDisplay:
    """A display in the output of a notebook's cell, as HTML that is replaced.

    It needs no widgets, so it works in every notebook.

    Args:
        shown: Returns what to draw; called in another thread.
    """

    def __init__(self, shown: Callable[[], RenderableType]) -> None:
        self._shown = shown
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._handle: Any = None

    def start(self) -> None:
        """Start drawing."""
        from IPython.display import display

        self._handle = display(self._drawn(), raw=True, display_id=True)
        self._thread = threading.Thread(target=self._redraw, name="display", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Erase the display."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        if self._handle is not None:
            self._handle.update({"text/html": "", "text/plain": ""}, raw=True)

    def __enter__(self) -> Self:
        """Start drawing."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Erase the display."""
        self.stop()

    def _redraw(self) -> None:
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
) -> LiveDisplay | NotebookDisplay | None:
    """Return a display for a terminal or a notebook; None where lines must do.

    Args:
        console: Where to; None for nowhere.
        shown: As for `LiveDisplay`.
        refresh_per_second: On a terminal.
        handles_sigterm: As for `LiveDisplay`.

    Raises:
        ArgumentError: ``console`` is something else.
    """
    check_console(console)
    if console is not None and console.is_terminal:
        return LiveDisplay(console, shown, refresh_per_second, handles_sigterm=handles_sigterm)
    return NotebookDisplay(shown) if console is not None and console.is_jupyter else None


@contextmanager
def waiting(
    console: Console | None, text: str, *, handles_sigterm: bool = False
) -> Iterator[Spinner | None]:
    """Show on a terminal or in a notebook what is waited for; erased at the end.

    Args:
        console: Where to; nowhere if None, or if lines must do.
        text: What is waited for.
        handles_sigterm: See `LiveDisplay`.

    Yields:
        The spinner, whose text may be updated; None where nothing is shown.
    """
    spinner = Spinner("dots", text, style="status.spinner")
    display = display_on(console, lambda: spinner, _SPINS_PER_S, handles_sigterm=handles_sigterm)
    if display is None:
        yield None
        return
    with display:
        yield spinner


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
            # Else a process that is in the background by now would be stopped.
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
    """Make a terminal echo control keys or not; return whether that was a change."""
    attributes = termios.tcgetattr(terminal)
    if bool(attributes[_LOCAL_MODES] & termios.ECHOCTL) == wanted:
        return False
    attributes[_LOCAL_MODES] ^= termios.ECHOCTL
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
    return True


@contextmanager
def _before_sigterm(do: Callable[[], None]) -> Iterator[None]:
    """Call a function when SIGTERM ends this process in the block, unless SIGTERM is handled."""
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:  # and not a fork, which inherits this
            do()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
