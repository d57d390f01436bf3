"""Verdicts on calls of tools: ours, the parser of transformers, and vLLM's rule for Hermes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils.chat_parsing import parse_response

from selfdistill.config.tasks import ToolsConfig
from selfdistill.contexts.thinking import after_thinking
from selfdistill.tasks.data import MemoryRows
from selfdistill.tasks.tools.task import ToolsTask
from verdicts.agreement import agreement

CASES = Path(__file__).resolve().parents[2] / "tests" / "cases" / "tools.json"

# The response template of transformers/cli/serving/utils.py for qwen2 and qwen3.
_QWEN = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)", "content": "text"},
    },
}


def table() -> str:
    """Return the table of calls in the syntax of a chat template."""
    tools, cases = _cases("template")
    judges = {
        "selfdistill": ours(tools, cases),
        "transformers, for Qwen3": [_judged(_transformers, tools, case) for case in cases],
        "vLLM's Hermes rule": [_judged(_vllm, tools, case) for case in cases],
    }
    return agreement([case["right"] for case in cases], [False] * len(cases), judges)


def react_table() -> str:
    """Return the table of calls as lines ``Action:`` and ``Action Input:``."""
    tools, cases = _cases("react")
    return agreement([case["right"] for case in cases], [False] * len(cases), {"selfdistill": ours(tools, cases)})


def ours(tools: Sequence[Mapping[str, Any]], cases: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Return the verdicts of :class:`ToolsTask` on completions that answer with these calls."""
    verdicts = []
    for case in cases:
        row = {"prompt": "p", "answer": json.dumps(case["answers"]), "tools": json.dumps(tools)}
        config = ToolsConfig(path="cases", form=case["form"], tools="tools", validation_share=0.0, test_share=0.0)
        task = ToolsTask(config, {"path": MemoryRows([row], "cases")})
        verdicts.append(task.verify(task.examples("train")[0], case["completion"], finished=True).correct)
    return verdicts


def _cases(form: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    document = json.loads(CASES.read_text(encoding="utf-8"))
    return document["tools"], [case for case in document["cases"] if case["form"] == form]


def _judged(read: Callable[[str, Any], list[Any]], tools: Any, case: Mapping[str, Any]) -> bool:
    """Whether a parser reads the expected calls, in any order. A completion that it cannot read is wrong."""
    try:
        calls = read(case["completion"], tools)
        return sorted(map(_text, calls)) == sorted(map(_text, case["answers"]))
    except (ValueError, KeyError, TypeError):
        return False


def _text(call: Mapping[str, Any]) -> str:
    return json.dumps([call["name"], call["arguments"]], sort_keys=True)


def _transformers(completion: str, tools: Any) -> list[Any]:
    message = parse_response(completion, _QWEN, prefix="", tools=tools)
    return [call["function"] for call in message.get("tool_calls", [])]


def _vllm(completion: str, tools: Any) -> list[Any]:
    blocks = re.findall(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", after_thinking(completion), re.DOTALL)
    return [json.loads(closed or unclosed) for closed, unclosed in blocks]
