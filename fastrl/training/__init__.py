"""Training: whole runs (`run`), the loop (`trainer`), evaluation, checkpoints and metrics."""

from fastrl.errors import CheckpointError
from fastrl.training.callbacks import Callback, CallbackError, RunContext
from fastrl.training.checkpoint import Checkpoint, CheckpointStore
from fastrl.training.demonstrating import RecordedDataset, record_dataset, record_function
from fastrl.training.evaluation import (
    EpisodePlayer,
    EvaluationProtocol,
    EvaluationResult,
    evaluate,
)
from fastrl.training.hub import pull_run, push_run
from fastrl.training.run import (
    Evaluated,
    TrainedRun,
    evaluate_run,
    export_run,
    load_policy,
    record_run,
    resume,
    train,
)
from fastrl.training.trained_policy import TrainedPolicy
from fastrl.training.trainer import Trainer

__all__ = [
    "Callback",
    "CallbackError",
    "Checkpoint",
    "CheckpointError",
    "CheckpointStore",
    "EpisodePlayer",
    "Evaluated",
    "EvaluationProtocol",
    "EvaluationResult",
    "RecordedDataset",
    "RunContext",
    "TrainedPolicy",
    "TrainedRun",
    "Trainer",
    "evaluate",
    "evaluate_run",
    "export_run",
    "load_policy",
    "pull_run",
    "push_run",
    "record_dataset",
    "record_function",
    "record_run",
    "resume",
    "train",
]
