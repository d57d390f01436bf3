"""Options under the names that people type, and one sentence for those that do not exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from selfdistill.cli.app import main


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "train x.toml --learning_rate 1",
            "train has no option --learning_rate; here it is --set optimiser.learning_rate=…",
        ),
        ("train x.toml --max-model-len 9", "here it is --set sampler.max_model_len=…"),
        ("train x.toml --nnodes 2", "here it is torchrun --nnodes … -m selfdistill train …"),
        ("evaluate x.toml --model y", "here it is the argument itself, a config or a model"),
        ("evaluate x.toml --sampels 3", "evaluate has no option --sampels; did you mean '--samples'?"),
        (
            "data check x.jsonl --foo",
            "data check has no option --foo; there are: --config, --help, --json, --model, --path",
        ),
        ("evaluate", "missing argument 'model'; see selfdistill evaluate --help"),
        ("data check x --path", "option '--path' requires an argument; see selfdistill data check --help"),
        ("evaluate x --samples many", "invalid value for '--samples': "),
        ("train x.toml y.toml", "got unexpected extra argument(s) (y.toml); see selfdistill train --help"),
    ],
)
def test_an_option_that_is_none_is_one_sentence(
    arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(arguments.split(), capsys)
    assert (code, out) == (2, "")
    assert err.startswith("selfdistill: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_underscores_and_names_of_trl_and_torchrun_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        "evaluate countdown-base --max_tokens 5 --task countdown --split holdout --limit 1",
        "evaluate countdown-base --max_tokens=5 --task countdown --split holdout --limit 1",
    ):
        assert "unknown split 'holdout'" in said(arguments.split(), capsys)[2]
    unknown = ["--set", "stps=1"]
    assert "unknown key 'stps'" in said(["train", "countdown-grpo", "--output_dir", "x", *unknown], capsys)[2]
    assert "unknown key 'stps'" in said(["train", "countdown-grpo", "--nproc_per_node=2", *unknown], capsys)[2]


JSON_KEYS = {
    "evaluate countdown-base --task countdown --limit 1 --samples 1 --max-tokens 4": (
        "avg best_by checkpoint deliberation earned engine entropy hits judged length maj markers max_tokens model "
        "pass pass_curve problem_set problems reward rewards samples seed skipped split step task temperature tokens "
        "top_k top_p truncated warnings weights words"
    ),
    "inspect countdown-base --task countdown --problems 1 --samples 1 --max-tokens 4 --methods grpo --out look": (
        "agreement answer_leak checkpoint completions contexts drift hyperparameters left_out methods metrics model "
        "outcomes problems quantised rollouts seed separation sequence signals skipped split step task teacher "
        "temperature templates tokens weights"
    ),
    "contexts countdown-opsd --examples 1 --completions 1": (
        "completions control_tokens left_out warnings scored skipped weights"
    ),
    "teachers countdown-opsd --problems 2 --samples 2 --set sampling.max_tokens=6": "teacher",
    "compare countdown-opsd countdown-grpo --out arms --dry-run": "arms baseline folder seeds steps",
    "data check rows.jsonl --task math": (
        "checked control_tokens duplicates leaks path preset rejected row rows silent_solutions task unverified "
        "verified verified_rows"
    ),
    "methods grpo": "grpo",
    "configs countdown-grpo": "checkpoint evaluation method optimiser sampling steps task",
}
"""Top-level keys of each document: scripts read them, so a change of one is a change for users."""


@pytest.mark.parametrize("arguments", JSON_KEYS)
def test_json_is_one_document_on_stdout_with_these_keys(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n', encoding="utf-8")
    code, out, _ = said([*arguments.split(), "--json"], capsys)
    assert code == 0
    assert out.count("\n") == 1
    assert sorted(json.loads(out)) == sorted(JSON_KEYS[arguments].split())


@pytest.mark.parametrize("arguments", [["train", "--help"], ["methods", "--help"]], ids=" ".join)
def test_no_color_turns_colours_off(arguments: list[str]) -> None:
    def shown(**more: str) -> str:
        command = [sys.executable, "-m", "selfdistill", *arguments]
        given = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        environment = {**given, "FORCE_COLOR": "1", "TERM": "xterm", **more}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    # Select Graphic Rendition: 30 to 37 and 90 to 97 set the colour of the text.
    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3|9)[0-7]m")
    assert colour.search(shown())
    assert not colour.search(shown(NO_COLOR="1"))


def test_lists_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert "countdown-grpo" in json.loads(said(["configs", "--json"], capsys)[1])
    grpo = json.loads(said(["methods", "--json"], capsys)[1])["grpo"]
    assert (grpo["needs_rewards"], grpo["hyperparameters"]["clip_low"]["default"]) == (True, 0.2)
