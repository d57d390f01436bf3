"""The papers' claims as differences of kept comparisons, with verdicts that follow from their intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from selfdistill.comparison.analysis import MARGIN
from selfdistill.comparison.kept import kept_values
from selfdistill.evaluation.intervals import SeedEstimate, over_seeds, t_quantile
from selfdistill.evaluation.statistics import pass_per_problem
from selfdistill.report import numbers

Result = dict[str, Any]
Measure = Callable[[Result, int], SeedEstimate]
"""Takes a kept comparison and the number of claims that hold together. Raises NotRun if an arm is missing."""


class NotRun(Exception):
    """An arm, or what a claim reads of it, is not in a kept comparison."""


@dataclass(frozen=True)
class Claim:
    """``measure`` of the kept file ``name`` lies above 0, below 0, or not below −2 points."""

    text: str
    name: str
    measure: Measure
    expected: Literal["above", "below", "not below"]
    unit: Literal["points", "words", "steps"] = "points"


def arm_of(result: Result, name: str) -> Result:
    """The arm of a comparison. Raises NotRun if it has not been trained."""
    found = [arm for arm in result["arms"] if arm["name"] == name]
    if not found:
        raise NotRun(name)
    arm: Result = found[0]
    return arm


def lead(arm: str, rival: str, measure: str = "accuracy") -> Measure:
    """The difference of two arms' final test results, paired per problem and seed."""

    def of(result: Result, family: int) -> SeedEstimate:
        one, other = (_tested(result, name, measure, -1) for name in (arm, rival))
        return _paired(result, one, other, family)

    return of


def change(arm: str, measure: str = "accuracy") -> Measure:
    """The difference of an arm's test results after and before training, paired per problem and seed."""
    return lambda result, family: _paired(
        result, _tested(result, arm, measure, -1), _tested(result, arm, measure, 0), family
    )


def late_change(arm: str) -> Measure:
    """The change over the last third of training on the validation split, paired per problem and seed."""

    def of(result: Result, family: int) -> SeedEstimate:
        trained = arm_of(result, arm)
        runs = list(zip(trained["results"], trained["accuracy"]["late_steps"], strict=True))
        early, late = ([kept_values(kept, "accuracy", steps[end]) for kept, steps in runs] for end in (0, 1))
        return _paired(result, late, early, family)

    return of


def sooner(arm: str) -> Measure:
    """The restricted mean of an arm's steps to the baseline's final accuracy, minus the baseline's own.

    A single seed has no interval: there is one number a seed.
    """

    def of(result: Result, family: int) -> SeedEstimate:
        sampling = result["terms"]["sampling"]
        reach = arm_of(result, arm)["reach"]
        if reach is None or reach["against_baseline"] is None:
            raise NotRun(f"{arm} has fewer than two seeds, or was not read at the baseline's budget")
        size = {"completions": sampling["prompts"] * sampling["completions"], "steps": 1}[reach["unit"]]
        score = {key: reach["against_baseline"][key] / size for key in ("value", "sd", "error")}
        # One number a seed has one candidate for its error, so the interval of another family has the same error.
        return widened({**reach["against_baseline"], **score}, family)

    return of


def pass_lead(arm: str, k: int) -> Measure:
    """The difference of pass@k from the baseline, paired per problem and seed."""

    def of(kept: Result, family: int) -> SeedEstimate:
        rows = [passes(kept, name, k) for name in (arm, kept["baseline"])]
        pairs = [[a - b for a, b in zip(*seed, strict=True)] for seed in zip(*rows, strict=True)]
        return over_seeds(pairs, k=k, shared=kept["shared_problems"], family=family, bounds=(-1.0, 1.0))

    return of


