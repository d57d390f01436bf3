"""Tools of a server of the Model Context Protocol as functions of a tool loop, with the server's own schemas."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import wait
from typing import Any

from selfdistill.errors import ConfigError, SamplerError

ENDING = 10.0
"""Seconds within which the package ends a server that does not end itself, at most."""


class ToolFailed(Exception):
    """What a server says of a call that failed."""


class McpServer:
    """A connection to an MCP server, for :meth:`ToolLoop.tools`.

    ``server`` is the command that starts it (``["python", "my_server.py"]``) or the address of one that runs
    (``"http://127.0.0.1:8000/mcp"``). The connection is made at once and lasts until :meth:`close` or the end of the
    process. Several threads may call. All episodes that share it share what the server remembers; for a server with a
    state make one for every episode, and close it in the loop's ``end``.

    Args:
        server: a command, or an address.
        seconds: time limit of the connection and of every call.

    Raises:
        UserError: the package mcp is missing, or no server answers.
    """

    def __init__(self, server: str | Sequence[str], *, seconds: float = 30.0) -> None:
        if importlib.util.find_spec("mcp") is None:
            raise ConfigError("tools of an MCP server need the package mcp: pip install 'selfdistill[mcp]'")
        # Here, because it may take longer than a server is waited for.
        import mcp

        self._mcp: Any = mcp
        self.server, self.seconds = server, seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="mcp")
        self._thread.start()
        self._stop: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._client: Any = None
        self._session = asyncio.run_coroutine_threadsafe(self._connected(ready := threading.Event()), self._loop)
        self._session.add_done_callback(lambda _: ready.set())
        answered = ready.wait(seconds)
        if not answered or self._client is None:
            error = self._session.exception() if self._session.done() else "it takes too long"
            self.close()
            raise SamplerError(f"no MCP server answers at {server!r}: {_first(error)}")

    async def _connected(self, ready: threading.Event) -> None:
        # The connection is opened and closed by one task, as the package asks.
        command: Any
        command, self._stop, self._task = self.server, asyncio.Event(), asyncio.current_task()
        if not isinstance(command, str):
            command = self._mcp.StdioServerParameters(command=command[0], args=list(command[1:]))
        async with self._mcp.Client(command, read_timeout_seconds=self.seconds) as client:
            self._client = client
            ready.set()
            await self._stop.wait()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(self.seconds)

    def tools(self) -> list[Callable[..., str]]:
        """The server's tools as functions. Each has the server's ``schema``, by which the server checks a call."""
        listed: list[Any] = []
        cursor = None
        while True:
            page = self._run(self._client.list_tools(cursor=cursor))
            listed += page.tools
            cursor = page.next_cursor
            if cursor is None:
                return [self._function(tool) for tool in listed]

    def _function(self, tool: Any) -> Callable[..., str]:
        def call(**arguments: Any) -> str:
            result = self._run(self._client.call_tool(tool.name, arguments))
            text = "\n".join(
                part.text if part.type == "text" else json.dumps({"left out": part.type}) for part in result.content
            )
            if result.is_error:
                raise ToolFailed(text)
            return text

        call.__name__, call.__doc__ = tool.name, tool.description
        call.schema = tool.input_schema  # type: ignore[attr-defined]
        return call

    def close(self) -> None:
        """Close the connection, and end a server that was started by its command."""
        if self._loop.is_closed():
            return
        if self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        # A connection that is still being made does not look at that.
        connected = self._client is not None
        if self._task is not None and not (connected and wait([self._session], self.seconds).done):
            self._loop.call_soon_threadsafe(self._task.cancel)
            # Only then is a server that was started by its command ended.
            wait([self._session], ENDING)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _first(error: object) -> str:
    """The words of the first error in a group of them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
