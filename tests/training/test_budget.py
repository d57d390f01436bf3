"""What a step spends, counted by hand: completions and tokens drawn, scored and trained, for every role."""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.files.records import Budget, total_budget
from selfdistill.methods import build_method
from selfdistill.training.metrics import budget_of
from selfdistill.types import Example, Rollout, RolloutGroup, Verdict, View


def rollout(tokens: int, source: str = "student") -> Rollout:
    return Rollout((1,), (7,) * tokens, (-1.0,) * tokens, True, "", 0, source)


def group(*rollouts: Rollout) -> RolloutGroup:
    return RolloutGroup(Example("a", ()), rollouts, (Verdict(1.0),) * len(rollouts))


def view(weights: Sequence[float], *roles: str) -> View:
    prompts = dict.fromkeys(("student", *roles), (1,))
    return View(prompts, (7,) * len(weights), tuple(weights), (-1.0,) * len(weights), 0.0, 0, 0)


def test_every_role_is_counted_whether_or_not_the_loss_used_its_completions() -> None:
    groups = [group(rollout(3), rollout(5), rollout(4, "teacher")), group(rollout(2))]
    # One completion of two tokens lacks the teacher's context, and two tokens have no weight.
    views = [view((1.0, 0.0, 0.5), "teacher"), view((0.0, 1.0))]
    found = budget_of(groups, views, build_method("opsd", {}), updates=1)
    assert found == Budget({"student": 3, "teacher": 1}, {"student": 10, "teacher": 4}, {"teacher": 3}, 3)


def test_every_update_scores_and_trains_again_and_draws_nothing() -> None:
    groups, views = [group(rollout(3))], [view((1.0, 1.0, 1.0), "teacher")]
    once, twice = (budget_of(groups, views, build_method("opsd", {}), updates=n) for n in (1, 2))
    assert (twice.drawn, twice.completions) == (once.drawn, once.completions)
    assert (once.scored, once.trained) == ({"teacher": 3}, 3)
    assert (twice.scored, twice.trained) == ({"teacher": 6}, 6)


def test_a_method_without_teachers_scores_nothing() -> None:
    found = budget_of([group(rollout(3))], [view((1.0, 1.0, 1.0))], build_method("grpo", {}), updates=1)
    assert found == Budget({"student": 1}, {"student": 3}, {}, 3)


def test_given_solutions_are_trained_and_not_drawn() -> None:
    found = budget_of([group(rollout(3))], [view((1.0, 1.0, 1.0))], build_method("sft", {}), updates=1)
    assert found == Budget({}, {}, {}, 3)


def test_a_student_that_is_scored_before_the_loss_is_counted_once_more() -> None:
    method = build_method("pbsd", {})
    assert "student" in method.precompute()
    found = budget_of([group(rollout(3))], [view((1.0, 1.0, 1.0), "teacher")], method, updates=1)
    assert found.scored == {"student": 3, "teacher": 3}


def test_budgets_add_up_and_an_older_line_makes_the_sum_unknown() -> None:
    one = Budget({"student": 1}, {"student": 3}, {"teacher": 3}, 3)
    two = Budget({"student": 2, "teacher": 2}, {"student": 5, "teacher": 4}, {}, 5)
    lines = [{"budget": one.to_json()}, {"budget": two.to_json()}]
    assert total_budget(lines) == Budget({"student": 3, "teacher": 2}, {"student": 8, "teacher": 4}, {"teacher": 3}, 8)
    assert total_budget([*lines, {"step": 3}]) is None
