from __future__ import annotations

import pytest

from tests.envs.classic_control.gymnasium_twin import (
    LEARNT,
    NAMES,
    SOLVED,
    random_actions,
    skilled_actions,
    trained_actions,
)
from tests.envs.classic_control.players import BatchPlayer, TensorPlayer, play

PLAYERS = pytest.mark.parametrize("player", [TensorPlayer, BatchPlayer])


@PLAYERS
@pytest.mark.parametrize("name", NAMES)
def test_random_play_equals_gymnasium(name, player):
    play(player(name, 8, seed=3), name, random_actions, 8, 8)


@pytest.mark.parametrize(
    ("behaviour", "wanted"), [(skilled_actions, SOLVED), (trained_actions, LEARNT)]
)
@pytest.mark.parametrize("name", NAMES)
def test_good_play_equals_gymnasium_and_solves_the_task(name, behaviour, wanted):
    played = play(BatchPlayer(name, 8, seed=5), name, behaviour, 8, 16)
    assert played.return_mean > wanted[name]


@pytest.mark.slow
@PLAYERS
@pytest.mark.parametrize("behaviour", [random_actions, skilled_actions, trained_actions])
@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_episodes_equal_gymnasium(name, behaviour, player):
    assert play(player(name, 250, seed=7), name, behaviour, 250, 1000).episodes >= 1000
