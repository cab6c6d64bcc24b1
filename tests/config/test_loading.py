from __future__ import annotations

import json
import os

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrl.config import (
    A2CConfig,
    Config,
    PPOConfig,
    config_schema,
    config_to_yaml,
    load_config,
    save_config,
)
from fastrl.errors import ConfigError
from fastrl.sampling import make_plan

ENV = "env.id=CartPole-v1"


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_file_overrides_defaults(write):
    config = load_config(write("a.yaml", "seed: 3\nenv: {id: Pendulum-v1}\n"))
    assert (config.seed, config.env.id, config.total_steps) == (3, "Pendulum-v1", 1_000_000)


def test_overlay_is_laid_over_its_base_key_by_key(write):
    write("base/low.yaml", "env: {id: A, kwargs: {x: 1, y: 2}}\nsampler: {groups: 2}\n")
    write("base/mid.yaml", "base: low.yaml\nsampler: {rollout_length: 8}\n")
    config = load_config(write("top.yaml", "base: base/mid.yaml\nenv: {kwargs: {y: 3}}\n"))
    assert config.env.kwargs == {"x": 1, "y": 3}
    assert (config.sampler.groups, config.sampler.rollout_length) == (2, 8)


def test_lists_are_replaced_whole(write):
    write("base.yaml", "env: {id: A}\nmodel: {hidden_sizes: [1, 2, 3]}\n")
    config = load_config(write("top.yaml", "base: base.yaml\nmodel: {hidden_sizes: [9]}\n"))
    assert config.model.hidden_sizes == (9,)


def test_section_left_empty_changes_nothing(write):
    write("base.yaml", "env: {id: A}\nsampler: {groups: 4}\nrun_dir: here\n")
    config = load_config(write("top.yaml", "base: base.yaml\nsampler:\n  # groups: 1\nrun_dir:\n"))
    assert (config.sampler.groups, config.run_dir) == (4, None)


def test_either_number_of_environments_refines_the_other(write):
    write("base.yaml", "env: {id: A}\nsampler: {num_envs: 8, num_env_workers: 2}\n")
    path = write("top.yaml", "base: base.yaml\nsampler: {envs_per_worker: 5}\n")
    assert load_config(path).topology.num_envs == 10
    assert load_config(path, ["sampler.num_envs=6"]).topology.num_envs == 6
    found = load_config(path, ["sampler.num_envs=6", "sampler.envs_per_worker=3"])
    assert found.topology.num_envs == 6
    assert load_config(path, ["sampler.num_env_workers=3"]).topology.num_envs == 15
    three = [f"sampler.{key}" for key in ("num_envs=6", "envs_per_worker=2", "num_env_workers=2")]
    refused = _refusal(path, three)
    assert refused.startswith("override: sampler.num_envs: must be sampler.envs_per_worker × ")


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        (["num_env_workers=4"], (2, 4)),
        (["num_envs=6"], (3, 2)),
        (["envs_per_worker=3"], (3, 2)),
        (["num_envs=6", "envs_per_worker=2"], (2, 3)),
        (["num_envs=6", "num_env_workers=3"], (2, 3)),
        (["envs_per_worker=5", "num_env_workers=3"], (5, 3)),
        (["groups=2"], (4, 2)),
    ],
)
def test_each_size_refines_a_file_that_gives_all_three(write, overrides, sizes):
    path = write(
        "tuned.yaml",
        "env: {id: A}\nsampler: {num_envs: 8, envs_per_worker: 4, num_env_workers: 2}\n",
    )
    found = load_config(path, [f"sampler.{each}" for each in overrides]).topology
    assert (found.envs_per_worker, found.num_env_workers) == sizes


def test_overrides_win_over_files_and_later_over_earlier(write):
    path = write("a.yaml", "env: {id: A}\nseed: 1\n")
    assert load_config(path, ["seed=2", "seed=3"]).seed == 3


def test_override_values_are_yaml():
    config = load_config(
        None,
        [
            ENV,
            "model.hidden_sizes=[32, 16]",
            "algorithm.learning_rate=1e-3",
            "checkpoint.every_s=null",
            "env.kwargs={render_mode: rgb_array}",
            "env.kwargs.sutton=true",
        ],
    )
    assert config.model.hidden_sizes == (32, 16)
    assert config.algorithm.learning_rate == 0.001
    assert config.checkpoint.every_s is None
    assert config.env.kwargs == {"render_mode": "rgb_array", "sutton": True}


@pytest.mark.parametrize("word", ["off", "false", "'off'"])
def test_masks_are_turned_off_by_the_word_and_by_what_yaml_reads_it_as(word):
    assert load_config(None, [ENV, f"env.action_mask={word}"]).env.action_mask == "off"


