"""Environments of the package verifiers that are called turn by turn: ``MultiTurnEnv`` and what derives from it.

Such an environment drives its own rollout and asks a client for the model's turns. Here the client is the conversation:
what the environment asks is what the model reads, and its turn is the answer. The rollout waits meanwhile, so all hooks
of an environment run, its stop conditions and its cleanup included. All rollouts of a task run in one event loop, as
the package runs them: the clients, locks and queues of an environment or of a rubric can be used in one alone.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from selfdistill.config.base import load_named
from selfdistill.config.suggest import choices
from selfdistill.config.worlds import VerifiersConfig
from selfdistill.contexts.thinking import after_thinking
from selfdistill.errors import ConfigError, DataError
from selfdistill.tasks.frames import errors_of
from selfdistill.tasks.tools.calls import MalformedCall
from selfdistill.tasks.tools.syntax import find_calls
from selfdistill.types import Example, Message, Reply, Start

SPLITS = ("train", "validation", "test")
HELD_OUT = {"validation": 0, "test": 1}
"""Which rows of ten are held out where the environment has no rows for evaluation."""
TURNS = 8


@dataclass(slots=True)
class Played:
    """The state of an episode: the environment's rollout, which waits for the model."""

    asked: asyncio.Queue[tuple[Any, Any]] = field(default_factory=asyncio.Queue)
    """What the environment asks of the model: all messages, and the tools."""
    answers: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    """The turns of the model, as the package's responses."""
    rollout: asyncio.Task[Any] | None = None
    read: Sequence[Message] = ()
    """The messages that were asked so far."""
    schemas: Sequence[Mapping[str, Any]] = ()


