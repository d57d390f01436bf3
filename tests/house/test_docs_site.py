"""The documentation builds strictly, reads offline, and lists every command, key, hyperparameter, alarm and method."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import pytest
import typer
from pydantic import BaseModel, Field

from docs_site.commands import cli_page
from docs_site.config_keys import Key, tables, undescribed
from docs_site.pages import Divergences, alarms_table, config_page
from selfdistill.cli.app import app
from selfdistill.config.run import RunConfig
from selfdistill.config.sections import Strict
from selfdistill.config.tasks import task_configs
from selfdistill.methods import METHODS
from selfdistill.tracking.alarms import ALARMS

ROOT = Path(__file__).parents[2]


def test_the_site_builds_strictly_and_reads_without_a_network(tmp_path: Path) -> None:
    # One test: a build takes seconds, and tests of one file may run in several processes.
    pytest.importorskip("mkdocs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}
    # Not --quiet: it drops warnings before --strict can count them.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    nothing_is_loaded_from_elsewhere(tmp_path)
    every_formula_is_mathml(tmp_path)
    every_page_is_in_the_navigation(tmp_path)
    every_method_has_its_page(tmp_path)


class Loads(HTMLParser):
    """Addresses that a browser loads by itself when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        key = "src" if tag in ("script", "img", "iframe") else "href" if tag == "link" else None
        if key and given.get(key) and given.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(given[key] or "")


def pages(site: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(site.rglob("*.html")):
        yield path.relative_to(site).as_posix(), path.read_text(encoding="utf-8")


def nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for name, text in pages(site):
        reader = Loads()
        reader.feed(text)
        assert reader.found
        for address in reader.found:
            if name != "404.html":  # the one page whose own place nobody knows: its addresses begin at the root
                assert not re.match(r"[a-z]+:|//", address), (name, address)
                assert (site / name).parent.joinpath(address.partition("?")[0]).resolve().exists(), (name, address)


def every_formula_is_mathml(site: Path) -> None:
    text = dict(pages(site))
    assert text["concepts.html"].count("<math") > 20
    for name, page in text.items():
        assert "arithmatex" not in page, name
        shown = re.sub(r"<(code|script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
        # Neither TeX that the converter did not know, nor a formula that was not found.
        assert not re.search(r"<m[io]>\\|\$\$|<!-- generated", shown), name


def every_method_has_its_page(site: Path) -> None:
    for name in METHODS:
        page = (site / "methods" / f"{name}.html").read_text(encoding="utf-8")
        assert f'src="../pictures/{name}.svg"' in page
        for hyperparameter in METHODS[name].model_fields.keys() - {
            "name",
            "weights",
            "teacher_thinking",
            "teacher_rate",
        }:
            assert f"<td><code>{hyperparameter}</code></td>" in page, (name, hyperparameter)


def every_page_is_in_the_navigation(site: Path) -> None:
    front = (site / "index.html").read_text(encoding="utf-8")
    for name, _ in pages(site):
        assert name == "404.html" or f'href="{name}"' in front, name


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_what_is_linked_from_the_front_door_exists(name: str) -> None:
    for address in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8")):
        assert (ROOT / address).exists(), address


def test_every_key_is_described() -> None:
    assert undescribed(RunConfig) == []
    assert undescribed(Divergences) == []


def test_every_key_is_on_the_page() -> None:
    page = config_page()
    for name in RunConfig.model_fields:
        assert f"| `{name}` |" in page
    for kind, table in task_configs().items():
        assert f'`task`: `kind = "{kind}"`' in page
        for name in table.model_fields.keys() - {"kind"}:
            assert f"| `task.{name}` |" in page
    assert "| `sampling.top_p` | number, >\u00a00,\u00a0≤\u00a01 | unset | Nucleus; unset: the method's own. |" in page


class Shared(Strict):
    """What both have."""

    path: str = Field(description="Where.")


class Left(Shared):
    """One."""

    kind: Literal["left"]
    size: int = Field(3, ge=1, description="How large.")


class Right(Shared):
    """The other."""

    kind: Literal["right"]
    odd: float | None = None


class Whole(BaseModel):
    """All."""

    part: Left | Right = Field(description="Which.")
    mute: bool = Field(False, description="no sentence")


def test_tables_of_a_union_share_what_they_share() -> None:
    found = {(table.path, table.of): table.keys for table in tables(Whole)}
    assert found["part", ""] == (Key("part.path", "text", "required", "Where."),)
    assert found["part", 'kind = "left"'] == (Key("part.size", "whole number, ≥\u00a01", "`3`", "How large."),)
    assert found["part", 'kind = "right"'] == (Key("part.odd", "number", "unset", ""),)
    assert found["", ""][0] == Key("part", "table", "required", "Which.")


def test_a_key_without_a_sentence_is_named() -> None:
    assert undescribed(Whole) == ["mute", "part.odd"]


def test_commands_are_listed_with_their_options_and_load_nothing_heavy() -> None:
    page = cli_page()
    for line in (
        "selfdistill inspect MODEL --out DIR [OPTIONS]",
        "| `--set a.b=value` |  | Override a config key; may be repeated. |",
        "| `--seed N` | `0` | Sampling seed. |",
        "## `data check`",
        "| `[NAME]` |  | One method; unset: all. |",
    ):
        assert line in page
    assert "|  |\n" not in page, "an option without a help text"
    names = re.findall(r"^## `(.+)`$", page, re.MULTILINE)
    context = typer.Context(command := typer.main.get_group(app))
    assert sorted({name.partition(" ")[0] for name in names}) == sorted(command.list_commands(context))
    code = "import sys; from docs_site.commands import cli_page; cli_page(); assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'scripts'}"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_every_alarm_has_its_limit() -> None:
    rows = [line.split(" | ") for line in alarms_table().splitlines()[2:]]
    assert [row[0] for row in rows] == [f"| `{name}`" for name in ALARMS]
    assert all(row[2].startswith("`") for row in rows)
    limits = next(row[2] for row in rows if "importance_ratios" in row[0])
    assert limits.split("<br>") == [
        "`ratio` 0.1: distance of the mean ratio from 1",
        "`clipped` 0.2: share of tokens outside the clip range",
    ]
