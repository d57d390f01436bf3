"""Calls of environments: faults that hide themselves, replies without end, coroutines of one episode, and its end."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import resource
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from selfdistill.contexts.chat import Chat
from selfdistill.errors import ModelError
from selfdistill.sampling import environments, episodes
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.environments import Fault, call_all, read_reply, read_start
from selfdistill.types import Example, Message, Reply, Start
from selfdistill.types.conversation import DONE
from support.tiny import tiny_tokenizer
from support.turns import AT, SPOKEN, Script, Spoken, ends, examples, played


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(tiny_tokenizer(), stop_ids=[2], window=256, name="tiny")


def said_at(reply: Any, chat: Chat) -> list[str]:
    return ends(played(chat, Script(chat), Spoken(lambda text: reply, AT)))


# --- faults ----------------------------------------------------------------------------------------------------------


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words for it")


def fails(error: Exception) -> Any:
    raise error


def test_an_error_without_words_ends_its_call_at_once() -> None:
    assert call_all([lambda: fails(Mute())], seconds=math.inf, at_once=1) == [Fault(environments.RAISED, "Mute")]


def test_a_time_limit_of_the_environments_own_is_an_error_of_it() -> None:
    async def asked() -> Any:
        raise TimeoutError("no answer of the game's server")

    error = Fault(environments.RAISED, "TimeoutError: no answer of the game's server")
    assert call_all([lambda: fails(TimeoutError("no answer of the game's server")), asked], seconds=60, at_once=2) == [
        error,
        error,
    ]


class Endless(Sequence[Message]):
    """Messages without end, which are made when they are read."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        assert index <= environments.MOST_MESSAGES, "read on and on"
        return Message("user", "so")


def test_more_messages_than_anyone_reads_end_the_episode(chat: Chat) -> None:
    most = environments.MOST_MESSAGES
    for given in (Endless(), [Message("user", "")] * (most + 1)):
        for read in (read_reply(Reply(given)), read_start(Start(messages=given))):
            assert isinstance(read, Fault) and read.reason == environments.TOO_MANY
    assert not isinstance(read_reply(Reply([Message("user", "")] * most)), Fault)
    assert said_at(Reply(Endless()), chat) == [DONE, environments.TOO_MANY, *[DONE] * 4]


def test_schemas_nested_beyond_reading_end_the_episode(chat: Chat) -> None:
    deep = Message("tools", "[" * 90_000)
    assert said_at(Reply([deep]), chat) == [DONE, episodes.UNRENDERED, *[DONE] * 4]
    with pytest.raises(ModelError, match="a message of the role 'tools' is no JSON"):
        chat.encode((deep, Message("user", "9 ?")))


TOOLS = '[{"type": "function", "function": {"name": "try", "description": "", "parameters": {}}}]'


