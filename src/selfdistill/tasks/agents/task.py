"""Tasks that are played by an agent: a program that asks the model, turn by turn, until it is done.

An agent drives its own loop and asks a model for the next turn. Here the model is the conversation: what the agent asks
is what the model reads, and its turn is the answer. The agent waits meanwhile. So an episode's :meth:`AgentTask.start`
lasts up to the agent's first request, and :meth:`AgentTask.reply` from an answer up to the next request or the end.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from selfdistill.tasks.agents.conversation import AskedModel, Conversation, next_request
from selfdistill.tasks.agents.host import shared_host
from selfdistill.types import Example, Message, Reply, Start


@dataclass(slots=True)
class Played:
    """The state of an episode: its agent, which waits for the model."""

    conversation: Conversation
    agent: asyncio.Task[Any]


class AgentTask(ABC):
    """A task whose episodes are played by an agent: a program of any framework that asks an OpenAI chat API.

    A subclass has ``name``, :meth:`examples` and :meth:`play`. The agent must ask one conversation that grows: each of
    its requests holds the messages of the one before, the model's turn and what is new. What the model draws, and how,
    is the run's: a request's temperature, limits and seed are not read. All coroutines of agents run in one event loop,
    so code that blocks it makes the other episodes wait; a ``play`` that is no coroutine runs in a thread of its own.
    """

    name: str
    contexts: str = "default"
    has_verifier: bool = True

    @abstractmethod
    def examples(self, split: str) -> Sequence[Example]:
        """Examples of ``"train"``, ``"validation"`` or ``"test"``, always in the same order."""

    @abstractmethod
    def play(self, example: Example, model: AskedModel) -> float | Reply | Awaitable[float | Reply]:
        """Let the agent work on an example. Returns what the episode earned: a number, or a whole reply."""

    async def start(self, example: Example) -> Start:
        """Start the agent, up to its first request."""
        started: Start = await shared_host().run(self._start(example))
        return started

    async def reply(self, state: object, text: str) -> Reply:
        """Answer the agent's request with a turn, up to its next one or its end."""
        assert isinstance(state, Played)
        reply: Reply = await shared_host().run(self._reply(state, text))
        return reply

    async def end(self, state: object) -> None:
        """Cancel an agent that was not finished. What it asks from now on is refused."""
        assert isinstance(state, Played)
        await shared_host().run(self._end(state))

    async def _start(self, example: Example) -> Start:
        host = shared_host()
        conversation = Conversation()
        model = host.open(conversation)
        state = Played(conversation, asyncio.create_task(self._play(example, model)))
        try:
            request = await next_request(state.conversation, state.agent)
            if request is None:
                # What it raised is the reason, if it raised.
                state.agent.result()
                raise RuntimeError("the agent ended before it asked the model")
        except BaseException:
            # Nobody ends an episode that has not begun.
            await self._end(state)
            raise
        conversation.begin(request)
        tools = json.dumps(request.schemas, ensure_ascii=False)
        shown = (Message("tools", tools),) if request.schemas else ()
        return Start(state, (*shown, *request.messages))

    async def _play(self, example: Example, model: AskedModel) -> Any:
        if inspect.iscoroutinefunction(self.play):
            return await self.play(example, model)
        # Not the loop's executor: its threads are few, and every episode would keep one until its end.
        ended: Future[Any] = Future()
        threading.Thread(target=_settle, args=(ended, self.play, example, model), daemon=True).start()
        result = await asyncio.wrap_future(ended)
        return await result if inspect.isawaitable(result) else result

    async def _reply(self, state: Played, text: str) -> Reply:
        conversation = state.conversation
        conversation.answer(text)
        request = await next_request(conversation, state.agent)
        if request is None:
            return _last_reply(state.agent.result())
        return Reply(conversation.go_on(request), reward=0.0)

    async def _end(self, state: Played) -> None:
        state.conversation.close()
        shared_host().close(state.conversation)
        state.agent.cancel()
        await asyncio.gather(state.agent, return_exceptions=True)


def _settle(ended: Future[Any], play: Any, example: Example, model: AskedModel) -> None:
    if not ended.set_running_or_notify_cancel():
        return
    try:
        result = play(example, model)
    # Whatever ends the thread ends the episode, and is told.
    except BaseException as error:
        ended.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
    else:
        ended.set_result(result)


def _last_reply(earned: object) -> Reply:
    """The reply that ends an episode, from what ``play`` returned."""
    if isinstance(earned, Reply):
        return replace(earned, done=True)
    if not isinstance(earned, Real):
        raise TypeError(f"play returned a {type(earned).__name__}: it returns a number, or a Reply")
    return Reply(done=True, reward=float(earned))
