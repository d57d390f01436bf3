"""A harness for tasksets of verifiers that runs in this process.

The package's own programs are started anew for every request of an environment to its agent, which takes seconds. This
one is its harness ``null`` without that: the model calls the tools of the task until it answers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ID = "selfdistill_chat"
"""The harness's id. The package finds a harness by the name of a module."""


def register() -> None:
    """Let the package find the harness under :data:`ID`."""
    if ID not in sys.modules:
        module: Any = ModuleType(ID)
        module.__spec__ = ModuleSpec(ID, None)
        module.Chat, module.__all__ = _harness_class(), ["Chat"]
        sys.modules[ID] = module


def _harness_class() -> Any:
    import httpx
    import verifiers.v1 as vf
    from verifiers.v1.dialects.chat import message_to_wire
    from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp

    # Shared by all episodes, which live in one event loop. A turn takes as long as the run needs to draw it.
    http = httpx.AsyncClient(timeout=None)

    class Chat(vf.Harness[vf.HarnessConfig]):  # type: ignore[misc]
        APPENDS_SYSTEM_PROMPT = SUPPORTS_MCP = SUPPORTS_RESUME = True
        EXECUTES_CODE = NEEDS_CONTAINER = False

        async def launch(
            self,
            ctx: Any,
            trace: Any,
            runtime: Any,
            endpoint: str,
            secret: str,
            mcp_urls: Mapping[str, str],
            data: Any,
        ) -> Any:
            system, prompt = self.resolve_prompt(data)
            given = [message_to_wire(one) for one in prompt or ()] if not isinstance(prompt, str) else prompt
            messages = [{"role": "system", "content": system}] if system else []
            messages += [{"role": "user", "content": given}] if isinstance(given, str) else given
            url, headers = f"{endpoint.rstrip('/')}/chat/completions", {"Authorization": f"Bearer {secret}"}
            timeout = self.config.tool_timeout
            servers = {name: {"url": url, "timeout": timeout} for name, url in mcp_urls.items()}
            async with AsyncExitStack() as stack:
                tools, dispatch, connections = [], {}, {}
                if servers:
                    tools, dispatch, connections = await connect_mcp({"mcpServers": servers}, stack, set())
                while True:
                    body = {"model": ctx.model, "messages": messages} | ({"tools": tools} if tools else {})
                    answer = await http.post(url, json=body, headers=headers)
                    # The package refuses a turn beyond a limit, and knows why.
                    if answer.is_error:
                        return vf.ProgramResult(exit_code=1, stdout="", stderr=answer.text)
                    said = answer.json()["choices"][0]["message"]
                    messages.append({key: value for key, value in said.items() if value is not None})
                    if not said.get("tool_calls"):
                        return vf.ProgramResult(exit_code=0, stdout="", stderr="")
                    for call in said["tool_calls"]:
                        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
                        known = name in dispatch
                        result = await call_mcp(connections, dispatch, name, arguments) if known else f"no tool {name}"
                        messages.append({"role": "tool", "tool_call_id": call["id"], "name": name, "content": result})

    return Chat
