from __future__ import annotations

import pytest

from tests.envs.classic_control.gymnasium_twin import (
    FIRST,
    LEARNT,
    NAMES,
    SOLVED,
    random_actions,
    skilled_actions,
    trained_actions,
)
from tests.envs.classic_control.players import BatchPlayer, TensorPlayer, play


@pytest.mark.parametrize("name", FIRST)
def test_random_play_of_tensors_equals_gymnasium(name):
    play(TensorPlayer(name, 8, seed=3), name, random_actions, 8, 8)


@pytest.mark.parametrize("name", NAMES)
def test_random_play_equals_gymnasium(name):
    play(BatchPlayer(name, 8, seed=3), name, random_actions, 8, 8)


@pytest.mark.parametrize("name", NAMES)
def test_skilled_play_equals_gymnasium_and_solves_the_task(name):
    played = play(BatchPlayer(name, 8, seed=5), name, skilled_actions, 8, 16)
    assert played.return_mean > SOLVED[name]


@pytest.mark.parametrize("name", FIRST)
def test_what_was_learnt_here_works_in_gymnasium(name):
    played = play(BatchPlayer(name, 8, seed=5), name, trained_actions, 8, 16)
    assert played.return_mean > LEARNT[name]


@pytest.mark.slow
@pytest.mark.parametrize("player", [TensorPlayer, BatchPlayer])
@pytest.mark.parametrize("behaviour", [random_actions, skilled_actions, trained_actions])
@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_episodes_equal_gymnasium(name, behaviour, player):
    assert play(player(name, 250, seed=7), name, behaviour, 250, 1000).episodes >= 1000
