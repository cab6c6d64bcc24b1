"""One sitting of a run: all that happens between starting the workers and the summary."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from fastrl.config import Config
from fastrl.envs.make import EnvFactory
from fastrl.errors import ConfigError, EnvError, WorkerError
from fastrl.learning import build_learner
from fastrl.learning.torch_threads import learner_threads, torch_threads
from fastrl.models.actor_critic import ActorCritic
from fastrl.models.policy import PolicyModel
from fastrl.sampling import ProcessSampler, Sampler, env_factory, make_plan, make_sampler
from fastrl.shared.rollout_buffer import Rollout
from fastrl.spec import EnvSpec
from fastrl.training.callbacks import Callback, Callbacks, RunContext, build_callbacks
from fastrl.training.candidates import Candidates
from fastrl.training.checkpoint import Checkpoint, CheckpointStore
from fastrl.training.durable import WriteError
from fastrl.training.episode_info import EpisodeInfo
from fastrl.training.evaluation import (
    INFO,
    RETURN_MEAN,
    EvaluationProtocol,
    EvaluationResult,
)
from fastrl.training.evaluator import EvaluationPlan, Evaluator
from fastrl.training.extensions import CallbackError, RunExtensions
from fastrl.training.fault_log import FaultLog
from fastrl.training.interrupts import Interrupts, StopSignal
from fastrl.training.journal import FINAL, IdleTime, Journal
from fastrl.training.metrics import MetricsLog, check_loggers
from fastrl.training.progress import Progress, Remaining
from fastrl.training.recording import Recorder
from fastrl.training.remarks import LearningSigns, coarse_observations, remarks
from fastrl.training.run_directory import RunDirectory
from fastrl.training.saver import Counted, Saver, begin_from, go_on, restore
from fastrl.training.trainer import Trainer
from fastrl.training.transforms import build_transforms, transformed
from fastrl.training.window import Update, Window
from fastrl.workers.supervisor import call_in_child


@dataclass(frozen=True)
class Outcome:
    """How a session ended.

    Attributes:
        steps: Environment steps that the run has learnt from, in all its sessions.
        wall_s: Time in which it did, from starting the workers to the last update.
        evaluation: Of the policy that the run ended with; None where there was none.
        info: What the environments told of the episodes of training.
        interrupted: The signal that ended it early, or None.
    """

    steps: int
    wall_s: float
    evaluation: EvaluationResult | None = None
    interrupted: signal.Signals | None = None
    info: EpisodeInfo = field(default_factory=EpisodeInfo)

    def summary(self, config: Config) -> dict[str, Any]:
        """Return what ``summary.json`` holds."""
        result = self.evaluation
        return {
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
            **self._eval_info(),
            **self._info(),
        }

    def _eval_info(self) -> dict[str, Any]:
        means = {} if self.evaluation is None else self.evaluation.info_means()
        return {"eval_info": means} if means else {}

    def _info(self) -> dict[str, Any]:
        score, shares = self.info.achievement_score(), self.info.shares()
        found: dict[str, Any] = {} if score is None else {"achievement_score": score}
        return {**found, "episode_info_positive": shares} if shares else found


class Session:
    """Trains from a checkpoint, or from the beginning, to the end or to an interrupt.

    Args:
        config: The run, with nothing left to be resolved.
        start: Where to go on; None for the beginning.
        console: Where to show progress; nowhere by default.
        trained_with: The configuration with which it was trained until now, if it was.
        callbacks: Beside those of the configuration.

    Raises:
        FastrlError: The environment or the model cannot be built, a package is missing, or the
            checkpoint is that of another run.
    """

    def __init__(
        self,
        config: Config,
        start: Checkpoint | None = None,
        console: Console | None = None,
        trained_with: Config | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._config, self._start = config, start
        self._console, self._trained_with = console, trained_with
        check_loggers(config.logging)
        self._extensions = RunExtensions(
            build_callbacks(config, callbacks), build_transforms(config)
        )
        plan = make_plan(config)
        self._learner = build_learner(config, plan.env_spec)
        self._counted = Counted()
        if start is not None:
            self._counted = restore(start, config, self._learner, self._extensions)
        self._begun_with: list[str] = []
        if start is None and config.init_from is not None:
            self._begun_with.append(begin_from(config.init_from, self._learner.model))
        self._plan = dataclasses.replace(plan, first_rollout=self._learner.updates)
        self._record: Recorder | None = None
        if config.evaluation.enabled:
            _check_metric(config, plan.env_spec)
        if config.evaluation.enabled and config.evaluation.env_kwargs:
            found = call_in_child(
                evaluation_factory(config).probing,
                config.sampler.start_timeout_s,
                config.env.close_timeout_s,
            )
            _check_evaluated(found, plan.env_spec)
        if config.evaluation.enabled and config.evaluation.video:
            one = EvaluationProtocol(1, config.evaluation.seed, config.evaluation.deterministic)
            self._record = Recorder(evaluation_factory(config), plan.env_spec, one)
            # In a process of its own, so that nothing the drawing starts stays in this one.
            call_in_child(self._record.check, config.sampler.start_timeout_s)

    def run(self, directory: RunDirectory) -> Outcome:
        """Train, evaluate what came of it, and save both.

        Args:
            directory: Where everything goes.

        Raises:
            WorkerError: A process failed; what was learnt until then is saved.
            CallbackError: A callback or a transform failed; the same.
            FastrlError: Learning diverged; the checkpoints before it are kept.
        """
        config = self._config
        directory.write_spec(self._plan.env_spec)
        with ExitStack() as stack:
            interrupts = stack.enter_context(Interrupts())
            log = MetricsLog(directory, config, self._learner.steps)
            stack.callback(log.close)
            progress = stack.enter_context(self._build_progress(directory))
            window = Window(**vars(self._counted))
            signs = LearningSigns(
                getattr(config.algorithm, "value_coef", 0.0), _is_body_shared(self._learner.model)
            )
            journal = Journal(config, log, progress, window, FaultLog(directory.faults), signs)
            steps = self._learner.steps
            told = remarks(config, self._plan.env_spec, self._trained_with, steps)
            for remark in (*self._begun_with, *told):
                journal.remark(remark)
            callbacks = stack.enter_context(self._build_callbacks(directory, window))
            keep_last = config.checkpoint.keep_last
            store = CheckpointStore(directory.checkpoints, keep_last, callbacks.on_checkpoint)
            saver = Saver(config, self._plan, self._learner, window, store, self._extensions)
            duties = _Duties(
                self._plan.env_spec, self._extensions, journal, saver, callbacks, interrupts
            )
            training = stack.enter_context(ExitStack())
            # A run that was stopped in its final evaluation has only that left.
            is_trained = self._learner.steps >= config.total_steps
            sampler = None if is_trained else self._start_sampler(duties, training)
            if is_trained:
                callbacks.on_start()
            evaluator = None
            if config.evaluation.enabled:
                evaluator = self._build_evaluator(directory)
                stack.callback(evaluator.close)
                duties.candidates = Candidates(
                    config, evaluator, store, saver.snapshot, duties.after_evaluation
                )
            if sampler is not None:
                finished = self._train(sampler, duties)
                saver.save()
                training.close()
                if not finished:
                    return Outcome(
                        self._learner.steps, window.wall_s, interrupted=interrupts.requested
                    )
            steps, wall_s = self._learner.steps, window.wall_s
            result = None
            if evaluator is not None and duties.candidates is not None:
                result = _Referee(config, evaluator, duties.candidates, duties).judge()
            outcome = Outcome(steps, wall_s, result, interrupts.requested, window.info)
            if result is not None or evaluator is None:
                directory.write_summary(outcome.summary(config))
            return outcome

    def _build_callbacks(self, run: RunDirectory, window: Window) -> Callbacks:
        calls = self._extensions.env_calls
        context = RunContext(self._config, run.path, self._learner, window, calls)
        return Callbacks(self._extensions.callbacks, context)

    def _start_sampler(self, duties: _Duties, stack: ExitStack) -> Sampler:
        """Return a sampler that samples until the stack is closed; the run is saved before."""
        config, journal, context = self._config, duties.journal, duties.callbacks.context
        # Before anything that is there once per environment: it knows what memory there is.
        sampler = make_sampler(config, self._plan, self._learner.weights(), journal.note_fault)
        stack.callback(sampler.close)
        stack.callback(context.follow, None)
        # Before the states of environments, which were saved after these calls.
        context.follow(sampler)
        if self._start is not None:
            why = go_on(sampler, self._start, config)
            if why:
                journal.remark(f"environments begin new episodes: {why}")
        duties.callbacks.on_start()
        duties.saver.follow(sampler)
        duties.saver.save()
        if isinstance(sampler, ProcessSampler):
            journal.watch_start(sampler.starting)
        sampler.start()
        if config.sampler.mode == "async":
            journal.watch(IdleTime(sampler))
        stack.enter_context(torch_threads(learner_threads(config, self._plan.env_spec)))
        return sampler

    def _train(self, sampler: Sampler, duties: _Duties) -> bool:
        """Return whether training came to its end."""
        config = self._config
        trainer = Trainer(
            sampler,
            self._learner,
            config.total_steps,
            duties.interrupts,
            skip_bad_updates=config.faults.bad_numbers == "skip_update",
            receive=duties.after_rollout,
        )
        try:
            return trainer.run(duties.after_update)
        except StopSignal:
            return False
        except (WorkerError, EnvError, WriteError, CallbackError):
            duties.saver.save()
            # A signal to the whole process group takes the workers down as well.
            if duties.interrupts.requested is None:
                raise
            return False
        finally:
            duties.journal.flush()

    def _build_progress(self, run: RunDirectory) -> Progress:
        config = self._config
        algorithm = config.algorithm.name.upper()
        title = f"{config.env.id}   {algorithm}   seed {config.seed}   {run.path}"
        return Progress(self._console, title, config.total_steps, config.logging.every_s)

    def _build_evaluator(self, run: RunDirectory) -> Evaluator:
        config, plan = self._config, self._plan
        assert plan.build_model is not None
        factory = evaluation_factory(config)
        evaluation = EvaluationPlan(
            env_spec=plan.env_spec,
            build_env=factory.batched,
            build_model=plan.build_model,
            protocol=protocol(config),
            record=self._record,
            videos=run.videos,
        )
        return Evaluator(evaluation, self._learner.weights())


@dataclass(frozen=True)
class _Referee:
    """Evaluates what training ended with."""

    config: Config
    evaluator: Evaluator
    candidates: Candidates
    duties: _Duties

    def judge(self) -> EvaluationResult | None:
        """Evaluate the policy that passed, else the last one; None if that was interrupted.

        The best one so far plays the same episodes, and the better of the two is kept.

        Raises:
            WorkerError: The evaluation process failed again and again.
        """
        result = None
        with suppress(StopSignal):
            with self.duties.interrupts.breakable():
                self.candidates.finish()
            final, passed = self.candidates.passed or (self.duties.saver.snapshot(), None)
            if passed is not None and len(passed.returns) >= self._episodes:
                return passed
            result = self._play(final)
            self.duties.after_evaluation(result, final.steps, FINAL)
            self.candidates.judge(final, result, self._play)
        return result

    @property
    def _episodes(self) -> int:
        return self.config.evaluation.final_episodes

    def _play(self, policy: Checkpoint) -> EvaluationResult:
        what, episodes = f"evaluating the policy of {policy.steps:,} steps", self._episodes
        journal = self.duties.journal
        journal.say(f"{what} over {episodes} episodes …")
        clock = Remaining(episodes)

        def watch(done: int, steps: int) -> None:
            journal.watch_evaluation(f"{what}: {clock.after(done, steps)}")

        with self.duties.interrupts.breakable():
            return self.evaluator.play(policy.model, final_protocol(self.config), watch)


@dataclass
class _Duties:
    """What is done beside collecting and learning."""

    env_spec: EnvSpec
    extensions: RunExtensions
    journal: Journal
    saver: Saver
    callbacks: Callbacks
    interrupts: Interrupts
    candidates: Candidates | None = None

    def after_rollout(self, rollout: Rollout) -> Rollout:
        """Return what is learnt from a rollout."""
        if rollout.index == 0:
            for remark in coarse_observations(rollout.observation, self.env_spec):
                self.journal.remark(remark)
        rollout = transformed(rollout, self.extensions.transforms)
        self.callbacks.on_rollout(rollout)
        return rollout

    def after_update(self, update: Update) -> bool:
        """Do what is due; return whether training is to stop."""
        self.journal.note_update(update)
        with self.interrupts.hurried():
            self.callbacks.on_update(update)
        self.journal.flush_if_due()
        self.saver.save_if_due()
        passed = self.candidates is not None and self.candidates.after_update(update.steps)
        return passed or self.callbacks.context.stops

    def after_evaluation(
        self, result: EvaluationResult, steps: int, kind: str = "evaluation"
    ) -> None:
        """Write down an evaluation of the policy as it was after ``steps``."""
        self.journal.note_evaluation(result, steps, kind)
        self.callbacks.on_evaluation(result, steps)


def _is_body_shared(model: PolicyModel) -> bool:
    return isinstance(model, ActorCritic) and model.critic_body is None


def evaluation_factory(config: Config) -> EnvFactory:
    """Return what builds the environments in which policies are evaluated."""
    factory = env_factory(config)
    return dataclasses.replace(factory, kwargs={**factory.kwargs, **config.evaluation.env_kwargs})


def _check_evaluated(found: EnvSpec, sampled: EnvSpec) -> None:
    """Reject `evaluation.env_kwargs` that change the observation or action space.

    Raises:
        ConfigError: Names what differs.
    """
    for kind in ("observation", "action"):
        theirs, ours = getattr(found, kind), getattr(sampled, kind)
        if theirs != ours:
            raise ConfigError(
                f"evaluation.env_kwargs: the policy cannot play an {kind} space of "
                f"{getattr(found, f'{kind}_space')}; it learns "
                f"{getattr(sampled, f'{kind}_space')}"
            )


def protocol(config: Config) -> EvaluationProtocol:
    """Return what is played during training."""
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
    """Return what is played after training: other episodes than those that chose the best."""
    settings = config.evaluation
    return dataclasses.replace(
        protocol(config), episodes=settings.final_episodes, seed=settings.seed + 1
    )


def _check_metric(config: Config, env_spec: EnvSpec) -> None:
    """Reject an `evaluation.metric` that the environment does not report.

    Raises:
        ConfigError: Names what it does report.
    """
    metric = config.evaluation.metric
    if metric == RETURN_MEAN or metric.removeprefix(INFO) in env_spec.episode_info:
        return
    known = ", ".join(f"{INFO}{name}" for name in env_spec.episode_info) or "nothing else"
    raise ConfigError(
        f"evaluation.metric: '{metric}' is not reported by '{env_spec.id}', which reports "
        f"{RETURN_MEAN} and {known}; env.episode_info names more"
    )
