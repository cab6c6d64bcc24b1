"""The command line: thin commands, and one place that turns errors into a line and an exit code.

torch and gymnasium take seconds to import, so each command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from fastrl.cli.arguments import split_arguments
from fastrl.cli.learn import evaluate, export, plot, record, resume, train
from fastrl.cli.measure import throughput
from fastrl.cli.output import (
    complain,
    drop_lost_output,
    one_line,
    open_closed_streams,
    say_what_can_be_said,
    write,
)
from fastrl.cli.show import config, envs, plugins
from fastrl.cli.tune import tune
from fastrl.errors import FastrlError, WorkerError
from fastrl.free_memory import lack_of_memory
from fastrl.workers.descent import NO_THREAD

__all__ = ["app", "main", "split_arguments"]

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Samples experience at the speed the machine allows, and trains A2C and PPO on it.",
    add_completion=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# What the list of commands says of each; their own help begins with their docstrings.
app.command(short_help="Train an agent.")(train)
app.command()(resume)
app.command("eval")(evaluate)
app.command()(record)
app.command(short_help="Write a trained policy as TorchScript or ONNX.")(export)
app.command(short_help="Draw learning curves.")(plot)
app.command(short_help="Measure how fast environments are sampled.")(throughput)
app.command(short_help="Find the fastest way to sample on this machine.")(tune)
app.command(short_help="Print a configuration as it will be used.")(config)
app.command()(envs)
app.command()(plugins)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: What follows ``fastrl`` on the command line; None for the process's own.

    Returns:
        0 where it succeeded, 1 where a worker failed, 2 for bad input, which gets one line on
        standard error, and 130 after Ctrl-C.
    """
    # Threads of torch that wait for each other while other processes have their cores must sleep:
    # spinning, an update of a conv net on a busy machine takes minutes. Read once, by OpenMP.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The user's modules lie where the command is given; none of them hides an installed package.
    if "" not in sys.path:
        sys.path.append("")
    open_closed_streams()
    say_what_can_be_said()
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except WorkerError as error:
        complain(str(error))
        return EXIT_FAILED
    except FastrlError as error:
        complain(one_line(str(error)))
        return EXIT_BAD_INPUT
    except TyperException as error:
        complain(f"{one_line(error.format_message()).rstrip('.')}; see {_command(error)} --help")
        return EXIT_BAD_INPUT
    except (OSError, RuntimeError, ImportError, MemoryError) as error:
        return _complain_of_system(error)
    except (Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    finally:
        drop_lost_output()
    return code if isinstance(code, int) else 0


def _complain_of_system(error: Exception) -> int:
    """Say what the system lacks or could not do, and return the exit code.

    Raises:
        RuntimeError: It is about something else; or an `ImportError` that is.
    """
    # Python's words for it, wherever a library starts a thread.
    no_thread = NO_THREAD if str(error) == "can't start new thread" else ""
    lack = no_thread or lack_of_memory(error)
    if not lack and not isinstance(error, OSError):
        raise error
    # A pipe or a terminal may be gone, or a file cannot be written.
    with suppress(OSError):
        complain(one_line(lack or str(error)))
    return EXIT_BAD_INPUT if lack else EXIT_FAILED


@app.callback()
def _options(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        write(f"fastrl {_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        write(context.get_help())


def _command(error: TyperException) -> str:
    """Return the command that an error is about."""
    context = getattr(error, "ctx", None)
    if context is None or context.parent is None:
        return "fastrl"
    return f"fastrl {context.info_name}"


def _version() -> str:
    try:
        return version("fastrl")
    except PackageNotFoundError:
        return "(not installed)"