def test_what_the_template_would_not_write_ends_the_episode(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    known = "{% if tools %}{{ 'yes ' }}{% endif %}{% for m in messages if m.role in ('user', 'assistant') %}"
    tokenizer.chat_template = tokenizer.chat_template.replace("{% for m in messages %}", known)
    two = Chat(tokenizer, stop_ids=[2], window=256, name="two roles")
    logged: list[str] = []
    monkeypatch.setattr(episodes, "log", logged.append)
    assert said_at(Reply([Message("user", "so")]), two) == [DONE] * 6
    assert logged == []
    # Its messages of another role would be left out without a word.
    assert said_at(Reply([Message("user", "so"), Message("tool", "7")]), two) == [
        DONE,
        episodes.UNRENDERED,
        *[DONE] * 4,
    ]
    # Tools that come in the middle would stand where the model no longer reads.
    assert said_at(Reply([Message("tools", TOOLS), Message("user", "so")]), two)[1] == episodes.UNRENDERED
    assert logged == [
        f"Spoken: {episodes.UNRENDERED}: the chat template of two roles writes nothing of a message of the role 'tool'",
        f"Spoken: {episodes.UNRENDERED}: schemas of tools stand before the first turn, and not between turns",
    ]


def test_why_an_opening_cannot_be_used_is_logged(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(episodes, "log", logged.append)
    monkeypatch.setattr(Spoken, "start", lambda self, example: Start(None, [Message("assistant", "hi")]))
    assert set(ends(played(chat, Script(chat)))) == {episodes.UNRENDERED}
    assert logged == [f"Spoken: {episodes.UNRENDERED}: the opening ends with a message of 'assistant', not of 'user'"]


def test_a_cut_turn_of_an_episode_that_could_not_start_is_not_finished(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spoken, "start", lambda self, example: fails(OSError("gone")))
    groups = played(chat, Script(chat, cut=SPOKEN[0][0][0][0]))
    assert set(ends(groups)) == {environments.RAISED}
    assert [r.finished for r in groups[0].rollouts] == [False, True, True]


# --- coroutines and the end of an episode ----------------------------------------------------------------------------


class Remembers(Spoken):
    """Waits in every reply for what a task of its own sends, which lives as long as the episode."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[str] = []
        self.lock = threading.Lock()

    async def start(self, example: Example) -> Start:  # type: ignore[override]
        sent: asyncio.Queue[int] = asyncio.Queue(maxsize=1)

        async def send() -> None:
            for n in range(100):
                await sent.put(n)

        return Start({"sent": sent, "sender": asyncio.get_running_loop().create_task(send()), "turn": 0})

    async def reply(self, state: Any, text: str) -> Reply:
        assert await state["sent"].get() == state["turn"]
        state["turn"] += 1
        return super().reply(state, text)  # type: ignore[no-any-return]

    async def end(self, state: Any) -> None:
        state["sender"].cancel()
        await asyncio.gather(state["sender"], return_exceptions=True)
        with self.lock:
            self.ended.append(f"{state['turn']} turns")


def test_the_coroutines_of_an_episode_share_an_event_loop_until_its_end(chat: Chat) -> None:
    task = Remembers()
    assert played(chat, Script(chat), task) == played(chat, Script(chat))
    assert sorted(task.ended) == ["1 turns", "1 turns", "2 turns", "2 turns", "2 turns", "3 turns"]


def test_episodes_may_have_more_files_open_than_the_system_allows_at_first(chat: Chat) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Three files are those of one event loop, and six episodes are open at once.
    few = max(int(name) for name in os.listdir("/proc/self/fd")) + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    try:
        assert played(chat, Script(chat), Remembers()) == played(chat, Script(chat))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(environments.MOST_FILES, limits[1]), limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_episode_whose_coroutine_hangs_still_ends(chat: Chat) -> None:
    go, threads = threading.Event(), []

    class Blocks(Remembers):
        seconds = 0.5

        async def reply(self, state: Any, text: str) -> Reply:
            if text == AT:
                # No other coroutine of the episode can run meanwhile.
                threads.append(threading.current_thread())
                go.wait()
            return await super().reply(state, text)

        async def end(self, state: Any) -> None:
            self.ended.append(f"{state['turn']} turns")

    task = Blocks()
    assert ends(played(chat, Script(chat), task)) == [DONE, environments.LATE, *[DONE] * 4]
    assert sorted(task.ended) == ["0 turns", "1 turns", "1 turns", "2 turns", "2 turns", "3 turns"]
    # Its loop is closed once it returns: left open, it would be warned of.
    go.set()
    threads[0].join()
    gc.collect()


class Counted(Spoken):
    """Counts the episodes that are open."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.open: set[int] = set()
        self.most: list[int] = []

    def start(self, example: Example) -> Start:
        state = object()
        self.open.add(id(state))
        return Start(state)

    def end(self, state: object) -> None:
        self.open.remove(id(state))
        self.most.append(len(self.open))


def test_every_episode_ends_once_whatever_ended_it(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Counted(lambda text: fails(OSError("gone")), AT)
    played(chat, Script(chat, cut=SPOKEN[1][2][1][0]), task)
    # Those that have ended do not wait for the others.
    assert task.open == set() and sorted(task.most) == [0, 1, 2, 3, 4, 5]
    # A run that is stopped meanwhile ends them too.
    stopped = Counted()

    def sample(conversations: Any, params: SamplingParams) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        episodes.play(examples(), stopped, sample, chat, SamplingParams(count=3, max_tokens=16, seed=7), thinking=None)
    assert stopped.open == set() and len(stopped.most) == 6


def test_an_end_that_fails_is_logged_and_changes_nothing(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(episodes, "log", logged.append)
    task: Any = Spoken()
    task.end = lambda state: fails(OSError("the server is gone"))
    assert played(chat, Script(chat), task) == played(chat, Script(chat))
    assert set(logged) == {"Spoken: the environment raised an error: OSError: the server is gone"}
    # A number of this name is no such method.
    logged.clear()
    task.end = 5
    played(chat, Script(chat), task)
    assert logged == []
    # An episode that did not start has nothing to end.
    unborn = Counted()
    monkeypatch.setattr(Counted, "start", lambda self, example: fails(OSError("gone")))
    played(chat, Script(chat), unborn)
    assert unborn.most == []
