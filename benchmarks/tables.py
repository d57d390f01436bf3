"""Write the tables of docs/performance.md and docs/scaling.md from the JSON in benchmarks/results.

    python benchmarks/tables.py

What stands between ``<!-- table: NAME -->`` and ``<!-- end -->`` is made anew, nothing else is touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import sizing
from processes import RESULTS
from selfdistill.models.sizing import Device, Work

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/performance.md", "docs/scaling.md", "docs/models.md")
Found = Mapping[str, Any]
"""What a benchmark has left, as JSON."""
_PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, results: Path = RESULTS) -> str:
    """A page with its tables made anew."""

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n{table(match[2], results)}\n\n{match[3]}"

    return _PLACE.sub(made, page)


def rows(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = "|".join("---" for _ in header)
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)])


def origin_line(found: Found) -> str:
    """When and on what a result was measured."""
    machine, versions = found["machine"], found["versions"]
    used = ", ".join(f"{name} {version}" for name, version in versions.items() if version and name != "selfdistill")
    return (
        f"Measured on {found['date']}: {machine['system']} on {machine['architecture']}, {machine['cpus']} cores, "
        f"no GPU, {found['threads']} thread{'s' if found['threads'] > 1 else ''} a process; {used}."
    )


LOSS_PATHS = {
    "ours": "ours",
    "compiled": "ours, compiled",
    "naive": "plain PyTorch",
    "trl": "TRL chunked",
    "liger": "Liger fused",
}


def loss(found: Found) -> str:
    """Memory and time of every path, size and number of contexts."""
    lines = [
        (
            f"{case['tokens']:,}",
            case["divergence"].replace("_", " "),
            str(case["contexts"]),
            LOSS_PATHS[case["path"]],
            f"{case['added_mib'] / 1024:.2f} GiB" if "added_mib" in case else f"{case['outcome']}",
            f"{case['seconds']:.1f} s" if "seconds" in case else "–",
            f"{case['cpu_seconds']:.1f} s" if "cpu_seconds" in case else "–",
            f"{case['apart']:.0e}" if "apart" in case else "–",
        )
        for case in sorted(found["cases"], key=_order)
    ]
    header = ("tokens", "divergence", "contexts", "path", "memory", "time", "processor time", "apart from ours")
    return f"{origin_line(found)}\n\n{rows(header, lines)}"


def _order(case: Mapping[str, Any]) -> tuple[Any, ...]:
    return case["tokens"], case["divergence"], case["contexts"], [*LOSS_PATHS].index(case["path"])


def loss_bars(found: Found) -> str:
    """What the loss path was to reach."""
    lines = []
    for bar in found["bars"]:
        value = "not measured" if bar["value"] is None else f"{bar['value']:.2g}"
        lines.append((bar["bar"], f"at most {bar['most']:g}", value, _said(bar["reached"])))
    return rows(("bar", "to reach", "measured", "reached"), lines)


def step(found: Found) -> str:
    """A whole step of SDPO beside TRL's."""
    ours, theirs = found["sides"]["ours"], found["sides"]["trl"]
    lines = [(name, *(f"{side['phases'][name]:.2f} s" for side in (ours, theirs))) for name in ours["phases"]]
    lines.append(("**a step**", f"**{ours['seconds']:.2f} s**", f"**{theirs['seconds']:.2f} s**"))
    lines.append(("processor time", f"{ours['cpu_seconds']:.2f} s", f"{theirs['cpu_seconds']:.2f} s"))
    lines.append(("memory added", *(f"{side['memory_mib']['added']:.0f} MiB" for side in (ours, theirs))))
    tokens = (f"{side['work']['tokens trained']:.0f}" for side in (ours, theirs))
    lines.append(("tokens trained", *tokens))
    rounds = ", ".join(f"{ratio:.2f}" for ratio in found["ratio"]["seconds_by_round"])
    checks = "\n".join(f"- {name}: {_said(held)}" for name, held in found["checks"].items())
    return (
        f"{origin_line(found)}\n\n{rows(('', 'ours', 'TRL'), lines)}\n\n"
        f"**{found['ratio']['seconds']:.2f} times as fast** (by round: {rounds}; in processor time "
        f"{found['ratio']['cpu_seconds']:.2f}).\n\n{checks}"
    )


def scoring(found: Found) -> str:
    """A group of completions under one prompt, three ways."""
    kinds = ("without gradient", "with gradient")
    ways = found[kinds[0]]["seconds"]
    lines = [(way, *(f"{found[kind]['seconds'][way]:.2f} s" for kind in kinds)) for way in ways]
    lines.append(("**ratio of first and last**", *(f"**{found[kind]['ratio']:.2f}**" for kind in kinds)))
    lines.append(("in processor time", *(f"{found[kind]['ratio_of_processor_seconds']:.2f}" for kind in kinds)))
    work = found["workload"]
    checks = "\n".join(f"- {name}: {_said(held)}" for name, held in found["checks"].items())
    return (
        f"{origin_line(found)} {work['group']} completions of {work['completion']} tokens under one prompt of "
        f"{work['prompt']}; a model of {work['layers']} layers, {work['hidden']} wide.\n\n"
        f"{rows(('', *kinds), lines)}\n\n{checks}"
    )


