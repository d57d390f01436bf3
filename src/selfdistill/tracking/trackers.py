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
"""Completions in a table."""
COLUMNS = ("step", "example", "reward", "sum of u", "prompt", "completion")
PROJECT = "selfdistill"


class Tracker(Protocol):
    """One sink of one run."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of a step, by name."""

    def completions(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """Send a table with the columns of :data:`COLUMNS`."""

    def close(self) -> None:
        """Send everything that is still buffered, and close the sink."""


@dataclass(frozen=True, slots=True)
class Begin:
    """The arguments for opening a sink. ``step`` is the step that the run continues from, 0 for a new run."""

    folder: Path
    config: Mapping[str, Any]
    step: int

    @property
    def name(self) -> str:
        """The run's name: its folder, with the arm in front for a run of a comparison."""
        folder = self.folder.resolve()
        return f"{folder.parent.name}-{folder.name}" if folder.name.startswith("seed-") else folder.name

    def identity(self) -> str:
        """Return a unique id, stored in the folder, so that a resumed run continues the same run in the tracker."""
        path = self.folder / "sink-id.txt"
        if not path.exists():
            path.write_text(secrets.token_hex(6), encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()


class _TensorBoard:
    def __init__(self, begin: Begin) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Steps that a resumed run repeats replace the ones that were written before.
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
        # Log the step as a metric, because the library's own counter refuses steps that a resumed run repeats.
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
"""Sinks by the names that a config accepts. The name is also that of the required package."""


def require(names: Sequence[str]) -> None:
    """Check that the packages of the chosen sinks are installed.

    Raises:
        ConfigError: a package is missing. The message names the first and how to install it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"sinks: {name!r} needs the package {name}, which is not installed: pip install {name}")


class Trackers:
    """All sinks of a run. A failing sink never stops the run."""

    def __init__(self, names: Sequence[str], begin: Begin, *, warn: Callable[[str], None]) -> None:
        self.failures: Counter[str] = Counter()
        self._warn = warn
        self._open: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            self._guarded(name, partial(self._begin, name, begin))

    def step(self, line: Mapping[str, Any], completions: Sequence[RolloutLine]) -> None:
        """Send a line of metrics, and the step's completions if the step was evaluated."""
        values, rows = step_numbers(line), table_of(completions) if "evaluation" in line else []
        for name, tracker in self._open.items():
            self._guarded(name, partial(tracker.numbers, line["step"], values))
            if rows:
                self._guarded(name, partial(tracker.completions, line["step"], rows))

    def evaluation(self, step: int, result: Mapping[str, Any]) -> None:
        """Send an evaluation."""
        values = evaluation_numbers(result)
        for name, tracker in self._open.items():
            self._guarded(name, partial(tracker.numbers, step, values))

    def close(self) -> None:
        """Close all sinks."""
        for name, tracker in self._open.items():
            self._guarded(name, tracker.close)
        self._open.clear()

    def _begin(self, name: str, begin: Begin) -> None:
        self._open[name] = SINKS[name](begin)

    def _guarded(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            # A sink may raise anything, for example network and disk errors. Only user errors and a full memory pass.
            if isinstance(error, UserError | MemoryError):
                raise
            self.failures[name] += 1
            if self.failures[name] == 1:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self._warn(
                    f"warning: sink {name} failed ({reason}); the run goes on, and metrics.jsonl holds what it misses"
                )


def step_numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a line of metrics, by name."""
    values: dict[str, Any] = {f"train/{key}": value for key, value in line.items() if key != "step"}
    values.update({f"skipped/{reason}": count for reason, count in line.get("skipped", {}).items()})
    values.update({f"seconds/{phase}": spent for phase, spent in line.get("phase_seconds", {}).items()})
    values["alarms/active"] = len(line.get("alarms", ()))
    return _finite(values)


def evaluation_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of an evaluation, by name; accuracies with the ends of their intervals."""
    values: dict[str, Any] = {f"evaluation/{key}": value for key, value in result.items()}
    # Estimates: accuracies and the reward, None where nothing was judged, and what there is instead.
    for key in ("avg", "pass", "maj", "reward", "loglikelihood", "teacher_gap", "teacher_shift"):
        score = result.get(key)
        if score is None:
            continue
        values[f"evaluation/{key}"] = score["value"]
        values.update({f"evaluation/{key}_{end}": score[end] for end in ("low", "high")})
    for name, other in result.get("also", {}).items():
        for key in ("avg", "loglikelihood", "perplexity", "kl"):
            if other.get(key) is not None:
                values[f"also/{name}/{key}"] = other[key]["value"]
    return _finite(values)


def table_of(completions: Sequence[RolloutLine]) -> list[list[Any]]:
    """Return rows of :data:`COLUMNS` for some completions, correct and wrong ones alternately."""
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
    return {key: finite for key, value in values.items() if (finite := number(value)) is not None}


def _cell(value: object) -> str:
    """Escape a cell of a Markdown table, so that model text neither ends it nor is read as markup."""
    text = "" if value is None else html.escape(str(value))
    return text.replace("\\", "&#92;").replace("|", "&#124;").replace("`", "&#96;").replace("\n", "<br>")
