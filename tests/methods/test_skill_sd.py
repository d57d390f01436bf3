"""Skill-SD: its gradient in a step and in the mean, and the notes that its teacher reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import methods_by_hand as hand
import rewarded_by_hand as by_hand
from selfdistill.contexts.templates import Template
from selfdistill.objectives import reference_penalty, reverse_kl, weighted_reverse_kl
from selfdistill.training.notes import MOST, Notes
from selfdistill.types import RolloutGroup
from support.engine import QUESTIONS, load_exact, make_bench
from support.hindsight import rendered, sibling
from support.measured import Measured
from support.turns import AGAIN, SPOKEN, Script, Spoken, played

NOTE = Template("note", "", text="$question feedback : $note")


def test_a_step_is_grpos_loss_and_the_weighted_divergence(folder: Path, templates: Mapping[str, Template]) -> None:
    hyperparameters = {"context": "sibling", "strength": 0.7, "weights": "live"}
    measured = Measured(folder, templates, "skill_sd", hyperparameters)

    def shown(g: int, i: int) -> str | None:
        right = sibling(g, i)
        return (
            rendered(f"{QUESTIONS[g]} another attempt was correct : {right} . now solve the problem") if right else None
        )

    completions = measured.scored(live=True, shown=shown)
    assert any(one.teacher is None for one in completions)
    measured.compare(hand.mean_over_tokens(completions, by_hand.skill_sd(0.7)))


def test_the_mean_gradient_is_that_of_the_reverse_kl() -> None:
    logits, old, teacher = (
        torch.tensor(row, dtype=torch.float64) for row in ([0.3, -1.0, 0.8], [0.1, 0.4, -0.2], [1.0, 0.0, -0.5])
    )
    logits.requires_grad_()
    student_V, old_V, teacher_V = (torch.log_softmax(row, -1) for row in (logits, old, teacher))
    # Each token in proportion to how often the older weights sample it.
    mean = (old_V.exp() * weighted_reverse_kl(student_V, old_V, teacher_V)).sum()
    exact = reverse_kl(student_V[None], teacher_V[None]).sum()
    assert float(mean.detach()) == pytest.approx(float(exact.detach()), rel=1e-12)
    [found], [expected] = (torch.autograd.grad(value, logits, retain_graph=True) for value in (mean, exact))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    # The unweighted estimate has the same mean on the student's own samples, and the gradient of the other direction.
    own = student_V.detach()
    [other] = torch.autograd.grad((own.exp() * reference_penalty(student_V, teacher_V)).sum(), logits)
    assert other.tolist() == pytest.approx((own.exp() - teacher_V.exp()).tolist(), rel=1e-9)


def test_the_ratio_stops_and_the_teacher_has_no_gradient() -> None:
    far, near = torch.tensor([30.0]).double(), torch.zeros(1).double().requires_grad_()
    value = weighted_reverse_kl(near, near.detach() - far, near.detach() - 1.0)
    assert value.item() == pytest.approx(
        torch.tensor(20.0).double().exp().item() * float(torch.tensor(-1.0).exp()), 1e-6
    )
    teacher, old = (torch.full((1,), -1.0, requires_grad=True) for _ in range(2))
    weighted_reverse_kl(torch.full((1,), -0.5, requires_grad=True), old, teacher).sum().backward()
    assert teacher.grad is None and old.grad is None
    with pytest.raises(ValueError, match="shapes differ"):
        weighted_reverse_kl(torch.zeros(2), torch.zeros(2), torch.zeros(1))


# --- notes -----------------------------------------------------------------------------------------------------------


def group_named(group: RolloutGroup, name: str) -> RolloutGroup:
    return replace(group, example=replace(group.example, id=name))


def notes_of(groups: list[RolloutGroup]) -> list[str | None]:
    return [group.example.fields.get("note") for group in groups]


def test_a_note_is_the_first_right_episode_of_an_earlier_step(folder: Path) -> None:
    _, chat = load_exact(folder)
    first, second = played(chat, Script(chat))
    notes = Notes(chat, seed=3)
    assert notes_of(notes.shown([first, second], step=1)) == [None, None]
    notes.record([first])
    solved = f"use 3 4 to make 12 .\nanswer 3 + 4\n{AGAIN}\nanswer 3 × 4"
    # The problem's own note, and for another problem the only one there is.
    assert notes_of(notes.shown([first, second], step=2)) == [solved, solved]
    notes.record([second])
    assert notes_of(notes.shown([first, second], step=3)) == [solved, notes.kept[second.example.id]]
    # A newer one takes its place; a group without a right episode leaves the note as it is.
    later = replace(first, rollouts=first.rollouts[2:], verdicts=first.verdicts[2:])
    notes.record([later])
    assert notes_of(notes.shown([first], step=4)) == ["use 3 4 to make 12 .\n4 × 3"]
    notes.record([replace(first, rollouts=first.rollouts[1:2], verdicts=first.verdicts[1:2])])
    assert notes_of(notes.shown([first], step=5)) == ["use 3 4 to make 12 .\n4 × 3"]
    # Single answers leave notes too, and data with such a column keeps it.
    single = replace(first, rollouts=tuple(replace(r, episode=None, text="</think> 4 × 3") for r in first.rollouts))
    fresh = Notes(chat, seed=3)
    fresh.record([single])
    assert notes_of(fresh.shown([second], step=2)) == ["use 3 4 to make 12 .\n4 × 3"]
    own = replace(second, example=replace(second.example, fields={"note": "mine"}))
    assert notes_of(fresh.shown([own], step=2)) == ["mine"]


def test_an_environment_writes_notes_of_its_own_and_the_last_of_an_episode_counts(folder: Path) -> None:
    _, chat = load_exact(folder)

    class Writes(Spoken):
        def reply(self, state: object, text: str) -> Any:
            reply = super().reply(state, text)
            return replace(reply, note=f"heard {text.split()[-1]}") if text != SPOKEN[0][0][1][0] else reply

    groups = played(chat, Script(chat), Writes())
    episodes = [rollout.episode for group in groups for rollout in group.rollouts]
    assert [episode.note for episode in episodes if episode] == [
        *("heard 4", "heard 4", "heard 3"),
        *("heard 9", "heard 8", "heard wait"),
    ]
    notes = Notes(chat, seed=0)
    notes.record(groups)
    assert list(notes.kept.values()) == ["heard 4", "heard 9"]


def test_notes_are_bounded_seeded_and_survive_a_checkpoint(folder: Path) -> None:
    _, chat = load_exact(folder)
    group = played(chat, Script(chat))[0]
    notes = Notes(chat, seed=5)
    notes.record([group_named(group, f"problem {n}") for n in range(MOST + 3)])
    assert len(notes.kept) == MOST and "problem 2" not in notes.kept and "problem 3" in notes.kept
    # A problem whose note is renewed is the last to be forgotten.
    notes.record([group_named(group, "problem 3"), group_named(group, "one more")])
    assert "problem 3" in notes.kept and "problem 4" not in notes.kept
    for n, name in enumerate(notes.kept):
        notes.kept[name] = f"note {n}"
    again = Notes(chat, seed=5)
    again.load_state_dict(json.loads(json.dumps(notes.state_dict())))
    assert list(again.kept.items()) == list(notes.kept.items())
    others = [group_named(group, f"new {n}") for n in range(8)]
    drawn = notes_of(notes.shown(others, step=7))
    assert drawn == notes_of(again.shown(others, step=7)) and len(set(drawn)) > 4
    assert drawn != notes_of(notes.shown(others, step=8))
    again.load_state_dict(None)
    assert again.kept == {}


def test_the_teacher_reads_the_note_of_the_step_before(folder: Path, templates: Mapping[str, Template]) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, {**templates, "note": NOTE}, "skill_sd", {})
    groups = played(chat, Script(chat, policy))
    first = bench.step(groups)
    assert all("teacher" not in view.prompts for view in first.views)
    [(reason, count)] = first.record.skipped.items()
    assert "note" in reason and count == 6
    second = bench.step(groups, step=2)
    shown = {chat.tokenizer.decode(view.prompts["teacher"]) for view in second.views if view.group == 0}
    solved = f"use 3 4 to make 12 . answer 3 + 4 {AGAIN} answer 3 × 4"
    assert shown == {f"<|user|> use 3 4 to make 12 . feedback : {solved} <|end|> <|assistant|> <think>"}
    # A method whose contexts show no note keeps none.
    other = make_bench(policy, chat, templates, "sdpo", {})
    other.step(groups)
    assert other.trainer.notes.kept == {}


def test_a_step_chooses_notes_by_the_runs_seed_and_its_own_number(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, {**templates, "note": NOTE}, "skill_sd", {})
    group = played(chat, Script(chat, policy))[0]
    assert bench.trainer.notes.seed == bench.trainer.seed
    bench.trainer.notes.record([group_named(group, f"problem {n}") for n in range(9)])
    for n, name in enumerate(bench.trainer.notes.kept):
        bench.trainer.notes.kept[name] = str(n)
    new = group_named(group, "new")
    seen = set()
    for step in range(1, 9):
        [note] = notes_of(bench.trainer.notes.shown([new], step=step))
        prompts = {view.prompts["teacher"] for view in bench.trainer.prepare([new], step=step).views}
        [shown] = {chat.tokenizer.decode(prompt) for prompt in prompts}
        assert f"feedback : {note} <|end|>" in shown
        seen.add(note)
    assert len(seen) > 3


def test_notes_are_kept_if_one_of_several_contexts_shows_them(folder: Path, templates: Mapping[str, Template]) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, {**templates, "note": NOTE}, "credit", {"context": "note"})
    bench.step(played(chat, Script(chat, policy)))
    assert len(bench.trainer.notes.kept) == 2
