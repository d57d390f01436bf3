"""The page of verdicts says what the committed cases say."""

from __future__ import annotations

import pytest

import docs_verdicts
from verdicts.agreement import agreement


def test_the_committed_page_has_the_tables_of_the_committed_cases() -> None:
    page = docs_verdicts.PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- verdicts: {kind} -->" in page for kind in docs_verdicts.KINDS)
    assert docs_verdicts.filled(page) == page, "run scripts/docs_verdicts.py"


def test_agreement_counts_clear_cases_alone() -> None:
    right, arguable = [True, True, False, False, True], [False, False, False, False, True]
    told = agreement(right, arguable, {"a judge": [True, False, True, False, False]})
    assert told.startswith("4 cases, 2 of them right; 1 more are arguable")
    assert "| a judge | 2 of 4 (50.0%) | 1 | 1 |" in told


def test_only_what_stands_between_the_marks_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs_verdicts, "KINDS", {"one": lambda: "| table |"})
    page = "before\n<!-- verdicts: one -->\nold\n<!-- end -->\nafter"
    assert docs_verdicts.filled(page) == "before\n<!-- verdicts: one -->\n\n| table |\n\n<!-- end -->\nafter"
