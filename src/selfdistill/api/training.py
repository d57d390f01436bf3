"""Training from Python: the same run as ``selfdistill train``, with rows, tasks, rewards and callbacks as objects."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from selfdistill.api.quiet import silenced
from selfdistill.api.settings import ConfigLike, Overrides, config_name, raw_config
from selfdistill.api.tasks import Chosen, as_task, memory_rows, take_rows
from selfdistill.config.run import RunConfig, parse_config
from selfdistill.distributed.signals import StopRequest, stop_on_signals
from selfdistill.distributed.world import connect, report_error_once
from selfdistill.errors import ConfigError
from selfdistill.files.jsonl import read_lines
from selfdistill.models.devices import on_gpu
from selfdistill.tasks.build import build_task
from selfdistill.tasks.data import MemoryRows
from selfdistill.tasks.own import checked_task
from selfdistill.tasks.reward import RewardLike, parse_reward
from selfdistill.tracking.progress import Progress
from selfdistill.training.loop import Run
from selfdistill.types import Example, StepRecord, Task


class Summary(dict[str, Any]):
    """The summary of a run, as in ``summary.json``: ``before``, ``after``, ``best``, ``steps``, ``seconds`` …"""

    def __init__(self, values: Mapping[str, Any], folder: Path) -> None:
        super().__init__(values)
        self.folder = folder
        """The run's folder: checkpoints, metrics, completions and ``report.html``."""

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl``, one per step."""
        return [dict(line) for line in read_lines(self.folder / "metrics.jsonl")]

    def to_pandas(self) -> Any:
        """Return the lines of ``metrics.jsonl`` as a ``pandas.DataFrame``."""
        import pandas

        return pandas.DataFrame(self.metrics())

    def plot(self, *names: str, ax: Any = None) -> Any:
        """Plot metrics over steps, ``"reward"`` by default. Returns the matplotlib axes."""
        from selfdistill.api.figures import curves

        return curves(self.metrics(), names or ("reward",), ax=ax)


GENERATED = ("countdown", "countdown-turns", "toolbox", "toolbox-turns", "reasoning_gym")
"""Tasks that make their own problems and read no rows."""


def train(
    config: ConfigLike,
    *,
    out: str | Path,
    examples: Any = None,
    reward: RewardLike | None = None,
    on_step: Callable[[StepRecord], object] | None = None,
    resume: bool = False,
    progress: bool | Progress = False,
    overrides: Overrides = (),
    **settings: Any,
) -> Summary:
    """Train a model: the same run, and the same numbers, as ``selfdistill train`` with the same config.

    An interrupt (Ctrl-C, the notebook's stop button) finishes and saves the current step and then raises
    KeyboardInterrupt. The same call with ``resume=True`` continues from there. A second interrupt stops immediately.

    Args:
        config: a shipped name, a TOML or JSON file, a :class:`RunConfig`, or a dict.
        out: the run's folder.
        examples: training problems: rows (a list of dicts, a ``datasets.Dataset``) that replace ``task.path``; examples
            of the task; or a task object. A held-out share of the rows is split off, as with a file.
        reward: a function that replaces the task's reward, as for :func:`load_task`.
        on_step: a function that is called with the :class:`StepRecord` of every step; ``record.values`` has the step's
            numbers. An exception in it ends the run, which can be resumed.
        resume: continue the run in the folder, if there is one.
        progress: print the output of the command; unset: silent.
        overrides: dotted keys, ``{"optimiser.learning_rate": 1e-5}`` or ``["optimiser.learning_rate=1e-5"]``.
        settings: keys of the config's top level: ``steps=20``, ``seed=1``, ``sampling={"prompts": 4}``, ``task=…`` (a
            kind, a table, or a task object).

    Returns:
        A :class:`Summary`, a dict with the run's folder, metrics and figures.

    Raises:
        UserError: an argument is wrong and nothing has been written; or the run failed and its last checkpoint is kept.
    """
    if on_step is not None and not callable(on_step):
        raise ConfigError(f"on_step must be a function of one argument, got {type(on_step).__name__}")
    if not str(out):
        raise ConfigError("out is empty, which would be the current folder: name a folder for the run")
    raw = raw_config(config, overrides, settings)
    build = _extract_objects(raw, examples, reward)
    checked = parse_config(raw, config_name(config))
    folder, terminal = Path(out), Progress(Console()) if progress is True else progress or Progress()
    with silenced(), report_error_once(resume=f"continue with resume=True, out={str(folder)!r}"):
        connect(cuda=on_gpu(checked.model), timeout=checked.parallel.timeout)
        hook: dict[str, Any] = {} if on_step is None else {"on_step": on_step}
        with terminal, stopping(terminal) as stop:
            run = Run(checked, folder, resume=resume, progress=terminal, task=build(checked), **hook)
            summary = run.train(stop)
    if progress:
        terminal.closing(summary, str(folder / "report.html"))
    if stop.signal is not None and not summary["finished"]:
        signal.raise_signal(stop.signal)
    return Summary(summary, folder)


@contextmanager
def stopping(progress: Progress) -> Iterator[StopRequest]:
    """Turn interrupts into requests to stop after the current step. Python allows this in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()
        return
    with stop_on_signals(progress.log) as stop:
        yield stop


