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
        metavar="CONFIG|KEY=VALUE",
        help="A YAML file, and keys to change such as sampler.envs_per_worker=64.",
        show_default=False,
    ),
]


def check_output(option: str, file: Path | None, *, directory: bool = False) -> None:
    """Refuse an output that cannot be written, before time is spent on what goes there.

    Args:
        option: Where the user gave it, such as ``--json``.
        file: What is to be written; None for nothing.
        directory: Whether a directory is to be filled, which is made where there is none.

    Raises:
        ConfigError: It is of the other kind, or there is no place for it.
    """
    if file is None:
        return
    if directory and file.exists() and not file.is_dir():
        raise ConfigError(f"{option}: '{file}' is no directory")
    if not directory and file.is_dir():
        raise ConfigError(f"{option}: '{file}' is a directory; name a file")
    if not directory and not file.parent.is_dir():
        raise ConfigError(f"{option}: there is no directory '{file.parent}'")
    place = (
        file if file.exists() else next(each for each in file.absolute().parents if each.exists())
    )
    if not os.access(place, os.W_OK):
        raise ConfigError(f"{option}: no permission to write '{file}'")


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
