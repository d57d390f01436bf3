"""Folders of runs written by hand, as a comparison reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdistill.comparison.runs import ArmRuns

PHASES = {"generation": 2.0, "views": 0.5, "teacher": 0.0, "student": 1.0, "update": 0.5}
"""Seconds of a step: 4 in all, 2 without sampling."""


def evaluation(step: int, hits: Sequence[int], *, words: int = 1, tokens: int = 40, samples: int = 4) -> dict[str, Any]:
    """An evaluation; every problem has the same number of words and tokens."""
    count = len(hits)
    return {
        "step": step,
        "problems": count,
        "samples": samples,
        "truncated": 0.25,
        "hits": list(hits),
        "words": [words] * count,
        "tokens": [tokens] * count,
    }


def metrics(step: int, *, phases: Mapping[str, float] = PHASES, **numbers: Any) -> dict[str, Any]:
    """A line of metrics."""
    return {
        "step": step,
        "reward": 0.5,
        "length": 10.0,
        "student_entropy": 1.0,
        "generated": 100,
        "budget": {"completions": {"student": 8}, "drawn": {"student": 100}, "scored": {"teacher": 90}, "trained": 80},
        "phase_seconds": dict(phases),
        **numbers,
    }


def write_run(
    folder: Path,
    evaluations: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """The files that a comparison reads; a run without ``summary`` is older than the alarms."""
    folder.mkdir(parents=True)
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    for name, rows in (("evaluations", evaluations), ("metrics", lines)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def arm(
    name: str,
    *folders: Path,
    generates: bool = True,
    method: str | None = None,
    signal: Mapping[str, Any] | None = None,
) -> ArmRuns:
    """An arm whose runs have the seeds 0, 1, …"""
    runs = dict(enumerate(folders))
    return ArmRuns(name, {"name": method or name}, {"learning_rate": 0.001}, generates, runs, signal or {})


def simple_run(folder: Path, *hits: Sequence[int], **numbers: Any) -> Path:
    """A run evaluated at every second step from 0 on, all its steps alike."""
    evaluations = [evaluation(2 * place, row) for place, row in enumerate(hits)]
    return write_run(folder, evaluations, [metrics(step, **numbers) for step in range(1, 2 * len(hits) - 1)])


def alarm(name: str, step: int, evidence: str = "so it is") -> dict[str, Any]:
    """An alarm as a run writes it."""
    return {"name": name, "step": step, "evidence": evidence, "suggestion": "try less"}


def ended_run(
    folder: Path,
    *hits: Sequence[int],
    steps: int,
    active: Mapping[int, Sequence[str]] | None = None,
    alarms: Sequence[Mapping[str, Any]] = (),
    by: Sequence[str] = (),
) -> Path:
    """A run evaluated at every second step that made ``steps``; ``active`` are the active alarms, by step."""
    rows = [metrics(step, alarms=list((active or {}).get(step, ()))) for step in range(1, steps + 1)]
    evaluations = [evaluation(2 * place, row) for place, row in enumerate(hits)]
    return write_run(folder, evaluations, rows, {"alarms": list(alarms), "stopped_by": list(by)})


def given_terms() -> dict[str, Any]:
    """What ``compare`` adds to the analysis."""
    return {
        "terms": {
            "steps": 4,
            "model": {"path": "models/base"},
            "task": {"kind": "countdown"},
            "sampling": {"prompts": 3},
            "evaluation": {"every": 2, "split": "validation"},
        },
        "machine": [{"jobs": 2, "threads": 1, "cores": 2}],
    }
