"""docs/extend.md is true: its task runs as printed, from a folder outside the package, in every command."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.cli.app import main
from selfdistill.config.run import RunConfig, parse_config
from selfdistill.errors import CheckpointError, ConfigError, UserError
from support.bytewise import save_bytewise_model
from support.runs import train

PAGE = (Path(__file__).parents[2] / "docs" / "extend.md").read_text(encoding="utf-8").split("# A task of your own")[1]
[CODE] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CONTEXTS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]
BROKEN = """
class Broken:
    def __init__(self, size):
        self.size = 1 / size


class Gone:
    def __init__(self):
        raise SystemExit(3)


class Half:
    name = "half"


count = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_task.py").write_text(CODE + BROKEN, encoding="utf-8")
    (tmp_path / "my_task.toml").write_text(CONTEXTS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_task", None)


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bytewise_model(tmp_path_factory.mktemp("model"))


def config(model: Path, method: str, **task: Any) -> RunConfig:
    raw = {
        "steps": 1,
        "model": {"path": str(model)},
        "task": {"kind": "my_task:Reversal", "size": 4, **task},
        "method": {"name": method},
        "sampling": {"prompts": 2, "completions": 2, "max_tokens": 4},
        "evaluation": {"every": 1, "problems": 2, "samples": 2},
    }
    return parse_config(raw, "a test")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(str(ended.value.code or 0))


@pytest.mark.usefixtures("no_page")
def test_it_trains_with_its_own_contexts_and_resumes_only_with_its_own_keys(folder: Path, bytewise: Path) -> None:
    summary = train(config(bytewise, "opsd"), folder / "run")
    stored = json.loads((folder / "run" / "config.json").read_text(encoding="utf-8"))
    assert stored["task"] == {"kind": "my_task:Reversal", "size": 4}
    assert summary["before"]["problems"] == 2
    assert summary["best_by"] == "success"
    train(config(bytewise, "sdpo"), folder / "other")
    with pytest.raises(CheckpointError, match=r"task\.letters was None and is now 5"):
        train(config(bytewise, "opsd", letters=5), folder / "run", resume=True)


def test_the_commands_take_it_by_import_path(folder: Path, bytewise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ["--task", "my_task:Reversal"]
    assert run("data", "check", *task, "--set", "task.size=3") == 0
    assert "9 rows, 0 rejected, 9 checked, 100.0% verified" in capsys.readouterr().out
    sizes = ["--samples", "2", "--max-tokens", "4"]
    assert run("evaluate", str(bytewise), *task, "--limit", "2", *sizes, "--json") == 0
    assert json.loads(capsys.readouterr().out)["task"] == "my_task:Reversal"
    assert run("inspect", str(bytewise), *task, "--methods", "opsd", "--problems", "2", *sizes, "--out", "look") == 0
    assert json.loads((folder / "look" / "summary.json").read_text(encoding="utf-8"))["completions"] == 4


@pytest.mark.usefixtures("folder")
def test_it_is_loaded_from_python_and_its_verdict_says_what_is_right() -> None:
    task = sd.load_task("my_task:Reversal", letters=3, size=2, seed=5)
    example = task.examples("train")[0]
    solution = example.fields["solution"]
    assert (len(solution), example.columns["word"]) == (3, solution[::-1])
    assert sd.load_task("my_task:Reversal", letters=3, size=2, seed=6).examples("train")[0] != example
    near = task.verify(example, solution[:2] + "z", finished=True)
    assert (near.reward, near.correct, task.verify(example, solution, finished=True).correct) == (2 / 3, False, True)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"kind": "my_task:Nope"}, "task.kind 'my_task:Nope': module 'my_task' has no class 'Nope'"),
        ({"kind": "nowhere:Reversal"}, "task.kind 'nowhere:Reversal': module 'nowhere' cannot be imported"),
        ({"kind": "my_task:"}, "task.kind 'my_task:' must be written 'package.module:class'"),
        ({"kind": "my_task:count"}, "task.kind 'my_task:count' is a int, no class"),
        ({"kind": "my_task:Half"}, "a Half is no task, for it has no 'contexts'"),
        (
            {"kind": "my_task:Reversal", "leters": 3},
            "unknown key 'task.leters', which my_task:Reversal does not take;",
        ),
        ({"kind": "my_task:Broken"}, "task.kind 'my_task:Broken' needs the key task.size"),
        (
            {"kind": "my_task:Broken", "size": 0},
            "task.kind 'my_task:Broken' raised ZeroDivisionError: division by zero (my_task.py:",
        ),
        ({"kind": "my_task:Gone"}, "task.kind 'my_task:Gone' raised SystemExit (my_task.py:"),
        ({"kind": "my_task:Reversal", "path": [{"x": 1}]}, "makes its own problems and reads no rows"),
    ],
)
def test_what_is_wrong_with_it_is_one_sentence(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        sd.load_task(**table)


@pytest.mark.parametrize(
    ("code", "raised"),
    [
        ("raise ValueError('bad size')", "ValueError: bad size"),
        ("import json\njson.nope", "AttributeError: module 'json' has no attribute 'nope'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_what_a_module_raises_while_it_is_imported_is_said(folder: Path, code: str, raised: str) -> None:
    (folder / "broken_module.py").write_text(code, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        sd.load_task("broken_module:Reversal")
    assert str(caught.value) == (
        f"task.kind 'broken_module:Reversal': module 'broken_module' cannot be imported, it raised {raised}"
    )


def test_kinds_and_keys_of_the_package_are_named_as_before() -> None:
    for task, sentence in (
        ({"kind": "maht"}, "task: unknown kind 'maht'; did you mean 'math'? known: countdown"),
        ({"size": 3}, 'task: no kind; write for example task.kind = "countdown"'),
        ({"kind": "text", "path": "x", "promt": "q"}, "unknown key 'task.promt'; did you mean 'task.prompt'?"),
        ({"kind": "math", "path": "x", "timeout": -1}, "task.timeout: input should be greater than 0"),
    ):
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            parse_config({"method": "grpo", "task": task}, "a test")