def passes(kept: Result, arm: str, k: int) -> list[list[float]]:
    """pass@k of every problem, seed by seed. Raises NotRun if the arm has not been drawn from."""
    if arm not in kept["hits"]:
        raise NotRun(arm)
    n = kept["samples"]
    tables = [[[True] * right + [False] * (n - right) for right in row] for row in kept["hits"][arm].values()]
    return [list(map(float, pass_per_problem(table, k))) for table in tables]


def _tested(result: Result, name: str, measure: str, index: int) -> list[list[float]]:
    """The test results of an arm's runs, before training (0) or after it (−1)."""
    return [
        kept_values(kept, measure, kept["test"]["steps"][index], split="test")
        for kept in arm_of(result, name)["results"]
    ]


def _paired(result: Result, one: list[list[float]], other: list[list[float]], family: int) -> SeedEstimate:
    pairs = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]
    shared = result["interval"]["shared_problems"]
    return over_seeds(pairs, k=result["samples"], shared=shared, family=family)


def widened(score: Result, family: int) -> SeedEstimate:
    """An interval of one number a seed, for another family. It may have been cut at the ends of the scale."""
    fields = {key: score[key] for key in ("value", "sd", "error", "freedom", "k", "n")}
    reach = score["error"] * t_quantile(1 - 0.05 / (2 * family), score["freedom"])
    return SeedEstimate(**fields, low=score["value"] - reach, high=score["value"] + reach, family=family)


AT_ONCE = ("countdown", "single", "toolbox")
CLAIMS: dict[str, list[Claim]] = {
    "self-distillation": [
        Claim("SD at λ = 0.5 deliberates less", "countdown-doses", change("sd-0.5", "deliberation"), "below", "words"),
        Claim("SD at λ = 0.5 ends below GRPO", "countdown-doses", lead("sd-0.5", "grpo"), "below"),
        Claim(
            "OPSD at 1e-4 deliberates less", "countdown-doses", change("opsd-1e-4", "deliberation"), "below", "words"
        ),
        Claim("OPSD at 1e-4 ends below GRPO", "countdown-doses", lead("opsd-1e-4", "grpo"), "below"),
    ],
    "antisd": [
        *(
            Claim(f"as published ends above GRPO, {task}", f"{task}-final", lead("antisd-published", "grpo"), "above")
            for task in AT_ONCE
        ),
        *(
            Claim(f"reaches GRPO's end sooner, {task}", f"{task}-final", sooner("antisd-published"), "below", "steps")
            for task in AT_ONCE
        ),
        *(
            Claim(f"without its gate falls late, {task}", f"{task}-final", late_change("antisd-ungated"), "below")
            for task in ("countdown", "single")
        ),
        Claim(
            "continued from GRPO ends above GRPO continued, countdown",
            "countdown-continued",
            lead("antisd-published", "grpo"),
            "above",
        ),
        Claim("leads GRPO in pass@32, countdown", "countdown-pass", pass_lead("antisd-published", 32), "above"),
    ],
    "purified": [
        Claim(
            "at 1e-4 deliberates more than OPSD, countdown",
            "countdown-doses",
            lead("purified-1e-4", "opsd-1e-4", "deliberation"),
            "above",
            "words",
        ),
        Claim("at 1e-4 ends above OPSD, countdown", "countdown-doses", lead("purified-1e-4", "opsd-1e-4"), "above"),
        Claim("tuned gains, countdown", "countdown-final", change("purified"), "above"),
        Claim("tuned gains, toolbox", "toolbox-final", change("purified"), "above"),
    ],
    "credit": [
        Claim("tuned ends above SDPO, toolbox", "toolbox-final", lead("credit", "sdpo"), "above"),
        *(
            Claim(f"at λ = {value} ends below SDPO, toolbox", "toolbox-doses", lead(f"credit-{value}", base), "below")
            for base in ("sdpo-4e-4",)
            for value in ("0.5", "1", "2")
        ),
    ],
    "pbsd": [
        *(
            Claim(f"tuned ends above {rival}, {task}", f"{task}-final", lead("pbsd", rival), "above")
            for task in ("countdown", "toolbox")
            for rival in ("opsd", "sdpo", "purified")
        ),
        Claim("at 1e-4 ends above OPSD, countdown", "countdown-doses", lead("pbsd-1e-4", "opsd-1e-4"), "above"),
        *(
            Claim(f"tuned does not fall late, {task}", f"{task}-final", late_change("pbsd"), "not below")
            for task in ("countdown", "toolbox")
        ),
    ],
}
"""Each paper's claims; those of one paper hold together."""


