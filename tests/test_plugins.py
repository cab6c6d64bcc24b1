"""What configurations choose of others: by import path, or by the name of an installed plug-in."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml

import fastrl
from fastrl import registry
from fastrl.cli import main
from fastrl.config import (
    Config,
    OpenConfig,
    config_schema,
    config_to_yaml,
    load_config,
    resolved,
)
from fastrl.errors import ConfigError
from fastrl.throughput.benchmark import policy_name
from fastrl.training.trust import named_code
from tests.outside import Small, VpgConfig, doubtful

ENV = "env.id=tests.training.clockwork:Clockwork"
SMALL = {
    "seed": 3,
    "total_steps": 128,
    "env": {"id": "tests.training.clockwork:Clockwork"},
    "sampler": {
        "kind": "serial",
        "envs_per_worker": 4,
        "num_env_workers": 2,
        "rollout_length": 8,
    },
    "evaluation": {"enabled": False},
    "logging": {"tensorboard": False, "every_steps": 64},
}
OUTSIDE = {
    "algorithm": {"class_path": "tests.outside:Vpg", "baseline": 0.25, "learning_rate": 1e-2},
    "model": {"class_path": "tests.outside:Small", "kwargs": {"width": 3}},
    "sampler": {**SMALL["sampler"], "kind": "tests.outside:serial"},
    "logging": {
        **SMALL["logging"],
        "loggers": [
            "tests.outside:Tape",
            {"path": "tests.outside:Tape", "kwargs": {"file": "second"}},
        ],
    },
}


@pytest.fixture
def write(tmp_path):
    def write(**sections) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**SMALL, "run_dir": str(tmp_path / "run"), **sections}))
        return str(path)

    return write


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution that registers what its module says, for the time of a test."""
    registry.entries()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(registry, "_broken", [])
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"fastrl_{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: fastrl-{name}\nVersion: 1.5\n"
        )
        (info / "entry_points.txt").write_text(f"[fastrl.plugins]\n{name} = {name}\n")
        registry._load_plugins.cache_clear()

    yield install
    registry._load_plugins.cache_clear()


THEIRS = """
import fastrl
from tests.outside import Small, Tape, Vpg, doubtful, serial
fastrl.register("algorithm", "vpg", Vpg)
fastrl.register("model", "small", Small)
fastrl.register("sampler", "calm", serial)
fastrl.register("engine", "doubtful", doubtful)
fastrl.register("logger", "tape", Tape)
"""


def refusal(capsys, *arguments: str) -> str:
    """Return the one line with which a command ends, without the kind of its error."""
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("fastrl: error: ").rpartition(" [")[0]


