"""Whole runs on hostile completions, and the memory of long ones; ``make fuzz`` makes thousands of steps of each."""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import Qwen3ForCausalLM

from selfdistill.config.run import RunConfig, parse_config
from selfdistill.report.page import write_report
from selfdistill.training.loop import Run
from support.bytewise import save_bytewise_model
from support.hostile import HostileSampler
from support.runs import Recorder, lines, tiny_run
from support.tiny import tiny_config, tiny_tokenizer

KINDS = ("math", "choice", "tools", "code", "countdown")
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What no file of a run may hold as it is."""
SHOWN = '"""Add one.\n\n>>> f(1)\n2\n"""'
ROWS: dict[str, dict[str, Any]] = {
    "math": {"question": "What is 6 + 1, number {}?", "answer": "7", "worked": "6 + 1 = 7, so \\boxed{{7}}"},
    "choice": {"question": "Which, {}?\nA: a\nB: b\nC: c", "answer": "B", "worked": "so <answer>B</answer>"},
    "tools": {
        "prompt": "Call, {}!",
        "answer": '[{{"name": "f", "arguments": {{"a": 1}}}}]',
        "tools": '[{{"name": "f", "parameters": {{"a": {{"type": "int"}}}}}}, {{"name": "g", "parameters": {{}}}}]',
    },
    "code": {
        "prompt": "Write f, which adds one, {}.",
        "public": "assert f(1) == 2",
        "hidden": "assert f(41) == 42\nassert f(0) != 0",
        "worked": "def f(x):\n    return x + 1",
    },
}
TABLES: dict[str, dict[str, Any]] = {
    "math": {"solution": "worked", "timeout": 0.5},
    "choice": {"solution": "worked", "reveal_incorrect": True},
    "tools": {"tools": "tools", "partial": 0.5},
    "code": {"public_tests": "public", "hidden_tests": "hidden", "solution": "worked", "timeout": 0.3, "memory": 256},
    "countdown": {"difficulty": "easy", "train": 8, "validation": 2, "test": 2},
}


def fuzz_config(kind: str, model: Path, folder: Path, steps: int, *changes: tuple[str, Any]) -> RunConfig:
    """A run whose contexts show siblings and feedback, on rows that are written into ``folder``."""
    task = {"kind": kind, **TABLES[kind]}
    if kind in ROWS:
        rows = folder / f"{kind}.jsonl"
        made = ({name: text.format(n) for name, text in ROWS[kind].items()} for n in range(12))
        rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        task |= {"path": str(rows), "validation_share": 0.2, "test_share": 0.1}
    return parse_config(
        {
            "steps": steps,
            "model": {"path": str(model)},
            "task": task | dict(changes),
            "method": "sdpo",
            "sampling": {"prompts": 2, "completions": 2, "max_tokens": 1500 if kind == "code" else 700},
            "evaluation": {"every": max(steps // 4, 1), "problems": 2, "samples": 2},
            "checkpoint": {"every": max(steps // 2, 1)},
        },
        "the fuzzer",
    )


def fuzz(kind: str, model: Path, folder: Path, *, steps: int, seed: int, **changes: Any) -> list[dict[str, Any]]:
    """Train on hostile completions alone, check what the run has left, and return its metrics."""
    config = fuzz_config(kind, model, folder, steps, *changes.items())
    with mock.patch(
        "selfdistill.sampling.engines.policy_sampler",
        lambda policy, chat, max_batch_size: HostileSampler(chat, kind, seed),
    ):
        run = Run(config, folder / "run", progress=Recorder())
    sampler = run.parts.worker.sampler
    assert isinstance(sampler, HostileSampler)
    for example in (*run.parts.examples, *run.parts.held_out):
        solution = example.fields["solution"]
        right = f"answer: {solution}" if kind == "countdown" else solution
        assert run.parts.task.verify(example, right, finished=True).correct, right
        sampler.right[run.parts.chat.encode(example.prompt)] = right
    run.train()
    return check_run(folder / "run", config)


def check_run(folder: Path, config: RunConfig) -> list[dict[str, Any]]:
    """Every file can be read and printed, and every completion is counted; returns the metrics."""
    for name in ("metrics", "rollouts", "evaluations"):
        text = (folder / f"{name}.jsonl").read_text(encoding="utf-8")
        found = UNSAFE.search(text)
        assert found is None, (name, found)
        # Python's reader also takes what JSON does not have.
        for written in text.split("\n"):
            json.loads(written or "null", parse_constant=_no_json)
    metrics = lines(folder / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [*range(1, config.steps + 1)]
    rollouts: dict[int, list[dict[str, Any]]] = {}
    for rollout in lines(folder / "rollouts.jsonl"):
        rollouts.setdefault(rollout["step"], []).append(rollout)
    for line in metrics:
        made = rollouts[line["step"]]
        assert len(made) == config.sampling.prompts * (config.sampling.completions or 0)
        assert line["generated"] == sum(len(rollout["ids"]) for rollout in made)
        assert line["reward"] == pytest.approx(sum(rollout["reward"] for rollout in made) / len(made))
        assert sum(line["skipped"].values()) == sum(rollout.get("u") is None for rollout in made)
    page = write_report(folder).read_text(encoding="utf-8")
    found = UNSAFE.search(page)
    assert found is None, page[max(found.start() - 200, 0) : found.end() + 100]
    return metrics


def _no_json(word: str) -> Any:
    raise AssertionError(f"{word} is no JSON")


class Gauge(Recorder):
    """Notes the resident memory in bytes and the number of open descriptors after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.resident: list[int] = []
        self.descriptors: list[int] = []

    def step(self, line: Mapping[str, Any], *, total: int, evaluation_left: float = 0.0) -> None:
        """Look at the process."""
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        self.resident.append(pages * resource.getpagesize())
        self.descriptors.append(len(os.listdir("/proc/self/fd")))


