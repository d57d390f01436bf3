"""Completions as coloured strips in one self-contained SVG, which follows the reader's light or dark scheme.

Colours and strengths are those of the report pages, from the same style sheet and the same tint function.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from selfdistill.report.numbers import MINUS, printable
from selfdistill.report.tokens import Piece, scale_limit, tint

COLOURS = ("card", "ink", "soft", "line", "less", "more")
WIDTH = 760
SIDE = 20.0
SIGN = 8.0
"""Width of one character. Every token is stretched to it, so the layout is the same in any monospace font."""
LINE = 27.0
CAPTION = 30.0
ROOM = 2.5
"""Padding left and right of a token's text, inside its colour."""


@dataclass(frozen=True, slots=True)
class Strip:
    """One completion, a number for each of its tokens, and a caption above it. NaN has no colour."""

    caption: str
    pieces: Sequence[Piece]
    values: Sequence[float]


def draw(
    title: str, ends: tuple[str, str], strips: Sequence[Strip], unit: str = "", *, limit: float | None = None
) -> str:
    """Return an SVG of the strips below each other, over one scale whose ends are labelled ``ends``.

    ``limit`` is the value of full colour; None chooses it. A strip without tokens is a line of words.

    Raises:
        ValueError: a strip does not have one number per token.
    """
    limit = limit or scale_limit(value for strip in strips for value in strip.values if not math.isnan(value))
    parts: list[str] = []
    y = 18.0
    for strip in strips:
        parts.append(f'<text class="soft" x="{SIDE:g}" y="{y + 12:g}">{escape(strip.caption)}</text>')
        y += CAPTION
        bottom = y - 14
        for x, line, piece, value in _placed(strip):
            parts += _token(piece, x, y + LINE * line, value, limit)
            bottom = y + LINE * (line + 1)
        y = bottom + 14
    parts += _scale(y, limit, ends, unit)
    height = y + 38
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
        f'height="{height:g}" role="img" aria-label="{escape(title)}">\n<title>{escape(title)}</title>\n'
        f"<style>{style()}</style>\n"
        f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1:g}" rx="10"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _placed(strip: Strip) -> Iterator[tuple[float, int, Piece, float]]:
    """Yield every token with its x and its line number."""
    x, line = SIDE, 0
    for piece, value in zip(strip.pieces, strip.values, strict=True):
        width = SIGN * len(printable(piece.body)) + 2 * ROOM
        if "\n" in piece.before or (x + width > WIDTH - SIDE and x > SIDE):
            x, line = SIDE, line + 1
        yield x, line, piece, value
        x += width + (3.0 if piece.before else 1.0)


def _token(piece: Piece, x: float, y: float, value: float, limit: float) -> list[str]:
    side, strength = tint(None if math.isnan(value) else value, limit)
    body = printable(piece.body)
    width = SIGN * len(body)
    colour = (
        f'<rect class="{side}" x="{x:g}" y="{y:g}" width="{width + 2 * ROOM:g}" height="21" rx="3" '
        f'fill-opacity="{strength / 100:g}"/>'
        if strength
        else ""
    )
    unseen = " unseen" if piece.unseen else ""
    number = f"<title>{f'{value:+.3g}'.replace('-', MINUS)}</title>" if not math.isnan(value) else ""
    text = (
        f'<text class="token{unseen}" x="{x + ROOM:g}" y="{y + 15:g}" textLength="{width:g}" '
        f'lengthAdjust="spacingAndGlyphs">{number}{escape(body)}</text>'
    )
    return [colour + text]


def _scale(y: float, limit: float, ends: tuple[str, str], unit: str) -> list[str]:
    end = f"{limit:g}{unit}"
    stops = "".join(
        f'<stop offset="{offset}" class="stop-{name}"/>' for offset, name in ((0, "less"), (0.5, "card"), (1, "more"))
    )
    middle = WIDTH / 2
    return [
        f'<defs><linearGradient id="scale">{stops}</linearGradient></defs>',
        f'<rect x="{middle - 130:g}" y="{y:g}" width="260" height="20" rx="4" fill="url(#scale)"/>',
        f'<text class="end" x="{middle - 122:g}" y="{y + 14:g}">{MINUS}{end}</text>',
        f'<text class="end" x="{middle:g}" y="{y + 14:g}" text-anchor="middle">0</text>',
        f'<text class="end" x="{middle + 122:g}" y="{y + 14:g}" text-anchor="end">+{end}</text>',
        f'<text class="soft" x="{middle - 140:g}" y="{y + 14:g}" text-anchor="end">{escape(ends[0])}</text>',
        f'<text class="soft" x="{middle + 140:g}" y="{y + 14:g}">{escape(ends[1])}</text>',
    ]


def style() -> str:
    """Return the style sheet with the pages' colours for both schemes."""
    source = (resources.files("selfdistill.report") / "templates" / "page.css").read_text(encoding="utf-8")
    light, dark = (
        " ".join(
            f"--{name}: {value};" for name, value in re.findall(r"--([\w-]+):\s*([^;]+);", block) if name in COLOURS
        )
        for block in re.findall(r":root\s*\{([^}]*)\}", source)[:2]
    )
    return (
        f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        ".card { fill: var(--card); stroke: var(--line); } .p { fill: var(--more); } .n { fill: var(--less); }\n"
        "text { fill: var(--ink); font: 13px system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }\n"
        ".soft { fill: var(--soft); } .end { font-size: 12px; } .unseen { fill: var(--soft); }\n"
        ".token { font-family: ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; }\n"
        ".stop-less { stop-color: var(--less); } .stop-card { stop-color: var(--card); } "
        ".stop-more { stop-color: var(--more); }"
    )
