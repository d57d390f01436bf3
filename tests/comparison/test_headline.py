"""What happened, in sentences: nothing is claimed that an interval does not carry; and one problem for every arm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfdistill.comparison.analysis import analyse
from selfdistill.comparison.completions import side_by_side
from selfdistill.comparison.headline import headline
from selfdistill.comparison.page import Joined, write_comparison, write_joined
from selfdistill.comparison.runs import ArmRuns
from support.arms import arm, ended_run, given_terms, simple_run
from support.pages import Page, assert_stands_alone


def three_arms(folder: Path) -> dict[str, Any]:
    """From 1 of 4 right: one arm ends at 3 of 4, one at 0 of 4, one at 1 of 4 by problems that change places."""
    runs = {
        "a-up": simple_run(folder / "up", (1,) * 8, (3,) * 8),
        "a-down": simple_run(folder / "down", (1,) * 8, (0,) * 8),
        "a-level": simple_run(folder / "level", (1,) * 8, (2, 0) * 4),
        "a-like": simple_run(folder / "like", (1,) * 8, (2, 0) * 4),
    }
    found = analyse([arm(name, run) for name, run in runs.items()], baseline="a-level")
    return given_terms() | found | {"terms": two_steps()}


def two_steps() -> dict[str, Any]:
    terms: dict[str, Any] = given_terms()["terms"]
    return terms | {"steps": 2}


def test_a_rise_a_fall_and_no_clear_change_are_told_apart(tmp_path: Path) -> None:
    first, second, third = headline(three_arms(tmp_path))
    assert first == (
        "From 25.0% right before training, up rose to 75.0%, down fell to 0.0%, level stood at 25.0% (no clear change) "
        "and like stood at 25.0% (no clear change)."
    )
    assert second == (
        "Against level, in this one seed: clearly above for up (+50.0 points, +20.4 to +79.6); "
        "no clear difference for down (−25.0 points, −54.6 to +4.6) and like (0.0 points, no spread)."
    )
    assert third == (
        "Deliberation words per completion: no clear change for up 0.2 → 0.2, down 0.2 → 0.2, level 0.2 → 0.2 and "
        "like 0.2 → 0.2."
    )


def test_a_gain_whose_interval_reaches_zero_is_no_rise(tmp_path: Path) -> None:
    # One problem of two gains a half: the mean gain is a quarter, and its error is as large.
    found = analyse([arm("x", simple_run(tmp_path / "x", (1, 1), (3, 1)))], baseline="x")
    sentences = headline(given_terms() | found | {"terms": two_steps()})
    assert sentences[0] == "From 25.0% right before training, x stood at 50.0% (no clear change)."
    assert len(sentences) == 2, "one arm has nothing to differ from"


def test_who_learned_without_rewards_is_said_where_it_is_known(tmp_path: Path) -> None:
    found = three_arms(tmp_path)
    for row, rewards in zip(found["arms"], (True, False, False, True), strict=True):
        row["rewards"] = rewards
    assert headline(found)[0].endswith(" down and level were trained without any reward.")


def test_another_start_and_an_early_end_are_said(tmp_path: Path) -> None:
    base = simple_run(tmp_path / "base", (1, 1), (2, 2), (3, 3))
    ended = ended_run(tmp_path / "ended", (2, 2), (3, 3), steps=3, by=["entropy_collapse"])
    found = given_terms() | analyse([arm("base", base), arm("ended", ended)], baseline="base")
    assert headline(found)[0] == (
        "The arms began apart (base 25.0% and ended 50.0%): base rose to 75.0% and ended rose to 75.0% "
        "(it ended early: step 2)."
    )


def completions(folder: Path, step: int, example: str, *rewards: float | None, word: str, u: bool = True) -> None:
    lines = []
    for index, reward in enumerate(rewards):
        tokens = [word] * (index + 1)
        line = {"step": step, "example": example, "index": index, "prompt": f"solve {example}", "reward": reward}
        line |= {"text": " ".join(tokens), "tokens": tokens, "ids": [1] * (index + 1), "logprobs": [-1.0] * (index + 1)}
        lines.append(json.dumps(line | ({"u": [0.5] * (index + 1)} if u else {})) + "\n")
    with (folder / "rollouts.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(lines)


def two_arms(folder: Path) -> list[ArmRuns]:
    """Two steps. Problem x was trained on before; of the others the arms differ most on z."""
    one, other = (simple_run(folder / name, (1, 1), (2, 2)) for name in ("one", "other"))
    for run, rewards in ((one, (1.0, 1.0, 0.0)), (other, (0.0, 0.0, 0.0))):
        completions(run, 1, "x", 0.0, word="early")
        completions(run, 2, "x", *rewards, word="seen")
        completions(run, 2, "y", 1.0, 1.0, 0.0, word="same")
    completions(one, 2, "z", 1.0, 0.0, 1.0, 1.0, word="right", u=False)
    completions(other, 2, "z", 0.0, 0.0, 1.0, 0.0, word="wrong")
    return [arm("arm-one", one), arm("arm-other", other)]


def test_the_problem_is_new_to_the_weights_and_the_one_on_which_arms_differ_most(tmp_path: Path) -> None:
    found = side_by_side(two_arms(tmp_path))
    assert found is not None
    assert {key: found[key] for key in ("seed", "step", "example", "fresh", "problems", "rewards_differ")} == {
        "seed": 0, "step": 2, "example": "z", "fresh": True, "problems": 2, "rewards_differ": True,
    }  # fmt: skip
    one, other = found["arms"]
    # The right completions have 1, 3 and 4 tokens, the wrong ones 1, 2 and 4.
    assert (one["name"], one["right"], one["completions"], len(one["line"]["tokens"])) == ("arm-one", 3, 4, 3)
    assert (other["name"], other["right"], other["completions"], len(other["line"]["tokens"])) == ("arm-other", 1, 4, 2)


def test_a_problem_of_an_earlier_epoch_is_shown_only_if_there_is_no_other_and_says_so(tmp_path: Path) -> None:
    runs = [simple_run(tmp_path / name, (1, 1), (2, 2)) for name in ("one", "other")]
    for run in runs:
        completions(run, 1, "x", 0.0, word="early")
        completions(run, 2, "x", 1.0, word="late")
    found = side_by_side([arm(run.name, run) for run in runs])
    assert found is not None
    assert (found["fresh"], found["problems"]) == (False, 1)
    # Both arms were always right: the page must not call this the problem on which they differ.
    assert found["rewards_differ"] is False


def test_without_a_common_problem_there_is_none(tmp_path: Path) -> None:
    one, other = (simple_run(tmp_path / name, (1, 1), (2, 2)) for name in ("one", "other"))
    arms = [arm("one", one), arm("other", other)]
    assert side_by_side(arms) is None
    completions(one, 2, "x", 1.0, word="a")
    assert side_by_side(arms) is None
    completions(other, 2, "y", 1.0, word="b")
    assert side_by_side(arms) is None


def test_the_page_shows_every_arms_completion_before_the_curves(tmp_path: Path) -> None:
    arms = two_arms(tmp_path)
    result = given_terms() | analyse(arms, baseline="arm-one") | {"problem": side_by_side(arms), "terms": two_steps()}
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "compare.json").write_text(json.dumps(result), encoding="utf-8")
    write_comparison(folder)
    page = Page(folder / "compare.html")
    assert_stands_alone(page)
    assert "A problem of step 2 that no arm had trained on before it answered (seed 0): of the 2 problems" in page.text
    assert "one 3 of 4 right correct reward 1 3 tokens" in page.text
    assert "other 1 of 4 right wrong reward 0 2 tokens Σu +1.00" in page.text
    assert "No teacher scored the completions of one: they have no colours." in page.text
    assert "Σu is the sum over the completion." in page.text
    assert page.text.index("From 25.0%") < page.text.index("One problem, every arm") < page.text.index("How the arms")
    assert page.attributes("span", "data-u") == ["+0.500", "+0.500"]
    assert "the one on which their rewards differ most." in page.text
    result["problem"]["rewards_differ"] = False
    (folder / "compare.json").write_text(json.dumps(result), encoding="utf-8")
    write_comparison(folder)
    assert "the first, because their mean rewards are equal on every one." in Page(folder / "compare.html").text


def test_one_page_joins_two_comparisons(tmp_path: Path) -> None:
    parts = []
    for name in ("first", "second"):
        arms = two_arms(tmp_path / name)
        result = (
            given_terms() | analyse(arms, baseline="arm-one") | {"problem": side_by_side(arms), "terms": two_steps()}
        )
        (tmp_path / name / "compare.json").write_text(json.dumps(result), encoding="utf-8")
        parts.append(Joined(f"The {name} <task>", "About it.", tmp_path / name))
    write_joined(tmp_path / "index.html", "Both", parts)
    page = Page(tmp_path / "index.html")
    assert page.text.count("From 25.0% right before training, one rose to 50.0% and other rose to 50.0%.") == 2
    assert page.text.count("other 1 of 4 right") == 2
    assert "The second <task>" in page.text
    assert [link for link in page.attributes("a", "href") if link[0] != "#"] == [
        "first/compare.html",
        "second/compare.html",
    ]
