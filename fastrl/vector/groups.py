"""From a plan to the environments of a worker, whether they are single or batched by themselves."""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from typing import Any

from fastrl.vector.env_group import EnvGroup
from fastrl.vector.exchange import Exchange
from fastrl.vector.native_group import NativeGroup
from fastrl.vector.probing import close_probed
from fastrl.vector.spec import InstanceSpec, VectorPlan

Group = EnvGroup | NativeGroup


def build_first(plan: VectorPlan) -> Any:  # noqa: ANN401
    """Build the first environment, or the first batch of them."""
    if plan.native is not None:
        return plan.native.build(plan.envs_of(0))
    return plan.instance(0).build()


def spec_of(first: Any, name: str) -> InstanceSpec:  # noqa: ANN401
    """Return what the first environment, or batch, says of itself."""
    if not hasattr(first, "single_observation_space"):
        return InstanceSpec.of(first, name)
    return InstanceSpec(
        name=name,
        observation_space=first.single_observation_space,
        action_space=first.single_action_space,
        metadata=dict(first.metadata or {}),
        render_mode=first.render_mode,
    )


@contextmanager
def probe(plan: VectorPlan) -> Iterator[InstanceSpec]:
    """Build the first environment, or batch; give what it says of itself, then close it."""
    native = plan.native
    # Spaces follow parameters: only a batch of all has those that hold for every worker's.
    whole = native is not None and native.own
    first = native.build(range(plan.num_envs)) if native and whole else build_first(plan)
    try:
        yield spec_of(first, plan.name)
    finally:
        close_probed(first, plan.name)


def build_group(
    plan: VectorPlan,
    spec: InstanceSpec,
    exchange: Exchange,
    envs: range,
    at: MutableSequence[int],
    first: Any = None,  # noqa: ANN401
) -> Group:
    """Build the environments of a worker; see `EnvGroup`."""
    if plan.native is None:
        return EnvGroup(plan, spec, exchange, envs, at, first)
    batch = first or plan.native.build(envs)
    return NativeGroup(batch, exchange, envs, at, plan.native)
