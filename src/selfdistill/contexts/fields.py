"""The fields of a completion that fill context templates, and the prompts of roles."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.templates import OF_A_TURN, Template, apply
from selfdistill.errors import DataError
from selfdistill.seeds import derive
from selfdistill.types import (
    STUDENT,
    Episode,
    Example,
    Message,
    Role,
    Rollout,
    RolloutGroup,
    RoutedPrompt,
    Server,
    Skipped,
    Task,
    Verdict,
)
from selfdistill.types.conversation import Conversation, with_gaps


def hindsight(
    groups: Sequence[RolloutGroup], group: int, index: int, chat: Chat, *, contrast: int, seed: int
) -> dict[str, str]:
    """All template fields of completion ``index`` of a group, by name, after the whole step is sampled.

    ``contrast`` is the index of the other question and of the wrong sibling, in an order that depends only on the seed
    and the example. The question is that of :func:`other_input`, the wrong sibling never has the completion's text, and
    different contrasts have different fields. If there are too few, the field is missing and the context is skipped.
    """
    own_group = groups[group]
    verdict = own_group.verdicts[index]
    fields = example_fields(own_group.example)
    if verdict.reward is not None:
        fields["verdict"] = "correct" if verdict.correct else "wrong"
        fields["assessment"] = _assessment(verdict)
    if verdict.feedback:
        fields["feedback"] = verdict.feedback
    fields.update(turn_hindsight(own_group, index, chat)[0])
    texts = [chat.answer_part(rollout) for rollout in own_group.rollouts]
    if other := other_input(groups, group, contrast=contrast, seed=seed):
        fields["other_question"] = other[-1].content
    wrong = {
        text: v.answer
        for text, v in zip(texts, own_group.verdicts, strict=True)
        if v.reward is not None and not v.correct and text not in ("", texts[index])
    }
    choices = sorted(wrong)
    random.Random(derive(seed, "wrong_sibling", own_group.example.id)).shuffle(choices)
    if contrast < len(choices):
        fields["wrong_sibling"] = choices[contrast]
        if answer := wrong[choices[contrast]]:
            fields["wrong_answer"] = answer
    fields.update(_right_siblings(own_group, index, texts, seed))
    fields.update(_attempts(own_group, index, texts))
    return fields


def turn_hindsight(group: RolloutGroup, index: int, chat: Chat) -> list[dict[str, str]]:
    """The fields of completion ``index`` that differ between turns: one mapping per turn, one of a single answer."""
    episode, feedback = group.rollouts[index].episode, group.verdicts[index].feedback
    turns = turn_replies(episode) if episode else [{"reply": feedback} if feedback else {}]
    if right := _right(group, index, [chat.answer_part(other) for other in group.rollouts]):
        for fields, text in zip(turns, chat.turn_answers(group.rollouts[right[0]]), strict=False):
            fields |= {"sibling_turn": text} if text else {}
    return turns


def turn_replies(episode: Episode) -> list[dict[str, str]]:
    """The field ``reply`` of each turn, where the environment said something."""
    replies = [episode.reply_after(n) for n in range(len(episode.turns))]
    return [{"reply": reply} if reply else {} for reply in replies]


def example_fields(example: Example) -> dict[str, str]:
    """The template fields that an example has by itself, before anything is sampled."""
    fields = dict(example.fields)
    words = list(re.finditer(r"\S+", fields.get("solution", "")))
    if len(words) > 1:
        fields.setdefault("solution_half", fields["solution"][: words[(len(words) - 1) // 2].end()])
    return fields


def reference_text(example: Example) -> str | None:
    """The data's own response to a problem: the field ``response``, or ``solution`` without one; None without both."""
    return example.fields.get("response", example.fields.get("solution"))


SOLUTIONS = (
    *("solution", "rationale", "explanation", "reasoning", "worked_solution", "reference_solution", "cot"),
    *("completion", "response", "generation", "output", "answer"),
)
"""Usual names of columns that hold a solution, the likeliest first."""


def missing_column(example: Example, field: str) -> str:
    """What to do where an example lacks a field: the setting that maps one of the row's own columns to it.

    Rows with a prompt alone have no such column, so the sentence says what they can be used for.
    """
    key = f"task.{field}" if field in ("solution", "answer", "privileged_context") else f"task.fields.{field}"
    shown = [message.content for message in example.prompt]
    usable = [
        column
        for column, value in example.columns.items()
        if isinstance(value, str | int | float)
        and str(value).strip()
        # The prompt itself, with or without the task's suffix, teaches nothing.
        and not any(text == str(value) or text.startswith(f"{value}\n") for text in shown)
    ]
    likely = next((name for name in SOLUTIONS if name in usable), None)
    if likely is not None:
        return f'map a column to it, for example {key} = "{likely}"'
    if usable:
        return f"map a column to it by {key}; beside the prompt the row has {', '.join(usable)}"
    return PROMPTS_ALONE if example.columns else f"the task gives its examples no {field}"


