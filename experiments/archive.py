"""Archives of runs: what comparisons read of a run, a few KB each, so that a later session adds arms to a stage.

Weights, completions and pages stay out. ``pass`` and ``continued`` read weights, so they need the runs themselves.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

FILES = ("config.json", "metrics.jsonl", "evaluations.jsonl", "test.jsonl", "alarms.jsonl", "starts.jsonl")
SUMMARY = "summary.json"
"""A run that has it has ended, or was stopped in good order. It is put in last, and a run without it is left out."""
PLACE = b"runs/experiments"
"""Stands for the folder of all stages, wherever it was."""


def pack(runs: Path, archive: Path) -> None:
    """Write the ended runs in ``runs`` (STAGE/runs/ARM/seed-S) into an archive; equal runs make equal bytes."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_suffix(".part")
    with tarfile.open(part, "w:xz") as tar:
        for summary in sorted(runs.glob(f"*/seed-*/{SUMMARY}")):
            for path in (summary.parent / name for name in (*FILES, SUMMARY)):
                if path.is_file():
                    text = path.read_bytes().replace(str(runs.parent.parent).encode(), PLACE)
                    member = tarfile.TarInfo(path.relative_to(runs).as_posix())
                    member.size = len(text)
                    tar.addfile(member, io.BytesIO(text))
    part.replace(archive)


def unpack(archive: Path, runs: Path) -> None:
    """Put the runs of an archive where there is no folder of that run; without an archive, nothing."""
    if not archive.is_file():
        return
    with tarfile.open(archive, "r:xz") as tar:
        members = tar.getmembers()
        there = {parent for parent in {Path(member.name).parent for member in members} if (runs / parent).exists()}
        tar.extractall(runs, [each for each in members if Path(each.name).parent not in there], filter="data")
