"""Players of the long comparisons, and the items that each is given regularly."""

from __future__ import annotations

from tests.envs.crafter_native.reference import Policy, random_policy
from tests.envs.crafter_native.settler import Settler, farmer, fighter, sleeper

EVERYTHING = {
    **dict.fromkeys(("health", "wood", "stone", "coal", "iron", "sapling"), 9),
    **dict.fromkeys(("food", "drink"), 5),
}

POLICIES: dict[str, tuple[Policy, dict[str, int]]] = {
    "random": (random_policy, {}),
    "settler": (Settler(), {"health": 9}),
    "mortal settler": (Settler(mistakes=0.1), {}),
    "fighter": (fighter, {}),
    "sleeper": (sleeper, {}),
    "farmer": (farmer, EVERYTHING),
    "builder": (random_policy, EVERYTHING),
}
