"""Countdown in turns: every turn is an attempt, and the environment says what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.config.tasks import CountdownConfig, CountdownTurnsConfig
from selfdistill.tasks.countdown.task import NO_ANSWER, CountdownTask, final_answer
from selfdistill.types import Example, Message, Reply, Start

REPLY = "feedback on an earlier attempt : {feedback} .\nnow solve the problem yourself ."
"""What the environment says about a wrong attempt, in the words that the base model was pre-trained on."""
GIVE_UP = "no solution"
"""An answer of these words ends the episode."""


@dataclass(slots=True)
class Attempts:
    """The state of an episode: its problem, and the number of attempts."""

    example: Example
    count: int = 0


class CountdownTurnsTask(CountdownTask):
    """Countdown with several attempts at a problem. A right attempt earns 1 and ends the episode, as giving up does.

    Args:
        config: the task's table. The problems are those of ``countdown`` with the same sizes.
        seed: as for :class:`~selfdistill.tasks.countdown.task.CountdownTask`.

    Raises:
        ConfigError: the difficulty is unknown.
    """

    name = "countdown-turns"

    def __init__(self, config: CountdownTurnsConfig | None = None, *, seed: int = 0) -> None:
        config = config or CountdownTurnsConfig()
        sizes = config.model_dump(exclude={"kind", "turns"})
        super().__init__(CountdownConfig(**sizes), seed=seed)
        self.max_turns = config.turns

    def start(self, example: Example) -> Start:
        """Start an episode with the problem as its opening."""
        return Start(Attempts(example))

    def reply(self, state: object, text: str) -> Reply:
        """Judge an attempt. The last one gets no message."""
        assert isinstance(state, Attempts)
        state.count += 1
        if final_answer(text) == GIVE_UP:
            return Reply(done=True, reward=0.0, feedback=NO_ANSWER)
        verdict = self.verify(state.example, text, finished=True)
        done = verdict.correct or state.count >= self.max_turns
        messages = () if done else (Message("user", REPLY.format(feedback=verdict.feedback)),)
        # The attempts that are left are part of the state, and the feedback is all else that the model reads.
        anchor = f"{self.max_turns - state.count} left: {verdict.feedback}"
        return Reply(messages, done, verdict.reward, verdict.feedback, verdict.answer, anchor=anchor)
