"""Two small problems played in turns by the tiny model's words: a table says what is answered, and what replied."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from selfdistill.config.tasks import CountdownTurnsConfig
from selfdistill.contexts.chat import Chat
from selfdistill.models.policy import Policy
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.episodes import play
from selfdistill.tasks.countdown.turns import CountdownTurnsTask
from selfdistill.types import Completion, Example, Message, Reply, RolloutGroup, Start
from support.engine import QUESTIONS, SOLUTIONS, token_logprobs
from support.tiny import STOP

AGAIN = "feedback : reaches 7 not 12 . solve"
WRONG = "feedback : below 9 ."
SPOKEN: tuple[tuple[tuple[tuple[str, str | float], ...], ...], ...] = (
    (
        (("try 3 + 4 = 7 . wait </think> answer 3 + 4", AGAIN), ("let me </think> answer 3 × 4", 1.0)),
        (("</think> answer 4", WRONG), ("hmm </think> answer 4 + 4", 0.0)),
        (("</think> 4 × 3", 1.0),),
    ),
    (
        (("9 </think> answer 2", WRONG), ("maybe </think> answer 3 + 4", WRONG), ("</think> answer 9", 1.0)),
        (("hmm perhaps 9 = 9 </think> answer 8", 0.0),),
        (("wait </think> answer 1", WRONG), ("wait wait", 0.25)),
    ),
)
"""By problem and episode, the turns: what the model says, and the environment's next words or the last reward."""
AT = SPOKEN[0][1][0][0]
"""The first turn of the second episode of the first problem."""


def ends(groups: Sequence[RolloutGroup]) -> list[str]:
    """Why each episode ended."""
    return [r.episode.ended for group in groups for r in group.rollouts if r.episode]


def examples() -> list[Example]:
    """The two problems."""
    pairs = zip(QUESTIONS, SOLUTIONS, strict=True)
    return [Example(q, (Message("user", q),), {"solution": s, "answer": s}) for q, s in list(pairs)[:2]]


class Spoken:
    """Replies by the table. ``faulty`` is called instead for the first turns of these texts."""

    name = "spoken"
    contexts = "default"
    has_verifier = True
    seconds = 30.0

    def __init__(self, faulty: Callable[[str], Any] | None = None, at: str = "") -> None:
        self.faulty, self.at = faulty, at

    def examples(self, split: str) -> Sequence[Example]:
        return examples()

    def start(self, example: Example) -> Start:
        return Start({"example": example.id})

    def reply(self, state: object, text: str) -> Any:
        if self.faulty is not None and text == self.at:
            return self.faulty(text)
        said = next(after for group in SPOKEN for turns in group for own, after in turns if own == text)
        if isinstance(said, str):
            return Reply(said, reward=0.0, feedback=said)
        return Reply(done=True, reward=said, feedback=None if said == 1 else WRONG, answer=text.split()[-1])


OFTEN = tuple(range(2, 40))
"""Ids that end a turn of the random model soon."""


class Talks(Spoken):
    """Goes on for three turns, whatever is said."""

    def start(self, example: Example) -> Start:
        return Start([0])

    def reply(self, state: Any, text: str) -> Reply:
        state[0] += 1
        return Reply("try", done=state[0] == 3, reward=0.5)


class Graded(CountdownTurnsTask):
    """Countdown in turns whose every attempt earns something, by its length."""

    name = "countdown-graded"

    def __init__(self, seed: int = 0) -> None:
        config = CountdownTurnsConfig(difficulty="easy", train=8, validation=4, test=4)
        super().__init__(config, seed=seed)

    def reply(self, state: object, text: str) -> Reply:
        reply = super().reply(state, text)
        return replace(reply, reward=len(text) % 4 / 8)


