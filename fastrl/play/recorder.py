"""Writes played episodes as a dataset of demonstrations."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fastrl.datasets import DatasetWriter
from fastrl.envs.actions import ActionBounds
from fastrl.errors import ConfigError, FastrlError
from fastrl.play.game import Played
from fastrl.spec import EnvSpec

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def record_episodes(
    played: Iterable[Played],
    path: Path,
    env_spec: EnvSpec,
    action_bounds: ActionBounds,
    player: str,
    report: Callable[[Played], None],
) -> int:
    """Write each episode when it ends, and complete the dataset; return the number of episodes.

    Ctrl-C, SIGTERM, a closed terminal or an error of the environment ends the recording. Finished
    episodes are kept, and the exception is raised once the dataset is complete. Must be called
    from the main thread.

    Args:
        played: Episodes with their steps; the iterator ends when the display is closed.
        path: The dataset, a directory that does not exist yet.
        env_spec: The environment.
        action_bounds: How actions are kept inside a bounded ``Box``.
        player: Who played, for the metadata.
        report: Called with each episode.

    Raises:
        ConfigError: No episode was finished, so there is no dataset; or it cannot be written.
        FastrlError: The environment failed.
        KeyboardInterrupt: A signal ended the recording.
    """
    number = 0
    failure: BaseException | None = None
    about = {"algorithm_name": player}
    with (
        _as_interrupts(),
        ExitStack() as completing,
        DatasetWriter(path, env_spec, action_bounds, about) as writer,
    ):
        try:
            for each in played:
                assert each.episode is not None
                with _held_signals():
                    writer.add([each.episode])
                    number += 1
                report(each)
        except (KeyboardInterrupt, FastrlError) as error:
            failure = error
        if not number:
            raise failure or ConfigError(f"no episode was finished, so '{path}' was not written")
        completing.enter_context(_held_signals())
    if failure is not None:
        raise failure
    return number


@contextmanager
def _as_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGTERM and SIGHUP as for SIGINT."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _held_signals() -> Iterator[None]:
    """Deliver signals after the block, which writes files."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
