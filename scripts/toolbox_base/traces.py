"""The language of the toolbox's base model: its thinking about a request and its calls, with and without help.

Every trace has its own conventions. Without help the model can only guess them, and the thoughts deliberate. With help
it takes over the conventions that the context shows, and the thoughts state that they are clear:

    this is about storage with coats and 89 and cellar . hmm check the order . the place word is clear . so now the
    call . </think> call : store ( 89 , coats , dest = cellar ) . done <|end|>

Only the call commits to a convention. If the thoughts named it as well, the call's token would be a copy, and a
context would change the probabilities of the thoughts instead of the call.

Prompts come from the package's own context file, so a teacher's later contexts are those of the training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping

from base_models.trace import Trace
from selfdistill.contexts.templates import Template, apply
from selfdistill.tasks.toolbox.calls import DIMENSIONS, MONTHS, PERSONS, PLACES, TOOLS, Conventions, complain, parse
from selfdistill.tasks.toolbox.task import (
    NO_CALL,
    SPOKEN,
    TRUNCATED,
    Problem,
    certain,
    conclusion,
    draw_problem,
    opening,
)
from selfdistill.types import Message, Skipped

PHRASES = {
    "wait": 2.0,
    "hmm": 2.0,
    "maybe": 2.0,
    "perhaps": 1.0,
    "let me": 2.0,
    "wait maybe": 1.0,
    "hmm perhaps": 1.0,
    "hmm let me": 1.0,
}
DELIBERATION = ("wait", "maybe", "hmm", "perhaps", "let", "me")

CONTEXT_SHARES = {
    "student": 0.24,
    "student/drill": 0.02,
    "solution": 0.09,
    "sibling": 0.11,
    "solution_verdict": 0.04,
    "sibling_verdict": 0.04,
    "reference_only": 0.06,
    "feedback": 0.20,
    "other_question_sibling": 0.12,
    "other_question_feedback": 0.08,
}

HINDSIGHT_SHARES = {
    "student": 0.10,
    "student/drill": 0.02,
    "solution": 0.06,
    "solution/drill": 0.12,
    "sibling": 0.06,
    "sibling/drill": 0.12,
    "solution_verdict": 0.05,
    "sibling_verdict": 0.05,
    "reference_only": 0.04,
    "feedback": 0.07,
    "feedback/drill": 0.13,
    "other_question_sibling": 0.04,
    "other_question_sibling/drill": 0.08,
    "other_question_feedback": 0.02,
    "other_question_feedback/drill": 0.04,
}
"""The second phase, with drills: calls without thoughts (the chat template's switch), with invented words.

With the real words, a context saves less than a hundredth of a nat per token beside the noise of the thoughts. The
model then learns to use the context one dimension after the other, which takes hours. A unit that can be any word saves
six nats at its token, and one mechanism of copying serves all dimensions.
"""

DATE_SHARES = {
    **HINDSIGHT_SHARES,
    "solution/booking": 0.15,
    "sibling/booking": 0.15,
    "feedback/booking": 0.10,
    "solution/drill/booking": 0.25,
    "sibling/drill/booking": 0.25,
    "feedback/drill/booking": 0.10,
}
"""The third phase, in which half of the traces are bookings.

The date form is the only dimension that has no words of its own and belongs to a single function. After the second
phase the model still guessed it.
"""

SETTLED_SHARES = {
    "student": 0.20,
    "student/drill": 0.02,
    "solution": 0.12,
    "sibling": 0.14,
    "solution_verdict": 0.08,
    "sibling_verdict": 0.10,
    "reference_only": 0.05,
    "feedback": 0.15,
    "other_question_sibling": 0.08,
    "other_question_feedback": 0.06,
}
"""The last phase, without drills: only the real words, at a low learning rate."""

INVENTED = 0.7
"""Chance in a drill that an arbitrary word replaces the word of a convention that the context shows."""
INVENTED_DIMENSIONS = ("length", "temperature", "time", "place_word", "person_word", "verb")
ANY_WORD = sorted({*PLACES, *PERSONS, *MONTHS, *(item for tool in TOOLS.values() for item in tool.items)})

DOUBTED = 0.85
"""Chance that the thoughts deliberate over a convention that no context shows; else they omit it."""
DOUBTED_ALTHOUGH_SHOWN = 0.2
"""The same chance for a shown convention, so that such prefixes are in distribution beside a context."""

OTHER_SOLUTION = 0.2
"""Share of solutions and siblings that belong to another problem; their conventions apply to this one too."""
RELATED = 0.8
"""Share of other problems that have a dimension in common with the asked one."""

WRONG = 0.55
"""Chance that each convention of a failed attempt is wrong."""
OTHER_FAULT = 0.12
"""Share of feedback about something else: a value, a missing call, a cut attempt."""

MALFORMED = (
    "a bracket was opened but not closed",
    "there is something after the closing bracket",
    "an argument is not well formed",
    "a bracket was expected after the function",
)


class TraceWriter:
    """A seeded writer of traces on training problems, each under its own conventions."""

    def __init__(
        self, templates: Mapping[str, Template], seed: int, *, shares: Mapping[str, float] = CONTEXT_SHARES
    ) -> None:
        self.templates = templates
        self.shares = shares
        self.rng = random.Random(seed)
        self.writers: dict[str, Callable[[Problem, Conventions, str, bool], Trace]] = {
            "student": self._student,
            "feedback": self._feedback,
            "other_question_feedback": self._feedback,
        }

    def traces(self, count: int) -> Iterator[Trace]:
        """Yield ``count`` traces in the shares of the contexts."""
        for context in self.rng.choices(list(self.shares), list(self.shares.values()), k=count):
            yield self.drawn(context)

    def drawn(self, context: str) -> Trace:
        """Return one trace in a context of the shares, on a problem and conventions of its own."""
        topics = [mode for mode in context.split("/")[1:] if mode in TOOLS]
        return self.trace(self.problem(topics or TOOLS), self.conventions(), context)

    def trace(self, problem: Problem, conventions: Conventions, context: str) -> Trace:
        """Return one trace on a problem under conventions, in a context of :data:`CONTEXT_SHARES`.

        ``/drill`` after the context's name omits the thoughts and invents words that the context shows.
        """
        name, *modes = context.split("/")
        return self.writers.get(name, self._reference)(problem, conventions, name, "drill" in modes)

    def problem(self, topics: Collection[str] = TOOLS) -> Problem:
        """Return a training problem."""
        while True:
            problem = draw_problem(self.rng, tuple(topics))
            if problem.split == "train":
                return problem

    def conventions(self) -> Conventions:
        """Return one value for every dimension, all equally likely."""
        return {name: self.rng.choice(values) for name, values in DIMENSIONS.items()}

    def completion(
        self, problem: Problem, conventions: Conventions, shown: Collection[str], *, silent: bool = False
    ) -> str:
        """Return a completion for which the context shows some dimensions' conventions and the others are guesses."""
        if silent:
            return conclusion(problem.call(conventions)).partition("</think> ")[2]
        thoughts = [opening(problem)]
        for dimension in TOOLS[problem.topic].dimensions:
            if self.rng.random() < (DOUBTED_ALTHOUGH_SHOWN if dimension in shown else DOUBTED):
                phrase = self.rng.choices(list(PHRASES), list(PHRASES.values()))[0]
                thoughts.append(f"{phrase} check the {SPOKEN[dimension]} .")
            elif dimension in shown:
                thoughts.append(certain(dimension))
        return " ".join([*thoughts, conclusion(problem.call(conventions))])

    def failure(self, problem: Problem, conventions: Conventions) -> tuple[str, tuple[str, ...]]:
        """Return feedback on a failed attempt in the verifier's own words, and the dimensions that it names."""
        if self.rng.random() < OTHER_FAULT:
            return self._other_fault(problem, conventions), ()
        dimensions = TOOLS[problem.topic].dimensions
        wrong = [name for name in dimensions if self.rng.random() < WRONG] or [self.rng.choice(dimensions)]
        attempted = {
            name: self.rng.choice([other for other in DIMENSIONS[name] if other != value]) if name in wrong else value
            for name, value in conventions.items()
        }
        complaint = complain(parse(problem.call(attempted)), problem.topic, problem.values, conventions)
        if complaint is None:
            raise AssertionError(f"{problem.call(attempted)} is no failed attempt under {conventions}")
        return complaint, tuple(wrong)

    def _other_fault(self, problem: Problem, conventions: Conventions) -> str:
        kind = self.rng.randrange(4)
        if kind == 0:
            return NO_CALL
        if kind == 1:
            return TRUNCATED
        if kind == 2:
            return f"the call is malformed : {self.rng.choice(MALFORMED)}"
        other = self.problem([problem.topic])
        call = parse(other.call(conventions))
        return complain(call, problem.topic, problem.values, conventions) or NO_CALL

    def _student(self, problem: Problem, conventions: Conventions, context: str, drill: bool) -> Trace:
        return self._render(context, problem, {}, self.completion(problem, conventions, (), silent=drill), silent=drill)

    def _feedback(self, problem: Problem, conventions: Conventions, context: str, drill: bool) -> Trace:
        failed = self._other_problem(problem) if context != "feedback" else problem
        shown_conventions = self._invent(conventions) if drill else conventions
        feedback, shown = self.failure(failed, shown_conventions)
        fields = {"feedback": feedback, "other_question": problem.question}
        kept = {**conventions, **{name: shown_conventions[name] for name in shown}}
        return self._render(context, problem, fields, self.completion(problem, kept, shown, silent=drill), silent=drill)

    def _reference(self, problem: Problem, conventions: Conventions, context: str, drill: bool) -> Trace:
        """Return a trace whose context shows a right call, of this problem or of another under the same conventions."""
        other = context == "other_question_sibling" or (
            context in ("solution", "sibling") and self.rng.random() < OTHER_SOLUTION
        )
        solved = self._other_problem(problem) if other else problem
        shown_conventions = self._invent(conventions) if drill else conventions
        call = solved.call(shown_conventions)
        fields = {
            "solution": call,
            "sibling": conclusion(call).partition("</think> ")[2],
            "verdict": self.rng.choice(("correct", "wrong")),
            "other_question": problem.question,
        }
        shown = TOOLS[solved.topic].dimensions
        kept = {**conventions, **{name: shown_conventions[name] for name in shown}}
        return self._render(context, problem, fields, self.completion(problem, kept, shown, silent=drill), silent=drill)

    def _invent(self, conventions: Conventions) -> Conventions:
        """Return the conventions with arbitrary words in place of some."""
        invented = [name for name in INVENTED_DIMENSIONS if self.rng.random() < INVENTED]
        return {**conventions, **{name: self.rng.choice(ANY_WORD) for name in invented}}

    def _other_problem(self, problem: Problem) -> Problem:
        """Return another problem, mostly of a function that shares a dimension."""
        own_dimensions = set(TOOLS[problem.topic].dimensions)
        related = [topic for topic, tool in TOOLS.items() if own_dimensions & set(tool.dimensions)]
        return self.problem(related if self.rng.random() < RELATED else TOOLS)

    def _render(
        self, context: str, problem: Problem, fields: Mapping[str, str], completion: str, *, silent: bool
    ) -> Trace:
        messages = apply(self.templates, context, (Message("user", problem.question),), fields)
        if isinstance(messages, Skipped):
            raise AssertionError(messages.reason)
        return Trace(context, messages, completion, thinking=not silent)
