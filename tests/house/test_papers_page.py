"""Every test, function and recipe that docs/papers.md names exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

from selfdistill.config.sources import shipped_configs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
NAMES = re.findall(r"`([^`]+)`", PAGE)


def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    named = [name for name in NAMES if name.startswith("tests/")]
    assert len(named) > 40
    missing = [name for name in named if name.partition("::")[2] not in functions_of(name.partition("::")[0])]
    assert not missing


def test_every_function_that_is_named_exists() -> None:
    named = [name for name in NAMES if re.fullmatch(r"selfdistill(\.\w+)+", name)]
    assert len(named) > 20
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_every_recipe_that_is_named_exists_and_every_one_is_named() -> None:
    # Those of the papers that the page is about.
    theirs = re.compile(r"(antisd|credit|opsd|pbsd|purified|rlcsd|sdpg|sdpo|srpo)-[\w.-]+")
    recipes = {name for name in shipped_configs() if any(model in name for model in ("qwen3", "olmo3", "r1-distill"))}
    recipes = {name for name in recipes if theirs.fullmatch(name)}
    named = {name for name in NAMES if theirs.fullmatch(name)}
    assert named == recipes


def test_every_row_says_where_and_how() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| statement")]
    assert len(rows) > 50
    assert all(line.count("|") == 4 and all(cell.strip() for cell in line.split("|")[1:4]) for line in rows)
