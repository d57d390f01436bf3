"""Messages to token ids and back: chat template, thinking switch, turn end, stop ids, window."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from selfdistill.contexts.rendering import render
from selfdistill.contexts.thinking import after_thinking, ends_thinking, is_left_thinking
from selfdistill.contexts.turns import calls_turn, turn_end
from selfdistill.errors import ModelError
from selfdistill.files.text import well_formed
from selfdistill.types import Message, Rollout

REMEMBERED = 4096
"""Rendered prompts that are kept: those of a step under all its contexts, and not those of a whole run."""

PIECES = 1 << 15
"""Short runs of ids whose text is kept: most pairs of neighbours come again."""
BROKEN = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8."""


class Chat:
    """A tokenizer with its chat template. The same object renders every role, so that no two templates can differ.

    ``turn_end`` are the ids with which the template ends an assistant's turn; the last of them is among ``stop_ids``.
    """

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
        self.turn_end = turn_end(tokenizer, stop_ids)
        # A completion also ends where the template ends a turn, whatever the configs of the model declare.
        self.stop_ids = tuple(dict.fromkeys((*stop_ids, self.turn_end[-1])))
        self.window = window
        self.name = name
        self._rendered = lru_cache(maxsize=REMEMBERED)(self._render)
        self._decoded = lru_cache(maxsize=PIECES)(self._decode)
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        # The longest first, so that a token which another one begins is found whole.
        longest_first = sorted({*special, *tokenizer.all_special_tokens}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode(self, messages: Sequence[Message], *, thinking: bool | None = None) -> tuple[int, ...]:
        """Prompt ids up to where the assistant begins; ``thinking`` is passed to templates that have the switch.

        Raises:
            ModelError: the template cannot render the messages, or has no thinking switch to set.
        """
        return self._rendered(tuple(messages), thinking)

    def _render(self, messages: Sequence[Message], thinking: bool | None) -> tuple[int, ...]:
        from jinja2 import TemplateError

        switch: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        if switch and "enable_thinking" not in str(self.tokenizer.chat_template):
            raise ModelError(f"the chat template of {self.name} has no enable_thinking switch: leave 'thinking' unset")
        messages, marks = self._marked(messages)
        turns = [{"role": message.role, "content": message.content} for message in messages if message.role != "tools"]
        schemas = [schema for message in messages if message.role == "tools" for schema in json.loads(message.content)]
        if schemas:
            self._check_takes_tools()
            switch["tools"] = schemas
        try:
            try:
                text = render(self.tokenizer, turns, prompt=True, **switch)
            except TemplateError:
                # A template without a system role (Gemma's) raises: the text then stands before the first question.
                folded = _without_system(turns)
                if folded == turns:
                    raise
                text = render(self.tokenizer, folded, prompt=True, **switch)
        except TemplateError as error:
            raise ModelError(
                f"the chat template of {self.name} cannot render {[m.role for m in messages]}: {error}"
            ) from error
        ids = self._ids(text, marks)
        if not ids:
            raise ModelError(f"the chat template of {self.name} writes nothing of {[m.role for m in messages]}")
        return ids

    def control_tokens(self, messages: Sequence[Message]) -> int:
        """How many special tokens of the tokenizer the messages spell out; :meth:`encode` makes plain text of them."""
        return sum(len(self._special.findall(message.content)) for message in messages)

    def _marked(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """The messages with a private character for every special token that they spell out, and what each stands for.

        The special tokens of the rendered text are then those that the template itself has written.
        """
        # Schemas are read back by json.loads, so a token must not hide behind an escape such as \u003c.
        readable = [
            Message(m.role, json.dumps(json.loads(m.content), ensure_ascii=False)) if m.role == "tools" else m
            for m in messages
        ]
        found = sorted({token for m in readable for token in self._special.findall(m.content)})
        if not found:
            return list(messages), {}
        written = "".join(m.content for m in readable)
        unused = (chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in written)
        mark_of = dict(zip(found, unused, strict=False))
        marked = [Message(m.role, self._special.sub(lambda hit: mark_of[hit.group()], m.content)) for m in readable]
        return marked, {mark: token for token, mark in mark_of.items()}

    def _ids(self, text: str, marks: dict[str, str]) -> tuple[int, ...]:
        """Ids of a rendered text. A stretch between two of the template's tokens that holds a mark is encoded alone,
        with the recognition of special tokens switched off.
        """
        if not any(mark in text for mark in marks):
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        marked = re.compile("|".join(marks))
        ids: list[int] = []
        ordinary = ""
        bounds = [place for hit in self._special.finditer(text) for place in hit.span()]
        for start, end in zip([0, *bounds], [*bounds, len(text)], strict=True):
            stretch = text[start:end]
            if not marked.search(stretch):
                ordinary += stretch
                continue
            ids += self.tokenizer(ordinary, add_special_tokens=False)["input_ids"] if ordinary else []
            ordinary = ""
            words = marked.sub(lambda hit: marks[hit.group()], stretch)
            plain = self.tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            # A vocabulary of whole words holds its special tokens as words: the unknown word stands for them there.
            unknown = self.tokenizer.unk_token_id
            forged = {*self.tokenizer.all_special_ids} - {unknown}
            plain = [unknown if token in forged else token for token in plain]
            plain = [token for token in plain if token is not None]
            ids += plain
        return (*ids, *(self.tokenizer(ordinary, add_special_tokens=False)["input_ids"] if ordinary else ()))

    def response(self, text: str) -> tuple[int, ...]:
        """Ids of a completion that says this text and ends its turn as the template does."""
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], *self.turn_end)

    def calls_text(self, calls: Sequence[tuple[str, Mapping[str, Any]]], *, arguments_as_text: bool = False) -> str:
        """Calls of tools, (name, arguments) each, as the template writes them: without thinking and the turn's end.

        It is empty where the template refuses them; see :func:`~selfdistill.contexts.turns.calls_turn`.

        Raises:
            ModelError: the template takes no tools.
        """
        self._check_takes_tools()
        text = after_thinking(calls_turn(self.tokenizer, calls, arguments_as_text=arguments_as_text)).strip()
        end = str(self.tokenizer.decode(self.turn_end)).strip()
        return text.removesuffix(end).strip()

    def _check_takes_tools(self) -> None:
        if "tools" not in str(self.tokenizer.chat_template):
            raise ModelError(f'the chat template of {self.name} takes no tools: write task.form = "react"')

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion: the turn's end or the stop id left out, everything else as it stands."""
        body = tuple(ids)
        if body[-len(self.turn_end) :] == self.turn_end:
            body = body[: -len(self.turn_end)]
        elif body and body[-1] in self.stop_ids:
            body = body[:-1]
        return well_formed(str(self.tokenizer.decode(body, skip_special_tokens=False))).strip()

    def _decode(self, ids: tuple[int, ...]) -> str:
        return well_formed(str(self.tokenizer.decode(ids, skip_special_tokens=False)))

    def opens_thinking(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends with the begin of a thought, so that its completion begins inside the thinking."""
        # A mark that is no token of its own is spelled in several.
        return is_left_thinking(str(self.tokenizer.decode(prompt_ids[-16:])))

    def answer_part(self, rollout: Rollout) -> str:
        """What a rollout says after its thinking; nothing where the thinking was never finished.

        A completion that the token limit cut inside a block which its prompt opened holds no mark at all.
        """
        if not rollout.finished and not ends_thinking(rollout.text):
            prompt_ids = rollout.prompt_ids if rollout.role_prompt_ids is None else rollout.role_prompt_ids
            if self.opens_thinking(prompt_ids):
                return ""
        return after_thinking(rollout.text).strip()

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The text that each id adds to the ids before it; together they are the text of all of them.

        Alone a token may lose its space (sentencepiece), or be a part of a character: the text is then that of the
        token that completes it, and the parts before add nothing.
        """
        found: list[str] = []
        begin = done = 0
        for place in range(len(ids)):
            told = self._decoded(tuple(ids[begin:done]))
            text = self._decoded(tuple(ids[begin : place + 1]))
            pending = place + 1 - done
            if text.endswith(BROKEN) and pending < LONGEST_CHARACTER and place + 1 < len(ids):
                found.append("")
                continue
            found.append(text[len(told) :])
            begin, done = done, place + 1
        return found

    def word(self, token: int) -> str:
        """An id as text of its own, space included, behind some other word; a part of a character by its name."""
        ahead = self.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        text = self._decoded((*ahead, token))[len(self._decoded(tuple(ahead))) :]
        name = str(self.tokenizer.convert_ids_to_tokens(token))
        return name if BROKEN in text and name.startswith("<0x") else text

    def remarks(self, prompts: Sequence[Sequence[Message]] = ()) -> list[str]:
        """What a user should know: sampling cannot stop at a turn end in plain words; prompts spell control tokens."""
        found = []
        plain = [token for token in self.turn_end[:-1] if token not in self.tokenizer.added_tokens_decoder]
        words = str(self.tokenizer.decode(plain)).strip()
        if words:
            end = self.tokenizer.decode([self.turn_end[-1]])
            found.append(
                f"the chat template of {self.name} ends a turn with {words!r}, which is no single token: "
                f"completions end at {end!r} alone, which sft teaches behind those words"
            )
        counts = [count for count in map(self.control_tokens, prompts) if count]
        if counts:
            found.append(
                f"{len(counts)} of {len(prompts)} prompts spell out {sum(counts)} control tokens of {self.name}, "
                "which are encoded as text"
            )
        return found


def usual_length(chat: Chat) -> int:
    """Tokens that a completion may have where nobody says: 1024, or half the window of a model that has little."""
    return min(1024, chat.window // 2)


def _without_system(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The turns with a leading system text put before the user's first one, as model cards advise."""
    if len(turns) < 2 or turns[0]["role"] != "system" or turns[1]["role"] != "user":
        return turns
    return [{"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}, *turns[2:]]
