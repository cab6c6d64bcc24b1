"""Shell completion: `fastrl completion SHELL`, and what typer completes by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from typer.completion import completion_init, get_completion_script  # type: ignore[attr-defined]

from fastrl.arguments import one_of
from fastrl.cli.output import write

SHELLS = ("bash", "zsh", "fish")

_VARIABLE = "_FASTRL_COMPLETE"
"""Set by the shell's script, so that a call of ``fastrl`` prints completions."""
_RUNS = Path("runs")
"""That of `fastrl.training.run_directory`, without its imports."""


def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="'bash', 'zsh' or 'fish'.")],
) -> None:
    """Print a script that completes commands, options and names of runs in a shell.

    The examples are the line for ~/.bashrc, the line for ~/.zshrc, and a command for fish.
    """
    one_of("SHELL", shell, SHELLS)
    write(get_completion_script(prog_name="fastrl", complete_var=_VARIABLE, shell=shell))


def prepare_completion() -> None:
    """Register how each shell is answered, if a shell is asking."""
    if _VARIABLE in os.environ:
        completion_init()


def names_of_runs(incomplete: str) -> list[str]:
    """Return the names under ``runs/`` that begin like this one."""
    found = (file.parent.name for file in _RUNS.glob("*/config.yaml"))
    return sorted(name for name in found if name.startswith(incomplete))