def _extract_objects(
    raw: dict[str, Any], examples: Any, reward: RewardLike | None
) -> Callable[[RunConfig], Task | None]:
    """Replace objects in the config's tables by names. Returns a function that builds the task from the objects."""
    function: Any = reward if reward is not None else raw.get("reward")
    if function is not None:
        raw["reward"] = parse_reward(function)[1].model_dump()
    given = raw.get("task")
    if isinstance(given, str):
        raw["task"] = given = {"kind": given}
    if examples is not None and _is_task(examples):
        given, examples = examples, None
    if given is not None and not isinstance(given, Mapping):
        return _object(raw, checked_task(given), examples, function)
    table: dict[str, Any] = dict(given or {"kind": "countdown"})
    rows = take_rows(table)
    chosen: list[Example] = []
    if examples is not None:
        chosen = _examples(examples)
        if not chosen:
            rows["path"] = memory_rows(examples, "examples")
            table["path"] = rows["path"].rows
            take_rows(table)
            # A task without rows has no such key in its table; building the task reports the mistake.
            if table.get("kind") in GENERATED:
                del table["path"]
    raw["task"] = table
    return _from_table(raw, rows, chosen, function)


def _object(
    raw: dict[str, Any], task: Task, examples: Any, reward: RewardLike | None
) -> Callable[[RunConfig], Task | None]:
    """Write the name of a task object into the config. Returns the function that builds the task."""
    if examples is not None:
        chosen = _examples(examples)
        if not chosen:
            raise ConfigError("rows need a task that says how they are read: give task={'kind': 'math', …}, no object")
        task = Chosen(task, chosen)
    raw["task"] = {"kind": "object", "name": task.name}
    return lambda config: as_task(task, reward)


def _from_table(
    raw: dict[str, Any],
    rows: Mapping[str, MemoryRows],
    chosen: list[Example],
    reward: RewardLike | None,
) -> Callable[[RunConfig], Task | None]:
    """Return the function that builds a task of the config with rows in memory, chosen examples or a reward."""
    if chosen:
        checked = parse_config(raw, "examples")
        task = build_task(checked.task, seed=checked.seed, reward=None)
        return _object(raw, Chosen(task, chosen), None, reward)
    if rows or reward is not None:
        return lambda config: build_task(config.task, seed=config.seed, reward=reward, rows=rows)
    return lambda config: None


def _examples(given: Any) -> list[Example]:
    """Return the entries if they are examples; an empty list if they are rows."""
    entries = list(given) if isinstance(given, list | tuple) else []
    return entries if entries and all(isinstance(entry, Example) for entry in entries) else []


def _is_task(given: Any) -> bool:
    return callable(getattr(given, "examples", None)) and callable(getattr(given, "verify", None))
