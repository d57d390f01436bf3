"""Toolbox, the built-in task in which hindsight transfers: short requests become calls of a small API.

The API has conventions that no request states. They are the same for all problems of a task, so a convention learned
from a solution or from feedback on one problem also holds for the next. A stable hash of the request decides a
problem's split, independent of the seed and the conventions.
"""

from __future__ import annotations

import hashlib
import random
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from selfdistill.config.suggest import choices
from selfdistill.config.tasks import ToolboxConfig
from selfdistill.contexts.thinking import after_thinking
from selfdistill.errors import ConfigError
from selfdistill.tasks.toolbox.calls import (
    LARGEST,
    MONTHS,
    PERSONS,
    PLACES,
    TOOLS,
    Call,
    Conventions,
    MalformedCall,
    complain,
    conventions_of,
    parse,
)
from selfdistill.types import Example, Message, Verdict

PROMPT = "request : {request} . answer with one call ."
SPLITS = ("train", "validation", "test")

HELD_OUT_CONVENTIONS = range(1000, 2000)
"""Seeds of conventions held out for final results. Tune hyperparameters on seeds below 1000."""

NO_CALL = "there was no call"
TRUNCATED = "the attempt was cut before the end"

SPOKEN = {
    "length": "unit",
    "temperature": "unit",
    "time": "unit",
    "place_word": "place word",
    "person_word": "person word",
    "order": "order",
    "date": "date",
    "verb": "verb",
    "confirm": "confirmation",
}
"""Name of each dimension in the thinking."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A topic, the values in the request, and the request's wording."""

    topic: str
    values: Mapping[str, str]
    request: str

    @property
    def key(self) -> str:
        """Identity of the problem, without its wording."""
        return ".".join((self.topic, *(self.values[slot] for slot in TOOLS[self.topic].slots)))

    @property
    def split(self) -> str:
        """``"train"`` (60 %), ``"validation"`` or ``"test"`` (20 % each), from a hash that never changes."""
        share = int.from_bytes(hashlib.sha256(f"toolbox {self.key}".encode()).digest()[:8], "big") % 10
        return "test" if share < 2 else "validation" if share < 4 else "train"

    @property
    def question(self) -> str:
        """The prompt."""
        return PROMPT.format(request=self.request)

    def call(self, conventions: Conventions) -> str:
        """The right call."""
        return TOOLS[self.topic].expected(self.values, conventions)


def draw_problem(rng: random.Random, topics: Sequence[str] = tuple(TOOLS)) -> Problem:
    """A random problem of any split."""
    topic = rng.choice(topics)
    tool = TOOLS[topic]
    number = str(rng.randint(2, LARGEST))
    choices = {
        "item": tool.items,
        "number": (number,),
        "day": tuple(map(str, range(1, 29))),
        "month": MONTHS,
        "place": PLACES,
        "person": PERSONS,
    }
    values = {slot: rng.choice(choices[slot]) for slot in tool.slots}
    return Problem(topic, values, string.Template(rng.choice(tool.requests)).substitute(values))


class ToolboxTask:
    """Requests drawn from a seed, with an exact verifier of calls and its feedback.

    Args:
        config: the task's table; for its conventions see :data:`HELD_OUT_CONVENTIONS`.
        seed: decides which requests are sampled, and their order; with ``conventions_by_seed`` the conventions too.
    """

    name = "toolbox"
    contexts = "toolbox"
    has_verifier = True

    def __init__(self, config: ToolboxConfig | None = None, *, seed: int = 0) -> None:
        self.config = config or ToolboxConfig()
        offset = seed if self.config.conventions_by_seed else 0
        self.conventions = conventions_of(self.config.conventions + offset)
        self.seed = seed
        self._examples: dict[str, tuple[Example, ...]] = {}

    def examples(self, split: str) -> Sequence[Example]:
        """Examples of ``"train"``, ``"validation"`` or ``"test"``, always the same in the same order."""
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; {choices(split, SPLITS)}")
        if split not in self._examples:
            self._examples[split] = self._examples_of(self._draw(split))
        return self._examples[split]

    def _examples_of(self, problems: Iterable[Problem]) -> tuple[Example, ...]:
        return tuple(map(self._example, problems))

    def _draw(self, split: str) -> Iterator[Problem]:
        rng = random.Random(f"toolbox {split} {self.seed}")
        topics: list[str] = []
        drawn_keys: set[str] = set()
        misses = 0
        while len(drawn_keys) < getattr(self.config, split) and misses < _PATIENCE:
            # Cycle through all topics, in a new order each round, so that their counts differ by at most one.
            topics = topics or rng.sample(list(TOOLS), len(TOOLS))
            problem = draw_problem(rng, topics[-1:])
            if problem.split != split or problem.key in drawn_keys:
                misses += 1
                continue
            topics.pop()
            misses = 0
            drawn_keys.add(problem.key)
            yield problem

    def _example(self, problem: Problem) -> Example:
        call = problem.call(self.conventions)
        return Example(
            id=f"toolbox-{problem.key}",
            prompt=(Message("user", problem.question),),
            # ``response`` is the reference in the base model's own format, for sft.
            fields={"solution": call, "response": response(problem, call)},
            columns={"topic": problem.topic, "values": dict(problem.values)},
        )

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """Verify the last call after the thinking: reward 1 if all of it is right, else 0."""
        if not finished:
            return Verdict(0.0, feedback=TRUNCATED)
        call_text = final_call(text)
        if call_text is None:
            return Verdict(0.0, feedback=NO_CALL)
        try:
            call: Call = parse(call_text)
        except MalformedCall as error:
            return Verdict(0.0, feedback=f"the call is malformed : {error}")
        complaint = complain(call, example.columns["topic"], example.columns["values"], self.conventions)
        return Verdict(0.0 if complaint else 1.0, answer=call.normal_form, feedback=complaint)


# Samples in a row without a new problem of the split, after which the split counts as exhausted.
_PATIENCE = 1000

_CALL = re.compile(r"\bcall\b\s*:?")


def final_call(text: str) -> str | None:
    """The text after the last ``call`` outside the thinking, without the closing words. None if there is none."""
    answer_text = after_thinking(text).lower()
    calls = list(_CALL.finditer(answer_text))
    if not calls:
        return None
    call = re.sub(r"(\s*\.)?(\s*\bdone)?(\s*\.)?\s*$", "", answer_text[calls[-1].end() :])
    return call.strip() or None


def opening(problem: Problem) -> str:
    """The start of the thinking: the topic of the request and its values."""
    noted = " and ".join(problem.values[slot] for slot in TOOLS[problem.topic].slots)
    return f"this is about {problem.topic} with {noted} ."


def certain(dimension: str) -> str:
    """The sentence of the thinking about a dimension whose convention is known."""
    return f"the {SPOKEN[dimension]} is clear ."


def conclusion(call: str) -> str:
    """The end of the thinking and the call."""
    return f"so now the call . </think> call : {call} . done"


def response(problem: Problem, call: str) -> str:
    """A full completion that follows all conventions."""
    return " ".join([opening(problem), *map(certain, TOOLS[problem.topic].dimensions), conclusion(call)])
