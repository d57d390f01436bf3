"""Messages to token ids and back: chat template, thinking switch, stop ids, window."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from selfdistill.errors import ModelError
from selfdistill.types import Message

THINK_END = "</think>"


class Chat:
    """A tokenizer with its chat template. The same object renders every role, so that no two templates can differ."""

    def __init__(self, tokenizer: Any, *, stop_ids: Sequence[int], window: int, name: str) -> None:
        """Check that the tokenizer can do the work.

        Raises:
            ModelError: no chat template, or no stop id.
        """
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {name} has no chat template: use an instruction-tuned model, "
                "or put a chat_template.jinja beside its tokenizer"
            )
        if not stop_ids:
            raise ModelError(
                f"{name} names no end-of-sequence id in its tokenizer or generation config, so no completion could end"
            )
        self.tokenizer = tokenizer
        self.stop_ids = tuple(stop_ids)
        self.window = window
        self.name = name
        self._encoded: dict[tuple[tuple[Message, ...], bool | None], tuple[int, ...]] = {}

    def encode(self, messages: Sequence[Message], *, thinking: bool | None = None) -> tuple[int, ...]:
        """Prompt ids up to where the assistant begins; ``thinking`` is passed to templates that have the switch.

        Raises:
            ModelError: the template cannot render the messages, or has no thinking switch to set.
        """
        key = (tuple(messages), thinking)
        if key not in self._encoded:
            self._encoded[key] = self._render(messages, thinking)
        return self._encoded[key]

    def _render(self, messages: Sequence[Message], thinking: bool | None) -> tuple[int, ...]:
        from jinja2 import TemplateError

        switch: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        if switch and "enable_thinking" not in str(self.tokenizer.chat_template):
            raise ModelError(f"the chat template of {self.name} has no enable_thinking switch: leave 'thinking' unset")
        turns = [{"role": message.role, "content": message.content} for message in messages if message.role != "tools"]
        schemas = [schema for message in messages if message.role == "tools" for schema in json.loads(message.content)]
        if schemas and "tools" not in str(self.tokenizer.chat_template):
            raise ModelError(f'the chat template of {self.name} takes no tools: write task.form = "react"')
        if schemas:
            switch["tools"] = schemas
        try:
            try:
                text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **switch)
            except TemplateError:
                # A template without a system role (Gemma's) raises: the text then stands before the first question.
                folded = _without_system(turns)
                if folded == turns:
                    raise
                text = self.tokenizer.apply_chat_template(folded, tokenize=False, add_generation_prompt=True, **switch)
        except TemplateError as error:
            raise ModelError(
                f"the chat template of {self.name} cannot render {[m.role for m in messages]}: {error}"
            ) from error
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def completion(self, text: str) -> tuple[int, ...]:
        """Ids of a text that nobody sampled, as a completion: tokenised once, and closed by the stop id."""
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.stop_ids[0])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion: the stop id left out, everything else as it stands."""
        body = ids[:-1] if ids and ids[-1] in self.stop_ids else ids
        return str(self.tokenizer.decode(body, skip_special_tokens=False)).strip()

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Each id as text of its own, for display."""
        return [str(self.tokenizer.decode([token])) for token in ids]


def usual_length(chat: Chat) -> int:
    """Tokens that a completion may have where nobody says: 1024, or half the window of a model that has little."""
    return min(1024, chat.window // 2)


def _without_system(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The turns with a leading system text put before the user's first one, as model cards advise."""
    if len(turns) < 2 or turns[0]["role"] != "system" or turns[1]["role"] != "user":
        return turns
    return [{"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}, *turns[2:]]


def strip_thinking(text: str) -> str:
    """What stands after the thinking block; the whole text when there is none."""
    return text.rpartition(THINK_END)[2].strip()
