"""A run: the loop on one screen, and what it leaves in its folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from selfdistill.config.run import RunConfig
from selfdistill.distributed.signals import StopRequest
from selfdistill.distributed.world import World
from selfdistill.errors import CheckpointError, OutOfMemory, SamplerError, TrainingError
from selfdistill.evaluation.evaluate import evaluate
from selfdistill.files import JsonLines, flatten, write_json
from selfdistill.models.policy import save_policy
from selfdistill.report.page import write_report
from selfdistill.seeds import batches, derive
from selfdistill.tracking.alarms import AlarmWatch, Thresholds
from selfdistill.tracking.progress import Progress
from selfdistill.tracking.trackers import Begin, Trackers, require
from selfdistill.training import atomic as checkpoint
from selfdistill.training.build import assemble
from selfdistill.training.checkpoint import load_state, save_state
from selfdistill.training.clock import Clock
from selfdistill.training.metrics import as_seen, described, drawn, separation, taught
from selfdistill.training.trainer import StepResult
from selfdistill.types import STUDENT, Example, RolloutGroup, StepRecord, Task

PLACES = ("kind", "shards", "activation_checkpointing", "cpu_offload", "timeout")
CUTS = ("limits.tokens", "limits.elements", "sampling.max_rows")
MAY_CHANGE = ("steps", "checkpoint", "sinks", "stop_on", *CUTS, *(f"parallel.{key}" for key in PLACES))
"""Config keys that a resume may change: they alter no step that was made, and later ones by rounding at most."""


@dataclass(slots=True)
class Counters:
    """What a run has come to; part of every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    before: dict[str, Any] | None = None
    latest: dict[str, Any] | None = None
    latest_step: int = 0
    best: dict[str, Any] | None = None
    best_step: int = 0


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
    ) -> None:
        """Assemble everything, then open the folder; nothing is written when something is wrong.

        Without ``progress`` the run is silent. ``task`` replaces the one that ``config.task`` describes. ``on_step``
        is called after every step, when its lines have been written.

        Raises:
            UserError: one sentence.
        """
        self.folder = folder
        self.progress = progress = progress or Progress()
        self.on_step = on_step
        self.world = World.current()
        exists = self.world.from_first(lambda: holds_run(folder, resume=resume))
        if resume and not exists:
            progress.say(f"nothing to resume in {folder}: starting a new run")
        require(config.sinks)
        self.parts = assemble(config, folder=folder, say=progress.say, task=task)
        self.config = self.parts.config
        self.counters = Counters()
        self.saved_step = 0
        self.saved = folder / "checkpoints"
        self.metrics, self.evaluations, self.rollouts, self.alarms = (
            JsonLines(folder / f"{name}.jsonl", writes=self.world.first)
            for name in ("metrics", "evaluations", "rollouts", "alarms")
        )
        self.watch = AlarmWatch(Thresholds(**self.config.alarms.model_dump()))
        if exists:
            check_same_config(folder, self.config)
            self._restore()
        settings = self.config.model_dump()
        if self.world.first:
            self.saved.mkdir(parents=True, exist_ok=True)
            write_json(folder / "config.json", settings)
        begin = Begin(folder, settings, self.counters.step)
        self.trackers = Trackers(config.sinks if self.world.first else [], begin, warn=progress.say)

    def train(self, stop: StopRequest | None = None) -> dict[str, Any]:
        """Train to the last step or until asked to stop; returns the summary."""
        stop = stop or StopRequest()
        try:
            with checkpoint.told_when_full(self.folder):
                return self._train(stop)
        except OutOfMemory as error:
            at = self.saved_step
            kept = f"step {at} is kept, and --resume goes on from it" if at else "no step was saved yet"
            raise OutOfMemory(f"{error}; {kept}") from error
        finally:
            self.parts.drawer.close()

    def _train(self, stop: StopRequest) -> dict[str, Any]:
        parts, config, now = self.parts, self.config, self.counters
        for remark in parts.remarks:
            self.progress.say(f"data: {remark}")
        for remark in parts.chat.remarks():
            self.progress.say(f"model: {remark}")
        if not parts.teachers.pack:
            self.progress.say(
                "model: its tokens meet elsewhere than in full or sliding attention, so batches are padded, "
                "and a prompt that completions share is computed for each of them"
            )
        if parts.unfit:
            self.progress.say(f"left out: {', '.join(f'{n} × {reason}' for reason, n in sorted(parts.unfit.items()))}")
        if parts.method.one_update and config.optimiser.updates > 1:
            self.progress.say(
                f"warning: {config.method['name']} is meant for one optimiser step a batch, "
                f"optimiser.updates is {config.optimiser.updates}"
            )
        if now.before is None:
            clock = Clock(parts.policy.device)
            with clock.phase("evaluation"):
                now.before = self._evaluate()
            now.seconds.update(clock.seconds)
            self.watch.look({"step": 0, "evaluation": now.before})
        lessons = pairwise(self._lessons())
        while now.step < config.steps and not self._stopped(stop) and not self._alarmed():
            clock = Clock(parts.policy.device)
            with clock.phase("generation"):
                groups = self._collect(*next(lessons))
            try:
                result = parts.trainer.step(groups, step=now.step + 1, clock=clock)
            except TrainingError as error:
                raise self._set_aside(groups, now.step + 1, error) from error
            # As large as the weights, and of no use to what evaluates and draws next.
            parts.trainer.optimiser.zero_grad(set_to_none=True)
            now.step += 1
            line = self._measure(groups, result, clock)
            if now.step % config.evaluation.every == 0 or now.step == config.steps:
                with clock.phase("evaluation"):
                    line["evaluation"] = self._evaluate()
            self._note_seconds(clock, line)
            self._listen(line)
            completions = list(described(groups, result, parts.chat))
            self.rollouts.append(*completions)
            self.metrics.append(line)
            self.trackers.step(line, completions)
            self.progress.step(line, total=config.steps)
            self._call_back(as_seen(result.record, line))
            if now.step % config.checkpoint.every == 0:
                self._save(export=now.step == config.steps)
        if now.step > self.saved_step:
            self._save(export=True)
        return self._finish()

    def _stopped(self, stop: StopRequest) -> bool:
        """Whether any rank was asked to stop: all then stop after the same step."""
        stop.signal = self.world.max(stop.signal or 0) or None
        return stop.requested

    def _lessons(self) -> Iterator[list[Example]]:
        """Every step's examples, from the next step on."""
        per_step, examples = self.config.sampling.prompts, self.parts.examples
        first = self.counters.step
        order = batches(len(examples), per_step, seed=self.config.seed, first_step=first + 1)
        for step, indices in enumerate(order, start=first):
            yield epoch_examples(examples, indices, first=step * per_step)

    def _collect(self, examples: Sequence[Example], following: Sequence[Example]) -> list[RolloutGroup]:
        step = self.counters.step + 1
        try:
            return self.parts.drawer.groups(step, examples, following if step < self.config.steps else None)
        except SamplerError:
            # All that was learnt up to here is kept, however long ago the last checkpoint was due.
            if self.counters.step > self.saved_step:
                self._save(export=True)
            raise

    def _evaluate(self) -> dict[str, Any]:
        """Evaluate the student, keep it if it is the best so far, and write both down."""
        now, parts, sampling = self.counters, self.parts, self.config.sampling
        assert sampling.max_tokens is not None
        result = evaluate(
            parts.held_out,
            parts.task,
            parts.evaluator,
            parts.chat,
            samples=self.config.evaluation.samples,
            max_tokens=sampling.max_tokens,
            thinking=sampling.thinking,
            seed=derive(self.config.seed, "evaluation"),
            world=self.world,
        ).to_json()
        now.latest, now.latest_step = result, now.step
        if now.best is None or result["avg"]["value"] > now.best["avg"]["value"]:
            now.best, now.best_step = result, now.step
            checkpoint.write_folder(self.saved / "best", self._export, world=self.world)
        self.evaluations.append({"step": now.step, **result})
        self.trackers.evaluation(now.step, result)
        self.progress.evaluation(now.step, result)
        return result

    def _measure(self, groups: Sequence[RolloutGroup], result: StepResult, clock: Clock) -> dict[str, Any]:
        """The step's line of metrics, seconds aside."""
        generated = sum(len(rollout.completion_ids) for group in groups for rollout in group.rollouts)
        self.counters.tokens += generated
        line = flatten(result.record)
        line["generated"] = generated
        line.update(drawn(groups, STUDENT))
        for source in self.parts.method.sources():
            if source != STUDENT:
                line.update({f"{source}_{name}": value for name, value in drawn(groups, source).items()})
        line.update(taught(groups, result, needs_rewards=self.parts.method.needs_rewards()))
        line.update(separation(result))
        return line

    def _listen(self, line: dict[str, Any]) -> None:
        """Let the alarms look at the step's line, and note in it which of them stand."""
        sounded = self.watch.look(line)
        line["alarms"] = sorted(self.watch.standing)
        for alarm in sounded:
            self.progress.say(alarm.sentence())
        self.alarms.append(*(alarm.to_json() for alarm in sounded))

    def _alarmed(self) -> list[str]:
        """The alarms that end the run: those of ``stop_on`` that the newest step has set off."""
        return [alarm.name for alarm in self.watch.sounded if alarm.name in self.config.stop_on]

    def _call_back(self, record: StepRecord) -> None:
        try:
            self.on_step(record)
        except BaseException:  # KeyboardInterrupt too: the run ends, and can be resumed from this very step
            self._save(export=True)
            raise

    def _note_seconds(self, clock: Clock, line: dict[str, Any]) -> None:
        for phase, seconds in clock.seconds.items():
            self.counters.seconds[phase] = self.counters.seconds.get(phase, 0.0) + seconds
        line["phase_seconds"] = {phase: round(seconds, 4) for phase, seconds in clock.seconds.items()}
        line["seconds"] = round(sum(clock.seconds.values()), 4)

    def _export(self, folder: Path) -> None:
        save_policy(self.parts.policy, self.parts.chat, folder, writes=self.world.first)

    def _save(self, *, export: bool) -> None:
        """Write a checkpoint. Of sharded weights a model directory is made only where ``export`` says so."""
        parts, now = self.parts, self.counters

        def fill(folder: Path) -> None:
            if export or not parts.policy.sharded:
                self._export(folder / "model")
            save_state(folder, parts.policy, parts.trainer.optimiser, parts.teachers, self.world)
            parts.drawer.save(folder)
            if self.world.first:
                method = parts.trainer.state.state_dict() if parts.trainer.state else None
                counters = {name: getattr(now, name) for name in now.__slots__}
                state = {"counters": counters, "method": method, "origin": parts.origin}
                write_json(folder / "state.json", state)

        path = checkpoint.checkpoint_path(self.saved, now.step)
        checkpoint.write_folder(path, fill, world=self.world)
        if self.world.first:
            checkpoint.prune(self.saved, self.config.checkpoint.keep, last=path)
        self.saved_step = now.step

    def _restore(self) -> None:
        """Go back to the newest whole checkpoint, and cut the files back to it."""
        if self.world.first:
            checkpoint.repair(self.saved / "best")
        path, remarks = self.world.from_first(lambda: checkpoint.newest_whole(self.saved))
        for remark in remarks:
            self.progress.say(remark)
        parts = self.parts
        if path is not None:
            stored = json.loads((path / "state.json").read_text(encoding="utf-8"))
            if stored["origin"] != parts.origin:
                raise CheckpointError(
                    f"{self.folder} began from other weights than {self.config.model.path} holds now: "
                    "the run cannot go on"
                )
            self.counters = Counters(**stored["counters"])
            self.saved_step = self.counters.step
            load_state(path, parts.policy, parts.trainer.optimiser, parts.teachers, self.world)
            parts.drawer.load(path)
            if parts.trainer.state is not None:
                parts.trainer.state.load_state_dict(stored["method"])
            self.progress.say(f"resuming {self.folder} after step {self.counters.step}")
        else:
            self.progress.say(f"{self.folder} has no checkpoint yet: starting over")
        for lines in (self.metrics, self.evaluations, self.rollouts, self.alarms):
            lines.cut(after_step=self.counters.step if path is not None else -1)
        self.world.barrier()
        if path is not None:
            # The alarms know no more than the lines say, so that the lines are all the state they need.
            for line in ({"step": 0, "evaluation": self.counters.before}, *self.metrics.read()):
                self.watch.look(line)

    def _set_aside(self, groups: Sequence[RolloutGroup], step: int, error: TrainingError) -> TrainingError:
        name = f"bad-batch-{step:06d}.jsonl"
        empty = StepResult(StepRecord(step), [])
        lines = JsonLines(self.folder / name, writes=self.world.first)
        lines.append(*described(groups, empty, self.parts.chat))
        return TrainingError(f"{error}; the batch is in {self.folder / name}, the last checkpoint is kept")

    def _finish(self) -> dict[str, Any]:
        now = self.counters
        seconds = sum(now.seconds.values())
        self.trackers.close()
        summary = {
            "steps": now.step,
            "finished": now.step >= self.config.steps,
            "stopped_by": self._alarmed() if now.step < self.config.steps else [],
            "before": now.before,
            "after": now.latest,
            "after_step": now.latest_step,
            "best": now.best,
            "best_step": now.best_step,
            "seconds": {phase: round(value, 3) for phase, value in now.seconds.items()},
            "alarms": list(self.alarms.read()),
            "sink_failures": dict(self.trackers.failures),
            "tokens": now.tokens,
            "tokens_per_second": round(now.tokens / seconds, 2) if seconds else None,
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        if self.world.first:
            write_json(self.folder / "summary.json", summary)
            write_report(self.folder)
        return summary


def holds_run(folder: Path, *, resume: bool) -> bool:
    """Whether a folder holds a run that may go on.

    Raises:
        CheckpointError: it holds a run that may not, or other things.
    """
    exists = (folder / "config.json").exists()
    if exists and not resume:
        raise CheckpointError(f"{folder} holds another run: choose another --out, or continue it with --resume")
    if not exists and folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty and holds no run: choose another --out")
    return exists


def epoch_examples(examples: Sequence[Example], indices: Sequence[int], *, first: int) -> list[Example]:
    """A step's examples as they are asked in their epoch; ``first`` counts those that earlier steps have taken."""
    return [examples[i].in_epoch((first + n) // len(examples)) for n, i in enumerate(indices)]


def check_same_config(folder: Path, config: RunConfig, *, may_change: Sequence[str] = MAY_CHANGE) -> None:
    """Refuse to go on in the folder of a run that was made with another config.

    Raises:
        CheckpointError: the first key that differs.
    """
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ours = json.loads(json.dumps(config.model_dump()))
    # A table that the folder's config lacks is younger than the run, which was made as its defaults say.
    defaults = json.loads(json.dumps(RunConfig(method={}).model_dump()))
    stored = {**{key: defaults[key] for key in ("alarms", "parallel", "sampler", "sinks", "stop_on")}, **stored}
    stored["alarms"] = {**defaults["alarms"], **stored["alarms"]}
    # Where servers are and how patient a run is with them changes no step either.
    stored, ours = ({**table, "sampler": _numeric(table["sampler"])} for table in (stored, ours))
    for path in may_change:
        table, _, key = path.rpartition(".")
        for settings in (stored, ours):
            (settings[table] if table else settings).pop(key, None)
    for key in sorted({*stored, *ours}):
        if stored.get(key) != ours.get(key):
            where = _difference(key, stored.get(key), ours.get(key))
            raise CheckpointError(
                f"{folder} was made with another config: {where}; resume with the same, or choose another --out"
            )


def _numeric(sampler: Mapping[str, Any]) -> dict[str, Any]:
    """Of a ``sampler`` table what changes the steps."""
    return {key: sampler[key] for key in ("kind", "importance_cap", "overlap") if key in sampler}


def _difference(key: str, stored: Any, ours: Any) -> str:
    if isinstance(stored, dict) and isinstance(ours, dict):
        for below in sorted({*stored, *ours}):
            if stored.get(below) != ours.get(below):
                return _difference(f"{key}.{below}", stored.get(below), ours.get(below))
    return f"{key} was {stored!r} and is now {ours!r}"
