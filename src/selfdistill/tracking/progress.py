"""Terminal output of a run: one live line, one line per evaluation, and a closing table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from selfdistill.files.text import printable

PLAIN_EVERY = 10.0
"""Seconds between progress lines if the output is not a terminal (a log file, CI)."""

UNJUDGED = {"loglikelihood": "references", "teacher_gap": "teacher's gap", "teacher_shift": "teacher's shift"}
"""What an evaluation has where nothing is judged, in nats a token, and its name in the terminal."""


class Progress:
    """Progress as a live line on a terminal or as lines in a log. Without a console it prints nothing."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(quiet=True)
        self.live: Live | None = None
        self.began = time.monotonic()
        self.first: int | None = None
        self.tokens = 0
        self.evaluating = 0.0
        self.accuracy: float | None = None
        self.last_line = 0.0

    def __enter__(self) -> Progress:
        if self.console.is_terminal and not self.console.quiet:
            self.live = Live(console=self.console, refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, sentence: str) -> None:
        """Print one sentence on its own line."""
        self.console.print(Text(printable(sentence)), soft_wrap=True)

    def status(self, line: str) -> None:
        """Replace the live line. Does nothing if the output is not a terminal."""
        if self.live is not None:
            self.live.update(Text(printable(line), overflow="ellipsis", no_wrap=True))

    def evaluation(self, step: int | None, result: Mapping[str, Any]) -> None:
        """Print an evaluation on held-out problems; ``step`` is None if it belongs to no training run."""
        avg = result["avg"]
        self.accuracy = None if avg is None else avg["value"]
        at = "" if step is None else f"step {step:>4}  "
        # Without a verifier there is no accuracy to show, and the rest of the evaluation is all there is.
        if avg is None:
            entropy = "" if result["entropy"] is None else f"entropy {result['entropy']:.3f}  "
            told = [f"{words} {result[key]['value']:+.3f}" for key, words in UNJUDGED.items() if key in result]
            self.say(
                f"{at}nothing is judged  length {result['length']:.1f}  "
                f"truncated {result['truncated']:.1%}  {entropy}deliberation {result['deliberation']:.2f}"
            )
            if told:
                self.say(f"{at}{', '.join(told)} nats a token")
            return
        self.say(
            f"{at}avg@{avg['k']} {avg['value']:.3f} [{avg['low']:.3f}, {avg['high']:.3f}]  "
            f"pass@{avg['k']} {result['pass']['value']:.3f}  maj@{avg['k']} {result['maj']['value']:.3f}  "
            f"{_mean_reward(result)}length {result['length']:.1f}  deliberation {result['deliberation']:.2f}"
        )
        of = result["problems"] * result["samples"]
        if result["judged"] < of:
            self.say(f"{of - result['judged']} of {of} completions are not judged and count as wrong")

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
        done = line["step"] - self.first + 1
        left = training / done * (total - line["step"]) + evaluation_left
        reward = "–" if line["reward"] is None else f"{line['reward']:.3f}"
        accuracy = "–" if self.accuracy is None else f"{self.accuracy:.3f}"
        text = (
            f"step {line['step']}/{total}  reward {reward}  accuracy {accuracy}  loss {line['loss']:+.4f}  "
            f"{self.tokens / training:.0f} tokens/s  {_clock(left)} left"
        )
        if self.live is not None:
            self.live.update(Text(text))
        elif time.monotonic() - self.last_line >= PLAIN_EVERY or line["step"] == total:
            self.last_line = time.monotonic()
            self.say(text)

    def closing(self, summary: Mapping[str, Any], page: str) -> None:
        """Print the closing table, the time by phase and the path of the page."""
        title = f"{summary['steps']} steps, {_clock(sum(summary['seconds'].values()))}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
        k, judged = summary["before"]["samples"], summary["after"]["avg"] is not None
        accuracies = (f"avg@{k}", "95 %", f"pass@{k}", f"maj@{k}") if judged else ()
        graded = any(_mean_reward(summary[name] or {}) for name in ("before", "after", "best"))
        # Eighty columns have no room for the majority vote beside the reward.
        accuracies = ("reward", *accuracies[:3]) if graded else accuracies
        scored = [key for key in UNJUDGED if key in summary["after"]]
        accuracies = (*accuracies, *(UNJUDGED[key] for key in scored))
        for heading in ("", "step", *accuracies, "length", "cut", "delib."):
            table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
        steps = {"before": 0, "after": summary["after_step"]}
        steps |= {"best": summary["best_step"]} if summary["best"] else {}
        for name, step in steps.items():
            row = summary[name]
            table.add_row(
                name,
                str(step),
                *((f"{row['reward']['value']:.3f}" if row.get("reward") else "–",) if graded else ()),
                *((_accuracy(row)[:3] if graded else _accuracy(row)) if judged else ()),
                *(f"{row[key]['value']:+.3f}" if key in row else "–" for key in scored),
                f"{row['length']:.1f}",
                f"{row['truncated']:.1%}",
                f"{row['deliberation']:.2f}",
            )
        self.console.print(table)
        # Say what the rows do not show: steps after the last evaluation, and a best of nothing.
        steps, evaluated = summary["steps"], summary["after_step"]
        if evaluated < steps:
            unseen = f"step {steps} is" if steps == evaluated + 1 else f"steps {evaluated + 1} to {steps} are"
            self.say(f"the newest evaluation is that of step {evaluated}: {unseen} in none of these rows")
        by = summary.get("best_by", "success")
        if by != "success":
            self.say(f"best: {'the newest evaluation' if by == 'last' else f'by {by} on held-out problems'}")
        if by == "success" and summary["best"] and not summary["best"]["avg"]["value"]:
            self.say(
                "no held-out completion was right in any evaluation: no step is the best, and no interval has a width"
            )
        self.say("time by phase: " + _phases(summary["seconds"]))
        self.say(f"page: {page}")


def _mean_reward(result: Mapping[str, Any]) -> str:
    """The mean reward of an evaluation where it is another number than the share of right completions."""
    reward, avg = result.get("reward"), result.get("avg")
    return "" if not reward or not avg or reward["value"] == avg["value"] else f"reward {reward['value']:.3f}  "


def _accuracy(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of the closing table that an evaluation has only where something was judged."""
    avg = row["avg"]
    if avg is None:
        return ("–",) * 4
    interval = f"{avg['low']:.3f}–{avg['high']:.3f}"
    return f"{avg['value']:.3f}", interval, f"{row['pass']['value']:.3f}", f"{row['maj']['value']:.3f}"


def _phases(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{phase} {value:.1f} s ({value / total:.0%})" for phase, value in ordered) if total else "none"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
