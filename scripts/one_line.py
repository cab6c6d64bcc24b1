"""Ends a script as fastrl's command line ends: what is wrong in one line, and status 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import gymnasium

from fastrl.errors import FastrlError


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's ``main``, and exit with what it returns."""
    try:
        sys.exit(main())
    except (FastrlError, gymnasium.error.Error) as error:
        text = " ".join(str(error).split())
        print(f"{Path(sys.argv[0]).stem}: error: {text}", file=sys.stderr)
        sys.exit(2)
