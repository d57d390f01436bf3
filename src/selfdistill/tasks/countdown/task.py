"""Countdown, the built-in default task: use every number exactly once and reach the target with ``+ - × ÷``.

A problem is its sorted numbers and its target. A stable hash of that pair decides its split, so no
difficulty, seed or size can move a training problem into validation or test.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement

from selfdistill.config.suggest import choices
from selfdistill.config.tasks import CountdownConfig
from selfdistill.contexts.thinking import after_thinking
from selfdistill.errors import ConfigError
from selfdistill.tasks.countdown.arithmetic import (
    LARGEST,
    Attempt,
    Expression,
    MalformedExpression,
    evaluate,
    normal_form,
    numbers_in,
    parse,
    render,
    simple_attempts,
    solve_all,
)
from selfdistill.types import Example, Message, Verdict

PROMPT = "use the numbers {numbers} to make {target} ."
TARGETS = range(1, 101)
SPLITS = ("train", "validation", "test")

NO_ANSWER = "there was no answer"
TRUNCATED = "the attempt was cut before the end"

# Candidates per example. So many are enumerated before sampling, from many number sets, and no further ones.
_CANDIDATES_PER_EXAMPLE = 4


@dataclass(frozen=True, slots=True)
class Difficulty:
    """A class of problems: how many numbers, how large, and how many attempts reach the target."""

    numbers: int
    largest: int
    least_attempts: int
    """Minimum number of simple attempts that reach the target."""
    single: bool = False
    """Exactly one solution over the rationals, up to the order and bracketing of sums and products."""


DIFFICULTIES = {
    "easy": Difficulty(numbers=3, largest=9, least_attempts=3),
    "default": Difficulty(numbers=3, largest=12, least_attempts=2),
    "single": Difficulty(numbers=3, largest=12, least_attempts=1, single=True),
    "four": Difficulty(numbers=4, largest=12, least_attempts=10),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Sorted numbers and a target."""

    numbers: tuple[int, ...]
    target: int

    @property
    def split(self) -> str:
        """``"train"`` (60 %), ``"validation"`` or ``"test"`` (20 % each), from a hash that never changes."""
        text = f"{' '.join(map(str, self.numbers))} = {self.target}"
        share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10
        return "test" if share < 2 else "validation" if share < 4 else "train"

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All simple attempts on the numbers, with any result."""
        return simple_attempts(self.numbers)

    @property
    def references(self) -> tuple[Attempt, ...]:
        """The simple attempts that reach the target, in the order of their texts."""
        return tuple(attempt for attempt in self.attempts if attempt.value == self.target)

    def question(self, order: Sequence[int]) -> str:
        """The prompt with the numbers in the given order."""
        return PROMPT.format(numbers=" ".join(map(str, order)), target=self.target)


def problems_on(numbers: tuple[int, ...], difficulty: Difficulty) -> list[Problem]:
    """All problems of a difficulty on these sorted numbers, by target."""
    ways = Counter(attempt.value for attempt in simple_attempts(numbers) if attempt.value in TARGETS)
    targets = sorted(target for target, count in ways.items() if count >= difficulty.least_attempts)
    if difficulty.single:
        solutions = solve_all(numbers)
        targets = [target for target in targets if len(solutions[Fraction(target)]) == 1]
    return [Problem(numbers, target) for target in targets]


@cache
def candidates(difficulty: Difficulty, split: str, seed: int, enough: int) -> tuple[Problem, ...]:
    """At least ``enough`` problems of a split, or all there are, from number sets in a seeded order."""
    number_sets = list(combinations_with_replacement(range(1, difficulty.largest + 1), difficulty.numbers))
    random.Random(f"countdown {seed}").shuffle(number_sets)
    problems: list[Problem] = []
    for numbers in number_sets:
        problems += [problem for problem in problems_on(numbers, difficulty) if problem.split == split]
        if len(problems) >= enough:
            break
    return tuple(problems)


class CountdownTask:
    """Countdown problems drawn from a seed, with an exact verifier and its feedback.

    Args:
        config: the task's table. A small difficulty may have fewer problems than the config requests.
        seed: decides which problems are sampled, their order and the order of their numbers.

    Raises:
        ConfigError: the difficulty is not a key of :data:`DIFFICULTIES`.
    """

    name = "countdown"
    contexts = "countdown"
    has_verifier = True

    def __init__(self, config: CountdownConfig | None = None, *, seed: int = 0) -> None:
        self.config = config or CountdownConfig()
        self.seed = seed
        if self.config.difficulty not in DIFFICULTIES:
            level = self.config.difficulty
            raise ConfigError(f"unknown countdown difficulty {level!r}; {choices(level, DIFFICULTIES)}")
        self._examples: dict[str, tuple[Example, ...]] = {}

    def examples(self, split: str) -> Sequence[Example]:
        """Examples of ``"train"``, ``"validation"`` or ``"test"``, always the same in the same order."""
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; {choices(split, SPLITS)}")
        if split not in self._examples:
            self._examples[split] = tuple(self._draw(split))
        return self._examples[split]

    def _draw(self, split: str) -> Iterator[Example]:
        size: int = getattr(self.config, split)
        pool = candidates(DIFFICULTIES[self.config.difficulty], split, self.seed, _CANDIDATES_PER_EXAMPLE * size)
        rng = random.Random(f"countdown {self.config.difficulty} {split} {self.seed}")
        for problem in rng.sample(pool, min(size, len(pool))):
            yield self._example(problem, rng)

    def _example(self, problem: Problem, rng: random.Random) -> Example:
        order = rng.sample(problem.numbers, len(problem.numbers))
        reference = rng.choice(problem.references)
        return Example(
            id=f"countdown-{'.'.join(map(str, problem.numbers))}-{problem.target}",
            prompt=(Message("user", problem.question(order)),),
            # ``response`` is the reference in the base model's own format, for sft.
            fields={"solution": reference.expression, "response": success(reference, problem.target)},
            columns={"numbers": list(order), "target": problem.target},
        )

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """Judge the expression after the last ``answer``: 1 if it is exact and uses every number once, else 0."""
        if not finished:
            return Verdict(0.0, feedback=TRUNCATED)
        answer = final_answer(text)
        if answer is None:
            return Verdict(0.0, feedback=NO_ANSWER)
        try:
            expression = parse(answer)
        except MalformedExpression as error:
            return Verdict(0.0, feedback=f"the answer is malformed : {error}")
        complaint = complain(expression, example.columns["numbers"], example.columns["target"])
        return Verdict(0.0 if complaint else 1.0, answer=normal_form(expression), feedback=complaint)


def spoken(attempt: Attempt) -> str:
    """The attempt's steps as text: ``5 + 3 = 8 , 8 × 2 = 16``."""
    return " , ".join(f"{left} {symbol} {right} = {result}" for left, symbol, right, result in attempt.steps)


