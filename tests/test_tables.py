"""Tables of the pages come from results, and from nothing else."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
sys.path.append(str(ROOT / "docs"))

from write_tables import BEGIN as BEGINS  # noqa: E402
from write_tables import END as ENDS  # noqa: E402
from write_tables import PAGES, TABLES, learning, speed, throughput, write_tables  # noqa: E402

BEGIN, END = BEGINS.format("throughput"), ENDS.format("throughput")

MACHINE = {"cpu": "Some CPU", "cores": 16, "gpu": "Some GPU"}


def comparison(env, fps=100.0, date="2026-01-01", machine=MACHINE):
    return {
        "env": env,
        "date": date,
        "machine": machine,
        "results": [
            {"method": "single-env", "fps_median": 1234.4, "settings": {}},
            {
                "method": "fastrl-best",
                "fps_median": fps,
                "settings": {"envs_per_worker": 8, "num_env_workers": 4, "num_model_workers": 1},
            },
        ],
        "ratios": {"fastrl-best": {"limit": 0.876}},
        "limit_fps": 5000.0,
    }


def tables(results):
    return throughput(results, results.parent)


@pytest.fixture
def results(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    found = {
        "compare_Crafter-v1.json": comparison("Crafter-v1"),
        "compare_CartPole-v1.json": comparison("CartPole-v1", 41000.0),
        "compare_old.json": comparison("CartPole-v1", 7.0, "2025-01-01"),
        "elsewhere/compare_x.json": comparison("x", machine={"cpu": "Other", "cores": 2}),
    }
    for name, value in found.items():
        (tmp_path / name).write_text(json.dumps(value))
    return tmp_path


def test_each_machine_has_a_table_with_its_newest_results(results):
    text = tables(results)
    assert text.index("Some CPU, 16 cores, Some GPU") < text.index("Other, 2 cores")
    name = results.name
    links = [f"[{env}]({name}/compare_{env}.json)" for env in ("CartPole-v1", "Crafter-v1")]
    assert f"| | {' | '.join(links)} |" in text
    assert f"[x]({name}/elsewhere/compare_x.json)" in text
    assert "| **fastrl**, best parameters | 41,000 | 100 |" in text
    assert "| single environment | 1,234 | 1,234 |" in text
    assert "| best n, N, M | 8, 4, 1 | 8, 4, 1 |" in text
    assert "| of which fastrl reaches | 88% | 88% |" in text
    assert "default parameters" not in text


def test_of_two_methods_in_a_row_the_faster_counts(results):
    found = comparison("Pong")
    found["results"].append({"method": "envpool-sync", "fps_median": 7.0, "settings": {}})
    found["results"].append({"method": "envpool-async", "fps_median": 8.0, "settings": {}})
    (results / "compare_Pong.json").write_text(json.dumps(found))
    row = next(line for line in tables(results).splitlines() if "EnvPool" in line)
    assert row.endswith("| – | – | 8 |")


def test_a_default_that_beats_what_a_scan_chose_is_the_best(results):
    found = comparison("Pong", fps=50.0)
    settings = {"envs_per_worker": 64, "num_env_workers": 2, "num_model_workers": 0}
    found["results"].append({"method": "fastrl-default", "fps_median": 60.0, "settings": settings})
    found["ratios"]["fastrl-default"] = {"limit": 0.95}
    (results / "compare_Pong.json").write_text(json.dumps(found))
    first, _ = tables(results).split("Other, 2 cores")
    lines = {line.split("|")[1].strip(): line for line in first.splitlines() if "|" in line}
    assert lines["**fastrl**, best parameters"].endswith("| 60 |")
    assert lines["best n, N, M"].endswith("| 64, 2, 0 |")
    assert lines["of which fastrl reaches"].endswith("| 95% |")


def test_only_what_is_between_the_markers_changes(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_tables(readme, results)
    once = readme.read_text()
    assert once.startswith(f"before\n{BEGIN}\n")
    assert once.endswith(f"{END}\nafter\n")
    assert "old" not in once
    write_tables(readme, results)
    assert readme.read_text() == once


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_markers_must_be_there_once(text, results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match=r"must be there once|no table"):
        write_tables(readme, results)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_hold_what_the_committed_results_say(page):
    text = page.read_text(encoding="utf-8")
    held = [name for name in TABLES if BEGINS.format(name) in text]
    assert held
    for name in held:
        made = f"{BEGINS.format(name)}\n{TABLES[name](RESULTS, page.parent)}\n"
        assert made in text, "run python docs/write_tables.py"


def test_short_table_groups_peers_and_keeps_those_that_are_faster(results):
    found = comparison("Pong", 50.0)
    for method, fps in (("gymnasium-async", 7.0), ("sb3-subproc", 8.0), ("envpool-async", 99.0)):
        found["results"].append({"method": method, "fps_median": fps, "settings": {}})
    (results / "compare_Pong.json").write_text(json.dumps(found))
    text = speed(results, results)
    assert "| worker processes: gymnasium or SB3 | – | – | 8 |" in text
    assert "| batched: gymnasium's own or EnvPool | – | – | 99 |" in text
    assert "best n, N, M" not in text


def test_learning_table_has_spread_over_seeds_and_links():
    text = learning(RESULTS, ROOT)
    found = json.loads((RESULTS / "learning_cartpole_ppo.json").read_text())
    mean, spread = found["eval_return_mean"], found["eval_return_std_over_seeds"]
    link = f"[{mean:,.0f} ± {spread:,.0f}](results/learning_cartpole_ppo.json) | 5 |"
    assert link in text


def test_damaged_or_missing_results_are_named(tmp_path):
    with pytest.raises(ValueError, match="no compare_"):
        tables(tmp_path)
    (tmp_path / "compare_x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"compare_x\.json"):
        tables(tmp_path)


def test_the_committed_results_can_be_shown():
    assert "CartPole-v1" in tables(RESULTS)
