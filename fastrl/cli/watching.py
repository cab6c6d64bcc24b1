"""The command that watches runs."""

from __future__ import annotations

import getpass
import json
import os
import socket
from typing import TYPE_CHECKING, Annotated

import typer

from fastrl.cli.output import note, table_console, write
from fastrl.errors import ConfigError

if TYPE_CHECKING:
    from fastrl.watch.run_index import RunIndex
    from fastrl.watch.server import WatchServer

_NICE = 10
"""By how much the priority of the server is lower."""

Runs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN",
        help="Directories of runs, or of directories of runs; by default runs/.",
        show_default=False,
    ),
]


def watch(
    runs: Runs = None,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Show it as text instead of on a page.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what there is now as JSON, and end.")
    ] = False,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address of the page; another than the loopback one needs the token it prints.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="INT",
            min=0,
            max=65535,
            help="Its port; by default 8765 or a free one.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the address alone.")] = False,
) -> None:
    """Show runs on a page while they train: curves, speed, workers, faults, videos.

    Nothing is written. Ctrl-C ends it; training goes on.
    """
    from fastrl.watch.run_index import RunIndex

    index = RunIndex(runs or ["runs"])
    if as_json:
        write(json.dumps(index.everything(), indent=2))
    elif terminal:
        from fastrl.watch.as_text import show

        show(index, table_console())
    else:
        _serve(index, host, port, quiet)


def _serve(index: RunIndex, host: str, port: int | None, quiet: bool) -> None:
    from fastrl.watch.server import PORT, WatchServer

    try:
        server = WatchServer(index, host, PORT if port is None else port)
    except ConfigError:
        if port is not None:
            raise
        server = WatchServer(index, host, 0)
    with server:
        write(server.url)
        if not quiet:
            for line in _hints(server):
                note(line)
        # Training comes first where both need a core.
        os.nice(_NICE)
        server.serve_forever()


def _hints(server: WatchServer) -> list[str]:
    """Return what else a user should know about the address."""
    port = server.server_address[1]
    if server.token:
        return ["the address shows the runs to all who know it; the connection is not encrypted"]
    # Client's address and port, then this machine's.
    machine = os.environ.get("SSH_CONNECTION", "").split()[2:3] or [socket.gethostname()]
    tunnel = f"ssh -L {port}:{server.host}:{port} {getpass.getuser()}@{machine[0]}"
    return [f"from another machine: {tunnel}, then the same address there", "Ctrl-C ends it"]
