"""A logger for MLflow. Copy this file beside a configuration, and name it there:

logging:
  loggers: [{path: "mlflow_logger:MLflow", kwargs: {experiment: poles}}]
"""

import math

import mlflow


class MLflow:
    """A run at the server that ``MLFLOW_TRACKING_URI`` names, else in the current directory.

    Rows cannot be dropped there, so a resumed run begins another one, with the tag ``resumed_at``.
    """

    def __init__(self, run, config, steps, experiment="fastrl"):
        mlflow.set_experiment(experiment)
        mlflow.start_run(run_name=run.name, tags={"resumed_at": str(steps)} if steps else None)
        names = {"env": config.env.id, "algorithm": config.algorithm.name, "seed": config.seed}
        mlflow.log_params(names)
        mlflow.log_dict(config.model_dump(mode="json"), "config.json")

    def write(self, kind, row):
        finite = {f"{kind}/{name}": value for name, value in row.items() if math.isfinite(value)}
        mlflow.log_metrics(finite, step=int(row["steps"]))

    def close(self):
        mlflow.end_run()
