"""Messages to token ids and back: chat template, thinking switch, turn end, stop ids, window."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from selfdistill.contexts.control_marks import any_of, special_tokens
from selfdistill.contexts.rendering import render
from selfdistill.contexts.thinking import after_thinking, ends_thinking, is_left_thinking
from selfdistill.contexts.turns import SENTINEL, calls_turn, turn_end
from selfdistill.errors import ModelError
from selfdistill.files.text import counted, plural, well_formed
from selfdistill.types import Message, Rollout

REMEMBERED = 4096
"""Size of the cache of rendered prompts: enough for one step with all contexts, not for a whole run."""

PIECES = 1 << 15
"""Size of the cache of decoded id sequences. Most pairs of neighbouring ids recur."""
BROKEN = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8."""

UNKNOWN_SHARE = 0.2
"""Share of unknown tokens in the prompts from which a warning is given."""
LOOKED_AT = 1000
"""Prompts that are looked at for unknown tokens."""


class Chat:
    """A tokenizer with its chat template. One object renders all roles, so their templates cannot differ.

    ``turn_end`` are the ids with which the template ends an assistant turn. The last of them is in ``stop_ids``.
    """

    def __init__(self, tokenizer: Any, *, stop_ids: Sequence[int], window: int, name: str) -> None:
        """Check the chat template and the stop ids.

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
        # The template's end of turn also ends a completion, even if the model's configs do not list it.
        self.stop_ids = tuple(dict.fromkeys((*stop_ids, self.turn_end[-1])))
        self.window = window
        self.name = name
        self._rendered = lru_cache(maxsize=REMEMBERED)(self._render)
        self._decoded = lru_cache(maxsize=PIECES)(self._decode)
        self._writes = lru_cache(maxsize=REMEMBERED)(self._writes_role)
        special = special_tokens(tokenizer)
        self._special_ids = frozenset(special)
        self._special = any_of(special.values())

    def encode(self, messages: Sequence[Message], *, thinking: bool | None = None) -> tuple[int, ...]:
        """Prompt ids up to the start of the assistant's answer. ``thinking`` sets the template's thinking switch.

        Raises:
            ModelError: the template cannot render the messages, or has no thinking switch to set.
        """
        return self._rendered(tuple(messages), thinking)

    def after_turn(
        self, opening: Sequence[Message], messages: Sequence[Message], *, thinking: bool | None = None
    ) -> tuple[int, ...]:
        """Ids that follow a turn of the model: ``messages`` and the start of the model's next turn.

        ``opening`` are the messages before the first turn. The ids continue a turn with its end of turn.

        Raises:
            ModelError: the template cannot render the messages, or would leave one out.
        """
        if any(message.role == "tools" for message in messages):
            raise ModelError("schemas of tools stand before the first turn, and not between turns")
        for role in dict.fromkeys(message.role for message in messages):
            if not self._writes(role):
                raise ModelError(f"the chat template of {self.name} writes nothing of a message of the role {role!r}")
        sentinel = SENTINEL
        while any(sentinel in message.content for message in (*opening, *messages)):
            sentinel += "0"
        text, marks = self._text((*opening, Message("assistant", sentinel), *messages), thinking)
        _, answer, tail = text.rpartition(sentinel)
        if not answer:
            raise ModelError(f"the chat template of {self.name} leaves out earlier turns of the assistant")
        # The sampled turn has its own end. Behind one in plain text is an end of sequence, which no template writes.
        following = tail.lstrip()
        ends = (str(self.tokenizer.decode(ids)).strip() for ids in (self.turn_end, self.turn_end[:-1]))
        end = next((end for end in ends if end and following.startswith(end)), None)
        return self._ids(tail if end is None else following.removeprefix(end), marks)

    def rewrites_turns(self, opening: Sequence[Message], *, thinking: bool | None = None) -> bool:
        """Whether the template renders an earlier turn with a thought differently from its sampled ids."""
        prompt = self.encode(opening, thinking=thinking)
        turn = ("" if self.opens_thinking(prompt) else "<think>\n") + "so\n</think>\n\nyes"
        reply = (Message("user", "and now ?"),)
        as_sampled = (*prompt, *self.response(turn), *self.after_turn(opening, reply, thinking=thinking))
        return as_sampled != self.encode((*opening, Message("assistant", turn), *reply), thinking=thinking)

    def _writes_role(self, role: str) -> bool:
        """Whether the template writes a message of this role after a turn of the assistant, or refuses it aloud."""
        from jinja2 import TemplateError

        turns = [("user", "so"), ("assistant", "so"), (role, SENTINEL)]
        try:
            text = render(self.tokenizer, [{"role": name, "content": said} for name, said in turns], prompt=True)
        except TemplateError:
            return True
        return SENTINEL in text

    def _render(self, messages: Sequence[Message], thinking: bool | None) -> tuple[int, ...]:
        text, marks = self._text(messages, thinking)
        ids = self._ids(text, marks)
        if not ids:
            raise ModelError(f"the chat template of {self.name} writes nothing of {[m.role for m in messages]}")
        return ids

    def _text(self, messages: Sequence[Message], thinking: bool | None) -> tuple[str, dict[str, str]]:
        """The messages as the template writes them, and the special tokens that private characters stand for."""
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
                # A template without a system role (Gemma's) raises: put the system text before the first question.
                folded = _without_system(turns)
                if folded == turns:
                    raise
                text = render(self.tokenizer, folded, prompt=True, **switch)
        except TemplateError as error:
            raise ModelError(
                f"the chat template of {self.name} cannot render {[m.role for m in messages]}: {error}"
            ) from error
        return text, marks

    def control_tokens(self, messages: Sequence[Message]) -> int:
        """Number of special tokens spelled out in the messages. :meth:`encode` encodes them as plain text."""
        return sum(len(self._special.findall(readable(message).content)) for message in messages)

    def _marked(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """Replace each special token spelled out in the messages by a private character; returns the token of each.

        All special tokens in the rendered text then come from the template itself.
        """
        plain = [readable(message) for message in messages]
        spelled = sorted({token for m in plain for token in self._special.findall(m.content)})
        if not spelled:
            return list(messages), {}
        written = "".join(m.content for m in plain)
        unused = (chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in written)
        mark_of = dict(zip(spelled, unused, strict=False))
        marked = [Message(m.role, self._special.sub(lambda hit: mark_of[hit.group()], m.content)) for m in plain]
        return marked, {mark: token for token, mark in mark_of.items()}

    def _ids(self, text: str, marks: dict[str, str]) -> tuple[int, ...]:
        """Ids of a rendered text. Text with a mark, between two of the template's special tokens, is encoded by itself
        without recognition of special tokens.
        """
        if not any(mark in text for mark in marks):
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        marked = re.compile("|".join(marks))
        ids: list[int] = []
        ordinary = ""
        bounds = [index for hit in self._special.finditer(text) for index in hit.span()]
        for start, end in zip([0, *bounds], [*bounds, len(text)], strict=True):
            stretch = text[start:end]
            if not marked.search(stretch):
                ordinary += stretch
                continue
            ids += self.tokenizer(ordinary, add_special_tokens=False)["input_ids"] if ordinary else []
            ordinary = ""
            words = marked.sub(lambda hit: marks[hit.group()], stretch)
            plain = self.tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            # A word-level vocabulary has its special tokens as words; they are replaced by the unknown token.
            known = (self.tokenizer.unk_token_id if token in self._special_ids else token for token in plain)
            ids += [token for token in known if token is not None]
        return (*ids, *(self.tokenizer(ordinary, add_special_tokens=False)["input_ids"] if ordinary else ()))

    def response(self, text: str) -> tuple[int, ...]:
        """Ids of a completion with this text and the template's end of turn."""
        return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], *self.turn_end)

    def calls_text(self, calls: Sequence[tuple[str, Mapping[str, Any]]], *, arguments_as_text: bool = False) -> str:
        """Tool calls, each (name, arguments), as the template renders them, without thinking and end of turn.

        It is empty if the template refuses them; see :func:`~selfdistill.contexts.turns.calls_turn`.

        Raises:
            ModelError: the template takes no tools, or exceeds the time limit.
        """
        self._check_takes_tools()
        text = after_thinking(calls_turn(self.tokenizer, calls, arguments_as_text=arguments_as_text)).strip()
        end = str(self.tokenizer.decode(self.turn_end)).strip()
        return text.removesuffix(end).strip()

    def _check_takes_tools(self) -> None:
        if "tools" not in str(self.tokenizer.chat_template):
            raise ModelError(f'the chat template of {self.name} takes no tools: write task.form = "react"')

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion without its end of turn or stop id; other special tokens are kept."""
        body = tuple(ids)
        if body[-len(self.turn_end) :] == self.turn_end:
            body = body[: -len(self.turn_end)]
        elif body and body[-1] in self.stop_ids:
            body = body[:-1]
        return well_formed(str(self.tokenizer.decode(body, skip_special_tokens=False))).strip()

    def _decode(self, ids: tuple[int, ...]) -> str:
        return well_formed(str(self.tokenizer.decode(ids, skip_special_tokens=False)))

    def opens_thinking(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends with a thinking start mark, so that its completion starts inside the thinking."""
        # A mark may consist of several tokens.
        return is_left_thinking(str(self.tokenizer.decode(prompt_ids[-16:])))

    def answer_part(self, rollout: Rollout) -> str:
        """The text of a rollout after its thinking; empty if the thinking is unfinished.

        If the prompt opened the thinking and the token limit cut it, the completion contains no mark at all. Of an
        episode it is the conversation: each turn after its thinking, and what the environment said.
        """
        if rollout.episode:
            answers = self.turn_answers(rollout)
            said = ((message.content for message in turn.messages) for turn in rollout.episode.turns)
            texts = (text for answer, reply in zip(answers, said, strict=True) for text in (answer, *reply))
            return "\n".join(filter(None, texts))
        if not rollout.finished and not ends_thinking(rollout.text):
            prompt_ids = rollout.prompt_ids if rollout.role_prompt_ids is None else rollout.role_prompt_ids
            if self.opens_thinking(prompt_ids):
                return ""
        return after_thinking(rollout.text).strip()

    def turn_answers(self, rollout: Rollout) -> list[str]:
        """The text of each turn after its thinking; of a single answer its :meth:`answer_part` alone."""
        if not rollout.episode:
            return [self.answer_part(rollout)]
        *earlier, last = rollout.episode.turns
        alone = [replace(rollout, text=turn.text, finished=True, episode=None) for turn in earlier]
        return [self.answer_part(each) for each in (*alone, replace(rollout, text=last.text, episode=None))]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The text that each id adds to the ids before it. Concatenated, they are the text of all ids.

        A token decoded alone may lose its leading space (sentencepiece) or be part of a character. The whole character
        belongs to the token that completes it; the earlier parts get the empty string.
        """
        pieces: list[str] = []
        begin = done = 0
        for index in range(len(ids)):
            before = self._decoded(tuple(ids[begin:done]))
            text = self._decoded(tuple(ids[begin : index + 1]))
            pending = index + 1 - done
            if text.endswith(BROKEN) and pending < LONGEST_CHARACTER and index + 1 < len(ids):
                pieces.append("")
                continue
            pieces.append(text[len(before) :])
            begin, done = done, index + 1
        return pieces

    def word(self, token: int) -> str:
        """The text of one id after another word, including its space; for part of a character, the token's name."""
        ahead = self.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        text = self._decoded((*ahead, token))[len(self._decoded(tuple(ahead))) :]
        name = str(self.tokenizer.convert_ids_to_tokens(token))
        return name if BROKEN in text and name.startswith("<0x") else text

    def warnings(self, prompts: Sequence[Sequence[Message]] = ()) -> list[str]:
        """Warnings: sampling cannot stop at an end of turn in plain text; prompts spell out control tokens."""
        warnings = []
        plain = [token for token in self.turn_end[:-1] if token not in self.tokenizer.added_tokens_decoder]
        words = str(self.tokenizer.decode(plain)).strip()
        if words:
            end = self.tokenizer.decode([self.turn_end[-1]])
            warnings.append(
                f"the chat template of {self.name} ends a turn with {words!r}, which is no single token: "
                f"completions end at {end!r} alone, which sft teaches behind those words"
            )
        counts = [count for count in map(self.control_tokens, prompts) if count]
        if counts:
            warnings.append(
                f"{len(counts)} of {counted(len(prompts), 'prompt')} "
                f"{plural(len(counts), 'spells', 'spell')} out {sum(counts)} control {plural(sum(counts), 'token')} of "
                f"{self.name}, which {plural(sum(counts), 'is', 'are')} encoded as text"
            )
        return warnings + self.unknown_warnings(prompts)

    def unknown_warnings(self, prompts: Sequence[Sequence[Message]]) -> list[str]:
        """A warning if the tokenizer does not know much of what the prompts say.

        Only the words of the first :data:`LOOKED_AT` prompts are looked at, without the template.
        """
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            return []
        texts = [message.content for prompt in prompts[:LOOKED_AT] for message in prompt]
        ids = [i for text in texts for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        share = ids.count(unknown) / len(ids) if ids else 0.0
        if share <= UNKNOWN_SHARE:
            return []
        return [
            f"warning: {share:.0%} of the prompts' tokens are unknown to the tokenizer of {self.name}, which reads "
            f"{self.tokenizer.unk_token!r} for each: this model was not made for these rows"
        ]


def usual_length(chat: Chat) -> int:
    """Default maximum length of a completion in tokens: 1024, but at most half the model's window."""
    return max(1, min(1024, chat.window // 2))


def _without_system(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The turns with a leading system text put before the user's first one, as model cards advise."""
    if len(turns) < 2 or turns[0]["role"] != "system" or turns[1]["role"] != "user":
        return turns
    return [{"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}, *turns[2:]]


def readable(message: Message) -> Message:
    """The message with schemas free of escapes: they are parsed later, so ``\\u003c`` must not hide a token.

    Raises:
        ModelError: a message of the role "tools" is no JSON list.
    """
    if message.role != "tools":
        return message
    try:
        schemas = json.loads(message.content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"a message of the role 'tools' is no JSON: {error}") from error
    if not isinstance(schemas, list):
        raise ModelError("a message of the role 'tools' is a JSON list of schemas, not another value")
    return Message(message.role, json.dumps(schemas, ensure_ascii=False))
