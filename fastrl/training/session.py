"""One session of a run, from the start of the workers to the summary; its loop is in `trainer`."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from fastrl.config import Config
from fastrl.durable import WriteError, make_directory, writing
from fastrl.envs.env_factory import EnvFactory
from fastrl.envs.state import State
from fastrl.errors import ConfigError, EnvError, FastrlError, WorkerError
from fastrl.learning import build_learner
from fastrl.learning.learner import learner_threads
from fastrl.learning.ranks import Ranks
from fastrl.models.policy import ActorCritic, check_model_class
from fastrl.sampling import Fault, ProcessSampler, Sampler, env_factory, make_plan, make_sampler
from fastrl.sampling.build import check_sources
from fastrl.shared.rollouts import Rollout
from fastrl.spec import EnvSpec
from fastrl.system import torch_threads
from fastrl.training.callbacks import (
    Callback,
    CallbackError,
    RunContext,
    RunExtensions,
    check_extensions,
)
from fastrl.training.checkpoint import Checkpoint, CheckpointStore
from fastrl.training.coordination import own_part, own_plan
from fastrl.training.dagger_sampler import check_expert
from fastrl.training.evaluation import INFO, RETURN_MEAN, EvaluationProtocol, EvaluationResult
from fastrl.training.evaluator import Candidates, EvaluationPlan, Evaluator
from fastrl.training.interrupts import Interrupts, StopSignal
from fastrl.training.journal import FINAL, RunJournal, described
from fastrl.training.metrics import MetricsLog, check_loggers
from fastrl.training.progress import Progress, estimate
from fastrl.training.recording import Recorder
from fastrl.training.remarks import LearningSigns, coarse_observations, remarks
from fastrl.training.run_directory import RunDirectory
from fastrl.training.saver import (
    Saver,
    begin_from,
    restore,
    resume_episodes,
    without_callbacks,
)
from fastrl.training.trainer import Trainer
from fastrl.training.window import EpisodeInfo, Update, Window
from fastrl.workers.supervisor import call_in_child


@dataclass(frozen=True)
class SessionOutcome:
    """The outcome of a session.

    Attributes:
        steps: Environment steps that the run has learnt from, in all its sessions.
        wall_s: Time in seconds from the start of the workers to the last update, in all sessions.
        evaluation: Evaluation of the final policy; None without one.
        interrupted: The signal that ended it early, or None.
        info: Values that environments reported of the training episodes.
    """

    steps: int
    wall_s: float
    evaluation: EvaluationResult | None = None
    interrupted: signal.Signals | None = None
    info: EpisodeInfo = field(default_factory=EpisodeInfo)

    def summary(self, config: Config) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        result = self.evaluation
        found: dict[str, Any] = {
            "env": config.env.id,
            "algorithm": config.algorithm.name,
            "seed": config.seed,
            "steps": self.steps,
            "wall_s": self.wall_s,
            "steps_per_s": self.steps / self.wall_s,
            "eval_return_mean": None if result is None else result.return_mean,
            "eval_return_std": None if result is None else result.return_std,
            "eval_episodes": 0 if result is None else len(result.returns),
            "eval_cut": 0 if result is None else result.cut,
        }
        optional = {
            "eval_info": result and result.info_means(),
            "achievement_score": self.info.achievement_score(),
            "episode_info_positive": self.info.shares(),
        }
        return found | {k: v for k, v in optional.items() if v is not None and v != {}}


class TrainingSession:
    """Trains from a checkpoint, or from the beginning, to the end or to an interrupt; once.

    Args:
        config: Resolved configuration of the run.
        start: Checkpoint to resume; None for the beginning.
        console: Console that shows the progress; none by default.
        trained_with: Earlier configuration of the run, if it was trained before.
        callbacks: Further callbacks beside those of the configuration.
        ranks: The ranks of the run. Rank 0 writes, evaluates and calls the callbacks; the
            others follow its decisions.

    Raises:
        FastrlError: The environment or the model cannot be built, a package is missing, or the
            checkpoint belongs to another run.
    """

    def __init__(
        self,
        config: Config,
        start: Checkpoint | None = None,
        console: Console | None = None,
        trained_with: Config | None = None,
        callbacks: Sequence[Callback] = (),
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks = ranks or Ranks()
        self._config, self._start = config, start
        self._console = console if ranks.leads else None
        self._trained_with = trained_with
        check_named_code(config)
        if ranks.leads:
            self._extensions = RunExtensions(config, callbacks)
        else:
            self._extensions = RunExtensions(config.model_copy(update={"callbacks": ()}))
            start = self._start = start and without_callbacks(start)
        if ranks.size > 1 and config.algorithm.own_sampler is not None:
            raise ConfigError(f"algorithm.name: {config.algorithm.name} supports only one rank")
        self._own = own_part(config, ranks)
        plan = own_plan(make_plan(self._own), ranks)
        check_sources(config, plan)
        check_expert(config, plan.env_spec)
        self._learner = build_learner(self._own, plan.env_spec, ranks=ranks)
        self._counted: dict[str, Any] = {}
        if start is not None:
            self._counted = restore(start, config, self._learner, self._extensions)
        self._remarks: list[str] = []
        if start is None and config.init_from is not None:
            self._remarks.append(begin_from(config.init_from, self._learner.model, ranks))
        self._plan = dataclasses.replace(plan, first_rollout=self._learner.updates)
        self._record: Recorder | None = None
        self._candidates: Candidates | None = None
        self._evaluates = config.evaluation.enabled and ranks.leads
        self._faults: list[State] = []
        if self._evaluates:
            self._prepare_evaluation()

    def _prepare_evaluation(self) -> None:
        """Reject evaluations and videos that cannot be made, before training starts."""
        config, env_spec, evaluation = self._config, self._plan.env_spec, self._config.evaluation
        _check_metric(config, env_spec)
        start_s = config.sampler.start_timeout_s
        if evaluation.env_kwargs:
            probe = evaluation_factory(config).probing
            _check_spaces(call_in_child(probe, start_s, config.env.close_timeout_s), env_spec)
        if evaluation.video:
            one = EvaluationProtocol(1, evaluation.seed, evaluation.deterministic)
            self._record = Recorder(evaluation_factory(config, env_spec), env_spec, one)
            # In a separate process, since drawing may start threads and allocate GPU memory.
            call_in_child(self._record.check, start_s)

    def run(self, path: Path, directory: RunDirectory | None) -> SessionOutcome:
        """Train, evaluate the result, and save both.

        Args:
            path: Path of the run directory.
            directory: Run directory; None on ranks other than 0.

        Raises:
            WorkerError: A process failed, or a rank is lost; the run is saved.
            CallbackError: A callback or a transform failed; the run is saved.
            FastrlError: Learning diverged; the checkpoints before it are kept.
        """
        config, learner = self._config, self._learner
        self._path = path
        if directory is not None:
            directory.write_spec(self._plan.env_spec)
        with ExitStack() as stack:
            self._open(directory, stack)
            training = stack.enter_context(ExitStack())
            # A run that was stopped in its final evaluation only has to play that.
            is_trained = learner.steps >= config.total_steps
            sampler = None if is_trained else self._start_sampler(training)
            if is_trained:
                self._call("on_start")
            if self._evaluates and directory is not None:
                self._start_evaluator(directory, stack)
            if sampler is not None:
                finished = self._train(sampler)
                training.close()
                if not finished:
                    interrupted = self._interrupts.requested
                    return SessionOutcome(learner.steps, self._window.wall_s, None, interrupted)
            # Only rank 0 plays the final evaluation.
            self._ranks.close()
            steps, wall_s = learner.steps, self._window.wall_s
            if directory is None:
                return SessionOutcome(steps, wall_s)
            result = None if self._candidates is None else self._evaluate_final(self._candidates)
            interrupted = self._interrupts.requested
            outcome = SessionOutcome(steps, wall_s, result, interrupted, self._window.info)
            if result is not None or self._candidates is None:
                directory.write_summary(outcome.summary(config))
            return outcome

    def after_rollout(self, rollout: Rollout) -> Rollout:
        """Transform a rollout and call the callbacks; return the rollout to learn from."""
        if rollout.index == 0:
            for remark in coarse_observations(rollout.observation, self._plan.env_spec):
                self._progress.remark(remark)
            self._progress.watch_start(lambda: "first update …")
        rollout = self._extensions.transformed(rollout)
        self._call("on_rollout", rollout)
        return rollout

    def after_update(self, update: Update) -> bool:
        """Report an update and save if it is due; return whether training ends.

        Raises:
            StopSignal: A callback was interrupted.
        """
        if self._journal is None:
            self._window.add(update)
            decision: State = None
        else:
            decision = self._decide(self._journal, update)
        if self._ranks.size > 1:
            decision = self._exchange(decision)
        if decision["saves"]:
            self._saver.save()
        if decision["asked"]:
            raise StopSignal(decision["asked"])
        return bool(decision["ends"])

    def _decide(self, journal: RunJournal, update: Update) -> State:
        """Report an update on rank 0; return the decision for all ranks."""
        journal.note_update(update)
        try:
            with self._interrupts.hurried():
                self._call("on_update", update)
        except StopSignal:
            return {"ends": False, "saves": False, "asked": int(self._interrupts.requested or 0)}
        journal.flush_if_due()
        saves = self._saver.is_due
        ends = self._context.stops or self._learner.is_finished
        if self._candidates is not None:
            is_last = ends or update.steps >= self._config.total_steps
            ends |= self._candidates.after_update(update.steps, is_last=is_last)
        return {"ends": ends, "saves": saves, "asked": 0}

    def _exchange(self, decision: State) -> State:
        """Return the decision of rank 0, and apply the changes of its callbacks."""
        faults, self._faults = self._faults, []
        schedules = self._learner.schedules
        own = {"faults": faults, "decision": decision}
        if self._ranks.leads:
            own |= {"schedules": schedules.state_dict(), "calls": self._context.news()}
        first, *others = self._ranks.gather(own)
        if self._journal is not None:
            for row, text in (fault for other in others for fault in other["faults"]):
                self._journal.note_fault(json.loads(row), text)
        else:
            schedules.load_state_dict(first["schedules"])
            self._context.repeat(first["calls"])
        return first["decision"]

    def _note_fault(self, fault: Fault) -> None:
        """Write a worker failure; on ranks other than 0 keep it for rank 0."""
        if self._journal is not None:
            self._journal.note_fault(*described(fault))
            return
        name = f"rank-{self._ranks.rank}"
        row, text = described(dataclasses.replace(fault, worker=f"{name}/{fault.worker}"))
        self._faults.append((json.dumps(row, default=str), f"{name}: {text}"))

    def after_evaluation(
        self, result: EvaluationResult, steps: int, kind: str = "evaluation"
    ) -> None:
        """Write and report an evaluation of the policy after ``steps`` steps."""
        assert self._journal is not None
        self._journal.note_evaluation(result, steps, kind)
        self._call("on_evaluation", result, steps)

    def _call(self, hook: str, *args: object) -> None:
        if self._ranks.leads:
            self._extensions.call(self._context, hook, *args)

    def _open(self, directory: RunDirectory | None, stack: ExitStack) -> None:
        """Open the objects that observe training; the stack closes them."""
        config, learner, extensions = self._config, self._learner, self._extensions
        is_repeated = self._ranks.size > 1
        self._interrupts = stack.enter_context(Interrupts(is_repeated=is_repeated))
        self._ranks.follow(self._interrupts)
        self._window = Window(**self._counted)
        self._journal: RunJournal | None = None
        name = f"{config.env.id}   {config.algorithm.name.upper()}   seed {config.seed}"
        title, every_s = f"{name}   {self._path}", config.logging.every_s
        self._progress = stack.enter_context(
            Progress(self._console, title, config.total_steps, every_s)
        )
        if directory is not None:
            self._open_journal(directory, stack)
        calls = extensions.env_calls
        self._context = RunContext(config, self._path, learner, self._window, calls)
        stack.push(lambda kind, *_: extensions.end(self._context, run_has_failed=kind is not None))
        self._store = CheckpointStore(
            self._path / "checkpoints",
            config.checkpoint.keep_last,
            lambda path: self._call("on_checkpoint", path),
            lambda: None if directory is None else directory.require(),
        )
        self._saver = Saver(config, learner, self._window, self._store, extensions, self._ranks)

    def _open_journal(self, directory: RunDirectory, stack: ExitStack) -> None:
        config, learner = self._config, self._learner
        log = MetricsLog(directory, config, learner.steps)
        stack.callback(log.close)
        is_shared = isinstance(learner.model, ActorCritic) and learner.model.critic_body is None
        signs = LearningSigns(getattr(config.algorithm, "value_coef", 0.0), is_shared)
        self._journal = RunJournal(config, directory, log, self._progress, self._window, signs)
        found = remarks(config, self._plan.env_spec, self._trained_with, learner.steps)
        for remark in (*self._remarks, *found):
            self._progress.remark(remark)

    def _start_sampler(self, stack: ExitStack) -> Sampler:
        """Start a sampler, which the stack closes after a save of the run."""
        config = self._own.model_copy(update={"run_dir": str(self._path)})
        context, weights = self._context, self._learner.weights()
        # First, before memory is allocated per environment: this checks that memory suffices.
        sampler = make_sampler(config, self._plan, weights, self._note_fault)
        stack.callback(sampler.close)
        stack.callback(context.follow, None)
        # Before environments are restored, whose states were saved after these calls.
        context.follow(sampler)
        if self._start is not None:
            reason = resume_episodes(sampler, self._start, config, self._ranks)
            if reason:
                self._progress.remark(f"environments begin new episodes: {reason}")
        self._call("on_start")
        if self._ranks.size > 1:
            self._exchange(None)
        self._saver.follow(sampler)
        self._saver.save()
        if isinstance(sampler, ProcessSampler):
            self._progress.watch_start(sampler.starting)
        sampler.start()
        threads = learner_threads(config, self._plan.env_spec)
        if self._journal is not None:
            self._journal.watch(sampler, threads)
        stack.enter_context(torch_threads(threads))
        return sampler

    def _start_evaluator(self, directory: RunDirectory, stack: ExitStack) -> None:
        config, plan = self._config, self._plan
        assert plan.build_model is not None
        if self._record is not None:
            with writing(directory.videos):
                make_directory(directory.videos)
        evaluation = EvaluationPlan(
            env_spec=plan.env_spec,
            build_env=evaluation_factory(config, plan.env_spec).batched,
            build_model=plan.build_model,
            protocol=protocol(config),
            record=self._record,
            videos=directory.videos,
        )
        self._evaluator = Evaluator(evaluation, self._learner.weights())
        stack.callback(self._evaluator.close)
        self._candidates = Candidates(
            config, self._evaluator, self._store, self._saver.snapshot, self.after_evaluation
        )

    def _train(self, sampler: Sampler) -> bool:
        """Train and save; return whether training reached its end."""
        config = self._config
        trainer = Trainer(
            sampler,
            self._learner,
            config.total_steps,
            self._interrupts,
            skip_bad_updates=config.faults.bad_numbers == "skip_update",
            receive=self.after_rollout,
            ranks=self._ranks,
        )
        try:
            try:
                finished = trainer.run(self.after_update)
            except StopSignal as stop:
                finished = False
                if self._interrupts.requested is None and stop.args:
                    self._interrupts.requested = signal.Signals(*stop.args)
            finally:
                if self._journal is not None:
                    self._journal.flush()
            self._saver.save()
            return finished
        except (WorkerError, EnvError, WriteError, CallbackError) as error:
            self._ranks.fail(str(error))
            self._save_alone()
            # A signal to the whole process group ends the workers as well.
            if self._interrupts.requested is None or self._ranks.lost is not None:
                raise
            return False

    def _save_alone(self) -> None:
        """Save on rank 0, or on rank 1 if rank 0 has died and its directory is accessible."""
        if self._ranks.leads:
            self._saver.save()
        elif self._ranks.died == 0 and self._ranks.rank == 1:
            with suppress(FastrlError), closing(RunDirectory.open(self._path)):
                self._saver.take_over()

    def _evaluate_final(self, candidates: Candidates) -> EvaluationResult | None:
        """Evaluate the policy that reached ``stop_at``, else the last one; None if interrupted.

        The best policy so far plays the same episodes, and the better of the two becomes the best.

        Raises:
            WorkerError: The evaluation process failed repeatedly.
        """
        result = None
        with suppress(StopSignal):
            with self._interrupts.breakable():
                candidates.finish()
            final, passed = candidates.passed or (self._saver.snapshot(), None)
            if passed and len(passed.returns) >= self._config.evaluation.final_episodes:
                return passed
            result = self._play(final)
            self.after_evaluation(result, final.steps, FINAL)
            candidates.judge(final, result, self._play)
        return result

    def _play(self, policy: Checkpoint) -> EvaluationResult:
        """Play the final evaluation of a policy.

        Raises:
            StopSignal: The evaluation was interrupted.
        """
        final = final_protocol(self._config)
        what = f"evaluating the policy of {policy.steps:,} steps"
        self._progress.say(f"{what} over {final.episodes} episodes …")
        progress_after = estimate(final.episodes)

        def watch(done: int, steps: int) -> None:
            self._progress.update(f"{what}: {progress_after(done, steps)}")

        with self._interrupts.breakable():
            return self._evaluator.play(policy.model, final, watch)


def check_named_code(config: Config) -> None:
    """Check the loggers, callbacks, transforms and the model before an environment is built.

    Raises:
        ConfigError: A class or function cannot be imported, does not take its arguments, or needs a
            package.
    """
    check_loggers(config.logging)
    check_extensions(config)
    check_model_class(config.model)


def evaluation_factory(config: Config, env_spec: EnvSpec | None = None) -> EnvFactory:
    """Return the factory of the environments in which policies are evaluated.

    Args:
        config: Configuration of the run.
        env_spec: Spaces of the probed environment; None if it was not probed.
    """
    factory = env_factory(config)
    if env_spec is not None:
        factory = factory.with_masks_of(env_spec)
    return dataclasses.replace(factory, kwargs={**factory.kwargs, **config.evaluation.env_kwargs})


def protocol(config: Config) -> EvaluationProtocol:
    """Return the protocol of evaluations during training."""
    settings = config.evaluation
    return EvaluationProtocol(
        settings.episodes,
        settings.seed,
        settings.deterministic,
        settings.max_steps,
        settings.max_s,
        cuts_bad_numbers=config.faults.bad_numbers != "raise",
    )


def final_protocol(config: Config) -> EvaluationProtocol:
    """Return the protocol of the final evaluation, with episodes that did not choose the best."""
    settings = config.evaluation
    return dataclasses.replace(
        protocol(config), episodes=settings.final_episodes, seed=settings.seed + 1
    )


def _check_spaces(evaluated: EnvSpec, sampled: EnvSpec) -> None:
    """Reject `evaluation.env_kwargs` that change the observation or action space.

    Raises:
        ConfigError: The spaces differ; the error names them.
    """
    for kind in ("observation", "action"):
        if getattr(evaluated, kind) != getattr(sampled, kind):
            raise ConfigError(
                f"evaluation.env_kwargs: the policy cannot play an {kind} space of "
                f"{getattr(evaluated, f'{kind}_space')}; it learns "
                f"{getattr(sampled, f'{kind}_space')}"
            )


def _check_metric(config: Config, env_spec: EnvSpec) -> None:
    """Reject an `evaluation.metric` that the environment does not report.

    Raises:
        ConfigError: The metric is not reported; the error names those that are.
    """
    metric = config.evaluation.metric
    if metric == RETURN_MEAN or metric.removeprefix(INFO) in env_spec.episode_info:
        return
    known = ", ".join(f"{INFO}{name}" for name in env_spec.episode_info) or "nothing else"
    raise ConfigError(
        f"evaluation.metric: '{metric}' is not reported by '{env_spec.id}', which reports "
        f"{RETURN_MEAN} and {known}; env.episode_info names more"
    )
