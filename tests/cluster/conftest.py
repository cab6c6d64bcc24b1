"""One Ray cluster of several raylets on this machine, for all tests."""

from __future__ import annotations

import os

import pytest

# Ray would write a token into the user's home directory, and send statistics.
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="session")
def raylets():
    """`Raylets` of which the first, the driver's, has no cores."""
    from tests.cluster.raylets import Raylets

    with Raylets() as made:
        yield made


@pytest.fixture(scope="module")
def nodes(raylets):
    """Two raylets of two cores, on which all workers run."""
    return raylets.two()
