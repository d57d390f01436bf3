"""The tables of the pages of results, from the kept files: ``python experiments/tables.py [--check]``.

A table is written between ``<!-- table NAME -->`` and ``<!-- end -->``. NAME is a file of the page's folder of results,
``claims-PAPER`` (claims.py), ``edges-TASK``, ``stability-FILE``, ``parts-FILE``, ``turns-FILE``, ``besides-FILE``,
``teachers-TASK`` or ``boilerplate-TASK``. A table whose file does not exist says so.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import claims

from selfdistill.comparison.besides import besides_tables
from selfdistill.comparison.grids import grid_edges
from selfdistill.comparison.tables import verdict
from selfdistill.files.text import plural
from selfdistill.report import numbers

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
PAGES = {
    DOCS / "results.md": HERE / "results",
    DOCS / "real-model.md": HERE / "results",
    DOCS / "results-2026-11-21.md": HERE / "results" / "2026-11-21",
}
"""Each page and the folder of the results that it shows."""
TABLE = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def share(score: dict[str, Any]) -> str:
    """``60.2 % [51.2, 68.8]``."""
    return f"{100 * score['value']:.1f} % [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"


def difference(score: dict[str, Any] | None) -> str:
    """``+2.7 [−3.3, +9.2]``, in points; empty for the baseline itself."""
    if score is None:
        return ""
    value, low, high = (numbers.signed(100 * score[key], decimals=1) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def deviation(score: dict[str, Any] | None) -> str:
    """``, SD 2.1``, in points over seeds; empty for a single seed and for the baseline itself."""
    return "" if score is None or score["sd"] is None else f", SD {100 * score['sd']:.1f}"


def restricted(arm: dict[str, Any], baseline: str, per_step: int) -> str:
    """Restricted mean of the steps to the baseline's final accuracy: ``15 (never 1 of 3); −1.5 [−4.0, +1.0]``."""
    reach = arm["reach"]
    never = reach["of"] - reach["reached"]
    text = f"{reach['mean']['step']:.3g} (never {never} of {reach['of']})"
    if arm["name"] == baseline or reach["against_baseline"] is None:
        return text
    size = per_step if reach["unit"] == "completions" else 1
    value, low, high = (
        numbers.signed(reach["against_baseline"][key] / size, decimals=1) for key in ("value", "low", "high")
    )
    return f"{text}; {value} [{low}, {high}]"


