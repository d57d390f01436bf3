"""The toolbox's vocabulary: every word of requests, calls, thoughts, complaints and contexts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PreTrainedTokenizerFast

from base_models.words import word_tokenizer
from selfdistill.contexts.templates import Template
from selfdistill.tasks.toolbox import task as toolbox
from selfdistill.tasks.toolbox.calls import DIMENSIONS, LARGEST, MONTHS, PERSONS, PLACES, SLOTS, TOOLS
from toolbox_base.traces import PHRASES

PUNCTUATION = ("=", "(", ")", ",", ".", ":")
FEEDBACK_WORDS = (
    f"{toolbox.NO_CALL} {toolbox.TRUNCATED} the call is malformed : a function was expected first "
    "a bracket was expected after the function a bracket was opened but not closed "
    "there is something after the closing bracket an argument is not well formed "
    "a plain argument follows a named argument the function must be too many plain arguments "
    "argument order must be unknown argument argument is given twice the call needs confirm date must be "
    "the call needs an argument and"
)
THOUGHT_WORDS = "this is about with and check the is clear so now the call done"
GENERAL_WORDS = "you are a careful assistant who calls the tools correct wrong"


def words(templates: Mapping[str, Template]) -> list[str]:
    """Return every word of prompts, context templates, completions and feedback, sorted."""
    texts = [toolbox.PROMPT, FEEDBACK_WORDS, THOUGHT_WORDS, GENERAL_WORDS, *SLOTS, *PHRASES, *toolbox.SPOKEN.values()]
    texts += [template.text or "" for template in templates.values()]
    texts += [value for values in DIMENSIONS.values() for value in values]
    texts += [*PLACES, *PERSONS, *MONTHS, *TOOLS]
    for tool in TOOLS.values():
        texts += [tool.call, *tool.requests, *tool.items]
    plain = re.sub(r"\$[a-z_]+|\{[a-z]+\}|[^a-z\s]", " ", " ".join(texts))
    return sorted(set(plain.split()))


def build_tokenizer(templates: Mapping[str, Template]) -> PreTrainedTokenizerFast:
    """Build the tokenizer: every number, punctuation mark and word is one token."""
    numbers = [str(number) for number in range(LARGEST + 1)]
    return word_tokenizer([*numbers, *PUNCTUATION, *words(templates)], punctuation="=(),.:?!")
