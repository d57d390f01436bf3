"""The conversation of an agent with the model: what it asked, and whether its next request continues it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfdistill.errors import DataError
from selfdistill.tasks.agents.messages import Said, Schemas, read_messages, read_tools, read_turn
from selfdistill.types import Message

NAME = "student"
"""The model's name for agents."""
OVER = "the episode is over: the model is asked nothing more"


class Over(Exception):
    """A request after the end of its episode."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What an agent asked of the model, and where it waits for the answer."""

    messages: tuple[Message, ...]
    schemas: Schemas
    answer: asyncio.Future[Said]


@dataclass(slots=True, eq=False)
class Conversation:
    """The requests of an episode. It is made, and lives, in the event loop of all agents."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    asked: asyncio.Queue[Request] = field(default_factory=asyncio.Queue)
    latest: Request | None = None
    """The newest request that the model was shown."""
    schemas: Schemas = ()
    calls: int = 0
    """Calls of tools so far."""
    over: bool = False
    names: list[str] = field(default_factory=list)
    """What requests call it."""

    async def ask(self, messages: tuple[Message, ...], schemas: Schemas, *, again: bool = False) -> Said:
        """The model's turn after these messages. ``again`` says that the request was sent before, without an answer.

        Raises:
            Over: the episode ended.
        """
        if self.over:
            raise Over(OVER)
        if again and self.latest is not None and self.latest.messages == messages:
            return await asyncio.shield(self.latest.answer)
        request = Request(messages, schemas, asyncio.get_running_loop().create_future())
        await self.asked.put(request)
        return await asyncio.shield(request.answer)

    def begin(self, request: Request) -> None:
        """Take the first request."""
        self.latest, self.schemas = request, request.schemas

    def answer(self, text: str) -> None:
        """Answer the newest request with what the model wrote."""
        assert self.latest is not None
        said = read_turn(text, self.schemas, first=self.calls)
        self.calls += len(said.calls)
        self.latest.answer.set_result(said)

    def go_on(self, request: Request) -> tuple[Message, ...]:
        """Take the next request; returns what it adds to the conversation after the model's turn.

        Raises:
            DataError: it does not continue the conversation.
        """
        assert self.latest is not None
        read, asked = self.latest.messages, request.messages
        known = len(read)
        self.latest = request
        changed = next((n for n, (a, b) in enumerate(zip(read, asked, strict=False), start=1) if a != b), None)
        if changed is not None or len(asked) < known:
            where = f"its message {changed or len(asked) + 1}"
            raise DataError(f"the agent's next request does not continue the conversation: {where} is another one")
        if [message.role for message in asked[known : known + 1]] != ["assistant"]:
            raise DataError("the agent's next request does not continue the conversation: it lacks the model's turn")
        if request.schemas != self.schemas:
            raise DataError("the agent's next request has other tools, and the model was shown those of the first")
        return asked[known + 1 :]

    def close(self) -> None:
        """Refuse what waits for an answer, and what is asked from now on."""
        self.over = True
        waiting = [] if self.latest is None else [self.latest]
        while not self.asked.empty():
            waiting.append(self.asked.get_nowait())
        for request in waiting:
            if not request.answer.done():
                request.answer.set_exception(Over(OVER))
                # Read here, because the one who asked may be gone.
                request.answer.exception()


async def next_request(conversation: Conversation, agent: asyncio.Task[Any]) -> Request | None:
    """What the agent asks next; None once it has ended."""
    request = asyncio.create_task(conversation.asked.get())
    try:
        await asyncio.wait({request, agent}, return_when=asyncio.FIRST_COMPLETED)
        return request.result() if request.done() else None
    finally:
        request.cancel()


@dataclass(frozen=True, slots=True)
class AskedModel:
    """The model as an agent sees it: an address with OpenAI's chat API, for its own episode."""

    url: str
    """Base address, for ``OpenAI(base_url=model.url, api_key=model.key)``."""
    conversation: Conversation = field(repr=False)
    key: str = "none"
    """Any key is taken."""
    name: str = NAME

    async def complete(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Any]:
        """The model's next message, without the way over the address. Messages and tools are those of the API."""
        asked = self.conversation.ask(read_messages(messages), read_tools(tools))
        loop = self.conversation.loop
        # A play that is no coroutine may have an event loop of its own.
        elsewhere = asyncio.get_running_loop() is not loop
        said = await (asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, loop)) if elsewhere else asked)
        return said.message()