def test_all_that_import_paths_name_trains_and_goes_on(write, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", write(**OUTSIDE)]) == 0
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["algorithm"]["class_path"] == "tests.outside:Vpg"
    assert saved["algorithm"]["baseline"] == 0.25
    assert saved["algorithm"]["gamma"] == 0.99
    assert "entropy_coef" not in saved["algorithm"]
    assert json.loads((run / "summary.json").read_text())["algorithm"] == "Vpg"
    assert main(["resume", str(run), "total_steps=192"]) == 0
    tape = [json.loads(line) for line in (run / "tape").read_text().splitlines()]
    assert [row for row in tape if row[0] == "Vpg"] == [["Vpg", 0], ["Vpg", 128]]
    assert ["training", 192] in tape
    assert (run / "second").read_text() == (run / "tape").read_text()
    assert main(["eval", str(run), "--episodes", "1"]) == 0


def test_all_that_a_plug_in_registers_is_chosen_by_name(write, install, tmp_path, capsys):
    install("theirs", THEIRS)
    config = write(
        algorithm={"name": "vpg", "baseline": 0.25},
        model={"class_path": "small"},
        sampler={**SMALL["sampler"], "engine": "doubtful"},
        logging={**SMALL["logging"], "loggers": ["tape", {"path": "tape", "kwargs": {}}]},
    )
    run = tmp_path / "run"
    assert main(["train", config]) == 0
    assert json.loads((run / "summary.json").read_text())["algorithm"] == "vpg"
    assert json.loads((run / "versions.json").read_text())["plugins"] == {"fastrl-theirs": "1.5"}
    assert len((run / "tape").read_text().splitlines()) >= 4
    assert main(["resume", str(run), "total_steps=192", "sampler.kind=calm"]) == 0
    assert main(["eval", str(run), "--episodes", "1"]) == 0


def test_run_whose_plug_in_is_gone_is_left_as_it_is(write, install, tmp_path, capsys):
    install("theirs", THEIRS)
    run = tmp_path / "run"
    assert main(["train", write(algorithm={"name": "vpg"}, sampler={
        **SMALL["sampler"], "kind": "calm"})]) == 0  # fmt: skip
    shutil.rmtree(tmp_path / "fastrl_theirs-1.5.dist-info")
    for key in [key for key, entry in registry._entries.items() if entry.source != "fastrl"]:
        del registry._entries[key]
    registry._load_plugins.cache_clear()
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for command in ("resume", "eval"):
        assert refusal(capsys, command, str(run)) == (
            f"{run}/config.yaml: sampler.kind: no sampler 'calm'; there are dagger, dataset, "
            "device, process, serial; this run had plug-ins that are not installed: "
            "fastrl-theirs 1.5"
        )
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_plug_ins_are_listed_with_their_versions_and_the_schema_has_their_sections(install, capsys):
    install("theirs", THEIRS)
    install("torn", "raise RuntimeError('not today')\n")
    assert main(["plugins"]) == 0
    out, err = capsys.readouterr()
    rows = [line.strip().split(maxsplit=2) for line in out.splitlines()]
    assert ["algorithm", "ppo", "fastrl"] in rows
    assert ["algorithm", "vpg", "fastrl-theirs 1.5"] in rows
    assert rows[-1][:2] == ["plug-in", "torn"]
    assert rows[-1][2].split(maxsplit=2)[2] == "RuntimeError: not today"
    assert not err
    schema = config_schema()
    assert schema["$defs"]["VpgConfig"]["properties"]["baseline"]["maximum"] == 1
    assert schema["$defs"]["VpgConfig"]["properties"]["name"]["const"] == "vpg"
    listed = [part["$ref"] for part in schema["properties"]["algorithm"]["anyOf"]]
    assert listed == [f"#/$defs/{name}" for name in
                      ("A2CConfig", "AIRLConfig", "APPOConfig", "BCConfig", "DAggerConfig",
                       "GAILConfig", "ImpalaConfig", "PPOConfig", "VpgConfig",
                       "OpenConfig")]  # fmt: skip
    assert schema["$defs"]["OpenConfig"]["required"] == ["class_path"]


def test_without_plug_ins_one_line_says_so(capsys, monkeypatch):
    # What other tests have registered is not there.
    ours = {(each.kind, each.name): each for each in registry.entries() if each.source == "fastrl"}
    monkeypatch.setattr(registry, "_entries", ours)
    assert main(["plugins"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 + len(registry.entries())
    assert err.startswith("no plug-in is installed; docs/guide/plugins.md shows how")


@pytest.mark.parametrize(
    "override",
    [
        "algorithm.class_path=no.such:Thing",
        "sampler.kind=no.such:thing",
        "sampler.engine=no.such:thing",
        "model.class_path=no.such:Thing",
        "logging.loggers=['no.such:Thing']",
    ],
)
def test_nothing_is_imported_or_made_before_a_run_starts(
    override, write, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    key = override.partition("=")[0]
    assert main(["config", write(), override]) == 0
    assert "no.such:" in capsys.readouterr().out
    line = refusal(capsys, "train", write(), override)
    assert line.startswith(f"{key}: 'no.such:")
    assert "cannot be imported: No module named 'no'; looked in" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["algorithm.class_path=tests.outside:Vpg", "algorithm.baselin=1"],
            "configuration: algorithm.baselin: unknown key; did you mean algorithm.baseline?",
        ),
        (
            ["algorithm.class_path=tests.outside:Vpg", "algorithm.entropy_coef=1"],
            "configuration: algorithm.entropy_coef: unknown key; it belongs to algorithm.name: ppo",
        ),
        (
            ["algorithm.class_path=tests.outside:Vpg", "algorithm.baseline=2"],
            "configuration: algorithm.baseline: must be a number of at least 0 and at most 1; "
            "got 2",
        ),
        (
            ["algorithm.class_path=tests.outside:Vpg", "algorithm.learning_rate_warmup=1e9"],
            "configuration: algorithm.learning_rate_warmup: must be less than total_steps (128), "
            "got 1e+09",
        ),
        (
            ["algorithm.class_path=tests.outside:Sectionless"],
            "algorithm.class_path: 'tests.outside:Sectionless' must be an Algorithm whose "
            "section_type is a subclass of fastrl.config.LearnerConfig; its section_type is None",
        ),
        (
            ["algorithm.class_path=tests.outside:Unlike"],
            "algorithm.class_path: 'tests.outside:Unlike' must be an Algorithm, got "
            "<tests.outside.Unlike object",
        ),
        (
            ["algorithm.class_path=tests.outside:Tamed", "algorithm.epochs=13"],
            "configuration: algorithm: Value error, 13 epochs are none",
        ),
        (
            ["algorithm.class_path=tests.outside:Tamed", "algorithm.epochs=14"],
            "configuration: algorithm.class_path: TamedConfig does not validate its keys: KeyError",
        ),
        (
            ["logging.loggers=[{path: 'tests.outside:Tape', kwargs: {fil: x}}]"],
            "logging.loggers: 'tests.outside:Tape' does not take (run, config, steps) and its "
            "kwargs: got an unexpected keyword argument 'fil'",
        ),
        (["sampler.engine=tests.outside:nothing"], "sampler.engine: "),
    ],
)
def test_mistakes_are_one_line_before_anything_is_made(overrides, told, write, tmp_path, capsys):
    line = refusal(capsys, "train", write(), *overrides)
    assert line.startswith(told)
    if "engine" not in told:
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["sampler.kind=tests.outside:nothing"],
            "sampler.kind: 'tests.outside:nothing' must be a Sampler, got None",
        ),
        (["sampler.kind=tests.outside:refusing"], "not on a Sunday"),
        (
            ["sampler.kind=tests.outside:doubtful"],
            "sampler.kind: 'tests.outside:doubtful' cannot be built: TypeError: doubtful() takes",
        ),
        (
            ["logging.loggers=['tests.outside:nothing']"],
            "logging.loggers: 'tests.outside:nothing' must have write, close, got None",
        ),
    ],
)
def test_what_returns_something_else_is_one_line(overrides, told, write, capsys):
    line = refusal(capsys, "train", write(), *overrides)
    assert line.startswith(told)