def test_override_changes_the_algorithm():
    assert load_config(None, [ENV, "algorithm.name=a2c"]).algorithm.name == "a2c"


def test_another_algorithm_replaces_the_keys_that_it_lacks(write):
    ppo = write(
        "ppo.yaml", "env: {id: CartPole-v1}\nalgorithm: {epochs: 3, clip_range: 0.1, gamma: 0.5}"
    )
    assert load_config(ppo, ["algorithm.name=a2c"]).algorithm == A2CConfig(gamma=0.5)
    file = write("a2c.yaml", "base: ppo.yaml\nalgorithm: {name: a2c, vtrace: true}")
    assert load_config(file).algorithm == A2CConfig(gamma=0.5, vtrace=True)
    back = load_config(file, ["algorithm.name=ppo"]).algorithm
    assert back == PPOConfig(gamma=0.5)
    for overrides in (["algorithm.epochs=3"], ["algorithm.epochz=3"]):
        with pytest.raises(ConfigError, match=r"algorithm\.epoch.: unknown key"):
            load_config(ppo, ["algorithm.name=a2c", *overrides])
    with pytest.raises(ConfigError, match=r"algorithm\.epochz: unknown key"):
        load_config(
            write("typo.yaml", "env: {id: a}\nalgorithm: {epochz: 3}"), ["algorithm.name=a2c"]
        )


def test_saved_configuration_is_read_back_equal(tmp_path, tiny_config):
    save_config(tiny_config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == tiny_config


@given(
    text=st.text(max_size=20),
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | st.text(max_size=9)
        # -0.0 and NaN differ from what is read back only by Python's idea of equality.
        | st.floats(allow_nan=False),
        lambda children: (
            st.lists(children, max_size=3)
            | st.dictionaries(st.text(max_size=5), children, max_size=3)
        ),
        max_leaves=8,
    ),
)
def test_any_value_survives_being_written_and_read(tmp_path_factory, text, value):
    config = Config.model_validate({"env": {"id": f"E{text}", "kwargs": {text: value}}})
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    save_config(config, path)
    assert load_config(path) == config


def test_wrappers_with_and_without_arguments_are_read_back_equal(tmp_path):
    given = "env.wrappers=[a.b:C, {path: 'a:D', kwargs: {size: [4, {x: null}]}}, {path: 'a:E'}]"
    config = load_config(None, [ENV, given])
    assert config.env.wrapper_paths == ("a.b:C", "a:D", "a:E")
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_unwritable_place_is_one_line(tiny_config, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.yaml' cannot be written: No such file"):
        save_config(tiny_config, tmp_path / "missing" / "config.yaml")
    with pytest.raises(ConfigError, match=r"^save_config takes a Config, got \{\}$"):
        save_config({}, tmp_path / "config.yaml")


def test_schema_accepts_overlays_and_describes_every_key():
    schema = config_schema()
    assert set(schema["properties"]) == {"base", *Config.model_fields}
    assert "required" not in schema
    sampler = schema["$defs"]["SamplerConfig"]
    assert sampler["additionalProperties"] is False
    assert sampler["properties"]["groups"]["minimum"] == 1


def _refusal(*arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_missing_file_names_the_nearest_one(write):
    path = write("cartpole_ppo.yaml", "")
    message = _refusal(path.with_name("cartpol_ppo.yaml"))
    assert message.endswith(f"cartpol_ppo.yaml: no such file; did you mean {path}?")


def test_missing_base_is_named_with_the_file_that_names_it(write):
    path = write("a.yaml", "base: sub/b.yaml\n")
    looked_for = path.parent / "sub" / "b.yaml"
    assert _refusal(path) == f"{path}: base: {looked_for}: no such file"


def test_directory_is_not_a_file(tmp_path):
    assert _refusal(tmp_path) == f"{tmp_path}: not a file"


def test_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert _refusal(tmp_path / "pipe").endswith("pipe: not a file")


def test_large_file_is_not_parsed(write):
    assert "larger than" in _refusal(write("big.yaml", "# " + "x" * 300_000))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    assert _refusal(tmp_path / "a.yaml").endswith("a.yaml: not a text file in UTF-8")


def test_files_that_refine_each_other_are_refused(write):
    write("b.yaml", "base: c.yaml\n")
    write("c.yaml", "base: b.yaml\n")
    path = write("a.yaml", "base: b.yaml\n")
    assert _refusal(path) == (
        f"{path.with_name('c.yaml')}: base: files refer to each other: b.yaml -> c.yaml -> b.yaml"
    )


def test_long_chain_of_bases_is_refused(write):
    for i in range(60):
        write(f"{i}.yaml", f"base: {i + 1}.yaml\n")
    last = write("60.yaml", "env: {id: A}\n")
    assert "more than 32 files" in _refusal(last.with_name("0.yaml"))


@pytest.mark.parametrize("base", ["3", "[a]", "''", "{a: 1}"])
def test_base_must_be_a_file_name(write, base):
    message = _refusal(write("a.yaml", f"base: {base}\n"))
    assert "base: must be the name of a YAML file" in message


@pytest.mark.parametrize("text", ["- a\n", "3\n", "text\n"])
def test_file_must_be_a_mapping(write, text):
    assert _refusal(write("a.yaml", text)).endswith("must be a mapping of keys to values")


def test_empty_file_is_a_configuration_without_keys(write):
    assert load_config(write("a.yaml", ""), [ENV]).env.id == "CartPole-v1"


@pytest.mark.parametrize("overrides", ["seed=1", {"seed": 1}, [1], None, 3])
def test_overrides_must_be_a_list_of_texts(overrides):
    assert _refusal(None, overrides).startswith('overrides are a list of texts, such as ["seed=1"]')


@pytest.mark.parametrize("path", [3, {"env": {"id": "A"}}, Config(env={"id": "A"})])
def test_file_is_given_by_its_path(path):
    assert _refusal(path).startswith("path must be a path, got ")


@pytest.mark.parametrize("override", ["seed", "=3", ".seed=3", "sampler..groups=1", ""])
def test_override_must_be_key_equals_value(override):
    assert _refusal(None, [override]).startswith(f"override '{override}': must be key=value")


def test_syntax_error_names_the_line(write):
    assert "a.yaml:3: " in _refusal(write("a.yaml", "seed: 1\nenv:\n  id: a: b\ntotal_steps: 1\n"))


def test_error_names_the_file_that_holds_the_key(write):
    write("base.yaml", "env: {id: A}\nsampler: {groups: 0}\n")
    path = write("top.yaml", "base: base.yaml\nseed: -1\n")
    assert f"{path.with_name('base.yaml')}: sampler.groups: " in _refusal(path, ["seed=1"])
    assert f"{path}: seed: " in _refusal(path, ["sampler.groups=1"])
    assert "override: seed: " in _refusal(path, ["sampler.groups=1", "seed=-2"])


_KEYS = st.sampled_from(
    [*Config.model_fields, "id", "kwargs", "groups", "name", "device", "base", "x", "\n", "", "a.b"]
)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "ppo", "a2c", "cpu", "sync", "a.b:c", "linear", "CartPole-v1"])
)
_TREES = st.recursive(
    _SCALARS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(_KEYS, children, max_size=5),
    max_leaves=20,
)


