"""Pre-training texts and the protocol of their writers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from selfdistill.types import Message


@dataclass(frozen=True, slots=True)
class Trace:
    """One pre-training text: the prompt's messages and the completion to learn, and the turns after it."""

    context: str
    messages: tuple[Message, ...]
    completion: str
    thinking: bool
    further: tuple[tuple[tuple[Message, ...], str], ...] = ()
    """What was said after each completion, and the completion that followed, which is learned too."""


class Writer(Protocol):
    """An endless, seeded source of traces."""

    def traces(self, count: int) -> Iterator[Trace]:
        """Yield ``count`` traces."""
        ...
