"""The picture of PBSD's optimum: how much better π* is than the teacher T, over β."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from docs_site.strips import WIDTH, style
from selfdistill.objectives.analysis import regularised_value, reward_tilted
from selfdistill.objectives.divergence import reverse_kl

ANSWERS = 10
"""Equally likely answers of the teacher, of which one is right: reward 1, the others 0."""
LOWEST, HIGHEST, PLACES = 0.05, 5.0, 41
HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 260.0, 60.0, WIDTH - 150.0, 24.0, 210.0


def values(beta: float) -> tuple[float, float, float]:
    """The regularised values of π* and of T, and β · KL(T‖π*), which is their difference."""
    teacher_N = torch.full((ANSWERS,), -math.log(ANSWERS), dtype=torch.float64)
    rewards_N = torch.zeros(ANSWERS, dtype=torch.float64)
    rewards_N[0] = 1.0
    best_N = reward_tilted(teacher_N, rewards_N, beta=beta)
    best, own = (float(regularised_value(policy, teacher_N, rewards_N, beta=beta)) for policy in (best_N, teacher_N))
    return best, own, beta * float(reverse_kl(teacher_N[None], best_N[None])[0])


def gain_picture() -> str:
    """Return an SVG with the curves of π* and T over β on a logarithmic axis; each point's title has its numbers."""
    betas = [LOWEST * (HIGHEST / LOWEST) ** (place / (PLACES - 1)) for place in range(PLACES)]
    points = [(beta, *values(beta)) for beta in betas]

    def x(beta: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log(beta / LOWEST) / math.log(HIGHEST / LOWEST)

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * value

    def line(pick: Callable[[tuple[float, float, float, float]], float], side: str) -> str:
        places = " ".join(f"{x(point[0]):.1f},{y(pick(point)):.1f}" for point in points)
        return f'<polyline class="line {side}" points="{places}"/>'

    def text(left: float, top: float, words: str, where: str = "start") -> str:
        return f'<text class="soft" x="{left:g}" y="{top:g}" text-anchor="{where}">{words}</text>'

    dots = [
        f'<circle class="more" cx="{x(beta):.1f}" cy="{y(best):.1f}" r="3">'
        f"<title>β {beta:.3g}: π* {best:.4f}, T {own:.4f}, β KL(T‖π*) {gap:.4f}</title></circle>"
        for beta, best, own, gap in points
    ]
    title = "The regularised value of π* lies above that of the teacher by β KL(T‖π*), at every β"
    axes = f"M{LEFT:g} {TOP:g}V{BOTTOM:g}H{RIGHT:g}"
    labels = [
        *(text(LEFT - 8, y(value) + 4, f"{value:g}", "end") for value in (0.0, 0.5, 1.0)),
        *(text(x(beta), BOTTOM + 18, f"{beta:g}", "middle") for beta in (0.05, 0.2, 1.0, 5.0)),
        text((LEFT + RIGHT) / 2, BOTTOM + 38, "β", "middle"),
        text(RIGHT + 10, y(points[-1][1]) - 6, "π* ∝ T exp(r/β)"),
        text(RIGHT + 10, y(points[-1][2]) + 14, "T, right in 10 %"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT:g}" width="{WIDTH}" '
        f'height="{HEIGHT:g}" role="img" aria-label="{title}">\n<title>{title}</title>\n'
        f"<style>{style()}\n.line {{ fill: none; stroke-width: 2; }} .more {{ fill: var(--more); }} "
        ".line.more { fill: none; stroke: var(--more); } .line.less { stroke: var(--less); } "
        ".axes { fill: none; stroke: var(--line); }</style>\n"
        f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1:g}" rx="10"/>\n'
        f'<path class="axes" d="{axes}"/>\n{line(lambda point: point[1], "more")}\n'
        f"{line(lambda point: point[2], 'less')}\n" + "\n".join([*dots, *labels]) + "\n</svg>\n"
    )
