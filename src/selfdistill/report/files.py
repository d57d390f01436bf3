"""Reads a run folder for its page. Of the completions, only the first and the last step are kept in memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

from selfdistill.errors import DataError
from selfdistill.files.jsonl import Row, read_lines, read_object
from selfdistill.files.records import RolloutLine, read_rollouts
from selfdistill.files.text import counted, plural
from selfdistill.report.numbers import number

_NAMED = 5
"""Number of steps that a message about damage names. The others are only counted."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of a run. ``first`` and ``last`` are the completions of the first and the last scored step.

    ``summary`` is empty if the run has continued since the file was written.
    """

    name: str
    config: Row
    metrics: tuple[Row, ...]
    summary: Row
    first: tuple[RolloutLine, ...]
    last: tuple[RolloutLine, ...]
    alarms: tuple[Row, ...] = ()
    quantised: str = ""
    """How the weights were quantised before they were converted from a GGUF file; empty if they were not."""
    damage: tuple[str, ...] = ()
    """Messages about damaged lines of the files. ``train --resume`` repairs such lines."""


def read_run(run_dir: Path, completions: OuterSteps | None = None) -> RunFiles:
    """Read a run folder. Only ``config.json`` is required, because the run may not have finished.

    ``completions`` are the outer steps of ``rollouts.jsonl`` if the caller has already read it.

    Raises:
        DataError: ``config.json`` is missing, or a file is malformed.
    """
    if not (run_dir / "config.json").is_file():
        raise DataError(missing_run(run_dir))
    if completions is None:
        completions = outer_steps(read_rollouts(run_dir / "rollouts.jsonl"))
    first, last = completions.first_and_last()
    metrics = tuple(read_lines(run_dir / "metrics.jsonl"))
    folder = run_dir.resolve()
    return RunFiles(
        # The folder of a run of a comparison is arm/seed-0.
        name=f"{folder.parent.name}, {folder.name}" if folder.name.startswith("seed-") else folder.name,
        config=read_object(run_dir / "config.json"),
        metrics=(*_before_training(run_dir, metrics), *metrics),
        summary=summary_of(run_dir, metrics),
        first=first,
        last=last,
        alarms=tuple(read_lines(run_dir / "alarms.jsonl")),
        quantised=quantised_start(run_dir),
        damage=tuple(_damage(run_dir, metrics, completions)),
    )


def quantised_start(run_dir: Path) -> str:
    """Return how the weights of a run's model were quantised, by the record of its first start; empty if not."""
    first = next(iter(read_lines(run_dir / "starts.jsonl")), {})
    return str(first.get("quantised") or "")


def _damage(run_dir: Path, metrics: Sequence[Row], completions: OuterSteps) -> Iterator[str]:
    """Yield a message for each kind of damage: repeated, missing and torn lines."""
    steps = [int(step) for row in metrics if (step := number(row.get("step"))) is not None]
    repeated = sorted(step for step, count in Counter(steps).items() if count > 1)
    # A damaged line may name a step of any size, so the gaps are walked and never listed whole.
    known = sorted({step for step in steps if step > 0})
    missing = (step for before, after in pairwise([0, *known]) for step in range(before + 1, after))
    if repeated:
        yield f"metrics.jsonl holds {_named(repeated)} more than once: every line is drawn and counted."
    if known and known[-1] > len(known):
        yield f"metrics.jsonl lacks {_named([*islice(missing, _NAMED)], count=known[-1] - len(known))}."
    evaluated = Counter(number(row.get("step")) for row in read_lines(run_dir / "evaluations.jsonl"))
    evaluated_again = sorted(int(step) for step, count in evaluated.items() if step is not None and count > 1)
    if evaluated_again:
        yield f"evaluations.jsonl holds {_named(evaluated_again)} more than once."
    if completions.doubled:
        yield (
            f"rollouts.jsonl holds {counted(completions.doubled, 'completion')} of steps that had ended, or twice in a "
            "row: "
            "they are left out here."
        )
    # While a run is going, an incomplete last line is still being written.
    for name in ("metrics", "rollouts", "evaluations") if (run_dir / "summary.json").is_file() else ():
        if _is_torn(run_dir / f"{name}.jsonl"):
            yield f"The last line of {name}.jsonl is torn and left out."


def _named(steps: Sequence[int], *, count: int | None = None) -> str:
    """Name the first steps and count the others. ``count`` is the number of all steps, if ``steps`` is cut."""
    count = len(steps) if count is None else count
    names = ", ".join(map(str, steps[:_NAMED])) + (f" and {count - _NAMED} more" if count > _NAMED else "")
    return f"{plural(count, 'step')} {names}"


def _is_torn(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def missing_run(folder: Path) -> str:
    """Return the message for a folder that holds no run."""
    if not folder.exists():
        return f"there is no folder {folder}; a run makes its own when its model is loaded"
    return f"{folder} is not the folder of a run: it has no config.json"


def summary_of(run_dir: Path, metrics: Sequence[Row]) -> Row:
    """Return the summary of a run with these metrics; empty if the run has continued since it was written."""
    summary = read_object(run_dir / "summary.json")
    summarised, last = number(summary.get("steps")), number(metrics[-1].get("step")) if metrics else None
    return {} if summarised is not None and last is not None and last > summarised else summary


def _before_training(run_dir: Path, metrics: Sequence[Row]) -> list[Row]:
    """Return the evaluation before training as one line of metrics for step 0, unless the metrics have such a line."""
    if any(row.get("step") == 0 for row in metrics):
        return []
    rows = [row for row in read_lines(run_dir / "evaluations.jsonl") if row.get("step") == 0]
    return [{"step": 0, "evaluation": rows[-1]}] if rows else []


class OuterSteps:
    """Collects the completions of the first and the last step, and keeps only these two steps in memory.

    Completions with ``u`` are preferred: if any exist, the others are left out. With a single step, the last is empty.
    """

    def __init__(self) -> None:
        self._first: dict[bool, list[RolloutLine]] = {True: [], False: []}
        self._last: dict[bool, list[RolloutLine]] = {True: [], False: []}
        self._newest: RolloutLine | None = None
        self.doubled = 0
        """Number of lines left out, because a run writes its steps in order and no completion twice."""

    def add(self, line: RolloutLine) -> None:
        """Add the next line of ``rollouts.jsonl``."""
        if self._newest is not None and (line.step < self._newest.step or line == self._newest):
            self.doubled += 1
            return
        self._newest = line
        scored = bool(line.u)
        first, last = self._first[scored], self._last[scored]
        if not first or first[0].step == line.step:
            first.append(line)
        elif last and last[0].step == line.step:
            last.append(line)
        else:
            self._last[scored] = [line]

    def first_and_last(self) -> tuple[tuple[RolloutLine, ...], tuple[RolloutLine, ...]]:
        """Return the completions of the first and of the last step so far."""
        scored = bool(self._first[True])
        return tuple(self._first[scored]), tuple(self._last[scored])


def outer_steps(lines: Iterable[RolloutLine]) -> OuterSteps:
    """Collect the outer steps of all lines."""
    steps = OuterSteps()
    for line in lines:
        steps.add(line)
    return steps
