"""Displays that are drawn again and again on a terminal, and are gone when they end."""

from __future__ import annotations

import os
import signal
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

from rich.console import Console, RenderableType
from rich.live import Live

_LOCAL_MODES = 3
"""Index of the local modes in the attributes of a terminal."""
_FAILURES = (OSError, ValueError, termios.error)
"""What asking for the attributes of a terminal raises where there is none, or none any more."""


class LiveDisplay(Live):
    """A display that leaves nothing on the terminal, whatever ends it.

    A terminal writes ``^C`` where the cursor is, which is at the end of the display. Behind a line
    of full width it would begin another line, and what is erased then would lie one line too low.
    So control keys are not written while the display is there.

    Args:
        console: Where to; a terminal.
        shown: Returns what to draw; called in another thread.
        refresh_per_second: How often.
        handles_sigterm: Whether SIGTERM erases it before it ends this process. A main thread that
            runs other people's code might never come to that, and so must be ended at once.
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
        """Begin to draw."""
        with ExitStack() as stack:
            stack.enter_context(_unwritten_control_keys(self.console))
            if self._handles_sigterm:
                stack.enter_context(_before_sigterm(self.stop))
            super().start(refresh)
            self._restoring = stack.pop_all()

    def stop(self) -> None:
        """Erase the display, and let the terminal be as it was."""
        # rich draws all of it once more, of which a terminal with fewer lines could erase a part.
        self._get_renderable = str
        with self._restoring:
            super().stop()


@contextmanager
def _unwritten_control_keys(console: Console) -> Iterator[None]:
    """Have the terminal of a console not write ``^C`` and the like, until the end of the block."""
    try:
        terminal = console.file.fileno()
        is_changed = _may_change(terminal) and _write_control_keys(terminal, False)
    except _FAILURES:
        is_changed = False
    try:
        yield
    finally:
        if is_changed:
            # A process that was sent to the background meanwhile would be stopped.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            with suppress(*_FAILURES):
                _write_control_keys(terminal, True)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _may_change(terminal: int) -> bool:
    """Return whether this process is not in the background: there a change would stop it."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # not the terminal that controls this process
        return os.isatty(terminal)


def _write_control_keys(terminal: int, wanted: bool) -> bool:
    """Have a terminal write control keys or not; return whether that was a change."""
    attributes = termios.tcgetattr(terminal)
    if bool(attributes[_LOCAL_MODES] & termios.ECHOCTL) == wanted:
        return False
    attributes[_LOCAL_MODES] ^= termios.ECHOCTL
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
    return True


@contextmanager
def _before_sigterm(do: Callable[[], None]) -> Iterator[None]:
    """Call a function when SIGTERM ends this process in the block, unless others handle it."""
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
