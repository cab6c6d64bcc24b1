"""The random states of this process, as plain types that a checkpoint may hold."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Return the states of the global generators of torch, NumPy and Python."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "python": {"version": version, "words": list(words), "gauss_next": gauss_next},
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Go on from such a state; that of GPUs only where there are as many."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    numpy_state, python_state = state["numpy"], state["python"]
    keys = numpy_state["keys"].numpy().astype(np.uint32)
    rest = (numpy_state["position"], numpy_state["has_gauss"], numpy_state["gauss"])
    np.random.set_state(("MT19937", keys, *rest))
    words = tuple(python_state["words"])
    random.setstate((python_state["version"], words, python_state["gauss_next"]))
