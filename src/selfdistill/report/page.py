"""The page of a run, ``report.html``: one file without network access that shows the results and the training curves.

Its parts have modules of their own: geometry of charts (``charts``), colours of tokens (``tokens``), reading
(``files``) and rounding (``numbers``). ``server`` renders the same page again while a run is going. The pages of
comparisons and inspections share these parts.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from selfdistill.files.jsonl import Row
from selfdistill.files.records import RolloutLine
from selfdistill.report import numbers
from selfdistill.report.besides import besides_rows
from selfdistill.report.charts import Chart, Look, Series, curve_chart, running_mean
from selfdistill.report.files import RunFiles, read_run
from selfdistill.report.measure import Measure, measure_of
from selfdistill.report.outcome import (
    alarm_rows,
    comparison_rows,
    ended_by,
    ends,
    evaluation_table,
    facts,
    flat,
    headline,
    phase_rows,
    phases,
    score_of,
    skipped,
    stepped,
    unjudged,
)
from selfdistill.report.tokens import Coloured, choose, colour, scale_limit, token_values

COMPLETIONS_PER_STEP = 6
"""Completions of each of the two steps on the page: three rows with one correct and one wrong answer each."""


@dataclass(frozen=True, slots=True)
class Part:
    """One series of a figure: a key of a line of metrics, or of its ``evaluation``."""

    name: str
    key: str
    label: str = ""
    evaluation: bool = False
    look: Look = "line"
    tone: str = "student"
    smooth: bool = False
    digits: int | None = None
    """Decimals to which the numbers are rounded; None draws them as they are."""
    of: str = ""
    """Hyperparameter of the methods that record it; empty if all do. In runs of other methods it is not missing."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the page and its series. Series that a run lacks are left out."""

    title: str
    unit: str
    parts: tuple[Part, ...]
    share: bool = False
    names: Mapping[float, str] | None = None
    if_zero: str = ""
    """The unit where every number is 0; empty if it is the same."""


