"""Infos of environments that all tell the same, as columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class InfoTable(NamedTuple):
    """Infos of environments that all tell the same, as nearly all environments do.

    Attributes:
        names: The keys.
        indices: Of the environments.
        columns: Per key the values of all environments: an array, a list, or nested columns; or one
            array ``[keys, environments]``, which is sent and joined as a whole.
        narrow: Positions of the keys whose values are float32, in an array of float64.
    """

    names: tuple[str, ...]
    indices: list[int]
    columns: Any
    narrow: tuple[int, ...] = ()

    def items(self) -> Iterator[tuple[str, tuple[list[int], Any]]]:
        """Yield what a dict of columns would."""
        for number, (name, values) in enumerate(zip(self.names, self.columns, strict=True)):
            narrowed = values.astype(np.float32) if number in self.narrow else values
            yield name, (self.indices, narrowed)
