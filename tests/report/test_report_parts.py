"""The parts of a page: curves stand where arithmetic puts them, tokens find their text, numbers are rounded once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from selfdistill.cli.teachers import describe_gap
from selfdistill.errors import DataError
from selfdistill.files.jsonl import read_lines
from selfdistill.files.records import RolloutLine
from selfdistill.report import numbers
from selfdistill.report.axes import linear_axis, log_axis, step_axis, tick_words
from selfdistill.report.besides import besides_rows
from selfdistill.report.charts import Series, curve_chart, label_places, running_mean, thin
from selfdistill.report.files import outer_steps
from selfdistill.report.outcome import flat, headline
from selfdistill.report.tokens import Piece, align, choose, colour, said_before, scale_limit, tint
from selfdistill.types import Episode, Message, Turn


def line(step: int, **more: Any) -> RolloutLine:
    return RolloutLine(**{"example": "a", "prompt": "use 3", "text": "3", "step": step, **more})


def test_a_torn_last_line_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert list(read_lines(tmp_path / "torn.jsonl")) == [{"step": 1}]
    (tmp_path / "broken.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        list(read_lines(tmp_path / "broken.jsonl"))


def test_the_first_and_the_last_scored_step_are_kept() -> None:
    rows = [line(1), line(2, u=(0.1,)), line(2, u=(0.2,)), line(2), line(3, u=(0.3,)), line(4, u=(0.4,)), line(5)]
    assert outer_steps(rows).first_and_last() == ((rows[1], rows[2]), (rows[5],))
    assert outer_steps([line(1), line(2), line(3)]).first_and_last() == ((line(1),), (line(3),))
    assert outer_steps([]).first_and_last() == ((), ())


def test_a_correct_and_a_wrong_answer_to_one_problem_come_first() -> None:
    rewards = [("a", 0.0), ("a", 0.0), ("b", 1.0), ("b", 0.0), ("c", 1.0), ("c", 1.0)]
    rows = [
        line(1, example=example, reward=reward, correct=reward == 1, index=n)
        for n, (example, reward) in enumerate(rewards)
    ]
    assert [row.index for row in choose(rows, 4)] == [2, 3, 4, 0]
    assert [row.index for row in choose(rows, 6)] == [2, 3, 4, 0, 5, 1]


def test_tokens_find_their_spaces_again() -> None:
    assert align("wait so 24", ["wait", "so", "24", "<end>"]) == [
        Piece("", "wait"),
        Piece(" ", "so"),
        Piece(" ", "24"),
        Piece("", "<end>", unseen=True),
    ]
    assert align("a b\n\nc", [" a", " b", "\n\n", "c"]) == [
        Piece("", "a"),
        Piece("", " b"),
        Piece("", "\n\n"),
        Piece("", "c"),
    ]
    # Half an emoji is no text of its own: what cannot be aligned is shown as it was decoded.
    assert align("é!", ["\ufffd", "\ufffd", "!"]) == [Piece("", "\ufffd"), Piece("", "\ufffd"), Piece("", "!")]


def test_colour_is_linear_in_u_and_full_at_the_limit() -> None:
    assert [tint(u, 2.0) for u in (-4.0, -2.0, -0.5, 0.0, 0.5, 1.0, None)] == [
        ("n", 100),
        ("n", 100),
        ("n", 25),
        ("", 0),
        ("p", 25),
        ("p", 50),
        ("", 0),
    ]
    assert scale_limit([0.1 * place for place in range(-50, 51)]) == 4.8  # the 96th of 101 sizes 0, .1, .1, .2 …
    assert scale_limit([]) == scale_limit([0.0]) == 1.0


def test_values_that_do_not_fit_the_tokens_are_said_not_drawn() -> None:
    shown = colour(line(1, text="a b c", tokens=("a", "b", "c"), reward=0.5, u=(1.0,)), 1.0)
    assert shown.note == "u has 1 values for 3 tokens and is not shown."
    assert (shown.verdict, shown.reward, shown.total_u) == ("partly", "0.5", "")
    assert {token.side for token in shown.tokens} == {""}
    plain = colour(line(1, text="so 24"), 1.0)
    assert [token.piece for token in plain.tokens] == [Piece("", "so 24")]
    assert (plain.verdict, plain.reward) == ("unjudged", "–")


def test_what_an_environment_said_stands_before_the_next_turn() -> None:
    said = (Message("user", "<b>lower</b>"), Message("tool", "7"))
    turns = (Turn(2, "a b", messages=said, ids=(5,)), Turn(1, "c", messages=(Message("user", "the end"),)))
    episode = Episode((), turns, "done")
    assert said_before(episode) == {2: "user: <b>lower</b>\ntool: 7"}
    assert said_before(None) == {}
    shown = colour(line(1, text="a b c", tokens=("a", "b", "c"), episode=episode), 1.0)
    assert [token.said for token in shown.tokens] == ["", "", "user: <b>lower</b>\ntool: 7"]


def test_results_besides_are_told_with_intervals_and_damage_is_left_out() -> None:
    before = {"also": {"x": {"avg": {"value": 0.25, "low": 0.125, "high": 0.375}}, "damaged": None}}
    change = {"accuracy": {"value": 0.25, "low": -0.125, "high": 0.5}, "kl": 3}
    kl = {"kl": {"value": 0.0005, "low": 0.0}, "change": {"kl": {"value": 0.00025, "low": 0.0, "high": 0.0005}}}
    after = {"also": {"x": {"avg": {"value": 0.5, "low": 0.25, "high": 1.0}, "change": change}, "general": kl}}
    assert list(besides_rows(before, after)) == [
        ["x", "accuracy", "25.0% (12.5% to 37.5%)", "50.0% (25.0% to 100.0%)", "+25.0 points (−12.5 to +50.0)"],
        ["general", "KL from the start, nats a token", "–", "5.0e−04", "+2.5e−04 (0 to +5.0e−04)"],
    ]
    assert list(besides_rows({"also": 3}, {})) == []


def test_a_curve_stands_where_it_must() -> None:
    chart = curve_chart("length", [Series("a", [0, 1, 2], [0.0, 1.0, 4.0])], unit="tokens", size=(360, 190))
    # One-sign labels: the plot is 10 + 6.4 … 360 − 10 wide and 190 − 28 … 10 high; ticks 0 to 4.
    assert (chart.left, chart.right, chart.top, chart.bottom) == (16.4, 350, 10, 162)
    assert chart.drawn[0].path == "M16.4 162L183.2 124L350 10"
    assert chart.x_ticks == (("16.4", "0"), ("183.2", "1"), ("350", "2"))
    assert chart.y_ticks == (("162", "0"), ("124", "1"), ("86", "2"), ("48", "3"), ("10", "4"))
    assert chart.columns[1] == {"x": "183.2", "step": "1", "rows": [["a", "1.00", "124", "student"]]}
    assert chart.summary == "length (tokens): 0 at step 0, 4.00 at step 2"
    assert chart.change == "0 → 4.00"


def test_every_signed_format_leaves_out_the_sign_of_a_rounded_zero() -> None:
    source = Path(numbers.__file__).parents[1]
    signed = re.compile(r":\+,?\.\d+[fe]")
    assert [str(path) for path in source.rglob("*.py") if signed.search(path.read_text(encoding="utf-8"))] == []


def test_a_teacher_on_one_problem_has_intervals_without_width() -> None:
    alike = {"value": 0.5, "low": 0.5, "high": 0.5}
    gap: dict[str, Any] = dict.fromkeys(("student", "teacher", "gap", "shift_on_student", "shift_on_teacher"), alike)
    gap |= {"what": "solution", "weights": "base", "completions": 4, "problems": 1, "compatibility": None}
    gap |= {"per_token_on_student": -1e-9, "per_token_on_teacher": 0.25, "skipped": {}}
    told = list(describe_gap("teacher", gap))
    assert told[1] == "  right: student 0.500 [no spread], teacher 0.500 [no spread]"
    assert told[3].endswith("0.50 [no spread] nats a completion, 0.0000 a token")
    assert told[-1] == f"  {numbers.NO_SPREAD_NOTE}"


def test_the_word_of_a_mark_stands_where_no_curve_is() -> None:
    # Twelve by 26 units at the right end: a curve that ends low leaves the upper end free, and the other way round.
    ends = {"falls": [4.0, 0.0], "rises": [0.0, 4.0]}
    places = {
        name: curve_chart("x", [Series("a", [0, 2], y)], marks=[(2, "best")], size=(360, 190)).marks
        for name, y in ends.items()
    }
    assert places == {"falls": (("350", "20", "end", -5, "best"),), "rises": (("350", "156", "end", -5, "best"),)}
    # At the first step the word stands to the right, where no label of the axis is.
    first = curve_chart("x", [Series("a", [0, 2], [0.0, 4.0])], marks=[(0, "best")], size=(360, 190))
    assert first.marks == (("16.4", "20", "start", 5, "best"),)


def test_gaps_bands_points_and_stairs_stand_where_they_must() -> None:
    gaps = curve_chart("x", [Series("a", [0, 1, 2, 3, 4], [0.0, None, 4.0, 3.0, None])])
    assert gaps.drawn[0].path == "M16.4 162h0M238.8 10L350 48"  # the axis ends at 3
    stairs = curve_chart("x", [Series("a", [0, 2], [0.0, 4.0], look="stairs")])
    assert stairs.drawn[0].path == "M16.4 162H350V10"
    band = curve_chart("x", [Series("a", [0, 2], [1.0, 3.0], low=[0.0, 2.0], high=[2.0, 4.0], look="points")])
    assert band.drawn[0].band == "M16.4 86L350 10L350 86L16.4 162Z"
    assert band.drawn[0].points == (("16.4", "124"), ("350", "48"))
    lone = curve_chart("x", [Series("a", [0], [1.0], low=[0.0], high=[2.0], look="points")])
    assert lone.drawn[0].band == "M186.6 10L192.6 10L192.6 162L186.6 162Z"  # three-sign labels: 29.2 … 350
    assert lone.change == "1.00"
    named = curve_chart("x", [Series("a", [0, 2], [0.0, 1.0])], names={0.0: "off", 1.0: "on"})
    assert (named.change, named.y_ticks) == ("off → on", (("162", "off"), ("10", "on")))


def test_two_series_are_labelled_at_their_ends() -> None:
    chart = curve_chart("x", [Series("one", [0, 2], [0.0, 4.0]), Series("other", [0, 2], [0.0, 2.0])])
    assert chart.right == 360 - (12 + 6.4 * 5)
    assert [(one.label, one.label_y) for one in chart.drawn] == [("one", 10), ("other", 86)]
    assert label_places([50, 52, 20], top=10, bottom=150) == [50, 63, 20]
    assert label_places([149, 150], top=10, bottom=150) == [137, 150]


def test_ticks_are_round() -> None:
    assert linear_axis(0.38, 0.64).ticks == (0.3, 0.4, 0.5, 0.6, 0.7)
    assert linear_axis(0.93, 0.99, floor=0, ceiling=1).ticks == (0.92, 0.94, 0.96, 0.98, 1.0)
    assert linear_axis(5.0, 5.0).ticks == (4.5, 4.75, 5.0, 5.25, 5.5)
    assert linear_axis(0.0, 0.0).ticks == (-0.5, -0.25, 0.0, 0.25, 0.5)
    assert step_axis([1, 60]).ticks == (10, 20, 30, 40, 50, 60)
    assert step_axis([7]).ticks == (7,)
    assert tick_words([0.1, 1, 10, 1000], scale="log") == ["0.1", "1", "10", "1,000"]
    assert log_axis(0.2, 300).ticks == (0.1, 1, 10, 100, 1000)
    assert log_axis(0.1, 1000).place(1.0, 0.0, 400.0) == pytest.approx(100.0)
    assert tick_words([0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_words([0.0, 0.025], share=True) == ["0.0%", "2.5%"]


def test_a_share_of_zero_is_drawn_on_the_whole_range() -> None:
    chart = curve_chart("clipped", [Series("a", [1, 2], [0.0, 0.0])], share=True)
    assert [word for _, word in chart.y_ticks] == ["0%", "25%", "50%", "75%", "100%"]


def test_spikes_survive_thinning_and_gaps_a_running_mean() -> None:
    y = [1.0] * 1000
    y[517], y[518] = 90.0, -3.0
    thinned = thin(Series("a", list(range(1000)), y), most=100)
    assert len(thinned.y) <= 100
    assert (max(v for v in thinned.y if v is not None), thinned.x[thinned.y.index(90.0)]) == (90.0, 517)
    assert thinned.x[thinned.y.index(-3.0)] == 518
    assert running_mean([1.0, None, 3.0, 5.0], 2) == [1.0, 1.0, 3.0, 4.0]


def test_the_headline_says_no_more_than_the_intervals_allow() -> None:
    def side(low: float, high: float) -> dict[str, Any]:
        return {"avg": {"k": 8, "value": (low + high) / 2, "low": low, "high": high}}

    assert headline(side(0.3, 0.4), side(0.5, 0.6))["verdict"] == "Better"
    assert headline(side(0.5, 0.6), side(0.3, 0.4))["verdict"] == "Worse"
    assert headline(side(0.3, 0.5), side(0.4, 0.6))["verdict"] == "No clear change"
    assert headline(side(0.3, 0.5), side(0.4, 0.6))["reason"] == "the intervals before and after overlap"
    assert headline(side(0.3, 0.5), {})["verdict"] == "No comparison yet"
    assert headline(side(0.0, 0.2), side(0.0, 0.0))["reason"] == "the intervals before and after overlap"

    # Ten problems that all came out wrong leave a quarter of others open, one 95 %, a hundred 3 %.
    def alike(value: float, n: int) -> dict[str, Any]:
        return {"avg": {"k": 8, "value": value, "low": value, "high": value, "n": n}}

    assert headline(alike(0.0, 10), side(0.26, 0.3))["verdict"] == "Better"
    assert headline(alike(0.0, 10), side(0.25, 0.3))["verdict"] == "No clear change"
    assert headline(alike(0.0, 1), alike(1.0, 1))["reason"] == "too few problems, of which all came out alike"
    assert headline(alike(0.0, 1), alike(1.0, 1))["before_range"] == "no spread"
    assert headline(alike(1.0, 100), side(0.9, 0.96))["verdict"] == "Worse"
    none_right = headline(side(0.0, 0.0), side(0.0, 0.0))
    assert (none_right["verdict"], none_right["reason"]) == (
        "No clear change",
        "no completion was right, before or after",
    )


def test_numbers_as_words() -> None:
    values = (0, 1204.4, 31.25, 2.126, 0.0521, 3.1e-6, -0.5)
    assert [numbers.plain(value) for value in values] == ["0", "1,204", "31.2", "2.13", "0.052", "3.1e−06", "−0.500"]
    assert [numbers.signed(value) for value in (0.5, -0.5, 0.001, None)] == ["+0.50", "−0.50", "0.00", "–"]
    assert [numbers.duration(value) for value in (8.4, 59.96, 252, 7499)] == [
        "8.4 s",
        "1 min 00 s",
        "4 min 12 s",
        "2 h 05 min",
    ]
    assert [numbers.plain_range(0.3, 0.1 + 0.2), numbers.percent_range(0.0, 0.0)] == ["no spread", "no spread"]
    assert [numbers.percent_range(0.5, 0.75), numbers.percent_range(-0.25, 0.0)] == ["50.0–75.0%", "−25.0–0.0%"]
    assert [numbers.percent_range(None, 0.0), numbers.plain_range(1.5, 2.25)] == ["", "1.50–2.25"]
    # No number is a negative zero.
    assert [numbers.percent(-1e-6), numbers.whole(-0.2), numbers.signed(-1e-9)] == ["0.0%", "0", "0.00"]
    assert tick_words([-1e-12, 0.5], share=True) == ["0%", "50%"]
    assert numbers.printable("a\x00\ud800\u202eb\n") == "a␀\ufffd⟨U+202E⟩b\n"
    assert list(flat({"a": {"b": 1, "c": {}}, "d": None})) == [("a.b", "1"), ("a.c", "{}"), ("d", "none")]
