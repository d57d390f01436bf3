"""Whole runs on the tiny model: a few steps, stopped, killed and taken up again."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from selfdistill.config.run import RunConfig, apply_overrides, parse_config
from selfdistill.distributed.signals import StopRequest
from selfdistill.tracking.progress import Progress
from selfdistill.training.atomic import checkpoints
from selfdistill.training.loop import Run

STEPS = 5
LORA = ("model.lora.rank=2", "model.lora.alpha=4", "model.lora.target_modules=['q_proj', 'down_proj']")
REVERSE = {"kind": "reverse_kl", "support": {"kind": "top_k", "k": 20}}
METHODS: dict[str, Any] = {
    "grpo": "grpo",
    "sft": "sft",
    "opsd": "opsd",
    "opsd first release": {
        "name": "opsd",
        "divergence": {"kind": "jensen_shannon"},
        "score_temperature": 1.1,
    },
    "sdpo": {"name": "sdpo", "teacher_rate": 0.3},
    "sdpo code": {"name": "sdpo", "divergence": REVERSE},
    "sd": "sd",
    "antisd": {"name": "antisd", "warmup": 2},
    "sdft": {"name": "sdft", "teacher_rate": 0.3},
    "credit": {"name": "credit", "teacher_rate": 0.3},
    "credit sampled": {"name": "credit", "form": "advantage"},
    "purified": "purified",
    "pbsd": "pbsd",
    "pbsd_reward": "pbsd_reward",
    "sc_sdpo": {"name": "sc_sdpo", "teacher_rate": 0.3},
    "paced": "paced",
    "demopsd": {"name": "demopsd", "teacher_rate": 0.3},
    "eopd": "eopd",
    "hdpo": "hdpo",
    "cepo": {"name": "cepo", "decay": 4, "without_wrong": "student"},
    # The tiny model's completions rarely hold a sibling's answer: hints that every completion has.
    "rlcsd": {
        "name": "rlcsd",
        "weights": {"kind": "snapshot", "every": 2},
        "context": "solution",
        "wrong_context": "reference_only",
    },
    "rlsd": {"name": "rlsd", "decay": 4},
    "sdar": "sdar",
    "skill_sd": {"name": "skill_sd", "weights": {"kind": "snapshot", "every": 2}},
    "sdpg": {"name": "sdpg", "strength": 0.5, "warmup": 2, "decay": 2, "reference_weight": 0.1},
    "sdpg reverse kl": {"name": "sdpg", "strength": 0.5, "reference_weight": 0.1, "reference_form": "reverse_kl"},
    "srpo": {"name": "srpo", "teacher_rate": 0.3},
}
"""Every method as a run asks for it, with what makes its parts show in a few steps."""


def tiny_run(model: Path, method: str | Mapping[str, Any] = "grpo", *overrides: str) -> RunConfig:
    """A run of :data:`STEPS` steps with an evaluation and a checkpoint at every second one."""
    raw: dict[str, Any] = {
        "steps": STEPS,
        "model": {"path": str(model)},
        "task": {"kind": "countdown", "difficulty": "easy", "train": 8, "validation": 4, "test": 4},
        "reward": "support.rewards:even",
        "method": method if isinstance(method, str) else dict(method),
        "sampling": {"prompts": 3, "completions": 3, "max_tokens": 10},
        "optimiser": {"learning_rate": 0.01, "schedule": "linear", "warmup": 2},
        "evaluation": {"every": 2, "problems": 3, "samples": 2},
        "checkpoint": {"every": 2},
    }
    apply_overrides(raw, overrides)
    return parse_config(raw, "a test")


class Recorder(Progress):
    """Keeps what was said, and asks for a stop after a given step."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.said: list[str] = []
        self.stop_after = stop_after
        self.stop = StopRequest()

    def log(self, sentence: str) -> None:
        """Keep it."""
        self.said.append(sentence)

    def step(self, line: Mapping[str, Any], *, total: int, evaluation_left: float = 0.0) -> None:
        """Ask for the stop when its step is done."""
        if line["step"] == self.stop_after:
            self.stop.signal = signal.SIGINT


def open_run(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    untrained: Path | None = None,
) -> Run:
    """A run that is ready to train, under another global seed each time: nothing may depend on it."""
    torch.manual_seed(len(list(folder.glob("**/*"))))
    return Run(config, folder, resume=resume, progress=Recorder(stop_after), untrained=untrained)


def train(config: RunConfig, folder: Path, *, resume: bool = False, stop_after: int | None = None) -> dict[str, Any]:
    """Train to the end, or until the stop; the summary."""
    run = open_run(config, folder, resume=resume, stop_after=stop_after)
    return run.train(recorder(run).stop)


def recorder(run: Run) -> Recorder:
    """The run's progress, which is a :class:`Recorder`."""
    assert isinstance(run.progress, Recorder)
    return run.progress


def lines(path: Path) -> list[dict[str, Any]]:
    """All objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what the clock says."""
    clock = ("seconds", "phase_seconds", "sync_bytes", "sync_seconds")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines(folder / "metrics.jsonl")]


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that two runs of one config must have in common, bit for bit."""
    newest = checkpoints(folder / "checkpoints")[-1]  # not what a killed process left beside them
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    timed = ("seconds", "tokens_per_second", "written", "starts")
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    state["counters"].pop("seconds")
    state.pop("logs")  # hashes of lines that hold seconds; the lines themselves are compared below
    return {
        "metrics": metrics(folder),
        "rollouts": (folder / "rollouts.jsonl").read_bytes(),
        "evaluations": (folder / "evaluations.jsonl").read_bytes(),
        "summary": {key: value for key, value in summary.items() if key not in timed},
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
        "state": state,
        "weights": {path.name: path.read_bytes() for path in (newest / "model").glob("*.safetensors")},
        "best": {path.name: path.read_bytes() for path in (folder / "checkpoints" / "best").glob("*.safetensors")},
        "training": plain(torch.load(newest / "training.pt", weights_only=True)),
    }


def plain(value: Any) -> Any:
    """Tensors as lists, so that ``==`` compares them bit for bit."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def as_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """A TOML file of dotted keys, one a line: JSON writes strings, numbers and truth as TOML does."""
    text = ""
    for key, value in table.items():
        if isinstance(value, Mapping):
            text += as_toml(value, f"{prefix}{key}.")
        else:
            text += f"{prefix}{key} = {json.dumps(value)}\n"
    return text


def train_and_die(config: RunConfig, folder: Path) -> None:
    """Train a run in a process of its own, in the folder's ``run``; something in it kills the process."""
    (folder / "config.toml").write_text(
        as_toml(config.model_dump(exclude_none=True, exclude_unset=True)), encoding="utf-8"
    )
    command = [sys.executable, "-m", "selfdistill", "train", "config.toml", "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    died = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
