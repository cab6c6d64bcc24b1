"""Fast on-policy reinforcement learning on gymnasium environments, with PyTorch.

- Custom training loops: `make_vec` builds environments behind gymnasium's vector interface.
- Whole rollouts, with the policy in the workers: `load_config`, then `make_sampler`.
- Whole runs, each in its directory: `train`, `resume`, `evaluate_run`, `record_run`.
- Trained policies in other programs: `load_policy`, `export_run`; shared: `push_run`, `pull_run`.
- Algorithms, models, loggers and so on that configurations choose by name: `register`.
- Measured speed: `run_throughput`.
- Environments as pure tensor functions: `fastrl.envs.make_tensor`.

Names are imported on first use, so that ``import fastrl`` is quick. ``__init__.pyi`` lists them.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

# Type checkers read the same file.
_IMPORTS = re.findall(
    r"^from (\S+) import (\w+) as", Path(__file__).with_suffix(".pyi").read_text(), re.MULTILINE
)
_MODULE_OF = {name: module for module, name in _IMPORTS if module != "fastrl"}
_ROOMS = {name for module, name in _IMPORTS if module == "fastrl"}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name in _ROOMS:
        return import_module(f"fastrl.{name}")
    if name == "__version__":
        return import_module("fastrl.imports").installed_version() or "0+unknown"
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fastrl' has no attribute '{name}'")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
