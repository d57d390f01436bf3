"""Episodes through a whole training step: hand-built masks, and gradients by brute force on turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import methods_by_hand as hand
from selfdistill.contexts.templates import Template, parse_template
from selfdistill.errors import ConfigError, ModelError
from selfdistill.scoring.batching import collate, cut_by_tokens
from selfdistill.scoring.prepare import render
from selfdistill.training.metrics import budget_of, rollout_lines, rollout_metrics, separation
from selfdistill.types import STUDENT, Example, Message, Role, Start, TokenSlice, View
from support.engine import distance, invent_groups, load_exact, make_bench, perturb, size_of
from support.turns import Script, Spoken, by_hand, played

TAU = partial(hand.clipped_forward_kl, clip=0.05)
CASES: dict[str, tuple[Mapping[str, Any], str, Callable[[hand.Scored, int], torch.Tensor]]] = {
    "grpo": ({}, "live", hand.grpo),
    "sdpo": ({}, "ema", hand.sdpo(hand.jensen_shannon, k=None)),
    "antisd": ({"warmup": 1}, "live", hand.antisd(0.5, 1.0)),
    "credit": ({"strength": 0.3}, "ema", hand.credit(hand.jensen_shannon, 0.3, contrasts=1, k=None)),
}


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_episodes_is_that_of_brute_force_on_their_own_tokens(
    name: str, packs: bool, folder: Path, templates: Mapping[str, Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfdistill.models.packing.SHARE_FROM", 1)
    hyperparameters, weights, token_loss = CASES[name]
    policy, chat = load_exact(folder)
    start = copy.deepcopy(policy.model)
    bench = make_bench(policy, chat, templates, name, hyperparameters, move=perturb)
    for one in (bench.policy, *bench.trainer.teachers.copies.values()):
        one.packs = packs
    groups = played(chat, Script(chat, policy))
    result = bench.step(groups)
    if name == "antisd":
        result = bench.step(groups, step=2)
    model = copy.deepcopy(start)
    model.load_state_dict(policy.model.state_dict())
    completions = []
    for view in result.views:
        tail, turns = by_hand(chat, view.group, view.index)
        own = [n for n, turn in enumerate(turns) if turn]

        def rows(role: str, which: Any, view: View = view, own: list[int] = own, tail: Any = tail) -> list[hand.Row]:
            whole = hand.rows(which, view.prompts[role], tail, policy.vocab_size)
            return [whole[n] for n in own]

        teacher = model if weights == "live" else start
        others = {role: hand.frozen(rows(role, teacher)) for role in view.prompts if role != STUDENT}
        verdicts = groups[view.group].verdicts
        given = hand.advantages([verdict.reward for verdict in verdicts])
        completions.append(
            hand.Scored(
                rows(STUDENT, model),
                others.get("teacher"),
                [tail[n] for n in own],
                groups[view.group].rollouts[view.index].logprobs,
                given[view.index],
                others,
            )
        )
    assert len(completions) == (6 if name != "sdpo" else len(result.views)) and len(result.views) > 3
    loss = hand.mean_over_tokens(completions, token_loss)
    assert result.record.loss == pytest.approx(float(loss.detach()), rel=1e-9)
    expected = hand.gradient(model, loss)
    assert size_of(expected) > 1e-5
    assert distance(bench.gradient(), expected) < 1e-8
    # Denominator, entropy and u are sums over the model's own tokens.
    tokens = sum(len(one.ids) for one in completions)
    assert (result.record.tokens, result.record.weight) == (tokens, float(tokens))
    entropy = sum(float(hand.entropy(one, t).detach()) for one in completions for t in range(len(one.ids)))
    assert result.record.roles[STUDENT].entropy == pytest.approx(entropy, rel=1e-9)
    if name != "grpo":
        gains = sum(hand.gain(one, t) for one in completions if one.teacher for t in range(len(one.ids)))
        assert result.record.roles["teacher"].u == pytest.approx(gains, rel=1e-9)


def test_masks_and_places_are_those_made_by_hand(
    folder: Path, templates: Mapping[str, Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "sd", {})
    groups = played(chat, Script(chat))
    views = bench.trainer.prepare(groups, step=1).views
    seen: list[torch.Tensor] = []
    loss = type(bench.method).loss

    def watched(self: Any, tokens: TokenSlice) -> torch.Tensor:
        seen.append(tokens.inputs["segment"])
        return loss(self, tokens)

    monkeypatch.setattr(type(bench.method), "loss", watched)
    bench.step(groups)
    for view in views:
        tail, turns = by_hand(chat, view.group, view.index)
        rollout = groups[view.group].rollouts[view.index]
        assert rollout.ids_after_prompt == tail and rollout.segments == turns
        assert len(view.weights) == len(view.old_logprobs) == len(rollout.completion_ids) == sum(map(bool, turns))
        for role, prompt in view.prompts.items():
            batch = collate([view], role)
            where = [len(prompt) - 1 + n for n, turn in enumerate(turns) if turn]
            assert batch.ids_BL.tolist() == [[*prompt, *tail]]
            assert batch.column_N.tolist() == where
            assert batch.target_N.tolist() == [tail[n] for n, turn in enumerate(turns) if turn]
    expected = sorted(turn for view in views for turn in by_hand(chat, view.group, view.index)[1] if turn)
    assert sorted(int(turn) for part in seen for turn in part.tolist()) == expected


def test_a_micro_batch_counts_what_is_read_too(folder: Path, templates: Mapping[str, Template]) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "grpo", {})
    views = bench.trainer.prepare(played(chat, Script(chat)), step=1).views
    lengths = [len(view.prompts[STUDENT]) + len(by_hand(chat, view.group, view.index)[0]) for view in views]
    two = sorted(lengths)[-2:]
    assert len(cut_by_tokens(views, max_tokens=2 * two[1])[0]) == 2
    assert cut_by_tokens(views, max_tokens=2 * two[1] - 1)[0] == [lengths.index(two[1])]


def test_every_metric_counts_the_models_own_tokens(folder: Path, templates: Mapping[str, Template]) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "sd", {}, move=perturb)
    groups = played(chat, Script(chat, policy))
    result = bench.step(groups)
    own = {(g, i): sum(map(bool, by_hand(chat, g, i)[1])) for g in range(2) for i in range(3)}
    read = sum(by_hand(chat, g, i)[1].count(0) for g, i in own)
    metrics = rollout_metrics(groups, STUDENT)
    assert metrics["length"] == sum(own.values()) / 6
    assert (metrics["turns"], metrics["environment_tokens"]) == ((2 + 2 + 1 + 3 + 1 + 2) / 6, read / 6)
    assert metrics["ended"] == {"done": 6.0}
    assert metrics["reward"] == pytest.approx((1 + 0 + 1 + 1 + 0 + 0.25) / 6)
    budget = budget_of(groups, result.views, bench.method, updates=1)
    assert budget.drawn == {STUDENT: sum(own.values())} and budget.trained == sum(own.values())
    assert budget.scored["teacher"] == sum(own.values())
    for line, ((g, i), count) in zip(rollout_lines(groups, result, chat), own.items(), strict=True):
        assert len(line.ids) == len(line.tokens) == len(line.logprobs) == len(line.u or ()) == count, (g, i)
    # The mean of u over the right episodes' own tokens.
    right = [n for n, view in enumerate(result.views) if view.correct]
    sums = [
        (float((t.target_N - s.target_N).sum()), len(t.target_N))
        for n in right
        if (t := result.scores["teacher"][n]) and (s := result.scores[STUDENT][n])
    ]
    assert separation(result)["u_correct"] == pytest.approx(sum(u for u, _ in sums) / sum(n for _, n in sums))


def test_weighting_by_completion_divides_by_its_own_tokens(
    folder: Path, templates: Mapping[str, Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "sdpo", {})
    monkeypatch.setattr(type(bench.method), "weighting", "completion")
    for view in bench.trainer.prepare(played(chat, Script(chat)), step=1).views:
        own = sum(map(bool, by_hand(chat, view.group, view.index)[1]))
        assert view.weights == (1 / own,) * own


def test_an_episode_is_shown_in_hindsight_as_a_conversation(folder: Path, templates: Mapping[str, Template]) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "sdpo", {})
    views = bench.trainer.prepare(played(chat, Script(chat)), step=1).views
    shown = next(chat.tokenizer.decode(v.prompts["teacher"]) for v in views if (v.group, v.index) == (0, 1))
    sibling = "answer 3 + 4 feedback : reaches 7 not 12 . solve answer 3 × 4"
    assert shown == (
        f"<|user|> use 3 4 to make 12 . another attempt was correct : {sibling} . now solve the problem"
        " <|end|> <|assistant|> <think>"
    )


class Greeting(Spoken):
    """Opens with words of its own before the problem."""

    def start(self, example: Example) -> Start:
        """The problem, in other words than the example's prompt has."""
        opening = Message("user", f"solve the problem {example.prompt[0].content}")
        return replace(super().start(example), messages=(opening,))


