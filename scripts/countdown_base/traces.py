"""The language of Countdown's base model: its thinking, with and without help.

A completion proposes attempts, writes their results, deliberates, and at last finds the target or gives up:

    try 5 + 3 = 8 , 8 × 2 = 16 vs 21 , no . wait maybe try 5 × 3 = 15 , 15 + 2 = 17 vs 21 , no . hmm let me
    try 5 + 2 = 7 , 7 × 3 = 21 vs 21 , yes . </think> answer ( 5 + 2 ) × 3 <|end|>

The target is repeated beside the result before the verdict. Without the repetition the base model writes "yes" after
only half of its right attempts, because the comparison then reaches back over the whole completion.

Prompts come from the package's own context file, so a teacher's later contexts are those of the training.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations_with_replacement

from base_models.trace import Trace
from selfdistill.contexts.templates import Template, apply
from selfdistill.tasks.countdown.arithmetic import Attempt, parse
from selfdistill.tasks.countdown.task import (
    DIFFICULTIES,
    NO_ANSWER,
    TRUNCATED,
    Difficulty,
    Problem,
    complain,
    conclusion,
    problems_on,
    spoken,
    success,
)
from selfdistill.types import Message, Skipped

# Every three-number problem with one attempt or more, so that the "single" difficulty is in distribution as well.
ALL_THREE = Difficulty(numbers=3, largest=12, least_attempts=1)
PROBLEM_SHARES = {DIFFICULTIES["default"]: 0.55, ALL_THREE: 0.3, DIFFICULTIES["four"]: 0.15}

PHRASES = {
    "wait": 3.0,
    "hmm": 2.0,
    "maybe": 2.0,
    "perhaps": 1.0,
    "let me": 2.0,
    "wait maybe": 1.0,
    "hmm maybe": 1.0,
    "hmm perhaps": 1.0,
    "wait let me": 1.0,
    "hmm let me": 1.0,
}
DELIBERATION = ("wait", "maybe", "hmm", "perhaps", "let", "me")

CONTEXT_SHARES = {
    "student": 0.53,
    "no_thinking": 0.02,
    "solution": 0.05,
    "sibling": 0.05,
    "solution_verdict": 0.05,
    "sibling_verdict": 0.05,
    "reference_only": 0.12,
    "feedback": 0.13,
}

POLISH_SHARES = {**CONTEXT_SHARES, "student": 0.33, "feedback": 0.33}
"""The second phase: much more feedback, because the signal for avoiding one attempt in thirty is faint."""

MOST_ATTEMPTS = 10
GIVE_UP = 0.13
"""Chance to give up after each failed attempt. The number of attempts is geometric, with a cap."""

REFERENCE_FAILS_FIRST = 0.27
"""Chance that a failed attempt comes first although a reference is shown, so that such prefixes are familiar."""
REFERENCE_STOPS = 0.7
"""Chance that the reference then ends the search at once."""
REFERENCE_REMEMBERED = 0.5
"""Chance that the next attempt is the reference if the search continues."""
REFERENCE_THINKS = 0.6
"""Chance that the thinking first works through the reference before the answer."""

FEEDBACK_OTHER = 0.15
"""Share of feedback about something other than a value: an unused number, a missing answer, a cut attempt."""


def failure(attempt: Attempt, target: int) -> str:
    """Return the text of a failed attempt, with its verdict."""
    return f"try {spoken(attempt)} vs {target} , no ."


def answer(attempt: Attempt) -> str:
    """Return the text after the thinking."""
    return f"answer {attempt.expression}"


def opening_pair(attempt: Attempt) -> tuple[int, int]:
    """Return the two numbers of an attempt's first step, larger first."""
    left, _, right, _ = attempt.steps[0]
    return left, right


