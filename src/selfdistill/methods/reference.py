"""The reference of the methods, read off their own docstrings and fields, so that it cannot drift from the code."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from selfdistill.methods import METHODS, Method
from selfdistill.types import External, Weights

TEACHERS = {"weights", "teacher_thinking", "teacher_rate"}
"""Knobs of every method that mean nothing where there is no teacher."""


def section(name: str) -> Iterator[str]:
    """One method: what it says of itself, what it shows its teachers, its knobs."""
    kind = METHODS[name]
    method = kind.model_validate({})
    advice = kind.recommended
    yield f"## `{name}`\n"
    yield inspect.cleandoc(kind.__doc__ or "")
    yield ""
    for role, shown in method.roles().items():
        context = f"context `{shown.context}`" if shown.context else "the student's own prompt"
        yield f"- *{role}*: {context}, {weights_word(shown.weights)} weights"
    if method.sampling_roles() != ("student",):
        yield f"- completions are sampled by: {', '.join(method.sampling_roles())}"
    needs = "needs rewards" if method.needs_rewards() else "needs no rewards"
    yield (
        f"- {needs}; learning rate {advice.learning_rate:g} (LoRA {advice.lora_learning_rate:g}), "
        f"{_completions(method, advice.completions)}, temperature {advice.temperature:g}, top-p {advice.top_p:g}, "
        f"top-k {advice.top_k}, at most {advice.max_tokens} tokens\n"
    )
    yield "| knob | default | what it is |"
    yield "|---|---|---|"
    silent = set() if method.roles() else TEACHERS
    for knob, field in kind.model_fields.items():
        if knob != "name" and knob not in silent:
            yield f"| `{knob}` | `{_default(getattr(method, knob))}` | {limits(field)} |"
    yield ""


def _completions(method: Method, count: int) -> str:
    if not method.on_policy:
        return "no completions are drawn"
    return f"{count} completion{'s' if count > 1 else ''} a problem"


def weights_word(weights: Weights) -> str:
    """Whose weights, in a word."""
    return "external" if isinstance(weights, External) else str(weights)


def _default(value: Any) -> str:
    if hasattr(value, "model_dump"):
        return json.dumps(value.model_dump())
    return "unset" if value is None else json.dumps(value)


def limits(field: FieldInfo) -> str:
    """The description, with the bounds that pydantic enforces."""
    bound = bounds(field)
    return described(field) + (f" ({bound})" if bound else "")


def described(field: FieldInfo) -> str:
    """The description as a cell of a Markdown table."""
    return re.sub(r"\s+", " ", field.description or "").replace("|", "\\|")


def bounds(field: FieldInfo) -> str:
    """What pydantic enforces of a number: ``≥ 0, < 1``; nothing where there is no bound."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    rules = field.metadata
    return ", ".join(f"{signs[key]} {getattr(rule, key):g}" for rule in rules for key in signs if hasattr(rule, key))
