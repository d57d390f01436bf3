"""A server of the Model Context Protocol that the test starts: its tools in a loop, by command and by address."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.config.run import parse_config
from selfdistill.errors import ConfigError, SamplerError
from selfdistill.files.records import read_rollouts
from selfdistill.tasks.turns import environment_of
from selfdistill.types import Message
from support.bytewise import save_bytewise_model
from support.runs import outcome, train

PAGE = (Path(__file__).parents[2] / "docs" / "worlds.md").read_text(encoding="utf-8")
DESK = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "McpServer" in code)
SERVER = '''
from mcp.server.mcpserver import Image, MCPServer

server = MCPServer("prices")
PRICES = {"apple": 3, "bread": 5}


@server.tool()
def price(item: str, times: int = 1) -> int:
    """The price of an item."""
    return PRICES[item] * times


@server.tool()
def picture() -> list:
    """A picture of the shop."""
    return ["the shop", Image(data=b"so", format="png")]


server.run()
'''
needs_package = pytest.mark.skipif(importlib.util.find_spec("mcp") is None, reason="mcp is not installed")


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_desk.py").write_text(DESK, encoding="utf-8")
    # The package starts a server without this process's environment.
    (tmp_path / "my_prices.py").write_text(f"import sys\nsys.path += {sys.path!r}\n{SERVER}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_desk", None)


def test_the_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"need the package mcp: pip install 'selfdistill\[mcp\]'"):
        sd.McpServer(["so"])


@needs_package
def test_the_pages_desk_has_the_servers_tools_with_the_servers_schemas(folder: Path) -> None:
    assert len([line for line in DESK.splitlines() if line.strip()]) < 30
    task: Any = sd.load_task("my_desk:Desk")
    found: Any = environment_of(task)
    assert found is task
    start = task.start(task.examples("train")[0])
    tools, question = start.messages
    assert question == Message("user", "What does the item cost?") and tools.role == "tools"
    [price, picture] = [schema["function"] for schema in json.loads(tools.content)]
    assert (price["name"], price["description"]) == ("price", "The price of an item.")
    assert price["parameters"]["required"] == ["item"] and set(price["parameters"]["properties"]) == {"item", "times"}
    assert picture["name"] == "picture"
    reply = task.reply(start.state, call("price", item="apple", times=2) + "\n" + call("price", item="bread"))
    assert [message.content for message in reply.messages] == ["6", "5"] and reply.error is False
    # The server checks arguments and its tools may raise: the model is told.
    for wrong in (call("price"), call("price", item="gold"), call("price", item="apple", times="many")):
        reply = task.reply(start.state, wrong)
        assert reply.error is True and (reply.feedback or "").startswith("error: price: ToolFailed: ")
    reply = task.reply(start.state, call("picture"))
    assert [message.content for message in reply.messages] == ['the shop\n{"left out": "image"}']
    assert task.reply(start.state, "it costs 3").reward == 1.0
    task.end(start.state)
    # Threads may call at once.
    with ThreadPoolExecutor(8) as pool:
        prices = list(pool.map(lambda n: task.server.tools()[0](item="bread", times=n), range(16)))
    assert prices == [str(5 * n) for n in range(16)]
    task.server.close()
    task.server.close()
    assert "mcp" not in {thread.name for thread in threading.enumerate()}


@needs_package
@pytest.mark.parametrize("server", [["no-such-program-here"], "http://127.0.0.1:9/mcp"])
def test_no_server_is_one_sentence(server: Any) -> None:
    with pytest.raises(SamplerError, match=re.escape(f"no MCP server answers at {server!r}: ")):
        sd.McpServer(server, seconds=20)
    assert "mcp" not in {thread.name for thread in threading.enumerate()}


@needs_package
def test_a_server_that_does_not_answer_is_given_up(folder: Path) -> None:
    (folder / "silent.py").write_text("import sys; sys.stdin.read()", encoding="utf-8")
    with pytest.raises(SamplerError, match="no MCP server answers at "):
        sd.McpServer([sys.executable, "silent.py"], seconds=2)


@needs_package
def test_a_server_that_is_given_up_is_ended(folder: Path) -> None:
    # It does not end by itself when nobody speaks with it any more.
    with pytest.raises(SamplerError, match="no MCP server answers at "):
        sd.McpServer(["sh", "-c", "echo $$ > number; exec sleep 600"], seconds=5)
    number = int((folder / "number").read_text(encoding="utf-8"))
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


@needs_package
@pytest.mark.usefixtures("no_page")
def test_a_stopped_run_with_a_servers_tools_ends_where_one_without_a_break_does(folder: Path) -> None:
    raw = {
        "steps": 2,
        "model": {"path": str(save_bytewise_model(folder / "model"))},
        "task": {"kind": "my_desk:Desk"},
        "method": {"name": "grpo"},
        "sampling": {"prompts": 1, "completions": 2, "max_tokens": 8},
        "evaluation": {"every": 2, "problems": 1, "samples": 1},
        "checkpoint": {"every": 1},
    }
    own = parse_config(raw, "a test")
    assert train(own, folder / "whole")["finished"]
    assert not train(own, folder / "stopped", stop_after=1)["finished"]
    assert train(own, folder / "stopped", resume=True)["finished"]
    assert outcome(folder / "stopped") == outcome(folder / "whole")
    [first, *_] = read_rollouts(folder / "whole" / "rollouts.jsonl")
    assert first.episode is not None and '"price"' in first.episode.opening[0].content
