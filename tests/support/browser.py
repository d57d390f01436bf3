"""The system's Chromium, driven by playwright, for tests that look at a page as it is drawn."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")


def needs_browser(*packages: str) -> pytest.MarkDecorator:
    """The mark of a test that needs chromium, playwright and further packages. A skip names what is missing."""
    wanted = ("playwright", *packages)
    missing = ["chromium on the path"] * (CHROMIUM is None)
    missing += [name.replace("_", "-") for name in wanted if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}: pip install '.[dev]'")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
