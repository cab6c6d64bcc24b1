"""What README and guides point to is there, and code in them is Python."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml
from typer.main import get_command

import fastrl
from fastrl import registry
from fastrl.cli import app, main, split_arguments
from fastrl.config import Config, load_config
from fastrl.sweeps import load_space
from fastrl.training.metrics import read_rows
from tests.datasets.drawing import drawn, written

ROOT = Path(__file__).parents[1]
COMMANDS = get_command(app).commands
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_links_lead_somewhere():
    lost = []
    for page in PAGES:
        links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        lost += [
            f"{name_of(page)}: {link}"
            for link in links
            if "://" not in link and not (page.parent / link).exists()
        ]
    assert lost == []


def test_scripts_and_configurations_that_are_named_exist():
    # A reader is shown how to write these, or will have written them.
    made_here = {"configs/my.yaml", "configs/my_cartpole.yaml"}
    lost = []
    # The changelog also names what was removed.
    for page in [page for page in PAGES if page.stem != "CHANGELOG"]:
        named = re.findall(
            r"\b(?:scripts|configs|results)/\w+(?:[-.]\w+)*\.(?:py|yaml|json|md)\b",
            page.read_text(encoding="utf-8"),
        )
        missing = [name for name in {*named} - made_here if not (ROOT / name).exists()]
        lost += [f"{name_of(page)}: {name}" for name in missing]
    assert lost == []


def test_commands_are_valid_and_set_keys_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    for page in PAGES:
        blocks = re.findall(r"```(\w*)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        shell = (code for language, code in blocks if language in ("", "bash"))
        lines = "".join(shell).splitlines()
        for name, rest in re.findall(r"^fastrl (\w+)([^>|\n]*)", "\n".join(lines), re.MULTILINE):
            words = shlex.split(rest, comments=True)
            # Raises an error for unknown options, and for missing or additional arguments.
            given = COMMANDS[name].make_context(name, words).params
            if given.get("arguments") and "env" in given:
                path, overrides = split_arguments(given["arguments"], given["env"])
                # Other files are the reader's.
                if path is None or path.parent.name == "configs":
                    load_config(path, overrides)


def test_configurations_are_valid(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    file, others = tmp_path / "configs" / "of_a_page.yaml", []
    for page in PAGES:
        for text in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            file.write_text(text, encoding="utf-8")
            keys = yaml.safe_load(text).keys()
            if keys <= {*Config.model_fields, "base"}:
                load_config(file, [] if {"env", "base"} & keys else ["env.id=CartPole-v1"])
            elif "space" in keys:
                load_space(file)
            else:
                others.append(page.name)
    assert others == ["watch.md"]  # keys of `fastrl play`


def sections_with_python(page):
    """Return the Python of each section of a page: what a reader copies at once."""
    sections = page.read_text(encoding="utf-8").split("\n## ")
    found = ["".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) for text in sections]
    return [code for code in found if code]


QUICK = [
    ROOT / "docs" / name
    for name in (
        *("guide/policies.md", "guide/tensor_envs.md", "guide/old_gym.md", "guide/tuning.md"),
        *("guide/configuration.md", "coming_from.md"),
    )
]
WITH_RUNS = [
    ROOT / "docs" / "guide" / f"{name}.md"
    for name in (
        *("algorithms", "fields", "imitation", "masks", "memory", "plugins", "sweeps", "training"),
    )
]
BY_TESTS_OF_THEIR_OWN = [
    ROOT / name
    for name in (
        *("README.md", "docs/quickstart.md", "docs/guide/callbacks.md"),
        *("docs/guide/crafter.md", "docs/guide/environments.md", "docs/guide/mujoco.md"),
        "docs/guide/vector.md",
    )
]
SHORT = (
    *("sampler=serial", "sampler.num_envs=4", "sampler.rollout_length=16", "total_steps=64"),
    *("evaluation.enabled=false", "logging.tensorboard=false"),
)


def test_python_of_every_page_is_run():
    run = {*QUICK, *WITH_RUNS, *BY_TESTS_OF_THEIR_OWN}
    assert {page for page in PAGES if sections_with_python(page)} == run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty directory of a user, from which modules can be imported."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.entries()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    return tmp_path


@pytest.mark.parametrize("page", QUICK, ids=name_of)
def test_python_of_each_section_runs_as_copied(page, place):
    if page.stem == "old_gym":
        pytest.importorskip("gym")
    for code in sections_with_python(page):
        names, code = {"__name__": "__main__"}, code.replace("=20_000", "=2_000")
        exec(compile(code, name_of(page), "exec"), names)
        # An earlier import in this process would hide that the ids are not registered.
        if "gymnasium.make" in code:
            assert "fastrl" in names


def blocks_of(guide):
    text = (ROOT / "docs" / "guide" / f"{guide}.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def names_of(code, **given):
    """Run code after some names are given; return them and those that it defines."""
    exec(compile(code, "guide", "exec"), given)
    return given


def trained(name, *overrides):
    return fastrl.train(load_config(None, [*SHORT, *overrides]), name=name).path


def test_code_of_guides_is_what_a_run_is_made_of(place, capsys):
    algorithm, (model, _, change) = blocks_of("algorithms")[0], blocks_of("fields")
    names, parts, logger = blocks_of("plugins")
    names_of(names)
    for file, code in (("algorithms", algorithm), ("models", model), ("parts", parts + logger)):
        (place / f"my_{file}.py").write_text(code, encoding="utf-8")
    own = (
        *("env.id=CartPole-v1", "model.class_path=my_models:WithLogits"),
        "algorithm={class_path: 'my_algorithms:Reinforce', baseline: 0.25}",
        *("sampler.kind=my_parts:my_sampler", "sampler.engine=my_parts:my_engine"),
        "logging.loggers=['my_parts:Printed']",
    )
    trained("own", *own)
    assert "training 64 " in capsys.readouterr().out
    with fastrl.make_sampler(load_config(None, [*SHORT, *own])) as sampler:
        rollout = sampler.collect()
    assert rollout.logits.shape == (16, 4, 2)
    assert (names_of(change)["shaped"](rollout, rollout.reward).reward == 2).all()
    declared = names_of(blocks_of("fields")[1])
    assert declared["spec"].extras["force"].shape == (3,)


def test_code_of_guides_plays_trained_policies(place):
    run = trained("NAME", "env.id=CartPoleNoVel-v1", "model.recurrent=gru")
    assert names_of(*blocks_of("memory"))["play"](run, 0) > 0
    act, replace, maze, _ = blocks_of("training")
    given = {"observation": np.zeros((3, 2), np.float32), "n": 3, "ended": [0]}
    assert names_of(act + replace, **given)["state"].shape == (3, 2 * 64)
    maze = names_of(maze, gymnasium=gymnasium)["Maze"]()
    maze.set_state({"walls": 1, "position": 2, "steps": 3})
    assert maze.get_state() == {"walls": 1, "position": 2, "steps": 3}
    ladder, play = blocks_of("masks")
    names_of(play)["play"](trained("taxi", "env.id=Taxi-v4"))
    (place / "ladder.py").write_text(ladder, encoding="utf-8")
    trained("ladder", "env.id=ladder:Ladder", "env.max_episode_steps=50")


def test_code_of_guides_reads_demonstrations(tmp_path):
    pytest.importorskip("minari")
    expert, read, mean_return = blocks_of("imitation")
    assert names_of(expert)["lean"](np.float32([0, 0, 0.1, 0])) == 1
    observed = gymnasium.spaces.Box(-9, 9, (3,), np.float32)
    spec = fastrl.EnvSpec("Some-v0", observed, gymnasium.spaces.Discrete(2))
    path = written(tmp_path / "set", spec, [drawn(spec)])
    names_of(read)["read"](path)
    assert names_of(mean_return)["mean_return"](path).isfinite()


@pytest.mark.parametrize("guide", ["training", "sweeps"])
def test_code_of_guides_trains_and_evaluates(guide, place):
    if guide == "sweeps":
        pytest.importorskip("optuna")
    short = (*SHORT[:-2], "logging.tensorboard=false", "evaluation.final_episodes=1")
    code = blocks_of(guide)[-1].replace("n_trials=20", "n_trials=1")
    code = re.sub(r"(cartpole_ppo.yaml\", \[)", rf"\1*{short}, ", code)
    assert str(short) in code
    names_of(code, __name__="__main__")


def test_environments_of_the_guide_run_as_scripts(place, capsys):
    script = place / "my_envs.py"
    for code in sections_with_python(ROOT / "docs" / "guide" / "environments.md"):
        script.write_text(code, encoding="utf-8")
        runpy.run_path(str(script), run_name="__main__")
        assert ("Rollout(index=0" in capsys.readouterr().out) == ("collect" in code)


def test_callbacks_of_the_guide_run_as_the_file_that_they_are(tmp_path, monkeypatch):
    page = ROOT / "docs" / "guide" / "callbacks.md"
    script, transform = sections_with_python(page)
    for name, code in (("curriculum", script), ("novelty", transform)):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    runpy.run_path("curriculum.py", run_name="__main__")
    (run,) = Path("runs").iterdir()
    assert [row["callback/wind"] for row in read_rows(run / "metrics.jsonl")][-1] > 0
    config = load_config(run / "config.yaml", ["run_dir=again", "transforms=['novelty:Novelty']"])
    fastrl.train(config)


@pytest.mark.timeout(300)  # of a dozen commands, most of which start processes
def test_quickstart_works_as_it_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    # Short forms of what takes seconds.
    for long, short in (
        ("60_000", "4_000"),
        ("--budget 20s", "--budget 2s"),
        ("--seconds 1 --repeats 3", "--seconds 0.1 --repeats 2 --warm-up 0"),
    ):
        assert long in text
        text = text.replace(long, short)
    number = 0
    for language, code in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL):
        if language == "yaml":
            Path("reach.yaml").write_text(code, encoding="utf-8")
        elif language == "python":
            number += 1
            named = re.match(r"# (\w+\.py)\n", code)
            script = Path(named[1] if named else f"step_{number}.py")
            script.write_text(code, encoding="utf-8")
            runpy.run_path(str(script), run_name="__main__")
        else:
            for line in code.splitlines():
                if line.startswith("fastrl "):
                    assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert Path("curves.png").exists()
    assert Path("runs/reach/policy.pt").exists()


def test_every_metric_of_a_run_is_on_its_page(tmp_path):
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    known = {*re.findall(r"`([a-z_]+)`", page), "kind"}
    for name in ("ppo", "a2c", "appo", "impala"):
        config = load_config(
            overrides=[
                *("env.id=CartPole-v1", "sampler=serial", "sampler.num_envs=8"),
                *("total_steps=1024", f"algorithm.name={name}", f"run_dir={tmp_path / name}"),
                *("evaluation.every_steps=512", "evaluation.episodes=2"),
                *("evaluation.final_episodes=2", "sampler.rollout_length=64"),
                "faults.bad_numbers=skip_update",
            ]
        )
        run = fastrl.train(config)
        rows = read_rows(run.path / "metrics.jsonl")
        assert {key for row in rows for key in row} <= known


def test_every_decision_is_in_their_index():
    decisions = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    for number, page in enumerate(decisions, 1):
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        assert title.startswith(f"{number}. ")
        assert f"[{title}]({page.name})" in index
