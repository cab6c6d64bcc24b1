"""The commands that list and print."""

from __future__ import annotations

from fastrl.cli import main


def test_keys_of_an_algorithm_of_others_are_checked_before_a_run_where_that_is_asked_for(capsys):
    keys = "algorithm={class_path: 'tests.outside:Vpg', basline: 1}"
    command = ["config", "CartPole-v1", keys]
    assert main(command) == 0
    assert "basline: 1" in capsys.readouterr().out
    assert main([*command, "--resolve"]) == 2
    assert "did you mean algorithm.baseline?" in capsys.readouterr().err
    assert main([*command[:2], keys.replace("basline", "baseline"), "--resolve"]) == 0
    assert "gamma: 0.99" in capsys.readouterr().out
