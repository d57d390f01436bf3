"""The page of a comparison, ``compare.html``. It shares its parts with the page of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfdistill.comparison.alarm_tables import LIST_HEAD, alarm_list, alarm_words, ending
from selfdistill.comparison.headline import headline
from selfdistill.comparison.notes import notes
from selfdistill.comparison.tables import (
    joined,
    markdown,
    marked,
    short_names,
    tables,
    verdict,
    words_of,
)
from selfdistill.comparison.told import difference, estimate, measure_of, told
from selfdistill.files.jsonl import Row
from selfdistill.files.records import RolloutLine
from selfdistill.files.text import counted
from selfdistill.report import numbers
from selfdistill.report.charts import Chart, Look, Series, curve_chart
from selfdistill.report.outcome import flat, quantised
from selfdistill.report.page import render
from selfdistill.report.tokens import colour, scale_limit, token_values

TONES = 9
LONGEST_LABEL = 14
"""Maximum characters of a name that labels its curve. Longer names appear only in the legend."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart of one quantity with one line per arm.

    ``curves`` selects the set of curves, ``training`` or ``evaluations``; ``x`` is the key of its x-axis.
    """

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

JOINED = (BY_STEP, FIGURES[2])
"""The curves of a page that joins several comparisons."""


def write_comparison(folder: Path) -> None:
    """Read the ``compare.json`` of a folder and write its ``compare.md`` and ``compare.html``."""
    result = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    name = folder.resolve().name
    _replace(folder / "compare.md", markdown(result, name))
    _replace(folder / "compare.html", render_comparison(result, name))


def render_comparison(result: Row, name: str) -> str:
    """Return the page as HTML text."""
    arms = result["arms"]
    short = short_names([numbers.printable(arm["name"]) for arm in arms])
    # The wide chart is as high as the list of arms beside it.
    sizes = ((680, max(360, min(110 * len(arms), 640))), (380, 260))
    return render(
        "compare.html",
        room="comparison",
        name=numbers.printable(name),
        facts=_facts(result),
        headline=headline(result),
        seeds_note=notes(result)[2],
        problem=_problem(result),
        arms=[_arm(arm, index, result) for index, arm in enumerate(arms)],
        samples=result["samples"],
        main=[_chart(BY_STEP, result, short, size=size) for size in sizes],
        charts=[
            chart
            for chart in (
                _pass_chart(arms, short),
                *(_chart(figure, result, short) for figure in FIGURES),
            )
            if chart
        ],
        band=_band(result),
        tables=tables(result),
        notes=notes(result),
        no_spread=numbers.NO_SPREAD,
        no_spread_note=numbers.NO_SPREAD_NOTE,
        alarms=alarm_list(arms),
        alarm_head=LIST_HEAD,
        terms=list(flat(result["terms"])),
        own=_own_settings(arms),
        names=[numbers.printable(arm["name"]) for arm in arms],
    )


@dataclass(frozen=True, slots=True)
class Joined:
    """A comparison on a page with others: its heading, a sentence about its task, and its folder."""

    heading: str
    about: str
    folder: Path


def write_joined(path: Path, title: str, parts: Sequence[Joined]) -> None:
    """Write one page for several comparisons: the outcome of each, one problem with every arm, then two curves.

    Links to the comparisons' own pages are relative to the folder of ``path``.
    """
    sections = []
    for part in parts:
        result = json.loads((part.folder / "compare.json").read_text(encoding="utf-8"))
        arms = result["arms"]
        short = short_names([numbers.printable(arm["name"]) for arm in arms])
        charts = [_chart(figure, result, short, size=(440, 270)) for figure in JOINED]
        sections.append(
            {
                "heading": part.heading,
                "about": part.about,
                "link": os.path.relpath(part.folder / "compare.html", path.parent),
                "headline": headline(result),
                "problem": _problem(result),
                "arms": [_arm(arm, index, result) for index, arm in enumerate(arms)],
                "charts": [chart for chart in charts if chart],
                "facts": _facts(result),
                "note": notes(result)[2],
            }
        )
    _replace(path, render("joined.html", room="comparison", title=title, parts_of=sections))


def _problem(result: Row) -> dict[str, Any] | None:
    """Return the problem that every arm answered, its completions coloured on one scale; None if none is recorded."""
    problem = result.get("problem")
    if problem is None:
        return None
    rows = [(arm, RolloutLine.from_json(arm["line"], "compare.json")) for arm in problem["arms"]]
    limit = scale_limit(u for _, line in rows for u in token_values(line))
    names = [arm["name"] for arm in result["arms"]]
    tones = {name: _tone(index) for index, name in enumerate(names)}
    short = dict(zip(names, short_names([numbers.printable(name) for name in names]), strict=True))
    scored = [arm["name"] for arm, line in rows if token_values(line)]
    return {
        "prompt": numbers.printable(problem["prompt"]).strip(),
        "step": numbers.whole(problem["step"]),
        "seed": problem["seed"],
        "fresh": problem["fresh"],
        "count": problem["problems"],
        # Comparisons of earlier versions do not hold the key.
        "rewards_differ": problem.get("rewards_differ", True),
        "limit": numbers.plain(limit),
        "scored": scored,
        "unscored": [short[arm["name"]] for arm, _ in rows if arm["name"] not in scored],
        "arms": [
            {
                "name": short[arm["name"]],
                "tone": tones[arm["name"]],
                "share": f"{arm['right']} of {arm['completions']} right",
                "completion": replace(colour(line, limit), prompt=""),
            }
            for arm, line in rows
        ],
    }


def _arm(arm: Row, index: int, result: Row) -> dict[str, str]:
    levels, measure, baseline = arm[told(result)], measure_of(result), numbers.printable(result["baseline"])
    gap, margin = levels["against_baseline"], result["interval"]["margin"]
    final, lead = marked(arm, result["terms"], estimate(levels["final"], measure), difference(gap, measure))
    if arm["name"] == result["baseline"]:
        words = "the baseline"
    else:
        words = f"{verdict(gap, margin)} {baseline}" if gap else f"not compared with {baseline}"
    return {
        "tone": _tone(index),
        "name": numbers.printable(arm["name"]),
        "method": numbers.printable(str(arm["method"]["name"])),
        "final": final[0],
        "range": final[1],
        "before": joined(estimate(levels["before"], measure)),
        "verdict": words,
        "lead": joined(lead) if gap else "",
        "words": words_of(arm["deliberation"], 2),
        "ended": ending(arm),
        "alarms": alarm_words(arm),
    }


def _chart(figure: Figure, result: Row, names: Sequence[str], size: tuple[int, int] = (360, 210)) -> Chart | None:
    """Return the chart with one line per arm and a band over seeds; None if no arm has the quantity.

    The curves of the accuracy are those of the measure that the comparison is told by.
    """
    unit = figure.unit
    if figure.key == "accuracy":
        measure = measure_of(result)
        unit = f"avg@{result['samples']}" if measure.key == "avg" else ""
        title = measure.title if figure is BY_STEP else figure.title
        if measure.key != "avg":
            title = title.replace("Accuracy", measure.name)
        figure = replace(figure, title=title, key=told(result), share=measure.share)
    series = []
    for index, (arm, name) in enumerate(zip(result["arms"], names, strict=True)):
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
                tone=_tone(index),
            )
        )
    if not series:
        return None
    labels = max(len(line.label) for line in series) <= LONGEST_LABEL
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


def _pass_chart(arms: Sequence[Row], names: Sequence[str]) -> Chart | None:
    """Return the chart of pass@k over k, with the interval of each arm as its band; None where there is no curve."""
    look: Look = "points"
    series = []
    for index, (arm, name) in enumerate(zip(arms, names, strict=True)):
        if curve := arm.get("pass_curve"):
            value, low, high = ([point["final"][end] for point in curve] for end in ("value", "low", "high"))
            series.append(Series(name, [point["k"] for point in curve], value, low, high, look, _tone(index)))
    if not series:
        return None
    labels = max(len(line.label) for line in series) <= LONGEST_LABEL
    unit = "of the final evaluation; bands are intervals"
    return curve_chart("pass@k", series, unit=unit, share=True, x_name="k", rivals=True, labels=labels, size=(360, 210))


def _facts(result: Row) -> list[tuple[str, str]]:
    terms: dict[str, Any] = result["terms"]
    sampling, evaluation = terms["sampling"], terms["evaluation"]
    split = result["verdict_split"] if result["verdict_split"] == "test" else evaluation["split"]
    return [
        (
            "Model",
            numbers.printable(str(terms["model"]["path"]).rstrip("/").rsplit("/", 1)[-1])
            + quantised(result.get("quantised")),
        ),
        ("Task", numbers.printable(str(terms["task"]["kind"]))),
        ("Steps", numbers.whole(terms["steps"])),
        ("Problems a step", numbers.whole(sampling["prompts"])),
        ("Seeds", ", ".join(map(str, result["seeds"]))),
        ("Equal in", result["match"]),
        (
            "Held-out",
            f"{counted(result['problems'][0], 'problem')} × {counted(result['samples'], 'sample')}, {split}",
        ),
        ("Baseline", numbers.printable(result["baseline"])),
    ]


def _band(result: Row) -> str:
    if len(result["seeds"]) == 1:
        return "One seed: the lines have no band."
    return f"Lines are means over {len(result['seeds'])} seeds; bands reach from the lowest seed to the highest."


def _own_settings(arms: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the settings of method, optimiser and signal: one row per setting, one column per arm."""
    own = [
        {
            "method": arm["method"],
            "optimiser": arm["optimiser"],
            "signal": (arm.get("signal") or {}).get("settings", {}),
        }
        for arm in arms
    ]
    settings = [dict(flat(table)) for table in own]
    keys = sorted({key for values in settings for key in values}, key=lambda key: (key != "method.name", key))
    return [(key, *(values.get(key, numbers.MISSING) for values in settings)) for key in keys]


def _tone(index: int) -> str:
    return f"arm{index % TONES}"


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(text.encode("utf-8", errors="replace"))
    os.replace(part, path)
