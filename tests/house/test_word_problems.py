"""The word problems of ``make real-model``: solvable as told, different, the same for the same seed."""

from __future__ import annotations

import re

import pytest

from real.word_problems import rows


@pytest.mark.parametrize("operations", [1, 2, 3])
def test_every_solution_follows_from_the_numbers_of_its_question(operations: int) -> None:
    seen = set()
    for row in rows(400, operations=operations, largest=12, seed=1):
        question, solution = str(row["question"]), str(row["solution"])
        start, *numbers = map(int, re.findall(r"\d+", question))
        steps = re.findall(r"(\d+) ([-+×÷]) (\d+) = (\d+)", solution)
        assert [int(step[2]) for step in steps] == numbers
        assert len(steps) == int(row["operations"]) <= operations
        total = start
        for before, sign, number, after in steps:
            assert int(before) == total
            n = int(number)
            total, rest = {"+": (total + n, 0), "-": (total - n, 0), "×": (total * n, 0), "÷": divmod(total, n)}[sign]
            assert rest == 0
            assert total == int(after) > 0
        assert solution.endswith(f"#### {total}") and row["answer"] == f"{total}"
        seen.add(re.sub(r"\d+|\b[A-Z]\w+\b", "", question))
    assert len(seen) > 200


def test_a_seed_is_a_file_and_another_seed_another() -> None:
    first, again, other = (list(rows(50, operations=2, largest=12, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert len({row["question"] for row in first}) == 50
