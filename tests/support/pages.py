"""Reading an HTML page as a browser would."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """A page as a browser would take it apart: elements, attributes, scripts, visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.within = ""
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.within = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        self.text += " " if tag not in ("span", "b", "bdi", "i", "small") else ""

    def handle_endtag(self, tag: str) -> None:
        self.within = ""
        self.text += " " if tag not in ("span", "b", "bdi", "i", "small") else ""

    def handle_data(self, data: str) -> None:
        if self.within == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif not self.within:
            self.text += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [found for element, attrs in self.elements if element == tag and (found := attrs.get(name)) is not None]

    def columns(self) -> list[list[dict[str, Any]]]:
        return [json.loads(text) for attrs, text in self.scripts if attrs.get("type") == "application/json"]


def assert_stands_alone(page: Page) -> None:
    """Nothing on the page asks for anything outside itself."""
    links = [attrs.get(name) for _, attrs in page.elements for name in ("src", "href", "srcset", "action", "data")]
    assert [link for link in links if link is not None] == ["data:,"]
    # The name of the namespace of SVG is never fetched.
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", page.source)
    [policy] = [attrs["content"] or "" for tag, attrs in page.elements if attrs.get("http-equiv")]
    assert policy.startswith("default-src 'none'; ")


def palettes() -> list[dict[str, str]]:
    """The colours of the pages by name: in light, in dark."""
    style = (resources.files("selfdistill.report") / "templates" / "page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)[:2]
    return [dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", block)) for block in blocks]


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)
