"""Find out from rendered text how a chat template ends the assistant's turn and writes tool calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from selfdistill.contexts.rendering import render

SENTINEL = "sentinel0answer"
"""An answer that no template rewrites: one word without tags, spaces or punctuation."""
QUESTION = "sentinel0question"


def turn_end(tokenizer: Any, stop_ids: Sequence[int]) -> tuple[int, ...]:
    """Ids that end an assistant's turn. Sampling stops at the last of them.

    An assistant turn is rendered twice: as the last turn, and followed by a question. The common text after the answer
    is the turn's end. If there is none (harmony's ``<|return|>`` and ``<|end|>``), the end of the last turn is used,
    because no question follows a completion. White space around it is dropped. If the end is plain text, it is followed
    by the tokenizer's end of sequence, because no single id of the text marks the end. If the template does not end
    turns, only the end of sequence is returned.
    """
    end_of_sequence = stop_ids[0] if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
    stops = {*stop_ids, end_of_sequence}
    last, inner = _tail(tokenizer, []), _tail(tokenizer, [{"role": "user", "content": QUESTION}])
    last_ids, inner_ids = _ids(tokenizer, last.strip()), _ids(tokenizer, inner.strip())
    if not last_ids:
        # Some templates end a turn only if another one follows. In other templates this text starts the next turn.
        return inner_ids[:1] if inner_ids and inner_ids[0] in stops else (end_of_sequence,)
    end = _common_prefix(last_ids, inner_ids) or last_ids
    while len(end) > 1 and not tokenizer.decode([end[-1]]).strip():
        end = end[:-1]
    markers = stops | set(tokenizer.added_tokens_decoder)
    lead = () if end[0] in markers else _ids(tokenizer, last[: len(last) - len(last.lstrip())])
    stop = next((index for index, token in enumerate(end) if token in stops), None)
    if stop is not None:
        end = end[: stop + 1] if end[0] in markers else (*lead, *end[: stop + 1])
    elif end[0] in markers:
        end = end[:1]
    elif len(end) > 1:
        end = (*lead, *end, end_of_sequence)
    # The unknown token can be neither trained nor sampled. Some tokenizers use their end of sequence as unknown token.
    unknown = tokenizer.unk_token_id
    return (end_of_sequence,) if unknown in end and unknown not in stops else end


def calls_turn(
    tokenizer: Any, calls: Sequence[tuple[str, Mapping[str, Any]]], *, arguments_as_text: bool = False
) -> str:
    """The text of an assistant turn with tool calls as the template renders it, including the end of the turn.

    It is empty if the template refuses the calls. Some templates need the arguments as JSON text
    (``arguments_as_text``).
    """
    from jinja2 import TemplateError

    # Mistral's template asks for ids of nine letters and digits.
    tool_calls = [
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
    turns: list[dict[str, Any]] = [question, {"role": "assistant", "content": "", "tool_calls": tool_calls}]
    try:
        prompt_text, turn_text = render(tokenizer, [question], prompt=True), render(tokenizer, turns, prompt=False)
    except TemplateError:
        return ""
    head, tail = (text.rpartition(QUESTION)[2] for text in (prompt_text, turn_text))
    shared = next((n for n, (a, b) in enumerate(zip(head, tail, strict=False)) if a != b), min(len(head), len(tail)))
    if shared < len(head):
        # The prompt may open a thought that this turn lacks: "<think>" and "<tool_call>" share their first letters.
        shared = max(tail.rfind(mark, 0, shared) + 1 for mark in "\n >]")
    return tail[shared:]


def _tail(tokenizer: Any, following: Sequence[dict[str, str]]) -> str:
    """The text that the template writes after an answer; empty if it refuses the turns or drops the answer."""
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": SENTINEL}, *following]
    try:
        text = render(tokenizer, turns, prompt=False)
    except TemplateError:
        return ""
    _, answer, tail = text.rpartition(SENTINEL)
    return tail if answer else ""


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()


def _common_prefix(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    length = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    return first[:length]