def sampling(found: Found) -> str:
    """Tokens a second of our sampler beside its peers, by model and rows."""
    sides = {"ours": "ours", "generate": "`generate`", "vllm": "vLLM"}
    peers = [side for side in sides if side != "ours"]
    lines = []
    for case in found["cases"]:
        rates = [f"{case['tokens_a_second'][side]:.0f}" if side in case["tokens_a_second"] else "–" for side in sides]
        over = [f"{case['over'][peer]:.2f}" if peer in case["over"] else "–" for peer in peers]
        behind = ", ".join(sides[peer] for peer in case["behind"]) or "–"
        lines.append((case["model"], str(case["rows"]), *rates, *over, behind))
    header = ("model", "rows", *sides.values(), *(f"ours over {sides[peer]}" for peer in peers), "behind by a third")
    work, outcomes = found["workload"], []
    for side, words in sides.items():
        versions, outcome = found["sides"][side]["versions"], found["sides"][side]["outcome"]
        used = ", ".join(f"{name} {version}" for name, version in versions.items()) if versions else outcome
        outcomes.append(f"{words}: {used}")
    return (
        f"{origin_line(found)} Of the sides, {'; '.join(outcomes)}. Prompts of up to {work['prompt']} tokens, "
        f"completions of {work['tokens']}; tokens a second.\n\n{rows(header, lines)}"
    )


def overhead(found: Found) -> str:
    """A step of each method over GRPO's."""
    lines = []
    for case, methods in found["cases"].items():
        for row in methods:
            bar = ("", "") if row["most"] is None else (f"at most {row['most']:g}", _said(row["reached"]))
            ratios = [f"{row[name]:.2f}" for name in ("ratio", "ratio_as_timed", "ratio_of_processor_seconds")]
            share = f"{row['sampling_share']:.0%}"
            lines.append((case, row["method"], f"{row['seconds']:.2f} s", share, *ratios, *bar))
    header = (
        "completions",
        "method",
        "a step",
        "sampling",
        "over GRPO",
        "as timed",
        "in processor time",
        "to reach",
        "reached",
    )
    return f"{origin_line(found)}\n\n{rows(header, lines)}"


def sizing_check(found: Found) -> str:
    """The terms of memory of a small model, measured and computed."""
    terms = {name: (one["measured_mib"], one["computed_mib"]) for name, one in found["terms"].items()}
    return f"{origin_line(found)}\n\n{_beside(terms, 'term', '.0f', 'MiB')}"


def sizing_speed(found: Found) -> str:
    """Seconds of small models, measured and computed at all of the machine's rates."""
    speed = found["speed"]
    cases = {name: (one["measured"], one["computed"]) for name, one in speed["seconds"].items()}
    return (
        f"{origin_line(found)} Its rates: {speed['operations_a_second'] / 1e9:.0f} billion operations and "
        f"{speed['bytes_a_second'] / 1e9:.0f} billion bytes a second.\n\n{_beside(cases, 'case', '.2f', 's')}"
    )


def _beside(cases: Mapping[str, tuple[float, float]], what: str, form: str, unit: str) -> str:
    lines = [
        (name, f"{measured:{form}} {unit}", f"{computed:{form}} {unit}", f"{computed / measured:.2f}")
        for name, (measured, computed) in cases.items()
    ]
    return rows((what, "measured", "computed", "computed / measured"), lines)


def sizing_table() -> str:
    """The sizing table; it depends on no measurement."""
    work, device = Work(), Device()
    return sizing.table(list(sizing.SHAPES), [8, 16, 64], copies=1, work=work, device=device)


def startup(found: Found) -> str:
    """Seconds until a command has printed its help or refused a config, and their ratio to those of another tool."""
    seconds = found["seconds"]
    other = next((name for name in ("`trl --help`", "`transformers --help`") if name in seconds), None)
    lines = [
        (name, f"{taken:.2f} s", f"{taken / seconds[other]:.2f}" if other else "–") for name, taken in seconds.items()
    ]
    said = f"Measured on {found['date']}, the median of {found['times']} starts in turn.\n\n"
    return said + rows(("what", "seconds", f"over {other or 'nothing'}"), lines)


def episodes(found: Found) -> str:
    """Episodes a second beside single answers, and beside those of which every turn is read again."""
    lines = []
    for name, task in found["tasks"].items():
        for way, said in task["said"].items():
            seconds = median(each[way] for each in task["seconds"])
            ratio = "" if way == "episodes" else f"{task['ratios'][way]:.2f}"
            turns, own = said["turns"] / said["rows"], said["own"] / said["rows"]
            lines.append((name, way, f"{turns:.2f}", f"{own:.0f}", f"{said['rows'] / seconds:.1f}", ratio))
    work = f"{found['problems']} × {found['completions']} rows at once, the median of {found['rounds']} rounds."
    header = ("task", "what", "turns", "tokens of the model's own", "a second", "episodes a second over it")
    return f"{origin_line(found)} {work}\n\n" + rows(header, lines)


TABLES: Mapping[str, tuple[str, Callable[[Found], str]]] = {
    "loss": ("loss", loss),
    "loss-bars": ("loss", loss_bars),
    "step": ("step", step),
    "scoring": ("scoring", scoring),
    "overhead": ("overhead", overhead),
    "sampling": ("sampling", sampling),
    "episodes": ("episodes", episodes),
    "startup": ("startup", startup),
    "sizing-check": ("sizing", sizing_check),
    "sizing-speed": ("sizing", sizing_speed),
}
"""Which result a table is made of, and how."""


COMPUTED: Mapping[str, Callable[[], str]] = {
    "sizing": sizing_table,
    "sizing-state": sizing.state_table,
    "hardware": sizing.hardware_table,
    "cards": sizing.cards_table,
}
"""Tables that depend on no measurement."""


def table(name: str, results: Path) -> str:
    """A table, or a word where its result is missing."""
    if name in COMPUTED:
        return COMPUTED[name]()
    result, made = TABLES[name]
    file = results / f"{result}.json"
    return made(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else "Not measured yet."


def _said(reached: bool | None) -> str:
    return {True: "yes", False: "**no**", None: "–"}[reached]


def main() -> None:
    """Rewrite the pages."""
    for name in PAGES:
        page = ROOT / name
        if page.is_file():
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
