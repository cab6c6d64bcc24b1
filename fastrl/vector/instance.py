"""One gymnasium environment, stepped without the wrappers that cost time for nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gymnasium.wrappers import OrderEnforcing, TimeLimit

from fastrl.envs.classic_control.screen import quicken
from fastrl.envs.episode_clock import NEVER
from fastrl.envs.wrappers import watchers
from fastrl.vector.spec import Env

_LIFECYCLE = frozenset({"reset", "step", "close"})


class Instance:
    """An environment with its wrappers, and the same one without those that only watch.

    Steps and resets go past gymnasium's checker, its order enforcer and a time limit on the
    outside, which `EnvGroup` keeps; everything else goes to the whole.

    Attributes:
        env: The whole environment.
        step: Steps the bare environment.
        limit: Steps after which an episode is cut off.
    """

    def __init__(self, env: Env) -> None:
        self.env = env
        skipped = watchers(env)
        bare: Env = skipped[-1].env if skipped else env
        self._limits = [each for each in skipped if isinstance(each, TimeLimit)]
        self._enforcers = [each for each in skipped if isinstance(each, OrderEnforcing)]
        self._bare = bare
        quicken(env.unwrapped)
        self.step: Callable[[Any], Any] = bare.step
        self.limit: int = self._shortest_limit()

    def reset(
        self, seed: int | None, options: Mapping[str, Any] | None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        for enforcer in self._enforcers:
            enforcer._has_reset = True
        observation, info = self._bare.reset(
            seed=seed, options=None if options is None else dict(options)
        )
        return observation, info

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Call a method of the environment or of a wrapper; return an attribute as it is."""
        found = self.env.get_wrapper_attr(name)
        return found(*args, **kwargs) if callable(found) else found

    def set(self, name: str, value: Any) -> None:  # noqa: ANN401
        """Set an attribute of whichever wrapper has it, else of the environment."""
        self.env.set_wrapper_attr(name, value)
        self.limit = self._shortest_limit()

    def _shortest_limit(self) -> int:
        return min((each._max_episode_steps or NEVER for each in self._limits), default=NEVER)

    def tell(self, elapsed: int) -> None:
        """Tell the time limit how many steps the episode has had, for those who ask it."""
        for each in self._limits:
            each._elapsed_steps = elapsed  # type: ignore[assignment]


def is_lifecycle(name: str) -> bool:
    """Return whether a method belongs to the vector environment and is not to be called apart."""
    return name in _LIFECYCLE
