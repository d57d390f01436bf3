"""The contrast of CREDIT is a whole other input, and a reference without a question has nothing of the input at all.

Rows have the form of ToolAlpaca as SDPO publishes it: the documentation of the row's own tools, then the request.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.contexts.fields import other_input
from selfdistill.methods import build_method
from selfdistill.scoring.prepare import render
from selfdistill.types import Example, Message, Rollout, RolloutGroup, Verdict
from support.bytewise import save_bytewise_model

PROMPT = """Your task is to answer the user's question using available tools.
You have access to the following tools:
Name: Api{n}
Description: Api number {n}
Documentation:
look_up_{n}: Look number {n} up.
Parameters: {{"what": "string. What to look up."}}
Output: Successful response.

Use the following format:
Action: the action to take, should be one of the tool names.
Action Input: the input to the action, must be in JSON format.

Begin!
Question: request {n}?"""


def toolalpaca(folder: Path, **settings: Any) -> list[Example]:
    rows = [
        {
            "prompt": PROMPT.format(n=n),
            "answer": json.dumps([{"Action": f"look_up_{n}", "Action_Input": json.dumps({"what": "it"})}]),
        }
        for n in range(4)
    ]
    path = folder / "toolalpaca.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = sd.load_task("tools", preset="toolalpaca", path=str(path), **settings)
    return list(task.examples("train"))


def prompts(method: str, examples: list[Example], folder: Path) -> list[dict[str, str]]:
    """The rendered prompt of every role, for a wrong completion of each example that has a right sibling."""
    _, chat = sd.load_policy(save_bytewise_model(folder / "model"))
    groups = []
    for example in examples:
        texts = ("the sibling", "wrong")
        rollouts = [Rollout((), chat.response(t), (0.0,) * len(chat.response(t)), True, t, 0) for t in texts]
        groups.append(RolloutGroup(example, tuple(rollouts), (Verdict(1.0), Verdict(0.0))))
    roles = build_method(method).roles()
    shown = render(groups, roles, sd.load_templates("default"), chat, thinking=None, seed=0)
    return [{name: chat.tokenizer.decode(group[1][name]) for name in roles} for group in shown]


def names_in(text: str) -> set[int]:
    """The rows whose tools, or whose request, stand in a prompt."""
    return {n for n in range(4) if f"look_up_{n}" in text or f"request {n}" in text}


@pytest.mark.parametrize("form", ["react", "template"])
def test_the_contrast_shows_the_other_rows_tools_and_none_of_its_own(form: str, tmp_path: Path) -> None:
    examples = toolalpaca(tmp_path, form=form)
    numbers = [int(example.prompt[-1].content.rpartition("request ")[2][0]) for example in examples]
    for number, shown in zip(numbers, prompts("credit", examples, tmp_path), strict=True):
        assert names_in(shown["teacher"]) == {number}
        (other,) = names_in(shown["contrast_0"])
        assert other != number
        # Request and tools are the other's, the sibling is the own.
        assert f"request {other}?" in shown["contrast_0"] and f"look_up_{other}" in shown["contrast_0"]
        assert "the sibling" in shown["contrast_0"]


@pytest.mark.parametrize("form", ["react", "template"])
def test_a_reference_alone_has_nothing_of_the_input(form: str, tmp_path: Path) -> None:
    examples = toolalpaca(tmp_path, form=form, system="A system text about $prompt")
    for example, shown in zip(examples, prompts("purified", examples, tmp_path), strict=True):
        assert "A system text" in shown["teacher"] and "A system text" in shown["base"]
        alone = shown["reference_only"]
        assert example.fields["solution"] in alone
        assert "system" not in alone and "request" not in alone and "Description" not in alone


def test_another_input_differs_in_any_of_its_messages() -> None:
    def group(*prompt: Message) -> RolloutGroup:
        return RolloutGroup(Example(f"{prompt}", prompt), (), ())

    ask = Message("user", "why?")
    plain, told, earlier = (ask,), (Message("system", "Be brief."), ask), (ask, Message("assistant", "so."), ask)
    groups = [group(*prompt) for prompt in (plain, told, earlier, plain)]
    for g, own in enumerate((plain, told, earlier, plain)):
        others = [other_input(groups, g, contrast=k, seed=3) for k in range(2)]
        assert set(others) == {plain, told, earlier} - {own}
        assert other_input(groups, g, contrast=2, seed=3) == ()
