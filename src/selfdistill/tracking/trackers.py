"""Sinks that people follow runs with: TensorBoard, Weights & Biases, trackio.

``metrics.jsonl`` remains the source of truth. A tracker gets the metrics of every step and evaluation, and at
evaluations a table of completions. A failing tracker never stops the run; failures are logged once and counted.
"""

from __future__ import annotations

import html
import importlib.util
import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from selfdistill.errors import ConfigError, UserError
from selfdistill.files.records import RolloutLine
from selfdistill.report.numbers import number, printable
from selfdistill.report.tokens import choose, token_values

SHOWN = 8
"""Completions in a table: enough to see what the model does, little beside the numbers."""
COLUMNS = ("step", "example", "reward", "sum of u", "prompt", "completion")
PROJECT = "selfdistill"


class Tracker(Protocol):
    """One sink of one run."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""

    def completions(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """A table with the columns of :data:`COLUMNS`."""

    def close(self) -> None:
        """Send what is left."""


@dataclass(frozen=True, slots=True)
class Begin:
    """What a sink is told when it is opened: ``step`` is the last one that stands, 0 for a new run."""

    folder: Path
    config: Mapping[str, Any]
    step: int

    @property
    def name(self) -> str:
        """The run's name: its folder, and of a comparison's run the arm's."""
        place = self.folder.resolve()
        return f"{place.parent.name}-{place.name}" if place.name.startswith("seed-") else place.name

    def identity(self) -> str:
        """A name that no other run has, kept in the folder so that a resume goes on in the same place."""
        path = self.folder / "sink-id.txt"
        if not path.exists():
            path.write_text(secrets.token_hex(6), encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()


class _TensorBoard:
    def __init__(self, begin: Begin) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Steps that a resume makes again replace those that were written before it.
        purge = begin.step + 1 if begin.step else None
        self.writer = SummaryWriter(str(begin.folder / "tensorboard"), purge_step=purge)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def completions(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
        table = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
        self.writer.add_text("completions", table, step)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, begin: Begin) -> None:
        import wandb

        self.wandb: Any = wandb
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=begin.name,
            id=begin.identity(),
            resume="allow",
            dir=str(begin.folder),
            config=dict(begin.config),
            settings=self.wandb.Settings(console="off", silent=True),
        )
        # The step is a number like others: the library's own counter would refuse steps that are made again.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def completions(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        table = self.wandb.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        self.run.log({"step": step, "completions": table})

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    def __init__(self, begin: Begin) -> None:
        import trackio

        self.trackio: Any = trackio
        self.trackio.init(
            project=PROJECT,
            name=f"{begin.name}-{begin.identity()}",
            config=dict(begin.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.trackio.log(dict(values), step=step)

    def completions(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        table = self.trackio.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        self.trackio.log({"completions": table}, step=step)

    def close(self) -> None:
        self.trackio.finish()


SINKS: Mapping[str, Callable[[Begin], Tracker]] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio}
"""Sinks by the names that a config takes; each is also the name of the package that it needs."""


def require(names: Sequence[str]) -> None:
    """See that the packages of the chosen sinks are there.

    Raises:
        ConfigError: the first that is missing, and how to get it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"sinks: {name!r} needs the package {name}, which is not installed: pip install {name}")


class Trackers:
    """All sinks of a run. None of them can end it."""

    def __init__(self, names: Sequence[str], begin: Begin, *, warn: Callable[[str], None]) -> None:
        self.failures: Counter[str] = Counter()
        self._warn = warn
        self._open: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            self._guarded(name, partial(self._begin, name, begin))

    def step(self, line: Mapping[str, Any], completions: Sequence[RolloutLine]) -> None:
        """A line of metrics, and the step's completions, which are sent where the step was evaluated."""
        values, rows = step_numbers(line), table_of(completions) if "evaluation" in line else []
        for name, tracker in self._open.items():
            self._guarded(name, partial(tracker.numbers, line["step"], values))
            if rows:
                self._guarded(name, partial(tracker.completions, line["step"], rows))

    def evaluation(self, step: int, result: Mapping[str, Any]) -> None:
        """An evaluation."""
        values = evaluation_numbers(result)
        for name, tracker in self._open.items():
            self._guarded(name, partial(tracker.numbers, step, values))

    def close(self) -> None:
        """Send what is left."""
        for name, tracker in self._open.items():
            self._guarded(name, tracker.close)
        self._open.clear()

    def _begin(self, name: str, begin: Begin) -> None:
        self._open[name] = SINKS[name](begin)

    def _guarded(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            # The libraries raise what they like, their network and their disk besides; ours and a full memory pass.
            if isinstance(error, UserError | MemoryError):
                raise
            self.failures[name] += 1
            if self.failures[name] == 1:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self._warn(
                    f"warning: sink {name} failed ({reason}); the run goes on, and metrics.jsonl holds what it misses"
                )


def step_numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics as numbers by name; what is null or no number is left out."""
    found: dict[str, Any] = {f"train/{key}": value for key, value in line.items() if key != "step"}
    found.update({f"skipped/{reason}": count for reason, count in line.get("skipped", {}).items()})
    found.update({f"seconds/{phase}": spent for phase, spent in line.get("phase_seconds", {}).items()})
    found["alarms/standing"] = len(line.get("alarms", ()))
    return _finite(found)


def evaluation_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """An evaluation as numbers by name, accuracies with the ends of their intervals."""
    found: dict[str, Any] = {f"evaluation/{key}": value for key, value in result.items()}
    for key in ("avg", "pass", "maj"):
        score = result[key]
        if score is None:  # nothing was judged
            continue
        found[f"evaluation/{key}"] = score["value"]
        found.update({f"evaluation/{key}_{end}": score[end] for end in ("low", "high")})
    return _finite(found)


def table_of(completions: Sequence[RolloutLine]) -> list[list[Any]]:
    """Rows of :data:`COLUMNS` for a choice of lines of ``rollouts.jsonl``: right and wrong in turn."""
    return [
        [
            line.step,
            printable(line.example),
            number(line.reward),
            round(sum(token_values(line)), 4) if line.u else None,
            printable(line.prompt),
            printable(line.text),
        ]
        for line in choose(completions, SHOWN)
    ]


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: found for key, value in values.items() if (found := number(value)) is not None}


def _cell(value: object) -> str:
    """A cell of a Markdown table: model text must neither end it nor be read as markup."""
    text = "" if value is None else html.escape(str(value))
    return text.replace("\\", "&#92;").replace("|", "&#124;").replace("`", "&#96;").replace("\n", "<br>")
