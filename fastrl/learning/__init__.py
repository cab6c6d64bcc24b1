"""Learning: returns, losses, and the algorithms that turn rollouts into better parameters."""

from fastrl.learning.algorithm import Algorithm, Group, Loss, Prepared
from fastrl.learning.batch import Batch, Experience, Minibatch
from fastrl.learning.build import build_learner
from fastrl.learning.learner import Learner

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
