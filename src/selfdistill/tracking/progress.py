"""Terminal output: a live line of the current activity, one line per evaluation, and a closing table.

Every long activity reports itself with :func:`activity` and :func:`advance`. The :class:`Progress` that was entered
last shows it: on a terminal in the live line, elsewhere as a line every half minute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from selfdistill.files.text import counted, plural, printable
from selfdistill.report import numbers

PLAIN_EVERY = 10.0
"""Seconds between the lines of steps if the output is not a terminal (a log file, CI)."""
SILENCE = 30.0
"""Seconds without any line after which such an output gets a line about the current activity."""


class Interrupted(Exception):
    """An activity that ended early, because a stop was requested."""


@dataclass(slots=True)
class Activity:
    """A long activity: the amount done, the total, and the start time. ``of`` 0 means an unknown total."""

    name: str
    of: int = 0
    unit: str = ""
    may_stop: bool = False
    done: int = 0
    tokens: int = 0
    began: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """``"step 3, sampling: 12 of 64 completions, 340 tokens/s, 0:07"``."""
        seconds = time.monotonic() - self.began
        count = f"{min(self.done, self.of)} of {self.of} {self.unit}" if self.of else ""
        speed = f"{self.tokens / seconds:z.0f} tokens/s" if self.tokens and seconds > 0 else ""
        return f"{self.name}: {', '.join(filter(None, (count, speed, _clock(seconds))))}"


_SHOWN: ContextVar[Progress | None] = ContextVar("_SHOWN", default=None)
"""The progress that shows activities. A thread that samples ahead has none: it would overwrite the run's activity."""


@contextmanager
def activity(name: str, of: int = 0, unit: str = "", *, may_stop: bool = False) -> Iterator[None]:
    """Show an activity until the block ends. ``may_stop`` lets :func:`check_stop` end it early."""
    progress = _SHOWN.get()
    if progress is None:
        yield
        return
    progress.activities.append(Activity(name, of, unit, may_stop))
    try:
        yield
    finally:
        progress.activities.pop()


def advance(done: int = 0, *, tokens: int = 0, of: int = 0) -> None:
    """Add to the amount done, the tokens and the total of the innermost activity."""
    progress = _SHOWN.get()
    if progress is not None and progress.activities:
        current = progress.activities[-1]
        current.done, current.tokens, current.of = current.done + done, current.tokens + tokens, current.of + of


def log(message: str) -> None:
    """Print a message on the current progress; nothing without one."""
    progress = _SHOWN.get()
    if progress is not None:
        progress.log(message)


def position() -> tuple[int, int]:
    """The amount done and the tokens of the innermost activity, for :func:`rewind`."""
    progress = _SHOWN.get()
    current = progress.activities[-1] if progress is not None and progress.activities else Activity("")
    return current.done, current.tokens


def rewind(before: tuple[int, int]) -> None:
    """Return to an earlier :func:`position`, because the work since then is repeated."""
    done, tokens = position()
    advance(before[0] - done, tokens=before[1] - tokens)


def check_stop() -> None:
    """End the innermost activity early if a stop was requested and some of it is done.

    Raises:
        Interrupted: a stop was requested.
    """
    progress = _SHOWN.get()
    if progress is None or not progress.activities:
        return
    current = progress.activities[-1]
    if current.may_stop and current.done and progress.stop_requested():
        raise Interrupted(current.name)


UNJUDGED = {"loglikelihood": "references", "teacher_gap": "teacher's gap", "teacher_shift": "teacher's shift"}
"""Metrics of an evaluation without a verifier, in nats per token, and their names in the terminal."""


ALSO = {"avg": ("accuracy", "accuracy"), "perplexity": ("perplexity", ""), "kl": ("KL(start ‖ now) a token", "")}
"""What is told of each result of ``evaluation.also``: its key, its name, and the measure whose change is told."""


