"""The commands that show runs and environments: on a page, in a window or as text."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fastrl.cli.inputs import check_new_output, option, read_arguments
from fastrl.cli.learn import CheckpointName, Sampled, Seed, Trust
from fastrl.cli.output import loading, note, show_wait, write, write_json
from fastrl.errors import ConfigError, EnvError
from fastrl.runs import check_checkpoint

if TYPE_CHECKING:
    from fastrl.config import Config
    from fastrl.envs.env_factory import EnvFactory
    from fastrl.play.play_page import PlayPage
    from fastrl.play.play_window import PlayWindow
    from fastrl.training import TrainedPolicy
    from fastrl.watch.page_server import PageServer
    from fastrl.watch.run_index import RunIndex

S = TypeVar("S", bound="PageServer")

Runs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN",
        help="Directories of runs, or of directories of runs; by default runs/.",
        show_default=False,
    ),
]

Host = Annotated[
    str,
    option(
        "--host",
        "ADDRESS",
        "Address of the page; any but the loopback address needs the token that is printed.",
    ),
]


def _port(default: int) -> Any:
    text = f"Port of the page; by default {default} or a free one."
    return option("--port", "INT", text, min=0, max=65535)


def watch(
    runs: Runs = None,
    terminal: Annotated[bool, typer.Option("--terminal")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    host: Host = "127.0.0.1",
    port: Annotated[int | None, _port(8765)] = None,
    quiet: Annotated[bool, typer.Option("--quiet")] = False,
) -> None:
    """Show runs on a page while they train: curves, speed, workers, faults, videos.

    No file is written. Ctrl-C ends it; training continues.

    Options:
        terminal: Show it as text instead of on a page.
        as_json: Print the current state as JSON, and exit.
        quiet: Print only the address.

    Examples:
        fastrl watch
        fastrl watch first second
        fastrl watch runs --terminal
    """
    with loading(quiet=quiet, imports_torch=False):
        from fastrl.watch.run_index import RunIndex

    index = RunIndex(runs or ["runs"])
    if as_json:
        write_json(index.everything())
    elif terminal:
        from fastrl.cli.consoles import table_console
        from fastrl.watch.as_text import show

        show(index, table_console())
    else:
        _serve(index, host, port, quiet)


def _serve(index: RunIndex, host: str, port: int | None, quiet: bool) -> None:
    from fastrl.watch.server import PORT, WatchServer

    server = at_free_port(lambda number: WatchServer(index, host, number), PORT, port)
    with server:
        write(server.url)
        if not quiet:
            for line in _hints(server):
                note(line)
        server.serve_forever()


def at_free_port(serve: Callable[[int], S], usual: int, port: int | None) -> S:
    """Return a server at a port; without one at the default port, or a free one."""
    try:
        return serve(usual if port is None else port)
    except ConfigError:
        if port is not None:
            raise
        return serve(0)


def _hints(server: PageServer) -> list[str]:
    """Return hints about the address."""
    port = server.server_address[1]
    if server.token:
        return ["all who know this address can use it; the connection is not encrypted"]
    # Client's address and port, then this machine's.
    machine = os.environ.get("SSH_CONNECTION", "").split()[2:3] or [socket.gethostname()]
    user = f"{os.environ['USER']}@" if os.environ.get("USER") else ""
    tunnel = f"ssh -L {port}:{server.host}:{port} {user}{machine[0]}"
    return [f"from another machine: {tunnel}, then the same address there", "Ctrl-C ends it"]


def play(
    arguments: Annotated[list[str], typer.Argument(metavar="RUN|ENV")],
    keyboard: Annotated[bool, typer.Option("--keyboard")] = False,
    keys: Annotated[Path | None, option("--keys", "FILE")] = None,
    record: Annotated[Path | None, option("--record", "DIR")] = None,
    page: Annotated[bool, typer.Option("--page")] = False,
    fps: Annotated[float | None, option("--fps", "STEPS", min=0.1, max=1000)] = None,
    episodes: Annotated[int | None, option("--episodes", "INT", min=1)] = None,
    seed: Seed = None,
    sampled: Sampled = False,
    checkpoint: CheckpointName = None,
    trust: Trust = False,
    host: Host = "127.0.0.1",
    port: Annotated[int | None, _port(8766)] = None,
) -> None:
    """Watch a trained policy play, or play an environment with the keyboard.

    It is shown in a window, or without a screen on a web page. Escape or Ctrl-C ends it.

    Options:
        arguments: A run, or an environment: an id or a YAML file, and keys to change.
        keyboard: Play a run's environment yourself.
        keys: YAML of keys and actions, such as 'left: 0'.
        record: Write whole episodes as a dataset in Minari's format (extra 'minari').
        page: Show it on a page, as it is without a screen.
        fps: Steps per second; by default those of the environment.
        episodes: Episodes to play; by default until Ctrl-C.

    Examples:
        fastrl play first
        fastrl play CartPole-v1 --record datasets/by_hand
        fastrl play first --page
    """
    if record is not None:
        check_new_output("--record", record)
    config = _config_to_play(arguments, checkpoint)
    with loading():
        from fastrl.datasets.episodes import EpisodeBuilder
        from fastrl.play.game import KeyboardPlayer, PolicyPlayer, record_episodes
        from fastrl.play.game import play as play_game
        from fastrl.play.key_map import key_map
        from fastrl.system import draw_without_screen, has_screen

    if record is not None:
        from fastrl.datasets import check_new_dataset

        check_new_dataset(record)
    draw_without_screen()
    with show_wait("building the environment …"):
        factory, policy = _game_of(arguments[0], config, checkpoint, seed, trust)
        spec = None if record is None else factory.probe()
    with closing(factory.single(render_mode="rgb_array")) as env:
        offered: tuple[str, ...] = ()
        player: PolicyPlayer | KeyboardPlayer
        if policy is None or keyboard or keys is not None:
            known = key_map(env, factory.name, keys)
            player, offered = KeyboardPlayer(known), known.keys
            note(f"keys: {' '.join(offered)}")
        else:
            player = PolicyPlayer(policy, deterministic=not sampled)
        with closing(
            _display(page or not has_screen(), arguments[0], offered, host, port)
        ) as shown:
            builder = None if spec is None else EpisodeBuilder(spec, factory.action_bounds)
            game = play_game(env, factory.name, player, shown, fps=fps, seed=seed, builder=builder)
            ended = islice(game, episodes)
            if record is None or spec is None:
                for played in ended:
                    write(str(played))
                return
            name, bounds = "keyboard" if offered else arguments[0], factory.action_bounds
            number = record_episodes(
                ended, record, spec, bounds, name, lambda played: write(str(played))
            )
            write(f"{record}: {number:,} episodes")


def _config_to_play(arguments: list[str], checkpoint: str | None) -> Config | None:
    """Return the configuration of an environment to play, or None where a run is named.

    Torch is not imported.

    Raises:
        ConfigError: It is neither a run nor an environment, or a key is wrong.
        CheckpointError: The run has no such checkpoint.
        EnvError: The environment of a file does not exist.
    """
    first, *changes = arguments
    no_run = ""
    try:
        check_checkpoint(first, checkpoint)
    except ConfigError as error:
        no_run = str(error)
        if os.path.isdir(first):
            raise
    if not no_run:
        if changes:
            raise ConfigError(
                f"'{first}' is a run, which plays its own environment; '{changes[0]}' is for an id "
                "or a YAML file"
            )
        return None
    try:
        return read_arguments(arguments)[-1]
    except EnvError as error:
        if f"'{first}'" not in str(error):
            raise
        raise ConfigError(f"{no_run}; {error}") from None


def _game_of(
    run: str, config: Config | None, checkpoint: str | None, seed: int | None, trust: bool
) -> tuple[EnvFactory, TrainedPolicy | None]:
    """Return what builds the environment, and the policy where a run is named."""
    from fastrl.sampling import env_factory
    from fastrl.training.run import open_game

    if config is None:
        return open_game(run, checkpoint=checkpoint, seed=seed, trust=trust)
    return env_factory(config), None


def _display(
    on_page: bool, title: str, keys: tuple[str, ...], host: str, port: int | None
) -> PlayPage | PlayWindow:
    from fastrl.play.play_page import PORT, PlayPage
    from fastrl.play.play_window import PlayWindow

    if not on_page:
        return PlayWindow(title)
    page = at_free_port(lambda number: PlayPage(title, keys, host, number), PORT, port)
    write(page.url)
    for line in _hints(page):
        note(line)
    return page
