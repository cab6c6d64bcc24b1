"""Options and arguments that several commands share, their checks, and completion in shells."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.completion import completion_init, get_completion_script  # type: ignore[attr-defined]

from fastrl import registry
from fastrl.arguments import file_path, one_of
from fastrl.cli.output import write
from fastrl.errors import ArgumentError, ConfigError
from fastrl.imports import look_beside
from fastrl.runs import RUNS, check_checkpoint

if TYPE_CHECKING:
    from fastrl.config import Config

SHELLS = ("bash", "zsh", "fish")

_VARIABLE = "_FASTRL_COMPLETE"
"""Set by the shell's script, so that a call of ``fastrl`` prints completions."""


def path_of(argument: str) -> Callable[[str], Path]:
    """Return the parser of an option or argument that is a path; errors name the argument."""

    def parsed(text: str) -> Path:
        try:
            return file_path(argument, text)
        except ArgumentError as error:
            # typer would add its own words to a ValueError.
            raise ConfigError(str(error)) from None

    return parsed


def option(flags: str, metavar: str, text: str | None = None, **limits: Any) -> Any:
    """Return an option with these ``flags`` and a value, named ``metavar`` in the help.

    ``text`` is the help, by default that of the command's docstring; ``limits`` are further
    arguments of `typer.Option`. The values of FILE and DIR are paths.
    """
    if metavar in ("FILE", "DIR"):
        limits["parser"] = path_of(flags.split()[0])
    return typer.Option(*flags.split(), metavar=metavar, help=text, **limits)


EnvOption = Annotated[str | None, option("--env", "ID", "Environment id.", show_default=False)]
ConfigArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG|ENV|KEY=VALUE",
        help="A YAML file or an environment's id, and keys to change such as sampler.num_envs=64.",
        show_default=False,
    ),
]


def is_alone() -> bool:
    """Return whether this process is the only rank; with several, only the first reads runs."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def check_run(run: str, checkpoint: str | None = None) -> None:
    """Reject a run or a checkpoint that does not exist, before torch is imported.

    See `fastrl.runs.check_checkpoint`.
    """
    if is_alone():
        check_checkpoint(run, checkpoint)


def command_line() -> str:
    """Return the command line of this process, to repeat it."""
    return shlex.join(["fastrl", *sys.argv[1:]])


def check_output(option: str, file: Path | None, *, directory: bool = False) -> None:
    """Reject an output that cannot be written, before its content is computed.

    Args:
        option: Option with the output, such as ``--json``.
        file: The output; None for no output.
        directory: Whether the output is a directory, which may not exist yet.

    Raises:
        ConfigError: It cannot be written.
    """
    if file is None:
        return
    if file.is_symlink() and os.path.islink(os.path.realpath(file)):
        raise ConfigError(f"{option}: '{file}' is a loop of symbolic links")
    if directory and file.exists() and not file.is_dir():
        raise ConfigError(f"{option}: '{file}' is not a directory")
    if not directory and file.is_dir():
        raise ConfigError(f"{option}: '{file}' is a directory; name a file")
    if not directory and not file.parent.is_dir():
        raise ConfigError(f"{option}: there is no directory '{file.parent}'")
    place = next(each for each in (file, *file.absolute().parents) if each.exists())
    if not os.access(place, os.W_OK):
        raise ConfigError(f"{option}: no permission to write '{file}'")


def check_new_output(option: str, directory: Path) -> None:
    """Reject the directory of a new dataset that exists or cannot be made.

    Args:
        option: The option that names it.
        directory: The directory.

    Raises:
        ConfigError: See above.
    """
    check_output(option, directory, directory=True)
    if directory.exists() or directory.is_symlink():
        raise ConfigError(f"{option}: '{directory}' exists already; name a new directory")


def split_arguments(
    arguments: Sequence[str] | None, env: str | None = None
) -> tuple[Path | None, list[str]]:
    """Return the configuration file among the arguments of a command, and the overrides.

    An argument that is neither a file nor ``key=value`` is the id of an environment. From here on,
    modules beside the file can be imported.

    Args:
        arguments: Arguments of the command.
        env: Value of the option ``--env``.

    Raises:
        ConfigError: There are two files or two ids.
    """
    files: list[str] = []
    ids: list[str] = [] if env is None else [env]
    overrides: list[str] = []
    changed: list[str] = []
    for argument in arguments or ():
        # A directory may be called 'lr=0.001'; isfile, unlike Path, accepts any text.
        if os.path.isfile(argument) or _is_named_like_a_file(argument):
            files.append(argument)
        elif "=" in argument:
            overrides.append(argument)
            changed += re.findall(r"^\s*env\.id\s*=(.*)", argument)
        else:
            ids.append(argument)
    named = [*ids, *changed] if ids else []
    for given, kind in ((files, "configuration file"), (named, "environment")):
        if len(given) > 1:
            raise ConfigError(
                f"'{given[1]}' is a second {kind} after '{given[0]}'; changes are written key=value"
            )
    if files:
        look_beside(Path(files[0]))
    return (Path(files[0]) if files else None), [*(f"env.id={name}" for name in ids), *overrides]


def read_arguments(
    arguments: Sequence[str] | None, env: str | None = None
) -> tuple[Path | None, list[str], Config]:
    """Return the file, the overrides and the configuration of a command; see `split_arguments`.

    Torch is not imported. An id is rejected if no package that fastrl would import can know it: it
    has no version, or gymnasium has other versions of it.

    Raises:
        ConfigError: A key or the id is wrong.
        EnvError: The environment does not exist.
    """
    from fastrl.config import load_config

    path, overrides = split_arguments(arguments, env)
    config = load_config(path, overrides)
    env_id = config.env.id
    families = [family.name for family in registry.registered("environments")]
    if not re.search(r"[:/]", env_id) and env_id.partition(".")[0].lower() not in families:
        import gymnasium

        name, _, version = env_id.rpartition("-v")
        is_known = any(spec.name == name for spec in gymnasium.registry.values())
        if env_id not in gymnasium.registry and (is_known or not version.isdecimal()):
            raise registry.unknown_environment(env_id)
    return path, overrides, config


def _is_named_like_a_file(argument: str) -> bool:
    return "=" not in argument and argument.lower().endswith((".yaml", ".yml"))


def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL")],
) -> None:
    """Print a script that completes commands, options and names of runs in a shell.

    The examples are the line for ~/.bashrc, the line for ~/.zshrc, and a command for fish.

    Options:
        shell: 'bash', 'zsh' or 'fish'.

    Examples:
        eval "$(fastrl completion bash)"
        eval "$(fastrl completion zsh)"
        fastrl completion fish > ~/.config/fish/completions/fastrl.fish
    """
    one_of("SHELL", shell, SHELLS)
    write(get_completion_script(prog_name="fastrl", complete_var=_VARIABLE, shell=shell))


def prepare_completion() -> None:
    """Register the answers for each shell, if a shell requests completion."""
    if _VARIABLE in os.environ:
        completion_init()


def names_of_runs(incomplete: str) -> list[str]:
    """Return the names under ``runs/`` that begin with a text."""
    found = (file.parent.name for file in RUNS.glob("*/config.yaml"))
    return sorted(name for name in found if name.startswith(incomplete))
