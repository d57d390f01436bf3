"""Calls in the syntaxes that chat templates teach: found by asking the template, written by it, read back from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfdistill.config.tasks import ToolsConfig
from selfdistill.contexts import rendering
from selfdistill.errors import ModelError
from selfdistill.tasks.tools.calls import Call, MalformedCall
from selfdistill.tasks.tools.syntax import find_calls, syntax_of
from selfdistill.tasks.tools.task import ToolsTask
from support.tool_templates import EACH, TEMPLATES, chat_of

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "w",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "detail": {"type": "boolean"},
                    "places": {"type": "array"},
                },
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "list_towns", "description": "l", "parameters": {"type": "object", "properties": {}}},
    },
]
BERN = Call("get_weather", {"city": "Bern", "days": 3, "detail": True})
TOWNS = Call("list_towns", {})


def tools_task(path: Path, *calls: Call, **options: Any) -> ToolsTask:
    answers = [{"name": call.name, "arguments": call.arguments} for call in calls]
    row = {"prompt": "Bern?", "answer": json.dumps(answers), "tools": json.dumps(TOOLS)}
    file = path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return ToolsTask(
        ToolsConfig(path=str(file), form="template", tools="tools", validation_share=0.0, test_share=0.0, **options)
    )


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_task_reads_and_writes_calls_as_the_template_does(tmp_path: Path, family: str) -> None:
    chat = chat_of(TEMPLATES[family])
    plain = tools_task(tmp_path, BERN, TOWNS)
    task = plain.fitted(chat)
    (example,) = task.examples("train")
    assert example.columns["wanted_calls"] == [BERN, TOWNS]
    text = task.reference(example)
    assert example.fields["solution"] == text
    assert "<|end|>" not in text and "think" not in text
    verdict = task.verify(example, f"I look.\n\n{text}", finished=True)
    assert verdict.correct, (text, verdict)
    assert not task.verify(example, text.replace("Bern", "Genf"), finished=True).correct
    # A task that knows no template reads every syntax.
    assert plain.verify(plain.examples("train")[0], text, finished=True).correct


def test_calls_of_another_syntax_are_none_and_the_feedback_shows_the_template_s(tmp_path: Path) -> None:
    task = tools_task(tmp_path, TOWNS).fitted(chat_of(TEMPLATES["qwen3-coder"]))
    (example,) = task.examples("train")
    verdict = task.verify(example, "[TOOL_CALLS]list_towns[ARGS]{}", finished=True)
    assert verdict.feedback == "no call of a tool was found; it is written <tool_call><function=f></tool_call>"


@pytest.mark.parametrize(
    ("calls", "sentence"),
    [
        (
            EACH + "CALL {{ f.name }} WITH {{ f.arguments }}{% endfor %}",
            "the chat template of toy writes calls of tools in no syntax that can be read back: "
            'write task.form = "react"',
        ),
        (
            "",
            "the chat template of toy writes calls of tools in no syntax that can be read back: "
            'write task.form = "react"',
        ),
        (
            EACH + "{{ 1 / 0 }}{% endfor %}",
            "the chat template of toy writes calls of tools in no syntax that can be read back: "
            'write task.form = "react"',
        ),
    ],
)
def test_a_template_whose_calls_cannot_be_read_back_is_refused(tmp_path: Path, calls: str, sentence: str) -> None:
    with pytest.raises(ModelError) as raised:
        tools_task(tmp_path, TOWNS).fitted(chat_of(calls))
    assert str(raised.value) == sentence


def test_a_template_that_never_ends_its_calls_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.2)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError, match=r"takes more than 0\.2 seconds .*: look for a loop"):
        tools_task(tmp_path, TOWNS).fitted(chat_of(EACH + loop + "{% endfor %}"))


def test_values_that_xml_cannot_tell_apart_are_compared_as_the_schema_types_them(tmp_path: Path) -> None:
    task = tools_task(tmp_path, Call("get_weather", {"city": "3", "days": "3"})).fitted(
        chat_of(TEMPLATES["qwen3-coder"])
    )
    (example,) = task.examples("train")
    assert example.columns["wanted_calls"] == [Call("get_weather", {"city": "3", "days": 3})]
    assert task.verify(example, task.reference(example), finished=True).correct


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>[{"name": "f", "arguments": {}}, {"name": "g"}]</tool_call>', [Call("f", {}), Call("g", {})]),
        ('<tool_call>\n```json\n{"name": "f", "arguments": null}\n```\n</tool_call>', [Call("f", {})]),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "b</tool_call>c"}}</tool_call>',
            [Call("f", {"a": "b</tool_call>c"})],
        ),
        (
            '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}',
            [Call("f", {"a": 1}), Call("g", {})],
        ),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}', [Call("f", {"a": 1})]),
        ('```json\n{"name": "f", "parameters": {"a": 1}}\n```', [Call("f", {"a": 1})]),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]</s>', [Call("f", {"a": 1})]),
        ('[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g{}', [Call("f", {"a": 1}), Call("g", {})]),
        (
            "<function_calls>f(a='x', b=[1, None], c=true)</function_calls>",
            [Call("f", {"a": "x", "b": [1, None], "c": True})],
        ),
        ("<function_calls>\na.f(x=-1)\ng()\n</function_calls>", [Call("a.f", {"x": -1}), Call("g", {})]),
        (
            '<function_calls>\n<invoke name="get_weather">\n<parameter name="days">3</parameter>\n</invoke>\n'
            "</function_calls>",
            [Call("get_weather", {"days": 3})],
        ),
        (
            "<tool_call>\n<function=get_weather>\n<parameter=city>\n 3 \n</parameter>\n<parameter=places>\n[1, 2]\n"
            "</parameter>\n<parameter=detail>\nFalse\n</parameter>\n</function>\n</tool_call>",
            [Call("get_weather", {"city": " 3 ", "places": [1, 2], "detail": False})],
        ),
        ("<tool_call>\n<function=list_towns>\n</function>\n</tool_call>", [TOWNS]),
        ("<tool_call>list_towns\n</tool_call>", [TOWNS]),
        (
            '<|python_start|>I look.<|python_end|>{"name": "f", "parameters": {"a": 1}}{"name": "g", "parameters": {}}',
            [Call("f", {"a": 1}), Call("g", {})],
        ),
        ("<|python_start|>[f(a=1)]<|python_end|>", [Call("f", {"a": 1})]),
        ("There are {braces} and [lists] here.", []),
        # The sampler may keep the marks of the end of a turn.
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}<|eom_id|>', [Call("f", {"a": 1})]),
        ('[TOOL_CALLS][{"name": "f", "arguments": {}}]<|im_end|>', [Call("f", {})]),
        # Granite closes no tag, FunctionGemma has marks of its own, Llama-3.1 writes JSON between XML tags.
        ('<|tool_call|>[{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]', [Call("f", {"a": 1}), Call("g", {})]),
        (
            '<start_function_call>call:f{a:<escape>x } "y", b: {z}<escape>,b:[1,{c:true}]}<end_function_call>'
            "<start_function_call>call:g{}<end_function_call>",
            [Call("f", {"a": 'x } "y", b: {z}', "b": [1, {"c": True}]}), Call("g", {})],
        ),
        ('<function=f>{"a": 1}</function>', [Call("f", {"a": 1})]),
        # A tag inside the value of an XML argument is text.
        (
            "<tool_call>\n<function=get_weather>\n<parameter=city>\na</parameter>b</function>c</tool_call><tool_call>d\n"
            "</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            [Call("get_weather", {"city": "a</parameter>b</function>c</tool_call><tool_call>d", "days": 3})],
        ),
        (
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>a</tool_call>b</arg_value>c</arg_value>\n"
            "</tool_call><tool_call>list_towns</tool_call>",
            [Call("get_weather", {"city": "a</tool_call>b</arg_value>c"}), TOWNS],
        ),
        # Without tags: a list in Python syntax, and JSON on a line of its own, of tools that exist.
        ("[get_weather(days=3), list_towns()]", [Call("get_weather", {"days": 3}), TOWNS]),
        ("[find(days=3)]", []),
        ('I look.\n{"name": "list_towns", "parameters": {}}', [TOWNS]),
        ('He is\n{"name": "Tom", "arguments": {}}', []),
        ('So it is\n{"name": "Tom", "age": 3}', []),
    ],
)
def test_calls_are_read(text: str, calls: list[Call]) -> None:
    assert find_calls(text, TOOLS) == calls


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "<tool_call>{'name': 'f'}</tool_call>",
            "the tool call is not valid JSON: Expecting property name enclosed in",
        ),
        ('<tool_call>{"name": "f", "arguments": {"a": 1, "a": 2}}</tool_call>', "the key 'a' stands twice"),
        ('<tool_call>{"name": "f"}', "the call behind <tool_call> is not closed by </tool_call>"),
        ("<tool_call></tool_call>", "the tool call is empty"),
        ("<function_calls>f(1)</function_calls>", "its arguments need names"),
        ("<function_calls>f(a=1, a=2)</function_calls>", "an argument stands twice"),
        ("<function_calls>f(a=open)</function_calls>", "an argument is no literal: open"),
        (
            "<tool_call><function=f><parameter=a>1</parameter><parameter=a>2</parameter></function></tool_call>",
            "the argument 'a' of f stands twice",
        ),
        (
            '<tool_call>{"name": "f", "arguments": {}, "parameters": {}}</tool_call>',
            "has both arguments and parameters",
        ),
        ('<tool_call>{"name": "f', "the call behind <tool_call> is not closed"),
        ('<|tool_call|>[{"name": "f"}', "is not valid JSON: Expecting ',' delimiter at character 15"),
        (
            '[TOOL_CALLS]f[ARGS]{"a": "b',
            "input of f is not valid JSON: Unterminated string starting at character 7",
        ),
        ('<function=f>{"a": 1</function>', "the input of f is not valid JSON: Expecting"),
        # A first tag that is left open is no text of a value.
        (
            "<tool_call>\n<function=f>\n</function>\n<tool_call>\n<function=f>\n</function>\n</tool_call>",
            "the call behind <tool_call> is not closed by </tool_call>",
        ),
        ('<tool_call>{"name": "f", "arguments": {"a": "\\ud83d"}}</tool_call>', r"\\ud83d is half of a character"),
        ("<function_calls>f(a='\\ud83d')</function_calls>", "an argument is no literal"),
        ("<function_calls>f(a=(</function_calls>", r"the tool call is no Python call: '\(' was never closed$"),
        (f"<function_calls>f(a={'9' * 5000})</function_calls>", "no Python call: a number has too many digits$"),
    ],
)
def test_a_malformed_call_says_what_is_wrong(text: str, sentence: str) -> None:
    with pytest.raises(MalformedCall, match=sentence):
        find_calls(text, TOOLS)


@pytest.mark.parametrize("levels", [3000, 100_000])
@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{{"name": "f", "arguments": {{"a": {opened}{closed}}}}}</tool_call>',
        '[TOOL_CALLS]f[ARGS]{{"a": {opened}{closed}}}',
        "<function_calls>f(a={opened}{closed})</function_calls>",
        "<function_calls>f(a={minus}1)</function_calls>",
        "<function_calls>f(a={plus}1)</function_calls>",
        "<function_calls>f{dots}(a=1)</function_calls>",
        "<|tool_call>call:f{{a:{opened}{closed}}}<tool_call|>",
    ],
)
def test_a_call_that_is_nested_too_deeply_is_malformed(text: str, levels: int) -> None:
    parts = {"opened": "[", "closed": "]", "minus": "-", "plus": "1+", "dots": ".b"}
    written = text.format(**{name: part * levels for name, part in parts.items()})
    with pytest.raises(MalformedCall, match=r"nested too deeply|is no literal") as raised:
        find_calls(written, TOOLS)
    assert len(str(raised.value)) < 200


def test_a_value_that_is_nested_too_deeply_stays_a_text() -> None:
    nested = "[" * 900 + "]" * 900
    text = f"<function=get_weather><parameter=places>{nested}</parameter></function>"
    assert find_calls(text, TOOLS) == [Call("get_weather", {"places": nested})]


def test_a_name_with_dashes_is_called_in_python_too() -> None:
    schema = {"function": {"name": "files.read-all", "parameters": {"type": "object", "properties": {}}}}
    call = Call("files.read-all", {"path": "[files.read-all(x)]"})
    text = "<|tool_call_start|>[files.read-all(path='[files.read-all(x)]')]<|tool_call_end|>"
    assert find_calls(text, [schema]) == [call]


@pytest.mark.parametrize(
    "mark", ["</tool_call>", "<tool_call>", "[TOOL_CALLS]", "</think>", "</reasoning>", "[/THINK]"]
)
@pytest.mark.parametrize("family", ["hermes", "llama", "mistral", "olmo"])
def test_a_mark_inside_a_quoted_value_is_text(tmp_path: Path, family: str, mark: str) -> None:
    task = tools_task(tmp_path, Call("get_weather", {"city": "mark", "places": ["a", "mark"]}))
    (example,) = task.examples("train")
    written = task.fitted(chat_of(TEMPLATES[family])).examples("train")[0].fields["solution"]
    example.columns["wanted_calls"][0].arguments.update({"city": mark, "places": ["a", mark]})
    verdict = task.verify(example, "I look.\n" + written.replace("mark", mark), finished=True)
    assert verdict.correct, verdict
    assert not task.verify(example, "I look.\n" + written, finished=True).correct


def test_a_template_that_writes_nothing_has_no_syntax() -> None:
    assert syntax_of(lambda calls: "") is None


CASES = Path(__file__).parents[1] / "cases" / "tools.json"


def test_the_cases_are_judged_as_a_careful_reader_judges_them(tmp_path: Path) -> None:
    told = json.loads(CASES.read_text(encoding="utf-8"))
    wrong = []
    for case in told["cases"]:
        file = tmp_path / "rows.jsonl"
        row = {"prompt": "p", "answer": case["answers"], "tools": told["tools"]}
        file.write_text(json.dumps(row) + "\n", encoding="utf-8")
        task = ToolsTask(
            ToolsConfig(path=str(file), form=case["form"], tools="tools", validation_share=0.0, test_share=0.0)
        )
        verdict = task.verify(task.examples("train")[0], case["completion"], finished=True)
        if verdict.correct != case["right"]:
            wrong.append((case["label"], verdict))
    assert len(told["cases"]) > 60 and not wrong


@pytest.mark.parametrize("family", ["hermes", "deepseek", "mistral", "qwen3-coder"])
def test_a_prompt_that_opens_a_thought_takes_nothing_from_the_call(tmp_path: Path, family: str) -> None:
    plain = chat_of(TEMPLATES[family])
    thinking = chat_of(TEMPLATES[family])
    thinking.tokenizer.chat_template = str(plain.tokenizer.chat_template).replace(
        "<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}"
    )
    written = [
        tools_task(tmp_path, BERN).fitted(chat).examples("train")[0].fields["solution"] for chat in (plain, thinking)
    ]
    assert written[0] == written[1]