def missing_in_data(rendered: Skipped, example: Example) -> str:
    """Why a context cannot be rendered for an example of the data, and what to do."""
    has = ", ".join(sorted(example.fields)) or "no fields"
    return f"{rendered.reason} in the data ({example.id} has {has}): {missing_column(example, rendered.missing[0])}"


def no_rewards(method: str, task: Task) -> str:
    """Why a method that needs rewards cannot train on a task without a verifier, and what gives rewards."""
    why = f"method {method!r} needs rewards, but the task has no verifier: "
    if task.name != "text":
        return f'{why}name the answer column (task.answer) or a reward function (reward = "module:function")'
    if not task.examples("train")[0].fields:
        return f"{why}{PROMPTS_ALONE}"
    return (
        f'{why}name a reward function (reward = "module:function"), a task that checks answers (task.kind = "math", '
        '"choice", "code" or "tools"), or a method that learns from solutions (opsd, sdft, sft)'
    )


PROMPTS_ALONE = (
    "the row has a prompt alone, which serves grpo and other methods that need rewards, with a reward function "
    '(reward = "module:function"), and distillation from another model (method = "sdft" with method.context = '
    '"student" and method.weights = { kind = "external", path = … }); everything else needs a column with a solution'
)
"""What rows without any column beside the prompt can be used for."""


def _right_siblings(group: RolloutGroup, index: int, texts: Sequence[str], seed: int) -> dict[str, str]:
    """The correct completions of a group other than the scored one: the first, a random one, the extremes in length."""
    right = _right(group, index, texts)
    if not right:
        return {}
    by_length = sorted(right, key=lambda i: (len(group.rollouts[i].completion_ids), i))
    random_index = random.Random(derive(seed, "random_sibling", group.example.id, index)).choice(right)
    # The first one, so that most completions of a group share one teacher prompt.
    fields = {"sibling": texts[right[0]], "random_sibling": texts[random_index]}
    fields |= {"shortest_sibling": texts[by_length[0]], "longest_sibling": texts[by_length[-1]]}
    if answer := group.verdicts[right[0]].answer:
        fields["sibling_answer"] = answer
    return fields


def _right(group: RolloutGroup, index: int, texts: Sequence[str]) -> list[int]:
    """The correct completions of a group other than the scored one that have a text."""
    return [i for i, v in enumerate(group.verdicts) if i != index and v.correct and texts[i]]


def _attempts(group: RolloutGroup, index: int, texts: Sequence[str]) -> dict[str, str]:
    """The fields that need no verdict: the scored attempt, the others, and the group's majority answer."""
    fields = {}
    if texts[index]:
        fields["attempt"] = texts[index]
    if answer := group.verdicts[index].answer:
        fields["attempt_answer"] = answer
    others = [text for i, text in enumerate(texts) if i != index and text]
    if others:
        fields["attempts"] = "\n\n".join(f"attempt {n} : {text}" for n, text in enumerate(others, 1))
    votes = Counter(v.answer for v in group.verdicts if v.answer)
    leading = [answer for answer, count in votes.items() if count == max(votes.values())]
    if len(leading) == 1:
        fields["majority_answer"] = leading[0]
        agreeing = [i for i, v in enumerate(group.verdicts) if i != index and v.answer == leading[0] and texts[i]]
        if agreeing:
            shortest = min(agreeing, key=lambda i: (len(group.rollouts[i].completion_ids), i))
            fields["agreeing_sibling"] = texts[shortest]
    return fields


def _assessment(verdict: Verdict) -> str:
    """The binary sentence of AntiSD's paper (Appendix C), or its counts where all tests of a program were run."""
    if "tests_total" in verdict.details:
        passed, total = (round(verdict.details[name]) for name in ("tests_passed", "tests_total"))
        return f"Your code passes {passed} of {total} test cases."
    return "Your answer is correct." if verdict.correct else "Your answer is incorrect."


def other_input(groups: Sequence[RolloutGroup], group: int, *, contrast: int, seed: int) -> tuple[Message, ...]:
    """The whole prompt of another question of the step, the ``contrast``-th in a seeded order; empty if too few differ.

    It is never the group's own, and different contrasts are different inputs. Completions of a group get the same one,
    so that they share one prompt.
    """
    own = groups[group].example
    # Ordered by the last message first, so that prompts of one message keep the order of their texts.
    choices = sorted(
        {other.example.prompt for other in groups} - {own.prompt},
        key=lambda prompt: [(message.content, message.role) for message in reversed(prompt)],
    )
    random.Random(derive(seed, "other_question", own.id)).shuffle(choices)
    return choices[contrast] if contrast < len(choices) else ()


