"""Write the tables of docs/verdicts.md: ``python scripts/docs_verdicts.py``.

The text between ``<!-- verdicts: KIND -->`` and ``<!-- end -->`` is generated from the cases in ``tests/cases``; the
rest of the page stays as it is. ``KINDS`` has one function for each table, from the modules of ``scripts/verdicts``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from verdicts import choice, code, mathematics, tools

PAGE = Path(__file__).resolve().parents[1] / "docs" / "verdicts.md"
KINDS: Mapping[str, Callable[[], str]] = {
    "mathematics": mathematics.table,
    "choice": choice.table,
    "tools": tools.table,
    "tools-react": tools.react_table,
    "code-outputs": code.outputs_table,
    "code-blocks": code.blocks_table,
}
_TABLE = re.compile(r"(<!-- verdicts: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """Return the page with its tables regenerated."""
    return _TABLE.sub(lambda match: f"{match[1]}\n{KINDS[match[2]]()}\n\n{match[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
