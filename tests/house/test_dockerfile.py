"""What the Dockerfile copies exists, and the ignore file lets it through."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    copied = [
        name
        for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
        if line.startswith("COPY ")
        for name in line.split()[1:-1]
    ]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert set(copied) == kept
