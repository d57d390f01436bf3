"""The weights that score a context: the student's, those that follow it, and those of other models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class External:
    """Another model of the same vocabulary, by directory or hub id: ``{ kind = "external", path = "…" }``."""

    # Read by pydantic where a config names a teacher: a misspelt key is refused, not ignored.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    path: str
    kind: Literal["external"] = "external"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The student's weights of some steps ago, copied after every N-th step: ``{ kind = "snapshot", every = 10 }``."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    every: int
    kind: Literal["snapshot"] = "snapshot"

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"a snapshot is taken every 1 or more steps, not every {self.every}")


@dataclass(frozen=True, slots=True)
class Server:
    """Another model of the same vocabulary behind a vLLM server: ``{ kind = "server", url = "http://…" }``."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    url: str
    model: str | None = None
    """The server's name for it; None is the first that it lists."""
    kind: Literal["server"] = "server"

    def __post_init__(self) -> None:
        scheme, _, location = self.url.partition("://")
        login = "@" in location.partition("/")[0]
        if scheme not in ("http", "https") or not location or login or set("?#") & set(location):
            raise ValueError("a teacher's server is an http:// or https:// address without a login, ? and #")


Weights: TypeAlias = Literal["live", "frozen", "ema"] | Snapshot | External | Server
"""Weights that score a context: the student's current weights, those of step 0, their average, a copy that is renewed
every N steps, or another model's, loaded here or behind a server."""