def final(result: dict[str, Any]) -> str:
    """One row per arm: accuracy, gain and difference from the baseline with deviations, steps to its end, budget."""
    if result["interval"].get("kind") != "t":
        return bootstrapped(result)
    arms, baseline, sampling = result["arms"], result["baseline"], result["terms"]["sampling"]
    before, margin = arms[0]["accuracy"]["before"], result["interval"]["margin"]
    steps = arms[0]["accuracy"]["late_steps"][0]
    count = len(result["seeds"])
    lines = [
        f"{count} {plural(count, 'seed')} ({', '.join(map(str, result['seeds']))}) × {result['problems'][0]} "
        f"{result['verdict_split']} problems × {result['samples']} samples, equal {result['match']}; all from "
        f"{share(before)}{deviation(before)}. In each column the gains hold together at 95 % (Bonferroni, "
        f"{len(arms)} arms), and so do the differences from `{baseline}` ({len(arms) - 1}). *Equal* is a two one-sided "
        f"t test within {100 * margin:g} points. Late change: step {steps[0]} to {steps[1]} of `{arms[0]['name']}`, "
        f"validation. Runs are evaluated every {result['terms']['evaluation']['every']} steps.\n",
        f"| arm | rate | steps | final | gain | against `{baseline}` | | late change | steps to `{baseline}`'s end; "
        "difference in its steps | deliberation words | gate open | tokens drawn, scored, trained | scoring, share of "
        "a step |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        accuracy, words, gap = arm["accuracy"], arm["deliberation"], arm["accuracy"]["against_baseline"]
        budgets = [run["budget"] for run in arm["runs"]]
        spent = [fmean(sum(budget[kind].values()) for budget in budgets) for kind in ("drawn", "scored")]
        spent.append(fmean(budget["trained"] for budget in budgets))
        cells = [
            f"`{arm['name']}`",
            label(arm),
            ", ".join(dict.fromkeys(str(run["steps"]) for run in arm["runs"])),
            share(accuracy["final"]) + deviation(accuracy["final"]),
            difference(accuracy["change"]) + deviation(accuracy["change"]),
            difference(gap) + deviation(gap),
            told(verdict(gap, margin)) if gap else "",
            difference(accuracy["late_change"]),
            restricted(arm, baseline, sampling["prompts"] * sampling["completions"]),
            f"{words['before']['value']:.2f} → {words['final']['value']:.2f}",
            "" if arm.get("gate") is None else f"{100 * arm['gate']:.0f} %",
            ", ".join(map(numbers.compact, spent)),
            f"{100 * arm['cost']['seconds']['scoring'] / arm['cost']['seconds']['step']:.0f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def told(word: str) -> str:
    """A verdict as a word of a cell: ``equal``, ``no clear difference``."""
    return "equal" if word.startswith("within") else word.removesuffix(" from")


def edges(task: str, folder: Path) -> str:
    """What still has its best value at an edge of its grid."""
    messages = grid_edges(read(folder, f"{task}-tune")["arms"])
    return "".join(f"- {message}\n" for message in messages) or "No best value lies at an edge of its grid.\n"


def stability(name: str, folder: Path) -> str:
    """Spread over seeds: of final accuracy, and of each run's mean loss and mean norm of the gradient."""
    arms, metrics = read(folder, name)["arms"], read(folder, f"{name}-metrics")
    lines = [
        "Standard deviations over seeds. Losses of different methods have different units.\n",
        "| arm | SD of final accuracy, points | mean loss, SD | mean gradient norm, SD |",
        "|---|---|---|---|",
    ]
    for arm in arms:
        spread = arm["accuracy"]["final"]["sd"]
        cells = ["" if spread is None else f"{100 * spread:.1f}"]
        for key in ("loss", "grad_norm"):
            values = metrics[arm["name"]].get(key)
            # A single seed has no deviation.
            cells.append(f"{values['all']:.3g}" + (f", {values['sd']:.2g}" if "sd" in values else "") if values else "")
        lines.append(f"| `{arm['name']}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parts(name: str, folder: Path) -> str:
    """What of the total difference is the reference's alone and what the question's, as cosines over all steps.

    One row for each arm that tells them apart.
    """
    metrics, keys = read(folder, f"{name}-metrics"), ("cos_total_reference", "cos_total_question", "grad_norm")
    lines = [
        "Means over steps and seeds.\n",
        "| arm | cosine with what the reference alone explains | with the question's part | gradient norm |",
        "|---|---|---|---|",
    ]
    for arm, values in metrics.items():
        if keys[0] in values:
            cells = [numbers.plain(values[key]["all"]) for key in keys]
            lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def turns(name: str, folder: Path) -> str:
    """What episodes were like in training: turns, own tokens, reward, and turns answered with an error."""
    metrics = read(folder, f"{name}-metrics")
    lines = [
        "Training episodes of the first step and of the last one, means over seeds.\n",
        "| arm | reward | turns | tokens of the model's own | turns answered with an error |",
        "|---|---|---|---|---|",
    ]
    for arm, values in metrics.items():
        cells = []
        for key, form in (("reward", ".2f"), ("turns", ".2f"), ("length", ".0f"), ("tool_errors", ".0%")):
            both = values.get(key)
            told = [] if both is None else [format(both[when], form).replace("%", " %") for when in ("first", "last")]
            cells.append(" → ".join(told))
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def besides(name: str, folder: Path) -> str:
    """What an arm did to what it was not trained on: a table for each measure."""
    lines = []
    for caption, head, rows in besides_tables(read(folder, name)):
        lines += [f"{caption}:\n", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for arm, cells in rows:
            shown = [cell if isinstance(cell, str) else " ".join(f"{cell[0]} {cell[1]}".split()) for cell in cells]
            lines.append(f"| `{arm}` | {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def teachers(task: str, folder: Path) -> str:
    """PBSD's teachers: gap, shift, curvature and rate, with the untrained student and with the trained one."""
    kept = read(folder, f"{task}-teachers")
    when = {"start": "untrained", "end": f"after {kept['steps']} steps"}
    lines = [
        "| teacher | student | right: student, teacher | gap, points | shift, nats | σ(m) σ(−m) | largest eigenvalue "
        "(residual) | smallest | along the gradient | gradient norm | rate |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, measured in kept["teachers"].items():
        for time, one in measured.items():
            plain = [numbers.plain(one[key]) for key in ("smallest_eigenvalue", "curvature_along_gradient")]
            cells = [
                f"`{name}`",
                when[time],
                f"{100 * one['student']['value']:.0f} %, {100 * one['teacher']['value']:.0f} %",
                difference(one["gap"]),
                interval(one["shift"]),
                interval(one["logistic_curvature"]),
                f"{numbers.plain(one['largest_eigenvalue'])} ({numbers.plain(one['eigenvalue_residual'])})",
                *plain,
                numbers.plain(one["gradient_norm"]),
                interval(one["rate"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    if not (folder / f"{task}-external.json").is_file():
        return "\n".join(lines) + "\n"
    compared = read(folder, f"{task}-external")
    baseline, accuracy = compared["baseline"], {arm["name"]: arm["accuracy"] for arm in compared["arms"]}
    lines += [
        f"\nAfter {kept['steps']} steps, {len(compared['seeds'])} seeds × {compared['problems'][0]} "
        f"{compared['verdict_split']} problems; gains and differences hold together (Bonferroni, {len(accuracy)} and "
        f"{len(accuracy) - 1}):\n",
        f"| teacher | final | gain | against `{baseline}` | |",
        "|---|---|---|---|---|",
    ]
    for name, level in accuracy.items():
        gap = level["against_baseline"]
        word = told(verdict(gap, compared["interval"]["margin"])) if gap else ""
        end, gain = (score for score in (level["final"], level["change"]))
        cells = [share(end) + deviation(end), difference(gain) + deviation(gain), difference(gap) + deviation(gap)]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {word} |")
    return "\n".join(lines) + "\n"


def boilerplate(task: str, folder: Path) -> str:
    """CREDIT's shift of credit, in the form that is trained and in the paper's sampled-token form."""
    kept = read(folder, f"{task}-boilerplate")
    trained, sampled = "credit − sdpo, the form that is trained", "added by the sampled-token form"
    lines = [
        f"{kept['problems']} problems × {kept['samples']} completions, {kept['tokens']} tokens; 95 % bootstrap over "
        "problems.\n",
        "| tokens | u | SDPO's credit | CREDIT − SDPO, the form that is trained | the sampled-token form adds |",
        "|---|---|---|---|---|",
    ]
    for kind in ("boilerplate", "specific"):
        cells = [interval(kept[kind][key]) for key in ("u", "sdpo", trained, sampled)]
        lines.append(f"| {kind}, {kept[kind]['tokens']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def interval(score: dict[str, Any]) -> str:
    """``6.59 [2.31, 10.9]``."""
    value, low, high = (numbers.plain(score[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


# Comparisons older than the t intervals of `compare` have bootstrap intervals and no results per problem.


def reach(reached_steps: dict[str, Any]) -> str:
    """Steps to the baseline's final accuracy: ``15 (2 of 3 seeds)``."""
    if not reached_steps or not reached_steps["reached"]:
        return "–"
    seeds = (
        ""
        if reached_steps["reached"] == reached_steps["of"]
        else f" ({reached_steps['reached']} of {reached_steps['of']} seeds)"
    )
    return f"{reached_steps['mean']['step']:.3g}{seeds}"


def bootstrapped(result: dict[str, Any]) -> str:
    """One row per arm: accuracy, its difference from the baseline, steps to the baseline's end, deliberation, cost."""
    baseline = result["baseline"]
    before = result["arms"][0]["accuracy"]["before"]
    lines = [
        f"All from {share(before)}.\n",
        f"| arm | rate | final | gain | against `{baseline}` | fall after best | steps to `{baseline}`'s end | "
        "deliberation words | scoring, share of the baseline's step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in result["arms"]:
        accuracy, words = arm["accuracy"], arm["deliberation"]
        cost = arm["cost"]["against_baseline"]["scoring_to_step"] or 0.0
        cells = [
            f"`{arm['name']}`",
            f"{arm['optimiser']['learning_rate']:g}",
            share(accuracy["final"]),
            difference(accuracy["change"]),
            difference(accuracy["against_baseline"]) if arm["name"] != baseline else "",
            difference(accuracy["fall"]),
            reach(arm["reach"]),
            f"{words['before']['value']:.2f} → {words['final']['value']:.2f}",
            f"{100 * cost:.0f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def tune(result: dict[str, Any], chosen: dict[str, Any]) -> str:
    """One row per method with its candidates in the order of their accuracy; the chosen candidate is bold."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for arm in result["arms"]:
        rows.setdefault(arm["method"]["name"], []).append(arm)
    lines = ["| method | candidates: accuracy, deliberation words |", "|---|---|"]
    for method, arms in rows.items():
        cells = []
        for arm in sorted(arms, key=lambda arm: -arm["accuracy"]["final"]["value"]):
            final_words = arm["deliberation"]["final"]["value"]
            cell = f"{label(arm)}: {100 * arm['accuracy']['final']['value']:.1f} %, {final_words:.1f}"
            cells.append(f"**{cell}**" if arm["name"] == chosen[method]["arm"] else cell)
        lines.append(f"| `{method}` | {'; '.join(cells)} |")
    before = result["arms"][0]
    words = before["deliberation"]["before"]["value"]
    return (
        f"From {100 * before['accuracy']['before']['value']:.1f} % and {words:.2f} words:\n\n" + "\n".join(lines) + "\n"
    )


def label(arm: dict[str, Any]) -> str:
    """The learning rate, and λ if the method has one."""
    strength = arm["method"].get("strength")
    return f"{arm['optimiser']['learning_rate']:g}" + (f", λ {strength:g}" if strength is not None else "")


def read(folder: Path, name: str) -> Any:
    """A kept file."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def table(name: str, folder: Path) -> str:
    """One table of a page."""
    kind, _, rest = name.partition("-")
    if kind == "claims":
        return claims.table(rest, folder)
    try:
        special = {
            "edges": edges,
            "stability": stability,
            "parts": parts,
            "turns": turns,
            "besides": besides,
            "teachers": teachers,
            "boilerplate": boilerplate,
        }
        if kind in special:
            return special[kind](rest, folder)
        result = read(folder, name)
        if name.endswith("-tune"):
            return tune(result, read(folder, f"{name.removesuffix('-tune')}-chosen"))
        return claims.pass_table(result) if name.endswith("-pass") else final(result)
    except FileNotFoundError:
        return "*Not run.*\n"


def filled(page: str, folder: Path) -> str:
    """The page with its tables filled from the results."""
    return TABLE.sub(lambda match: f"{match[1]}{table(match[2], folder)}{match[3]}", page)


def main() -> None:
    """Rewrite the pages, or with ``--check`` fail if one is not up to date."""
    for page, folder in PAGES.items():
        text = page.read_text(encoding="utf-8")
        if "--check" not in sys.argv[1:]:
            page.write_text(filled(text, folder), encoding="utf-8")
        elif filled(text, folder) != text:
            sys.exit(f"{page.name} is not what {folder.name}/ says: run {Path(__file__).name}")


if __name__ == "__main__":
    main()