def success(attempt: Attempt, target: int) -> str:
    """The response for an attempt that reaches the target, in the task's vocabulary."""
    return f"try {spoken(attempt)} vs {target} , yes . {conclusion(attempt)}"


def conclusion(attempt: Attempt) -> str:
    """The end of the thinking and the answer."""
    return f"</think> answer {attempt.expression}"


_ANSWER = re.compile(r"\banswer\b\s*(?:is\b)?\s*:?")


def final_answer(text: str) -> str | None:
    """The text after the last ``answer`` outside the thinking, without a closing full stop. None if there is none."""
    answer_text = after_thinking(text)
    answers = list(_ANSWER.finditer(answer_text))
    if not answers:
        return None
    return answer_text[answers[-1].end() :].strip().removesuffix(".").strip() or None


def complain(expression: Expression, numbers: Sequence[int], target: int) -> str | None:
    """Feedback on a wrong expression, in the task's vocabulary. None if the expression is right."""
    used, available = Counter(numbers_in(expression)), Counter(numbers)
    faults = [
        f"uses {n if n <= LARGEST else f'a number above {LARGEST}'} , which is not given"
        for n in sorted(used)
        if n not in available
    ]
    faults += [f"uses {n} too often" for n in sorted(used) if 0 < available[n] < used[n]]
    faults += [f"does not use {n} often enough" for n in sorted(available) if 0 < used[n] < available[n]]
    faults += [f"does not use {n}" for n in sorted(available) if not used[n]]
    try:
        value = evaluate(expression)
    except ZeroDivisionError:
        faults.append("divides by 0")
    else:
        if value != target:
            faults.append(f"reaches {_value(value)} , not {target}")
    if not faults:
        return None
    subject = "the answer" if max(used) > LARGEST else render(expression)
    return f"{subject} {' and '.join(faults)}"


def _value(value: Fraction) -> str:
    """A value in the task's vocabulary: ``16``, ``- 3``, ``7 ÷ 2``. Beyond its range only "above" or "below"."""
    if max(abs(value.numerator), value.denominator) <= LARGEST:
        sign = "- " if value < 0 else ""
        fraction = f" ÷ {value.denominator}" if value.denominator > 1 else ""
        return f"{sign}{abs(value.numerator)}{fraction}"
    if abs(value) <= LARGEST:
        return "a fraction"
    return f"a number above {LARGEST}" if value > 0 else f"a number below - {LARGEST}"
