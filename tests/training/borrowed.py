"""Names of the standard library that a module makes its own, as a hostile configuration would."""

from __future__ import annotations

import functools
import os
from os import system
from pathlib import Path

touch = functools.partial(os.system, "true")
Touch = Path

__all__ = ["Touch", "system", "touch"]
