"""What was evaluated beside a run's own task, in words: ``evaluation.also``."""

from __future__ import annotations

from collections.abc import Iterator

from selfdistill.files.jsonl import Row
from selfdistill.report import numbers
from selfdistill.report.outcome import score_of

MEASURES = {
    "accuracy": "accuracy",
    "loglikelihood": "log-likelihood, nats a token",
    "kl": "KL from the start, nats a token",
}
"""Measures of a result, and what they are called."""
ESTIMATES = {"accuracy": "avg", "loglikelihood": "loglikelihood", "kl": "kl"}
"""The key of each measure's estimate in a result."""


def besides_rows(before: Row, after: Row) -> Iterator[list[str]]:
    """Yield name, measure, before, after and change with its interval, for each result of ``evaluation.also``."""
    sides = [score_of(side, "also") for side in (before, after)]
    for name in dict.fromkeys(name for side in sides for name in side):
        old, new = (score_of(side, name) for side in sides)
        for measure, key in ESTIMATES.items():
            levels = [score_of(side, key) for side in (old, new)]
            if not any(levels):
                continue
            cells = [in_words(level, measure, signed=False) for level in levels]
            cells.append(in_words(score_of(score_of(new, "change"), measure), measure, signed=True))
            texts = [f"{value} ({span})" if span else value for value, span in cells]
            yield [numbers.printable(str(name)), MEASURES[measure], *texts]


def in_words(estimate: Row | None, measure: str, *, signed: bool) -> tuple[str, str]:
    """Return an estimate as text with its interval; ``signed`` for a difference. A missing one is a dash."""
    value, low, high = (numbers.number((estimate or {}).get(end)) for end in ("value", "low", "high"))
    if value is None:
        return numbers.MISSING, ""
    share = measure == "accuracy"

    def form(number: float) -> str:
        if not signed:
            return numbers.percent(number) if share else numbers.plain(number)
        if share:
            return numbers.signed(100 * number, decimals=1)
        # A divergence may be a ten-thousandth of a nat, so a change keeps three digits and no fixed decimals.
        return numbers.with_sign(number)

    text = form(value) + (" points" if signed and share else "")
    return text, numbers.interval(low, high, form, between=" to ")
