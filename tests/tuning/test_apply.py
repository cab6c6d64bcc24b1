"""A candidate reaches configurations, their files and overlays, and nothing else changes."""

import pytest

from fastrl.config import load_config
from fastrl.errors import ConfigError
from fastrl.tuning import Candidate
from fastrl.tuning.apply import candidate_of, with_candidate, write_into, write_overlay

TEXT = """\
# What this file is for.
env:
  id: CartPole-v1  # a usual first try
sampler:
  envs_per_worker: 4   # small
  # as many as there are cores
  num_env_workers: auto
  rollout_length: 32
model:
  hidden_sizes: [64, 64]
"""
BEST = Candidate(64, 3, 1, 2)
FAR = Candidate(8, 4, 2, 1, "cuda:0,cuda:1", "eager", 2)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("candidate", [BEST, FAR])
def test_a_configuration_takes_a_candidate_and_gives_it_back(candidate):
    config = load_config(None, ["env.id=CartPole-v1"])
    assert candidate_of(with_candidate(config, candidate)) == candidate


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_writing_keeps_links_modes_and_line_ends(tmp_path, newline, mark):
    (tmp_path / "kept").mkdir()
    file, link = tmp_path / "kept" / "run.yaml", tmp_path / "link.yaml"
    file.write_bytes((mark + TEXT.replace("\n", newline)).encode())
    file.chmod(0o640)
    link.symlink_to(file)
    before = load_config(link)
    write_into(link, before, BEST)
    assert link.readlink() == file
    assert file.stat().st_mode & 0o777 == 0o640
    text = file.read_bytes().decode()
    assert text.startswith(f"{mark}# What this file is for.{newline}")
    assert text.count("\n") == text.count(newline)
    assert load_config(link) == with_candidate(before, BEST)
    assert {*tmp_path.rglob("*")} == {file.parent, file, link}


@pytest.mark.parametrize("candidate", [BEST, FAR])
def test_writing_keeps_comments_and_all_other_keys(path, candidate):
    before = load_config(path)
    write_into(path, before, candidate)
    text = path.read_text()
    for comment in ("# What this file is for.", "# a usual first try", "# as many as there"):
        assert comment in text
    assert "rollout_length: 32" in text
    assert "hidden_sizes: [64, 64]" in text
    assert load_config(path) == with_candidate(before, candidate)
    assert ("engine" in text) == (candidate is FAR)
    assert list(path.parent.iterdir()) == [path]


def test_a_file_without_the_section_gets_one(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("env:\n  id: CartPole-v1\n")
    write_into(path, load_config(path), BEST)
    assert candidate_of(load_config(path)) == BEST


def test_an_overlay_names_its_base_from_where_it_lies(path, tmp_path):
    (tmp_path / "tuned").mkdir()
    overlay = tmp_path / "tuned" / "best.yaml"
    before = load_config(path)
    write_overlay(overlay, path, before, FAR)
    assert "../run.yaml" in overlay.read_text()
    assert load_config(overlay) == with_candidate(before, FAR)
    assert path.read_text() == TEXT


def test_an_overlay_needs_no_base(tmp_path):
    config = load_config(None, ["env.id=Pendulum-v1"])
    write_overlay(tmp_path / "x.yaml", None, config, BEST)
    assert load_config(tmp_path / "x.yaml") == with_candidate(config, BEST)


def test_a_file_that_cannot_be_written_stays_as_it_was(path):
    with pytest.raises(ConfigError, match=r"missing\.yaml cannot be changed"):
        write_into(path.parent / "missing.yaml", load_config(path), BEST)
    path.write_text("env: [\n")
    with pytest.raises(ConfigError, match="cannot be changed"):
        write_into(path, load_config(None, ["env.id=x"]), BEST)
    assert path.read_text() == "env: [\n"


def test_what_the_command_line_had_asked_for_is_written_as_well(path, tmp_path):
    """A file that says less than its overrides would otherwise sample in another way."""
    best = BEST.but(engine="eager", torch_threads=2)
    config = load_config(path, ["sampler.engine=eager", "sampler.torch_threads=2"])
    write_overlay(tmp_path / "overlay.yaml", path, config, best)
    assert candidate_of(load_config(tmp_path / "overlay.yaml")) == best
    write_overlay(tmp_path / "alone.yaml", None, config, best)
    assert candidate_of(load_config(tmp_path / "alone.yaml")) == best
    write_into(path, config, best)
    assert candidate_of(load_config(path)) == best


@pytest.mark.parametrize("sampler", ["auto", "{tune_s: 60, envs_per_worker: 4}"])
def test_what_was_found_is_not_looked_for_again(tmp_path, sampler):
    """A time for tuning that stayed would put it aside."""
    path, overlay = tmp_path / "run.yaml", tmp_path / "overlay.yaml"
    path.write_text(f"env: {{id: CartPole-v1}}\nsampler: {sampler}\n")
    (tmp_path / "above.yaml").write_text("base: run.yaml\nsampler:\n  groups: 1  # kept\n")
    write_overlay(overlay, path, load_config(path), BEST)
    write_into(tmp_path / "above.yaml", load_config(tmp_path / "above.yaml"), BEST)
    found = [load_config(overlay), load_config(tmp_path / "above.yaml")]
    write_into(path, load_config(path), BEST)
    for config in (*found, load_config(path)):
        assert config.sampler.tune_s is None
        assert candidate_of(config) == BEST
    assert "tune_s" not in path.read_text()
    assert "groups: 2  # kept" in (tmp_path / "above.yaml").read_text()
