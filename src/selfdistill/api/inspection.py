"""Inspection from Python: the credit that methods give to each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdistill.api.evaluation import ModelLike, TaskLike, model_of, task_of
from selfdistill.api.quiet import silenced
from selfdistill.api.settings import Overrides, as_pairs, check_counts
from selfdistill.errors import ConfigError
from selfdistill.files.text import counted
from selfdistill.inspection import command
from selfdistill.inspection.command import InspectOptions, InspectResult
from selfdistill.inspection.files import arrow_table, check_place
from selfdistill.methods import Method
from selfdistill.types import RolloutGroup


class Inspection:
    """The result of an inspection: a table of tokens, a summary, and figures."""

    def __init__(self, result: InspectResult) -> None:
        self._result = result
        self.summary = result.summary
        """The content of ``summary.json``: tables by class, position, entropy and outcome; separation; checks."""
        self.warnings = list(result.warnings)
        """The warnings that the command prints, one sentence each."""

    @property
    def groups(self) -> list[RolloutGroup]:
        """The problems with their inspected completions."""
        return self._result.table.findings.groups

    @property
    def signals(self) -> list[str]:
        """The names of the columns with u of a context or the credit of a method."""
        return list(self._result.table.signals)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row per token, the content of ``tokens.parquet``."""
        return arrow_table(self._result.table).to_pandas()

    def save(self, folder: str | Path) -> Path:
        """Write ``tokens.parquet``, ``summary.json`` and ``index.html``, like the command. Returns the page's path.

        Raises:
            UserError: the folder contains other files.
        """
        self._result.write(Path(folder))
        return Path(folder) / "index.html"

    def plot(self, signal: str, *, completion: int = 0, ax: Any = None) -> Any:
        """Plot one signal over the tokens of one completion as bars. Returns the matplotlib axes."""
        from selfdistill.api.figures import token_bars

        table = self._result.table
        lengths = table.findings.lengths
        if signal not in table.signals:
            raise ConfigError(f"unknown signal {signal!r}; there are: {', '.join(table.signals)}")
        if not 0 <= completion < len(lengths):
            raise ConfigError(f"completion {completion} is not among the {len(lengths)} that were looked at")
        begin = sum(lengths[:completion])
        values = table.signals[signal][begin : begin + lengths[completion]].tolist()
        words = [piece.body for piece in table.samples[completion].pieces]
        return token_bars(words, values, signal, ax=ax)

    def __repr__(self) -> str:
        s = self.summary
        skipped = "".join(f"; skipped: {count} × {reason}" for reason, count in s["skipped"].items())
        left_out = "".join(f"; left out: {name}, because {reason}" for name, reason in s["left_out"].items())
        counts = f"{counted(s['completions'], 'completion')}, {counted(s['tokens'], 'token')}"
        return f"<{counts}: {', '.join(self.signals)}{skipped}{left_out}>"


def inspect(
    model: ModelLike,
    task: TaskLike | None = None,
    *,
    methods: Sequence[str] | Mapping[str, str | Method] | None = None,
    configs: Sequence[str | Path] = (),
    contexts: Sequence[str] = (),
    out: str | Path | None = None,
    problems: int = 16,
    samples: int = 4,
    split: str = "train",
    temperature: float = 1.0,
    max_tokens: int | None = None,
    rollouts: str | Path | None = None,
    words: str | Path | None = None,
    seed: int = 0,
    checkpoint: int | str | None = None,
    engine: str | None = None,
    overrides: Overrides = (),
) -> Inspection:
    """Compute the credit that methods give to each token, without training: the numbers of ``selfdistill inspect``.

    Args:
        model, task, checkpoint, engine: as for :func:`evaluate`.
        methods: names, ``"label=name"`` to repeat a method, or a dict of labels to names or :class:`Method` objects;
            unset: those of ``configs``, else that of the config or run, else the default ones.
        configs, contexts, out: runs' methods to add; templates that are scored too; a folder for the three files.
        problems, samples, split, temperature, max_tokens, seed: the problems, and how completions are sampled.
        rollouts, words: a ``rollouts.jsonl`` whose newest completions are read instead; a folder of word lists.
        overrides: ``{"label.hyperparameter": value}`` sets a method's hyperparameter, other keys are the config's.

    Returns:
        An :class:`Inspection`: ``.to_pandas()``, ``.summary``, ``.plot(…)``, ``.save(folder)``.

    Raises:
        UserError: the model, the task, a method or a context cannot be used.
    """
    _check(out, methods, configs, contexts, problems=problems, samples=samples, max_tokens=max_tokens)
    (name, loaded), (table, judge), (named, built) = model_of(model), task_of(task), _methods(methods)
    options = InspectOptions(
        named,
        [str(config) for config in configs],
        list(contexts),
        problems=problems,
        samples=samples,
        split=split,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        rollouts=None if rollouts is None else Path(rollouts),
        words=None if words is None else Path(words),
        checkpoint=None if checkpoint is None else str(checkpoint),
        engine=engine,
        built=built,
    )
    with silenced():
        result = command.inspect(name, table, options, overrides=as_pairs(overrides), loaded=loaded, judge=judge)
        if out is not None:
            result.write(Path(out))
    return Inspection(result)


def _check(out: str | Path | None, *lists: object, **counts: object) -> None:
    """Refuse arguments that would otherwise fail after minutes of scoring."""
    check_counts(**counts)
    if out is not None:
        check_place(Path(out))
    if any(isinstance(names, str) for names in lists):
        raise ConfigError("methods, configs and contexts are lists of names: write methods=['antisd']")


def _methods(
    methods: Sequence[object] | Mapping[str, object] | None,
) -> tuple[list[str] | None, dict[str, Method]]:
    """Return the methods by name, as the command takes them, and the methods that are objects."""
    if methods is None:
        return None, {}
    if not isinstance(methods, Mapping):
        names = [method for method in methods if isinstance(method, str)]
        if len(names) < len(methods):
            raise ConfigError("a method that is an object needs a label: write methods={'mine': method}")
        return names, {}
    built = {label: method for label, method in methods.items() if isinstance(method, Method)}
    named = {label: name for label, name in methods.items() if not isinstance(name, Method)}
    wrong = next((name for name in named.values() if not isinstance(name, str)), None)
    if wrong is not None:
        raise ConfigError(f"a method is a name or a Method object, got {wrong!r:.60}")
    return [f"{label}={name}" for label, name in named.items()], built
