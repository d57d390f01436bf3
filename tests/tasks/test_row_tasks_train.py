"""Choice and tools from the command line: a run begins to end, and what the prompts of its epochs show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfdistill.cli.app import main
from support.bytewise import save_bytewise_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bytewise_model(tmp_path_factory.mktemp("model"))


def train(folder: Path, model: Path, task: str, rows: list[dict[str, Any]], *changes: str) -> list[dict[str, Any]]:
    """The rollouts of a run of four steps of two problems, the last two rows being held out."""
    for name, part in (("rows", rows[:4]), ("held_out", rows[4:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    config = folder / "own.toml"
    config.write_text(
        f"""
        method = {{ name = "sdpo" }}
        model.path = "{model}"
        {task}
        task.path = "{folder / "rows.jsonl"}"
        task.validation_path = "{folder / "held_out.jsonl"}"
        task.test_share = 0.0
        steps = 4
        sampling = {{ prompts = 2, completions = 2, max_tokens = 6 }}
        evaluation = {{ every = 4, problems = 1, samples = 1 }}
        """,
        encoding="utf-8",
    )
    settings = [part for change in changes for part in ("--set", change)]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(config), "--out", str(folder / "run"), *settings])
    assert ended.value.code == 0
    return [json.loads(line) for line in (folder / "run" / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]


def test_options_change_places_from_epoch_to_epoch(tmp_path: Path, model: Path) -> None:
    rows = [{"question": f"Problem {n}?\nA: a\nB: b\nC: c\nD: d\nE: e", "answer": "A"} for n in range(6)]
    rollouts = train(tmp_path, model, 'task.kind = "choice"', rows, "task.shuffle=epoch")
    seen: dict[str, list[str]] = {}
    for rollout in rollouts:
        prompts = seen.setdefault(rollout["example"], [])
        if rollout["prompt"] not in prompts:
            prompts.append(rollout["prompt"])
    assert len(seen) == 4
    assert all(len(prompts) == 2 for prompts in seen.values()), "two epochs, two orders"
    said = {rollout["feedback"] for rollout in rollouts}
    assert said <= {"no letter of an option was found", "the completion was cut off before an answer"}


def test_tools_go_through_the_chat_template(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools = [{"name": "getWeather", "parameters": {"town": {"type": "str"}}}]
    calls = [{"name": "getWeather", "arguments": {"town": "Bern"}}]
    rows = [{"query": f"Weather {n}?", "tools": json.dumps(tools), "answers": json.dumps(calls)} for n in range(6)]
    rollouts = train(tmp_path, model, 'task.preset = "xlam"', rows)
    assert {rollout["prompt"] for rollout in rollouts} <= {row["query"] for row in rows}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["contexts", str(tmp_path / "own.toml"), "--examples", "1", "--completions", "1"])
    shown = capsys.readouterr().out
    assert shown.count("<|im_start|>system\ngetWeather <|im_end|>") == 2, "student and teacher see the same tools"
    assert "An earlier attempt at this problem failed." in shown


def test_bad_rows_end_the_run_before_anything_is_written(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "q"}\n{\n', encoding="utf-8")
    table = (f"model.path='{model}'", "task.kind=math", f"task.path='{path}'")
    config = tmp_path / "own.toml"
    config.write_text('method = "grpo"\n', encoding="utf-8")
    settings = [part for change in table for part in ("--set", change)]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(config), "--out", str(tmp_path / "run"), *settings])
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1)
    assert f"2 of 2 rows cannot be used: {path}, line 1: no 'answer'" in error
    assert not (tmp_path / "run").exists()