BEHAVIOUR = (
    Figure("Training reward", "mean of a step", (Part("training reward", "reward", smooth=True),)),
    Figure(
        "Completion length",
        "tokens",
        (
            Part("held-out length", "length", "held-out", evaluation=True, look="points", tone="student"),
            Part("training length", "length", "training", tone="quiet"),
        ),
    ),
    Figure(
        "Deliberation",
        "words per completion, held-out",
        (Part("deliberation words", "deliberation", evaluation=True, look="points"),),
    ),
)
TURNS = Figure("Turns", "of an episode, mean of a step", (Part("turns", "turns"),))
ENDS = Figure(
    "Faults of episodes",
    "episodes not ended, turns with a tool's error",
    (
        Part("not ended by the environment", "unended", "not ended"),
        Part("turns answered with an error", "tool_errors", "tool errors", tone="quiet"),
    ),
    share=True,
)
"""Both drawn for runs of tasks that are played in turns."""
SIGNAL = (
    Figure(
        "Entropy",
        "nats per token",
        (
            Part("student entropy", "student_entropy", "student"),
            Part("teacher entropy", "teacher_entropy", "teacher", tone="teacher", of="context"),
        ),
    ),
    Figure("Mean u", "nats per token", (Part("mean u", "pmi", tone="teacher", of="context"),)),
    Figure(
        "Gate of the teacher's signal",
        "",
        (Part("gate", "gate", look="stairs", of="gated"),),
        names={0.0: "off", 1.0: "on"},
    ),
    Figure("Gradient norm", "before clipping", (Part("gradient norm", "grad_norm"),)),
    # The advantages of a group cancel, so a policy gradient's loss is often a sum of rounding errors.
    Figure(
        "Loss",
        "the quantity optimised",
        (Part("loss", "loss", digits=6),),
        if_zero="0 up to rounding: its gradient, not its value, moves the weights",
    ),
    Figure("Clipped tokens", "share of a step", (Part("share of clipped tokens", "clip_share"),), share=True),
)


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run folder atomically and return its path.

    Raises:
        DataError: the folder holds no run, or a file in it cannot be read.
    """
    page = render_run(read_run(run_dir))
    target = run_dir / "report.html"
    part = run_dir / "report.html.part"
    part.write_bytes(page.encode("utf-8", errors="replace"))
    os.replace(part, target)
    return target


@dataclass(frozen=True, slots=True)
class Live:
    """Polling of a served page: it requests its content every ``seconds``, or never if these are None.

    ``up`` is the address of the index of all runs, empty if only this run is served.
    """

    seconds: int | None
    up: str = ""


def render_run(run: RunFiles, live: Live | None = None) -> str:
    """Return the page of a run as HTML text. ``live`` is None for a page that is written to a file."""
    evaluations = [
        (row["step"], row["evaluation"]) for row in stepped(run.metrics) if isinstance(row.get("evaluation"), dict)
    ]
    before, after = ends(run.summary, evaluations)
    measure = measure_of(run.config, run.summary, [before, after, *(row for _, row in evaluations)])
    finished, ended = run.summary.get("finished") is True, ended_by(run.summary)
    # The axes of an unfinished run extend to its last planned step.
    planned = None if finished or ended else numbers.number(run.config.get("steps"))
    method = run.config.get("method")
    known = method if isinstance(method, dict) else {}
    figures = (*BEHAVIOUR, TURNS, ENDS) if any("turns" in row for row in run.metrics) else BEHAVIOUR
    behaviour, no_behaviour = draw_figures(figures, run.metrics, known, planned)
    signal, no_signal = draw_figures(SIGNAL, run.metrics, known, planned)
    chosen = [choose(rows, COMPLETIONS_PER_STEP) for rows in (run.first, run.last)]
    limit = scale_limit(u for rows in chosen for row in rows for u in token_values(row))
    best = run.summary.get("best")
    judged = not any(unjudged(evaluation) for _, evaluation in evaluations) or isinstance(best, dict)
    told = headline(before, after, measure)
    rows = comparison_rows(before, after, best if isinstance(best, dict) else {}, measure)
    head, lines = evaluation_table(evaluations, measure)
    return render(
        "run.html",
        run=numbers.printable(run.name),
        facts=facts(run),
        headline=told,
        judged=judged,
        live=live,
        polls=bool(live and live.seconds),
        scripts=("page.js", "live.js") if live and live.seconds else ("page.js",),
        finished=finished,
        going=not (finished or ended),
        ended_by=ended,
        alarms=alarm_rows(run),
        damage=run.damage,
        main=main_charts(evaluations, run.summary.get("best_step"), planned, measure),
        behaviour=behaviour,
        signal=signal,
        missing=no_behaviour + no_signal,
        comparison=rows,
        best_step=numbers.whole(numbers.number(run.summary.get("best_step"))),
        evaluation_head=head,
        evaluations=lines,
        besides=list(besides_rows(before, after)),
        no_spread=numbers.NO_SPREAD,
        no_spread_note=numbers.NO_SPREAD_NOTE,
        phases=phase_rows(phases(run)),
        skipped=skipped(run.metrics),
        steps=[_step_of(rows, limit) for rows in chosen if rows],
        limit=numbers.plain(limit),
        settings=list(flat(run.config)),
    )


def render(
    template: str,
    *,
    room: str = "report",
    polls: bool = False,
    scripts: Sequence[str] = ("page.js",),
    **values: object,
) -> str:
    """Fill a template and return the page. Every value is escaped, and only the page's own ``scripts`` may run.

    Templates and scripts come from the ``templates`` folder of ``room``, or else from report/templates. A page that
    ``polls`` may request its content from its own server, and no page may request anything else.
    """
    source = partial(_source, room=room)
    script = "".join(map(source, scripts))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters["coordinate"] = lambda value: f"{value:.1f}"
    return environment.get_template(template).render(
        style=Markup(source("page.css")), script=Markup(script), script_digest=digest, polls=polls, **values
    )


def draw_figures(
    figures: Sequence[Figure], metrics: Sequence[Row], method: Row, planned: float | None = None
) -> tuple[list[Chart], list[str]]:
    """Return the charts of the figures that have numbers, and the names of the series that have none.

    ``method`` is the method's table of the config. A series that only other methods record is not missing. The axes
    extend to the step ``planned``.
    """
    charts: list[Chart] = []
    missing: list[str] = []
    for figure in figures:
        raw = [(part, series_of(part, metrics)) for part in figure.parts]
        missing += [part.name for part, line in raw if line is None and (not part.of or part.of in method)]
        series = [smoothed for part, line in raw if line is not None for smoothed in _smoothed(part, line)]
        if series:
            height = 120 if figure.names else 190
            still = figure.if_zero and not any(value for line in series for value in line.y)
            charts.append(
                curve_chart(
                    figure.title,
                    series,
                    unit=figure.if_zero if still else figure.unit,
                    share=figure.share,
                    names=figure.names,
                    size=(360, height),
                    planned=planned,
                )
            )
    return charts, missing


def series_of(part: Part, metrics: Sequence[Row]) -> Series | None:
    """Return the numbers of a part over steps; None if the run has none."""
    rows = [(row["step"], row.get("evaluation") if part.evaluation else row) for row in stepped(metrics)]
    # A step without an evaluation is not a gap in a curve of evaluations.
    pairs = [(float(step), numbers.number(row.get(part.key))) for step, row in rows if row]
    while pairs and pairs[0][1] is None:
        pairs.pop(0)
    if not pairs:
        return None
    x, values = zip(*pairs, strict=True)
    y = values if part.digits is None else [None if value is None else round(value, part.digits) for value in values]
    return Series(part.label or part.name, x, y, look=part.look, tone=part.tone)


def main_charts(
    evaluations: Sequence[tuple[float, Row]], best_step: object, planned: float | None, measure: Measure
) -> list[Chart]:
    """Return the main figure for wide and for narrow screens; empty without evaluations."""
    scores = [(step, score_of(evaluation, measure.key)) for step, evaluation in evaluations]
    if not any(numbers.number(score.get("value")) is not None for _, score in scores):
        return []
    ends = [[numbers.number(score.get(end)) for _, score in scores] for end in ("value", "low", "high")]
    # A band needs an interval at every evaluation that has a value.
    has_band = all(None not in entry or entry == (None,) * 3 for entry in zip(*ends, strict=True))
    name = measure.name_of([score for _, score in scores])
    series = Series(
        name,
        [step for step, _ in scores],
        ends[0],
        low=ends[1] if has_band else (),
        high=ends[2] if has_band else (),
        look="points",
    )
    best = numbers.number(best_step)
    marks = [] if best is None else [(best, "best")]
    sizes = [(680, 300), (380, 240)]
    return [
        curve_chart(
            measure.title,
            [series],
            unit=name if measure.key == "avg" else "",
            share=measure.share,
            size=size,
            marks=marks,
            planned=planned,
        )
        for size in sizes
    ]


def _step_of(lines: Sequence[RolloutLine], limit: float) -> dict[str, object]:
    completions: list[Coloured] = [colour(line, limit) for line in lines]
    return {
        "step": numbers.whole(lines[0].step),
        "completions": completions,
        "scored": any(completion.total_u for completion in completions),
    }


def _smoothed(part: Part, series: Series) -> list[Series]:
    """Return a smoothed series of 30 steps or more as its running mean, with the single steps in the background."""
    if not part.smooth or len(series.y) < 30:
        return [series]
    window = max(5, len(series.y) // 20)
    mean = Series(f"mean of {window}", series.x, running_mean(series.y, window), tone=part.tone)
    return [mean, Series("one step", series.x, series.y, look="faint", tone=part.tone)]


def _source(name: str, *, room: str) -> str:
    package = resources.files("selfdistill")
    own = package / room / "templates" / name
    return (own if own.is_file() else package / "report" / "templates" / name).read_text(encoding="utf-8")
