"""Pre-training texts and the protocol of their writers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from selfdistill.types import Message


@dataclass(frozen=True, slots=True)
class Trace:
    """One pre-training text: the prompt's messages and the completion to learn."""

    context: str
    messages: tuple[Message, ...]
    completion: str
    thinking: bool


class Writer(Protocol):
    """An endless, seeded source of traces."""

    def traces(self, count: int) -> Iterator[Trace]:
        """Yield ``count`` traces."""
        ...
