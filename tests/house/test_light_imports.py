"""The command line answers at once: nothing heavy is loaded before a command needs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HEAVY = {"torch", "transformers", "datasets", "peft", "tokenizers", "numpy", "pandas", "pyarrow", "sympy"}
"""torch and transformers take seconds to import, each of the others tenths of one."""

HELP = """
import runpy
sys.argv = ["selfdistill", "--help"]
try:
    runpy.run_module("selfdistill", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
"""

ASKED = """
import json, os, sys, tempfile
from selfdistill.cli import early  # once, not for each command line
from selfdistill.cli.app import main

for line in sys.stdin:
    folder, command = json.loads(line)
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as found:
        if not os.fork():
            os.chdir(folder)
            os.dup2(told.fileno(), 2)
            code = None
            try:
                main(command)
            except SystemExit as end:
                code = end.code
            sys.stderr.flush()
            json.dump([code, list(sys.modules)], found)
            found.flush()
            os._exit(0)
        os.wait()
        told.seek(0)
        found.seek(0)
        code, modules = json.load(found)
        print(json.dumps({"code": code, "modules": modules, "told": told.read()}), file=sys.__stdout__, flush=True)
"""
Asked = Callable[[Path, list[str]], dict[str, Any]]


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    """What a command line comes to, each in a fresh copy of a process that has loaded the commands alone."""
    with subprocess.Popen(
        [sys.executable, "-c", ASKED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        to, answers = process.stdin, process.stdout

        def ask(folder: Path, command: list[str]) -> dict[str, Any]:
            print(json.dumps([str(folder), command]), file=to, flush=True)
            found: dict[str, Any] = json.loads(answers.readline())
            return found

        yield ask
        to.close()


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import selfdistill", id="package"),
        pytest.param("import selfdistill; assert 'train' in dir(selfdistill)", id="names"),
        pytest.param("from selfdistill import Message, RunConfig, Template, UserError", id="light names"),
        pytest.param("from selfdistill.cli.app import main; assert callable(main)", id="cli"),
        pytest.param(HELP, id="help"),
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    output = run_python("-c", f"import sys\n{code}\nprint('loaded:', *sys.modules)")
    modules = output.splitlines()[-1].split()
    assert modules[0] == "loaded:"
    assert "selfdistill" in modules
    assert not HEAVY & set(modules)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["train"], ["train", "--launch", "2"], ["contexts"], ["teachers"], ["evaluate"], ["data check"]),
        ["compare", "countdown-grpo", "--out", "none"],
        ["train", "--set", "method=antsd"],
        ["train", "--set", "method.strenght=1"],
        ["train", "--set", "method.teacher_rate=-1"],
        ["train", "--set", "method.score_temperature=abc"],
        ["train", "--set", "method.weights={kind='snapshot', every=0}"],
        ["train", "--set", "method.divergence={kind='reverse_kl', suport=1}"],
        ["train", "--set", "method.name=grpo", "--set", "method.dual_clip=3", "--set", "method.ratio=weight"],
        ["compare", "--out", "none", "--methods", "opsd,antsd"],
        ["inspect", "--out", "none", "--methods", "opsd,antsd"],
    ],
    ids=" ".join,
)
def test_a_mistake_in_a_config_is_reported_before_anything_heavy_is_loaded(
    arguments: list[str], asked: Asked, tmp_path: Path
) -> None:
    """A user waits for the sentence, not for torch."""
    command = [*arguments[0].split(), "countdown-opsd", *arguments[1:]]
    if not any(word.startswith(("method", "opsd,")) for word in arguments):
        command += ["--set", "stps=3"]
    found = asked(tmp_path, command)
    assert found["code"] == 2
    assert "selfdistill.config.run" in found["modules"]
    assert not HEAVY & set(found["modules"])


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("train countdown-grpo --out file", "file is a file: choose another --out"),
        ("train countdown-grpo --out full", "full is not empty and holds no run"),
        ("train countdown-grpo --launch 2 --out full", "full is not empty and holds no run"),
        ("train countdown-grpo --set reward=nomodule:f", "module 'nomodule' cannot be imported"),
        ("train countdown-grpo --set reward=json:nothing", "module 'json' has no function 'nothing'"),
        ("train countdown-grpo --set reward=json", "must be written 'package.module:function'"),
        ("train countdown-grpo --set model.path=none", "model 'none' not found: give a model directory"),
        ("train countdown-grpo --set model.path=a/b/c", "model 'a/b/c' not found: give a model directory"),
        (
            "compare countdown-grpo --set model.path=./none --out new",
            "model './none' not found: give a model directory",
        ),
        ("train countdown-grpo --set model.quantisation=nf4", "cannot be trained: train an adapter beside them"),
        (
            "compare countdown-grpo --set model.quantisation=nf4 --set model.dtype=float64 --out new",
            "model.quantisation 'nf4' has no kernels for float64",
        ),
        ("train countdown-grpo --set optimiser.kind=adamw8bit --set parallel=fsdp2", "cannot be sharded"),
        (
            "evaluate countdown-grpo --set model.quantisation=nf4 --set model.dtype=float64",
            "model.quantisation 'nf4' has no kernels for float64",
        ),
        ("evaluate none --task countdown", "model 'none' not found: give a model directory"),
        ("evaluate countdown-grpo --set reward=nomodule:f", "module 'nomodule' cannot be imported"),
        ("teachers countdown-opsd --set reward=nomodule:f", "module 'nomodule' cannot be imported"),
        ("train countdown-grpo --set contexts=nothing", "context file 'nothing' not found"),
        ("train countdown-grpo --set sampler.kind=server --set sampler.urls=['http://127.0.0.1:9']", "does not answer"),
        (
            "train countdown-grpo --set reward={judge={model='m',url='http://127.0.0.1:9'}}",
            "does not answer",
        ),
        ("compare countdown-grpo --methods grpo,grpo --out new", "--methods grpo,grpo names a method twice"),
        ("compare countdown-grpo countdown-grpo --out new", "two arms are named 'countdown-grpo'"),
        ("compare countdown-grpo --baseline no --out new", "--baseline 'no' is no arm; arms: countdown-grpo"),
        (
            "compare countdown-grpo --methods grpo,opsd --main grpo --out new",
            "--main 'grpo' is no arm; arms: countdown-grpo-grpo, countdown-grpo-opsd",
        ),
        ("compare countdown-grpo --match words --out new", "--match 'words' is no budget"),
        ("compare countdown-grpo --final-split dev --out new", "--final-split 'dev' is no split"),
        ("compare countdown-grpo --seeds 1,1 --out new", "--seeds '1,1' names a seed twice"),
        ("compare countdown-grpo --seeds one --out new", "--seeds 'one': write whole numbers"),
        ("compare countdown-grpo --sweep seed --out new", "--sweep 'seed': write a key and two values"),
        ("compare countdown-grpo --out file", "file is a file: choose another --out"),
        ("compare countdown-grpo --set reward=nomodule:f --out new", "module 'nomodule' cannot be imported"),
    ],
)
def test_a_mistake_on_the_command_line_is_reported_before_torch(
    command: str, sentence: str, asked: Asked, tmp_path: Path
) -> None:
    """One sentence, exit code 2, and nothing is written."""
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    found = asked(tmp_path, command.split())
    assert found["code"] == 2
    assert "torch" not in found["modules"]
    [line] = found["told"].splitlines()
    assert line.startswith("selfdistill: ") and sentence in line
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "notes"]


def test_help_is_shown() -> None:
    shown = run_python("-m", "selfdistill", "--help")
    assert "train" in shown
    # The shell's completion is written for this name.
    assert "Usage: selfdistill [OPTIONS]" in shown


def run_python(*arguments: str) -> str:
    """What a fresh interpreter prints; its errors are shown when it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