def test_hindsight_is_put_into_the_conversation_that_was_opened(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "opsd", {})
    groups = played(chat, Script(chat), Greeting())
    for view in bench.trainer.prepare(groups, step=1).views:
        student, teacher = (chat.tokenizer.decode(view.prompts[role]) for role in ("student", "teacher"))
        opening = f"<|user|> solve the problem {groups[view.group].example.prompt[0].content}"
        assert student.startswith(f"{opening} <|end|>")
        assert teacher.startswith(f"{opening} a correct solution is")


def test_the_thinking_switch_reaches_a_role_that_reads_a_conversation(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    """This chat template has none, and says so."""
    _, chat = load_exact(folder)
    groups = played(chat, Script(chat))
    with pytest.raises(ModelError, match="has no enable_thinking switch"):
        render(groups, {"teacher": Role("solution")}, templates, chat, thinking=True, seed=0)


def test_another_input_stands_in_the_place_of_the_opening_that_an_episode_had(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    """The whole input of the other problem, its system message included."""
    _, chat = load_exact(folder)
    groups = [
        replace(group, example=replace(group.example, prompt=(Message("system", word), *group.example.prompt)))
        for group, word in zip(played(chat, Script(chat)), ("feedback", "solution"), strict=True)
    ]
    rendered = render(groups, {"contrast": Role("other_question_bare")}, templates, chat, thinking=None, seed=0)
    openings = [chat.encode(group.example.prompt) for group in groups]
    for group, row in enumerate(rendered):
        assert {prompts["contrast"] for prompts in row} == {openings[1 - group]}


EACH = Template("each", "", text="$question feedback : $reply", before="each")
LAST = Template("last", "", text="$question a correct solution is $solution", before="last")
SECOND = replace(LAST, name="second", before=2)
SAME = Template("same", "", text="$question another attempt was correct : $sibling_turn", before="each")
AGAIN, WRONG = "feedback : reaches 7 not 12 . solve", "feedback : below 9 ."
SHOWN: dict[str, dict[tuple[int, int], tuple[str, ...]]] = {
    # Before the first turn what was said of it, and so on; a right last turn is told nothing, and keeps its words.
    "each": {
        (0, 0): (f"use 3 4 to make 12 . feedback : {AGAIN}", AGAIN),
        (0, 1): (f"use 3 4 to make 12 . feedback : {WRONG}", f"{WRONG} feedback : {WRONG}"),
        (1, 0): (f"make 9 . feedback : {WRONG}", f"{WRONG} feedback : {WRONG}", WRONG),
        (1, 1): (f"make 9 . feedback : {WRONG}",),
        (1, 2): (f"make 9 . feedback : {WRONG}", f"{WRONG} feedback : {WRONG}"),
    },
    "last": {
        (0, 0): ("use 3 4 to make 12 .", f"{AGAIN} a correct solution is 3 × 4"),
        (0, 1): ("use 3 4 to make 12 .", f"{WRONG} a correct solution is 3 × 4"),
        (0, 2): ("use 3 4 to make 12 . a correct solution is 3 × 4",),
        (1, 0): ("make 9 .", WRONG, f"{WRONG} a correct solution is 9"),
        (1, 1): ("make 9 . a correct solution is 9",),
        (1, 2): ("make 9 .", f"{WRONG} a correct solution is 9"),
    },
    "second": {
        (0, 0): ("use 3 4 to make 12 .", f"{AGAIN} a correct solution is 3 × 4"),
        (0, 1): ("use 3 4 to make 12 .", f"{WRONG} a correct solution is 3 × 4"),
        (1, 0): ("make 9 .", f"{WRONG} a correct solution is 9", WRONG),
        (1, 2): ("make 9 .", f"{WRONG} a correct solution is 9"),
    },
    # The first right episode of the group, other than the scored one; it may have fewer turns.
    "same": {
        (0, 0): ("use 3 4 to make 12 . another attempt was correct : 4 × 3", AGAIN),
        (0, 1): (
            "use 3 4 to make 12 . another attempt was correct : answer 3 + 4",
            f"{WRONG} another attempt was correct : answer 3 × 4",
        ),
        (0, 2): ("use 3 4 to make 12 . another attempt was correct : answer 3 + 4",),
        (1, 1): ("make 9 . another attempt was correct : answer 2",),
        (1, 2): (
            "make 9 . another attempt was correct : answer 2",
            f"{WRONG} another attempt was correct : answer 3 + 4",
        ),
    },
}
LEFT = {
    "each": {"context each: no reply": 1},
    "last": {},
    "second": {"context second: no turn 2": 2},
    "same": {"context same: no sibling_turn": 1},
}
"""By template and episode: the message before each turn as the teacher reads it."""


@pytest.mark.parametrize("template", [EACH, LAST, SECOND, SAME], ids=lambda template: template.name)
def test_hindsight_stands_before_its_turn_and_the_gradient_is_that_of_brute_force(
    template: Template, folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    start = copy.deepcopy(policy.model)
    known = {**templates, template.name: template}
    bench = make_bench(policy, chat, known, "opsd", {"context": template.name, "score_temperature": 1.0}, move=perturb)
    groups = played(chat, Script(chat, policy))
    result = bench.step(groups)
    model = copy.deepcopy(start)
    model.load_state_dict(policy.model.state_dict())
    vocabulary = chat.tokenizer.get_vocab()
    completions = []
    for view in result.views:
        shown = SHOWN[template.name][view.group, view.index]
        read = [[vocabulary[w] for w in f"<|user|> {said} <|end|> <|assistant|> <think>".split()] for said in shown]
        tail, turns = by_hand(chat, view.group, view.index)
        ids: list[int] = []
        own: list[int] = []
        for n, before in enumerate(read, 1):
            ids += before
            said = [token for token, turn in zip(tail, turns, strict=True) if turn == n]
            own += range(len(ids), len(ids) + len(said))
            ids += said
        whole = hand.rows(start, ids[:1], ids[1:], policy.vocab_size)
        mine = hand.rows(model, view.prompts[STUDENT], tail, policy.vocab_size)
        student = [row for row, turn in zip(mine, turns, strict=True) if turn]
        teacher = hand.frozen([whole[n - 1] for n in own])
        completions.append(hand.Scored(student, teacher, [ids[n] for n in own], (), 0.0))
    assert {(view.group, view.index) for view in result.views} == SHOWN[template.name].keys()
    assert result.record.skipped == LEFT[template.name]
    loss = hand.mean_over_tokens(completions, hand.against_teacher(TAU))
    assert result.record.loss == pytest.approx(float(loss.detach()), rel=1e-9)
    assert distance(bench.gradient(), hand.gradient(model, loss)) < 1e-8


def test_a_template_before_a_turn_is_what_it_is_for_a_single_answer_and_in_a_choice(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    choice = Template("choice", "", first_of=("each", "solution"))
    known = {**templates, "each": EACH, "choice": choice}
    bench = make_bench(policy, chat, known, "opsd", {"context": "choice"})
    views = bench.trainer.prepare(played(chat, Script(chat)), step=1).views
    shown = {(v.group, v.index): chat.tokenizer.decode((*v.prompts["teacher"], *v.ids_after("teacher"))) for v in views}
    assert len(shown) == 6 and "a correct solution is 3 × 4" in shown[0, 2]
    assert all(f"feedback : {WRONG}" in text for at, text in shown.items() if at not in ((0, 0), (0, 2)))
    # Single answers are told their feedback.
    groups = invent_groups(policy, chat)
    told = bench.trainer.prepare(groups, step=1).views
    text = chat.tokenizer.decode(next(v.prompts["teacher"] for v in told if (v.group, v.index) == (0, 0)))
    assert text == "<|user|> use 3 4 to make 12 . feedback : reaches 7 <|end|> <|assistant|> <think>"


def test_a_conversation_with_hindsight_that_does_not_fit_the_window_is_skipped(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, {**templates, "last": LAST}, "opsd", {"context": "last"})
    groups = played(chat, Script(chat))
    views = bench.trainer.prepare(groups, step=1).views
    lengths = sorted(len(view.prompts["teacher"]) + len(view.ids_after("teacher")) for view in views)
    chat.window = lengths[-1]
    assert len(bench.trainer.prepare(groups, step=1).views) == 6
    chat.window -= 1
    prepared = bench.trainer.prepare(groups, step=1)
    assert len(prepared.views) == sum(length < lengths[-1] for length in lengths) < 6
    assert set(prepared.skipped) == {"context last: prompt and completion do not fit the window"}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"text": "$question", "before": "second"}, "is the turn 'first', 'last' or 'each', or its number from 1"),
        ({"text": "$question", "before": 0}, "or its number from 1"),
        ({"text": "$question", "before": True}, "or its number from 1"),
        ({"text": "$question", "before": "last", "system": "so"}, "goes with a text alone"),
        ({"first_of": ["y"], "before": "each"}, "goes with a text alone"),
        ({"text": "$question", "before": 2, "system": "so"}, "goes with a text alone"),
    ],
)
def test_a_template_before_another_turn_is_a_text_alone(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_template("x", table, "file")
