"""Arguments that several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fastrl.errors import ConfigError
from fastrl.imports import look_beside

EnvOption = Annotated[
    str | None, typer.Option("--env", metavar="ID", help="Environment id.", show_default=False)
]
ConfigArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG|ENV|KEY=VALUE",
        help="A YAML file or an environment's id, and keys to change such as "
        "sampler.envs_per_worker=64.",
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


def split_arguments(
    arguments: Sequence[str] | None, env: str | None = None
) -> tuple[Path | None, list[str]]:
    """Return the configuration file among the arguments of a command, and the overrides.

    An argument that is neither a file nor ``key=value`` is the id of an environment. Modules that
    lie beside the file can be imported from here on.

    Args:
        arguments: Of the command.
        env: The id that the option ``--env`` gave.

    Raises:
        ConfigError: There are two files or two ids.
    """
    files: list[str] = []
    ids: list[str] = [] if env is None else [env]
    overrides: list[str] = []
    for argument in arguments or ():
        # A directory may be called 'lr=0.001'; isfile, unlike Path, answers for any text.
        if os.path.isfile(argument) or _is_named_like_a_file(argument):
            files.append(argument)
        elif "=" in argument:
            overrides.append(argument)
        else:
            ids.append(argument)
    for given, kind in ((files, "configuration file"), (ids, "environment")):
        if len(given) > 1:
            raise ConfigError(
                f"'{given[1]}' is a second {kind} after '{given[0]}'; changes are written key=value"
            )
    if files:
        look_beside(Path(files[0]))
    named = [f"env.id={name}" for name in ids]
    return (Path(files[0]) if files else None), [*named, *overrides]


def _is_named_like_a_file(argument: str) -> bool:
    return "=" not in argument and argument.lower().endswith((".yaml", ".yml"))
