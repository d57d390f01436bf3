"""The public surface: what the package exports, that it is told of, and that nothing outside reaches deeper."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfdistill as sd
from docs_site.api import api_page, described, is_protocol

ROOT = Path(__file__).parents[2]
NAMES = (
    "Message Example Verdict Completion Rollout RolloutGroup View Scores TokenSlice Role Task Sampler "
    "Environment Start Reply Episode Turn ToolLoop ToolError McpServer PythonTool AgentTask AskedModel "
    "RunConfig load_config Policy load_policy save_policy Chat Template load_templates load_task HFSampler "
    "ScriptedSampler SamplingParams rollout score Method METHODS build_method Trainer train evaluate inspect compare "
    "UserError objectives"
).split()
SOURCE = ast.parse((ROOT / "src" / "selfdistill" / "__init__.py").read_text(encoding="utf-8"))


def test_the_names_are_these() -> None:
    assert sorted(sd.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(sd))
    assert [name for name in NAMES if not hasattr(sd, name)] == []


def test_what_mypy_sees_is_what_the_interpreter_finds() -> None:
    block = next(node for node in SOURCE.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {(node.module, alias.name) for node in imports for alias in node.names}
    found = {(room, name) for name, room in sd._FOUND_IN.items()}
    assert seen - {("selfdistill", "objectives")} == found
    assert {name for _, name in seen} == set(sd.__all__)


def test_a_name_that_is_none_is_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'selfdistill' has no attribute 'lode_policy'"):
        sd.lode_policy  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from selfdistill import nothing  # type: ignore[attr-defined]  # noqa: F401


def test_no_module_takes_a_name() -> None:
    # Importing selfdistill.NAME sets that attribute of the package, and would hide the function of the same name.
    places = {path.stem for path in (ROOT / "src" / "selfdistill").iterdir()}
    assert places & set(sd.__all__) == {"objectives"}


@pytest.mark.parametrize("name", sorted(sd.__all__))
def test_every_name_is_described_on_the_page(name: str) -> None:
    assert len(described(name)) > 20
    assert f"### `{name}`\n" in page()


def test_every_argument_of_a_function_is_described() -> None:
    for name in sd.__all__:
        value = getattr(sd, name)
        if not hasattr(value, "__code__") or not value.__module__.startswith("selfdistill.api"):
            continue
        count = value.__code__.co_argcount + value.__code__.co_kwonlyargcount
        told = {
            word for line in re.findall(r"^    ([\w, ]+):", described(name), re.MULTILINE) for word in line.split(", ")
        }
        missing = set(value.__code__.co_varnames[:count]) - told
        # A function of plain arguments may tell of them in its sentence.
        assert not missing or name == "save_policy", (name, missing)


def test_the_page_gives_signatures_but_to_protocols() -> None:
    assert "load_policy(path, *, dtype='auto', device='auto', lora=None, seed=0, quantisation=None)" in page()
    assert is_protocol(sd.Task) and "Task(*args" not in page()
    assert "| `forward_kl` | KL(teacher || student)".replace("||", r"\|\|") in page()
    assert ":func:" not in page() and "``" not in page().replace("```", "")


def page() -> str:
    if not hasattr(page, "text"):
        page.text = api_page()  # type: ignore[attr-defined]
    text: str = page.text  # type: ignore[attr-defined]
    return text


# --- nobody reaches deeper ------------------------------------------------------------------------------------------


def code_of_strangers() -> Iterator[tuple[str, str]]:
    """Every piece of Python that a reader is shown: examples, notebooks, code blocks of the documentation."""
    for path in sorted((ROOT / "examples").rglob("*.py")):
        yield path.name, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield from ((path.name, "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        blocks = re.findall(r"^```(?:python|py)\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        yield from ((path.name, block) for block in blocks)


PUBLIC_MODULES = {"selfdistill", "selfdistill.objectives"}


def deeper(code: str) -> list[str]:
    """Modules of the package that the code imports and that are not public."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
            if node.module == "selfdistill":
                found += [f"selfdistill.{alias.name}" for alias in node.names if alias.name not in sd.__all__]
    return [name for name in found if name.partition(".")[0] == "selfdistill" and name not in PUBLIC_MODULES]


def test_examples_and_documentation_import_public_names_alone() -> None:
    pieces = list(code_of_strangers())
    assert {"minimal_loop.py", "u_in_ten_lines.ipynb", "extend.md", "README.md", "python.md"} <= {
        name for name, _ in pieces
    }
    assert [(name, found) for name, code in pieces if (found := deeper(code))] == []


def test_a_deeper_import_is_noticed() -> None:
    assert deeper(
        "import selfdistill.models.head\nfrom selfdistill.types import View\nfrom selfdistill import models, View"
    ) == [
        "selfdistill.models.head",
        "selfdistill.types",
        "selfdistill.models",
    ]
    assert deeper("import torch\nimport selfdistill as sd\nfrom selfdistill.objectives import forward_kl") == []
