"""Countdown's vocabulary: whole numbers, signs and words as tokens of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PreTrainedTokenizerFast

from base_models.words import word_tokenizer
from selfdistill.contexts.templates import Template
from selfdistill.tasks.countdown import task as countdown
from selfdistill.tasks.countdown.arithmetic import LARGEST, SYMBOLS

PUNCTUATION = ("=", "(", ")", ",", ".", ":")
TRACE_WORDS = "try vs no yes answer wait hmm maybe perhaps let me"
FEEDBACK_WORDS = (
    f"{countdown.NO_ANSWER} {countdown.TRUNCATED} the answer is malformed : the answer is too long "
    "a bracket was closed but not opened a bracket was opened but not closed "
    "an operation was expected after a number was expected first "
    "uses which is not given too often does not use often enough and divides by reaches "
    "a fraction a number above a number below not"
)
GENERAL_WORDS = "you are a solver of number problems think first then step by check again so correct wrong right"


def words(templates: Mapping[str, Template]) -> list[str]:
    """Return every word of prompts, context templates, completions and feedback, sorted."""
    texts = [countdown.PROMPT, TRACE_WORDS, FEEDBACK_WORDS, GENERAL_WORDS]
    texts += [template.text or "" for template in templates.values()]
    plain = re.sub(r"\$[a-z_]+|\{[a-z]+\}|[^a-z\s]", " ", " ".join(texts))
    return sorted(set(plain.split()))


def build_tokenizer(templates: Mapping[str, Template]) -> PreTrainedTokenizerFast:
    """Build the tokenizer: whitespace separates tokens, and punctuation is a token even without spaces around it."""
    numbers = [str(number) for number in range(LARGEST + 1)]
    return word_tokenizer([*numbers, *SYMBOLS, *PUNCTUATION, *words(templates)], punctuation="-+×÷=(),.:?!")
