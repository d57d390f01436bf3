"""docs/from-trl.md names every argument of TRL's configs, read off the source of the installed TRL, and no other."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "from-trl.md"
CONFIGS = ("GRPOConfig", "SDPOConfig", "SDFTConfig", "DistillationConfig", "GKDConfig", "GOLDConfig")
SHARED = ("Arguments that several trainers share", "TrainingArguments")

# Found, and not imported as other tests of TRL do: the import takes half a minute, and only the sources are read.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")


def folder_of(package: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations
    return Path(next(iter(found.submodule_search_locations)))


def classes() -> dict[str, tuple[list[str], list[str]]]:
    """Name of a config → its bases and its own fields, parsed from the sources."""
    trl, transformers = folder_of("trl"), folder_of("transformers")
    files = [*sorted(trl.rglob("*_config.py")), transformers / "training_args.py"]
    known: dict[str, tuple[list[str], list[str]]] = {}
    for node in (node for path in files for node in ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.ClassDef):
            fields = [
                part.target.id
                for part in node.body
                if isinstance(part, ast.AnnAssign)
                and isinstance(part.target, ast.Name)
                and "ClassVar" not in ast.unparse(part.annotation)
            ]
            known.setdefault(node.name, ([base.id for base in node.bases if isinstance(base, ast.Name)], fields))
    return known


def fields_of(name: str, known: dict[str, tuple[list[str], list[str]]]) -> set[str]:
    bases, own = known.get(name, ([], []))
    return {field for field in own if not field.startswith("_")}.union(*(fields_of(base, known) for base in bases))


def sections() -> dict[str, set[str]]:
    """Heading → the names in the left column of its table."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    tables = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {
        heading: {
            name for row in re.findall(r"^\|([^|]+)\|", text, re.MULTILINE) for name in re.findall("`(.+?)`", row)
        }
        for heading, text in tables.items()
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_every_argument_of_a_config_is_mapped(name: str) -> None:
    known, tables = classes(), sections()
    own = next(names for heading, names in tables.items() if name in heading)
    mapped = own.union(*(tables[heading] for heading in SHARED))
    assert fields_of(name, known) > {"learning_rate", "seed"}
    assert sorted(fields_of(name, known) - mapped) == []


def test_the_page_maps_nothing_that_trl_does_not_have() -> None:
    known, tables = classes(), sections()
    everything = set().union(*(fields_of(name, known) for name in CONFIGS))
    headings = [heading for heading in tables if heading in SHARED or "Config" in heading]
    assert len(headings) == 6
    assert sorted(set().union(*(tables[heading] for heading in headings)) - everything) == []
