"""A judge behind a real address that speaks the part of OpenAI's protocol that is used, and can fail in many ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from support.fake_vllm import FakeVLLM


class FakeJudge(FakeVLLM):
    """Answers the last message of each request with ``reply``; ``failures`` come first, one a request."""

    def __init__(self, reply: Callable[[str], str]) -> None:
        super().__init__()
        self.reply = reply
        self.models = ["m"]
        """The models that it lists."""
        self.failures: list[tuple[Any, ...] | None] = []
        """Status, body and headers of the next answers; None breaks the connection off."""

    @property
    def questions(self) -> list[str]:
        """The last message of every request."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def answer(self, verb: str, path: str, body: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Status, body and headers; None breaks the connection off."""
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in self.models]}
        with self.lock:
            self.calls.append(path)
            self.bodies.append(body)
            if self.failures:
                return self.failures.pop(0)
        if path != "/v1/chat/completions":
            return 404, {"error": {"message": f"no {path} here"}}
        text = self.reply(body["messages"][-1]["content"])
        return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}
