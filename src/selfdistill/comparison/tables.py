"""The tables and notes of a comparison, shared by ``compare.md``, the page and the terminal.

The only input is ``compare.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from selfdistill.comparison.alarm_tables import (
    HEAD,
    LIST_HEAD,
    Cell,
    alarm_list,
    alarm_rows,
    alarm_words,
    ending,
)
from selfdistill.comparison.besides import besides_tables
from selfdistill.comparison.grids import grid_edges
from selfdistill.comparison.notes import notes
from selfdistill.comparison.reading import unread
from selfdistill.comparison.signal_costs import SIGNAL_HEAD, signal_cells
from selfdistill.comparison.told import difference, estimate, measure_of, title_of, told
from selfdistill.files.jsonl import Row
from selfdistill.files.text import counted, plural
from selfdistill.report import numbers
from selfdistill.report.measure import MEASURES
from selfdistill.report.outcome import quantised


@dataclass(frozen=True, slots=True)
class Table:
    """A table with one row per arm: its caption, its column headings, and each arm's name with its cells."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def tables(result: Row) -> list[Table]:
    """Return every table of a comparison, in the order of the page."""
    base, arms, key = result["baseline"], result["arms"], told(result)
    unit = next((arm["reach"]["unit"] for arm in arms if arm["reach"]), result["match"])
    alarms, family = alarm_rows(arms), _about_family(result)
    return [
        *_level_tables(result, family),
        *_pass_tables(result, family),
        Table(
            f"First evaluation at or above the final {key} of {base}; a seed that never reaches it counts whole",
            (
                "Arm",
                "Seeds that reach it",
                "Step, restricted mean",
                f"{unit.capitalize()} against {base}",
                "Generated tokens",
                "Seconds of training",
            ),
            _rows(arms, lambda arm: _reach(arm, base)),
        ),
        Table(
            "What a run has spent: completions and their tokens, mean over seeds",
            ("Arm", "Steps", "Completions drawn", "Tokens drawn", "Tokens scored", "Tokens trained", "Seconds"),
            _rows(arms, _budget),
        ),
        Table(
            f"Deliberation words per completion, held-out{family}",
            ("Arm", "Before", "Final", "Change", f"Final vs {base}"),
            _rows(arms, lambda arm: _measure(arm, "deliberation", 2, result["terms"])),
        ),
        Table(
            f"Tokens per completion, held-out{family}",
            ("Arm", "Before", "Final", "Change", f"Final vs {base}", "Cut at the limit"),
            _rows(
                arms,
                lambda arm: (
                    *_measure(arm, "length", 1, result["terms"]),
                    (_from_to(arm["truncated"], numbers.percent), ""),
                ),
            ),
        ),
        Table(
            "The signal in training: first and last tenth of the steps",
            ("Arm", "Student entropy", "Teacher entropy", "Gate open"),
            _rows(arms, _signal),
        ),
        _cost_table(arms, base),
        *(
            [Table("What the settings of signal cost a run, mean over seeds", SIGNAL_HEAD, _rows(arms, signal_cells))]
            if any((arm.get("signal") or {}).get("settings") for arm in arms)
            else []
        ),
        *(Table(*parts) for parts in besides_tables(result)),
        *([Table("Alarms in training, seed by seed", HEAD, tuple(alarms))] if alarms else []),
    ]


def _level_tables(result: Row, family: str) -> list[Table]:
    """Return the table of the measure that the comparison is told by, and that of the accuracy if it is another."""
    arms, terms = result["arms"], result["terms"]
    head = ("Arm", "Before", "Final", "Gain", f"Final vs {result['baseline']}", "Best", "Late change")
    accuracy = f"{MEASURES['success'].title}, avg@{result['samples']}"
    titles = {told(result): title_of(result), "accuracy": accuracy}

    def table(key: str, title: str) -> Table:
        caption = f"{title}, {result['verdict_split']} problems{family}"
        return Table(caption, head, _rows(arms, lambda arm: _levels(arm, key, terms)))

    return [table(key, title) for key, title in titles.items()]