def test_logger_that_fails_ends_the_run_saved(write, tmp_path, capsys):
    torn = "logging.loggers=[{path: 'tests.outside:Tape', kwargs: {fail_at: 128}}]"
    line = refusal(capsys, "train", write(), torn)
    assert line == "logging.loggers: 'tests.outside:Tape' failed: RuntimeError: the tape is torn"
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_section_of_a_class_path_is_kept_as_it_is_until_it_is_resolved(tmp_path):
    given = {"class_path": "tests.outside:Vpg", "baseline": 1, "adam_betas": [0.5, 0.9]}
    config = Config.model_validate({**SMALL, "algorithm": given})
    assert isinstance(config.algorithm, OpenConfig)
    assert yaml.safe_load(config_to_yaml(config))["algorithm"] == given
    done = resolved(config)
    assert isinstance(done.algorithm, VpgConfig)
    assert (done.algorithm.name, done.algorithm.baseline) == ("Vpg", 1.0)
    (tmp_path / "saved.yaml").write_text(config_to_yaml(done))
    again = load_config(tmp_path / "saved.yaml")
    assert isinstance(again.algorithm, OpenConfig)
    assert resolved(again) == done
    assert resolved(done) is done


@pytest.mark.parametrize(("path", "name"), [("Named", "mine"), ("Tamed", "Tamed"), ("Vpg", "Vpg")])
def test_an_algorithm_is_called_by_its_section_or_its_class(path, name):
    config = load_config(None, [ENV, f"algorithm.class_path=tests.outside:{path}"])
    assert resolved(config).algorithm.name == name
    config = load_config(
        None, [ENV, f"algorithm.class_path=tests.outside:{path}", "algorithm.name=other"]
    )
    assert resolved(config).algorithm.name == "other"


