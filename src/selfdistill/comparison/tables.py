"""The tables and notes of a comparison, shared by ``compare.md``, the page and the terminal.

The only input is ``compare.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.comparison.alarm_tables import (
    HEAD,
    LIST_HEAD,
    Cell,
    alarm_list,
    alarm_notes,
    alarm_rows,
    alarm_words,
    ending,
)
from selfdistill.files.jsonl import Row
from selfdistill.report import numbers
from selfdistill.report.outcome import points


@dataclass(frozen=True, slots=True)
class Table:
    """A table with one row per arm: its caption, its column headings, and each arm's name with its cells."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def tables(result: Row) -> list[Table]:
    """Return every table of a comparison, in the order of the page."""
    base = result["baseline"]
    k, arms, steps = result["samples"], result["arms"], result["terms"]["steps"]
    alarms = alarm_rows(arms)
    return [
        Table(
            f"Held-out accuracy, avg@{k}",
            (
                "Arm",
                "Before",
                "Final",
                f"Final vs {base}",
                "Best",
                f"Best against {base}",
                "Worst after best",
                "Fall",
            ),
            _rows(arms, lambda arm: _accuracy(arm, steps)),
        ),
        Table(
            f"First evaluation at or above the final accuracy of {base}, seed by seed (means of those that reach it)",
            ("Arm", "Seeds that reach it", "Step", "Generated tokens", "Seconds of training"),
            _rows(arms, _reach),
        ),
        Table(
            "Deliberation words per completion, held-out",
            ("Arm", "Before", "Final", "Change", f"Final vs {base}"),
            _rows(arms, lambda arm: _measure(arm, "deliberation", 2, steps)),
        ),
        Table(
            "Tokens per completion, held-out",
            ("Arm", "Before", "Final", "Change", f"Final vs {base}", "Cut at the limit"),
            _rows(
                arms,
                lambda arm: (*_measure(arm, "length", 1, steps), (_from_to(arm["truncated"], numbers.percent), "")),
            ),
        ),
        Table(
            "The signal in training: first and last tenth of the steps",
            ("Arm", "Student entropy", "Teacher entropy", "Gate open"),
            _rows(arms, _signal),
        ),
        Table(
            f"Median seconds of a step, and in proportion to the median step of {base}",
            (
                "Arm",
                "Sampling",
                "Teacher scoring",
                "Step without sampling",
                "Whole step",
                f"Scoring, of {base} without sampling",
                f"Scoring, of {base}",
                f"Whole step, to {base}",
                "Tokens of a run",
            ),
            _rows(arms, _cost),
        ),
        *([Table("Alarms in training, seed by seed", HEAD, tuple(alarms))] if alarms else []),
    ]


def notes(result: Row) -> list[str]:
    """Return the notes on how to read the numbers, one or two sentences each."""
    seeds, every = result["seeds"], result["terms"]["evaluation"]["every"]
    asleep = [arm["name"] for arm in result["arms"] if not arm["generates"]]
    sentences = [
        "Before training all arms gave the same answers, seed by seed: they began from the same weights."
        if result["same_start"]
        else "Before training the arms did not give the same answers: the weights, the machine or the number of "
        "threads differed, and the start is equal in distribution at best.",
        f"Intervals hold {result['interval']['confidence']:.0%} of a bootstrap over {result['interval']['over']}; "
        "differences are taken problem by problem first, between runs of the same seed.",
        _about_seeds(len(seeds)),
        f"Accuracy is known every {'step' if every == 1 else f'{every} steps'} only, so a step count here is no finer "
        "than that, and luck in one evaluation can bring it forward.",
        "Best is the highest evaluation of each run, chosen by the same problems that it is reported on, so it "
        "flatters; worst after best is the lowest from there on, equal to the best where nothing came after it.",
        f"Seconds count training, not evaluation{_machine(result['machine'])}.",
    ]
    if asleep:
        sentences.append(
            f"{', '.join(map(numbers.printable, asleep))} learns from given solutions and generates nothing."
        )
    return [*sentences, *alarm_notes(result["arms"])]


