"""Commands on randomly damaged run directories."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.chaos.storm.chance import text, value
from tests.chaos.storm.fuzz_commands import command_line

_COMMANDS: tuple[tuple[str, ...], ...] = (
    ("eval", "--episodes", "1"),
    ("plot", "--output", "curve.png"),
    ("plot", "--evaluation", "--output", "curve.png"),
    ("resume", "total_steps=48"),
    ("resume", "total_steps=48", "--checkpoint", "best"),
    ("resume", "total_steps=48", "--checkpoint", "step_000000000016"),
)


def damages(
    pick: random.Random, keys: list[str], directory: Path
) -> tuple[str, Callable[[], bool]]:
    """Damage one to three files in a copy of the small run, and run a command on it."""
    seed, (command, *options) = pick.randrange(10**9), pick.choice(_COMMANDS)

    def attempt() -> bool:
        run, chance = directory / "damaged", random.Random(seed)
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(directory / "run", run)
        for _ in range(chance.randint(1, 3)):
            found = sorted(path for path in run.rglob("*") if not path.is_symlink())
            if found:
                _damage(chance, chance.choice(found))
        return command_line([command, str(run), *options])

    return f"damages({seed}) for {command} {options}", attempt


def _damage(pick: random.Random, path: Path) -> None:
    kind = pick.randrange(9)
    content = path.read_bytes() if path.is_file() else b""
    if kind == 0:
        path.rename(path.with_name(f"{path.name}.{pick.randrange(9)}"))
        return
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == 1:
        path.write_bytes(content[: pick.randint(0, len(content))])
    elif kind == 2:
        path.write_bytes(pick.randbytes(pick.randint(0, 300)))
    elif kind == 3 and content:
        changed, place = bytearray(content), pick.randrange(len(content))
        changed[place] ^= 1 << pick.randrange(8)
        path.write_bytes(changed)
    elif kind == 4:
        path.mkdir()
    elif kind == 5:
        path.symlink_to(pick.choice(("/nowhere", path.name, "/dev/zero", "..", "/etc/passwd")))
    elif kind == 6:
        os.mkfifo(path)
    elif kind == 7:
        path.write_text(pick.choice((value(pick), text(pick))), "utf-8", "replace")