class Progress:
    """Progress as a live line on a terminal or as lines in a log. Without a console it prints nothing."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(quiet=True)
        self.live: Live | None = None
        self.began = time.monotonic()
        self.first: int | None = None
        self.tokens = 0
        self.evaluating = self.stepping = 0.0
        """Seconds of evaluations, and of steps without them."""
        self.held_out = ""
        """The newest evaluation's numbers beside a step's own, which are of the prompts trained on."""
        self.last_line = 0.0
        self.explained = False
        """Whether an interval without width was explained."""
        self.activities: list[Activity] = []
        self.stop_requested: Callable[[], bool] = lambda: False
        """Whether a stop was requested."""
        self.shown = ""
        """Text of the live line besides the activity."""
        self._spoke = time.monotonic()
        self._over = threading.Event()
        self._heart: threading.Thread | None = None
        self._token: Token[Progress | None] | None = None

    def __enter__(self) -> Progress:
        self._token = _SHOWN.set(self)
        if self.console.is_terminal and not self.console.quiet:
            self.live = Live(get_renderable=self._live_line, console=self.console, refresh_per_second=4, transient=True)
            self.live.start()
        elif not self.console.quiet:
            self._heart = threading.Thread(target=self._break_silence, daemon=True)
            self._heart.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._token is not None:
            _SHOWN.reset(self._token)
        if self.live is not None:
            self.live.stop()
        self._over.set()
        if self._heart is not None:
            self._heart.join()

    def log(self, message: str) -> None:
        """Print one sentence on its own line."""
        self._spoke = time.monotonic()
        self.console.print(Text(printable(message)), soft_wrap=True)

    def status(self, line: str) -> None:
        """Replace the live line. Does nothing if the output is not a terminal."""
        self.shown = line

    def table(self, rows: Mapping[str, str]) -> None:
        """Print the rows, one name with its text per line."""
        width = max(map(len, rows), default=0)
        for name, text in rows.items():
            self.console.print(Text(printable(f"{name:{width}}  {text}")), soft_wrap=True)

    def going_on(self) -> str:
        """The current activities, outermost first: ``"evaluating, sampling: 37 of 128 completions"``."""
        activities = list(self.activities)
        return ", ".join([*(entry.name for entry in activities[:-1]), *(entry.line() for entry in activities[-1:])])

    def _live_line(self) -> Text:
        text = "  ".join(filter(None, (self.shown, self.going_on())))
        return Text(printable(text), overflow="ellipsis", no_wrap=True)

    def _break_silence(self) -> None:
        """Print the current activity after every half minute without a line."""
        while not self._over.wait(max(0.05, self._spoke + SILENCE - time.monotonic())):
            if time.monotonic() - self._spoke >= SILENCE:
                line = self.going_on()
                if line:
                    self.log(line)
                else:
                    self._spoke = time.monotonic()

    def evaluation(self, step: int | None, result: Mapping[str, Any], *, by: str | None = None) -> None:
        """Print an evaluation on held-out problems; ``step`` is None if it belongs to no training run.

        ``by`` is the metric that chooses the best checkpoint: by ``"reward"`` a mean reward that differs from the
        accuracy comes first, with its interval.
        """
        avg = result["avg"]
        self.held_out = "" if avg is None else f"held-out {_mean_reward(result)}avg@{avg['k']} {avg['value']:z.3f}  "
        at = "" if step is None else f"step {step:>4}  "
        # Without a verifier there is no accuracy, so print the other metrics.
        if avg is None:
            entropy = "" if result["entropy"] is None else f"entropy {result['entropy']:z.3f}  "
            references = [f"{words} {result[key]['value']:+z.3f}" for key, words in UNJUDGED.items() if key in result]
            self.log(
                f"{at}nothing is judged  length {result['length']:z.1f}  "
                f"truncated {result['truncated']:.1%}  {entropy}deliberation {result['deliberation']:z.2f}"
            )
            if references:
                self.log(f"{at}{', '.join(references)} nats a token")
            self._also(at, result)
            return
        reward = _mean_reward(result)
        leads = bool(reward) and by == "reward"
        first = f"reward {result['reward']['value']:z.3f} [{_span(result['reward'])}]  " if leads else ""
        majority = f"maj@{avg['k']} {result['maj']['value']:z.3f}  " if result["maj"] else ""
        self.log(
            f"{at}{first}avg@{avg['k']} {avg['value']:z.3f} [{_span(avg)}]  "
            f"pass@{avg['k']} {result['pass']['value']:z.3f}  {majority}{'' if leads else reward}"
            f"length {result['length']:z.1f}  deliberation {result['deliberation']:z.2f}"
        )
        if numbers.NO_SPREAD in (_span(avg), _span(result["reward"]) if leads else "") and not self.explained:
            self.explained = True
            self.log(numbers.NO_SPREAD_NOTE)
        of = result["problems"] * result["samples"]
        if unjudged := of - result["judged"]:
            are, count = plural(unjudged, "is", "are"), plural(unjudged, "counts", "count")
            self.log(f"{unjudged} of {counted(of, 'completion')} {are} not judged and {count} as wrong")
        self._also(at, result)

    def _also(self, at: str, result: Mapping[str, Any]) -> None:
        """Print what was evaluated besides, a line each: levels, and the change since the start."""
        for name, other in result.get("also", {}).items():
            parts = []
            for key, (words, measure) in ALSO.items():
                if other.get(key) is None:
                    continue
                change = other.get("change", {}).get(measure)
                since = f" ({change['value']:+z.3f} [{_span(change, '+')}])" if change else ""
                parts.append(f"{words} {other[key]['value']:z.3f}{since}")
            self.log(f"{at}also {name}: {', '.join(parts)}")

    def step(self, line: Mapping[str, Any], *, total: int, evaluation_left: float = 0.0) -> None:
        """Show a training step: on the live line, or at most every :data:`PLAIN_EVERY` seconds as a line.

        ``evaluation_left`` are the seconds that the evaluations of the remaining steps are expected to take.
        """
        if self.first is None:
            self.first, self.began = line["step"], time.monotonic() - line["seconds"]
        self.tokens += line["generated"]
        # Evaluations are neither training speed nor spread evenly over the steps.
        self.evaluating += line["phase_seconds"].get("evaluation", 0.0)
        training = max(time.monotonic() - self.began - self.evaluating, 1e-9)
        # The speed of summary.json and of the page: by the seconds of the phases, as far as this start went.
        self.stepping += line["seconds"] - line["phase_seconds"].get("evaluation", 0.0)
        done = line["step"] - self.first + 1
        left = training / done * (total - line["step"]) + evaluation_left
        if line["step"] == self.first and self.first < total:
            more = total - self.first
            steps = "the step" if more == 1 else f"the {more} steps"
            self.log(f"the first step took {training:.3g} s: about {_words(left)} for {steps} left")
        reward = "" if line["reward"] is None else f"reward {line['reward']:z.3f}  "
        text = (
            f"step {line['step']}/{total}  {reward}{self.held_out}loss {line['loss']:+z.4f}  "
            f"{self.tokens / max(self.stepping, 1e-9):z.0f} tokens/s  {_clock(left)} left"
        )
        if self.live is not None:
            self.shown = text
        elif time.monotonic() - self.last_line >= PLAIN_EVERY or line["step"] == total:
            self.last_line = time.monotonic()
            self.log(text)

    def closing(self, summary: Mapping[str, Any], page: str) -> None:
        """Print the closing table, the time by phase and the path of the page."""
        title = f"{counted(summary['steps'], 'step')}, {_clock(sum(summary['seconds'].values()))}"
        if (speed := summary.get("tokens_per_second")) is not None:
            title += f", {speed:z.0f} tokens/s"
        k, judged = summary["before"]["samples"], summary["after"]["avg"] is not None
        # There is no best if nothing was right, and "after" needs an evaluation of the last step.
        by, best = summary.get("best_by", "success"), summary["best"]
        nothing_right = bool(by == "success" and best and not best["avg"]["value"])
        is_best = best is not None and not nothing_right
        last = "after" if summary["after_step"] >= summary["steps"] else "newest"
        columns = (
            _judged_columns([summary[name] or {} for name in ("before", "after", "best")], k, by) if judged else {}
        )
        scored = [key for key in UNJUDGED if key in summary["after"]]
        if scored:
            title += f"; {', '.join(UNJUDGED[key] for key in scored)} in nats a token"
        # Few words and little room between columns: a log has eighty columns, and a number cut short is none.
        accuracies = (*columns, *(UNJUDGED[key].split()[-1] for key in scored))
        table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, collapse_padding=True)
        for heading in ("", "step", *accuracies, "length", "cut", "delib."):
            table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
        steps = {"before": 0, "after": summary["after_step"]} | ({"best": summary["best_step"]} if is_best else {})
        for name, step in steps.items():
            row = summary[name]
            table.add_row(
                last if name == "after" else name,
                str(step),
                *(cell(row) for cell in columns.values()),
                *(f"{row[key]['value']:+z.3f}" if key in row else "–" for key in scored),
                f"{row['length']:z.1f}",
                f"{row['truncated']:.1%}",
                f"{row['deliberation']:z.2f}",
            )
        self.console.print(table)
        # Print facts that the rows do not show: steps after the last evaluation, and a missing best.
        steps, evaluated = summary["steps"], summary["after_step"]
        if evaluated < steps:
            unseen = f"step {steps} is" if steps == evaluated + 1 else f"steps {evaluated + 1} to {steps} are"
            self.log(f"the newest evaluation is that of step {evaluated}: {unseen} in none of these rows")
        if by == "last":
            self.log("best: the newest evaluation")
        elif best is None:
            self.log(f"best: the newest evaluation, because none has the metric {by}")
        elif by != "success":
            self.log(f"best: by {by} on held-out problems")
        if nothing_right:
            self.log(
                "no held-out completion was right in any evaluation: no step is the best, and no interval has a width"
            )
        self.log("time by phase: " + _phases(summary["seconds"]))
        self.log(f"page: {page}")


def _mean_reward(result: Mapping[str, Any]) -> str:
    """The mean reward of an evaluation if it differs from the share of right completions; else empty."""
    reward, avg = result.get("reward"), result.get("avg")
    return "" if not reward or not avg or reward["value"] == avg["value"] else f"reward {reward['value']:z.3f}  "


def _span(estimate: Mapping[str, Any], sign: str = "", between: str = ", ") -> str:
    # A table of eighty columns has no room for three decimals of a reward in the tens.
    decimals = 1 if between == "–" and max(abs(estimate["low"]), abs(estimate["high"])) >= 10 else 3
    form = f"{{:{sign}z.{decimals}f}}".format
    return numbers.interval(estimate["low"], estimate["high"], form, between=between)


def _judged_columns(
    sides: Sequence[Mapping[str, Any]], k: int, by: str
) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """The columns of the closing table that need judged completions: a heading and the text of an evaluation.

    The interval is that of the metric ``by`` which the best checkpoint was chosen.
    """

    def value(key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda side: f"{side[key]['value']:z.3f}" if side.get(key) else "–"

    graded = any(map(_mean_reward, sides))
    first = "reward" if graded and by == "reward" else "avg"
    columns = {
        "reward" if first == "reward" else f"avg@{k}": value(first),
        "95 %": lambda side: _span(side[first], between="–") if side.get(first) else "–",
        f"avg@{k}": value("avg"),
        f"pass@{k}": value("pass"),
    }
    # Eighty columns have no room for the majority vote beside the reward.
    if graded:
        columns["reward"] = value("reward")
    elif any(side.get("maj") for side in sides):
        columns[f"maj@{k}"] = value("maj")
    return columns


def _phases(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{phase} {value:z.1f} s ({value / total:.0%})" for phase, value in ordered) if total else "none"


def _words(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