def markdown(result: Row, title: str) -> str:
    """``compare.md``: the tables and the notes."""
    parts = [f"# {_escaped(title)}", _about(result)]
    for table in tables(result):
        parts += _markdown_table(table.caption, table.head, [(name, *map(joined, cells)) for name, cells in table.rows])
    parts.append("\n".join(f"- {_escaped(sentence)}" for sentence in notes(result)))
    alarms = alarm_list(result["arms"])
    if alarms:
        parts += _markdown_table("Every alarm with its evidence", LIST_HEAD, alarms)
    return "\n\n".join(parts) + "\n"


def _markdown_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(map(_escaped, row))} |" for row in (head, *rows)]
    return [f"**{_escaped(caption)}**", "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])]


def closing(result: Row) -> list[str]:
    """Return the outcome for the terminal, one line per arm."""
    width = max(len(arm["name"]) for arm in result["arms"])
    lines = []
    for arm in result["arms"]:
        accuracy, words = arm["accuracy"], arm["deliberation"]
        before, final, lead = accuracy["before"], accuracy["final"], accuracy["against_baseline"]
        against = f"  {joined(difference(lead))} against {result['baseline']}" if lead else ""
        lines.append(
            f"{arm['name']:<{width}}  {joined(estimate(before))} → {joined(estimate(final))}{against}; "
            f"deliberation {words['before']['value']:.2f} → {words['final']['value']:.2f}"
            + "".join(
                f"; {name}: {text}" for name, text in (("ended", ending(arm)), ("alarms", alarm_words(arm))) if text
            )
        )
    return lines


def estimate(value: Row) -> Cell:
    """Return an accuracy with its interval, in percent."""
    return numbers.percent(value["value"]), numbers.percent_range(value["low"], value["high"])


def difference(value: Row | None) -> Cell:
    """Return a difference of accuracies in percentage points with its interval, or a dash for the baseline itself."""
    if value is None:
        return numbers.MISSING, ""
    low, high = (numbers.signed(100 * value[end], decimals=1) for end in ("low", "high"))
    return points(value["value"]), f"{low} to {high}"


def joined(cell: Cell) -> str:
    """Return a cell as one line of text."""
    return f"{cell[0]} ({cell[1]})" if cell[1] else cell[0]


def verdict(value: Row) -> str:
    """Return ``above`` or ``below`` if the interval excludes 0, otherwise ``no clear difference from``."""
    if value["low"] > 0:
        return "above"
    return "below" if value["high"] < 0 else "no clear difference from"


def short_names(names: Sequence[str]) -> list[str]:
    """Return the names without their common first words: ``countdown-grpo`` beside ``countdown-sd`` is ``grpo``."""
    words = [name.split("-") for name in names]
    most = min(map(len, words)) - 1 if len(words) > 1 else 0
    shared = next((i for i in range(most) if len({row[i] for row in words}) > 1), most)
    return ["-".join(row[shared:]) for row in words]


def _rows(arms: Sequence[Row], cells: Callable[[Row], tuple[Cell, ...]]) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    return tuple((numbers.printable(arm["name"]), cells(arm)) for arm in arms)


def _accuracy(arm: Row, steps: int) -> tuple[Cell, ...]:
    accuracy = arm["accuracy"]
    best = sorted(set(accuracy["best_steps"]))
    return (
        estimate(accuracy["before"]),
        *marked(arm, steps, estimate(accuracy["final"]), difference(accuracy["against_baseline"])),
        _at_step(estimate(accuracy["best"]), best),
        difference(accuracy["best_against_baseline"]),
        estimate(accuracy["worst_after_best"]),
        difference(accuracy["fall"]),
    )


def _reach(arm: Row) -> tuple[Cell, ...]:
    reach = arm["reach"]
    mean = reach["mean"]
    each = ", ".join(numbers.MISSING if step is None else str(step) for step in reach["steps"])
    tokens = numbers.compact(mean["tokens"]) if mean["tokens"] is not None and arm["generates"] else numbers.MISSING
    return (
        (f"{reach['reached']} of {reach['of']}", ""),
        (numbers.MISSING, "") if mean["step"] is None else (f"{mean['step']:.4g}", each if reach["of"] > 1 else ""),
        (tokens, ""),
        (numbers.duration(mean["seconds"]), ""),
    )


def marked(arm: Row, steps: int, final: Cell, lead: Cell) -> tuple[Cell, Cell]:
    """Return the final cell and the baseline cell, each with its steps if a run of the arm ended early."""
    evaluated, compared = [run["evaluated"] for run in arm["runs"]], arm["accuracy"]["compared_at"]
    return (
        _at_step(final, evaluated) if set(evaluated) != {steps} else final,
        _at_step(lead, compared) if set(compared) != {steps} and lead[1] else lead,
    )


def _at_step(cell: Cell, steps: Sequence[int]) -> Cell:
    return cell[0], f"{cell[1]}; step {', '.join(map(str, steps))}"


def _measure(arm: Row, key: str, decimals: int, steps: int) -> tuple[Cell, ...]:
    scores = arm[key]

    def value(score: Row) -> Cell:
        return f"{score['value']:.{decimals}f}", f"{score['low']:.{decimals}f}–{score['high']:.{decimals}f}"

    def signed(score: Row | None) -> Cell:
        if score is None:
            return numbers.MISSING, ""
        mean, low, high = (numbers.signed(score[key], decimals=decimals) for key in ("value", "low", "high"))
        return mean, f"{low} to {high}"

    final, lead = marked(arm, steps, value(scores["final"]), signed(scores["against_baseline"]))
    return value(scores["before"]), final, signed(scores["change"]), lead


def _signal(arm: Row) -> tuple[Cell, ...]:
    roles = (arm["entropy"][role] for role in ("student", "teacher"))
    entropies = [_from_to(role, numbers.plain, ("first", "last")) if role else numbers.MISSING for role in roles]
    return tuple((word, "") for word in (*entropies, numbers.percent(arm["gate"])))


def _cost(arm: Row) -> tuple[Cell, ...]:
    seconds, ratios = arm["cost"]["seconds"], arm["cost"]["against_baseline"]
    words = (
        *(numbers.plain(seconds[part]) for part in ("generation", "scoring", "learning", "step")),
        *(numbers.percent(ratios[part]) for part in ("scoring_to_learning", "scoring_to_step")),
        numbers.MISSING if ratios["step"] is None else f"{ratios['step']:.2f} ×",
        numbers.compact(arm["cost"]["tokens"]) if arm["generates"] else numbers.MISSING,
    )
    return tuple((word, "") for word in words)


def _from_to(ends: Row, form: Any, keys: tuple[str, str] = ("before", "final")) -> str:
    return f"{form(ends[keys[0]])} → {form(ends[keys[1]])}"


def _about_seeds(count: int) -> str:
    if count == 1:
        return "One seed: nothing here says how another seed would have come out."
    if count < 5:
        return f"{count} seeds: the part of an interval that is due to seeds rests on {count} runs an arm."
    return f"{count} seeds."


def _machine(starts: Sequence[Row]) -> str:
    words = [
        f"{_count(start['jobs'], 'run')} at a time with {_count(start['threads'], 'thread')} each" for start in starts
    ]
    return f", with {' and '.join(words)}" if words else ""


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _about(result: Row) -> str:
    terms: Mapping[str, Any] = result["terms"]
    return _escaped(
        f"Model {terms['model']['path']}, task {terms['task']['kind']}, {terms['steps']} steps of "
        f"{terms['sampling']['prompts']} problems, seeds {', '.join(map(str, result['seeds']))}, "
        f"{result['problems'][0]} held-out problems × {result['samples']} samples a seed."
    )


def _escaped(text: str) -> str:
    """Escape text for Markdown, so that no cell ends early and nothing is read as markup."""
    text = numbers.printable(text).replace("\n", " ")
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#" else sign for sign in text)