def measure(folder: Path, *, steps: int) -> Gauge:
    """Train a model of width 8 with a vocabulary of 50,000, and note memory and descriptors."""
    torch.manual_seed(0)
    model = folder / "model"
    Qwen3ForCausalLM(tiny_config(vocab_size=50_000, hidden_size=8, intermediate_size=8)).save_pretrained(model)
    tokenizer = tiny_tokenizer(more=49_000)
    tokenizer.save_pretrained(model)
    gauge = Gauge()
    sizes = ("sampling.prompts=1", "sampling.completions=2", "sampling.max_tokens=6", "task.train=64")
    rare = (f"evaluation.every={max(steps // 10, 10)}", f"checkpoint.every={max(steps // 10, 10)}")
    changes = (f"steps={steps}", *sizes, *rare)
    Run(tiny_run(model, "sdpo", *changes), folder / "run", progress=gauge).train()
    return gauge


def describe(gauge: Gauge) -> str:
    """Memory at ten places, and the range of descriptors, both after the first tenth."""
    tenth = max(len(gauge.resident) // 10, 1)
    shown = " ".join(f"{size / 2**20:.0f}" for size in gauge.resident[tenth - 1 :: tenth])
    later = gauge.descriptors[tenth:]
    return f"{len(gauge.resident)} steps, MiB resident {shown}, descriptors {min(later)} to {max(later)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Fuzz every kind of task and watch the memory of a long run, with a line for each."""
    parser = argparse.ArgumentParser(description="Long runs on hostile completions, and on a large vocabulary.")
    parser.add_argument("what", nargs="*", default=[*KINDS, "memory"], choices=[*KINDS, "memory"])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for what in options.what:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if what == "memory":
                told = describe(measure(folder, steps=options.steps))
            else:
                model = save_bytewise_model(folder / "model")
                metrics = fuzz(what, model, folder, steps=options.steps, seed=options.seed)
                told = f"{len(metrics)} steps, mean reward {fmean(line['reward'] for line in metrics):.3f}"
        print(f"{what}: {told} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
