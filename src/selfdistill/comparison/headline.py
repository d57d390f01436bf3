"""The outcome of a comparison in a few sentences, computed from ``compare.json``.

A change or a difference is claimed only where its interval excludes zero, and the intervals of all arms hold together.
Equality is claimed only where a test of equality shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfdistill.comparison.reading import unread
from selfdistill.comparison.tables import joined, short_names, verdict, words_of
from selfdistill.comparison.told import difference, measure_of, told
from selfdistill.files.jsonl import Row
from selfdistill.report import numbers


def headline(result: Row) -> list[str]:
    """Return the outcome: levels, differences from the baseline, deliberation, and which arms used no reward."""
    arms = result["arms"]
    names = short_names([numbers.printable(arm["name"]) for arm in arms])
    levels, measure = [arm[told(result)] for arm in arms], measure_of(result)
    ends = [f"{name} {_end(arm, result)}" for name, arm in zip(names, arms, strict=True)]
    start = measure.level(levels[0]["before"]["value"])
    begun = f"{start} right" if measure.key == "avg" else f"a mean reward of {start}"
    first = f"From {begun} before training, {_listed(ends)}."
    if not result["same_start"]:
        starts = [f"{name} {measure.level(a['before']['value'])}" for name, a in zip(names, levels, strict=True)]
        first = f"The arms began apart ({_listed(starts)}): {_listed(ends)}."
    unrewarded = [name for name, arm in _pairs(names, arms) if arm.get("rewards") is False]
    verb = "was" if len(unrewarded) == 1 else "were"
    without = f" {_listed(unrewarded)} {verb} trained without any reward." if unrewarded else ""
    return [first + without, *_against_baseline(result, names), *_deliberation(names, arms)]


def _end(arm: Row, result: Row) -> str:
    levels, terms = arm[told(result)], result["terms"]
    if why := unread(arm, terms["evaluation"]["every"]):
        return f"has no final figure ({why})"
    change, final = levels["change"], measure_of(result).level(levels["final"]["value"])
    read = sorted(set(levels["read_at"]))
    early = "it ended early: " if any(run["ended_by"] for run in arm["runs"]) else ""
    where = "" if read == [terms["steps"]] else f" ({early}step {', '.join(map(str, read))})"
    if change["low"] > 0:
        return f"rose to {final}{where}"
    return f"fell to {final}{where}" if change["high"] < 0 else f"stood at {final}{where} (no clear change)"


def _against_baseline(result: Row, names: Sequence[str]) -> list[str]:
    """Return one sentence about the differences from the baseline; none if there is no other arm."""
    margin = result["interval"]["margin"]
    equal = f"within {100 * margin:g} points of"
    gaps: dict[str, list[str]] = {"above": [], "below": [], equal: [], "no clear difference from": []}
    measure = measure_of(result)
    for name, arm in _pairs(names, result["arms"]):
        gap = arm[told(result)]["against_baseline"]
        if gap:
            gaps[verdict(gap, margin)].append(
                f"{name} ({joined(difference(gap, measure)).replace(' (', ', ').rstrip(')')})"
            )
    base = next(name for name, arm in _pairs(names, result["arms"]) if arm["name"] == result["baseline"])
    phrases = {
        "above": "clearly above for",
        "below": "clearly below for",
        equal: f"equal within {100 * margin:g} points for",
        "no clear difference from": "no clear difference for",
    }
    parts = [f"{phrases[kind]} {_listed(rows)}" for kind, rows in gaps.items() if rows]
    # An interval over the problems of one seed is narrower than the difference between seeds.
    where = ", in this one seed" if len(result["seeds"]) == 1 else ""
    return [f"Against {base}{where}: {'; '.join(parts)}."] if parts else []


def _deliberation(names: Sequence[str], arms: Sequence[Row]) -> list[str]:
    """Return one sentence about the deliberation words of all arms; none if no arm deliberates."""
    measured = [(name, arm["deliberation"]) for name, arm in _pairs(names, arms) if arm["deliberation"]["final"]]
    if all(words[end]["value"] == 0 for _, words in measured for end in ("before", "final")):
        return []
    kinds: dict[str, list[str]] = {"fell": [], "rose": [], "kept": []}
    for name, words in measured:
        change = words["change"]
        kind = "fell" if change["high"] < 0 else "rose" if change["low"] > 0 else "kept"
        kinds[kind].append(f"{name} {words_of(words, 1)}")
    phrases = {"fell": "less for", "rose": "more for", "kept": "no clear change for"}
    parts = [f"{phrases[kind]} {_listed(rows)}" for kind, rows in kinds.items() if rows]
    return [f"Deliberation words per completion: {'; '.join(parts)}."]


def _pairs(names: Sequence[str], arms: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return list(zip(names, arms, strict=True))


def _listed(words: Sequence[str]) -> str:
    """Return words as an English list: ``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
