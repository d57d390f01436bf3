"""A run folder read for its page: lines one by one, and of the completions only those that can be shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfdistill.errors import DataError
from selfdistill.files.jsonl import Row, read_lines, read_object
from selfdistill.files.records import RolloutLine, read_rollouts
from selfdistill.report.numbers import number


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What a run wrote. ``first`` and ``last`` are all completions of the first and the last scored step.

    ``summary`` is empty where the run has gone on since it was written.
    """

    name: str
    config: Row
    metrics: tuple[Row, ...]
    summary: Row
    first: tuple[RolloutLine, ...]
    last: tuple[RolloutLine, ...]
    alarms: tuple[Row, ...] = ()


def read_run(run_dir: Path, completions: OuterSteps | None = None) -> RunFiles:
    """Read a run folder; an unfinished run may lack everything but its config.

    ``completions`` are the outer steps of ``rollouts.jsonl`` where the caller has read it already.

    Raises:
        DataError: there is no ``config.json``, or a file is not what its name says.
    """
    if not (run_dir / "config.json").is_file():
        raise DataError(_no_run(run_dir))
    first, last = outer_steps(read_rollouts(run_dir / "rollouts.jsonl")) if completions is None else completions.found()
    metrics = tuple(read_lines(run_dir / "metrics.jsonl"))
    place = run_dir.resolve()
    return RunFiles(
        # Runs of a comparison are named by seed, in a folder of their arm.
        name=f"{place.parent.name}, {place.name}" if place.name.startswith("seed-") else place.name,
        config=read_object(run_dir / "config.json"),
        metrics=(*_before_training(run_dir), *metrics),
        summary=_summary_of(run_dir, metrics),
        first=first,
        last=last,
        alarms=tuple(read_lines(run_dir / "alarms.jsonl")),
    )


def _no_run(place: Path) -> str:
    if not place.exists():
        return f"there is no folder {place}; a run makes its own when its model is loaded"
    runs = sorted(path.parent for path in place.glob("runs/*/*/config.json"))
    if runs:
        names = ", ".join(map(str, runs[:3])) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
        return f"{place} is a comparison of several runs: name one of them ({names})"
    return f"{place} is not the folder of a run: it has no config.json"


def _summary_of(run_dir: Path, metrics: Sequence[Row]) -> Row:
    summary = read_object(run_dir / "summary.json")
    done, reached = number(summary.get("steps")), number(metrics[-1].get("step")) if metrics else None
    # The run was stopped, which left a summary, and then went on: what it says of the end is no longer so.
    return {} if done is not None and reached is not None and reached > done else summary


def _before_training(run_dir: Path) -> Iterator[Row]:
    """The evaluation before the first step, which has no line of metrics, in the form of one."""
    for row in read_lines(run_dir / "evaluations.jsonl"):
        if row.get("step") == 0:
            yield {"step": 0, "evaluation": row}


class OuterSteps:
    """Completions of the first and of the last step, holding no more than those two steps.

    Steps whose completions carry ``u`` are preferred; of such steps, completions without it are left out. With one
    step only, the second is empty.
    """

    def __init__(self) -> None:
        self._first: dict[bool, list[RolloutLine]] = {True: [], False: []}
        self._last: dict[bool, list[RolloutLine]] = {True: [], False: []}

    def add(self, line: RolloutLine) -> None:
        """One more line of ``rollouts.jsonl``."""
        scored = bool(line.u)
        first, last = self._first[scored], self._last[scored]
        if not first or first[0].step == line.step:
            first.append(line)
        elif last and last[0].step == line.step:
            last.append(line)
        else:
            self._last[scored] = [line]

    def found(self) -> tuple[tuple[RolloutLine, ...], tuple[RolloutLine, ...]]:
        """The first and the last step so far."""
        kind = bool(self._first[True])
        return tuple(self._first[kind]), tuple(self._last[kind])


def outer_steps(lines: Iterable[RolloutLine]) -> tuple[tuple[RolloutLine, ...], tuple[RolloutLine, ...]]:
    """:class:`OuterSteps` of all lines, in one pass."""
    steps = OuterSteps()
    for line in lines:
        steps.add(line)
    return steps.found()
