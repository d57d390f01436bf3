"""Episodes for the base model of the toolbox in turns: calls that the API answers or refuses, and the report.

A call of unknown conventions is a guess. A refusal says that the guess was wrong, and the next guess is another one. A
right call makes its conventions known for the calls after it. The report repeats the numbers that the API gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from base_models.trace import Trace
from selfdistill.contexts.templates import Template, apply
from selfdistill.tasks.toolbox.calls import DIMENSIONS, TOOLS, Conventions
from selfdistill.tasks.toolbox.task import Problem, conclusion, opening
from selfdistill.tasks.toolbox.turns import said_of
from selfdistill.types import Message, Skipped
from toolbox_base.traces import SETTLED_SHARES, TraceWriter

TURN_SHARES = {
    **{name: 0.25 * share for name, share in SETTLED_SHARES.items()},
    "turns/student": 0.30,
    "turns/solution": 0.10,
    "turns/sibling": 0.10,
    "turns/solution_verdict": 0.04,
    "turns/sibling_verdict": 0.04,
    "turns/reference_only": 0.02,
    "turns/feedback": 0.06,
    "turns/reply_each_turn": 0.05,
    "turns/sibling_each_turn": 0.05,
    "turns/other_question_sibling": 0.04,
    "turns/other_question_feedback": 0.02,
}
"""The phase after those of the toolbox: three quarters are episodes."""

CALLS = (1, 2, 2, 2, 3)
FAILED = 0.6
"""Share of turns whose reply, shown in hindsight, is a complaint and not the API's answer."""
ATTEMPTS = 20
"""Draws of a guess that was not refused yet."""


@dataclass(slots=True)
class Played:
    """An episode as it is written: what was said, and the dimensions whose conventions are known."""

    problems: list[Problem]
    conventions: Conventions
    numbers: list[int]
    known: set[str]

    @property
    def questions(self) -> list[str]:
        """The requests; the first is the opening without help."""
        return [problem.question for problem in self.problems]

    def said(self, correct: bool, right: int) -> str:
        """What the API says of a call after which ``right`` calls were right."""
        return said_of(correct, right, self.numbers, self.questions)

    def report(self) -> str:
        """The last turn."""
        numbers = " and ".join(map(str, self.numbers))
        return f"{opening(self.problems[0])} so now answer . </think> answer : {numbers} . done"

    def right_turns(self) -> list[str]:
        """The turns of an episode without a wrong call, after their thinking, as a sibling shows them."""
        calls = [conclusion(problem.call(self.conventions)) for problem in self.problems]
        return [text.partition("</think> ")[2] for text in (*calls, self.report())]

    def right_episode(self) -> str:
        """The same with the API's answers between them."""
        *calls, report = self.right_turns()
        said = [line for n, call in enumerate(calls, 1) for line in (call, self.said(True, n))]
        return "\n".join([*said, report])


class TurnWriter(TraceWriter):
    """A seeded writer of single calls and of whole episodes, for names in :data:`TURN_SHARES`."""

    def __init__(self, templates: Mapping[str, Template], seed: int, *, shares: Mapping[str, float] = TURN_SHARES):
        super().__init__(templates, seed, shares=shares)

    def drawn(self, context: str) -> Trace:
        """Return one trace in a context of the shares."""
        name = context.removeprefix("turns/")
        return super().drawn(context) if name == context else self.episode(name)

    def episode(self, context: str) -> Trace:
        """Return an episode whose opening or turns show what the context shows."""
        played = shown = self._played(self.conventions())
        if context.startswith("other_question"):
            # The hindsight belongs to another episode under the same conventions.
            shown = self._played(played.conventions)
        fields = {
            "solution": " and ".join(problem.call(shown.conventions) for problem in shown.problems),
            "sibling": shown.right_episode(),
            "verdict": self.rng.choice(("correct", "wrong")),
            "other_question": played.questions[0],
        }
        if context.endswith("feedback"):
            fields["feedback"], named = self.failure(self.rng.choice(shown.problems), shown.conventions)
            played.known |= set(named)
        elif context not in ("student", "reply_each_turn", "sibling_each_turn"):
            played.known |= {name for problem in shown.problems for name in TOOLS[problem.topic].dimensions}
        if context.endswith("each_turn"):
            return self._rendered(context, played, self._each_turn(context, played))
        messages = apply(self.templates, context, _user(played.questions[0]), fields)
        if isinstance(messages, Skipped):
            raise AssertionError(messages.reason)
        return self._rendered(context, played, lambda turn, right, said: messages if turn == 0 else _user(said))

    def _played(self, conventions: Conventions) -> Played:
        count = self.rng.choice(CALLS)
        problems = [self.problem() for _ in range(count)]
        return Played(problems, conventions, [self.rng.randint(2, 99) for _ in range(count)], set())

    def _each_turn(self, context: str, played: Played) -> Callable[[int, int, str], tuple[Message, ...]]:
        """What is read before a turn: what was said, and what the context shows of that turn."""

        def read(turn: int, right: int, said: str) -> tuple[Message, ...]:
            shown = played.right_turns()
            if context == "sibling_each_turn":
                if turn >= len(shown):
                    return _user(said)
                if turn < len(played.problems):
                    played.known |= set(TOOLS[played.problems[turn].topic].dimensions)
                fields = {"sibling_turn": shown[turn]}
            elif right < len(played.problems) and self.rng.random() < FAILED:
                complaint, named = self.failure(played.problems[right], played.conventions)
                played.known |= set(named)
                fields = {"reply": complaint}
            elif right < len(played.problems):
                fields = {"reply": played.said(True, right + 1)}
            else:
                return _user(said)
            messages = apply(self.templates, context, _user(said), fields)
            if isinstance(messages, Skipped):
                raise AssertionError(messages.reason)
            return messages

        return read

    def _rendered(self, context: str, played: Played, read: Callable[[int, int, str], tuple[Message, ...]]) -> Trace:
        """Play the episode: guess what is not known, and hear whether the guess was right."""
        turns: list[tuple[tuple[Message, ...], str]] = []
        refused: set[tuple[tuple[str, str], ...]] = set()
        right, said = 0, played.questions[0]
        for turn in range(2 * len(played.problems) + 2):
            messages = read(turn, right, said)
            if right == len(played.problems):
                turns.append((messages, played.report()))
                break
            problem = played.problems[right]
            dimensions = TOOLS[problem.topic].dimensions
            guess = self._guess(played, dimensions, refused)
            turns.append((messages, self.completion(problem, {**played.conventions, **guess}, played.known)))
            correct = all(value == played.conventions[name] for name, value in guess.items())
            if correct:
                right += 1
                refused.clear()
                played.known |= set(dimensions)
            else:
                refused.add(tuple(sorted(guess.items())))
            said = played.said(correct, right)
        (messages, completion), *further = turns
        return Trace(f"turns/{context}", messages, completion, thinking=True, further=tuple(further))

    def _guess(
        self, played: Played, dimensions: tuple[str, ...], refused: set[tuple[tuple[str, str], ...]]
    ) -> Conventions:
        """Values of the dimensions: the known ones, and others that were not refused together."""
        guess: Conventions = {}
        for _ in range(ATTEMPTS):
            guess = {
                name: played.conventions[name] if name in played.known else self.rng.choice(DIMENSIONS[name])
                for name in dimensions
            }
            if tuple(sorted(guess.items())) not in refused:
                break
        return guess


def _user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)
