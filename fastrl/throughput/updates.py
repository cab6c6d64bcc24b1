"""Times of updates on one core: by the learner, and of their matrix products alone.

The products are those of an update by autograd, with their shapes; compiled gradients are sums of
the same products. Each is repeated alone, so their time is that of the update's floating-point
work at the speed that torch reaches on this machine for matrices of these sizes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import flop_registry

from fastrl.config import Config, resolved
from fastrl.learning import Learner, build_learner
from fastrl.models.policy import state_size
from fastrl.shared.rollouts import Rollout
from fastrl.spec import EnvSpec
from fastrl.system import torch_threads

_ENDLESS = 2**60
"""Steps of a run whose schedules do not end during a measurement."""


@dataclass(frozen=True)
class UpdateTimes:
    """Times of an update on one core, per environment step of the rollout.

    Attributes:
        t_learn_s: Seconds of an update alone on an idle core.
        t_products_s: Seconds of its matrix products and convolutions, each repeated alone by torch;
            None for policies with a memory, some of whose products are in compiled loops.
        flop: Floating-point operations of these products; None as above.
    """

    t_learn_s: float
    t_products_s: float | None = None
    flop: float | None = None

    @property
    def products_share(self) -> float | None:
        """Time of torch's products divided by that of the update; None if not counted.

        It is above 1 if compiled gradients compute small products faster than torch.
        """
        return None if self.t_products_s is None else self.t_products_s / self.t_learn_s


class UpdateProbe:
    """Times updates of a run on one core; the sampler must be paused meanwhile.

    Args:
        config: The run, whose learner must be on the CPU. It uses one thread, independent of
            ``algorithm.torch_threads``.
        env_spec: Spaces of the environment.

    Raises:
        ConfigError: The algorithm or the model cannot be built.
    """

    def __init__(self, config: Config, env_spec: EnvSpec) -> None:
        config = resolved(config)
        section = config.algorithm.model_copy(update={"torch_threads": 1})
        self._learner = endless_learner(config.model_copy(update={"algorithm": section}), env_spec)
        self._counted: Learner | None = None
        if not state_size(self._learner.model):
            section = section.model_copy(update={"compile": False})
            config = config.model_copy(update={"algorithm": section})
            self._counted = endless_learner(config, env_spec)
            self._counted.use_autograd()
        self._products: Products | None = None

    def measure(self, rollout: Rollout, state: Mapping[str, Any], seconds: float) -> UpdateTimes:
        """Learn from one rollout repeatedly, for about ``seconds`` and at least twice.

        The first update is not counted, as it may allocate memory.

        Args:
            rollout: Rollout to learn from; only read.
            state: Result of `Learner.state_dict` of the run's learner before it learns from this
                rollout; each update begins with it, so that its work is that of a real one.
            seconds: Time to measure, a third of it for the products.
        """
        if self._products is None and self._counted is not None:
            self._products = Products()
            self._counted.load_state_dict(state)
            with self._products:
                self._counted.update(rollout)
            self._counted = None
        self._update_s(rollout, state)
        spent_s, updates = 0.0, 0
        while not updates or spent_s < seconds * 2 / 3:
            spent_s, updates = spent_s + self._update_s(rollout, state), updates + 1
        t_learn_s = spent_s / updates / rollout.num_steps
        if self._products is None:
            return UpdateTimes(t_learn_s)
        with torch_threads(1):
            products_s = self._products.time(seconds / 3)
        steps = rollout.num_steps
        return UpdateTimes(t_learn_s, products_s / steps, self._products.flop / steps)

    def _update_s(self, rollout: Rollout, state: Mapping[str, Any]) -> float:
        """Return the seconds of one update that begins with a state."""
        self._learner.load_state_dict(state)
        began_s = time.perf_counter()
        self._learner.update(rollout)
        return time.perf_counter() - began_s


def endless_learner(config: Config, env_spec: EnvSpec) -> Learner:
    """Return the learner of a run whose schedules stay near their initial values.

    Raises:
        ConfigError: The algorithm or the model cannot be built.
    """
    return build_learner(config.model_copy(update={"total_steps": _ENDLESS}), env_spec)


class Products(TorchDispatchMode):
    """Records the matrix products and convolutions of torch in this thread in a ``with`` block.

    Attributes:
        flop: Floating-point operations of all of them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flop = 0
        self._times: Counter[Hashable] = Counter()
        self._calls: dict[Hashable, Callable[[], Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute an operation, and record it if it is a product."""
        given = kwargs or {}
        found = func(*args, **given)
        flop_of = flop_registry.get(_out_of_place(func))
        if flop_of is not None:
            sizes = {name: value for name, value in given.items() if name != "out"}
            self.flop += flop_of(*args, **sizes, out_val=found)
            leaves, form = tree_flatten((args, given))
            key = func, str(form), tuple(map(_described, leaves))
            self._times[key] += 1
            if key not in self._calls:
                own_args, own_given = tree_map(_alike, (args, given))
                self._calls[key] = lambda: func(*own_args, **own_given)
        return found

    @torch.no_grad()
    def time(self, seconds: float) -> float:
        """Return the seconds that all products take, each repeated alone on other numbers.

        Args:
            seconds: Time to measure; each product is computed at least three times.
        """
        each_s = seconds / max(1, len(self._calls))
        return sum(
            times * mean_time(self._calls[key], each_s) for key, times in self._times.items()
        )


def mean_time(call: Callable[[], Any], seconds: float) -> float:
    """Return the mean time of a call, over about ``seconds`` and at least three calls.

    It is the mean, like environment steps and frames per second: if the machine's
    speed varies, the fastest call does not represent it.
    """
    start, calls = time.perf_counter(), 0
    while True:
        call()
        calls += 1
        passed = time.perf_counter() - start
        if calls >= 3 and passed > seconds:
            return passed / calls


def _out_of_place(func: Any) -> Any:
    """Return the variant of an operation that has a formula for its FLOP, such as aten.addmm."""
    packet = func._overloadpacket
    name = packet.__name__
    return getattr(torch.ops.aten, name[:-1], packet) if name.endswith("_") else packet


def _described(leaf: Any) -> Hashable:
    """Return the properties on which the speed of a product depends."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.stride(), leaf.dtype
    return repr(leaf)


def _alike(leaf: Any) -> Any:
    """Return a tensor of the same sizes, strides and type; anything else as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    found = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype)
    # Along a stride of 0 all elements are one, which torch fills once only.
    own = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in leaf.stride())
    found[own].normal_()
    return found
