"""The documentation's pictures: strips of tokens in the reports' colours, and one of each method."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs_site.gain import gain_picture, values
from docs_site.strips import SIGN, WIDTH, Strip, draw
from selfdistill.methods import METHODS
from selfdistill.report.tokens import Piece

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
SVG = "{http://www.w3.org/2000/svg}"


def tokens(picture: str) -> list[ElementTree.Element]:
    return [one for one in ElementTree.fromstring(picture).iter(f"{SVG}text") if "token" in one.get("class", "")]


def test_a_token_has_the_colour_of_its_side_and_the_strength_of_its_size() -> None:
    pieces = [
        Piece("", "up"),
        Piece(" ", "half"),
        Piece(" ", "zero"),
        Piece(" ", "none"),
        Piece(" ", "<end>", unseen=True),
    ]
    picture = draw("A & B", ("down", "up"), [Strip("a < b", pieces, [2.0, -1.0, 0.0, math.nan, -2.0])], " nats")
    root = ElementTree.fromstring(picture)
    coloured = [
        (one.get("class"), one.get("fill-opacity")) for one in root.iter(f"{SVG}rect") if one.get("fill-opacity")
    ]
    assert coloured == [("p", "1"), ("n", "0.5"), ("n", "1")]
    assert root.get("aria-label") == "A & B"
    words = ["".join(one.itertext()) for one in root.iter(f"{SVG}text")]
    assert {"a < b", "−2 nats", "+2 nats", "down", "up"} <= {*words}
    assert [one.findtext(f"{SVG}title") for one in tokens(picture)] == ["+2", "−1", "+0", None, "−2"]
    assert tokens(picture)[4].get("class") == "token unseen"


def test_a_long_completion_goes_on_in_the_next_line_and_none_is_drawn_outside() -> None:
    pieces = [Piece("" if place == 0 else " ", "x" * 10) for place in range(20)]
    placed = [
        (float(one.get("x", "")), float(one.get("y", "")))
        for one in tokens(draw("long", ("", ""), [Strip("", pieces, [1.0] * 20)]))
    ]
    assert max(x for x, _ in placed) + 10 * SIGN < WIDTH
    assert [y for _, y in placed] == sorted(y for _, y in placed)
    assert len({y for _, y in placed}) == 3  # 88 units a token and 720 in a line: eight of twenty in each


def test_every_token_needs_a_number() -> None:
    with pytest.raises(ValueError, match="shorter"):
        draw("", ("", ""), [Strip("", [Piece("", "a"), Piece("", "b")], [1.0])])


@pytest.mark.parametrize("name", [*METHODS, "u"])
def test_every_method_has_a_picture_that_stands_alone(name: str) -> None:
    picture = (PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    assert len(tokens(picture)) > 20
    assert ElementTree.fromstring(picture).get("aria-label")
    assert not re.search(r"(?:href|src)=|url\((?!#)", picture)
    assert "prefers-color-scheme: dark" in picture


def test_the_optimum_is_better_than_the_teacher_by_their_divergence_times_beta() -> None:
    for beta in (0.05, 0.5, 5.0):
        best, own, gap = values(beta)
        # By hand: β log Σ T e^(r/β), with one right answer of ten.
        assert best == pytest.approx(beta * math.log(0.9 + 0.1 * math.exp(1 / beta)), abs=1e-12)
        assert own == pytest.approx(0.1, abs=1e-12) and best - own == pytest.approx(gap, abs=1e-12) and gap > 0
    kept = (PICTURES / "gain.svg").read_text(encoding="utf-8")
    drawn, shown = (re.findall(r"<title>.*</title>|points=.*", picture) for picture in (gain_picture(), kept))
    assert drawn == shown and len(drawn) > 40
