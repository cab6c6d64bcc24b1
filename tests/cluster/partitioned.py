"""A driver that samples on two machines, for a test that separates them.

It prints ``both``, ``lost`` and ``back`` as the second machine comes, is lost, and is used again;
then the fault.
"""

from __future__ import annotations

import sys
import time

from fastrl.config import ClusterConfig, Config, EnvConfig, SamplerConfig
from fastrl.sampling import make_plan, make_sampler
from tests.cluster.ledger import Ledger

WITHIN_S = 90.0


def say(line: str) -> None:
    """Print a line without buffering."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(address: str) -> None:
    """Sample until the second machine is back."""
    kwargs = {"uneven": True, "ending": "alternate", "length": 5}
    config = Config(
        env=EnvConfig(id="tests.counting_env:make", kwargs=kwargs),
        sampler=SamplerConfig(envs_per_worker=2, num_env_workers=2, rollout_length=7),
        cluster=ClusterConfig(address=address, node_timeout_s=4.0),
    )
    faults: list[object] = []
    ledger = Ledger()
    with make_sampler(config, make_plan(config), on_fault=faults.append) as sampler:
        for said, slots in (("both", 8), ("lost", 4), ("back", 8)):
            until_s = time.monotonic() + WITHIN_S
            while True:
                rollout = sampler.collect()
                ledger.check(rollout)
                if rollout.slots is not None and len(rollout.slots) == slots:
                    break
                assert time.monotonic() < until_s, faults
            say(said)
    assert len(faults) == 1, faults
    say(str(faults[0]))


if __name__ == "__main__":
    main(sys.argv[1])
