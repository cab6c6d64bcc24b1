"""Learning: returns, losses, and the algorithms that turn rollouts into better parameters."""

from fastrl.learning.algorithm import Algorithm, Batch, Experience, Group, Loss, Minibatch, Prepared
from fastrl.learning.learner import Learner, build_learner

__all__ = [
    "Algorithm",
    "Batch",
    "Experience",
    "Group",
    "Learner",
    "Loss",
    "Minibatch",
    "Prepared",
    "build_learner",
]
