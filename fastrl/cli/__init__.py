"""The command line: registers the commands, and turns errors into one line and an exit code.

torch and gymnasium take seconds to import, so each command imports them when it runs, and shows
meanwhile that it is loading. The commands are in `learn`, `show`, `speed` and `watching`.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.exceptions import Abort, TyperException
from typer.models import CommandInfo

from fastrl.cli.inputs import completion, prepare_completion, split_arguments
from fastrl.cli.learn import evaluate, export, plot, pull, push, record, resume, sweep, train
from fastrl.cli.output import (
    complain,
    drop_lost_output,
    open_closed_streams,
    replace_unknown_characters,
    write,
)
from fastrl.cli.show import config, convert, dataset, doctor, envs, new, plugins
from fastrl.cli.speed import throughput, tune
from fastrl.cli.watching import play, watch
from fastrl.errors import FastrlError, WorkerError, one_line
from fastrl.imports import installed_version
from fastrl.system import lack_of_memory
from fastrl.workers.descent import NO_THREAD

__all__ = ["app", "main", "split_arguments"]

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Train and evaluate reinforcement learning policies on gymnasium environments.",
    add_completion=False,  # `completion` is a command, without options that each help would list
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Short helps are for the list of commands; a command's own help begins with its docstring.
app.command(short_help="Train an agent.")(train)
app.command()(resume)
app.command(short_help="Train with several seeds and values, and compare what is learnt.")(sweep)
app.command("eval")(evaluate)
app.command(short_help="Write a video of a trained policy, or a dataset.")(record)
app.command(short_help="Print what a dataset contains.")(dataset)
app.command(short_help="Write a trained policy as TorchScript or ONNX.")(export)
app.command(short_help="Draw learning curves.")(plot)
app.command(short_help="Show runs on a page while they train.")(watch)
app.command(short_help="Watch a policy play, or play yourself.")(play)
app.command(short_help="Share a trained policy on the Hugging Face hub or in a folder.")(push)
app.command(short_help="Copy a shared run.")(pull)
app.command(short_help="Measure how fast environments are sampled.")(throughput)
app.command(short_help="Find the fastest way to sample on this machine.")(tune)
app.command(short_help="Print a configuration as it will be used.")(config)
app.command(short_help="Convert hyperparameters of rl-baselines3-zoo.")(convert)
app.command()(envs)
app.command()(plugins)
app.command(short_help="Write a project to start from.")(new)
app.command(short_help="Check what will be slow or fail on this machine.")(doctor)
app.command(short_help="Print a script for completion in a shell.")(completion)


def _document(command: CommandInfo) -> None:
    """Take the help of a command and its options from the sections of its docstring."""
    callback: Any = command.callback
    text, _, examples = (inspect.getdoc(callback) or "").partition("\n\nExamples:\n")
    command.help, _, options = text.partition("\n\nOptions:\n")
    # Lines after "\b" are not joined.
    command.epilog = f"\b\nExamples:\n{textwrap.indent(textwrap.dedent(examples), '  ')}"
    signature = inspect.signature(callback, eval_str=True)
    for name, said in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", options, re.MULTILINE):
        signature.parameters[name].annotation.__metadata__[0].help = " ".join(said.split())
    callback.__signature__ = signature


for _each in app.registered_commands:
    _document(_each)


def main(
    arguments: Sequence[str] | None = None, prepare: Callable[[], object] = lambda: None
) -> int:
    """Run a command and return its exit code.

    The code is 0 for success, 1 after the failure of a worker, 2 for bad input, which is reported
    in one line on standard error, and 130 after Ctrl-C.

    Args:
        arguments: The arguments after ``fastrl``; None for those of the process.
        prepare: Called first; its errors are reported like those of the command.
    """
    # Waiting threads of torch must sleep: if they spin on a busy machine, an update of a conv net
    # takes minutes. OpenMP reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # With ranks, a lost connection is reported in one line; read once, like the variable above.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Modules in the working directory can be imported, but do not hide installed packages.
    if "" not in sys.path:
        sys.path.append("")
    open_closed_streams()
    replace_unknown_characters()
    prepare_completion()
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        prepare()
        code = app(args=given, prog_name="fastrl", standalone_mode=False)
    except WorkerError as error:
        complain(str(error), error.kind)
        return EXIT_FAILED
    except FastrlError as error:
        complain(str(error), error.kind)
        return EXIT_BAD_INPUT
    except TyperException as error:
        complain(
            f"{one_line(error.format_message(), None).rstrip('.')}; see {_command(given)} --help",
            "usage",
        )
        return EXIT_BAD_INPUT
    except (OSError, RuntimeError, ImportError, MemoryError) as error:
        return _complain_of_system(error)
    except (Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    finally:
        drop_lost_output()
    return code if isinstance(code, int) else 0


def _complain_of_system(error: Exception) -> int:
    """Report a lack of memory or threads, or a failed operation; return the exit code.

    Other errors are raised again.
    """
    # Python's message, for any library that starts a thread.
    no_thread = NO_THREAD if str(error) == "can't start new thread" else ""
    lack = no_thread or lack_of_memory(error)
    if not lack and not isinstance(error, OSError):
        raise error
    # The terminal itself may be closed.
    with suppress(OSError):
        complain(one_line(lack or error, None), "system")
    return EXIT_BAD_INPUT if lack else EXIT_FAILED


@app.callback()
def _options(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        write(f"fastrl {installed_version() or '(not installed)'}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        write(context.get_help())


def _command(arguments: list[str]) -> str:
    """Return the command whose arguments are wrong; not all errors of typer contain it."""
    names = (each.name or each.callback.__name__ for each in app.registered_commands)  # type: ignore[union-attr]
    return f"fastrl {arguments[0]}" if arguments and arguments[0] in names else "fastrl"
