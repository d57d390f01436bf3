"""The command line: what a run leaves, what each command prints, and one sentence for everything that cannot be."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.cli.app import main
from selfdistill.config.run import load_config
from selfdistill.errors import ConfigError
from support.runs import as_toml, lines, tiny_run
from support.tiny import tiny_tokenizer

PROBLEMS = (("use 3 and 4", "7", "3 + 4 = 7"), ("use 5 and 6", "11", "5 + 6 = 11"), ("make 8", "8", "8"))


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


class Terminal:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Said:
        self.capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        said = self.capsys.readouterr()
        return Said(code, said.out, said.err)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """The command line, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return Terminal(capsys)


@pytest.fixture
def countdown(model: Path, tmp_path: Path) -> Path:
    """A config file of a short run on the embedded task."""
    path = tmp_path / "countdown.toml"
    path.write_text(as_toml(tiny_run(model, "sdpo", "steps=3").model_dump(exclude_none=True)), encoding="utf-8")
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows of easy problems."""
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"question": q, "answer": a, "worked": w} for q, a, w in PROBLEMS])
    return path


@pytest.fixture
def mathematics(model: Path, rows: Path, tmp_path: Path) -> Path:
    """A config file of a short run on the rows."""
    path = tmp_path / "mathematics.toml"
    table: dict[str, Any] = {
        "steps": 2,
        "method": {"name": "grpo"},
        "model": {"path": str(model)},
        "task": {"kind": "math", "path": str(rows), "suffix": ""},
        "sampling": {"prompts": 1, "completions": 2, "max_tokens": 6},
        "evaluation": {"problems": 2, "samples": 1},
    }
    path.write_text(as_toml(table), encoding="utf-8")
    return path


def write_rows(path: Path, rows: Sequence[object]) -> None:
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def refused(said: Said) -> str:
    """The one sentence of a refusal."""
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("selfdistill: ")
    assert said.err.count("\n") == 1
    return said.err.removeprefix("selfdistill: ").removesuffix("\n")


# --- bad configs -----------------------------------------------------------------------------------------------------


BAD_SETTINGS = {
    "a misspelt key": ("step=3", "unknown key 'step'; did you mean 'steps'?"),
    "a misspelt key below": ("sampling.promts=3", "unknown key 'sampling.promts'; did you mean 'sampling.prompts'?"),
    "a misspelt key of the task": ("task.dificulty=easy", "did you mean 'task.difficulty'?"),
    "a misspelt key of the adapter": ("model.lora.rnak=3", "did you mean 'model.lora.rank'?"),
    "a key like no other": ("qqq=3", "unknown key 'qqq'; known there: seed, steps, max_completions"),
    "a misspelt method": ("method.name=antsd", "unknown method 'antsd'; did you mean 'antisd'?"),
    "an unknown method": ("method.name=qqq", "unknown method 'qqq'; known: antisd, "),
    "a method that cannot be imported": (
        "method.name=nowhere:Method",
        "method 'nowhere:Method': module 'nowhere' cannot be imported",
    ),
    "a method that is none": ("method.name=json:JSONDecoder", "is not a subclass of selfdistill.methods.Method"),
    "a misspelt hyperparameter": (
        "method.teacher_rat=0.1",
        "unknown key method.teacher_rat for method 'sdpo'; did you mean",
    ),
    "an unknown hyperparameter": (
        "method.qqq=1",
        "unknown key method.qqq for method 'sdpo'; known: context, divergence",
    ),
    "a hyperparameter of the wrong type": ("method.ratio_cap=high", "method.ratio_cap"),
    "a hyperparameter out of range": ("method.teacher_rate=1.5", "method.teacher_rate"),
    "an end of the Jensen-Shannon family": (
        "method.divergence={kind='jensen_shannon', teacher_weight=1.0}",
        "method.divergence.teacher_weight",
    ),
    "a value of the wrong type": ("steps=many", "steps: "),
    "a value out of range": ("sampling.top_p=1.5", "sampling.top_p: "),
    "a negative seed": ("seed=-1", "seed: "),
    "a table where a value stands": ("steps.more=1", "steps is a value, not a table"),
    "a value where a table stands": ("limits=3", "limits: "),
    "an unknown task": ("task.kind=chess", "task: "),
    "an unknown number type": ("model.dtype=float8", "model.dtype: "),
    "no equals sign": ("steps", "--set 'steps': write key=value"),
    "no key": ("=3", "--set '=3': write key=value"),
    "an unknown difficulty": ("task.difficulty=hard", "unknown countdown difficulty 'hard'; known: easy, default"),
    "an unknown device": ("model.device=abacus", "model.device 'abacus' cannot be used here: "),
    "a device without numbers": ("model.device=meta", "model.device 'meta' cannot be used here: "),
    "a reward that answers nonsense": ("reward=support.rewards:wordy", "must return floats or None, got 'good'"),
    "a model that is not there": ("model.path=./nowhere", "model './nowhere' not found: give a model directory"),
    "no model of that name": ("model.path=nowhere", "or a shipped name (countdown-base"),
    "a context file that is not there": ("contexts=nowhere", "context file 'nowhere' not found: give a shipped name"),
    "an unknown context": ("method.context=nowhere", "unknown context 'nowhere'; known: agreeing_sibling, answer_only"),
    "a context that the data cannot fill": ("method.context=own", "no hint in the data"),
    "a reward that is no path": ("reward=even", "reward 'even' must be written 'package.module:function'"),
    "a reward that is not there": ("reward=support.rewards:odd", "has no function 'odd'"),
    "no room for a completion": ("sampling.max_tokens=300", "no prompt fits: the longest of 8 has "),
}


@pytest.mark.parametrize("text", ["steps=1\nfoo=7", 'steps=1\n[model]\npath="x"', "model={}\nsteps=2"])
def test_a_setting_of_two_lines_drops_no_key(text: str) -> None:
    second = text.splitlines()[1].strip("[]").partition("=")[0]
    with pytest.raises(ConfigError, match=f"sets '{second}' too: write a --set for each"):
        load_config("countdown-grpo", [text])
    assert load_config("countdown-grpo", ["steps=1 # one\n"]).steps == 1


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_setting_that_cannot_be_is_one_sentence_and_leaves_nothing(
    case: str, run: Terminal, countdown: Path, tmp_path: Path
) -> None:
    setting, sentence = BAD_SETTINGS[case]
    own = tmp_path / "own.toml"
    own.write_text('[own]\ntext = "$question $hint"\n', encoding="utf-8")
    extra = ["--set", f"contexts={own}"] if "own" in setting else []
    said = refused(run("train", countdown, "--out", tmp_path / "out", "--set", setting, *extra))
    assert sentence in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["a misspelt key", "an unknown context", "a model that is not there"])
def test_the_audit_refuses_with_the_same_sentence(case: str, run: Terminal, countdown: Path) -> None:
    setting, sentence = BAD_SETTINGS[case]
    assert sentence in refused(run("contexts", countdown, "--set", setting))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps = 3\n", 'no method: write for example method.name = "antisd"'),
        ("method = 3\n", "no method: write for example"),
        ("[method]\nstrength = 1\n", "no method: write for example"),
        ("steps = \n", "is not valid TOML: "),
        ('method = "grpo"\nlimits = 3\n', "limits: "),
        ('method = "grpo"\ntask = 3\n', "task: "),
        ('method = "grpo"\n[task]\npath = "x"\n', 'task: no kind; write for example task.kind = "countdown"'),
        ('method = "grpo"\n[task]\nkind = "math"\n', "task.path: field required"),
        ("method = \"grpo\"\nname = '\xff'\n", "is not UTF-8 text: "),
    ],
)
def test_a_config_file_that_cannot_be_is_one_sentence(text: str, sentence: str, run: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(text.encode("latin-1"))
    said = refused(run("train", path, "--out", tmp_path / "out"))
    assert sentence in said
    assert "own.toml" in said
    assert not (tmp_path / "out").exists()


def test_a_config_that_is_not_there_is_named_with_the_nearest(run: Terminal) -> None:
    said = refused(run("train", "countdown-antsd"))
    assert said.startswith("config 'countdown-antsd' not found; did you mean 'countdown-antisd' or 'countdown-sd' or ")
    assert said.endswith("or give a path to a TOML file")
    assert refused(run("train", "./qqq.toml")).startswith("config './qqq.toml' not found")


@pytest.mark.parametrize("command", [["train", "--resume"], ["evaluate"], ["configs"]])
def test_a_folder_that_is_no_run_is_not_called_missing(command: list[str], run: Terminal, tmp_path: Path) -> None:
    sentence = "is neither a run folder nor a model directory: it holds no config.json of either"
    assert refused(run(command[0], tmp_path, *command[1:])) == f"{tmp_path} {sentence}"


def test_a_command_that_is_none_is_exit_code_2(run: Terminal) -> None:
    said = run("trian")
    assert said.code == 2
    assert "trian" in said.err


# --- bad models ------------------------------------------------------------------------------------------------------


def test_a_model_without_a_chat_template_is_one_sentence(
    run: Terminal, countdown: Path, model: Path, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    folder = with_tokenizer(model, tokenizer, tmp_path / "mute")
    said = refused(run("train", countdown, "--out", tmp_path / "out", "--set", f"model.path={folder}"))
    assert said.startswith(f"the tokenizer of {folder} has no chat template: use an instruction-tuned model")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_more_ids_than_the_embedding_is_one_sentence(
    run: Terminal, countdown: Path, model: Path, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"word{n}" for n in range(5)])
    folder = with_tokenizer(model, tokenizer, tmp_path / "wide")
    said = refused(run("train", countdown, "--out", tmp_path / "out", "--set", f"model.path={folder}"))
    assert said == (
        f"the tokenizer of {folder} has ids up to 96 but the model embeds only 96: they do not belong together"
    )


def test_a_model_that_lacks_weights_is_one_sentence(
    run: Terminal, countdown: Path, model: Path, tmp_path: Path
) -> None:
    folder = with_tokenizer(model, tiny_tokenizer(), tmp_path / "partial")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = refused(run("train", countdown, "--out", tmp_path / "out", "--set", f"model.path={folder}"))
    assert said == f"{folder} lacks 1 of its weights, the first is model.norm.weight"


def test_a_model_without_a_tokenizer_is_one_sentence(
    run: Terminal, countdown: Path, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder)
    said = refused(run("train", countdown, "--out", tmp_path / "out", "--set", f"model.path={folder}"))
    assert said.startswith(f"{folder} holds no tokenizer (tokenizer.json): ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no model directory, it holds no config.json: "),
        ("{", "config.json is no JSON ("),
        ("{}", "holds no weights (model.safetensors): "),
        ('{"model_type": "qqq"}', "holds no weights (model.safetensors): "),
    ],
)
def test_a_directory_that_holds_no_model_is_one_sentence(
    text: str, sentence: str, run: Terminal, countdown: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    if text:
        (folder / "config.json").write_text(text, encoding="utf-8")
    said = refused(run("train", countdown, "--out", tmp_path / "out", "--set", f"model.path={folder}"))
    assert said.startswith(str(folder)) and sentence in said


def test_a_damaged_weight_file_is_one_sentence(run: Terminal, countdown: Path, model: Path, tmp_path: Path) -> None:
    folder = with_tokenizer(model, tiny_tokenizer(), tmp_path / "torn")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    said = refused(run("train", countdown, "--out", tmp_path / "out", "--set", f"model.path={folder}"))
    assert said == f"{weights} is damaged or was not copied to its end: download or copy it again"


def with_tokenizer(model: Path, tokenizer: Any, folder: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- bad data --------------------------------------------------------------------------------------------------------


ROW = {"question": "use 3 and 4", "answer": "7"}
BAD_ROWS: dict[str, tuple[Sequence[object], str]] = {
    "an empty file": ([], "holds no rows"),
    "malformed JSON": ([ROW, '{"question": "use 3'], "rows.jsonl, line 2: malformed JSON ("),
    "a row that is a list": ([ROW, [1]], "rows.jsonl, line 2: a row must be a JSON object, this is a list"),
    "a row without the question": (
        [ROW, ROW, {"answer": "7"}],
        "rows.jsonl, line 3: no 'question', which field 'prompt' needs; the row has answer",
    ),
    "a row without the answer": (
        [ROW, {"question": "make 7"}],
        "rows.jsonl, line 2: no 'answer', which field 'answer' needs; the row has question",
    ),
    "a row whose answer is null": ([{**ROW, "answer": None}], "rows.jsonl, line 1: 'answer' is null"),
    "one row, so none to hold out": ([ROW], "is in the validation split: give it a file or a larger share"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_cannot_be_used_are_one_sentence(
    case: str, run: Terminal, mathematics: Path, rows: Path, tmp_path: Path
) -> None:
    bad, sentence = BAD_ROWS[case]
    write_rows(rows, bad)
    assert sentence in refused(run("train", mathematics, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_data_file_that_is_not_there_is_one_sentence(run: Terminal, mathematics: Path, tmp_path: Path) -> None:
    said = refused(run("train", mathematics, "--out", tmp_path / "out", "--set", "task.path=nowhere.jsonl"))
    assert said == "data file nowhere.jsonl not found"


@pytest.mark.parametrize("method", ["grpo", "sdpo", "sd", "antisd"])
def test_a_method_that_needs_rewards_without_a_verifier_is_one_sentence(
    method: str, run: Terminal, mathematics: Path, rows: Path, tmp_path: Path
) -> None:
    write_rows(rows, [{"question": q, "worked": w} for q, _, w in PROBLEMS])
    settings = ["--set", "task.answer=", "--set", "task.solution=worked", "--set", f"method.name={method}"]
    said = refused(run("train", mathematics, "--out", tmp_path / "out", *settings))
    assert said == (
        f"method '{method}' needs rewards, but the task has no verifier: "
        'name the answer column (task.answer) or a reward function (reward = "module:function")'
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "settings"),
    [("opsd", ()), ("sft", ()), ("grpo", ("reward=support.rewards:even",))],
    ids=["opsd needs none", "sft needs none", "a function gives them"],
)
def test_rows_without_answers_do_for_what_needs_no_verifier(
    method: str, settings: Sequence[str], run: Terminal, mathematics: Path, rows: Path, tmp_path: Path
) -> None:
    write_rows(rows, [{"question": q, "worked": w} for q, _, w in PROBLEMS])
    every = ["task.answer=", "task.solution=worked", f"method.name={method}", *settings]
    said = run("train", mathematics, "--out", tmp_path / "out", *(part for one in every for part in ("--set", one)))
    assert (said.code, said.err) == (0, "")
    assert len(lines(tmp_path / "out" / "metrics.jsonl")) == 2


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("opsd", "context solution: no solution in the data (rows:"),
        ("sft", 'has no solution to learn from: map a column to it, for example task.solution = "answer"'),
    ],
)
def test_a_method_that_shows_solutions_on_data_without_them_is_one_sentence(
    method: str, sentence: str, run: Terminal, mathematics: Path, tmp_path: Path
) -> None:
    said = refused(run("train", mathematics, "--out", tmp_path / "out", "--set", f"method.name={method}"))
    assert sentence in said
    assert "solution" in said
    assert not (tmp_path / "out").exists()


def test_sdpo_on_data_without_solutions_or_feedback_trains_on_siblings_alone(
    run: Terminal, mathematics: Path, tmp_path: Path
) -> None:
    said = run("train", mathematics, "--out", tmp_path / "out", "--set", "method.name=sdpo")
    assert (said.code, said.err) == (0, "")


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_a_prompt_beyond_the_window_is_counted_and_left_out(
    method: str, run: Terminal, mathematics: Path, rows: Path, tmp_path: Path
) -> None:
    problems = [{"question": f"make {n}", "answer": str(n), "worked": str(n)} for n in range(12)]
    long = [{"question": "make 8 " * 200 + str(n), "answer": "8", "worked": "8"} for n in range(4)]
    write_rows(rows, [*problems, *long])
    every = ["evaluation.problems=16", "task.solution=worked", f"method.name={method}"]
    said = run("train", mathematics, "--out", tmp_path / "out", *(part for one in every for part in ("--set", one)))
    assert said.code == 0, said.err
    line = next(line for line in said.out.splitlines() if line.startswith("left out: "))
    # Some of the four may be in the test split, which is not read here.
    assert 1 <= sum(map(int, re.findall(r"(\d) × prompt (?:and solution )?too long for the window", line))) <= 4


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_no_prompt_within_the_window_is_one_sentence(
    method: str, run: Terminal, mathematics: Path, rows: Path, tmp_path: Path
) -> None:
    write_rows(rows, [{"question": "make 8 " * 200 + str(n), "answer": "8", "worked": "8"} for n in range(4)])
    every = ["task.solution=worked", f"method.name={method}"]
    settings = [part for one in every for part in ("--set", one)]
    said = refused(run("train", mathematics, "--out", tmp_path / "out", *settings))
    assert "no prompt" in said
    assert "the window" in said
    assert not (tmp_path / "out").exists()


def test_a_solution_beyond_the_window_is_counted_and_left_out_of_sft(
    run: Terminal, mathematics: Path, rows: Path, tmp_path: Path
) -> None:
    problems = [{"question": f"make {n}", "answer": str(n), "worked": str(n)} for n in range(12)]
    write_rows(
        rows,
        [*problems, *({**problem, "question": f"use {n}", "worked": "8 " * 300} for n, problem in enumerate(problems))],
    )
    every = ["task.solution=worked", "method.name=sft", "sampling.prompts=20"]
    said = run("train", mathematics, "--out", tmp_path / "out", *(part for one in every for part in ("--set", one)))
    assert said.code == 0, said.err
    assert re.search(r"left out: \d+ × prompt and solution too long for the window", said.out)


# --- what a run leaves -----------------------------------------------------------------------------------------------


def test_a_dry_run_leaves_nothing_and_shows_what_a_run_shows(run: Terminal, countdown: Path, tmp_path: Path) -> None:
    said = run("train", countdown, "--out", tmp_path / "dry", "--dry-run")
    assert (said.code, said.err) == (0, "")
    assert not (tmp_path / "dry").exists()
    # What a run takes is told before the model is loaded, and then what a run itself tells.
    forecast, _, rest = said.out.partition("\nmodel ")
    assert [line.split()[0] for line in forecast.splitlines()] == ["steps", "tokens", "memory", "limit"]
    banner = "model " + rest.partition("── student")[0]
    trained = run("train", countdown, "--out", tmp_path / "run").out
    assert trained.startswith(banner.replace(str(tmp_path / "dry"), str(tmp_path / "run")))
    assert re.search(r"^the first step took \S+ s: about .+ for the 2 steps left$", trained, re.MULTILINE)


def test_an_empty_out_is_refused(run: Terminal, countdown: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    for command in (("train", countdown), ("compare", countdown), ("inspect", "countdown-base"), ("export", tmp_path)):
        assert refused(run(*command, "--out", "")).startswith("--out is empty, which would be the current folder")
    assert set(tmp_path.iterdir()) == before


TELLS_TORCH = (
    "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); from selfdistill.cli.app import main"
)
"""Ends with a line that says whether torch was imported."""


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("/proc/x", ": no folder can be made in /proc: choose another place"),
        ("{file}/x", ": it is or lies below a file, where a folder is needed: choose another place"),
        ("{file}", " is a file: choose another --out"),
        ("new/" + 300 * "a" + "/x", ": its name is too long: choose a shorter one"),
    ],
    ids=["proc", "below a file", "a file", "a long name"],
)
@pytest.mark.parametrize("command", ["train", "compare", "inspect", "export"])
def test_a_folder_that_cannot_be_made_is_told_before_torch_is_imported(
    command: str, place: str, sentence: str, countdown: Path, tmp_path: Path
) -> None:
    """In a process of its own, because torch is imported in this one."""
    out = place.format(file=countdown)
    call = f"main([{command!r}, {str(countdown)!r}, '--out', {out!r}])"
    program = f"{TELLS_TORCH}; {call}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "False\n", f"selfdistill: {out}{sentence}\n")
    assert not (tmp_path / "new").exists()


ALONE = "the row has a prompt alone, which serves grpo and other methods that need rewards, with a reward function"


@pytest.mark.parametrize(
    ("method", "row", "sentence"),
    [
        ("grpo", {"prompt": "1 + 1?"}, f"the task has no verifier: {ALONE}"),
        ("opsd", {"prompt": "1 + 1?"}, f"no solution in the data (rows:1 has no fields): {ALONE}"),
        ("sft", {"prompt": "1 + 1?"}, f"has no solution to learn from: {ALONE}"),
        # A column that the rows have, and none that they have not.
        ("opsd", {"prompt": "1 + 1?", "worked": "so 2"}, "by task.solution; beside the prompt the row has worked"),
        ("sft", {"id": 3, "rationale": "so 2"}, 'map a column to it, for example task.solution = "rationale"'),
        ("grpo", {"prompt": "1 + 1?", "completion": "2"}, "or a method that learns from solutions (opsd, sdft, sft)"),
        ("opsd", {"chosen": "2", "rejected": "3"}, "keep one of them by task.completion = 'chosen'"),
    ],
)  # fmt: skip
def test_what_a_method_lacks_in_the_rows_is_told_before_torch_is_imported(
    method: str, row: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", [row | {"prompt": f"{n} + 1?"} for n in range(20)])
    config = {"method": method, "model": {"path": "countdown-base"}, "task": {"preset": "trl", "path": "rows.jsonl"}}
    (tmp_path / "mine.json").write_text(json.dumps(config), encoding="utf-8")
    program = f"{TELLS_TORCH}; main(['train', 'mine.json'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.startswith("reading the rows\nselfdistill: ")
    assert sentence in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_first_line_comes_before_torch_is_imported(countdown: Path, tmp_path: Path) -> None:
    """What the line is printed by has not imported torch, and a mistake in the config prints no such line."""
    program = (
        "import sys; from selfdistill.cli import terminal, app; assert 'torch' not in sys.modules; "
        "terminal.announce('loading torch'); assert 'torch' not in sys.modules; "
        "import torch; terminal.announce('later')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "loading torch\n")


def test_train_leaves_what_its_folder_promises(run: Terminal, countdown: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run("train", countdown, "--out", out)
    assert (said.code, said.err) == (0, "")
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "rollouts.jsonl",
        "evaluations.jsonl",
        "starts.jsonl",
        "checkpoints",
        "summary.json",
        "report.html",
    }
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["method"]["name"] == "sdpo"
    assert config["method"]["teacher_rate"] == 0.05, "what was left open is written down"
    metrics = lines(out / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3]
    for line in metrics:
        assert {"step", "loss", "reward", "grad_norm", "seconds", "phase_seconds", "skipped"} <= set(line)
        assert {"student_entropy", "teacher_entropy", "pmi", "length", "truncated", "learning_rate"} <= set(line)
        assert {"views", "teacher", "student", "update", "generation"} <= set(line["phase_seconds"])
    rollouts = lines(out / "rollouts.jsonl")
    assert len(rollouts) == 3 * 3 * 3
    for line in rollouts:
        assert {"step", "text", "ids", "tokens", "logprobs", "reward"} <= set(line)
        assert len(line["ids"]) == len(line["tokens"]) == len(line["logprobs"])
        assert "u" not in line or len(line["u"]) == len(line["ids"])
    assert sum("u" in line for line in rollouts) == sum(3 * 3 - line["dropped"] for line in metrics)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    for name in ("before", "after", "best"):
        part = summary[name]
        assert {"pass", "maj", "length", "truncated"} <= set(part)
        assert set(part["avg"]) >= {"k", "value", "low", "high"}
        assert part["avg"]["k"] == 2
        assert 0 <= part["avg"]["low"] <= part["avg"]["value"] <= part["avg"]["high"] <= 1
    assert summary["best"]["avg"]["value"] == max(line["avg"]["value"] for line in lines(out / "evaluations.jsonl"))
    assert {"generation", "student", "teacher", "evaluation"} <= set(summary["seconds"])
    assert summary["tokens_per_second"] > 0
    assert [line["step"] for line in lines(out / "evaluations.jsonl")] == [0, 2, 3]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert not re.search(r"(?:src|href)\s*=\s*[\"']https?:", page)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"best", "step-000002", "step-000003"}
    assert f"page: {out / 'report.html'}" in said.out


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_what_train_leaves_loads_and_evaluates(
    lora: bool, run: Terminal, countdown: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("train", countdown, "--out", out, *(["--set", "model.lora.rank=2"] if lora else [])).code == 0
    checkpoint = out / "checkpoints" / "step-000003"
    options = ("--samples", 2, "--limit", 3, "--json", "--split", "validation")
    of_run = json.loads(run("evaluate", out, *options).out)
    assert of_run["weights"] == str(checkpoint / "model")
    sizes = ("task.difficulty=easy", "task.train=8", "task.validation=4", "task.test=4")
    every = (*sizes, "reward=support.rewards:even")
    task = ("--task", "countdown", "--max-tokens", "10", *(part for one in every for part in ("--set", one)))
    of_checkpoint = json.loads(run("evaluate", checkpoint, *task, *options).out)
    of_model = json.loads(run("evaluate", checkpoint / "model", *task, *options).out)
    base = json.loads(run("evaluate", model, *task, *options).out)
    named = ("model", "weights")
    results = [{k: v for k, v in one.items() if k not in named} for one in (of_run, of_checkpoint, of_model, base)]
    assert results[0] == results[1] == results[2]
    assert results[0] != results[3]
    if not lora:
        loaded = AutoModelForCausalLM.from_pretrained(checkpoint / "model")
        assert loaded(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 96)
    assert AutoTokenizer.from_pretrained(checkpoint / "model").chat_template


def test_an_adapter_can_be_trained_on_top_of_another(run: Terminal, countdown: Path, tmp_path: Path) -> None:
    lora = ("--set", "model.lora.rank=2", "--set", "steps=1")
    assert run("train", countdown, "--out", tmp_path / "one", *lora).code == 0
    first = tmp_path / "one" / "checkpoints" / "step-000001" / "model"
    assert run("train", countdown, "--out", tmp_path / "two", *lora, "--set", f"model.path={first}").code == 0
    options = ("--samples", 2, "--json", "--split", "validation")
    summary = json.loads((tmp_path / "two" / "summary.json").read_text(encoding="utf-8"))
    one, two = (lines(tmp_path / name / "evaluations.jsonl") for name in ("one", "two"))
    assert {**two[0], "step": 1} == one[1], "the second begins where the first ended"
    evaluated = json.loads(run("evaluate", tmp_path / "two", *options, "--limit", 3).out)
    for name in ("avg", "pass", "maj", "length"):
        assert evaluated[name] == summary["after"][name]


def test_an_adapter_on_a_shipped_model_trains_without_a_warning_and_without_a_hub(
    run: Terminal, countdown: Path, tmp_path: Path
) -> None:
    """Warnings are errors here, and a look-up of ``countdown-base`` on a hub would be one."""
    settings = ("model.path=countdown-base", "model.lora.rank=2", "steps=1")
    every = [part for one in settings for part in ("--set", one)]
    said = run("train", countdown, "--out", tmp_path / "out", *every)
    assert (said.code, said.err) == (0, "")
    assert json.loads(run("evaluate", tmp_path / "out", "--samples", 1, "--limit", 2, "--json").out)["problems"] == 2


def test_a_shipped_config_takes_settings_of_its_task(run: Terminal) -> None:
    said = refused(run("train", "countdown-grpo", "--set", "task.difficulty=hard"))
    assert said.startswith("unknown countdown difficulty 'hard'")


def test_a_folder_of_another_run_is_refused_and_resume_goes_on(run: Terminal, countdown: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("train", countdown, "--out", out, "--set", "optimiser.schedule=constant").code == 0
    said = refused(run("train", countdown, "--out", out))
    assert said == f"{out} holds another run: choose another --out, or continue it with --resume"
    other = run("train", countdown, "--out", out, "--resume")
    assert other.code == 2
    assert "optimiser.schedule was 'constant' and is now 'linear'" in other.err
    settings = ("--set", "optimiser.schedule=constant", "--set", "steps=4")
    assert run("train", countdown, "--out", out, "--resume", *settings).code == 0
    assert [line["step"] for line in lines(out / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_run_without_out_goes_to_runs_and_its_name(run: Terminal, countdown: Path, tmp_path: Path) -> None:
    assert run("train", countdown, "--set", "steps=1").code == 0
    assert (tmp_path / "runs" / "countdown" / "summary.json").is_file()


def test_a_loss_that_is_no_number_is_exit_code_2(run: Terminal, countdown: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = ("--set", "method={name='support.methods:Poisoned', poisoned_step=2}", "--set", "checkpoint.every=1")
    said = run("train", countdown, "--out", out, *settings)
    assert said.code == 2
    assert said.err == (
        "selfdistill: step 2: loss nan with gradient norm nan is not a number; the weights were not updated; "
        "try a lower optimiser.learning_rate or optimiser.clip_norm, or model.dtype = 'float32'; "
        f"the batch is in {out / 'bad-batch-000002.jsonl'}, the last checkpoint is kept\n"
    )
    assert (out / "bad-batch-000002.jsonl").is_file()
    assert (out / "checkpoints" / "step-000001" / "manifest.json").is_file()


# --- evaluate, contexts, configs -------------------------------------------------------------------------------------


EVALUATED = {
    "engine",
    "best_by",
    "earned",
    "reward",
    "rewards",
    "entropy",
    "top_p",
    "top_k",
    "pass_curve",
    "markers",
    "problem_set",
    "judged",
    "model",
    "weights",
    "checkpoint",
    "step",
    "task",
    "split",
    "max_tokens",
    "temperature",
    "seed",
    "problems",
    "samples",
    "avg",
    "pass",
    "maj",
    "length",
    "truncated",
    "deliberation",
    "hits",
    "words",
    "tokens",
    "skipped",
    "warnings",
}


def test_evaluate_prints_one_object_with_all_its_numbers(run: Terminal, model: Path) -> None:
    options = ("--samples", 3, "--limit", 4, "--max-tokens", 8, "--set", "task.difficulty=easy", "--json")
    said = run("evaluate", model, "--task", "countdown", *options)
    assert (said.code, said.err) == (0, f"model: {model}, 10.9K weights, float32 on cpu\n")
    result = json.loads(said.out)
    assert set(result) == EVALUATED
    assert (result["problems"], result["samples"], result["split"], result["task"]) == (4, 3, "test", "countdown")
    assert [len(result[name]) for name in ("hits", "words", "tokens")] == [4, 4, 4]
    assert result["avg"]["value"] == sum(result["hits"]) / 12
    assert result["length"] == sum(result["tokens"]) / 12
    assert (result["judged"], result["entropy"] > 0) == (12, True)
    # No text of this model has an answer, so there is nothing to vote with.
    assert (result["maj"], result["best_by"]) == (None, "success")
    assert result["earned"] == [hits / 3 for hits in result["hits"]]
    for name in ("avg", "pass"):
        assert result[name]["k"] == 3
        assert result[name]["low"] <= result[name]["value"] <= result[name]["high"]
    assert run("evaluate", model, "--task", "countdown", *options).out == said.out, "the same seed, the same numbers"


def test_evaluate_prints_a_line_for_people(run: Terminal, model: Path) -> None:
    said = run("evaluate", model, "--task", "countdown", "--samples", 2, "--limit", 3, "--max-tokens", 8)
    assert said.code == 0
    accuracy, note, counts, weights = said.out.splitlines()
    # The untrained model solves none of the problems, and says nothing to vote with.
    assert accuracy.startswith("avg@2 0.000 [no spread]  pass@2 0.000  length ")
    assert note.startswith("no spread: every problem came out alike")
    assert counts.startswith("3 problems × 2 samples, truncated ")
    assert weights == f"weights: {model}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--task", "countdown", "--split", "holdout"), "unknown split 'holdout'; known: train, validation, test"),
        (("--task", "chess"), "evaluate: task: unknown kind 'chess'; known: countdown, "),
        (("--task", "countdown", "--set", "method.strength=1"), "evaluate trains nothing, so it has no method to set"),
        (("--task", "countdown", "--set", "task.dificulty=easy"), "did you mean 'task.difficulty'?"),
        (("--task", "countdown", "--set", "task"), "write key=value"),
        (("--task", "countdown", "--set", "model.device=abacus"), "model.device 'abacus' cannot be used here"),
        (("--task", "math"), "task.path: field required"),
        ((), "is a model, which names no task: add --task, for example --task countdown"),
        (("--task", "countdown", "--max-tokens", 255), "no prompt fits"),
    ],
)
def test_an_evaluation_that_cannot_be_is_one_sentence(
    arguments: Sequence[object], sentence: str, run: Terminal, model: Path
) -> None:
    assert sentence in refused(run("evaluate", model, *arguments))


def test_a_model_that_is_not_there_cannot_be_evaluated(run: Terminal) -> None:
    said = refused(run("evaluate", "./nowhere", "--task", "countdown"))
    assert "model './nowhere' not found" in said
    assert "'./nowhere' not found; give a config, a run folder, a checkpoint" in refused(run("evaluate", "./nowhere"))


def test_a_run_without_a_checkpoint_cannot_be_evaluated(run: Terminal, countdown: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("train", countdown, "--out", out, "--set", "steps=1").code == 0
    for path in (out / "checkpoints").glob("step-*/training.pt"):
        path.write_bytes(b"")
    assert "no whole checkpoint" in refused(run("evaluate", out))


ROLES = {
    "grpo": ["student: what the model is asked"],
    "sft": ["student: what the model is asked"],
    "opsd": ["student: what the model is asked", "teacher: context solution, frozen weights"],
    "sdpo": ["student: what the model is asked", "teacher: context sibling_or_feedback, ema weights"],
    "sd": ["student: what the model is asked", "teacher: context sibling_or_solution_verdict, live weights"],
    "antisd": ["student: what the model is asked", "teacher: context sibling_or_solution_verdict, live weights"],
    "sdft": ["student: what the model is asked", "teacher: context solution, ema weights"],
    "credit": [
        "student: what the model is asked",
        "teacher: context sibling_or_feedback, ema weights",
        "contrast_0: context other_question, ema weights",
    ],
    "purified": [
        "student: what the model is asked",
        "teacher: context solution, frozen weights",
        "reference_only: context reference_only, frozen weights",
        "base: the student's prompt, frozen weights",
    ],
    "pbsd": ["student: what the model is asked", "teacher: context solution, frozen weights"],
    "pbsd_reward": ["student: what the model is asked", "teacher: context solution, frozen weights"],
    "sc_sdpo": ["student: what the model is asked", "teacher: context sibling_or_feedback, ema weights"],
    "paced": ["student: what the model is asked", "teacher: context solution, frozen weights"],
    "demopsd": [
        "student: what the model is asked",
        "teacher: context sibling_or_feedback, ema weights",
        "bare: the student's prompt, ema weights",
    ],
    "eopd": ["student: what the model is asked", "teacher: context solution, frozen weights"],
    "hdpo": ["student: what the model is asked", "teacher: context solution, live weights"],
    "cepo": [
        "student: what the model is asked",
        "teacher: context answer_only, live weights",  # the tiny model is never wrong with an answer
    ],
    "rlcsd": [
        "student: what the model is asked",
        "teacher: context random_sibling_or_solution, weights of a snapshot every 10 steps",
    ],
    "rlsd": ["student: what the model is asked", "teacher: context sibling_or_solution, live weights"],
    "sdar": ["student: what the model is asked", "teacher: context sibling_or_solution, live weights"],
    # No step came before the one that is shown, so there is no note.
    "skill_sd": ["student: what the model is asked"],
    "sdpg": [
        "student: what the model is asked",
        "teacher: context answer_only, live weights",
        "reference: the student's prompt, frozen weights",
    ],
    "srpo": ["student: what the model is asked", "teacher: context sibling_or_feedback, ema weights"],
}
DRAWN = {"sft": 1, "pbsd": 6}
"""Completions of each problem, where they are not the three that were asked for."""


@pytest.mark.parametrize("method", ROLES)
def test_contexts_prints_every_role_with_its_tokens(
    method: str, run: Terminal, countdown: Path, tmp_path: Path
) -> None:
    config = countdown.read_text(encoding="utf-8")
    kept = [line for line in config.splitlines() if not line.startswith("method.")]
    countdown.write_text("\n".join([*kept, f'method = "{method}"', ""]), encoding="utf-8")
    said = run("contexts", countdown, "--examples", 2, "--completions", 3)
    assert said.code == 0 and re.fullmatch(r"model: \S+, 10\.9K weights, float32 on cpu\n", said.err)
    text = said.out
    shown = 2 * DRAWN.get(method, 3)
    assert text.count("══ countdown-") == shown
    for role in ROLES[method]:
        assert text.count(f"── {role}; ") == shown
    # <|user|>, 3 + 1 + 3 + 2 + 1 + 1 words and numbers, <|end|>, <|assistant|>, <think>: the prompt is this long.
    prompt = re.search(r"── student: what the model is asked; (\d+) tokens, \1 shared .*\n(.*)\n", text)
    assert prompt is not None
    assert len(prompt[2].split()) == int(prompt[1])
    teachers = re.findall(r"── teacher: .*; (\d+) tokens, (\d+) shared with the student from the start\n(.*)\n", text)
    for tokens, shared, rendered in teachers:
        assert len(rendered.split()) == int(tokens) > int(shared) > 0
    assert f"{shown} completions scored, 0 left out of the loss" in text
    assert not (tmp_path / "runs").exists()


def test_contexts_says_what_would_be_left_out(run: Terminal, countdown: Path) -> None:
    said = run("contexts", countdown, "--set", "method.context=sibling", "--set", "reward=support.rewards:never")
    assert said.code == 0
    assert "skipped: 8 × context sibling: no sibling" in said.out
    assert "0 completions scored, 8 left out of the loss" in said.out


def test_configs_lists_the_shipped_ones(run: Terminal) -> None:
    said = run("configs")
    assert said.code == 0
    assert {"countdown-grpo", "countdown-antisd", "countdown-sdpo", "countdown-sft"} <= set(said.out.split())


def test_a_shipped_config_is_printed_to_start_from(run: Terminal, tmp_path: Path) -> None:
    said = run("configs", "countdown-grpo")
    (tmp_path / "mine.toml").write_text(said.out, encoding="utf-8")
    assert (said.code, load_config(str(tmp_path / "mine.toml"))) == (0, load_config("countdown-grpo"))
    assert "did you mean 'countdown-grpo' or " in refused(run("configs", "countdown-grp"))


def test_the_version_is_printed(run: Terminal) -> None:
    said = run("--version")
    assert (said.code, said.out) == (0, f"selfdistill {version('selfdistill')}\n")


@pytest.mark.parametrize("command", [(), ("train",), ("data",), ("data", "check")], ids=" ".join)
def test_help_has_a_short_name_and_shows_flags_without_a_type(command: tuple[str, ...], run: Terminal) -> None:
    short, long = run(*command, "-h"), run(*command, "--help")
    assert (short.code, short.out) == (0, long.out)
    assert "bool" not in long.out


def test_resume_needs_no_more_than_the_folder(run: Terminal, countdown: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("train", countdown, "--out", out).code == 0
    assert refused(run("train", out)) == f"{out} holds another run: choose another --out, or continue it with --resume"
    assert run("train", out, "--resume", "--set", "steps=4").code == 0
    assert [line["step"] for line in lines(out / "metrics.jsonl")] == [1, 2, 3, 4]
    assert refused(run("train", tmp_path)).startswith(f"{tmp_path} is neither a run folder nor a model directory")


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "selfdistill", "configs"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "countdown-antisd" in ended.stdout.split()
    assert ended.stderr == ""


def test_evaluate_finds_a_length_that_fits_a_small_window(run: Terminal) -> None:
    """The shipped base has a window of 1024: half of it is left to the completion where nobody says."""
    said = run("evaluate", "countdown-base", "--task", "countdown", "--limit", 2, "--samples", 1, "--json")
    assert said.code == 0
    assert json.loads(said.out)["max_tokens"] == 512
