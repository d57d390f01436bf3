"""How to read the numbers of a comparison: a few sentences, computed from ``compare.json``."""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.comparison.alarm_tables import alarm_notes
from selfdistill.comparison.grids import grid_edges
from selfdistill.comparison.told import told
from selfdistill.files.jsonl import Row
from selfdistill.report import numbers


def notes(result: Row) -> list[str]:
    """Return the notes on how to read the numbers, one or two sentences each."""
    seeds, every = result["seeds"], result["terms"]["evaluation"]["every"]
    known = "Accuracy" if told(result) == "accuracy" else "The mean reward"
    offline = [arm["name"] for arm in result["arms"] if not arm["generates"]]
    messages = [
        "Before training all arms gave the same answers, seed by seed: they began from the same weights."
        if result["same_start"]
        else "Before training the arms did not give the same answers: the weights, the machine or the number of "
        "threads differed, and the start is equal in distribution at best.",
        _about_intervals(result),
        _about_seeds(len(seeds)),
        _about_budget(result),
        *_about_split(result),
        *([numbers.NO_SPREAD_NOTE] if _without_width(result) else []),
        f"{known} is known every {'step' if every == 1 else f'{every} steps'} only, so a step count here is no finer "
        "than that, and luck in one evaluation can bring it forward.",
        "Best is the highest evaluation of each run, chosen by the same problems that it is reported on, so it "
        "flatters, and a fall from it proves nothing. The late change is taken between two evaluations that were fixed "
        "beforehand: of a curve that is flat but for noise it is 0 on average.",
        f"Seconds count training, not evaluation{_machine(result['machine'])}.",
    ]
    if offline:
        messages.append(
            f"{', '.join(map(numbers.printable, offline))} learns from given solutions and generates nothing."
        )
    return [*messages, *grid_edges(result["arms"]), *alarm_notes(result["arms"])]


def _without_width(value: object) -> bool:
    """Whether an interval somewhere in a comparison has no width."""
    if isinstance(value, dict):
        low, high = numbers.number(value.get("low")), numbers.number(value.get("high"))
        return numbers.without_width(low, high) or any(map(_without_width, value.values()))
    return isinstance(value, list | tuple) and any(map(_without_width, value))


def _about_intervals(result: Row) -> str:
    interval, arms = result["interval"], len(result["arms"])
    kind = (
        "t intervals of the mean over problems" if len(result["seeds"]) == 1 else "t intervals of the mean over seeds"
    )
    shared = ", with the spread of problems added, which all seeds share" if interval["shared_problems"] else ""
    together = (
        f" Those of a column of gains ({arms} arms) or of differences from the baseline ({arms - 1}) hold together, "
        "each widened by Bonferroni. Those of levels stand on their own."
        if arms > 1
        else ""
    )
    # The margin is one of accuracies: nothing is known of a reward's scale.
    tested = (
        "Two arms are called equal only where two one-sided tests show a difference below "
        f"{100 * interval['margin']:g} points; no"
        if told(result) == "accuracy"
        else "No"
    )
    return (
        f"Intervals are {interval['confidence']:.0%} {kind}{shared}; differences are taken problem by problem first, "
        f"between runs of the same seed.{together} {tested} clear difference is no claim of equality."
    )


def _about_budget(result: Row) -> str:
    match = result["match"]
    if match in ("steps", "completions"):
        done = "made equally many steps" if match == "steps" else "drew equally many completions, those of teachers too"
        return f"All arms {done}; what else they spent stands in the table."
    if match == "tokens":
        return (
            "Arms are read at equal tokens drawn, those of teachers too: each at its last evaluation within what the "
            "most frugal arm of the seed drew. An arm that samples nothing is read at its end."
        )
    return (
        "Arms are read at equal seconds of training: each at its last evaluation within what the quickest arm of the "
        "seed took."
    )


def _about_split(result: Row) -> list[str]:
    if result["verdict_split"] == "test":
        return [
            "Final figures come from the test split, which was answered before training and after the last step only; "
            "curves, best and late change from the validation split."
        ]
    return [
        "Final figures come from the problems that the curves show. If anything was tuned on them, they flatter: "
        "--final-split test takes the verdict on others."
    ]


def _about_seeds(count: int) -> str:
    if count == 1:
        return "One seed: nothing here says how another seed would have come out."
    if count < 5:
        return f"{count} seeds: the intervals are as wide as {count} runs an arm allow."
    return f"{count} seeds."


def _machine(starts: Sequence[Row]) -> str:
    words = [
        f"{_count(start['jobs'], 'run')} at a time with {_count(start['threads'], 'thread')} each" for start in starts
    ]
    return f", with {' and '.join(words)}" if words else ""


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
