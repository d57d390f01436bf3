"""The evaluation of an untrained model, which the runs of a comparison that begin alike share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from selfdistill.distributed.world import World
from selfdistill.evaluation.evaluate import problem_set
from selfdistill.files.jsonl import JsonLines, read_lines
from selfdistill.training.build import Parts
from selfdistill.training.provenance import LIBRARIES

UNTRAINED = "untrained"
"""The folder of a comparison for :class:`Alike`."""
OF_AN_ARM = ("seed", "method", "optimiser", "signal", "limits", "checkpoint")
"""Config tables that may differ between the arms of a comparison: they define an arm, or they change no result."""
CHANGES_NO_RESULT: dict[str, Any] = {
    "checkpoint": True,
    "limits": True,
    "sampling": {"max_batch_size"},
    "parallel": {"activation_checkpointing"},
}
"""Keys whose values may change when a comparison is resumed. If unset, most are chosen by available memory."""

DRAWN_IN_TRAINING = ("prompts", "completions", "temperature", "top_p", "top_k")
"""Keys of ``[sampling]`` that an evaluation does not use."""


@dataclass(frozen=True, slots=True)
class Before:
    """What is known of an untrained model: its evaluation and that on final problems, as plain JSON."""

    held_out: dict[str, Any] | None = None
    final: dict[str, Any] | None = None
    seconds: float = 0.0
    """How long both evaluations took."""
    run: Path | None = None
    """The run that made them."""


class Alike:
    """A folder in which runs tell which of them has evaluated the model that others begin from.

    Each kind of start has a file, named by everything that decides its evaluation, and each run that evaluated it has a
    line there. The figures are read from the run, so a run that is deleted takes its figures with it.
    """

    def __init__(self, folder: Path | None, parts: Parts, world: World) -> None:
        """``folder`` None: nothing is shared."""
        self.world = world
        self.final = bool(parts.final)
        self.records: JsonLines | None = None
        # What the teacher says of the references depends on the method.
        if folder is not None and parts.references is None:
            self.records = JsonLines(folder / f"{decided_by(parts, world)}.jsonl")

    def find(self) -> Before:
        """Another run's evaluations of the same start, the same on all ranks; empty if no such run is left."""
        return self.world.broadcast_from_rank_zero(self._find)

    def _find(self) -> Before:
        if self.records is None:
            return Before()
        for record in read_lines(self.records.path):
            run = Path(os.path.normpath(self.records.path.parent / record["run"]))
            held_out, final = (_at_start(run / f"{name}.jsonl") for name in ("evaluations", "test"))
            if held_out is not None and (final is not None or not self.final):
                return Before(held_out, final if self.final else None, record["seconds"], run)
        return Before()

    def tell(self, known: Before, run: Path, seconds: float, *, log: Callable[[str], None]) -> None:
        """Say whose evaluations a run has taken, or record that it made them, in ``seconds``: its files hold them."""
        if known.run is not None:
            log(f"the untrained model was evaluated by {known.run}: these are its figures")
        elif self.records is not None and self.world.is_rank_zero:
            folder = self.records.path.parent
            folder.mkdir(parents=True, exist_ok=True)
            self.records.append({"run": os.path.relpath(run, folder), "seconds": round(seconds, 4)})


def common_terms(config: BaseModel) -> dict[str, Any]:
    """A whole config without what may differ between arms."""
    table = config.model_dump(exclude=CHANGES_NO_RESULT)
    return {key: value for key, value in table.items() if key not in OF_AN_ARM}


def decided_by(parts: Parts, world: World) -> str:
    """A name of everything that decides the evaluation of an untrained model."""
    config = common_terms(parts.config)
    # A method that learns from given solutions draws nothing in training, and one that draws more is ended sooner.
    config |= {
        "steps": None,
        "max_completions": None,
        "sampling": {**config["sampling"], **dict.fromkeys(DRAWN_IN_TRAINING)},
    }
    decides = {
        "config": config,
        "seed": parts.config.seed,
        "weights": parts.origin,
        "problems": [
            # Rows of a user's own task may hold what is no JSON.
            [problem_set([each]), repr((dict(each.fields), dict(each.columns)))]
            for each in (*parts.held_out, *parts.final)
        ],
        "versions": {name: version(name) for name in LIBRARIES},
        "processes": world.size,
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _at_start(path: Path) -> dict[str, Any] | None:
    """The evaluation of step 0 in a file of evaluations."""
    row = next(iter(read_lines(path)), {})
    return {key: value for key, value in row.items() if key != "step"} if row.get("step") == 0 else None
