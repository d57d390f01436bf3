"""What a world's writer of pre-training texts yields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from selfdistill.types import Message


@dataclass(frozen=True, slots=True)
class Trace:
    """One pre-training text: what is shown and what the model should say."""

    context: str
    messages: tuple[Message, ...]
    completion: str
    thinking: bool


class Writer(Protocol):
    """An endless, seeded source of traces."""

    def traces(self, count: int) -> Iterator[Trace]:
        """``count`` traces."""
        ...
