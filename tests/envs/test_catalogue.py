from __future__ import annotations

import gymnasium
import pytest

from fastrl.envs.catalogue import list_environments


@pytest.fixture
def register():
    names: list[str] = []

    def register(name: str, entry_point: object) -> None:
        gymnasium.register(name, entry_point=entry_point)
        names.append(name)

    yield register
    for name in names:
        del gymnasium.registry[name]


def test_filter_is_part_of_the_id_in_any_case():
    found = list_environments("tpole-V")
    assert [(listing.id, listing.max_episode_steps) for listing in found] == [
        ("CartPole-v0", 200),
        ("CartPole-v1", 500),
    ] + [(listing.id, listing.max_episode_steps) for listing in found[2:]]
    assert not found[1].problem


def test_crafter_is_listed():
    found = [listing.id for listing in list_environments("crafter-v1")]
    assert found[0] == "Crafter-v1"


def test_what_cannot_be_imported_says_why(register):
    register("NoSuch/Module-v0", "no_such_module:Env")
    (listing,) = list_environments("nosuch/")
    assert listing.problem == "No module named 'no_such_module'"


def test_notes_of_removed_environments_are_left_out():
    assert "HalfCheetah-v2" in gymnasium.registry
    assert [
        listing.id
        for listing in list_environments("HalfCheetah-v")
        if not listing.id.startswith("fastrl/")
    ] == [
        "HalfCheetah-v4",
        "HalfCheetah-v5",
    ]


def test_nothing_found_is_an_empty_list():
    assert list_environments("no such environment") == []
