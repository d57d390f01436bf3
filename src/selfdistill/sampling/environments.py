"""Call environments: many at once, each with a time limit, and what they return is checked before it is used.

An environment may raise, hang or return anything. Each such case is a :class:`Fault`, which ends its own episode.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import resource
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Real
from typing import Any

from selfdistill.files.text import well_formed
from selfdistill.tasks.episode_loop import EpisodeLoop
from selfdistill.types import Message, Reply, Start

LONGEST_TEXT = 100_000
"""Most characters that an environment may say at once."""
MOST_MESSAGES = 1_000
"""Most messages that an environment may say at once."""
LARGEST_REWARD = 1e300
"""Bound of a reward's magnitude. The sum over the turns of an episode is then a number too."""

RAISED = "the environment raised an error"
LATE = "the environment exceeded its time limit"
NO_TEXT = "the environment returned no text"
TOO_LONG = f"the environment returned more than {LONGEST_TEXT:,} characters"
TOO_MANY = f"the environment returned more than {MOST_MESSAGES:,} messages"
NO_NUMBER = "the environment returned a reward that is no number"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a call of an environment cannot be used. The reason ends the episode and is counted."""

    reason: str
    error: str = ""
    """What it raised."""


MOST_FILES = 65_536
"""Files and connections that this process may have open, if the system lets it."""


def open_more_files() -> None:
    """Raise the number of files that this process may have open. Many systems begin with 1,024 and allow far more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # A system may have another bound, which it does not tell.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Late(Exception):
    """A coroutine that was cancelled at its time limit."""


def call_all(
    calls: Sequence[Callable[[], Any]],
    *,
    seconds: float,
    at_once: int,
    read: Callable[[Any], Any] = lambda result: result,
    loops: Sequence[EpisodeLoop] = (),
) -> list[Any]:
    """What ``read`` makes of every call's result, in order; a :class:`Fault` where it raised or exceeded ``seconds``.

    A result is read within the time limit of its call, because its parts may be objects that raise or hang when they
    are looked at. At most ``at_once`` calls run at the same time. A call that returns an awaitable is awaited, in its
    entry of ``loops`` if there are any. A call that exceeds its time limit is abandoned: its thread goes on until it
    returns, and its result is ignored.
    """
    results: dict[int, Any] = {}
    deadlines: dict[int, float] = {}
    returned: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    started = 0
    while len(results) < len(calls):
        while started < len(calls) and len(deadlines) < at_once:
            deadlines[started] = time.monotonic() + seconds
            # Not an executor: at exit the interpreter would wait for its threads, of which one may hang.
            args = (calls[started], started, seconds, returned, read, loops[started] if loops else None)
            threading.Thread(target=_call, args=args, daemon=True).start()
            started += 1
        try:
            # An environment without a time limit has an infinite one, which no lock takes.
            wait = min(threading.TIMEOUT_MAX, min(deadlines.values()) - time.monotonic())
            index, result = returned.get(timeout=max(0.0, wait))
            if deadlines.pop(index, None) is not None:
                results[index] = result
        except queue.Empty:
            for index in [i for i, deadline in deadlines.items() if deadline <= time.monotonic()]:
                del deadlines[index]
                results[index] = Fault(LATE)
    return [results[index] for index in range(len(calls))]


def _call(
    call: Callable[[], Any],
    index: int,
    seconds: float,
    returned: queue.SimpleQueue[tuple[int, Any]],
    read: Callable[[Any], Any],
    loop: EpisodeLoop | None,
) -> None:
    try:
        result = call()
        if inspect.isawaitable(result):
            awaited = _awaited(result, seconds)
            result = asyncio.run(awaited) if loop is None else loop.run(awaited)
        result = read(result)
    except _Late:
        result = Fault(LATE)
    # A thread that ends without a result would leave its episode waiting, so SystemExit counts too.
    except BaseException as error:
        result = Fault(RAISED, _in_words(error))
    returned.put((index, result))


async def _awaited(result: Awaitable[Any], seconds: float) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await result
    except TimeoutError as error:
        # A time limit of the environment's own, for example of a request, is an error like any other.
        if limit.expired():
            raise _Late from error
        raise


def _in_words(error: BaseException) -> str:
    name = type(error).__name__
    try:
        return f"{name}: {error}"[:200]
    # The words of an error are the environment's code as well.
    except BaseException:
        return name


def read_start(result: Any) -> tuple[Start, tuple[Message, ...]] | Fault:
    """The start of an episode and the messages of its opening, or why they cannot be used."""
    if not isinstance(result, Start):
        return Fault(NO_TEXT, f"start returned a {type(result).__name__}, not a Start")
    messages = read_messages(result.messages)
    texts = _read_texts(result.anchor)
    if isinstance(messages, Fault):
        return messages
    if isinstance(texts, Fault):
        return texts
    return replace(result, anchor=texts[0]), messages


def read_reply(result: Any) -> tuple[Reply, tuple[Message, ...]] | Fault:
    """A reply and its messages, or why it cannot be used."""
    if not isinstance(result, Reply):
        return Fault(NO_TEXT, f"reply returned a {type(result).__name__}, not a Reply")
    messages = read_messages(result.messages)
    if isinstance(messages, Fault):
        return messages
    if not (messages or result.done):
        return Fault(NO_TEXT, "a reply that does not end the episode has no messages")
    reward: Any = result.reward
    try:
        number = float(reward) if isinstance(reward, Real) else None
        if reward is not None and not (number is not None and abs(number) <= LARGEST_REWARD):
            return Fault(NO_NUMBER, f"reward {reward!r}"[:200])
    except OverflowError:
        # A whole number beyond every float, which may be too long to print.
        return Fault(NO_NUMBER, f"reward beyond {LARGEST_REWARD:g}")
    texts = _read_texts(result.feedback, result.answer, result.anchor, result.note)
    if isinstance(texts, Fault):
        return texts
    feedback, answer, anchor, note = texts
    # A comparison of numpy's numbers is a numpy.bool, which JSON does not take.
    success, error = (None if flag is None else bool(flag) for flag in (result.success, result.error))
    read = replace(result, reward=number, done=bool(result.done), feedback=feedback, answer=answer, success=success)
    return replace(read, anchor=anchor, note=note, error=error), messages


def _read_texts(*given: Any) -> list[str | None] | Fault:
    """Texts that need not be there, or why they cannot be used."""
    texts = [text for text in given if text is not None]
    if not all(isinstance(text, str) for text in texts):
        return Fault(NO_TEXT, "feedback, answer, anchor and note are texts")
    if sum(map(len, texts)) > LONGEST_TEXT:
        return Fault(TOO_LONG)
    return [None if text is None else well_formed(text) for text in given]


def read_messages(result: Any) -> tuple[Message, ...] | Fault:
    """The messages that an environment returned. A text is one message of the user; an empty one is none."""
    if isinstance(result, str):
        result = [Message("user", result)] if result else []
    # A sequence of its own may have no end.
    messages = list(islice(result, MOST_MESSAGES + 1)) if isinstance(result, Sequence) else [result]
    if len(messages) > MOST_MESSAGES:
        return Fault(TOO_MANY)
    texts: list[Any] = [
        text for message in messages if isinstance(message, Message) for text in (message.role, message.content)
    ]
    if len(texts) < 2 * len(messages) or not all(isinstance(text, str) for text in texts):
        return Fault(NO_TEXT, f"messages are a text or a list of Message, got {type(result).__name__}")
    if sum(map(len, texts)) > LONGEST_TEXT:
        return Fault(TOO_LONG)
    return tuple(Message(well_formed(message.role), well_formed(message.content)) for message in messages)
