"""Puzzles of the package ``reasoning-gym``: any of its generators, mixed by weights, with their own scorers.

A question is a function of the seed and of its number in the stream of its generator. A hash of its text decides its
split, so that no question stands in two of them, whatever the seed.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Sequence

from selfdistill.config.suggest import choices
from selfdistill.config.tasks import ReasoningGymConfig
from selfdistill.contexts.thinking import after_thinking
from selfdistill.errors import ConfigError
from selfdistill.tasks.reasoning_gym.client import Drawn, Gym
from selfdistill.types import Example, Message, Verdict

SPLITS = ("train", "validation", "test")

NO_ANSWER = "no answer in <answer>…</answer> was found"
TRUNCATED = "the completion was cut off before an answer"

_PATIENCE = 1000
"""Questions of a generator in a row without a new one, after which it counts as exhausted."""

_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)


def split_of(question: str) -> str:
    """``"train"`` (60 %), ``"validation"`` or ``"test"`` (20 % each), from a hash that never changes."""
    share = int.from_bytes(hashlib.sha256(f"reasoning_gym {question}".encode()).digest()[:8], "big") % 10
    return "test" if share < 2 else "validation" if share < 4 else "train"


class ReasoningGymTask:
    """Generated questions, and the package's scorers as the verifier.

    The score of an answer is its reward. A score of 1 counts as right; ``reward.success`` lowers that threshold. There
    is no field ``solution``, because generators write none. ``answer`` is there where the generator has one.

    Args:
        config: the task's table.
        seed: decides which questions are drawn, and their order.

    Raises:
        ConfigError: the package is missing, a generator is unknown or refused, or does not accept its config.
    """

    name = "reasoning_gym"
    contexts = "default"
    has_verifier = True

    def __init__(self, config: ReasoningGymConfig, *, seed: int = 0) -> None:
        self.config = config
        self.seed = seed
        self.duplicates = 0
        """Repeated questions that were drawn and left out so far."""
        names = [generator.name for generator in config.generators]
        # A generator may occur twice, for example at two difficulties.
        self._labels = [name if names.count(name) == 1 else f"{name}-{at}" for at, name in enumerate(names, start=1)]
        self._gym = Gym(config.generators, timeout=config.timeout)
        self._rng = random.Random(f"reasoning_gym {seed}")
        self._next = [0] * len(names)
        self._misses = [0] * len(names)
        self._seen: set[str] = set()
        self._drawn: dict[str, list[Example]] = {split: [] for split in SPLITS}

    def examples(self, split: str) -> Sequence[Example]:
        """Examples of ``"train"``, ``"validation"`` or ``"test"``, always the same in the same order.

        Raises:
            UserError: a generator raises or takes too long, or has no question for the split.
        """
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; {choices(split, SPLITS)}")
        wanted: int = getattr(self.config, split)
        # One stream fills all splits, so that a split does not depend on which of them is asked for first.
        while len(self._drawn[split]) < wanted and self._unexhausted():
            self._draw_one()
        if not self._drawn[split]:
            names = ", ".join(generator.name for generator in self.config.generators)
            raise ConfigError(
                f"the generators ({names}) have only {len(self._seen)} different questions, and none for the split "
                f"{split!r}: choose another config or generator"
            )
        return tuple(self._drawn[split][:wanted])

    def _unexhausted(self) -> list[int]:
        return [number for number, misses in enumerate(self._misses) if misses < _PATIENCE]

    def _draw_one(self) -> None:
        """Draw the next new question of the stream and put it into its split."""
        numbers = self._unexhausted()
        weights = [self.config.generators[number].weight for number in numbers]
        number = self._rng.choices(numbers, weights)[0]
        # A repeated question is replaced by one of the same generator, so that the weights hold for what is kept.
        while True:
            index = self._next[number]
            self._next[number] += 1
            drawn = self._gym.draw(number, self.seed, index)
            if drawn is not None and drawn.question not in self._seen:
                break
            self.duplicates += drawn is not None
            self._misses[number] += 1
            if self._misses[number] >= _PATIENCE:
                return
        self._misses[number] = 0
        self._seen.add(drawn.question)
        split = split_of(drawn.question)
        # Another split may be long in filling: what a full one does not need is not kept.
        if len(self._drawn[split]) < getattr(self.config, split):
            self._drawn[split].append(self._example(number, index, drawn))

    def _example(self, number: int, index: int, drawn: Drawn) -> Example:
        system = () if self.config.system is None else (Message("system", self.config.system),)
        generator = self.config.generators[number].name
        place = {"generator": generator, "entry": number, "seed": self.seed, "index": index}
        return Example(
            id=f"reasoning_gym-{self._labels[number]}-{self.seed}-{index}",
            prompt=(*system, Message("user", drawn.question.rstrip() + self.config.suffix)),
            fields={} if drawn.answer is None else {"answer": drawn.answer},
            columns={"question": drawn.question, "answer": drawn.answer, **place},
        )

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """Score the last ``<answer>…</answer>`` after the thinking with the generator's own scorer.

        An answer that the scorer raises at, or cannot score in time, gets 0 and the detail ``unchecked``.
        """
        tags = _ANSWER.findall(after_thinking(text))
        if not tags:
            return Verdict(0.0, feedback=NO_ANSWER if finished else TRUNCATED, details={"no_answer": 1.0})
        answer = tags[-1].strip()
        canonical = " ".join(answer.split()) or None
        columns = example.columns
        score = self._gym.score(columns["entry"], columns["seed"], columns["index"], answer)
        if score is None or not math.isfinite(score):
            feedback = f"the final answer {answer[:100]} could not be scored"
            return Verdict(0.0, answer=canonical, feedback=feedback, details={"unchecked": 1.0})
        reward = min(max(score, 0.0), 1.0)
        wrong = reward < 1 and self.config.reveal_incorrect
        feedback_text = f"the final answer {answer[:100]} is wrong" if wrong else None
        return Verdict(reward, answer=canonical, feedback=feedback_text)

    def reference(self, example: Example) -> str | None:
        """The generator's own answer as a completion gives it; None where it has none."""
        answer = example.fields.get("answer")
        return None if answer is None else f"<answer>{answer}</answer>"

    def warnings(self) -> list[str]:
        """What the splits lack, one sentence each. Draws all of them."""
        counts = {split: len(self.examples(split)) for split in SPLITS}
        short = [
            f"{counts[split]} of {getattr(self.config, split)} {split} problems"
            for split in SPLITS
            if counts[split] < getattr(self.config, split)
        ]
        if not short:
            return []
        return [
            f"reasoning_gym: the generators have too few different questions: {', '.join(short)}; {self.duplicates} "
            "repeated ones were left out"
        ]

    def close(self) -> None:
        """End the worker's process; it also ends with this object."""
        self._gym.close()