def verdict(score: SeedEstimate, claim: Claim) -> str:
    """What the interval says about the claim. An interval of a single seed covers no other, and the verdict says so."""
    if not score.error:
        return "no spread"
    where = ", in this one seed" if score.sd is None else ""
    return f"{_word(score, claim)}{where}"


def _word(score: SeedEstimate, claim: Claim) -> str:
    if claim.expected == "not below":
        return "**seen**" if score.low > -MARGIN else "the opposite" if score.high < 0 else "not shown"
    sign = 1.0 if claim.expected == "above" else -1.0
    low, high = sorted((sign * score.low, sign * score.high))
    if low > 0:
        return "**seen**"
    if high < 0:
        return "the opposite"
    same = claim.unit == "points" and score.equal_within(MARGIN)
    return f"equal within {100 * MARGIN:g} points" if same else "not seen"


def table(paper: str, folder: Path) -> str:
    """One row for each claim of a paper: the estimate with its interval, and the verdict that follows from it."""
    claims = CLAIMS[paper]
    lines = [
        f"The intervals of this table hold together at 95 % (Bonferroni, {len(claims)} claims). *No spread*: all "
        "values are equal, and no error can be estimated from them.\n",
        "| the paper's claim | measured | SD over seeds | here |",
        "|---|---|---|---|",
    ]
    for claim in claims:
        path = folder / f"{claim.name}.json"
        try:
            score = claim.measure(json.loads(path.read_text(encoding="utf-8")), len(claims))
        except (FileNotFoundError, NotRun):
            lines.append(f"| {claim.text} | not run | | |")
            continue
        text, sd = words(score, claim.unit)
        lines.append(f"| {claim.text} | {text} | {sd} | {verdict(score, claim)} |")
    return "\n".join(lines) + "\n"


def words(score: SeedEstimate, unit: str) -> tuple[str, str]:
    """The estimate with its interval, and its standard deviation over seeds."""
    size, decimals = (100.0, 1) if unit == "points" else (1.0, 2 if unit == "words" else 1)
    value, low, high = (numbers.signed(size * x, decimals=decimals) for x in (score.value, score.low, score.high))
    sd = "" if score.sd is None or math.isnan(score.sd) else f"{size * score.sd:.{decimals}f}"
    return f"{value} {unit} [{low}, {high}]", sd


def pass_table(kept: Result) -> str:
    """pass@k of every arm over k, with its lead over the baseline."""
    sizes = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= kept["samples"]]
    arms: Sequence[str] = list(kept["hits"])
    family = max(1, len(arms) - 1)
    lines = [
        f"{kept['samples']} completions a problem. The differences of a column hold together (Bonferroni, {family}).\n",
        f"| arm | {' | '.join(f'pass@{k}' for k in sizes)} |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for arm in arms:
        shared = kept["shared_problems"]
        levels = [over_seeds(passes(kept, arm, k), k=k, shared=shared, bounds=(0.0, 1.0)) for k in sizes]
        cells = [f"{100 * level.value:.1f} % [{100 * level.low:.1f}, {100 * level.high:.1f}]" for level in levels]
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
        if arm != kept["baseline"]:
            leads = [words(pass_lead(arm, k)(kept, family), "points")[0].replace(" points", "") for k in sizes]
            lines.append(f"| against `{kept['baseline']}` | {' | '.join(leads)} |")
    return "\n".join(lines) + "\n"
