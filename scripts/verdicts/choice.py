"""Verdicts on multiple choice: ours, and the two rules of lm-evaluation-harness for GPQA."""

from __future__ import annotations

import json
import re
from pathlib import Path

from selfdistill.tasks.choice.letters import chosen_letter
from verdicts.agreement import agreement

CASES = Path(__file__).resolve().parents[2] / "tests" / "cases" / "choice.json"
LETTERS = "ABCD"


def table() -> str:
    """Return the table of multiple choice: every completion with every letter as its row's answer."""
    cases = json.loads(CASES.read_text(encoding="utf-8"))["cases"]
    pairs = [(completion, gold, gold == letter) for completion, letter in cases for gold in LETTERS]
    judges = {
        "selfdistill": [chosen_letter(completion).letter == gold for completion, gold, _ in pairs],
        "lm-evaluation-harness, strict": [_strict(completion, gold) for completion, gold, _ in pairs],
        "lm-evaluation-harness, flexible": [_flexible(completion, gold) for completion, gold, _ in pairs],
    }
    return agreement([right for _, _, right in pairs], [False] * len(pairs), judges)


def _strict(completion: str, gold: str) -> bool:
    """``regex_pattern: (?<=The answer is )(.*)(?=.)``, the first match, compared without case and punctuation."""
    match = re.search(r"(?<=The answer is )(.*)(?=.)", completion)
    return match is not None and _bare(match.group()) == gold.lower()


def _flexible(completion: str, gold: str) -> bool:
    """``multi_choice_regex`` with ``(\\([A-Z]\\))``: the last letter in brackets, else the last behind a colon."""
    letters = re.findall(r"(\([A-Z]\))", completion) or re.findall(rf":[\s]*([{LETTERS}])", completion)
    return bool(letters) and _bare(letters[-1]) == gold.lower()


def _bare(text: str) -> str:
    return re.sub(r"[^\w\s]|_", "", text).lower()