class VerifiersTask:
    """Rows and rewards of a ``MultiTurnEnv`` of verifiers; its rubric judges an episode when the environment ends it.

    Args:
        config: the task's table.
        seed: not used; the environment has its own rows.

    Raises:
        UserError: the package is missing or too new, or the environment cannot be loaded or is none of this kind.
    """

    name = "verifiers"
    contexts = "default"
    has_verifier = True

    def __init__(self, config: VerifiersConfig, *, seed: int = 0) -> None:
        if importlib.util.find_spec("verifiers") is None:
            raise ConfigError("task.kind 'verifiers' needs the package verifiers: pip install 'selfdistill[verifiers]'")
        import verifiers

        if importlib.util.find_spec("verifiers.envs") is None:
            raise ConfigError(
                f"verifiers {verifiers.__version__} has no environments that are called turn by turn: "
                "pip install 'selfdistill[verifiers]' installs the last release that has"
            )
        self.config, self.seconds, self.replayable = config, config.seconds, config.replayable
        self._verifiers: Any = verifiers
        self._label = f"task.env {config.env!r}"
        self.env = self._loaded()
        # The environment ends an episode at its own limit, so that its rubric judges it.
        own = self.env.max_turns if self.env.max_turns > 0 else config.turns or TURNS
        self.max_turns = self.env.max_turns = min(own, config.turns or own)
        self._client = _client_class()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()

    def _loaded(self) -> Any:
        module = self.config.env.replace("-", "_").split("/")[-1]
        load = load_named(f"{module}:load_environment", "task.env", "function")
        with errors_of(self._label), _own_signals():
            env = load(**self.config.arguments)
        if not isinstance(env, self._verifiers.MultiTurnEnv):
            raise ConfigError(f"{self._label} makes a {type(env).__name__!r}, which is no MultiTurnEnv of verifiers")
        if env.requires_group_rollouts:
            raise ConfigError(
                f"{self._label} judges the completions of a group together, and here each is judged alone"
            )
        return env

    def examples(self, split: str) -> Sequence[Example]:
        """The environment's rows: those for training, and those for evaluation in halves, the even ones first.

        Without rows for evaluation, two of ten rows are held out.

        Raises:
            UserError: there are none, the environment raises, or a prompt holds something else than texts.
        """
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; {choices(split, SPLITS)}")
        # An environment may make its rows only now, for example download them.
        with errors_of(self._label):
            self.env.build_eval_dataset()
            apart = self.env.eval_dataset is not None
            given = self.env.get_eval_dataset() if apart and split != "train" else self.env.get_dataset()
            rows = list(enumerate(given))
        if apart and split != "train":
            rows = [(n, row) for n, row in rows if n % 2 == HELD_OUT[split]]
        elif not apart:
            held_out = {number: name for name, number in HELD_OUT.items()}
            rows = [(n, row) for n, row in rows if held_out.get(n % 10, "train") == split]
        if not rows:
            raise DataError(f"{self._label} has no rows for {split}")
        source = "eval" if apart and split != "train" else "train"
        return [self._example(f"{source}-{n}", row) for n, row in rows[: getattr(self.config, split)]]

    def _example(self, place: str, row: Mapping[str, Any]) -> Example:
        prompt = messages_of(row["prompt"])
        answer = row.get("answer")
        fields = {"answer": answer, "solution": answer} if isinstance(answer, str) and answer else {}
        return Example(f"verifiers-{self.config.env}-{place}", prompt, fields, {"row": dict(row)})

    async def start(self, example: Example) -> Start:
        """Start the environment's rollout, up to its first request."""
        state = Played()
        try:
            started: Start = await self._with_others(self._start(state, example))
        except BaseException:
            # Nobody ends an episode that has not begun.
            await self._with_others(self._cancel(state))
            raise
        return started

    async def _start(self, state: Played, example: Example) -> Start:
        client = self._client(state)
        state.rollout = asyncio.create_task(self.env.rollout(example.columns["row"], client, "student", {}))
        asked = await _next_request(state)
        if asked is None:
            raise RuntimeError(f"the environment ended before the first turn: {state.rollout.result().get('error')!r}")
        prompt, tools = asked
        state.read = messages_of(prompt)
        state.schemas = [
            {"type": "function", "function": tool.model_dump(include={"name", "description", "parameters"})}
            for tool in tools or ()
        ]
        shown = (Message("tools", json.dumps(state.schemas, ensure_ascii=False)),) if state.schemas else ()
        return Start(state, (*shown, *state.read))

    async def reply(self, state: object, text: str) -> Reply:
        """Answer the environment's request with a turn, up to its next one or its end."""
        assert isinstance(state, Played)
        reply: Reply = await self._with_others(self._reply(state, text))
        return reply

    async def _reply(self, state: Played, text: str) -> Reply:
        await state.answers.put(self._response(text, state.schemas))
        asked = await _next_request(state)
        if asked is None:
            return await self._ended(state)
        prompt = messages_of(asked[0])
        known = len(state.read)
        if prompt[:known] != tuple(state.read) or [message.role for message in prompt[known : known + 1]] != [
            "assistant"
        ]:
            raise RuntimeError("the environment's next prompt does not continue the conversation")
        state.read = prompt
        return Reply(prompt[known + 1 :], reward=0.0)

    async def _ended(self, state: Played) -> Reply:
        assert state.rollout is not None
        result = state.rollout.result()
        if result.get("error") is not None:
            raise result["error"]
        await self.env.rubric.score_rollout(result)
        await self.env.rubric.cleanup(result)
        said = messages_of(result.get("final_env_response") or ())
        reward = float(result["reward"])
        return Reply(said, done=True, reward=reward, success=reward >= self.config.success)

    async def end(self, state: object) -> None:
        """Cancel a rollout that was not finished. The environment cleans up after it."""
        assert isinstance(state, Played)
        await self._with_others(self._cancel(state))

    async def _cancel(self, state: Played) -> None:
        if state.rollout is not None:
            state.rollout.cancel()
            await asyncio.gather(state.rollout, return_exceptions=True)

    async def _with_others(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the event loop of all episodes. It is cancelled with the one that waits for it."""
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run_for_ever, args=(self._loop,), daemon=True, name="verifiers").start()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    def _response(self, text: str, schemas: Sequence[Mapping[str, Any]]) -> Any:
        """A turn as a server would return it: thinking apart, and calls of tools in their fields."""
        types = self._verifiers.types
        said = after_thinking(text)
        calls = []
        if schemas:
            try:
                calls = find_calls(said, list(schemas))
            except MalformedCall:
                # As a server does, which returns a call that it cannot read as text.
                calls = []
        made = [
            types.ToolCall(id=f"call{n:05}", name=call.name, arguments=json.dumps(call.arguments, ensure_ascii=False))
            for n, call in enumerate(calls)
        ]
        message = types.ResponseMessage(
            content=said.strip(),
            reasoning_content=text.removesuffix(said).strip() or None,
            tool_calls=made or None,
            finish_reason="tool_calls" if made else "stop",
            is_truncated=False,
        )
        return types.Response(id="turn", created=0, model="student", usage=None, message=message)


def _run_for_ever(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        # Raised in an episode, these are its own error, and they would end the loop of all episodes.
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()


async def _next_request(state: Played) -> tuple[Any, Any] | None:
    """What the environment asks next; None once its rollout is over."""
    assert state.rollout is not None
    request = asyncio.create_task(state.asked.get())
    try:
        await asyncio.wait({request, state.rollout}, return_when=asyncio.FIRST_COMPLETED)
        return request.result() if request.done() else None
    finally:
        request.cancel()


def messages_of(given: Any) -> tuple[Message, ...]:
    """Messages of the package as those of this one.

    Raises:
        DataError: one holds something else than texts.
    """
    from verifiers.utils.message_utils import normalize_messages

    messages = []
    for message in normalize_messages(given if isinstance(given, str) else list(given), field_name="prompt"):
        content = message.content
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        plain = [part if isinstance(part, dict) else part.model_dump() for part in parts]
        if any(part.get("type") != "text" for part in plain):
            raise DataError("a message of a verifiers environment holds something else than texts")
        messages.append(Message(message.role, "\n".join(str(part["text"]) for part in plain)))
    return tuple(messages)


def _client_class() -> Any:
    """The class of a client that asks the episode for the model's turns."""
    from verifiers.clients import Client

    class Student(Client):  # type: ignore[misc]
        def __init__(self, state: Played) -> None:
            super().__init__(None)
            self.state = state

        async def get_response(self, prompt: Any, *given: Any, tools: Any = None, **options: Any) -> Any:
            await self.state.asked.put((list(prompt), tools))
            return await self.state.answers.get()

        async def close(self) -> None:
            """There is no connection."""

    # Everything else that the class declares belongs to requests to a provider, which are not made.
    Student.__abstractmethods__ = frozenset()
    return Student


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of Ctrl-C and SIGTERM, which every environment of verifiers replaces by its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
