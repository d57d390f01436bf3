"""A teacher's shift on held-out episodes: that of the conversation which the teacher reads, by one plain forward."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdistill.config.sections import limits_on
from selfdistill.contexts.templates import Template
from selfdistill.evaluation.references import ReferenceScorer
from selfdistill.models.teachers import Teachers
from selfdistill.types import Example, Message, Role, Start
from support.engine import load_exact, token_logprobs
from support.turns import Script, Spoken, played

LAST = Template("last", "", text="$question a correct solution is $solution", before="last")
EACH = Template("each", "", text="$question feedback : $reply", before="each")
HALF = Template("half", "", text="$question a correct solution is $solution_half")


class Opens(Spoken):
    """Opens with words of its own."""

    def start(self, example: Example) -> Start:
        return Start(None, (Message("system", "solve"), *example.prompt))


@pytest.mark.parametrize("task", [Spoken(), Opens()])
@pytest.mark.parametrize("template", [LAST, EACH], ids=["last", "each"])
def test_the_shift_of_an_episode_is_that_of_what_its_teacher_reads(
    template: Template, task: Spoken, folder: Path
) -> None:
    policy, chat = load_exact(folder)
    groups = played(chat, Script(chat, policy), task)
    values = scorer(policy, chat, template).values(groups)
    expected = []
    for group in groups:
        first = group.rollouts[0]
        assert first.episode is not None
        read: list[tuple[int, ...]] = []
        before = [first.episode.opening, *(turn.messages for turn in first.episode.turns[:-1])]
        for n, messages in enumerate(before):
            reply = first.episode.reply_after(n)
            shown = {"last": n == len(before) - 1, "each": bool(reply)}[template.name]
            text = messages[-1].content
            if shown:
                hint = group.example.fields["solution"] if template is LAST else reply
                text = (
                    (template.text or "").replace("$question", text).replace("$solution", hint).replace("$reply", hint)
                )
            edited = (*messages[:-1], Message("user", text))
            read.append(chat.encode(edited) if n == 0 else chat.after_turn(first.episode.opening, edited))
        own = token_logprobs(policy.model, first.prompt_ids, first.ids_after_prompt, policy.vocab_size)
        own = own[[turn > 0 for turn in first.segments]]
        ids: list[int] = []
        places: list[int] = []
        begin = 0
        for n, turn in enumerate(first.episode.turns):
            ids += read[n]
            places += range(len(ids), len(ids) + turn.tokens)
            ids += first.completion_ids[begin : begin + turn.tokens]
            begin += turn.tokens
        shown_to = token_logprobs(policy.model, ids[:1], ids[1:], policy.vocab_size)[[place - 1 for place in places]]
        expected.append(float((own - shown_to).mean()))
    assert values["teacher_shift"] == pytest.approx(expected, abs=1e-9)
    assert min(map(abs, expected)) > 1e-4


def test_half_a_solution_is_a_field_of_the_example(folder: Path) -> None:
    policy, chat = load_exact(folder)
    groups = played(chat, Script(chat, policy))
    values = scorer(policy, chat, HALF).values(groups)
    [first, _] = groups
    ids = chat.response(first.example.fields["solution"])
    prompt = chat.encode(first.example.prompt)
    shown = chat.encode((Message("user", f"{first.example.prompt[-1].content} a correct solution is 3 ×"),))
    gap = token_logprobs(policy.model, shown, ids, policy.vocab_size) - token_logprobs(
        policy.model, prompt, ids, policy.vocab_size
    )
    # The other solution is one word and has no half.
    assert values["teacher_gap"] == pytest.approx([float(gap.mean())], abs=1e-9)


def scorer(policy: object, chat: object, template: Template) -> ReferenceScorer:
    return ReferenceScorer(
        teachers=Teachers(policy, needed=set(), rate=0.0),  # type: ignore[arg-type]
        chat=chat,  # type: ignore[arg-type]
        limits=limits_on("cpu"),
        thinking=None,
        teacher=Role(template.name),
        templates={template.name: template},
    )
