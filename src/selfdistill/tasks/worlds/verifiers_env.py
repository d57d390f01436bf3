"""Environments of verifiers up to its release 0.3: ``MultiTurnEnv`` and what derives from it.

Such an environment drives its own rollout, so it is an agent here: all its hooks run, its stop conditions and its
cleanup included. All rollouts run in one event loop, as the package runs them: the clients, locks and queues of an
environment or of a rubric can be used in one alone. Releases from 0.4 on have environments of another kind
(verifiers_tasksets.py).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from selfdistill.config.base import load_named
from selfdistill.config.suggest import choices
from selfdistill.config.worlds import VerifiersConfig
from selfdistill.errors import ConfigError, DataError
from selfdistill.tasks.agents.conversation import AskedModel
from selfdistill.tasks.agents.task import AgentTask
from selfdistill.tasks.frames import errors_of
from selfdistill.types import Example, Message, Reply

SPLITS = ("train", "validation", "test")
HELD_OUT = {"validation": 0, "test": 1}
"""Which rows of ten are held out where the environment has no rows for evaluation."""
TURNS = 8


class VerifiersTask(AgentTask):
    """Rows and rewards of a ``MultiTurnEnv`` of verifiers; its rubric judges an episode when the environment ends it.

    Args:
        config: the task's table.
        seed: not used; the environment has its own rows.

    Raises:
        UserError: the environment cannot be loaded or is none of this kind.
    """

    name = "verifiers"

    def __init__(self, config: VerifiersConfig, *, seed: int = 0) -> None:
        import verifiers

        self.config, self.seconds, self.replayable = config, config.seconds, config.replayable
        self._verifiers: Any = verifiers
        self._label = f"task.env {config.env!r}"
        self.env = self._loaded()
        # The environment ends an episode at its own limit, so that its rubric judges it.
        own = self.env.max_turns if self.env.max_turns > 0 else config.turns or TURNS
        self.max_turns = self.env.max_turns = min(own, config.turns or own)
        self._client = _client_class(verifiers.types)

    def _loaded(self) -> Any:
        module = self.config.env.replace("-", "_").split("/")[-1]
        load = load_named(f"{module}:load_environment", "task.env", "function")
        with errors_of(self._label), own_signals():
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

    async def play(self, example: Example, model: AskedModel) -> Reply:
        """The environment's rollout; its rubric judges the episode when the environment ends it."""
        client = self._client(model)
        result = await self.env.rollout(example.columns["row"], client, model.name, {})
        if result.get("error") is not None:
            raise result["error"]
        await self.env.rubric.score_rollout(result)
        await self.env.rubric.cleanup(result)
        said = messages_of(result.get("final_env_response") or ())
        reward = float(result["reward"])
        return Reply(said, done=True, reward=reward, success=reward >= self.config.success)


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


def _client_class(types: Any) -> Any:
    """The class of a client that asks the episode for the model's turns. ``types`` is the package's module."""
    from verifiers.clients import Client

    class Student(Client):  # type: ignore[misc]
        def __init__(self, model: AskedModel) -> None:
            super().__init__(None)
            self.model = model

        async def get_response(self, prompt: Any, *given: Any, tools: Any = None, **options: Any) -> Any:
            schemas = [
                {"type": "function", "function": tool.model_dump(include={"name", "description", "parameters"})}
                for tool in tools or ()
            ]
            said = await self.model.conversation.ask(messages_of(list(prompt)), tuple(schemas))
            calls = [types.ToolCall(id=call["id"], **call["function"]) for call in said.message().get("tool_calls", ())]
            message = types.ResponseMessage(
                content=said.content,
                reasoning_content=said.thought or None,
                tool_calls=calls or None,
                finish_reason=said.finish_reason,
                is_truncated=False,
            )
            return types.Response(id="turn", created=0, model=self.model.name, usage=None, message=message)

        async def close(self) -> None:
            """There is no connection."""

    # Everything else that the class declares belongs to requests to a provider, which are not made.
    Student.__abstractmethods__ = frozenset()
    return Student


@contextmanager
def own_signals() -> Iterator[None]:
    """Keep the handlers of Ctrl-C and SIGTERM, which every environment of verifiers replaces by its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
