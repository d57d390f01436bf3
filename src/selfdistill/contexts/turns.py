"""How a chat template ends the assistant's turn, read off what it renders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from selfdistill.contexts.rendering import render

SENTINEL = "sentinel0answer"
"""An answer that no template rewrites: one word without a tag, a space or a sign."""
QUESTION = "sentinel0question"


def turn_end(tokenizer: Any, stop_ids: Sequence[int]) -> tuple[int, ...]:
    """Ids that end an assistant's turn; the last of them is where a completion ends.

    An assistant turn is rendered as the last one, and as one that a question follows. What both renderings write after
    the answer ends the turn; where they share nothing (harmony's ``<|return|>`` and ``<|end|>``), the last turn's end
    counts, since no question follows a completion. White space around the end is no part of it. An end in plain words
    keeps its words and is closed by the tokenizer's end of sequence, as no single id would tell where it stands. A
    template that ends no turn leaves the end of sequence alone.
    """
    end_of_sequence = stop_ids[0] if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
    stops = {*stop_ids, end_of_sequence}
    last, inner = _tail(tokenizer, []), _tail(tokenizer, [{"role": "user", "content": QUESTION}])
    last_ids, inner_ids = _ids(tokenizer, last.strip()), _ids(tokenizer, inner.strip())
    if not last_ids:
        # Some templates end a turn only where another one follows; elsewhere what follows is the next turn's beginning.
        return inner_ids[:1] if inner_ids and inner_ids[0] in stops else (end_of_sequence,)
    end = _shared(last_ids, inner_ids) or last_ids
    while len(end) > 1 and not tokenizer.decode([end[-1]]).strip():
        end = end[:-1]
    markers = stops | set(tokenizer.added_tokens_decoder)
    lead = () if end[0] in markers else _ids(tokenizer, last[: len(last) - len(last.lstrip())])
    stop = next((place for place, token in enumerate(end) if token in stops), None)
    if stop is not None:
        end = end[: stop + 1] if end[0] in markers else (*lead, *end[: stop + 1])
    elif end[0] in markers:
        end = end[:1]
    elif len(end) > 1:
        end = (*lead, *end, end_of_sequence)
    # What the tokenizer cannot spell can be neither taught nor drawn; some use their end of sequence as unknown token.
    unknown = tokenizer.unk_token_id
    return (end_of_sequence,) if unknown in end and unknown not in stops else end


def calls_turn(
    tokenizer: Any, calls: Sequence[tuple[str, Mapping[str, Any]]], *, arguments_as_text: bool = False
) -> str:
    """What the template writes in an assistant's turn that calls tools, its end included.

    It is empty where the template refuses the calls. Some templates want the arguments as a JSON text
    (``arguments_as_text``).
    """
    from jinja2 import TemplateError

    # Mistral's template asks for ids of nine letters and digits.
    made = [
        {
            "id": f"call{number:05}",
            "type": "function",
            "function": {
                "name": name,
                "arguments": json.dumps(arguments, ensure_ascii=False) if arguments_as_text else dict(arguments),
            },
        }
        for number, (name, arguments) in enumerate(calls)
    ]
    question = {"role": "user", "content": QUESTION}
    turns = [question, {"role": "assistant", "content": "", "tool_calls": made}]
    try:
        begun = str(tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False))
    except (TemplateError, TypeError, ValueError):
        return ""
    head, tail = (text.rpartition(QUESTION)[2] for text in (begun, whole))
    shared = next((n for n, (a, b) in enumerate(zip(head, tail, strict=False)) if a != b), min(len(head), len(tail)))
    if shared < len(head):
        # The prompt may open a thought that this turn lacks: "<think>" and "<tool_call>" share their first letters.
        shared = max(tail.rfind(mark, 0, shared) + 1 for mark in "\n >]")
    return tail[shared:]


def _tail(tokenizer: Any, following: Sequence[dict[str, str]]) -> str:
    """What the template writes after an answer; nothing where it refuses the turns, or does not show the answer."""
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": SENTINEL}, *following]
    try:
        text = render(tokenizer, turns, prompt=False)
    except TemplateError:
        return ""
    _, shown, tail = text.rpartition(SENTINEL)
    return tail if shown else ""


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    length = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
