"""How often a judge agrees with a careful reader: the table that every kind of task has in docs/verdicts.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def agreement(right: Sequence[bool], arguable: Sequence[bool], judges: Mapping[str, Sequence[bool]]) -> str:
    """A Markdown table with one row a judge: agreements with the reader, right refused, wrong accepted.

    Args:
        right: what the reader says of each case.
        arguable: cases of which readers differ; they are counted in no column.
        has_verifier: name → the judge's verdict on each case.
    """
    clear = [reader for reader, open_ in zip(right, arguable, strict=True) if not open_]
    lines = [
        f"{len(clear)} cases, {sum(clear)} of them right; {len(right) - len(clear)} more are arguable and not counted.",
        "",
        "| judge | agrees with the reader | refuses what is right | accepts what is wrong |",
        "|---|---|---|---|",
    ]
    for name, verdicts in judges.items():
        pairs = [(r, v) for r, v, open_ in zip(right, verdicts, arguable, strict=True) if not open_]
        agrees = sum(r == v for r, v in pairs)
        refused, accepted = sum(r and not v for r, v in pairs), sum(v and not r for r, v in pairs)
        lines.append(f"| {name} | {agrees} of {len(pairs)} ({agrees / len(pairs):.1%}) | {refused} | {accepted} |")
    return "\n".join(lines)
