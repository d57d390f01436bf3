"""Options under the names that people type, and one sentence for those that do not exist."""

from __future__ import annotations

import json

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


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        ("configs countdown-grpo", {"method", "steps"}),
        ("methods grpo", {"grpo"}),
        ("contexts countdown-opsd --examples 1 --completions 1", {"weights", "completions", "skipped", "scored"}),
    ],
)
def test_json_is_one_document_on_stdout(arguments: str, keys: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said([*arguments.split(), "--json"], capsys)
    assert code == 0
    assert out.count("\n") == 1
    assert keys <= set(json.loads(out))


def test_lists_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert "countdown-grpo" in json.loads(said(["configs", "--json"], capsys)[1])
    grpo = json.loads(said(["methods", "--json"], capsys)[1])["grpo"]
    assert (grpo["needs_rewards"], grpo["hyperparameters"]["clip_low"]["default"]) == (True, 0.2)
