"""What was evaluated beside a run's own task, in words: ``evaluation.also``."""

from __future__ import annotations

from collections.abc import Iterator

from selfdistill.files.jsonl import Row
from selfdistill.report import numbers

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
    sides: list[Row] = [side["also"] if isinstance(side.get("also"), dict) else {} for side in (before, after)]
    for name in dict.fromkeys(name for side in sides for name in side):
        old, new = (side.get(name, {}) for side in sides)
        for measure, key in ESTIMATES.items():
            levels = [side.get(key) if isinstance(side.get(key), dict) else None for side in (old, new)]
            if levels == [None, None]:
                continue
            change = new.get("change", {}).get(measure) if isinstance(new.get("change"), dict) else None
            cells = [in_words(level, measure, signed=False) for level in levels]
            cells.append(in_words(change, measure, signed=True))
            texts = [f"{value} ({span})" if span else value for value, span in cells]
            yield [numbers.printable(str(name)), MEASURES[measure], *texts]


def in_words(estimate: Row | None, measure: str, *, signed: bool) -> tuple[str, str]:
    """Return an estimate as text with its interval; ``signed`` for a difference. A missing one is a dash."""
    value, low, high = (numbers.number((estimate or {}).get(end)) for end in ("value", "low", "high"))
    if value is None:
        return numbers.MISSING, ""
    share, known = measure == "accuracy", low is not None and high is not None
    if not signed:
        texts = [(numbers.percent if share else numbers.plain)(end) for end in (value, low, high)]
        return texts[0], f"{texts[1]} to {texts[2]}" if known else ""
    texts = [
        numbers.signed(100 * end, decimals=1) if share else _signed(end) for end in (value, low or 0.0, high or 0.0)
    ]
    return texts[0] + (" points" if share else ""), f"{texts[1]} to {texts[2]}" if known else ""


def _signed(difference: float) -> str:
    """A difference with its sign and about three digits. A divergence may be a ten-thousandth of a nat."""
    return numbers.plain(difference) if difference <= 0 else f"+{numbers.plain(difference)}"