def markdown(result: Row, title: str) -> str:
    """Return the text of ``compare.md``: the tables and the notes."""
    parts = [f"# {_escaped(title)}", _about(result)]
    for table in tables(result):
        parts += _markdown_table(table.caption, table.head, [(name, *map(joined, cells)) for name, cells in table.rows])
    parts.append("\n".join(f"- {_escaped(message)}" for message in notes(result)))
    alarms = alarm_list(result["arms"])
    if alarms:
        parts += _markdown_table("Every alarm with its evidence", LIST_HEAD, alarms)
    return "\n\n".join(parts) + "\n"


def _markdown_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(map(_escaped, row))} |" for row in (head, *rows)]
    return [f"**{_escaped(caption)}**", "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])]


def closing(result: Row) -> list[str]:
    """Return the outcome for the terminal: one line per arm, and one per best value at the edge of its grid."""
    width = max(len(arm["name"]) for arm in result["arms"])
    lines = []
    for arm in result["arms"]:
        levels, words, measure = arm[told(result)], arm["deliberation"], measure_of(result)
        before, gap = levels["before"], levels["against_baseline"]
        final, lead = marked(arm, result["terms"], estimate(levels["final"], measure), difference(gap, measure))
        against = f"  {joined(lead)} against {result['baseline']}" if gap else ""
        lines.append(
            f"{arm['name']:<{width}}  {joined(estimate(before, measure))} → {joined(final)}{against}; "
            f"deliberation {words_of(words, 2)}"
            + "".join(
                f"; {name}: {text}" for name, text in (("ended", ending(arm)), ("alarms", alarm_words(arm))) if text
            )
        )
    alike = any(numbers.NO_SPREAD in line for line in lines)
    return [*lines, *([numbers.NO_SPREAD_NOTE] if alike else []), *grid_edges(result["arms"])]


def words_of(measured: Row, decimals: int) -> str:
    """Return the deliberation words of an arm, before and final: ``0.25 → 0.50``."""
    return " → ".join(
        numbers.MISSING if measured[end] is None else f"{measured[end]['value']:.{decimals}f}"
        for end in ("before", "final")
    )


def joined(cell: Cell) -> str:
    """Return a cell as one line of text."""
    return f"{cell[0]} ({cell[1]})" if cell[1] else cell[0]


def verdict(value: Row, margin: float = 0.0) -> str:
    """Return ``above`` or ``below`` if the interval excludes 0, ``within 2 points of`` if equality is shown.

    Otherwise ``no clear difference from``, which is no claim of equality. ``margin`` is the margin of the equality.
    """
    if value["low"] > 0:
        return "above"
    if value["high"] < 0:
        return "below"
    return f"within {100 * margin:g} points of" if value.get("equal") else "no clear difference from"


def short_names(names: Sequence[str]) -> list[str]:
    """Return the names without their common first words: ``countdown-grpo`` beside ``countdown-sd`` is ``grpo``."""
    words = [name.split("-") for name in names]
    most = min(map(len, words)) - 1 if len(words) > 1 else 0
    shared = next((i for i in range(most) if len({row[i] for row in words}) > 1), most)
    return ["-".join(row[shared:]) for row in words]


def _rows(arms: Sequence[Row], cells: Callable[[Row], tuple[Cell, ...]]) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    return tuple((numbers.printable(arm["name"]), cells(arm)) for arm in arms)


def _levels(arm: Row, key: str, terms: Row) -> tuple[Cell, ...]:
    levels, measure = arm[key], MEASURES["reward" if key == "reward" else "success"]
    scale, decimals = (100, 1) if measure.share else (1, 3)

    def level(end: str) -> Cell:
        return _with_sd(estimate(levels[end], measure), levels[end], scale, decimals)

    def gap(end: str) -> Cell:
        return _with_sd(difference(levels[end], measure), levels[end], scale, decimals)

    final, lead = marked(arm, terms, level("final"), gap("against_baseline"))
    late = gap("late_change")
    if levels["late_change"] is not None:
        between = ", ".join(dict.fromkeys(f"{before} to {after}" for before, after in levels["late_steps"]))
        late = late[0], f"{late[1]}; step {between}"
    return (
        level("before"),
        final,
        gap("change"),
        lead,
        _at_step(estimate(levels["best"], measure), sorted(set(levels["best_steps"]))),
        late,
    )


def _with_sd(cell: Cell, value: Row | None, scale: float, decimals: int = 1) -> Cell:
    """Return the cell with the standard deviation over seeds in its small print, if there are several."""
    if value is None or value["sd"] is None:
        return cell
    return cell[0], f"{cell[1]}; SD {scale * value['sd']:.{decimals}f}"


def _reach(arm: Row, base: str) -> tuple[Cell, ...]:
    reach = arm["reach"]
    if reach is None:
        return ((numbers.MISSING, ""),) * 5
    mean, gap = reach["mean"], reach["against_baseline"]
    each = ", ".join(numbers.MISSING if step is None else str(step) for step in reach["steps"])
    tokens = numbers.compact(mean["tokens"]) if arm["generates"] else numbers.MISSING
    against = (numbers.MISSING, "")
    if gap is not None and arm["name"] != base:
        form = partial(numbers.signed, decimals=1)
        against = form(gap["value"]), numbers.interval(gap["low"], gap["high"], form, between=" to ")
    return (
        (f"{reach['reached']} of {reach['of']}", ""),
        (f"{mean['step']:.4g}", each if reach["of"] > 1 else ""),
        against,
        (tokens, ""),
        (numbers.duration(mean["seconds"]), ""),
    )


def _budget(arm: Row) -> tuple[Cell, ...]:
    """Return the budget of a run, with its roles in small print; dashes for a run that did not count it."""
    runs = arm["runs"]
    budgets = [run["budget"] for run in runs]
    known = None not in budgets

    def by_role(kind: str) -> Cell:
        if not known:
            return numbers.MISSING, ""
        roles = dict.fromkeys(role for budget in budgets for role in budget[kind])
        means = {role: sum(budget[kind].get(role, 0) for budget in budgets) / len(budgets) for role in roles}
        each = ", ".join(f"{role} {numbers.compact(mean)}" for role, mean in means.items())
        return numbers.compact(sum(means.values())), each if list(means) not in ([], ["student"]) else ""

    steps = sorted({run["steps"] for run in runs})
    trained = sum(budget["trained"] for budget in budgets) / len(budgets) if known else None
    return (
        (", ".join(map(str, steps)), ""),
        by_role("completions"),
        by_role("drawn"),
        by_role("scored"),
        (numbers.MISSING if trained is None else numbers.compact(trained), ""),
        (numbers.duration(arm["cost"]["total_seconds"]), ""),
    )


def marked(arm: Row, terms: Row, final: Cell, lead: Cell) -> tuple[Cell, Cell]:
    """Return the final cell and the baseline cell, each with its steps if a run of the arm was read earlier.

    The final cell of an arm that could not be read holds the reason. ``terms`` are those of the comparison.
    """
    read, compared = ({*arm["accuracy"][key]} for key in ("read_at", "compared_at"))
    if why := unread(arm, terms["evaluation"]["every"]):
        final = numbers.MISSING, why
    elif read != {terms["steps"]}:
        final = _at_step(final, arm["accuracy"]["read_at"])
    early = lead[1] and compared != {terms["steps"]}
    return final, _at_step(lead, arm["accuracy"]["compared_at"]) if early else lead


def _at_step(cell: Cell, steps: Sequence[int]) -> Cell:
    listed = steps[:1] if len(set(steps)) == 1 else steps
    return cell[0], f"{cell[1]}; step {', '.join(map(str, listed))}"


def _measure(arm: Row, key: str, decimals: int, terms: Row) -> tuple[Cell, ...]:
    scores = arm[key]

    def value(score: Row | None) -> Cell:
        if score is None:
            return numbers.MISSING, ""
        span = numbers.interval(score["low"], score["high"], lambda end: f"{end:z.{decimals}f}")
        return _with_sd((f"{score['value']:z.{decimals}f}", span), score, 1, decimals)

    def signed(score: Row | None) -> Cell:
        if score is None:
            return numbers.MISSING, ""
        form = partial(numbers.signed, decimals=decimals)
        span = numbers.interval(score["low"], score["high"], form, between=" to ")
        return _with_sd((form(score["value"]), span), score, 1, decimals)

    final, lead = marked(arm, terms, value(scores["final"]), signed(scores["against_baseline"]))
    return value(scores["before"]), final, signed(scores["change"]), lead


def _signal(arm: Row) -> tuple[Cell, ...]:
    roles = (arm["entropy"][role] for role in ("student", "teacher"))
    entropies = [_from_to(role, numbers.plain, ("first", "last")) if role else numbers.MISSING for role in roles]
    return tuple((word, "") for word in (*entropies, numbers.percent(arm["gate"])))


def _cost_table(arms: Sequence[Row], base: str) -> Table:
    return Table(
        f"Median seconds of a step, and in proportion to the median step of {base}",
        (
            "Arm",
            "Sampling",
            "Teacher scoring",
            "Step without sampling",
            "Whole step",
            f"Scoring, of {base} without sampling",
            f"Scoring, of {base}",
            f"Whole step, to {base}",
            "Tokens of a run",
        ),
        _rows(arms, _cost),
    )


def _cost(arm: Row) -> tuple[Cell, ...]:
    seconds, ratios = arm["cost"]["seconds"], arm["cost"]["against_baseline"]
    words = (
        *(numbers.plain(seconds[part]) for part in ("generation", "scoring", "learning", "step")),
        *(numbers.percent(ratios[part]) for part in ("scoring_to_learning", "scoring_to_step")),
        numbers.MISSING if ratios["step"] is None else f"{ratios['step']:.2f} ×",
        numbers.compact(arm["cost"]["tokens"]) if arm["generates"] else numbers.MISSING,
    )
    return tuple((word, "") for word in words)


def _pass_tables(result: Row, family: str) -> list[Table]:
    """Return the tables of pass@k and of its lead over the baseline; none where a problem has one sample."""
    arms, base = result["arms"], result["baseline"]
    sizes = list(dict.fromkeys(point["k"] for arm in arms for point in arm.get("pass_curve") or []))
    if not sizes:
        return []

    def cells(arm: Row, form: Callable[[Row | None], Cell], key: str) -> tuple[Cell, ...]:
        points_of = {point["k"]: point[key] for point in arm["pass_curve"]}
        return tuple(form(points_of.get(k)) for k in sizes)

    head = ("Arm", *(f"pass@{k}" for k in sizes))
    level = f"Final pass@k, {result['verdict_split']} problems: at least one of k completions is right"
    found = [Table(level, head, _rows(arms, lambda arm: cells(arm, estimate, "final")))]
    rivals = [arm for arm in arms if arm["name"] != base]
    if rivals:
        caption = f"Final pass@k vs {base}{family}"
        found.append(Table(caption, head, _rows(rivals, lambda arm: cells(arm, difference, "against_baseline"))))
    return found


def _from_to(ends: Row, form: Any, keys: tuple[str, str] = ("before", "final")) -> str:
    return f"{form(ends[keys[0]])} → {form(ends[keys[1]])}"


def _about_family(result: Row) -> str:
    """Return the end of a caption: the number of arms over which a column of differences holds together."""
    count = len(result["arms"])
    return "" if count < 2 else f"; differences of a column hold together (Bonferroni, {count} arms)"


def _about(result: Row) -> str:
    terms: Mapping[str, Any] = result["terms"]
    prompts, problems, samples = terms["sampling"]["prompts"], result["problems"][0], result["samples"]
    model = f"{terms['model']['path']}{quantised(result.get('quantised'))}"
    return _escaped(
        f"Model {model}, task {terms['task']['kind']}, {counted(terms['steps'], 'step')} of "
        f"{counted(prompts, 'problem')}, {plural(len(result['seeds']), 'seed')} "
        f"{', '.join(map(str, result['seeds']))}, "
        f"{problems} held-out {plural(problems, 'problem')} × {counted(samples, 'sample')} a seed."
    )


def _escaped(text: str) -> str:
    """Escape text for Markdown, so that no cell ends early and nothing is read as markup."""
    text = numbers.printable(text).replace("\n", " ")
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#" else sign for sign in text)
