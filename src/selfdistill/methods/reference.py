"""The methods' reference pages, generated from docstrings and fields."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from selfdistill.files.text import counted
from selfdistill.methods import METHODS, Method
from selfdistill.types import Weights

TEACHERS = {"weights", "teacher_thinking", "teacher_rate"}
"""Hyperparameters of every method that have no effect without a teacher."""


def section(name: str) -> Iterator[str]:
    """The page of one method: its docstring, its roles, its hyperparameters."""
    kind = METHODS[name]
    method = kind.model_validate({})
    recommended = kind.recommended
    yield f"## `{name}`\n"
    yield inspect.cleandoc(kind.__doc__ or "")
    yield ""
    for name_of_role, role in method.roles().items():
        context = f"context `{role.context}`" if role.context else "the student's own prompt"
        yield f"- *{name_of_role}*: {context}, {weights_word(role.weights)} weights"
    if method.sampling_roles() != ("student",):
        yield f"- completions are sampled by: {', '.join(method.sampling_roles())}"
    needs = "needs rewards" if method.needs_rewards() else "needs no rewards"
    yield (
        f"- {needs}; learning rate {recommended.learning_rate:g} (LoRA {recommended.lora_learning_rate:g}), "
        f"{_completions(method, recommended.completions)}, temperature {recommended.temperature:g}, "
        f"top-p {recommended.top_p:g}, top-k {recommended.top_k}, at most {recommended.max_tokens} tokens\n"
    )
    yield "| hyperparameter | default | what it is |"
    yield "|---|---|---|"
    omitted = set() if method.roles() else TEACHERS
    for hyperparameter, field in kind.model_fields.items():
        if hyperparameter != "name" and hyperparameter not in omitted:
            yield f"| `{hyperparameter}` | `{_default(getattr(method, hyperparameter))}` | {limits(field)} |"
    yield ""


def describe_method(name: str) -> dict[str, Any]:
    """The content of :func:`section` as plain JSON: the defaults and the recommended settings of a method."""
    kind = METHODS[name]
    method = kind.model_validate({})
    roles = {
        role: {"context": spec.context, "weights": weights_word(spec.weights)} for role, spec in method.roles().items()
    }
    return {
        "description": inspect.cleandoc(kind.__doc__ or "").partition("\n")[0],
        "needs_rewards": method.needs_rewards(),
        "on_policy": method.on_policy,
        "roles": roles,
        "recommended": dataclasses.asdict(kind.recommended),
        "hyperparameters": {
            key: {"default": method.model_dump(mode="json")[key], "description": field.description}
            for key, field in kind.model_fields.items()
            if key != "name"
        },
    }


def _completions(method: Method, count: int) -> str:
    if not method.on_policy:
        return "no completions are sampled"
    return f"{counted(count, 'completion')} a problem"


def weights_word(weights: Weights) -> str:
    """The kind of weights, in one word."""
    return weights if isinstance(weights, str) else weights.kind


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
    """The bounds that pydantic enforces: ``≥ 0, < 1``; empty without bounds."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    rules = field.metadata
    return ", ".join(f"{signs[key]} {getattr(rule, key):g}" for rule in rules for key in signs if hasattr(rule, key))
