"""Arguments that several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fastrl.errors import ConfigError

ConfigArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE]...",
        help="A YAML file, and keys to change such as sampler.envs_per_worker=64.",
        show_default=False,
    ),
]


def split_arguments(arguments: Sequence[str] | None) -> tuple[Path | None, list[str]]:
    """Return the configuration file among the arguments of a command, and the overrides.

    Raises:
        ConfigError: More than one argument is neither a file nor ``key=value``.
    """
    files: list[str] = []
    overrides: list[str] = []
    for argument in arguments or ():
        # A directory may be called 'lr=0.001'; isfile, unlike Path, answers for any text.
        is_file = "=" not in argument or os.path.isfile(argument)
        (files if is_file else overrides).append(argument)
    if len(files) > 1:
        raise ConfigError(
            f"'{files[1]}' is a second configuration file after '{files[0]}'; "
            "changes are written key=value"
        )
    return (Path(files[0]) if files else None), overrides
