"""The weights that score a context: the student's, those that follow it, and those of other models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """Another model of the same vocabulary behind a vLLM server, ``{ kind = "server", url = "http://…" }``, or several,
    of which a column of the rows names one: ``{ kind = "server", column = "…", servers = { NAME = { url = "…" } } }``.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    url: str | None = None
    model: str | None = None
    """The server's name for it; None is the first that it lists."""
    column: str | None = None
    """The column of the rows that names the teacher of each."""
    servers: Mapping[str, Server] = field(default_factory=dict, hash=False)
    """The teachers by the values of the column."""
    kind: Literal["server"] = "server"

    def __post_init__(self) -> None:
        if self.column is not None or self.servers:
            if self.column is None or not self.servers or self.url is not None or self.model is not None:
                raise ValueError("several teachers are a column and a table servers, whose entries have url and model")
            if any(server.column is not None for server in self.servers.values()):
                raise ValueError("an entry of servers is one server: url, and model if it serves several")
            return
        scheme, _, location = (self.url or "").partition("://")
        login = "@" in location.partition("/")[0]
        if scheme not in ("http", "https") or not location or login or set("?#") & set(location):
            raise ValueError("a teacher's server is an http:// or https:// address without a login, ? and #")

    @property
    def each(self) -> tuple[Server, ...]:
        """The servers that this is made of: itself, or its entries."""
        return tuple(self.servers.values()) or (self,)


class RoutedPrompt(tuple[int, ...]):
    """Prompt ids of a role that has several teachers, with the one that reads them."""

    teacher: Server

    @classmethod
    def to(cls, teacher: Server, ids: Sequence[int]) -> RoutedPrompt:
        """The ids, for this teacher."""
        prompt = cls(ids)
        prompt.teacher = teacher
        return prompt


Weights: TypeAlias = Literal["live", "frozen", "ema"] | Snapshot | External | Server
"""Weights that score a context: the student's current weights, those of step 0, their average, a copy that is renewed
every N steps, or another model's, loaded here or behind a server."""
