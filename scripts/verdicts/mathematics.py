"""Verdicts on answers of mathematics: ours, math-verify alone, and the published rule of Minerva."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import sympy
from latex2sympy2_extended import latex2sympy
from math_verify import parse, verify

from selfdistill.config.tasks import MathConfig
from selfdistill.tasks.data import MemoryRows
from selfdistill.tasks.math.answers import boxed_answer, stated_answer
from selfdistill.tasks.math.task import MathTask
from verdicts.agreement import agreement

CASES = Path(__file__).resolve().parents[2] / "tests" / "cases" / "math.json"

# Units and typography that Minerva removes from an answer, as its appendix D describes.
_WORDS = re.compile(
    r"square|ways|integers|dollars|mph|inches|ft|hours|km|units|points|feet|minutes|digits|cents|degrees|cm|gm"
    r"|pounds|meters|meals|edges|students|multiples"
)
_TYPOGRAPHY = re.compile(r"\\ |\\;|,\\!|\{,\}|\\\$|\^\\circ|\^\{\\circ\}|\\l?dots|\"|\$|\s|\\mathrm\{th\}")
_TEXT = re.compile(r"\\(?:text|textbf|mbox|overline)\{([^{}]*)\}(?:\^[23])?")


def table() -> str:
    """Return the table of mathematics."""
    gold, completions, right, arguable = zip(*json.loads(CASES.read_text(encoding="utf-8"))["cases"], strict=True)
    with _quiet():
        judges = {
            "selfdistill": ours(gold, completions),
            "math-verify alone": [_math_verify(*pair) for pair in zip(gold, completions, strict=True)],
            "strings, then sympy (Minerva)": [_minerva(*pair) for pair in zip(gold, completions, strict=True)],
        }
    return agreement(right, arguable, judges)


def ours(gold: Sequence[str], completions: Sequence[str]) -> list[bool]:
    """Return the verdicts of :class:`MathTask` on completions for rows with these answers."""
    rows = [{"question": f"case {i}", "answer": answer} for i, answer in enumerate(gold)]
    task = MathTask(MathConfig(path="cases", validation_share=0.0, test_share=0.0), {"path": MemoryRows(rows, "cases")})
    try:
        examples = task.examples("train")
        pairs = zip(examples, completions, strict=True)
        return [task.verify(example, completion, finished=True).correct for example, completion in pairs]
    finally:
        task.close()


def _math_verify(gold: str, completion: str) -> bool:
    """math-verify with its own defaults. The row's answer is put in a box, because it then parses more answers."""
    return bool(verify(parse(f"\\boxed{{{gold}}}"), parse(completion)))


def _minerva(gold: str, completion: str) -> bool:
    """Equal strings without units and typography, else a difference that sympy simplifies to 0.

    The rule of Lewkowycz et al. 2022 (arXiv 2206.14858, appendix D), which lm-evaluation-harness's ``minerva_math``
    follows. Our own rule finds the answer, because these completions are no few-shot replies.
    """
    given = boxed_answer(completion) or stated_answer(completion)
    if given is None:
        return False
    left, right = (_stripped(answer) for answer in (gold, given))
    if left == right:
        return True
    try:
        return bool(sympy.simplify(latex2sympy(left) - latex2sympy(right)) == 0)
    except Exception:  # as in the rule: answers that sympy cannot read or subtract are unequal
        return False


def _stripped(answer: str) -> str:
    answer = answer.split("=")[-1]
    answer = _TEXT.sub(r"\1", _TYPOGRAPHY.sub("", answer))
    answer = _WORDS.sub("", answer)
    answer = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", answer)
    answer = re.sub(r"sqrt([^{])", r"sqrt{\1}", answer)
    return answer.replace(",", "") if answer.replace(",", "").isdigit() else answer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress math-verify's warnings about answers that it cannot read."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
