"""MkDocs hooks: generate pages and tables from the code, and render formulas as MathML.

A line ``<!-- generated: NAME -->`` of a page is replaced by a table, and ``<!-- generated: method NAME -->`` by the
reference of a method. Formulas are TeX between dollar signs. They become MathML, which browsers render natively, so the
site needs neither a script nor the network for them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from docs_site import pages
from docs_site.api import api_page
from docs_site.commands import cli_page

ROOT = Path(__file__).resolve().parents[1]

PAGES: Mapping[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/api.md": api_page,
    "reference/config.md": pages.config_page,
    "reference/changelog.md": lambda: (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
}
TABLES: Mapping[str, Callable[[], str]] = {
    "alarms": pages.alarms_table,
    "contexts": pages.contexts_table,
    "fields": pages.fields_table,
    "methods": pages.methods_table,
    "recipes": pages.recipes_table,
    "tasks": pages.tasks_table,
}

_GENERATED = re.compile(r"^<!-- generated: (\w+)(?: (\w+))? -->$", re.MULTILINE)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> None:
    """Add pages that are not in the navigation under "More"."""
    named = set(_paths(config.nav)) | {*PAGES}
    folder = Path(config.docs_dir)
    others = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.md"))]
    others = [path for path in others if path not in named]
    if others and config.nav:
        config.nav.append({"More": others})


def _paths(nav: Any) -> list[str]:
    """All pages in a part of the navigation."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [path for part in parts for path in _paths(part)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, text in PAGES.items():
        files.append(File.generated(config, path, content=text()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of generated tables by the tables."""

    def generated(match: re.Match[str]) -> str:
        name, argument = match.groups()
        if name == "method":
            return pages.method_reference(argument)
        if name not in TABLES:
            raise PluginError(f"no generated table {name!r}; there are: {', '.join(TABLES)}")
        return TABLES[name]()

    return _GENERATED.sub(generated, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML."""
    return _FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    _, bracket, tex = match.groups()
    # The converter does not put a space between a named function and its argument.
    tex = re.sub(r"\\(log|min|max|exp|tanh) (?=[\w\\])", r"\\\1\\, ", html.unescape(tex))
    return convert(tex, display="block" if bracket == "[" else "inline")