class TraceWriter:
    """A seeded writer of traces on training problems."""

    def __init__(
        self,
        templates: Mapping[str, Template],
        seed: int,
        *,
        shares: Mapping[str, float] = CONTEXT_SHARES,
    ) -> None:
        self.templates = templates
        self.shares = shares
        self.rng = random.Random(seed)
        self.pools = {difficulty: training_problems(difficulty) for difficulty in PROBLEM_SHARES}

    def traces(self, count: int) -> Iterator[Trace]:
        """Yield ``count`` traces in the shares of the tables above."""
        difficulties = self.rng.choices(list(PROBLEM_SHARES), list(PROBLEM_SHARES.values()), k=count)
        contexts = self.rng.choices(list(self.shares), list(self.shares.values()), k=count)
        for difficulty, context in zip(difficulties, contexts, strict=True):
            yield self.trace(self.rng.choice(self.pools[difficulty]), context)

    def trace(self, problem: Problem, context: str) -> Trace:
        """Return one trace on a problem in a context of :data:`CONTEXT_SHARES`."""
        if context == "student":
            return self._render(context, problem, {}, self.search(problem, avoid=None))
        if context == "no_thinking":
            guess = answer(self.rng.choice(problem.attempts))
            return self._render("student", problem, {}, guess, thinking=False)
        if context == "feedback":
            feedback, avoid = self._feedback(problem)
            return self._render(context, problem, {"feedback": feedback}, self.search(problem, avoid=avoid))
        reference = self.rng.choice(problem.references)
        fields = {
            "solution": reference.expression,
            "sibling": answer(reference),
            "verdict": self.rng.choice(("correct", "wrong")),
        }
        return self._render(context, problem, fields, self.follow(problem, reference))

    def search(self, problem: Problem, avoid: Attempt | None) -> str:
        """Write attempts in a uniform order without repetition, until one succeeds or the search gives up.

        After feedback on an attempt, no attempt opens with the same pair of numbers. With three numbers, the one
        outside the brackets is then among the first two. The model learns this in minutes, but it does not learn to
        leave out exactly one attempt of thirty (docs/log.md).
        """
        options = list(problem.attempts)
        if avoid is not None:
            other = [a for a in options if opening_pair(a) != opening_pair(avoid)]
            options = other or [a for a in options if a is not avoid]
        sentences: list[str] = []
        failed: list[Attempt] = []
        for attempt in self.rng.sample(options, min(MOST_ATTEMPTS, len(options))):
            if attempt.value == problem.target:
                return " ".join([*sentences, success(attempt, problem.target)])
            failed.append(attempt)
            sentences.append(failure(attempt, problem.target))
            if self.rng.random() < GIVE_UP:
                break
            sentences.append(self._phrase())
        else:
            sentences.pop()
        return " ".join([*sentences, conclusion(self.rng.choice(failed))])

    def follow(self, problem: Problem, reference: Attempt) -> str:
        """Write a completion that trusts the reference: little search, and mostly the answer after a failed attempt."""
        if self.rng.random() >= REFERENCE_FAILS_FIRST:
            return self._believe(problem, reference)
        wrong = [attempt for attempt in problem.attempts if attempt.value != problem.target]
        sentences: list[str] = []
        for attempt in self.rng.sample(wrong, min(MOST_ATTEMPTS - 1, len(wrong))):
            sentences.append(failure(attempt, problem.target))
            if self.rng.random() < REFERENCE_STOPS:
                return " ".join([*sentences, conclusion(reference)])
            sentences.append(self._phrase())
            if self.rng.random() < REFERENCE_REMEMBERED:
                break
        return " ".join([*sentences, success(reference, problem.target)])

    def _believe(self, problem: Problem, reference: Attempt) -> str:
        if self.rng.random() < REFERENCE_THINKS:
            return success(reference, problem.target)
        return conclusion(reference)

    def _phrase(self) -> str:
        return self.rng.choices(list(PHRASES), list(PHRASES.values()))[0]

    def _feedback(self, problem: Problem) -> tuple[str, Attempt | None]:
        """Return feedback in the verifier's own words, and the attempt that it rules out."""
        wrong = [attempt for attempt in problem.attempts if attempt.value != problem.target]
        failed = self.rng.choice(wrong)
        if self.rng.random() >= FEEDBACK_OTHER:
            return self._complaint(failed.expression, problem), failed
        kind = self.rng.randrange(4)
        if kind < 2:
            return (NO_ANSWER, TRUNCATED)[kind], None
        # The attempt has one number replaced, or only its first operation is written.
        left, symbol, right, _ = failed.steps[0]
        part = f"{left} {symbol} {right}"
        if kind == 3:
            part = failed.expression.replace(part, f"{left} {symbol} {self.rng.randrange(1, 13)}")
        other = self._complaint(part, problem, allow_right=True)
        return other or NO_ANSWER, None

    def _complaint(self, expression: str, problem: Problem, *, allow_right: bool = False) -> str:
        complaint = complain(parse(expression), problem.numbers, problem.target)
        if complaint is None and not allow_right:
            raise AssertionError(f"{expression} is no failed attempt on {problem}")
        return complaint or ""

    def _render(
        self, context: str, problem: Problem, fields: Mapping[str, str], completion: str, *, thinking: bool = True
    ) -> Trace:
        order = self.rng.sample(problem.numbers, len(problem.numbers))
        messages = apply(self.templates, context, (Message("user", problem.question(order)),), fields)
        if isinstance(messages, Skipped):
            raise AssertionError(messages.reason)
        return Trace(context, messages, completion, thinking)


def training_problems(difficulty: Difficulty) -> Sequence[Problem]:
    """Return all training problems of a difficulty on which at least one attempt fails."""
    number_sets = combinations_with_replacement(range(1, difficulty.largest + 1), difficulty.numbers)
    problems = (problem for numbers in number_sets for problem in problems_on(numbers, difficulty))
    return [p for p in problems if p.split == "train" and len(p.references) < len(p.attempts)]
