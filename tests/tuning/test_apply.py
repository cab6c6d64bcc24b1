"""A candidate reaches configurations and overlays, and nothing else changes."""

import pytest

from fastrl.cli.speed import write_overlay
from fastrl.config import load_config
from fastrl.durable import WriteError
from fastrl.tuning import Candidate
from fastrl.tuning.space import candidate_of, with_candidate

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


def test_an_overlay_that_cannot_be_written_is_told_in_one_line(path):
    with pytest.raises(WriteError, match=r"missing/x\.yaml' cannot be written: No such file"):
        write_overlay(path.parent / "missing" / "x.yaml", path, load_config(path), BEST)


def test_a_link_stays_one(path, tmp_path):
    (tmp_path / "kept").mkdir()
    file, link = tmp_path / "kept" / "overlay.yaml", tmp_path / "link.yaml"
    link.symlink_to(file)
    write_overlay(link, path, load_config(path), BEST)
    assert link.readlink() == file
    assert candidate_of(load_config(file)) == BEST


def test_what_the_command_line_had_asked_for_is_written_as_well(path, tmp_path):
    """A file that says less than its overrides would otherwise sample in another way."""
    best = BEST.but(engine="eager", torch_threads=2)
    config = load_config(path, ["sampler.engine=eager", "sampler.torch_threads=2"])
    for name, base in (("overlay.yaml", path), ("alone.yaml", None)):
        write_overlay(tmp_path / name, base, config, best)
        assert candidate_of(load_config(tmp_path / name)) == best


@pytest.mark.parametrize("sampler", ["auto", "{tune_s: 60, envs_per_worker: 4}"])
def test_what_was_found_is_not_looked_for_again(tmp_path, sampler):
    """A time for tuning that stayed would put it aside."""
    path, overlay = tmp_path / "run.yaml", tmp_path / "overlay.yaml"
    path.write_text(f"env: {{id: CartPole-v1}}\nsampler: {sampler}\n")
    write_overlay(overlay, path, load_config(path), BEST)
    found = load_config(overlay)
    assert found.sampler.tune_s is None
    assert candidate_of(found) == BEST
