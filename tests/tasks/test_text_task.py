"""Rows without a verifier: TRL's forms, what contexts show of them, and runs that say nothing of accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import selfdistill as sd
from selfdistill.config.run import parse_config
from selfdistill.errors import ConfigError, DataError, UserError
from selfdistill.types import Message
from support.bytewise import save_bytewise_model
from support.runs import lines, train

USER, BOT = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}
SYSTEM, THANKS = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sure?"}
ASKED = (Message("user", "1 + 1?"),)

FORMS: dict[str, tuple[dict[str, Any], tuple[Message, ...], dict[str, str], str]] = {
    "SFT and SDFT": (
        {"prompt": "1 + 1?", "completion": " 2", "privileged_context": "It is 2."},
        ASKED,
        {"response": " 2", "privileged_context": "It is 2.", "solution": "It is 2."},
        "prompt + completion + privileged_context",
    ),
    "SDPO and GRPO": ({"prompt": [USER], "solution": "so 2"}, ASKED, {"solution": "so 2"}, "prompt + solution"),
    "chat": ({"prompt": [USER], "completion": [BOT]}, ASKED, {"response": "2", "solution": "2"}, "prompt + completion"),
    "a conversation": (
        {"messages": [SYSTEM, USER, BOT, THANKS, {**BOT, "content": "Yes."}]},
        (Message("system", "Be brief."), *ASKED, Message("assistant", "2"), Message("user", "Sure?")),
        {"response": "Yes.", "solution": "Yes."},
        "messages",
    ),
    "prompts alone": ({"prompt": "1 + 1?", "completion": None}, ASKED, {}, "prompt"),
    "parts and tools": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "1 + 1?"}]}], "tools": [{"name": "add"}]},
        (Message("tools", '[{"name": "add"}]'), *ASKED),
        {},
        "prompt",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_trl_is_read_as_it_is(form: str) -> None:
    row, prompt, fields, named = FORMS[form]
    task = sd.load_task(preset="trl", path=[row], test_share=0.0, validation_share=0.0)
    [example] = task.examples("train")
    assert (example.prompt, example.fields, example.columns) == (prompt, fields, row)
    assert task.warnings()[0] == f"read 1 row as {named}"  # type: ignore[attr-defined]
    assert (task.has_verifier, task.verify(example, "2", finished=True).reward) == (False, None)


REFUSED = {
    "no form of TRL": ({"text": "x"}, "no 'prompt' and no 'messages'; the row has text"),
    "preferences": (
        {"chosen": [USER, BOT], "rejected": []},
        "names no single response: keep one conversation by task.messages = 'chosen'$",
    ),
    "preferences with a prompt": (
        {"prompt": "1 + 1?", "chosen": "2", "rejected": "3"},
        "names no single response: keep one of them by task.completion = 'chosen'$",
    ),
    "preferences of conversations with a prompt": (
        {"prompt": "1 + 1?", "chosen": [USER, BOT], "rejected": [USER, BOT], "messages": [USER, BOT]},
        r"keep one of them by task\.completion = 'chosen\.1\.content'$",
    ),
    "preferences of whole texts": ({"chosen": "Q: 1? A: 1", "rejected": "Q: 1?"}, "and has no prompt of its own"),
    "a labelled completion": (
        {"prompt": "1 + 1?", "completion": "3", "label": False},
        r"\(KTO\), .* learn all of them by task\.completion = 'completion'$",
    ),
    "a label of a table": ({"prompt": "1 + 1?", "completion": "3", "label": "True"}, r"\(KTO\)"),
    "labelled steps": ({"prompt": "1?", "completions": ["1", "2"], "labels": [True, False]}, "labelled steps"),
    "an empty prompt": ({"prompt": " "}, "must end with a message of the user that is not empty"),
    "an open answer": ({"prompt": [USER, BOT]}, "must end with a message of the user"),
    "no answer": ({"messages": [USER]}, "the last of 'messages' must be the assistant's response"),
    "a role": ({"prompt": [{"role": "robot", "content": "x"}]}, "message 1 of 'prompt' must have a role"),
    "an image": ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "images and other parts"),
    "a call": ({"messages": [USER, {**BOT, "tool_calls": [{}]}]}, "calls tools, which a text does not hold"),
    "two answers": (
        {"prompt": [USER], "completion": [BOT, BOT]},
        "must hold one message of the assistant, it has assistant, assistant",
    ),
    "an answer of the user": ({"prompt": [USER], "completion": [USER]}, "of the assistant, it has user"),
    "one tool without a list": ({"prompt": "x", "tools": {"name": "add"}}, "the tools are no list of JSON objects"),
    "a text about tools": ({"prompt": "x", "tools": "a saw"}, "name the column otherwise"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_row_that_a_text_cannot_hold_is_named(what: str) -> None:
    row, sentence = REFUSED[what]
    with pytest.raises(DataError, match=f"^rows, line 1: .*{sentence}"):
        sd.load_task("text", path=[row])


@pytest.mark.parametrize(
    ("row", "settings", "response"),
    [
        ({"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}, {"completion": "chosen"}, "2"),
        ({"prompt": "1?", "chosen": [USER, BOT], "rejected": [USER]}, {"completion": "chosen.1.content"}, "2"),
        ({"chosen": [USER, BOT], "rejected": [USER]}, {"messages": "chosen"}, "2"),
        ({"prompt": "1 + 1?", "completion": "3", "label": False}, {"completion": "completion"}, "3"),
        # A number, or a label without a completion, is a column like any other.
        ({"prompt": "1 + 1?", "completion": "3", "label": 1}, {}, "3"),
        ({"prompt": "1 + 1?", "label": True}, {}, None),
        ({"prompt": "1 + 1?", "completion": "2", "chosen": "2", "rejected": "3"}, {}, "2"),
        ({"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}, {"fields": {"good": "chosen"}}, None),
    ],
)
def test_the_setting_that_a_refusal_names_reads_the_row(
    row: dict[str, Any], settings: dict[str, Any], response: str | None
) -> None:
    task = sd.load_task("text", path=[row], test_share=0.0, validation_share=0.0, **settings)
    assert task.examples("train")[0].fields.get("response") == response


def test_rows_without_answers_are_sent_to_this_task() -> None:
    rows = [{"question": f"{n}?", "solution": "2"} for n in range(3)]
    with pytest.raises(DataError, match=r'nothing verifies, are read by task\.kind = "text"\)$'):
        sd.load_task("math", path=rows, solution="solution")
    task = sd.load_task("text", path=rows, prompt="question")
    assert task.examples("train")[0].fields == {"solution": "2"}


def test_other_columns_are_named_and_required_ones_are_missed() -> None:
    rows = [{"q": "1 + 1?", "gold": {"text": "so 2"}, "r": "2"}]
    names: dict[str, Any] = {"prompt": "$q Think.", "solution": "gold.text", "completion": "r", "system": "Hello."}
    whole: dict[str, Any] = {"test_share": 0.0, "validation_share": 0.0}
    [example] = sd.load_task("text", path=rows, **names, **whole).examples("train")
    assert example.prompt == (Message("system", "Hello."), Message("user", "1 + 1? Think."))
    assert example.fields == {"solution": "so 2", "response": "2"}
    with pytest.raises(DataError, match=r"no 's', which task\.completion names"):
        sd.load_task("text", path=rows, **{**names, "completion": "s"})
    # A source without "?" is required, whatever the row has beside it.
    with pytest.raises(DataError, match=r"no 'gold\.txt', which field 'solution' needs; the row has q, gold, r$"):
        sd.load_task("text", path=rows, **{**names, "solution": "gold.txt"})
    with pytest.raises(DataError, match="has a system message of its own"):
        sd.load_task("text", path=[{"prompt": [SYSTEM, USER]}], system="Hello.")


@pytest.mark.parametrize("gold", [{}, {"text": None}, None])
def test_an_optional_path_may_end_anywhere(gold: object) -> None:
    row = {"prompt": "1 + 1?", "completion": "2", "gold": gold}
    task = sd.load_task("text", path=[row], solution="gold.text?", test_share=0.0, validation_share=0.0)
    assert task.examples("train")[0].fields == {"response": "2", "solution": "2"}


def test_a_template_of_the_prompt_comes_before_a_conversation() -> None:
    row = {"q": "1 + 1?", "messages": [USER, BOT]}
    task = sd.load_task("text", path=[row], prompt="$q Think.", test_share=0.0, validation_share=0.0)
    assert task.examples("train")[0].prompt == (Message("user", "1 + 1? Think."),)


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bytewise_model(tmp_path_factory.mktemp("model"))


def config(folder: Path, model: Path, method: str, **changes: Any) -> Any:
    rows = [{"prompt": f"{n} + 1?", "completion": f"{n + 1}", "privileged_context": "count"} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    raw = {
        "steps": 2,
        "model": {"path": str(model)},
        "task": {"preset": "trl", "path": str(folder / "rows.jsonl")},
        "method": {"name": method},
        "optimiser": {"learning_rate": 0.01, "warmup": 0},
        "sampling": {"prompts": 2, "completions": 2, "max_tokens": 6},
        "evaluation": {"every": 1, "problems": 2, "samples": 2},
    }
    return parse_config({**raw, **changes}, "a test")


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("switch", [True, False])
def test_the_switch_of_evaluations_holds_for_all_that_they_measure(
    tmp_path: Path, bytewise: Path, switch: bool
) -> None:
    measured = []
    for name, sampling in (("same", switch), ("other", not switch)):
        settings = config(
            tmp_path,
            bytewise,
            "opsd",
            sampling={"prompts": 2, "completions": 2, "max_tokens": 6, "thinking": sampling},
            evaluation={"every": 1, "problems": 2, "samples": 2, "thinking": switch},
        )
        train(settings, tmp_path / name)
        measured.append(lines(tmp_path / name / "evaluations.jsonl")[0])
    assert abs(measured[0]["teacher_shift"]["value"]) > 1e-6
    for key in ("loglikelihood", "teacher_gap", "teacher_shift"):
        assert measured[1][key] == measured[0][key]


@pytest.mark.usefixtures("no_page")
def test_a_run_measures_references_and_the_teacher_instead_of_accuracy(tmp_path: Path, bytewise: Path) -> None:
    evaluation = {"every": 1, "problems": 2, "samples": 2, "best": "loglikelihood"}
    summary = train(config(tmp_path, bytewise, "opsd", evaluation=evaluation), tmp_path / "run")
    rows = lines(tmp_path / "run" / "evaluations.jsonl")
    for row in rows:
        assert (row["avg"], row["reward"], row["judged"]) == (None, None, 0)
        assert row["loglikelihood"]["value"] < 0
        assert {"teacher_gap", "teacher_shift"} <= set(row)
    values = [row["loglikelihood"]["value"] for row in rows]
    assert (summary["best_by"], summary["best_step"]) == ("loglikelihood", values.index(max(values)))

    # The number is what the model itself says of the response, token by token, without any of our scoring.
    policy, chat = sd.load_policy(str(bytewise))
    task = sd.load_task(preset="trl", path=str(tmp_path / "rows.jsonl"))
    means = []
    for example in task.examples("validation")[:2]:
        prompt, written = chat.encode(example.prompt), chat.response(example.fields["response"])
        with torch.no_grad():
            logits = policy.model(torch.tensor([[*prompt, *written]])).logits[0, len(prompt) - 1 : -1]
        known = logits[:, : policy.vocab_size].log_softmax(-1)
        means.append(known.gather(1, torch.tensor(written)[:, None]).mean().item())
    assert values[0] == pytest.approx(sum(means) / len(means), abs=1e-5)


@pytest.mark.usefixtures("no_page")
def test_what_a_run_cannot_measure_is_refused_before_it_begins(tmp_path: Path, bytewise: Path) -> None:
    for method, best, sentence in (
        ("sft", "teacher_gap", "method 'sft' has no teacher"),
        ("opsd", "success", "nothing is judged in this task"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            train(config(tmp_path, bytewise, method, evaluation={"best": best}), tmp_path / "run")
    with pytest.raises(UserError, match="needs rewards, but the task has no verifier"):
        train(config(tmp_path, bytewise, "grpo"), tmp_path / "run")
