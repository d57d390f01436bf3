"""The ``init`` command: a commented config for a model and a file of rows, with what was found out and what guessed."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.cli.find_task import FoundTask, find_task
from selfdistill.config.run import config_for, parse_config
from selfdistill.config.sources import find_source
from selfdistill.contexts.thinking import begins_thinking
from selfdistill.errors import ConfigError, ModelError, first_line
from selfdistill.methods import METHODS
from selfdistill.models.loading import base_name, read_tokenizer, resolve_model
from selfdistill.training.run_folder import find_weights
from selfdistill.types import Example

MEASURED = 500
"""Rows whose lengths in tokens are counted."""
ROOM = {True: 4096, False: 1024}
"""Longest completion where no row says how long one is, of models that think and of others."""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """What a config needs to know of a model without loading its weights."""

    path: str
    tokenizer: Any
    window: int
    has_switch: bool
    """Whether the chat template has the switch ``enable_thinking``."""
    thinks: bool


def write_config(model: str, data: str, out: Path, *, split: str | None, data_config: str | None) -> Iterator[str]:
    """Write a config for a model and rows, and yield what was found out, what was guessed and what to do next.

    Raises:
        UserError: the file exists, the model or the rows cannot be used, or no task fits the rows.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already: choose another --out, or remove it")
    if out.suffix != ".toml":
        raise ConfigError(f"--out {out}: a config's name ends in .toml, for example mine.toml")
    parts = {"path": data, "config": data_config, "split": split}
    where: Any = {k: v for k, v in parts.items() if v is not None} if split or data_config else data
    found = find_task(where)
    about = find_model(model)
    text, notes = config_text(about, found, where)
    # What is written must train as it is: read it as train would.
    parse_config(tomllib.loads(text), str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    yield from notes
    yield f"wrote {out}; look with: selfdistill data check {out}; selfdistill contexts {out}"
    yield f"then: selfdistill train {out}"


def find_model(name: str) -> FoundModel:
    """Read a model's tokenizer, chat template and window.

    Raises:
        UserError: the model is not to be found, or has no tokenizer or chat template.
    """
    from transformers import AutoConfig

    source = find_source(name)
    if source.kind == "config":
        raise ConfigError(
            f"--model {name} is a config: give a model directory, a hub id, a run folder or a shipped name"
        )
    if source.kind == "nothing":
        raise ModelError(f"model {name!r} not found: give a model directory, a hub id (org/name) or a shipped name")
    path = find_weights(name, config_for(name, None, [], command="init")).path if source.kind == "run" else name
    folder = resolve_model(path)
    adapter = Path(folder) / "adapter_config.json"
    tokenizer = read_tokenizer(path)
    base = base_name(adapter, name) if adapter.is_file() else folder
    try:
        config = AutoConfig.from_pretrained(resolve_model(base), trust_remote_code=False).get_text_config()
    # transformers raises many different types for a config that it cannot read.
    except Exception as error:
        raise ModelError(f"model {name!r} cannot be read: {first_line(error)}") from error
    template = str(tokenizer.chat_template or "")
    if not template:
        raise ModelError(f"the tokenizer of {name} has no chat template: give the instruction-tuned model, or save one")
    window = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or sys.maxsize
    return FoundModel(path, tokenizer, int(window), "enable_thinking" in template, begins_thinking(template))


def config_text(about: FoundModel, found: FoundTask, where: Any) -> tuple[str, list[str]]:
    """Return the text of the config, and sentences about what was found out and what was guessed."""
    method, why = _method(found)
    recommended = METHODS[method].recommended
    lengths = _lengths(about, found.examples)
    tokens, tokens_why = _max_tokens(about, lengths, recommended.max_tokens, shows_solutions=method != "grpo")
    longest = max(length for length, _ in lengths)
    prompts = min(16, max(1, found.train))
    switch = (
        "# thinking = false  # the template has a thinking switch; unset: its own default"
        if about.has_switch
        else "# thinking: the chat template has no switch for it"
    )
    table = {"path": where, **found.table}
    task = "\n".join(f"{key} = {_toml(value)}{_reason(key, found)}" for key, value in table.items())
    text = f"""# Written by selfdistill init. The config's reference describes every key; --set overrides any of them.
seed = 0  # everything random follows from it
steps = 100  # optimiser steps; a pass over the training rows takes {max(1, -(-found.train // prompts))}
method = "{method}"  # {why}

[model]
path = {_toml(about.path)}
# device, dtype: left to what the machine has; lora.rank = 16 trains an adapter, which takes far less memory

[task]
{task}

[sampling]
prompts = {prompts}  # problems a step
# completions = {recommended.completions}  # of each problem; this is the method's own number
max_tokens = {tokens}  # {tokens_why}
{switch}

[optimiser]
# learning_rate = {recommended.learning_rate}  # the method's own; with an adapter {recommended.lora_learning_rate}

[evaluation]
every = 20  # steps between evaluations on rows that are held out
problems = {min(128, found.validation)}  # of the {found.validation} rows in the validation split
samples = {8 if found.verified is not None else 1}  # completions of each

[checkpoint]
every = 20  # steps between checkpoints; the newest two and the best are kept
"""
    verified = "nothing verifies them"
    if found.kind == "code":
        verified = "each has tests, which were not run: selfdistill data check runs them"
    elif found.verified is not None:
        verified = f"the reference of {found.verified:.0%} of those tried is verified"
    notes = [
        f"found: {found.rows} rows, {found.rejected} of them unusable; task {found.kind} ({found.how}); {verified}",
        f"found: prompts of up to {longest} tokens, a window of {about.window}, "
        + ("a thinking switch in the chat template" if about.has_switch else "no thinking switch in the chat template"),
        f"guessed: method {method}, because {why}",
        f"guessed: max_tokens {tokens}, {tokens_why}",
        f"guessed: {found.validation} rows held out for validation, {found.train} to train on",
    ]
    return text, notes


def _method(found: FoundTask) -> tuple[str, str]:
    """Return the method that docs/methods/index.md begins with for such rows, and the reason."""
    if found.verified is not None:
        more = "; antisd and opsd can use the solutions" if found.has_solutions else ""
        return "grpo", f"the rows have answers that can be verified, and it is the arm to beat{more}"
    return "opsd", "the rows have solutions and nothing verifies a completion"


def _lengths(about: FoundModel, examples: Sequence[Example]) -> list[tuple[int, int]]:
    """Return the tokens of each prompt, template included, and of its solution, 0 without one."""
    lengths = []
    for example in examples[:MEASURED]:
        messages = [{"role": message.role, "content": message.content} for message in example.prompt]
        prompt = "".join(message["content"] for message in messages)
        solution = example.fields.get("solution", "")
        count = len(about.tokenizer(prompt, add_special_tokens=False)["input_ids"]) + 16 * len(messages)
        lengths.append((count, len(about.tokenizer(solution, add_special_tokens=False)["input_ids"])))
    return lengths


def _max_tokens(
    about: FoundModel, lengths: Sequence[tuple[int, int]], usual: int, *, shows_solutions: bool
) -> tuple[int, str]:
    """Return the longest completion and the reason: twice the long solutions, and what the window leaves.

    ``shows_solutions`` says whether the method puts solutions into a teacher's prompt.
    """
    solutions = sorted(solution for _, solution in lengths if solution)
    long = solutions[int(0.95 * (len(solutions) - 1))] if solutions else 0
    if about.thinks:
        wanted, why = max(ROOM[True], 4 * long), "the model thinks before it answers"
    elif solutions:
        wanted, why = max(64, 2 * long), f"twice the {long} tokens of the longest solutions but 5 %"
    else:
        wanted, why = min(usual, ROOM[False]), "no row says how long a solution is"
    taken = sorted(prompt + shows_solutions * solution for prompt, solution in lengths)
    left = about.window - taken[int(0.95 * (len(taken) - 1))] - 64
    if left >= wanted:
        return -(-wanted // 64) * 64, why
    if left >= about.window // 4:
        return left, f"what the window of {about.window} tokens leaves beside the longest prompts but 5 %"
    return about.window // 4, f"a quarter of the window of {about.window} tokens: longer prompts are left out"


def _reason(key: str, found: FoundTask) -> str:
    reason = found.reasons.get(key)
    return f"  # {reason}" if reason else ""


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    # JSON's texts, numbers, truth values and lists are TOML's too.
    return json.dumps(value, ensure_ascii=False)
