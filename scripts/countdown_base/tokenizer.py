"""The world's tokenizer: whole numbers and words as tokens of their own, saved as a normal fast tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfdistill.contexts import Template
from selfdistill.tasks import countdown
from selfdistill.tasks.countdown_arithmetic import LARGEST, SYMBOLS

SPECIAL = ("<|pad|>", "<|unk|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
# Ordinary words to the tokenizer, because a completion's text must show where its thinking ends.
THINKING = ("<think>", "</think>")
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

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|> ' -}}
{%- if message['role'] == 'assistant' and '</think>' in message['content'] and '<think>' not in message['content'] -%}
{{- '<think> ' -}}
{%- endif -%}
{{- message['content'] + ' <|end|> ' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|> <think>' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- ' </think>' -}}{%- endif -%}
{%- endif -%}
"""


def words(templates: Mapping[str, Template]) -> list[str]:
    """Every word of prompts, context templates, completions and feedback, sorted."""
    texts = [countdown.PROMPT, TRACE_WORDS, FEEDBACK_WORDS, GENERAL_WORDS]
    texts += [template.text or "" for template in templates.values()]
    plain = re.sub(r"\$[a-z_]+|\{[a-z]+\}|[^a-z\s]", " ", " ".join(texts))
    return sorted(set(plain.split()))


def build_tokenizer(templates: Mapping[str, Template]) -> PreTrainedTokenizerFast:
    """The tokenizer: whitespace separates tokens, and punctuation is a token even where no space surrounds it."""
    numbers = [str(number) for number in range(LARGEST + 1)]
    vocabulary = [*SPECIAL, *THINKING, *numbers, *SYMBOLS, *PUNCTUATION, *words(templates)]
    model = models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<|unk|>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[-+×÷=(),.:?!]"), behavior="isolated")]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINKING])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
