"""The ``init`` command: write a commented config for a model and a file of rows, with notes on findings and guesses."""

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
from selfdistill.config.sources import find_source, model_not_found
from selfdistill.contexts.thinking import begins_thinking
from selfdistill.errors import ConfigError, ModelError, first_line
from selfdistill.files.text import counted
from selfdistill.methods import METHODS
from selfdistill.models.loading import base_name, read_tokenizer, resolve_model
from selfdistill.training.run_folder import find_weights
from selfdistill.types import Example

MEASURED = 500
"""Rows whose lengths in tokens are counted."""
ROOM = {True: 4096, False: 1024}
"""Longest completion if the rows have no solutions, for models that think (True) and for others (False)."""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """The properties of a model that a config needs, read without loading its weights."""

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
    data_source: Any = {k: v for k, v in parts.items() if v is not None} if split or data_config else data
    task = find_task(data_source)
    found_model = find_model(model)
    text, notes = config_text(found_model, task, data_source)
    # The written config must be valid as it is, so parse it as train would.
    parse_config(tomllib.loads(text), str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    yield from notes
    yield f"wrote {out}; look with: selfdistill data check {out}; selfdistill contexts {out}"
    yield f"then: selfdistill train {out}"


def find_model(name: str) -> FoundModel:
    """Read a model's tokenizer, chat template and window.

    Raises:
        UserError: the model is not found, or has no tokenizer or chat template.
    """
    from transformers import AutoConfig

    source = find_source(name)
    if source.kind == "config":
        raise ConfigError(
            f"--model {name} is a config: give a model directory, a hub id, a run folder or a shipped name"
        )
    if source.kind == "nothing":
        raise ModelError(model_not_found(name))
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


def config_text(model: FoundModel, found_task: FoundTask, data_source: Any) -> tuple[str, list[str]]:
    """Return the text of the config, and one sentence for each finding and guess."""
    method, why = _method(found_task)
    recommended = METHODS[method].recommended
    lengths = _lengths(model, found_task.examples)
    tokens, tokens_why = _max_tokens(model, lengths, recommended.max_tokens, shows_solutions=method != "grpo")
    longest = max(length for length, _ in lengths)
    prompts = min(16, max(1, found_task.train))
    switch = (
        "# thinking = false  # the template has a thinking switch; unset: its own default"
        if model.has_switch
        else "# thinking: the chat template has no switch for it"
    )
    table = {"path": data_source, **found_task.table}
    task = "\n".join(f"{key} = {_toml(value)}{_reason(key, found_task)}" for key, value in table.items())
    text = f"""# Written by selfdistill init. The config's reference describes every key; --set overrides any of them.
seed = 0  # everything random follows from it
steps = 100  # optimiser steps; a pass over the training rows takes {max(1, -(-found_task.train // prompts))}
method = "{method}"  # {why}

[model]
path = {_toml(model.path)}
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
problems = {min(128, found_task.validation)}  # of the {counted(found_task.validation, "row")} in the validation split
samples = {8 if found_task.verified is not None else 1}  # completions of each

[checkpoint]
every = 20  # steps between checkpoints; the newest two and the best are kept
"""
    verified = "nothing verifies them"
    if found_task.kind == "code":
        verified = "each has tests, which were not run: selfdistill data check runs them"
    elif found_task.verified is not None:
        verified = f"the reference of {found_task.verified:.0%} of those tried is verified"
    notes = [
        f"found: {counted(found_task.rows, 'row')}, {found_task.rejected} of them unusable; task {found_task.kind} "
        f"({found_task.how}); {verified}",
        f"found: prompts of up to {longest} tokens, a window of {model.window}, "
        + ("a thinking switch in the chat template" if model.has_switch else "no thinking switch in the chat template"),
        f"guessed: method {method}, because {why}",
        f"guessed: max_tokens {tokens}, {tokens_why}",
        f"guessed: {counted(found_task.validation, 'row')} held out for validation, {found_task.train} to train on",
    ]
    return text, notes


def _method(found_task: FoundTask) -> tuple[str, str]:
    """Return the method that docs/methods/index.md recommends first for such rows, and the reason."""
    if found_task.verified is not None:
        benefits = "; antisd and opsd can use the solutions" if found_task.has_solutions else ""
        return "grpo", f"the rows have answers that can be verified, and it is the arm to beat{benefits}"
    return "opsd", "the rows have solutions and nothing verifies a completion"


def _lengths(found_model: FoundModel, examples: Sequence[Example]) -> list[tuple[int, int]]:
    """Return the numbers of tokens of each prompt, template included, and of its solution (0 without one)."""
    lengths = []
    for example in examples[:MEASURED]:
        messages = [{"role": message.role, "content": message.content} for message in example.prompt]
        prompt = "".join(message["content"] for message in messages)
        solution = example.fields.get("solution", "")
        count = len(found_model.tokenizer(prompt, add_special_tokens=False)["input_ids"]) + 16 * len(messages)
        lengths.append((count, len(found_model.tokenizer(solution, add_special_tokens=False)["input_ids"])))
    return lengths


def _max_tokens(
    found_model: FoundModel, lengths: Sequence[tuple[int, int]], usual: int, *, shows_solutions: bool
) -> tuple[int, str]:
    """Return the token limit of a completion and its reason: twice the long solutions, within the model's window.

    ``shows_solutions`` says whether the method puts solutions into a teacher's prompt.
    """
    solutions = sorted(solution for _, solution in lengths if solution)
    long = solutions[int(0.95 * (len(solutions) - 1))] if solutions else 0
    if found_model.thinks:
        tokens, why = max(ROOM[True], 4 * long), "the model thinks before it answers"
    elif solutions:
        tokens, why = max(64, 2 * long), f"twice the {long} tokens of the longest solutions but 5 %"
    else:
        tokens, why = min(usual, ROOM[False]), "no row says how long a solution is"
    prompts = sorted(prompt + shows_solutions * solution for prompt, solution in lengths)
    # The longest 5 % of the prompts may leave less room; 64 tokens are spare.
    room = found_model.window - prompts[int(0.95 * (len(prompts) - 1))] - 64
    if room >= tokens:
        return -(-tokens // 64) * 64, why
    if room >= found_model.window // 4:
        return room, f"what the window of {found_model.window} tokens leaves beside the longest prompts but 5 %"
    return (
        found_model.window // 4,
        f"a quarter of the window of {found_model.window} tokens: longer prompts are left out",
    )


def _reason(key: str, found_task: FoundTask) -> str:
    reason = found_task.reasons.get(key)
    return f"  # {reason}" if reason else ""


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    # JSON's strings, numbers, booleans and lists are valid TOML.
    return json.dumps(value, ensure_ascii=False)
