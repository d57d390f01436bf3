"""Word-level tokenizers of the embedded environments, saved as normal fast tokenizers with a chat template."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<|pad|>", "<|unk|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
# Ordinary tokens, not special ones: decoding must keep the end of thinking in a completion's text.
THINKING = ("<think>", "</think>")

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


def word_tokenizer(words: Sequence[str], *, punctuation: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer: the special tokens first, then these words in order.

    Whitespace separates tokens. A character of ``punctuation`` is a token even
    without spaces around it. ``punctuation`` is the inside of a regular expression's brackets.
    """
    vocabulary = [*SPECIAL, *THINKING, *words]
    model = models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<|unk|>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(f"[{punctuation}]"), behavior="isolated")]
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