def test_engine_that_ran_is_reported():
    overrides = ["sampler.num_env_workers=1", "sampler.engine=tests.outside:doubtful"]
    config = load_config(None, [ENV, *overrides, "model.class_path=tests.outside:Small"])
    plan = fastrl.make_plan(config)
    assert plan.engine is doubtful
    assert policy_name(config, plan) == "tests.outside:Small, Doubtful engine"


def test_workers_run_what_the_program_has_registered(monkeypatch):
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    class Here(Small):
        pass

    fastrl.register("model", "here", Here)
    fastrl.register("engine", "here", lambda model, device: doubtful(model, device))
    keys = ["model.class_path=here", "sampler.engine=here", "sampler.num_env_workers=1"]
    config = load_config(None, [ENV, "sampler.rollout_length=4", *keys])
    with fastrl.make_sampler(config) as sampler:
        assert torch.isfinite(sampler.collect().log_prob).all()


def _code_keys(schema, part, prefix=""):
    """Yield each key whose values may be import paths, by what the JSON schema allows."""
    for name, field in part["properties"].items():
        refs = [each.get("$ref", "") for each in (field, *field.get("anyOf", ()))]
        for ref in refs:
            if ref and name != "algorithm":
                yield from _code_keys(schema, schema["$defs"][ref.rpartition("/")[2]], f"{name}.")
        if not any(refs) and "package.module" in json.dumps(field) and name != "id":
            yield f"{prefix}{name}", "items" in field


def test_trust_is_asked_for_every_key_that_may_name_code():
    schema = Config.model_json_schema()
    found = dict(_code_keys(schema, schema))
    known = {"env.wrappers", "sampler.kind", "sampler.engine", "model.class_path"}
    assert known | {"logging.loggers"} <= found.keys()
    for key, is_list in {**found, "algorithm.class_path": False}.items():
        value = "['a.b:C', {path: 'a.b:D', kwargs: {x: 1}}]" if is_list else "a.b:C"
        named = named_code(load_config(None, ["env.id=CartPole-v1", f"{key}={value}"]))
        assert named == [f"'a.b:{name}' ({key})" for name in ("CD" if is_list else "C")]


def test_path_in_a_section_of_a_plug_in_needs_trust(install):
    install("theirs", THEIRS)
    config = load_config(None, [ENV, "algorithm.name=vpg", "algorithm.shape=a.b:C"])
    assert "'a.b:C' (algorithm.shape)" in named_code(config)
    with pytest.raises(ConfigError, match=r"algorithm.shape: must be text such as"):
        load_config(None, [ENV, "algorithm.name=vpg", "algorithm.shape=abc"])


def test_signature_covers_what_the_configuration_says_about_new_code(
    write, tmp_path, monkeypatch, capsys
):
    assert main(["train", write(**OUTSIDE)]) == 0
    run = tmp_path / "run"
    for section, key, value in [
        ("algorithm", "baseline", 0.75),
        ("algorithm", "class_path", "tests.outside:Named"),
        ("sampler", "kind", "tests.outside:nothing"),
        ("sampler", "engine", "tests.outside:doubtful"),
        ("logging", "loggers", ["tests.outside:nothing"]),
    ]:
        tree = yaml.safe_load((run / "config.yaml").read_text())
        tree[section][key] = value
        copy = tmp_path / "copy"
        shutil.copytree(run, copy)
        (copy / "config.yaml").write_text(yaml.safe_dump(tree))
        capsys.readouterr()
        line = refusal(capsys, "eval", str(copy))
        assert "was not trained by this user, and would import" in line
        assert "'tests.outside:Small' (model.class_path)" in line
        shutil.rmtree(copy)