def _one_line_or_config(*arguments) -> None:
    try:
        text = config_to_yaml(load_config(*arguments))
    except ConfigError as error:
        text = ""
        message = str(error)
    assert text or (message.isprintable() and len(message.splitlines()) == 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=_TREES)
def test_any_tree_is_a_configuration_or_one_line(write, tree):
    _one_line_or_config(write("fuzz.yaml", yaml.safe_dump(tree)))


def _real_keys() -> list[str]:
    tree = Config.model_validate({"env": {"id": "A"}}).model_dump()
    return [
        f"{section}.{key}" if isinstance(keys, dict) else section
        for section, keys in tree.items()
        for key in (keys if isinstance(keys, dict) else [""])
    ]


@given(key=st.sampled_from(_real_keys()), tree=_TREES, more=st.text(max_size=4))
def test_any_value_of_any_key_is_a_configuration_or_one_line(key, tree, more):
    _one_line_or_config(None, [ENV, f"{key}={json.dumps(tree)}"])
    _one_line_or_config(None, [ENV, f"{key}{more}={json.dumps(tree)}"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=60) | st.text(alphabet="{}[]:,-&*!|>'\"%@`#? \n\tab01.~<=", max_size=60)
)
def test_any_text_is_a_configuration_or_one_line(tmp_path, text):
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    _one_line_or_config(path)
    _one_line_or_config(None, [text])
    _one_line_or_config(None, [ENV, f"env.kwargs.x={text}"])


@given(name=st.text(min_size=1, max_size=300))
def test_any_file_name_is_a_configuration_or_one_line(name):
    _one_line_or_config(name)


@pytest.mark.parametrize(
    ("keys", "length"),
    [
        ((), 64),
        (("algorithm.minibatch_size=256",), 128),
        (("algorithm.minibatch_size=96",), 32),
        (("algorithm.sequence_length=16",), 16),
        (("algorithm.name=a2c",), 128),
    ],
)
def test_sequences_are_as_long_as_minibatches_allow(write, keys, length):
    path = write("a.yaml", "env: {id: CartPole-v1}\nmodel: {recurrent: gru}\n")
    config = load_config(path, keys)
    assert config.sequence_length == length
    assert make_plan(config).sequence_length == length
