"""Rows before training: presets, the preflight, saved data sets and the hub, ``data check`` and ``tasks``."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import datasets
import pytest

from selfdistill.cli.app import main
from selfdistill.config.run import parse_config
from selfdistill.config.tasks import MathConfig, RowsConfig, SourceConfig, load_preset, shipped_presets, task_configs
from selfdistill.errors import ConfigError, DataError
from selfdistill.tasks import data
from selfdistill.tasks.build import build_row_task, build_task, warnings_for
from selfdistill.tasks.check import check_data, describe_check, list_tasks
from selfdistill.tasks.data import Rejected, Row, map_row, read_rows, scan_rows
from selfdistill.tasks.math.task import MathTask

CALLS = json.dumps([{"Action": "f", "Action_Input": '{"a": 1}'}])
DOCUMENTED = 'f: A tool.\nParameters: {"a": "integer. A number."}\nOutput: ok\n\nBegin!\nQuestion: one?'
XLAM = {
    "query": "one?",
    "tools": json.dumps([{"name": "f", "description": "", "parameters": {"a": {"type": "int", "description": "n"}}}]),
    "answers": json.dumps([{"name": "f", "arguments": {"a": 1}}]),
}
THOUGHTS = (
    "<|begin_of_thought|>\nhm \\boxed{2}\n<|end_of_thought|>\n<|begin_of_solution|>\nso \\boxed{3}<|end_of_solution|>"
)

ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "1 + 2?", "answer": "1 + 2 = <<1+2=3>>3\n#### 3"},
    "math": {"problem": "1 + 2?", "solution": "It is $\\boxed{3}$.", "level": "Level 1"},
    "aime": {"id": 60, "problem": "1 + 2?", "answer": "003", "solution": "so $\\framebox{3}$"},
    "amc": {"id": 0, "problem": "1 + 2?", "answer": 3.0, "url": "x"},
    "dapo": {"prompt": [{"role": "user", "content": "1 + 2?"}], "reward_model": {"ground_truth": "3"}},
    "dapo-processed": {"prompt": "1 + 2?", "solution": "3"},
    "openthoughts": {
        "problem": "1 + 2?",
        "ground_truth_solution": "so \\boxed{3}",
        "deepseek_solution": "thus \\boxed{3}",
    },
    "openthoughts-conversations": {
        "system": "think",
        "conversations": [{"from": "user", "value": "1 + 2?"}, {"from": "assistant", "value": THOUGHTS}],
    },
    "sciknoweval": {"prompt": "which?\n\nA: x\nB: y\nPlease reason step by step.", "answer": "B", "system": "tag it"},
    "sciknoweval-hub": {"question": "which?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
    "gpqa": {
        "Question": "which?",
        "Correct Answer": "y",
        **{f"Incorrect Answer {n}": f"x{n}" for n in (1, 2, 3)},
        "Explanation": "y it is",
    },
    "toolalpaca": {"prompt": DOCUMENTED, "answer": CALLS, "system": None},
    "toolalpaca-template": {"prompt": DOCUMENTED, "answer": CALLS, "system": None},
    "xlam": XLAM,
}


def save(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out, said.err


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_preset_reads_its_schema_and_the_rows_own_reference_scores_one(name: str, tmp_path: Path) -> None:
    report = check_data(str(save(tmp_path / "rows.jsonl", ROWS[name])), task=None, preset=name)
    assert (report["rows"], report["rejected"], report["verified"], report["unverified"]) == (1, {}, 1.0, [])
    assert report["silent_solutions"] == (name == "gpqa")


def test_every_preset_is_tried_and_names_a_kind_and_keys_that_exist() -> None:
    checked = {name for name in shipped_presets() if load_preset(name).kind in {"math", "choice", "tools"}}
    assert checked == set(ROWS)
    for preset in map(load_preset, sorted(checked)):
        assert preset.description.endswith(".")
        assert set(preset.values) <= set(task_configs()[preset.kind].model_fields)


def test_what_a_config_says_wins_over_its_preset_and_survives_a_round_trip() -> None:
    table = {"preset": "gsm8k", "path": "rows.jsonl", "prompt": "q"}
    config = parse_config({"method": "grpo", "task": table}, "own")
    assert isinstance(config.task, RowsConfig)
    assert (config.task.kind, config.task.prompt, config.task.solution) == ("math", "q", "answer")
    assert parse_config(json.loads(json.dumps(config.model_dump())), "stored") == config


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('kind = "math"\ndescription = "Mine."\n[task]\nprompt = "p"\nanswer = "a"\n', encoding="utf-8")
    path = save(tmp_path / "rows.jsonl", {"p": "1 + 2?", "a": 3})
    assert check_data(str(path), task=None, preset=str(own))["verified"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preset", "gsm8"], "preset 'gsm8' not found; did you mean 'gsm8k'? shipped: aime"),
        (["--preset", "gsm8k", "--task", "choice"], "task.preset 'gsm8k' is for task.kind 'math', not 'choice'"),
        (["--task", "countdown"], "task 'countdown' makes its own problems, so there are no rows to check"),
        (["--task", "chess"], "data check: task: "),
        ([], "name a --task (math, choice, tools"),
        (["--task", "math", "--set", "task.promt=q"], "unknown key 'task.promt'; did you mean 'task.prompt'?"),
        (["--task", "math", "--set", "task.test_path={pth='x'}"], "unknown key 'task.test_path.pth'; did you mean"),
        (["--task", "math", "--set", "task.test_path=3"], "task.test_path: "),
        (["--task", "math", "--path", "nowhere.jsonl"], "data file nowhere.jsonl not found"),
        (["--task", "math", "--path", "some/rows"], "a data set of the hub needs its split"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "rows.jsonl", ROWS["gsm8k"])
    code, out, error = run(capsys, "data", "check", "--path", path, *arguments)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert sentence in error


@pytest.mark.parametrize("text", ["kind = 3\n", 'kind = "math"\npath = "x"\n', "kind =\n"])
def test_a_malformed_preset_is_named(text: str, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"preset .*own\.toml"):
        load_preset(str(own))


# --- the preflight ---------------------------------------------------------------------------------------------------


def bad_file(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    lines = [json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) for n in range(4)]
    lines[1:1] = ["{", json.dumps({"question": "no answer"}), json.dumps({"question": "none either"}), "[1]"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_all_bad_rows_are_refused_at_once_and_named_by_line(tmp_path: Path) -> None:
    path = bad_file(tmp_path)
    with pytest.raises(DataError) as raised:
        MathTask(MathConfig(path=str(path)))
    assert str(raised.value) == (
        f"4 of 8 rows cannot be used: {path}, line 2: malformed JSON (Expecting property name enclosed in double "
        f"quotes at column 1); {path}, line 3: no 'answer', which field 'answer' needs; the row has question; "
        f"{path}, line 4: no 'answer', which field 'answer' needs; the row has question; and 1 more "
        '(selfdistill data check lists all; bad_rows = "skip" leaves them out)'
    )
    task = MathTask(MathConfig(path=str(path), bad_rows="skip", validation_share=0.0, test_share=0.0))
    assert [example.id for example in task.examples("train")] == ["rows:1", "rows:6", "rows:7", "rows:8"]
    assert warnings_for(task) == [f"4 of 8 rows are left out, the first: {task.rejected[0]}"]


def test_the_check_lists_rejected_rows_by_reason_and_line(tmp_path: Path) -> None:
    report = check_data(str(bad_file(tmp_path)), task="math", preset=None)
    assert report["rows"] == 8
    assert report["rejected"] == {
        "malformed JSON (Expecting property name enclosed in double quotes at column 1)": [2],
        "no 'answer', which field 'answer' needs; the row has question": [3, 4],
        "a row must be a JSON object, this is a list": [5],
    }
    assert (report["checked"], report["verified"], report["unverified"]) == (4, 1.0, [])
    assert next(iter(describe_check(report))) == "8 rows, 4 rejected, 4 checked, 100.0% verified"


def test_control_tokens_in_rows_are_counted_and_kept(tmp_path: Path) -> None:
    path = save(
        tmp_path / "rows.jsonl",
        {"question": "1 + 1?", "answer": "2"},
        {"question": "2 + 2?<|im_end|><|im_start|>system", "answer": "4"},
        {"question": "3 + 2? [INST]", "answer": "5", "worked": "so <|im_end|> 5 <|mine|>"},
        {"question": "4 + 2? < |im_end| > <|im_end |>", "answer": "6"},
    )
    report = check_data(str(path), task="math", preset=None, overrides=["task.fields={}"])
    assert report["control_tokens"] == {
        "rows": 2,
        "first": "rows:2",
        "tokens": {"<|im_end|>": 1, "<|im_start|>": 1, "[INST]": 1},
    }
    assert report["checked"] == 4
    assert list(describe_check(report))[1] == (
        "2 rows spell out control tokens, the first in line 2 of rows (<|im_end|> in 1, <|im_start|> in 1, [INST] in 1)"
        ": they are kept as text and open no turn"
    )
    # A column counts once a context may show it, and a model's own tokens once the model is known.
    shown = ["task.solution=worked", "task.bad_rows=skip"]
    report = check_data(str(path), task="math", preset=None, overrides=shown, special_tokens=["<|mine|>"])
    assert report["control_tokens"]["tokens"] == {"<|im_end|>": 1, "<|mine|>": 1, "[INST]": 1}


def test_a_control_token_counts_once_a_row_and_the_most_frequent_are_named_first(tmp_path: Path) -> None:
    few = "<s> <bos> <eos> <sop> <|eot|> <|eom|>"
    texts = [few, "</s> and </s>", "</s>"]
    path = save(tmp_path / "rows.jsonl", *({"question": f"{n}? {text}", "answer": "2"} for n, text in enumerate(texts)))
    report = check_data(str(path), task="math", preset=None)
    assert report["control_tokens"]["tokens"] == {"</s>": 2, **dict.fromkeys(few.split(), 1)}
    assert report["control_tokens"]["first"] == "rows:1"
    line = next(line for line in describe_check(report) if "control tokens" in line)
    assert "(</s> in 2, <bos> in 1, <eos> in 1, <s> in 1, <sop> in 1 and 2 more)" in line


def test_a_control_token_that_a_schema_hides_in_an_escape_is_found(tmp_path: Path) -> None:
    schema = r'[{"name": "f", "description": "\u003c|im_end|\u003e", "parameters": {}}]'
    row = {"prompt": "Call!", "answer": '[{"name": "f", "arguments": {}}]', "tools": schema}
    report = check_data(
        str(save(tmp_path / "rows.jsonl", row)),
        task="tools",
        preset=None,
        overrides=["task.tools=tools", "task.form=template"],
    )
    assert report["control_tokens"]["tokens"] == {"<|im_end|>": 1}


def test_the_special_tokens_of_a_model_are_looked_for_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "rows.jsonl", {"question": "1 + 1? <|pad|>", "answer": "2"})
    plain = ["data", "check", "--task", "math", "--path", path]
    assert "control tokens" not in run(capsys, *plain)[1]
    said = run(capsys, *plain, "--model", "countdown-base")
    assert said[0] == 0
    assert "1 row spells out control tokens, the first in line 1 of rows (<|pad|> in 1): they are kept" in said[1]
    assert run(capsys, *plain, "--model", "nowhere")[2].startswith(
        "selfdistill: model 'nowhere' not found: give a model"
    )


def test_a_reference_that_says_something_else_is_listed_and_a_silent_one_counted(tmp_path: Path) -> None:
    path = save(
        tmp_path / "rows.jsonl",
        {"problem": "1 + 2?", "answer": "3", "solution": "so \\boxed{3}"},
        {"problem": "2 + 2?", "answer": "4", "solution": "so \\boxed{5}"},
        {"problem": "3 + 2?", "answer": "5", "solution": "by hand"},
        {"problem": "1 + 2?", "answer": "3"},
    )
    report = check_data(str(path), task=None, preset="aime")
    why = "its reference says 5, its answer is 4"
    assert (report["verified"], report["silent_solutions"]) == (0.75, 1)
    assert report["unverified"] == [{"row": "rows:2", "line": 2, "why": why}]
    assert report["duplicates"] == {"rows": 4, "distinct": 3, "repeated": 1}
    assert list(describe_check(report)) == [
        "1 solution states no answer: their rows' canonical answers were verified",
        "4 rows, 0 rejected, 4 checked, 75.0% verified",
        f"unverified: rows:2: {why}",
        "1 question occurs more than once",
    ]


def test_leaks_between_files_are_counted_and_said(tmp_path: Path) -> None:
    train = save(tmp_path / "train.jsonl", *({"question": f"{n} +  1?", "answer": "1"} for n in range(5)))
    test = save(tmp_path / "test.jsonl", {"question": "3 + 1? ", "answer": "1"}, {"question": "X", "answer": "1"})
    report = check_data(str(train), task="math", preset=None, overrides=[f"task.test_path={test}"])
    assert report["leaks"] == {"train in test": 1}
    assert list(describe_check(report))[-1] == "leak: 1 question of train in test"
    table = {"kind": "math", "path": str(train), "test_path": str(test), "validation_share": 0.0}
    config = parse_config({"method": "grpo", "task": table}, "own")
    assert warnings_for(build_task(config.task, seed=0, reward=None)) == ["1 question of train is in test as well"]


def test_rows_without_answers_have_nothing_to_verify(tmp_path: Path) -> None:
    report = check_data(
        str(save(tmp_path / "r.jsonl", {"question": "q"})), task="math", preset=None, overrides=["task.answer="]
    )
    assert (report["verified"], report["unverified"]) == (None, [])
    assert next(iter(describe_check(report))).endswith("nothing to verify")


def test_the_command_prints_words_or_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "rows.jsonl", ROWS["sciknoweval"])
    code, out, _ = run(capsys, "data", "check", "--task", "choice", "--preset", "sciknoweval", "--path", path, "--json")
    report = json.loads(out)
    assert (code, report["task"], report["rows"], report["verified"]) == (0, "choice", 1, 1.0)
    code, out, _ = run(capsys, "data", "check", "--preset", "sciknoweval", "--path", path)
    assert (code, out.partition("\n")[0]) == (0, "1 row, 0 rejected, 1 checked, 100.0% verified")
    assert out.partition("\n")[2].startswith("row rows:1 as the task maps it:\n  system: tag it\n  user: which?\n")


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_rejected_rows_end_the_command_with_1(
    json_flag: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, error = run(capsys, "data", "check", "--task", "math", "--path", bad_file(tmp_path), *json_flag)
    assert (code, error) == (1, "")
    assert json.loads(out)["rows"] == 8 if json_flag else out.startswith("8 rows, 4 rejected, ")


# --- sources ---------------------------------------------------------------------------------------------------------


def test_an_optional_column_is_a_field_only_where_there_is_one() -> None:
    mapping = {"prompt": "q", "solution": "s?"}
    assert map_row(Row(1, {"q": "x", "s": "y"}, "f"), mapping) == {"prompt": "x", "solution": "y"}
    assert map_row(Row(1, {"q": "x", "s": None}, "f"), mapping) == {"prompt": "x"}
    assert map_row(Row(1, {"q": "x"}, "f"), mapping) == {"prompt": "x"}
    assert map_row(Row(1, {"q": "x", "s?": "own"}, "f"), mapping) == {"prompt": "x", "solution": "own"}


def test_a_saved_data_set_and_its_splits(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list([{"q": "a", "n": 1}, {"q": "b", "n": 2}])
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert [row.values for row in read_rows(tmp_path / "one")] == [{"q": "a", "n": 1}, {"q": "b", "n": 2}]
    (row,) = read_rows(SourceConfig(path=str(tmp_path / "two"), split="test"))
    assert row == Row(1, {"q": "b", "n": 2}, f"{tmp_path / 'two'}:test")
    for source, sentence in (
        (SourceConfig(path=str(tmp_path / "two")), "has several splits; name one of train, test as its split"),
        (SourceConfig(path=str(tmp_path / "two"), split="dev"), "has no split 'dev'; name one of train, test"),
        (SourceConfig(path=str(tmp_path)), "cannot be read as a folder saved by datasets: "),
    ):
        with pytest.raises(DataError, match=sentence):
            read_rows(source)


def test_a_hub_data_set_is_asked_for_by_name_split_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(path: str, config: str | None, **options: Any) -> Any:
        asked.append((path, config, options))
        return iter([{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(100)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    table = {"path": "openai/gsm8k", "config": "main", "split": "train", "revision": "abc", "first": 3}
    config = parse_config({"method": "grpo", "task": {"preset": "gsm8k", "path": table}}, "own")
    assert isinstance(config.task, RowsConfig)
    task = build_row_task(config.task, seed=0)
    assert asked == [("openai/gsm8k", "main", {"split": "train", "revision": "abc", "streaming": True})]
    assert task.rows == 3 and {example.id for example in task.every_example()} == {
        f"gsm8k:train:{n}" for n in (1, 2, 3)
    }


def test_a_hub_data_set_that_cannot_be_reached_is_one_sentence() -> None:
    with pytest.raises(DataError, match=r"data set no/such cannot be read from the hub: "):
        read_rows(SourceConfig(path="no/such", split="train"))


def test_parquet_is_read_batch_by_batch_and_first_stops_early(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([{"q": n} for n in range(10)]).to_parquet(str(path))
    assert [row.line for row in scan_rows(SourceConfig(path=str(path), first=2)) if not isinstance(row, Rejected)] == [
        1,
        2,
    ]
    assert len(data.read_rows(path)) == 10


# --- the list of tasks -----------------------------------------------------------------------------------------------


def test_the_list_of_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    found = {task["kind"]: task for task in list_tasks()}
    assert {"countdown", "toolbox", "math", "choice", "tools", "custom"} <= set(found)
    assert found["choice"]["needs"] == ["path"] and found["countdown"]["needs"] == []
    assert set(found["choice"]["presets"]) == {"gpqa", "sciknoweval", "sciknoweval-hub"}
    code, out, _ = run(capsys, "tasks")
    assert code == 0
    assert "tools: Rows of requests that calls of tools answer, verified call by call.\n  needs: path\n" in out
    preset = tomllib.loads(Path("src/selfdistill/tasks/presets/gsm8k.toml").read_text())
    assert f"  preset gsm8k: {preset['description']}" in out
    code, out, _ = run(capsys, "tasks", "--json")
    assert json.loads(out) == list_tasks()
