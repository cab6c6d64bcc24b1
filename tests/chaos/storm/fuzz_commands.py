"""Random command lines for every command, with small sizes."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable
from pathlib import Path

from fastrl import cli
from tests.chaos.storm.chance import misspelt, number, override, text, yaml_tree

_IDS = (
    "CartPole-v1",
    "fastrl/Pendulum-v1",
    "tests.chaos.storm.any_env:make",
    "MountainCarContinuous-v0",
    "CartPole-v99",
    "vector:CartPole-v1",
    "gym:CartPole-v1",
    "envpool:CartPole-v1",
    "no.module:make",
    "os:getcwd",
    "os:environ",
    "",
)
_SMALL = (
    "total_steps=32",
    "sampler.kind=serial",
    "sampler.num_env_workers=1",
    "sampler.num_model_workers=0",
    "sampler.envs_per_worker=2",
    "sampler.groups=1",
    "sampler.rollout_length=4",
    "sampler.tune_s=null",
    "sampler.device=cpu",
    "algorithm.epochs=1",
    "evaluation.enabled=false",
    "evaluation.final_episodes=1",
    "logging.tensorboard=false",
    "logging.wandb=false",
)
_OPTIONS = {
    "train": ("--name",),
    "resume": ("--checkpoint",),
    "eval": ("--episodes", "--seed", "--checkpoint"),
    "record": ("--video", "--episodes", "--seed", "--checkpoint"),
    "plot": ("--output",),
    "throughput": ("--env", "-n", "-N", "-M", "--groups", "--device", "--mode", "--json"),
    "tune": ("--env", "--budget", "--objective", "--batch", "--overlay", "--json", "--study"),
    "envs": (),
    "config": (),
}


def command_line(arguments: list[str], exit_codes: tuple[int, ...] = (0, 2)) -> bool:
    """Run a fastrl command line; return whether it was accepted.

    Raises:
        AssertionError: It ended in another way than with success, or with code 2 and one line.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    lines = [line for line in err.getvalue().splitlines() if "error: " in line]
    assert "Traceback" not in out.getvalue() + err.getvalue(), err.getvalue()
    assert code in exit_codes, f"code {code}: {err.getvalue()}"
    assert code == 0 or len(lines) == 1, f"code {code}, {err.getvalue()!r}"
    return code == 0


def overrides(
    pick: random.Random, keys: list[str], directory: Path
) -> tuple[str, Callable[[], bool]]:
    """Read overrides with ``fastrl config``."""
    arguments = ["config", *(override(pick, keys) for _ in range(pick.randint(1, 5)))]
    if pick.random() < 0.7:
        arguments.insert(1, "env.id=CartPole-v1")
    return repr(arguments), lambda: command_line(arguments)


def files(pick: random.Random, keys: list[str], directory: Path) -> tuple[str, Callable[[], bool]]:
    """Read a file with ``fastrl config``."""
    content = yaml_tree(pick, keys)

    def read() -> bool:
        path = directory / "config.yaml"
        path.write_text(content, encoding="utf-8", errors="replace")
        return command_line(["config", str(path)])

    return repr(content), read


def commands(
    pick: random.Random, keys: list[str], directory: Path
) -> tuple[str, Callable[[], bool]]:
    """Run any command, with a small run that was trained before."""
    command = pick.choice(sorted(_OPTIONS))
    if pick.random() < 0.02:
        return repr([word := misspelt(pick, command)]), lambda: command_line([word])
    arguments = [command]
    if command in ("train", "throughput", "tune", "config"):
        arguments += [override(pick, keys) for _ in range(pick.randint(0, 2))]
        if command == "train" or pick.random() < 0.3:
            arguments += [f"env.id={(chosen := pick.choice(_IDS))}"]
            if chosen.startswith("tests"):
                arguments.append(f"env.kwargs={{spaces_seed: {pick.randrange(10**6)}}}")
        # Only rejected input for these two: their work takes seconds.
        arguments += _SMALL if command not in ("throughput", "tune") else ["env.id=Nowhere-v0"]
    elif command == "envs":
        arguments += [text(pick)] if pick.random() < 0.5 else []
    else:
        runs = ["run", "run", "nowhere", "..", "/", "", "\0", text(pick)]
        arguments += [pick.choice(runs) for _ in range(1 if command != "plot" else 2)]
    if command == "resume":
        arguments += [f"total_steps={pick.choice((32, 40, 48, -1))}"]
        arguments += [override(pick, keys)] if pick.random() < 0.3 else []
        arguments += _SMALL[1:]
    for option in pick.sample(_OPTIONS[command], min(pick.randint(0, 2), len(_OPTIONS[command]))):
        arguments += [option, _argument(pick, option)]
    if command == "train":
        arguments += [] if "--name" in arguments else [f"run_dir={directory}/new"]
    return repr(arguments), lambda: command_line(arguments)


def _argument(pick: random.Random, option: str) -> str:
    small = option in ("--episodes", "-N", "-n", "--budget")
    choices = [
        str(pick.randint(-3, 3 if small else 300)),
        repr(number(pick)) if not small else "0",
        pick.choice(
            ("last", "best", "step_0", "../../x", "", "/", "CartPole-v1", "x.mp4", "x.png")
        ),
        text(pick),
    ]
    return pick.choice(choices)
