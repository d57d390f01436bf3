"""The tables of docs/results-2026-11-21.md, from the kept ``compare.json`` files: ``python experiments/tables.py [--check]``.

A table is written between ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is a file of experiments/results/.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from selfdistill.report import numbers

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "results-2026-11-21.md"
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


def restricted(arm: dict[str, Any], baseline: str) -> str:
    """Restricted mean of the steps to the baseline's final accuracy: ``15 (2 of 3 seeds; −1.5 [−4.0, +1.0])``."""
    reach_of_arm = arm["reach"]
    seeds = f"{reach_of_arm['reached']} of {reach_of_arm['of']} seeds"
    if arm["name"] == baseline or reach_of_arm["against_baseline"] is None:
        return f"{reach_of_arm['mean']['step']:.3g} ({seeds})"
    value, low, high = (
        numbers.signed(reach_of_arm["against_baseline"][key], decimals=1) for key in ("value", "low", "high")
    )
    return f"{reach_of_arm['mean']['step']:.3g} ({seeds}; {reach_of_arm['unit']} {value} [{low}, {high}])"


def final(result: dict[str, Any]) -> str:
    """One row per arm: accuracy, gain and difference from the baseline with deviations, steps to its end, budget."""
    if result["interval"].get("kind") != "t":
        return bootstrapped(result)
    baseline, accuracy = result["baseline"], result["arms"][0]["accuracy"]
    lines = [
        f"All from {share(accuracy['before'])}{deviation(accuracy['before'])}, {result['verdict_split']} problems, "
        f"equal {result['match']}. Gains and differences of a column hold together (Bonferroni, "
        f"{len(result['arms'])} arms).\n",
        f"| arm | rate | steps | final | gain | against `{baseline}` | late change | steps to `{baseline}`'s end, "
        "restricted mean | deliberation words | tokens drawn, scored, trained |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in result["arms"]:
        accuracy, words = arm["accuracy"], arm["deliberation"]
        budgets = [run["budget"] for run in arm["runs"]]
        spent = [sum(sum(budget[kind].values()) for budget in budgets) / len(budgets) for kind in ("drawn", "scored")]
        spent.append(sum(budget["trained"] for budget in budgets) / len(budgets))
        gap = accuracy["against_baseline"]
        cells = [
            f"`{arm['name']}`",
            f"{arm['optimiser']['learning_rate']:g}",
            ", ".join(dict.fromkeys(str(run["steps"]) for run in arm["runs"])),
            share(accuracy["final"]) + deviation(accuracy["final"]),
            difference(accuracy["change"]) + deviation(accuracy["change"]),
            difference(gap) + deviation(gap) + (" equal" if gap is not None and gap["equal"] else ""),
            difference(accuracy["late_change"]),
            restricted(arm, baseline),
            f"{words['before']['value']:.2f} → {words['final']['value']:.2f}",
            ", ".join(map(numbers.compact, spent)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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


def table(name: str) -> str:
    """The table of one kept comparison."""
    result = json.loads((HERE / "results" / "2026-11-21" / f"{name}.json").read_text(encoding="utf-8"))
    if name.endswith("-tune"):
        chosen = (HERE / "results" / "2026-11-21" / f"{name.removesuffix('-tune')}-chosen.json").read_text(
            encoding="utf-8"
        )
        return tune(result, json.loads(chosen))
    return final(result)


def filled(page: str) -> str:
    """The page with its tables filled from the results."""
    return TABLE.sub(lambda match: f"{match[1]}{table(match[2])}{match[3]}", page)


def main() -> None:
    """Rewrite the page, or with ``--check`` fail if it is not up to date."""
    page = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        sys.exit(
            0
            if filled(page) == page
            else f"{PAGE.name} is not what experiments/results/ says: run {Path(__file__).name}"
        )
    PAGE.write_text(filled(page), encoding="utf-8")


if __name__ == "__main__":
    main()
