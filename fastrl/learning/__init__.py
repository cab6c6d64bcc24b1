"""Learning: returns, losses, and the algorithms that turn rollouts into better parameters."""

from fastrl.learning.build import build_learner
from fastrl.learning.learner import Learner

__all__ = ["Learner", "build_learner"]
