"""One problem with a completion of every arm, chosen from the ``rollouts.jsonl`` of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from selfdistill.comparison.runs import ArmRuns
from selfdistill.files.jsonl import Row, read_lines
from selfdistill.files.records import RolloutLine
from selfdistill.types import STUDENT

Problem = tuple[str, str]
"""The id of an example and its prompt, which some tasks change from epoch to epoch."""


def side_by_side(arms: Sequence[ArmRuns]) -> dict[str, Any] | None:
    """Return one problem of the last common step with a completion of each arm, ready for JSON.

    A completion is sampled before the step learns from it. So a problem without an earlier step is held out from the
    weights that answer it (``fresh``), and such problems are preferred. Among them, the chosen one has the largest
    difference of mean reward between arms; the first wins a tie. Each arm shows a completion of its more frequent
    verdict, the one of median length. Returns None if no problem was answered by two arms.
    """
    seed = next(iter(arms[0].folders))
    folders = {arm.name: arm.folders[seed] for arm in arms if arm.generates}
    steps = [_last_step(folder) for folder in folders.values()]
    if not steps or not min(steps):
        return None
    step = min(steps)
    answers: dict[str, dict[Problem, list[Row]]] = {}
    trained: set[Problem] = set()
    for name, folder in folders.items():
        earlier, answers[name] = _answers(folder / "rollouts.jsonl", step)
        trained |= earlier
    answered = [name for name, problems in answers.items() if problems]
    common = (
        [problem for problem in answers[answered[0]] if all(problem in answers[name] for name in answered)]
        if answered
        else []
    )
    if len(answered) < 2 or not common:
        return None
    fresh = [problem for problem in common if problem not in trained]
    spreads = {problem: _spread([answers[name][problem] for name in answered]) for problem in fresh or common}
    chosen = max(spreads, key=spreads.__getitem__)
    return {
        "seed": seed,
        "step": step,
        "example": chosen[0],
        "prompt": chosen[1],
        "fresh": bool(fresh),
        "problems": len(spreads),
        "rewards_differ": spreads[chosen] > 0,
        "arms": [{"name": name, **_typical(answers[name][chosen])} for name in answered],
    }


def _last_step(folder: Path) -> int:
    steps = [row.get("step", 0) for row in read_lines(folder / "metrics.jsonl")]
    return int(steps[-1]) if steps else 0


def _answers(path: Path, step: int) -> tuple[set[Problem], dict[Problem, list[Row]]]:
    """Return the problems of earlier steps, and the student's completions of a step by problem."""
    earlier: set[Problem] = set()
    answers: dict[Problem, list[Row]] = {}
    for row in read_lines(path):
        problem = str(row.get("example")), str(row.get("prompt"))
        if row.get("step", 0) < step:
            earlier.add(problem)
        elif row.get("step") == step and row.get("source", STUDENT) == STUDENT:
            answers.setdefault(problem, []).append(row)
    return earlier, answers


def _spread(answers: Sequence[Sequence[Row]]) -> float:
    """Return the largest difference of mean reward between two arms; 0 if no completion is judged."""
    means = [
        fmean(rewards)
        for rows in answers
        if (rewards := [row["reward"] for row in rows if row.get("reward") is not None])
    ]
    return max(means) - min(means) if means else 0.0


def _typical(rows: Sequence[Row]) -> dict[str, Any]:
    right = [row for row in rows if _is_right(row)]
    wrong = [row for row in rows if not _is_right(row)]
    frequent = sorted(right if len(right) >= len(wrong) else wrong, key=lambda row: len(row.get("tokens", ())))
    line = RolloutLine.from_json(frequent[(len(frequent) - 1) // 2], "rollouts.jsonl")
    return {"right": len(right), "completions": len(rows), "line": line.to_json() | {"ids": []}}


def _is_right(row: Row) -> bool:
    # A line of an earlier version lacks the key; the record then derives it from the reward.
    return RolloutLine.from_json(row, "rollouts.jsonl").correct is True