def role_prompt(
    role: Role,
    example: Example,
    fields: Mapping[str, str],
    templates: Mapping[str, Template],
    chat: Chat,
    *,
    thinking: bool | None,
    room: int,
    other_input: Sequence[Message] = (),
) -> tuple[int, ...] | Skipped:
    """Prompt ids of a role, or why it is skipped: a missing field, or no ``room`` tokens left for a completion."""
    name = role.context or STUDENT
    messages: tuple[Message, ...] | Skipped = example.prompt
    if role.context:
        messages = apply(templates, role.context, example.prompt, fields, other_input=other_input)
    if isinstance(messages, Skipped):
        return messages
    ids = chat.encode(messages, thinking=thinking if role.thinking is None else role.thinking)
    if len(ids) + room > chat.window:
        return Skipped(name)
    return routed(ids, role, example)


def routed(ids: tuple[int, ...], role: Role, example: Example) -> tuple[int, ...]:
    """The ids of a role's prompt, with the teacher that the example's column names if the role has several.

    Raises:
        DataError: the column is missing, or names none of them.
    """
    if not isinstance(role.weights, Server) or role.weights.column is None:
        return ids
    column, servers = role.weights.column, role.weights.servers
    row = {**example.fields, **example.columns}
    if column not in row:
        raise DataError(
            f"example {example.id} has no column {column!r}, which names its teacher; it has {', '.join(row) or 'none'}"
        )
    if str(row[column]) not in servers:
        raise DataError(
            f"example {example.id} names the teacher {str(row[column])!r} in its column {column!r}; "
            f"weights.servers has {', '.join(servers)}"
        )
    return RoutedPrompt.to(servers[str(row[column])], ids)


def role_conversation(
    role: Role,
    example: Example,
    rollout: Rollout,
    fields: Mapping[str, str],
    templates: Mapping[str, Template],
    chat: Chat,
    *,
    thinking: bool | None,
    turn_fields: Sequence[Mapping[str, str]],
    other_input: Sequence[Message] = (),
) -> tuple[int, ...] | Conversation | Skipped:
    """The prompt of a role for an episode, and what it reads between the turns if that differs from the student's.

    ``example`` has the episode's opening as its prompt. ``turn_fields`` are the fields of each turn: a text before a
    turn has those of its own, and a text in the opening those among ``fields``. Of a ``first_of`` the first template
    that can be rendered is taken, wherever its text stands.
    """
    assert rollout.episode is not None
    thinking = thinking if role.thinking is None else role.thinking
    template = templates.get(role.context or "")
    choices = template.first_of if template else ()
    skipped: list[Skipped] = []
    for name in choices or (role.context,):
        prompt: tuple[int, ...] | Conversation | Skipped
        if name is not None and name in templates and templates[name].before != "first":
            prompt = _before_turns(
                templates[name],
                rollout,
                rollout.episode,
                [{**{key: fields[key] for key in fields if key not in OF_A_TURN}, **own} for own in turn_fields],
                chat,
                thinking=thinking,
                other_input=other_input,
            )
            if isinstance(prompt, Conversation):
                prompt = replace(prompt, ids=routed(prompt.ids, role, example))
        else:
            prompt = role_prompt(
                replace(role, context=name),
                example,
                fields,
                templates,
                chat,
                thinking=thinking,
                room=len(rollout.ids_after_prompt),
                other_input=other_input,
            )
        if not isinstance(prompt, Skipped):
            return prompt
        skipped.append(prompt)
    if template is None or not choices:
        return skipped[0]
    missing = dict.fromkeys(name for choice in skipped for name in choice.missing)
    return Skipped(template.name, tuple(missing), choices)


def _before_turns(
    template: Template,
    rollout: Rollout,
    episode: Episode,
    fields: Sequence[Mapping[str, str]],
    chat: Chat,
    *,
    thinking: bool | None,
    other_input: Sequence[Message],
) -> Conversation | Skipped:
    """The conversation with a template's text before one of its turns, or before each that has the template's fields.

    ``fields`` are those of each turn.
    """
    turns = episode.turns
    if isinstance(template.before, int) and template.before > len(turns):
        return Skipped(template.name, (f"turn {template.before}",))
    chosen = {"each": range(len(turns)), "last": [len(turns) - 1]}
    before = [episode.opening, *(turn.messages for turn in turns[:-1])]
    skipped = Skipped(template.name)
    edited: dict[int, tuple[Message, ...]] = {}
    for n in [template.before - 1] if isinstance(template.before, int) else chosen[template.before]:
        # A template takes the place of a user's message. The message of a tool keeps its role.
        *earlier, last = before[n]
        messages = template.render((*earlier, Message("user", last.content)), fields[n], other_input=other_input)
        if isinstance(messages, Skipped):
            skipped = messages
        else:
            edited[n] = (*messages[:-1], Message(last.role, messages[-1].content))
    if not edited:
        return skipped
    ids = chat.encode(edited.get(0, episode.opening), thinking=thinking)
    gaps = tuple(
        (end, chat.after_turn(episode.opening, edited[n], thinking=thinking) if n in edited else sampled_from)
        for n, (end, sampled_from) in enumerate(rollout.gaps, 1)
    )
    if len(ids) + len(with_gaps(rollout.completion_ids, gaps)) > chat.window:
        return Skipped(template.name)
    return Conversation(ids, gaps)
