"""The batch beside the original: every pixel, reward, item, achievement, position and end."""

from __future__ import annotations

import pytest

from tests.envs.crafter_native.players import EVERYTHING, POLICIES
from tests.envs.crafter_native.reference import ACHIEVEMENTS, Comparison, random_policy
from tests.envs.crafter_native.settler import Settler, farmer, fighter, sleeper


def test_random_play_is_identical():
    comparison = Comparison([0, 1, 2**31 - 1], random_policy).run(400)
    comparison.same_worlds()
    assert comparison.deaths >= 3
    assert comparison.nights > 100


def test_building_mining_and_fighting_are_identical():
    comparison = Comparison([2], Settler(), gifts={"health": 9}, length=None)
    comparison.run(2400).same_worlds()
    assert len(comparison.reached()) >= 20
    assert comparison.sleeping > 200
    assert {"make_iron_pickaxe", "collect_diamond"} <= comparison.reached()


def test_farming_is_identical():
    # A world too small for creatures, which would trample the plants.
    comparison = Comparison([1, 2], farmer, gifts=EVERYTHING | {"energy": 9}, area=(5, 5))
    comparison.run(700).same_worlds()
    assert "eat_plant" in comparison.reached()


def test_sleeping_through_the_night_is_identical():
    comparison = Comparison([5], sleeper, gifts={"health": 9}).run(700)
    comparison.same_worlds()
    assert comparison.sleeping > 100
    assert "wake_up" in comparison.reached()


def test_fighting_until_death_is_identical():
    comparison = Comparison([7, 8], fighter).run(300)
    comparison.same_worlds()
    assert comparison.deaths > 0


@pytest.mark.parametrize(
    "options",
    [
        {"area": (9, 9)},
        {"area": (20, 31), "view": (7, 5), "size": (50, 41)},
        {"area": (2, 3), "length": 50},
        {"view": (4, 9), "size": (130, 97), "length": 30},
        {"view": 16, "size": 80},
        {"reward": False, "length": 25},
    ],
)
def test_options_are_those_of_the_original(options):
    # With everything at hand, random players build, plant and make at the edge of the world too.
    comparison = Comparison([11], random_policy, gifts=EVERYTHING, **options).run(130)
    comparison.same_worlds()
    assert comparison.time_outs >= (130 // options["length"] if "length" in options else 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("first_seed", range(0, 40, 10))
def test_long_play_is_identical(policy, first_seed):
    # 280 seeds, 2,000 steps each.
    offset = 1000 * list(POLICIES).index(policy)
    play, gifts = POLICIES[policy]
    seeds = range(offset + first_seed, offset + first_seed + 10)
    comparison = Comparison(seeds, play, gifts=gifts)
    for _ in range(20):
        comparison.run(100).same_worlds()
    assert comparison.nights > 2000
    if policy == "settler":
        assert len(comparison.reached()) >= len(ACHIEVEMENTS) - 1
