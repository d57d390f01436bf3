"""docs/security.md counts what the suite tries."""

from __future__ import annotations

import security_counts


def test_the_page_says_how_much_the_suite_tries() -> None:
    page = security_counts.PAGE.read_text(encoding="utf-8")
    assert security_counts.filled(page) == page, "run scripts/security_counts.py"
    assert "| 0 |" not in page, "a name of a test has changed"
