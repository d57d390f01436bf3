"""Where agents run: one event loop for all of them, and a server that they ask for the model's turns."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from selfdistill.errors import DataError
from selfdistill.tasks.agents.conversation import NAME, OVER, AskedModel, Conversation, Over
from selfdistill.tasks.agents.messages import Said, read_messages, read_tools

SESSION = "X-Session-ID"
"""Header that names an episode whose agent shares its address with others."""
RETRIED = "x-stainless-retry-count"
"""Header of OpenAI's client: how often a request was sent before."""
UNCOUNTED = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
"""The usage of every answer, which some agents cannot do without. The run counts tokens, and knows them later."""
GONE = 410
"""Status of a request after its episode. Clients do not repeat it."""


class Host:
    """An event loop in a thread, and a server whose requests are answered from it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=_run_for_ever, args=(self.loop,), daemon=True, name="agents").start()
        self._conversations: dict[str, Conversation] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.host = self
        threading.Thread(target=self._server.serve_forever, daemon=True, name="agents' model").start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        """Where all agents may ask that send the header :data:`SESSION`, below ``/v1``."""

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the loop of all agents. It is cancelled with the one that waits for it."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    def open(self, conversation: Conversation) -> AskedModel:
        """Give a conversation an address of its own."""
        name = secrets.token_hex(8)
        self.name(conversation, name)
        return AskedModel(f"{self.address}/{name}/v1", conversation)

    def name(self, conversation: Conversation, name: str) -> None:
        """Let requests find a conversation by a name: the start of their path, or their session without one."""
        self._conversations[name] = conversation
        conversation.names.append(name)

    def close(self, conversation: Conversation) -> None:
        """Forget a conversation's names."""
        for name in conversation.names:
            self._conversations.pop(name, None)

    def ask(self, name: str, request: Mapping[str, Any], *, again: bool) -> Said:
        """The answer to a request, which is waited for.

        Raises:
            Over: there is no such episode, or it ended.
            DataError: the request cannot be answered.
        """
        conversation = self._conversations.get(name)
        if conversation is None:
            raise Over(OVER)
        if request.get("n") not in (None, 1):
            raise DataError("n is not 1: an episode is one conversation, and the run draws several of each example")
        asked = conversation.ask(read_messages(request.get("messages")), read_tools(request.get("tools")), again=again)
        return asyncio.run_coroutine_threadsafe(asked, self.loop).result()


class _Server(ThreadingHTTPServer):
    host: Host
    # All agents of a step may ask at once.
    request_queue_size = 1024


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""

    def do_GET(self) -> None:
        """List the model."""
        if self.path.rstrip("/").endswith("/models"):
            self._send({"object": "list", "data": [{"id": NAME, "object": "model", "created": 0, "owned_by": NAME}]})
        else:
            self._refuse(404, f"{self.path} is not answered here, only chat/completions and models")

    def do_POST(self) -> None:
        """Answer with the model's next turn."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        places = self.path.partition("?")[0].strip("/").split("/")
        if places[-2:] != ["chat", "completions"]:
            self._refuse(404, f"{self.path} is not answered here, only chat/completions and models")
            return
        try:
            request = json.loads(body)
            if not isinstance(request, dict):
                raise DataError("the request is no JSON object")
            name = self.headers.get(SESSION) if places[0] == "v1" else places[0]
            again = (self.headers.get(RETRIED) or "0") != "0"
            said = self.server.host.ask(name or "", request, again=again)
        except Over as error:
            self._refuse(GONE, str(error))
        except (DataError, ValueError) as error:
            self._refuse(400, str(error))
        else:
            self._stream(said) if request.get("stream") else self._send(_completion(said))

    def _refuse(self, status: int, reason: str) -> None:
        self._send({"error": {"message": reason, "type": "invalid_request_error", "code": status}}, status=status)

    def _send(self, document: Mapping[str, Any], *, status: int = 200) -> None:
        self._write(json.dumps(document).encode(), "application/json", status)

    def _stream(self, said: Said) -> None:
        """The whole turn as one event, for agents that read a stream."""
        message = said.message()
        for number, call in enumerate(message.get("tool_calls", ())):
            call["index"] = number
        events = [
            json.dumps(_completion(said, delta=message, finish=None)),
            json.dumps(_completion(said, delta={}, finish=said.finish_reason)),
            "[DONE]",
        ]
        self._write("".join(f"data: {event}\n\n" for event in events).encode(), "text/event-stream", 200)

    def _write(self, content: bytes, kind: str, status: int) -> None:
        # An agent that was cancelled does not wait for its answer.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


def _completion(said: Said, *, delta: Mapping[str, Any] | None = None, finish: str | None = None) -> dict[str, Any]:
    """The answer as a document of the API; with ``delta`` as an event of a stream."""
    whole = delta is None
    choice = {"index": 0, "message": said.message()} if whole else {"index": 0, "delta": delta}
    return {
        "id": f"chatcmpl-{secrets.token_hex(8)}",
        "object": "chat.completion" if whole else "chat.completion.chunk",
        "created": int(time.time()),
        "model": NAME,
        "choices": [{**choice, "finish_reason": said.finish_reason if whole else finish}],
        "usage": UNCOUNTED,
    }


def _run_for_ever(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        # Raised by an agent, these are its own error, and they would end the loop of all of them.
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()


_HOST: list[Host] = []
_STARTING = threading.Lock()


def shared_host() -> Host:
    """The host of this process, started when it is first asked for."""
    with _STARTING:
        if not _HOST:
            _HOST.append(Host())
        return _HOST[0]
