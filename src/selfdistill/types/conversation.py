"""The messages of a conversation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message, for example ``Message("user", "use the numbers 3 5 7 to make 26 .")``.

    The role ``"tools"`` is not a turn. Its content is the JSON list of tool schemas for the chat template.
    """

    role: str
    content: str
