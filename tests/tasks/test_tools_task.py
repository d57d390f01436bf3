"""Use of tools: calls in both forms, equality as JSON, shares and feedback, and schemas through a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfdistill.config.run import parse_config
from selfdistill.config.tasks import ToolsConfig
from selfdistill.contexts.chat import Chat
from selfdistill.contexts.templates import Template, apply
from selfdistill.errors import ConfigError, DataError, ModelError
from selfdistill.tasks.tools.calls import (
    Call,
    MalformedCall,
    documented_schemas,
    react_calls,
    react_text,
    read_calls,
    read_schemas,
    same,
)
from selfdistill.tasks.tools.syntax import find_calls, hermes_text
from selfdistill.tasks.tools.task import ToolsTask
from selfdistill.types import Example, Verdict
from support.tiny import STOP, tiny_tokenizer

DOCUMENTATION = (
    "You have access to the following tools:\nName: Weather\nDocumentation:\n"
    'getWeather: The weather of a town.\nParameters: {"town": "string. The town.", "days": "integer. How many days."}\n'
    "Output: Successful response.\n"
    "getTowns: All towns.\nParameters: {}\nOutput: Successful response.\n\nBegin!\nQuestion: "
)
BERN = {"Action": "getWeather", "Action_Input": '{"town": "Bern", "days": 3}'}
TOWNS = {"Action": "getTowns", "Action_Input": "{}"}
OPTIONAL = {"Action": "[Optional]getTowns", "Action_Input": "{}"}


def one_of(path: Path, *calls: dict[str, Any], **arguments: Any) -> tuple[ToolsTask, Example]:
    row = {"prompt": DOCUMENTATION + "Bern, three days?", "answer": json.dumps(calls), "system": None}
    file = path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    task = ToolsTask(ToolsConfig(path=str(file), validation_share=0.0, test_share=0.0, **arguments))
    (example,) = task.examples("train")
    return task, example


def react(name: str, arguments: str) -> str:
    return f"Thought: hm\nAction: {name}\nAction Input: {arguments}"


@pytest.mark.parametrize(
    ("text", "call"),
    [
        (react("getWeather", '{"town": "Bern"}'), Call("getWeather", {"town": "Bern"})),
        ("Action: getTowns Action Input: {}", Call("getTowns", {})),
        ("**Action:** `getTowns`\n**Action Input:** {}", Call("getTowns", {})),
        ("Action: getTowns()\nAction Input:\n```json\n{}\n```\nObservation: none", Call("getTowns", {})),
        ('Action: f\nAction_Input: {"a": [1, {"b": null}]} and so on', Call("f", {"a": [1, {"b": None}]})),
        ('Action: f\nAction Input: {"a": "two\nlines"}', Call("f", {"a": "two\nlines"})),
        ('Action: [f]\nAction Input: {"a": 1}', Call("f", {"a": 1})),
        ('Action：f\nAction Input：{"a": 1}', Call("f", {"a": 1})),
        ('**Action:**\nf\n**Action Input:**\n{"a": 1}', Call("f", {"a": 1})),
        ('Action: f\nAction Input: "{\\"a\\": 1}"', Call("f", {"a": 1})),
        ('Action: f\nAction Input: ""', Call("f", {})),
    ],
)
def test_a_react_call_is_read(text: str, call: Call) -> None:
    assert react_calls(text) == [call]


def test_template_calls_are_read_and_written() -> None:
    calls = [Call("f", {"a": 1, "b": "é"}), Call("g", {})]
    assert react_calls(f"first\n{react_text(calls)} last") == calls
    assert find_calls(f"first\n{hermes_text(calls)} last", []) == calls
    assert hermes_text(calls[1:]) == '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    assert find_calls('<tool_call>{"name": "g", "arguments": "{}"}</tool_call>', []) == calls[1:]


def test_equality_is_that_of_json_values() -> None:
    assert same({"a": 1, "b": [1.0, "x"]}, {"b": [1, "x"], "a": 1.0})
    for one, other in ((1, "1"), (1, True), (0, False), (None, ""), ([1, 2], [2, 1]), ({"a": 1}, {}), ("a", "A")):
        assert not same(one, other)


@pytest.mark.parametrize(
    ("text", "reward", "feedback"),
    [
        (react("getWeather", '{"days": 3.0, "town": "Bern"}'), 1.0, None),
        (
            "<think>" + react("getTowns", "{}") + "</think>" + react("getWeather", '{"town": "Bern", "days": 3}'),
            1.0,
            None,
        ),
        ("It is sunny.", 0.0, "no 'Action:' with an 'Action Input:' was found"),
        (react("getRain", "{}"), 0.0, "there is no tool getRain; the tools are getWeather, getTowns"),
        (react("getTowns", "{}"), 0.0, "getTowns is the wrong tool here"),
        (react("getWeather", '{"town": "Bern"}'), 0.0, "the call of getWeather lacks the argument 'days'"),
        (
            react("getWeather", '{"town": "Bern", "days": "3"}'),
            0.0,
            "the argument 'days' of getWeather is wrong: \"3\"",
        ),
        (
            react("getWeather", '{"town": "Bern", "days": 3, "unit": "C"}'),
            0.0,
            "the call of getWeather has an argument 'unit' too many",
        ),
        (
            react("getWeather", '{"town": Bern}'),
            0.0,
            "the input of getWeather is not valid JSON: Expecting value at character 10",
        ),
        (react("getWeather", "Bern"), 0.0, "the input of getWeather is not a JSON object: 'Bern'"),
        ("Action: getWeather\nand then", 0.0, "the action getWeather has no 'Action Input:'"),
        ("Action: getTowns\nand then", 0.0, "getTowns is the wrong tool here"),
        (
            react("getWeather", '{"town": "Bern", "days": 3}') + "\n" + react("getTowns", "{}"),
            0.0,
            "the call of getTowns is one too many",
        ),
        (react("[getTowns]", "{}"), 0.0, "getTowns is the wrong tool here"),
        (react("", "{}"), 0.0, "an action has no name"),
        (
            react("getWeather", '"{\\"town\\": \\"Bern\\""'),
            0.0,
            "the input of getWeather is not valid JSON: Expecting ',' delimiter at character 16",
        ),
        (react("getWeather", '"Bern"'), 0.0, "the input of getWeather is not a JSON object: '\"Bern\"'"),
        (
            react("getWeather", '{"town": "' + "\\udc00" + '"}'),
            0.0,
            "the input of getWeather is not valid JSON: \\udc00 is half of a character",
        ),
        (
            react("getWeather", '{"town": ' + "[" * 900 + "]" * 900 + "}"),
            0.0,
            "the input of getWeather is not valid JSON: it is nested too deeply",
        ),
        (
            react("getWeather", '{"days": ' + "9" * 5000 + "}"),
            0.0,
            "the input of getWeather is not valid JSON: a number has too many digits",
        ),
        (
            react("g" * 1000, "{}"),
            0.0,
            f"there is no tool {'g' * 80}…; the tools are getWeather, getTowns",
        ),
        (
            "\n".join([react("getWeather", '{"town": "Bern", "days": 3}')] * 13),
            0.0,
            "; ".join(["the call of getWeather is one too many"] * 10) + "; 2 more faults",
        ),
    ],
)
def test_verdicts(tmp_path: Path, text: str, reward: float, feedback: str | None) -> None:
    task, example = one_of(tmp_path, BERN)
    verdict = task.verify(example, text, finished=True)
    assert (verdict.reward, verdict.feedback) == (reward, feedback)


def test_a_reference_scores_one_and_a_cut_completion_nothing(tmp_path: Path) -> None:
    task, example = one_of(tmp_path, BERN, TOWNS)
    assert example.fields["solution"] == (
        'Action: getWeather\nAction Input: {"town": "Bern", "days": 3}\nAction: getTowns\nAction Input: {}'
    )
    right = Verdict(1.0, 'getTowns({}) getWeather({"days": 3, "town": "Bern"})', None, {"share": 1.0})
    assert task.verify(example, task.reference(example), finished=True) == right
    cut = task.verify(example, task.reference(example), finished=False)
    assert (cut.reward, cut.feedback) == (0.0, "the completion was cut off before its calls ended")
    one_call = task.verify(example, react("getTowns", "{}"), finished=True)
    assert (one_call.reward, one_call.feedback) == (0.0, "a call is missing")


def test_order_counts_if_it_is_asked_for(tmp_path: Path) -> None:
    swapped = react("getTowns", "{}") + "\n" + react("getWeather", '{"town": "Bern", "days": 3}')
    task, example = one_of(tmp_path, BERN, TOWNS)
    assert task.verify(example, swapped, finished=True).correct
    task, example = one_of(tmp_path, BERN, TOWNS, ordered=True)
    assert not task.verify(example, swapped, finished=True).correct
    assert task.verify(example, task.reference(example), finished=True).correct


def test_the_share_that_is_right_is_worked_out_by_hand(tmp_path: Path) -> None:
    task, example = one_of(tmp_path, BERN, TOWNS, partial=0.5)
    # getTowns whole (1), getWeather's tool (1/2) and one of its two arguments (1/4): 7/8 of two calls.
    text = react("getTowns", "{}") + "\n" + react("getWeather", '{"town": "Bern", "days": 4}')
    verdict = task.verify(example, text, finished=True)
    assert verdict.details == {"share": 0.875}
    assert verdict.reward == 0.5 * 0.875
    # One right call of two, and one of three when two are superfluous.
    assert task.verify(example, react("getTowns", "{}"), finished=True).reward == 0.25
    assert task.verify(example, "\n".join([react("getTowns", "{}")] * 3), finished=True).reward == pytest.approx(1 / 6)
    assert task.verify(example, "nothing", finished=True).reward == 0.0


def test_an_optional_call_may_be_made_or_left_out_but_not_made_wrong(tmp_path: Path) -> None:
    task, example = one_of(tmp_path, BERN, OPTIONAL)
    bern = react("getWeather", '{"town": "Bern", "days": 3}')
    assert task.reference(example) == 'Action: getWeather\nAction Input: {"town": "Bern", "days": 3}'
    assert task.verify(example, bern, finished=True).correct
    assert task.verify(example, react("getTowns", "{}") + "\n" + bern, finished=True).correct
    wrong = task.verify(example, bern + "\n" + react("getTowns", '{"all": true}'), finished=True)
    assert wrong.feedback == "the call of getTowns has an argument 'all' too many"


def test_an_empty_argument_is_none_if_it_is_asked_for(tmp_path: Path) -> None:
    empty = {"Action": "getWeather", "Action_Input": '{"town": "Bern", "days": ""}'}
    text = react("getWeather", '{"town": "Bern"}')
    task, example = one_of(tmp_path, empty)
    assert not task.verify(example, text, finished=True).correct
    task, example = one_of(tmp_path, empty, ignore_empty=True)
    assert task.verify(example, text, finished=True).correct
    assert task.verify(example, react("getWeather", '{"town": "Bern", "days": 0}'), finished=True).feedback is not None


@pytest.mark.parametrize(
    "text",
    [
        "Action: getTowns",
        "Thought: all.\n**Action:** `getTowns()`\nObservation: none",
        "Action: getTowns\nAction Input:",
    ],
)
def test_a_tool_that_needs_no_arguments_is_called_without_them(text: str, tmp_path: Path) -> None:
    task, example = one_of(tmp_path, {"name": "getTowns", "arguments": {}})
    assert task.verify(example, text, finished=True).correct
    assert not task.verify(example, text.replace("getTowns", "getWeather"), finished=True).correct


@pytest.mark.parametrize(
    ("parameters", "needy"),
    [
        ({"type": "object", "properties": {}}, False),
        ({"type": "object", "properties": {"a": {}}, "required": []}, False),
        ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, True),
        ({"type": "object", "properties": {"a": {}}}, True),
    ],
)
def test_an_action_without_an_input_is_a_call_where_the_schema_requires_nothing(
    parameters: dict[str, Any], needy: bool
) -> None:
    schemas = [{"function": {"name": "f", "parameters": parameters}}]
    if needy:
        with pytest.raises(MalformedCall, match="the action f has no 'Action Input:'"):
            react_calls("Action: f", schemas)
    else:
        assert react_calls("Action: f", schemas) == [Call("f", {})]


def test_schemas_are_read_from_a_documentation_and_from_both_spellings() -> None:
    weather, towns = documented_schemas(DOCUMENTATION)
    assert weather == {
        "type": "function",
        "function": {
            "name": "getWeather",
            "description": "The weather of a town.",
            "parameters": {
                "type": "object",
                "properties": {
                    "town": {"type": "string", "description": "string. The town."},
                    "days": {"type": "integer", "description": "integer. How many days."},
                },
            },
        },
    }
    assert towns["function"]["parameters"] == {"type": "object", "properties": {}}
    assert read_schemas([weather]) == [weather]
    bare = '[{"name": "f", "parameters": {"a": {"type": "int", "description": "n"}, "b": {"type": "str, optional"}}}]'
    (schema,) = read_schemas(bare)
    assert schema["function"]["parameters"] == {
        "type": "object",
        "properties": {"a": {"type": "integer", "description": "n"}, "b": {"type": "string", "description": ""}},
        "required": ["a"],
    }


def test_the_template_form_hands_the_schemas_to_the_chat_template(tmp_path: Path) -> None:
    task, example = one_of(tmp_path, BERN, form="template")
    tools, asked = example.prompt
    assert (tools.role, asked.content) == ("tools", "Bern, three days?")
    tokenizer = tiny_tokenizer()
    chat = Chat(tokenizer, stop_ids=[STOP], window=64, name="tiny")
    with pytest.raises(ModelError, match=r'tiny takes no tools: write task\.form = "react"'):
        chat.encode(example.prompt)
    tokenizer.chat_template = "{% for t in tools %}{{ t.function.name }} {% endfor %}{{ messages | length }} answer"
    rendered: list[str] = []
    apply_template = tokenizer.apply_chat_template

    def spy(*arguments: Any, **options: Any) -> Any:
        rendered.append(str(apply_template(*arguments, **options)))
        return rendered[-1]

    tokenizer.apply_chat_template = spy  # type: ignore[method-assign]
    Chat(tokenizer, stop_ids=[STOP], window=64, name="tiny").encode(example.prompt)
    assert rendered == ["getWeather getTowns 1 answer"]
    text = 'so <tool_call>{"name": "getWeather", "arguments": {"days": 3, "town": "Bern"}}</tool_call>'
    assert task.verify(example, text, finished=True).correct
    said = task.verify(example, '<tool_call>{"name": "getWeather"}</tool_call>', finished=True).feedback
    assert said == "the call of getWeather lacks the argument 'town'; the call of getWeather lacks the argument 'days'"
    none = task.verify(example, react("getTowns", "{}"), finished=True).feedback
    assert none == 'no call of a tool was found; it is written <tool_call>{"name": …, "arguments": …}</tool_call>'


def test_a_context_with_a_system_message_of_its_own_keeps_the_schemas(tmp_path: Path) -> None:
    _, example = one_of(tmp_path, BERN, form="template")
    template = Template("t", "", text="$question $solution", system="Be brief.")
    shown = apply({"t": template}, "t", example.prompt, example.fields)
    assert isinstance(shown, tuple)
    assert [message.role for message in shown] == ["tools", "system", "user"]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("[{]", "the answer is not valid JSON: Expecting property name enclosed in double quotes at character 3"),
        ("[]", "the answer holds no call"),
        ("[3]", "a call must be a JSON object with a name and arguments"),
        ('[{"Action": "f"}]', "a call needs the keys name and arguments (or Action and Action_Input)"),
        ('[{"Action": 3, "Action_Input": "{}"}]', "the name of a call must be a text, this is 3"),
        ('[{"Action": "f", "Action_Input": "[1]"}]', "the input of f is not a JSON object"),
        ('[{"Action": "f", "Action_Input": "{"}]', "the input of f is not valid JSON: "),
        (json.dumps([OPTIONAL]), "every call of the answer is optional, so there is nothing to ask for"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, answer: str, sentence: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "q", "answer": answer}), encoding="utf-8")
    with pytest.raises(DataError) as raised:
        ToolsTask(ToolsConfig(path=str(path)))
    assert str(raised.value).startswith(f"{path}, line 1: {sentence}")


def test_other_spellings_of_calls_and_bad_settings(tmp_path: Path) -> None:
    assert read_calls({"name": "f", "arguments": {"a": 1}}) == [Call("f", {"a": 1})]
    assert read_calls([{"type": "function", "function": {"name": "f", "arguments": "{}"}}]) == [Call("f", {})]
    with pytest.raises(MalformedCall, match="the tools are no list of JSON objects"):
        read_schemas("{}")
    with pytest.raises(ConfigError, match=r"task\.partial: input should be less than 1 \(got 1.0\)"):
        parse_config({"method": "grpo", "task": {"kind": "tools", "path": "rows.jsonl", "partial": 1.0}}, "here")
    path = tmp_path / "bare.jsonl"
    path.write_text(json.dumps({"prompt": "q", "answer": json.dumps([TOWNS])}), encoding="utf-8")
    with pytest.raises(DataError, match=r"the template form needs tool schemas; name their column \(task.tools\)"):
        ToolsTask(ToolsConfig(path=str(path), form="template"))


def test_nulls_that_parquet_adds_are_no_arguments(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    other = {"name": "g", "parameters": {"type": "object", "properties": {"b": {"type": "string", "enum": ["x"]}}}}
    rows = [
        {"prompt": "one", "tools": [tool], "answer": [{"name": "f", "arguments": {"a": 1}}]},
        {"prompt": "two", "tools": [other], "answer": [{"name": "g", "arguments": {"b": "x"}}]},
    ]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    config = ToolsConfig(path=str(path), form="template", tools="tools", validation_share=0.0, test_share=0.0)
    one, two = ToolsTask(config).examples("train")
    assert [one.columns["wanted_calls"], two.columns["wanted_calls"]] == [
        [Call("f", {"a": 1})],
        [Call("g", {"b": "x"})],
    ]
    assert one.columns["tool_schemas"][0]["function"]["parameters"]["properties"] == {"a": {"type": "integer"}}
