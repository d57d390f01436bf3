"""The training loop of a run, its checkpoints, and the files that it writes to its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from selfdistill.config.run import RunConfig
from selfdistill.distributed.signals import StopRequest
from selfdistill.distributed.world import World
from selfdistill.errors import OutOfMemory, SamplerError, TrainingError
from selfdistill.evaluation.best import score_by
from selfdistill.evaluation.evaluate import evaluate, evaluation_params
from selfdistill.files.disk import report_disk_errors
from selfdistill.files.jsonl import JsonLines, write_json
from selfdistill.files.records import completions_drawn, total_budget
from selfdistill.models.policy import save_policy
from selfdistill.report.page import write_report
from selfdistill.seeds import derive
from selfdistill.tasks.reward import describe_right
from selfdistill.tracking.alarms import AlarmWatch
from selfdistill.tracking.progress import Interrupted, Progress, activity
from selfdistill.tracking.trackers import Begin, Trackers, require
from selfdistill.training import atomic as checkpoint
from selfdistill.training.alike import Alike
from selfdistill.training.banner import banner, warnings
from selfdistill.training.build import assemble
from selfdistill.training.checkpoint import load_state, save_best, save_state
from selfdistill.training.clock import Clock
from selfdistill.training.counters import Counters
from selfdistill.training.metrics import callback_record, keep_batch, rollout_lines, step_line
from selfdistill.training.opening import Hold, check_steps, mend_best, state_to_resume
from selfdistill.training.place import holds_run
from selfdistill.training.problem import completions_of_step
from selfdistill.training.provenance import start_record
from selfdistill.training.trainer import StepResult
from selfdistill.types import Example, RolloutGroup, StepRecord, Task


class Run:
    """One training run in one folder."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        resume: bool = False,
        progress: Progress | None = None,
        task: Task | None = None,
        on_step: Callable[[StepRecord], object] = lambda record: None,
        untrained: Path | None = None,
    ) -> None:
        """Build all parts, then open the folder, so that a wrong config leaves no files behind.

        ``progress`` prints to the user; None prints nothing. ``task`` replaces the task of ``config.task``. ``on_step``
        is called after every step, once the step's lines are written. ``untrained`` is the folder of :class:`Alike`.

        Raises:
            UserError: the config, the data, the model or the folder cannot be used.
        """
        self.folder = folder
        self.progress = progress = progress or Progress()
        self.on_step = on_step
        self.world = World.current()
        self.hold = Hold(folder)
        exists = self.world.broadcast_from_rank_zero(lambda: holds_run(folder, resume=resume))
        # A stored traceback keeps this object alive, so a failure must release the folder explicitly.
        with ExitStack() as on_failure:
            on_failure.callback(self.hold.release)
            if exists:
                self.world.broadcast_from_rank_zero(self.hold.take)
            if resume and not exists:
                progress.log(f"nothing to resume in {folder}: starting a new run")
            require(config.sinks)
            self.parts = assemble(config, folder=folder, log=progress.log, task=task)
            self.config = self.parts.config
            self.alike = Alike(untrained, self.parts, self.world)
            self.counters = Counters()
            self.saved_step = 0
            self.saved = folder / "checkpoints"
            self.metrics, self.evaluations, self.rollouts, self.alarms, self.tests, self.starts = (
                JsonLines(folder / f"{name}.jsonl", writes=self.world.is_rank_zero)
                for name in ("metrics", "evaluations", "rollouts", "alarms", "test", "starts")
            )
            final = [self.tests] if self.parts.final else []
            self.logs = [self.metrics, self.evaluations, self.rollouts, self.alarms, *final]
            self.watch = AlarmWatch(self.config.alarms, right=describe_right(self.parts.task), by=self.parts.best_by)
            if exists:
                self._restore()
                check_steps(folder, self.counters.step, self.config.steps, log=progress.log)
            settings = self.config.model_dump()
            self.world.broadcast_from_rank_zero(lambda: self._open(settings, new=not exists))
            begin = Begin(folder, settings, self.counters.step)
            self.trackers = Trackers(config.sinks if self.world.is_rank_zero else [], begin, warn=progress.log)
            on_failure.pop_all()

    def _open(self, settings: Mapping[str, Any], *, new: bool) -> None:
        self.hold.take()
        if new:
            # Another run may have taken the folder while this one loaded its model.
            holds_run(self.folder, resume=False)
        with report_disk_errors(self.folder, resume="run the same command again"):
            self.saved.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "config.json", settings)
            self.starts.append(start_record(self.config.model, step=self.counters.step, seed=self.config.seed))

    def train(self, stop: StopRequest | None = None) -> dict[str, Any]:
        """Train to the last step, or until a stop request or an alarm of ``stop_on``; returns the summary."""
        stop = stop or StopRequest()
        self.progress.stop_requested = lambda: stop.requested
        try:
            with report_disk_errors(self.folder, resume="continue the run with --resume"):
                return self._train(stop)
        except OutOfMemory as error:
            step = self.saved_step
            hint = f"step {step} is kept, and --resume goes on from it" if step else "no step was saved yet"
            raise OutOfMemory(f"{error}; {hint}") from error
        finally:
            if self.parts.prefetcher is not None:
                self.parts.prefetcher.close()
            self.parts.worker.engines.close()
            self.hold.release()

    def _train(self, stop: StopRequest) -> dict[str, Any]:
        parts, config, counters = self.parts, self.config, self.counters
        # Tell the user what is trained and how, and what is unusual about the data, the model and the method.
        self.progress.table(banner(parts, self.folder))
        for warning in warnings(parts):
            self.progress.log(warning)
        # Evaluate the untrained model once: later evaluations are compared with it.
        if counters.before is None:
            counters.before = self._evaluate_start()
            self.watch.update({"step": 0, "evaluation": counters.before})
        # An engine that failed in the middle of an evaluation left its step without one.
        if self._evaluation_is_due() and counters.latest_step < counters.step:
            self._evaluate()
        batches_of_examples = pairwise(parts.order.steps(counters.step + 1))
        while not self._is_over() and not self._stopped(stop) and not self._stopped_by_alarm():
            clock = Clock(parts.policy.device)
            # Sample completions and verify them: one group of rollouts per example.
            try:
                with clock.phase("generation"):
                    groups = self._collect(*next(batches_of_examples))
                if parts.resampler is not None:
                    with clock.phase("resampling"), self._kept():
                        groups = parts.resampler.fill(groups, step=counters.step + 1)
            except Interrupted:
                self.progress.log(f"step {counters.step + 1} was left while it was sampled: --resume samples it anew")
                break
            # Score the rollouts under the method's contexts and make the optimiser updates.
            try:
                # A step that fails before its one update has changed nothing, unless the method keeps a state.
                unchanged = config.optimiser.updates_per_batch == 1 and parts.trainer.state is None
                with self._kept(unchanged), activity("learning", unit="micro-batches"):
                    result = parts.trainer.step(groups, step=counters.step + 1, clock=clock)
            except TrainingError as error:
                path = self.folder / f"bad-batch-{counters.step + 1:06d}.jsonl"
                keep_batch(JsonLines(path, writes=self.world.is_rank_zero), groups, counters.step + 1, parts.chat)
                raise TrainingError(f"{error}; the batch is in {path}, the last checkpoint is kept") from error
            # Free the gradients: they are as large as the weights, and evaluation and sampling need the memory.
            parts.trainer.optimiser.zero_grad(set_to_none=True)
            counters.step += 1
            parts.worker.engines.version = counters.step
            # Write its numbers and completions, evaluate if due, and save a checkpoint if due.
            self._conclude(groups, result, clock)
        # Save the last step in any case, then write summary.json and the report.
        if counters.step > self.saved_step:
            self._save(export=True)
        if self._is_over() or self._stopped_by_alarm():
            if counters.step < config.steps and self._is_over():
                self.progress.log(f"{counters.completions} of max_completions = {config.max_completions} are drawn")
            self._evaluate_finally()
        return self._finish()

    def _conclude(self, groups: Sequence[RolloutGroup], result: StepResult, clock: Clock) -> None:
        """Evaluate if due, check the alarms, write what the step measured, and save a checkpoint if due.

        Raises:
            SamplerError: the engine failed during the evaluation. The step is written and saved all the same.
        """
        parts, config, counters = self.parts, self.config, self.counters
        # Collect the metrics, evaluate if due, and check the alarms.
        measured = step_line(groups, result, parts.method, updates=config.optimiser.updates_per_batch)
        line = measured | parts.order.record(counters.step, groups) | parts.worker.engines.take_synced()
        counters.completions += completions_drawn(line)
        failure: SamplerError | None = None
        if self._evaluation_is_due():
            try:
                with clock.phase("evaluation"):
                    line["evaluation"] = self._evaluate()
            except SamplerError as error:
                failure = error
        line |= counters.add(line["generated"], clock.seconds)
        self._check_alarms(line)
        # Write the step to rollouts.jsonl, metrics.jsonl, the trackers and the terminal.
        completions = list(rollout_lines(groups, result, parts.chat))
        self.rollouts.append(*(completion.to_json() for completion in completions))
        self.metrics.append(line)
        self.trackers.step(line, completions)
        left = counters.evaluation_seconds_left(self._planned(), config.evaluation.every)
        self.progress.step(line, total=self._planned(), evaluation_left=left)
        # Call the user's function, then save a checkpoint if due.
        self._call_back(callback_record(result.record, line))
        if counters.step % config.checkpoint.every == 0 or failure is not None:
            self._save(export=self._is_over() or failure is not None)
        if failure is not None:
            raise failure

    def _planned(self) -> int:
        each = completions_of_step(self.config, self.parts.method)
        return self.counters.planned(self.config.steps, self.config.max_completions, each=each)

    def _is_over(self) -> bool:
        return self.counters.step >= self._planned()

    def _evaluation_is_due(self) -> bool:
        step = self.counters.step
        return step > 0 and (step % self.config.evaluation.every == 0 or self._is_over())

    def _stopped(self, stop: StopRequest) -> bool:
        """Whether any rank got a stop request. An all-reduce lets all ranks stop after the same step."""
        stop.signal = self.world.max(stop.signal or 0) or None
        return stop.requested

    def _collect(self, examples: Sequence[Example], following: Sequence[Example]) -> list[RolloutGroup]:
        """The verified rollouts of the next step. ``following`` are the examples of the step after it."""
        step, parts, sampled = self.counters.step + 1, self.parts, None
        with self._kept():
            if parts.prefetcher is not None:
                sampled = parts.prefetcher.sample(step, examples, following if step < self._planned() else None)
            seed = derive(self.config.seed, "sampling", step)
            return parts.worker.rollout(examples, seed=seed, version=step - 1, sampled=sampled)

    @contextmanager
    def _kept(self, unchanged: bool = True) -> Iterator[None]:
        """Save the steps since the last checkpoint if an engine or a teacher's server fails: the weights are fine."""
        try:
            yield
        except SamplerError:
            if unchanged and self.counters.step > self.saved_step:
                self._save(export=True)
            raise

    def _evaluate_start(self) -> dict[str, Any]:
        """Evaluate the untrained model, unless a run that begins alike has; returns the result."""
        clock, known = Clock(self.parts.policy.device), self.alike.find()
        with clock.phase("evaluation"):
            self._evaluate_finally(known.final)
            result = self._evaluate(known.held_out)
        # Forecasts of the next evaluations follow from these seconds.
        self.counters.seconds["evaluation"] = known.seconds or clock.seconds["evaluation"]
        self.alike.tell(known, self.folder, clock.seconds["evaluation"], log=self.progress.log)
        return result

    def _evaluate(self, known: dict[str, Any] | None = None) -> dict[str, Any]:
        """Evaluate the student, export it if it is the best so far, and log the result; returns the result.

        ``known`` is its result if that is known. Until one has the metric of ``evaluation.best``, the newest counts as
        the best.
        """
        counters, parts = self.counters, self.parts
        result = self._answer(parts.held_out) if known is None else known
        if parts.also and known is None:
            result["also"] = parts.also.measure(parts.worker.sampler, before=counters.before)
        counters.latest, counters.latest_step = result, counters.step
        score, best = (score_by(parts.best_by, evaluation) for evaluation in (result, counters.best))
        if best is None or (score is not None and score > best):
            counters.best, counters.best_step = result, counters.step
            save_best(self.saved, counters.step, self._export, self.world)
        self.evaluations.append({"step": counters.step, **result})
        self.trackers.evaluation(counters.step, result)
        self.progress.evaluation(counters.step, result, by=parts.best_by)
        if parts.method.needs_rewards() and not result["judged"]:
            self.progress.log("reward: no held-out completion is judged, and the method needs rewards")
        return result

    def _evaluate_finally(self, known: dict[str, Any] | None = None) -> None:
        """Answer the problems of ``evaluation.final``, once before training and once after the last step."""
        if self.parts.final:
            self.tests.append({"step": self.counters.step, **(known or self._answer(self.parts.final))})

    def _answer(self, problems: Sequence[Example]) -> dict[str, Any]:
        """The student's evaluation on these problems, as plain JSON."""
        parts, worker, settings = self.parts, self.parts.worker, self.config.evaluation
        return evaluate(
            problems,
            parts.task,
            worker.sampler,
            parts.chat,
            evaluation_params(settings, max_tokens=worker.params.max_tokens, seed=self.config.seed),
            thinking=settings.thinking_after(worker.thinking),
            world=self.world,
            references=parts.references,
        ).to_json()

    def _check_alarms(self, line: dict[str, Any]) -> None:
        """Check the alarms against the step's line, report new ones, and add the active ones to the line."""
        new_alarms = self.watch.update(line)
        line["alarms"] = sorted(self.watch.active)
        for alarm in new_alarms:
            self.progress.log(alarm.message())
        self.alarms.append(*(alarm.to_json() for alarm in new_alarms))

    def _stopped_by_alarm(self) -> list[str]:
        """Names of the alarms that end the run: those listed in ``stop_on`` that the newest step has triggered."""
        return [alarm.name for alarm in self.watch.raised if alarm.name in self.config.stop_on]

    def _call_back(self, record: StepRecord) -> None:
        try:
            self.on_step(record)
        except BaseException:  # KeyboardInterrupt too: the run ends, and can be resumed from this step
            self._save(export=True)
            raise

    def _export(self, folder: Path) -> None:
        save_policy(self.parts.policy, self.parts.chat, folder, writes=self.world.is_rank_zero)

    def _save(self, *, export: bool) -> None:
        """Write a checkpoint. Sharded weights are also written as a model directory only if ``export`` is set."""
        parts, counters = self.parts, self.counters

        def fill(folder: Path) -> None:
            if export or not parts.policy.sharded:
                self._export(folder / "model")
            save_state(folder, parts.policy, parts.trainer.optimiser, parts.teachers, self.world)
            if parts.prefetcher is not None:
                parts.prefetcher.save(folder)
            if self.world.is_rank_zero:
                method = parts.trainer.state.state_dict() if parts.trainer.state else None
                progress = {name: getattr(counters, name) for name in counters.__slots__}
                stored = {"counters": progress, "method": method, "origin": parts.origin}
                stored |= {"order": parts.order.state_dict(), "notes": parts.trainer.notes.state_dict()}
                stored |= {"config": self.config.model_dump(), "logs": {log.path.stem: log.mark() for log in self.logs}}
                write_json(folder / "state.json", stored)

        path = checkpoint.checkpoint_path(self.saved, counters.step)
        with activity(f"saving step {counters.step}"):
            checkpoint.write_folder(path, fill, world=self.world)
        if self.world.is_rank_zero:
            checkpoint.prune(self.saved, self.config.checkpoint.keep, last=path)
        self.saved_step = counters.step

    def _restore(self) -> None:
        """Load the newest valid checkpoint, and cut the log files back to its step."""
        parts = self.parts
        path, stored = state_to_resume(self.folder, self.config, parts.task, parts.origin, log=self.progress.log)
        if self.world.is_rank_zero:
            checkpoint.repair(self.saved / "best")
        if path is not None:
            self.counters = Counters(**stored["counters"])
            self.saved_step = parts.worker.engines.version = self.counters.step
            load_state(path, parts.policy, parts.trainer.optimiser, parts.teachers, self.world)
            if parts.prefetcher is not None:
                parts.prefetcher.load(path)
            parts.order.load_state_dict(stored.get("order"))
            parts.trainer.notes.load_state_dict(stored.get("notes"))
            if parts.trainer.state is not None:
                parts.trainer.state.load_state_dict(stored["method"])
            self.progress.log(f"resuming {self.folder} after step {self.counters.step}")
        else:
            self.progress.log(f"{self.folder} has no checkpoint yet: starting over")
        marks = stored.get("logs", {})
        for lines in self.logs:
            lines.cut((marks.get(lines.path.stem) or lines.mark_after(self.counters.step)) if path else None)
        ranked = path is not None and self.world.is_rank_zero and self.counters.best is not None
        if ranked and (warning := mend_best(self.saved, self.counters.best_step)):
            self.progress.log(warning)
        self.world.barrier()
        if path is not None:
            # Alarms have no state besides these lines, so replaying the lines restores them.
            for line in ({"step": 0, "evaluation": self.counters.before}, *self.metrics.read()):
                self.watch.update(line)
            # Checkpoints of older versions do not count them.
            self.counters.completions = sum(map(completions_drawn, self.metrics.read()))

    def _finish(self) -> dict[str, Any]:
        counters, budget = self.counters, total_budget(self.metrics.read())
        has_best = score_by(self.parts.best_by, counters.best) is not None or self.config.evaluation.best == "last"
        self.trackers.close()
        summary = {
            "finished": self._is_over(),
            "stopped_by": [] if self._is_over() else self._stopped_by_alarm(),
            **counters.summary(has_best=has_best),
            "best_by": self.parts.best_by,
            "right": describe_right(self.parts.task) if self.parts.task.has_verifier else None,
            "alarms": list(self.alarms.read()),
            "starts": list(self.starts.read()),
            "sink_failures": dict(self.trackers.failures),
            "budget": budget and budget.to_json(),
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        if self.world.is_rank_zero:
            write_json(self.folder / "summary.json", summary)
            write_report(self.folder)
        return summary
