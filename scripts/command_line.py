"""Arguments of the scripts: what is wrong with one is said in a line, before anything starts."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import NoReturn

from fastrl.cli.arguments import check_output
from fastrl.errors import ConfigError

MEASURED_MODEL = "model.shared_body=true"
"""One network for policy and value, as in configs/throughput.yaml: what results/ measured."""


class Parser(argparse.ArgumentParser):
    """Says in one line, without the usage, what is wrong, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        """Exit."""
        print(
            f"{self.prog.removesuffix('.py')}: error: {' '.join(message.split())}", file=sys.stderr
        )
        sys.exit(2)


def count(text: str) -> int:
    """Read a number of something of which there must be one."""
    return _at_least(1, text)


def several(text: str) -> int:
    """Read a number of something of which there must be two, to tell how far they are apart."""
    return _at_least(2, text)


def whole(text: str) -> int:
    """Read a number of something of which there may be none."""
    return _at_least(0, text)


def duration(text: str) -> float:
    """Read a time above 0."""
    number = delay(text)
    if not number:
        raise argparse.ArgumentTypeError(f"must be above 0, got '{text}'")
    return number


def delay(text: str) -> float:
    """Read a time that may be 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got '{text}'")
    return number


def output(text: str) -> Path:
    """Read the name of a file that can be written."""
    path = Path(text)
    try:
        check_output("", path)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from error
    return path


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
