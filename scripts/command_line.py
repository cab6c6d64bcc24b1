"""Helpers of all scripts: arguments, one-line errors and subprocesses."""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import gymnasium

from fastrl.cli.inputs import check_output
from fastrl.errors import ConfigError, FastrlError, WorkerError, one_line

ROOT = Path(__file__).resolve().parents[1]

MEASURED_MODEL = "model.shared_body=true"
"""One network for policy and value, as in configs/throughput.yaml: what results/ measured."""


class Parser(argparse.ArgumentParser):
    """Argument parser that reports errors in one line, without the usage, and exits with 2.

    Args:
        text: Docstring of the script: its first paragraph is the description, the rest the
            epilogue, unchanged.
        **kwargs: Arguments of the base class.
    """

    def __init__(self, text: str | None, **kwargs: Any) -> None:
        description, _, epilog = (text or "").partition("\n\n")
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, epilog=epilog, formatter_class=raw, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with 2."""
        _fail(self.prog.removesuffix(".py"), message)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Exit with the status that ``main`` returns.

    After the failure of a worker it is 1, after another error, which is printed in one line, 2, and
    after Ctrl-C 130.
    """
    script = Path(sys.argv[0]).stem
    try:
        sys.exit(main())
    except WorkerError as error:
        _fail(script, str(error), 1)
    except (FastrlError, gymnasium.error.Error) as error:
        _fail(script, one_line(error, None))
    except KeyboardInterrupt:
        sys.exit(130)


def printed(command: Sequence[str], root: Path = ROOT, timeout_s: float | None = None) -> str:
    """Run a program with the package of a checkout, and return its output.

    Raises:
        ConfigError: The program failed; the message ends with the last line of its error output.
    """
    here = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        command, cwd=root, env=here, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ConfigError(f"{root}: {' '.join(command[1:5])} failed: {last}")
    return done.stdout


def count(text: str) -> int:
    """Parse a whole number of at least 1."""
    return _at_least(1, text)


def whole(text: str) -> int:
    """Parse a whole number of at least 0."""
    return _at_least(0, text)


def duration(text: str) -> float:
    """Parse a duration above 0."""
    number = delay(text)
    if not number:
        raise argparse.ArgumentTypeError(f"must be above 0, got '{text}'")
    return number


def delay(text: str) -> float:
    """Parse a duration of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got '{text}'")
    return number


def output(text: str) -> Path:
    """Parse the path of a file that can be written."""
    path = Path(text)
    try:
        check_output("", path)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from error
    return path


def _fail(script: str, message: str, code: int = 2) -> NoReturn:
    print(f"{script}: error: {message}", file=sys.stderr)
    sys.exit(code)


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least {least}, got '{text}'"
        )
    return number
