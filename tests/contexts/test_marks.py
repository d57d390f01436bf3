"""Marks around what a role reads and the student does not: by hand."""

from __future__ import annotations

import random

import pytest

from selfdistill.contexts.marks import CLOSE, OPEN, mark_changes, shared_prefix


def marked(role: str, student: str) -> str:
    """The words of a text, each an id of its own, with marks."""
    names = {word: n for n, word in enumerate(dict.fromkeys([*role.split(), *student.split()]))}
    ids, others = ([names[word] for word in text.split()] for text in (role, student))
    pieces = [word if n == 0 else f" {word}" for n, word in enumerate(role.split())]
    found = mark_changes(pieces, ids, others)
    assert len(found) == len(ids)
    return "".join(found)


@pytest.mark.parametrize(
    ("role", "student", "expected"),
    [
        ("a b c", "a b c", "a b c"),
        ("a b x y c", "a b c", "a b ⟦x y⟧ c"),
        ("x a b", "a b", "⟦x⟧ a b"),
        ("a b x", "a b", "a b ⟦x⟧"),
        ("a x c", "a b c", "a ⟦x⟧ c"),
        ("a c", "a b c", "a ⟦⟧c"),
        ("a b", "a b c", "a b⟦⟧"),
        ("b c", "a b c", "⟦⟧b c"),
        ("a x b c y d", "a b c d", "a ⟦x⟧ b c ⟦y⟧ d"),
        ("p q", "a b", "⟦p q⟧"),
        # The new sentence is one that ends in a stop, and not one that begins with the stop before it.
        ("a . new words . b x c", "a . b c", "a . ⟦new words .⟧ b ⟦x⟧ c"),
    ],
)
def test_marks_are_where_the_texts_part(role: str, student: str, expected: str) -> None:
    assert marked(role, student) == expected


def test_without_the_marks_the_text_is_the_roles_own() -> None:
    draw = random.Random(0)
    for _ in range(200):
        role, student = (" ".join(draw.choices("abcd.", k=draw.randint(1, 12))) for _ in range(2))
        found = marked(role, student)
        assert found.replace(OPEN, "").replace(CLOSE, "") == role
        # Outside the marks stands nothing that the student does not read, in this order.
        kept = [word for part in found.split(OPEN) for word in part.rpartition(CLOSE)[2].split()]
        rest = iter(student.split())
        assert all(word in rest for word in kept)


def test_the_shared_prefix_is_counted() -> None:
    assert [shared_prefix(*pair) for pair in (([1, 2, 3], [1, 2, 4]), ([], [1]), ([1, 2], [1, 2]))] == [2, 0, 2]
