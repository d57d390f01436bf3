"""``init`` finds out the task, the columns and the lengths of rows, and writes a config that trains as it is."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfdistill.api.tasks import load_task
from selfdistill.cli.app import main
from selfdistill.cli.find_task import FoundTask
from selfdistill.cli.init import FoundModel, config_text
from selfdistill.config.run import load_config
from selfdistill.types import Example, Message
from support.tiny import tiny_tokenizer

ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}.\n#### {n + 1}"} for n in range(60)],
    "boxed": [{"problem": f"{n} + 1?", "solution": f"It is \\boxed{{{n + 1}}}, as one counts."} for n in range(60)],
    "answers": [{"q_id": n, "query": f"{n} + 1?", "target": n + 1} for n in range(60)],
    "choice": [
        {"question": f"Which is {n}?", "options": [f"{n + 1}", f"{n}"], "answer": "B", "explanation": "It is itself."}
        for n in range(60)
    ],
    "tools": [
        {"prompt": f"Say {n}.", "answer": json.dumps([{"Action": "say", "Action_Input": json.dumps({"n": n})}])}
        for n in range(60)
    ],
    "code": [
        {
            "prompt": f'def f{n}():\n    """Return {n}."""\n',
            "canonical_solution": f"    return {n}\n",
            "entry_point": f"f{n}",
            "test": f"def check(candidate):\n    assert candidate() == {n}\n",
        }
        for n in range(60)
    ],
    "responses": [
        {"prompt": f"Greet {n}.", "response": f"Good day to you, number {n}, and to all."} for n in range(60)
    ],
    "short": [{"prompt": f"Greet {n}.", "response": "Hi."} for n in range(60)],
    "trl": [
        {
            "prompt": [{"role": "user", "content": f"Greet {n}."}],
            "completion": [{"role": "assistant", "content": "Hi."}],
            "privileged_context": "Be brief.",
        }
        for n in range(60)
    ],
}
FOUND = {
    "gsm8k": ("math", "grpo", {"preset": "gsm8k"}),
    "boxed": ("math", "grpo", {"preset": "math"}),
    "answers": ("math", "grpo", {"prompt": "query", "answer": "target"}),
    "choice": ("choice", "grpo", {"prompt": "question", "choices": "options", "answer": "answer"}),
    "tools": ("tools", "grpo", {"preset": "toolalpaca"}),
    "code": ("code", "grpo", {"preset": "humaneval"}),
    "responses": ("text", "opsd", {"prompt": "prompt", "completion": "response"}),
    "short": ("text", "opsd", {"prompt": "prompt", "completion": "response"}),
    "trl": ("text", "opsd", {"preset": "trl"}),
}


def init(name: str, rows: Sequence[object], *options: str) -> int:
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["init", "--model", "countdown-base", "--data", f"{name}.jsonl", "--out", f"{name}.toml", *options]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code if isinstance(end.value.code, int) else 0


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ROWS)
def test_the_task_of_rows_is_found(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(name, ROWS[name]) == 0
    said = capsys.readouterr().out
    assert said.startswith("found: 60 rows, 0 of them unusable; task ")
    kind, method, keys = FOUND[name]
    table = tomllib.loads(Path(f"{name}.toml").read_text(encoding="utf-8"))
    assert table["task"].items() >= keys.items()
    config = load_config(f"{name}.toml")
    assert config.method == {"name": method}
    assert config.task.kind == kind
    assert f"guessed: method {method}, because " in said
    assert f"guessed: max_tokens {config.sampling.max_tokens}, " in said
    assert ("has tests, which were not run" in said) == (kind == "code")
    assert ("of those tried is verified" in said) == (kind not in ("code", "text"))
    # Each key has its reason beside it.
    lines = Path(f"{name}.toml").read_text(encoding="utf-8").splitlines()
    bare = [line for line in lines if "=" in line and "#" not in line]
    assert all(line.startswith(("path =", *(f"{key} =" for key in table["task"]))) for line in bare), bare


class Words:
    """A tokenizer whose tokens are words."""

    def __call__(self, text: str, **options: object) -> dict[str, list[str]]:
        return {"input_ids": text.split()}


@pytest.mark.parametrize(
    ("thinks", "verified", "window", "prompt", "solution", "expected"),
    [
        (False, 1.0, 10_000, 2, 100, 256),  # twice 100, in whole 64s
        (True, 1.0, 10_000, 2, 100, 4096),  # room for thought
        (True, 1.0, 100_000, 2, 2000, 8000),  # four times the solution
        (True, 1.0, 1000, 2, 300, 918),  # 1000 less a prompt of 2 + 16 and 64
        (True, None, 1000, 2, 300, 618),  # and less the solution, which the teacher is shown
        (False, 1.0, 300, 200, 60, 75),  # a quarter: 300 − 216 − 64 = 20 would be less
    ],
)
def test_the_longest_completion_follows_from_the_solutions_and_the_window(
    thinks: bool, verified: float | None, window: int, prompt: int, solution: int, expected: int
) -> None:
    rows = [Example(f"rows:{n}", (Message("user", "a " * prompt),), {"solution": "b " * solution}) for n in range(20)]
    found = FoundTask("math", {"kind": "math"}, "column names", "rows", 1.0, verified, True, {}, 20, 0, 16, 2, rows)
    text, _ = config_text(FoundModel("m", Words(), window, False, thinks), found, "rows.jsonl")
    assert tomllib.loads(text)["sampling"]["max_tokens"] == expected


@pytest.mark.parametrize("name", ["gsm8k", "tools", "trl"])
def test_a_written_config_trains_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(name, ROWS[name]) == 0
    few = ["steps=1", "sampling.prompts=1", "sampling.completions=2", "sampling.max_tokens=8"]
    few += ["evaluation.problems=1", "evaluation.samples=1"]
    with pytest.raises(SystemExit) as end:
        main(["train", f"{name}.toml", "--out", "run", *(part for one in few for part in ("--set", one))])
    assert end.value.code == 0, capsys.readouterr().err
    assert Path("run/summary.json").is_file()


@pytest.mark.parametrize("bad", [{"query": None, "target": 3}, "no object"])
def test_few_rows_and_bad_rows_are_told(bad: object, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*ROWS["answers"][:20], bad]
    assert init("answers", rows) == 0
    table = tomllib.loads(Path("answers.toml").read_text(encoding="utf-8"))["task"]
    assert (table["bad_rows"], table["test_share"]) == ("skip", 0.0)
    assert table["validation_share"] > 0.1
    assert "found: 21 rows, 1 of them unusable" in capsys.readouterr().out
    assert load_task(**table).examples("train")


def test_ten_rows_are_enough() -> None:
    assert init("ten", ROWS["answers"][:10]) == 0
    task = load_task(**tomllib.loads(Path("ten.toml").read_text(encoding="utf-8"))["task"])
    assert task.examples("train") and task.examples("validation")


def test_what_cannot_be_is_one_sentence_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("answers.toml").write_text("mine", encoding="utf-8")
    assert init("answers", ROWS["answers"]) == 2
    assert "answers.toml exists already: choose another --out" in capsys.readouterr().err
    assert Path("answers.toml").read_text(encoding="utf-8") == "mine"
    assert init("odd", [{"a": 1, "b": 2}] * 20) == 2
    said = capsys.readouterr().err
    assert "no task fits the rows of odd.jsonl (columns a, b): rename a column to question" in said
    Path("torn.jsonl").write_text('{"question": "1 + 1?"\n[]\n', encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["init", "--model", "countdown-base", "--data", "torn.jsonl", "--out", "torn.toml"])
    said = capsys.readouterr().err
    assert "none of 2 rows of torn.jsonl can be read, the first: torn.jsonl, line 1: malformed JSON (Expecting" in said
    assert init("few", ROWS["answers"][:1]) == 2
    assert "few.jsonl holds 1 different question in 1 row, too few to hold any out" in capsys.readouterr().err
    # Rows of one question are held out together, so twelve of them are as one.
    assert init("same", ROWS["answers"][:1] * 12) == 2
    said = capsys.readouterr().err
    assert "same.jsonl holds 1 different question in 12 rows, too few to hold any out: give at least ten\n" in said
    # A line that is no JSON is named with its place, whatever else is wrong with the rows.
    for name, whole, message in (
        ("odd", {"a": 1, "b": 2}, "or write the [task] table by hand (selfdistill tasks); 1 other row cannot be read"),
        ("few", ROWS["answers"][0], "in 3 rows, too few to hold any out: give at least ten; 1 row cannot be used"),
    ):
        Path(f"{name}-torn.jsonl").write_text(f'{json.dumps(whole)}\n{{"q\n{json.dumps(whole)}\n', encoding="utf-8")
        with pytest.raises(SystemExit):
            main(["init", "--model", "countdown-base", "--data", f"{name}-torn.jsonl", "--out", f"{name}-torn.toml"])
        said = capsys.readouterr().err
        assert f"{message}, the first: {name}-torn.jsonl, line 2: malformed JSON" in said
    tiny_tokenizer().save_pretrained("adapter")
    Path("adapter/adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    for arguments, sentence in (
        (["--model", "adapter", "--data", "answers.jsonl"], "the adapter in adapter names no base model: write where"),
        (["--model", "./nowhere", "--data", "odd.jsonl"], "no task fits"),
        (["--model", "countdown-grpo", "--data", "answers.jsonl"], "--model countdown-grpo is a config"),
        (["--model", "./nowhere", "--data", "answers.jsonl"], "model './nowhere' not found"),
        (["--model", "countdown-base", "--data", "nowhere.jsonl"], "data file nowhere.jsonl not found"),
        (["--model", "countdown-base", "--data", "answers.jsonl", "--out", "x.json"], "a config's name ends in .toml"),
    ):
        with pytest.raises(SystemExit):
            main(["init", "--out", "new.toml", *arguments])
        assert sentence in capsys.readouterr().err
    assert not Path("new.toml").exists()
