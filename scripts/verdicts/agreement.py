"""The table of agreement with a careful reader, which docs/verdicts.md has for every kind of task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def agreement(right: Sequence[bool], arguable: Sequence[bool], judges: Mapping[str, Sequence[bool]]) -> str:
    """Return a Markdown table with one row per judge: agreements with the reader, right refused, wrong accepted.

    Args:
        right: the reader's verdict on each case.
        arguable: whether readers differ on a case; such cases are counted in no column.
        judges: name → the judge's verdict on each case.
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
