"""Word problems of one to three operations in natural language, as rows for ``task.kind = "math"``.

    python scripts/real/word_problems.py OUT.jsonl --count 2000 --operations 2 --largest 20 --seed 0

A problem has a start, some steps and a question, each in one of many wordings. A start and one step alone make over a
thousand different frames. The solution lists every step's calculation and ends in ``#### N`` as in GSM8K. The same seed
makes the same file. Problems of different seeds may repeat, because there are few small numbers.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAMES = (
    "Lea Tom Mia Ben Ada Max Eva Jan Zoe Sam Nora Paul Ida Finn Lily Omar Rosa Hugo Maya Theo Anna Luis Emma Noah "
    "Clara Ivan Julia Karim Sofia Peter"
).split()
THINGS = (
    "apples books pencils marbles stamps cards coins shells stickers buttons cookies flowers eggs tickets bottles "
    "balloons candles oranges stones keys plates socks toys leaves nuts pears cups ribbons beads photos"
).split()
PLACES = (
    "on a shelf",
    "in a bag",
    "in a box",
    "at home",
    "in a drawer",
    "in the garden",
    "on the table",
    "in a basket",
)

STARTS = (
    "{name} has {n} {things}.",
    "{name} starts the day with {n} {things}.",
    "There are {n} {things} that belong to {name}.",
    "{name} counts {n} {things} {place}.",
    "In the morning {name} has {n} {things} {place}.",
    "{name} owns {n} {things}.",
    "{name} keeps {n} {things} {place}.",
    "{name} brought {n} {things} to school.",
)
ADD = (
    "Then {name} buys {n} more.",
    "A friend gives {name} {n} more {things}.",
    "{name} finds {n} more {things} {place}.",
    "Later {name} gets another {n} {things}.",
    "{other} brings {name} {n} {things}.",
    "After lunch {name} picks up {n} more {things}.",
    "{name}'s mother adds {n} {things}.",
    "{name} wins {n} {things} in a game.",
)
TAKE = (
    "Then {name} gives {n} {things} to {other}.",
    "{name} loses {n} of the {things}.",
    "{name} sells {n} {things}.",
    "{n} of the {things} are broken and thrown away.",
    "{other} takes {n} of the {things}.",
    "{name} uses up {n} {things}.",
    "{name} leaves {n} {things} with {other}.",
    "The wind carries away {n} of the {things}.",
)
TIMES = (
    "Then the number of {things} becomes {n} times as large.",
    "{other} brings so many that {name} has {n} times as many {things}.",
    "By evening {name} has {n} times as many {things}.",
    "After a good trade {name} holds {n} times as many {things}.",
)
SHARE = (
    "{name} shares all {things} equally among {n} friends and looks at the part of one friend.",
    "The {things} are put into {n} equal piles, and {name} keeps one pile.",
    "{name} splits the {things} equally into {n} bags and takes one bag.",
    "{name} divides the {things} equally between {n} boxes and opens one of them.",
)
QUESTIONS = (
    "How many {things} are there now?",
    "How many {things} is that in the end?",
    "What is the number of {things} at the end?",
    "How many {things} does that leave?",
    "Find the number of {things} now.",
    "So how many {things} are left to count?",
)
SUMS = Path("models/sums.jsonl")
"""The problems that ``words.toml`` trains on."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: its sign, its number and its wording."""

    sign: str
    number: int
    frame: str


def problem(rng: random.Random, operations: int, largest: int) -> dict[str, str | int]:
    """Return one row: question, solution and answer, with the number of operations."""
    name, other = rng.sample(NAMES, 2)
    words = {"name": name, "other": other, "things": rng.choice(THINGS), "place": rng.choice(PLACES)}
    total = rng.randint(2, largest)
    sentences = [rng.choice(STARTS).format(n=total, **words)]
    lines = []
    for _ in range(operations):
        step = _step(rng, total, largest)
        after = {
            "+": total + step.number,
            "-": total - step.number,
            "×": total * step.number,
            "÷": total // step.number,
        }
        sentences.append(step.frame.format(n=step.number, **words))
        lines.append(f"{total} {step.sign} {step.number} = {after[step.sign]}")
        total = after[step.sign]
    sentences.append(rng.choice(QUESTIONS).format(**words))
    solution = f"{name} works it out: {', then '.join(lines)}. So there are {total} {words['things']}. #### {total}"
    return {"question": " ".join(sentences), "solution": solution, "answer": str(total), "operations": operations}


def _step(rng: random.Random, total: int, largest: int) -> Step:
    """Return an operation whose result is a whole number from 1 to four times the largest start."""
    divisors = [n for n in range(2, 6) if total % n == 0 and total > n]
    signs = ["+", "+"] + ["-", "-"] * (total > 2) + ["×"] * (total <= largest) + ["÷"] * bool(divisors)
    match rng.choice(signs):
        case "+":
            return Step("+", rng.randint(2, largest), rng.choice(ADD))
        case "-":
            return Step("-", rng.randint(1, total - 1), rng.choice(TAKE))
        case "×":
            return Step("×", rng.randint(2, 4), rng.choice(TIMES))
        case _:
            return Step("÷", rng.choice(divisors), rng.choice(SHARE))


def rows(count: int, *, operations: int, largest: int, seed: int) -> Iterator[dict[str, str | int]]:
    """Yield ``count`` different problems of one to ``operations`` operations, with numbers up to ``largest``."""
    rng = random.Random(f"word problems {seed}")
    seen: set[str] = set()
    while len(seen) < count:
        row = problem(rng, rng.randint(1, operations), largest)
        if row["question"] not in seen:
            seen.add(str(row["question"]))
            yield row


def write(out: Path, *, count: int, operations: int, largest: int, seed: int) -> None:
    """Write problems to a file, one a line."""
    made = rows(count, operations=operations, largest=largest, seed=seed)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")


def write_sums() -> None:
    """Write the problems of ``words.toml``: one operation, numbers up to nine."""
    write(SUMS, count=1200, operations=1, largest=9, seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--operations", type=int, default=2, choices=(1, 2, 3), help="most operations of a problem")
    parser.add_argument("--largest", type=int, default=12, help="largest number of a start or an addition")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(
        options.out,
        count=options.count,
        operations=options.operations,
        largest=options.largest,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