@dataclass(slots=True)
class Script:
    """A sampler that says the table's turns, with the policy's log-probabilities and some noise."""

    chat: Chat
    policy: Policy | None = None
    off: float = 0.4
    cut: str = ""
    """The turn of this text is cut by the token limit."""
    asked: list[tuple[int, ...]] = field(default_factory=list)
    """Every conversation that was continued."""

    def __call__(self, conversations: Sequence[tuple[int, ...]], params: SamplingParams) -> list[list[Completion]]:
        assert params.count == 1 and params.ordinals is not None
        generator = torch.Generator().manual_seed(params.seed % 1000)
        made = []
        for conversation, ordinal in zip(conversations, params.ordinals, strict=True):
            self.asked.append(conversation)
            turns = SPOKEN[ordinal // 3][ordinal % 3]
            said = [self.chat.response(text) for text, _ in turns]
            prompt = self.chat.encode(examples()[ordinal // 3].prompt)
            # Two ends of turn for every turn so far: the model's and the environment's.
            turn = (conversation.count(STOP) - prompt.count(STOP)) // 2
            ids = said[turn]
            finished = turns[turn][0] != self.cut
            ids = ids if finished else ids[:-1]
            logprobs = torch.zeros(len(ids), dtype=torch.float64)
            if self.policy is not None:
                logprobs = token_logprobs(self.policy.model, conversation, ids, self.policy.vocab_size)
                logprobs = logprobs + self.off * torch.randn(len(ids), generator=generator, dtype=torch.float64)
            made.append([Completion(ids, tuple(logprobs.tolist()), finished)])
        return made


def played(chat: Chat, sample: Script, task: Any = None, *, max_tokens: int = 16, count: int = 3) -> list[RolloutGroup]:
    """The episodes of the table."""
    own: Any = task or Spoken()
    params = SamplingParams(count=count, max_tokens=max_tokens, seed=7)
    return play(examples(), own, sample, chat, params, thinking=None)


def by_hand(chat: Chat, group: int, episode: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids after the prompt and the turn of each, 0 for what is not the model's own, from the words alone."""

    def words(text: str) -> list[int]:
        return [chat.tokenizer.get_vocab()[word] for word in text.split()]

    ids: list[int] = []
    turns: list[int] = []
    for n, (text, said) in enumerate(SPOKEN[group][episode], 1):
        own = words(f"{text} <|end|>")
        between = words(f"<|user|> {said} <|end|> <|assistant|> <think>") if isinstance(said, str) else []
        ids += [*own, *between]
        turns += [*[n] * len(own), *[0] * len(between)]
    return tuple(ids), tuple(turns)


def turn_advantages_by_hand(group: int, kind: str, discount: float, weight: float) -> list[list[float]]:
    """The advantage of each turn of the table's episodes, as loops, from the words and rewards alone."""

    def standardised(value: float, among: list[float]) -> float:
        if max(among) == min(among):
            return 0.0
        mean = sum(among) / len(among)
        return (value - mean) / math.sqrt(sum((other - mean) ** 2 for other in among) / (len(among) - 1))

    returns: list[list[float]] = []
    states: list[list[str]] = []
    totals: list[float] = []
    for turns in SPOKEN[group]:
        rewards = [0.0 if isinstance(said, str) else float(said) for _, said in turns]
        returns.append(
            [sum(discount ** (j - k) * rewards[j] for j in range(k, len(rewards))) for k in range(len(rewards))]
        )
        states.append(["opening", *(str(said) for _, said in turns[:-1])])
        totals.append(sum(rewards))
    found: list[list[float]] = []
    for i, own in enumerate(returns):
        found.append([])
        for k, value in enumerate(own):
            if kind == "reward_to_go":
                found[i].append(standardised(value, [other[k] for other in returns if len(other) > k]))
                continue
            same = [
                returns[j][n] for j, names in enumerate(states) for n, name in enumerate(names) if name == states[i][k]
            ]
            found[i].append(standardised(totals[i], totals) + weight * standardised(value, same))
    return found
