"""Toolbox in turns: several calls that the API answers or refuses, and a report of what it answered."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from selfdistill.config.tasks import ToolboxConfig, ToolboxTurnsConfig
from selfdistill.contexts.thinking import after_thinking
from selfdistill.tasks.toolbox.task import SPLITS, Problem, ToolboxTask, final_call, opening, response
from selfdistill.types import Example, Message, Reply, Start

ANSWER = "call correct : number {number} . {then}"
REFUSED = "call wrong . {then}"
"""What the API says, in words of the base model. It does not say what is wrong: that is seen in hindsight. ``then`` is
the next request, the refused one again, or :data:`REPORT`."""
REPORT = "now answer with the number of the calls ."
WRONG_REPORT = "the number of the calls must be {numbers}"
EARLY = "there was no call"


@dataclass(slots=True)
class Loop:
    """The state of an episode: its problems, how many calls were right, and how many turns were taken."""

    example: Example
    right: int = 0
    turns: int = 0


class ToolboxTurnsTask(ToolboxTask):
    """Requests whose calls are answered one by one; the report of all answers earns 1.

    The opening is the first request. A right call is answered with a number that only the API knows, and with the next
    request. A wrong one is refused without a reason and may be made again. Once every request has its call, the next
    turn is the report: it earns 1 if it has the numbers in order, else 0, and ends the episode. The feedback of a
    refusal names the conventions that the call broke.

    Args:
        config: the task's table. The requests are those of ``toolbox`` with the same conventions.
        seed: as for :class:`~selfdistill.tasks.toolbox.task.ToolboxTask`.

    Raises:
        ConfigError: the split is unknown.
    """

    name = "toolbox-turns"

    def __init__(self, config: ToolboxTurnsConfig | None = None, *, seed: int = 0) -> None:
        config = config or ToolboxTurnsConfig()
        sizes = {split: getattr(config, split) * config.calls for split in SPLITS}
        conventions = {"conventions": config.conventions, "conventions_by_seed": config.conventions_by_seed}
        super().__init__(ToolboxConfig.model_validate({**sizes, **conventions}), seed=seed)
        self.calls, self.max_turns = config.calls, config.turns

    def _examples_of(self, problems: Iterable[Problem]) -> tuple[Example, ...]:
        """One example of every few problems. The last problems of a split that are too few are left out."""
        return tuple(map(self._episode, zip(*[iter(problems)] * self.calls, strict=False)))

    def _episode(self, problems: Sequence[Problem]) -> Example:
        calls = [problem.call(self.conventions) for problem in problems]
        return Example(
            id=f"toolbox-turns-{'+'.join(problem.key for problem in problems)}",
            prompt=(Message("user", problems[0].question),),
            # ``response`` is a reference of the first turn, for methods that train on references.
            fields={"solution": " and ".join(calls), "response": response(problems[0], calls[0])},
            columns={
                "problems": [
                    {"topic": p.topic, "values": dict(p.values), "key": p.key, "question": p.question} for p in problems
                ]
            },
        )

    def start(self, example: Example) -> Start:
        """Start an episode with its first request as the opening."""
        return Start(Loop(example), anchor=self._anchor(0, 0))

    def reply(self, state: object, text: str) -> Reply:
        """Answer a call, refuse it, or judge the report."""
        assert isinstance(state, Loop)
        state.turns += 1
        if state.right == self.calls:
            return self._judge(state.example, text)
        call, done = final_call(text), state.turns >= self.max_turns
        verdict = self.verify(self.single(state.example, state.right), text, finished=True)
        state.right += verdict.correct
        anchor = self._anchor(state.right, state.turns)
        said = said_of(verdict.correct, state.right, numbers_of(state.example), questions_of(state.example))
        if verdict.correct:
            return Reply(said, done, 0.0, error=False, anchor=anchor)
        broken = verdict.feedback if call else EARLY
        return Reply(said, done, 0.0, broken, error=True, anchor=anchor, note=broken if call else None)

    def _judge(self, example: Example, text: str) -> Reply:
        numbers, reported = numbers_of(example), report_of(text)
        if reported == numbers:
            return Reply(done=True, reward=1.0, answer=" ".join(map(str, reported)), error=False)
        feedback = WRONG_REPORT.format(numbers=" and ".join(map(str, numbers)))
        answer = " ".join(map(str, reported)) or None
        return Reply(done=True, reward=0.0, feedback=feedback, answer=answer, error=False)

    def _anchor(self, right: int, turns: int) -> str:
        # Refusals say nothing, so what is left to do and the turns for it are all of the state that the model reads.
        return f"{right} of {self.calls} calls, {self.max_turns - turns} turns left"

    @staticmethod
    def single(example: Example, index: int) -> Example:
        """One problem of an example, as the single-turn verifier takes it."""
        problem = example.columns["problems"][index]
        return Example(f"{example.id} {index}", example.prompt, columns=problem)

    def reference_turns(self, example: Example) -> list[str]:
        """The texts of the turns that earn the reward, in the base model's format."""
        calls = example.fields["solution"].split(" and ")
        problems = [Problem(p["topic"], p["values"], "") for p in example.columns["problems"]]
        made = [response(problem, call) for problem, call in zip(problems, calls, strict=True)]
        numbers = " and ".join(map(str, numbers_of(example)))
        return [*made, f"{opening(problems[0])} so now answer . </think> answer : {numbers} . done"]


def said_of(correct: bool, right: int, numbers: Sequence[int], questions: Sequence[str]) -> str:
    """What the API says of a call after which ``right`` calls were right, with what is to be done next."""
    then = questions[right] if right < len(questions) else REPORT
    return ANSWER.format(number=numbers[right - 1], then=then) if correct else REFUSED.format(then=then)


def questions_of(example: Example) -> list[str]:
    """The requests of an example as the model reads them."""
    return [problem["question"] for problem in example.columns["problems"]]


def numbers_of(example: Example) -> list[int]:
    """The numbers with which the API answers the calls of an example, from 2 to 99. No request tells them."""
    keys = [f"toolbox number {n} {problem['key']}" for n, problem in enumerate(example.columns["problems"])]
    return [2 + int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 98 for key in keys]


def report_of(text: str) -> list[int]:
    """The numbers after the last ``answer`` outside the thinking; empty without that word."""
    _, word, said = after_thinking(text).lower().rpartition("answer")
    return [int(number) for number in re.findall(r"\d{1,9}", said)] if word else []
