"""A module that imports names of the standard library, as a hostile configuration could."""

from __future__ import annotations

import functools
import os
from os import system
from pathlib import Path

touch = functools.partial(os.system, "true")
Touch = Path

__all__ = ["Touch", "system", "touch"]
