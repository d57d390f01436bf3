"""The page of a comparison: ``compare.html``, made of the parts that a run's page is made of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.comparison.alarm_tables import LIST_HEAD, alarm_list, alarm_words, ending
from selfdistill.comparison.tables import (
    difference,
    estimate,
    joined,
    markdown,
    marked,
    notes,
    sheets,
    short_names,
    verdict,
)
from selfdistill.files.jsonl import Row
from selfdistill.report import numbers
from selfdistill.report.charts import Chart, Look, Series, curve_chart
from selfdistill.report.outcome import flat
from selfdistill.report.page import render

TONES = 9
LONGEST_LABEL = 14
"""Longer names would take the curves' room; the legend alone names them then."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart of one quantity with a line an arm; ``x`` is a key of the curves, ``curves`` which of the two sets."""

    title: str
    unit: str
    key: str
    curves: str = "training"
    x: str = "step"
    share: bool = False
    look: Look = "line"
    band: bool = True
    names: Mapping[float, str] | None = None


BY_STEP = Figure("Held-out accuracy", "", "accuracy", "evaluations", share=True, look="points")
FIGURES = (
    Figure("Accuracy by generated tokens", "", "accuracy", "evaluations", "tokens", share=True, look="points"),
    Figure("Accuracy by seconds of training", "", "accuracy", "evaluations", "seconds", share=True, look="points"),
    Figure("Deliberation", "words per completion, held-out", "deliberation", "evaluations", look="points"),
    Figure("Completion length", "tokens, held-out", "length", "evaluations", look="points"),
    Figure("Entropy of the student", "nats per token, in training", "student_entropy"),
    Figure("Entropy of the teacher", "nats per token, in training", "teacher_entropy"),
    Figure(
        "Gate of the teacher's signal",
        "share of runs with the gate open",
        "gate",
        share=True,
        look="stairs",
        band=False,
        names={0.0: "closed", 1.0: "open"},
    ),
    Figure("Training reward", "mean of a step", "reward"),
)


def write_comparison(folder: Path) -> None:
    """Write ``compare.md`` and ``compare.html`` from the ``compare.json`` of a folder."""
    result = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    name = folder.resolve().name
    _replace(folder / "compare.md", markdown(result, name))
    _replace(folder / "compare.html", render_comparison(result, name))


def render_comparison(result: Row, name: str) -> str:
    """The page as text."""
    arms = result["arms"]
    short = short_names([numbers.printable(arm["name"]) for arm in arms])
    sizes = ((680, max(360, min(110 * len(arms), 640))), (380, 260))  # as high as the list of arms beside it
    return render(
        "compare.html",
        room="comparison",
        name=numbers.printable(name),
        facts=_facts(result),
        arms=[_arm(arm, place, result) for place, arm in enumerate(arms)],
        samples=result["samples"],
        accuracy=[_chart(BY_STEP, arms, short, result["samples"], size=size) for size in sizes],
        charts=[chart for figure in FIGURES if (chart := _chart(figure, arms, short, result["samples"]))],
        band=_band(result),
        sheets=sheets(result),
        notes=notes(result),
        alarms=alarm_list(arms),
        alarm_head=LIST_HEAD,
        terms=list(flat(result["terms"])),
        own=_own_settings(arms),
        names=[numbers.printable(arm["name"]) for arm in arms],
    )


def _arm(arm: Row, place: int, result: Row) -> dict[str, str]:
    accuracy, words = arm["accuracy"], arm["deliberation"]
    gap = accuracy["against_baseline"]
    final, lead = marked(arm, result["terms"]["steps"], estimate(accuracy["final"]), difference(gap))
    return {
        "tone": _tone(place),
        "name": numbers.printable(arm["name"]),
        "method": numbers.printable(str(arm["method"]["name"])),
        "final": final[0],
        "range": final[1],
        "before": joined(estimate(arm["accuracy"]["before"])),
        "verdict": f"{verdict(gap)} {numbers.printable(result['baseline'])}" if gap else "the baseline",
        "lead": joined(lead) if gap else "",
        "words": f"{words['before']['value']:.2f} → {words['final']['value']:.2f}",
        "ended": ending(arm),
        "alarms": alarm_words(arm),
    }


def _chart(
    figure: Figure, arms: Sequence[Row], names: Sequence[str], samples: int, size: tuple[int, int] = (360, 210)
) -> Chart | None:
    """A line an arm with its band over seeds; None where no arm has such numbers."""
    series = []
    for place, (arm, name) in enumerate(zip(arms, names, strict=True)):
        curves = arm["curves"][figure.curves]
        line = curves.get(figure.key)
        if line is None or (figure.x == "tokens" and not arm["generates"]):
            continue
        several = figure.band and line["low"] != line["high"]
        series.append(
            Series(
                name,
                curves[figure.x],
                line["mean"],
                low=line["low"] if several else (),
                high=line["high"] if several else (),
                look=figure.look,
                tone=_tone(place),
            )
        )
    if not series:
        return None
    unit = figure.unit or f"avg@{samples}"
    labels = max(len(one.label) for one in series) <= LONGEST_LABEL
    return curve_chart(
        figure.title,
        series,
        unit=unit,
        share=figure.share,
        size=size,
        names=figure.names,
        x_name=figure.x,
        rivals=True,
        labels=labels,
    )


def _facts(result: Row) -> list[tuple[str, str]]:
    terms: dict[str, Any] = result["terms"]
    sampling, evaluation = terms["sampling"], terms["evaluation"]
    return [
        ("Model", numbers.printable(str(terms["model"]["path"]).rstrip("/").rsplit("/", 1)[-1])),
        ("Task", numbers.printable(str(terms["task"]["kind"]))),
        ("Steps", numbers.whole(terms["steps"])),
        ("Problems a step", numbers.whole(sampling["prompts"])),
        ("Seeds", ", ".join(map(str, result["seeds"]))),
        ("Held-out", f"{result['problems'][0]} problems × {result['samples']} samples, {evaluation['split']}"),
        ("Baseline", numbers.printable(result["baseline"])),
    ]


def _band(result: Row) -> str:
    if len(result["seeds"]) == 1:
        return "One seed: the lines have no band."
    return f"Lines are means over {len(result['seeds'])} seeds; bands reach from the lowest seed to the highest."


def _own_settings(arms: Sequence[Row]) -> list[tuple[str, ...]]:
    """Method and optimiser, a row a setting and a column an arm."""
    tables = [dict(flat({"method": arm["method"], "optimiser": arm["optimiser"]})) for arm in arms]
    keys = sorted({key for table in tables for key in table}, key=lambda key: (key != "method.name", key))
    return [(key, *(table.get(key, numbers.MISSING) for table in tables)) for key in keys]


def _tone(place: int) -> str:
    return f"arm{place % TONES}"


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(text.encode("utf-8", errors="replace"))
    os.replace(aside, path)
