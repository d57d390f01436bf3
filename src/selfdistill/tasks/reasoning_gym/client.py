"""reasoning-gym's generators as this process sees them: questions by index, and scores of answers.

The package is imported in a worker process alone (``worker.py``), where every draw and every score has a time limit.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from selfdistill.config.suggest import near
from selfdistill.config.tasks import GeneratorConfig
from selfdistill.errors import ConfigError, UserError
from selfdistill.tasks.worker_process import WorkerProcess

_WORKER = Path(__file__).with_name("worker.py")
_START_SECONDS = 120.0
_DRAW_SECONDS = 60.0
"""Processor seconds of one question. The slowest generators take about two, and as long again to find the first."""

UNSOUND = {
    "coin_flip": "its scorer gives full marks to the first digits of a probability, so that 0 is always right",
    "composite": "it mixes other generators, which task.generators does",
    "game_of_life_halting": "its scorer gives full marks to any text, because every text counts as true",
}
"""Generators that are refused, and why. Checked with reasoning-gym 0.1.25."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A question with the generator's own answer, which some generators lack."""

    question: str
    answer: str | None


class Gym:
    """Draws questions of the configured generators, and scores answers, in one worker process.

    Args:
        generators: the generators, in the order in which they are numbered.
        timeout: processor seconds that one score may take.

    Raises:
        ConfigError: the package is missing, a generator is unknown or refused, or does not accept its config.
    """

    def __init__(self, generators: Sequence[GeneratorConfig], *, timeout: float) -> None:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ConfigError(
                "task.kind 'reasoning_gym' needs the package reasoning-gym: pip install 'selfdistill[reasoning-gym]'"
            )
        for generator in generators:
            if generator.name in UNSOUND:
                raise ConfigError(f"generator {generator.name!r} is not used: {UNSOUND[generator.name]}")
        self._generators = tuple(generators)
        self._timeout = timeout
        self._lock = Lock()
        # A fixed seed of hashes: some generators draw from sets, whose order would else differ between processes.
        environment = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        self._worker = WorkerProcess(_WORKER, [str(_START_SECONDS)], environment=environment)
        self._start()

    def draw(self, number: int, seed: int, index: int) -> Drawn | None:
        """The question of a generator at an index; a function of the config, the seed and the index.

        None if the generator has no question there.

        Raises:
            UserError: the generator raises, or takes too long.
        """
        place = {"generator": number, "seed": seed, "index": index}
        reply = self._ask({"do": "draw", "seconds": _DRAW_SECONDS, **place})
        name = self._generators[number].name
        if reply is None:
            raise UserError(
                f"generator {name!r} made no question within {_DRAW_SECONDS:g} processor seconds and 4 GiB: choose an "
                "easier config or another generator"
            )
        if "error" in reply:
            raise UserError(f"generator {name!r} raised at index {index} of seed {seed}: {reply['error']}")
        return None if reply["question"] is None else Drawn(reply["question"], reply["answer"])

    def score(self, number: int, seed: int, index: int, answer: str) -> float | None:
        """The generator's own score of an answer; None if its scorer raises, or takes too much time or memory."""
        # min(1.0, exp(-nan)) is 1.0 in Python, full marks.
        if self._generators[number].name == "complex_arithmetic" and "nan" in answer.lower():
            return 0.0
        place = {"generator": number, "seed": seed, "index": index}
        # The entry is drawn again in a worker that has been replaced, under the limit of a draw.
        limits = {"seconds": _DRAW_SECONDS, "score_seconds": self._timeout}
        reply = self._ask({"do": "score", "answer": answer, **limits, **place})
        return None if reply is None else reply.get("score")

    def close(self) -> None:
        """End the worker. The next question or score starts a new one."""
        self._worker.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        with self._lock:
            if not self._worker.running:
                self._start()
            reply = self._worker.ask(request)
            if reply is None:
                self._worker.close()
            return reply

    def _start(self) -> None:
        """Start the worker and open the generators in it."""
        if self._worker.start() is None:
            raise ConfigError("the package reasoning-gym cannot be imported: python -c 'import reasoning_gym' says why")
        for generator in self._generators:
            request = {"do": "open", "seconds": _DRAW_SECONDS, **generator.model_dump(exclude={"weight"})}
            reply = self._worker.ask(request)
            if reply != {}:
                self._worker.close()
                raise ConfigError(_objection(generator, reply))


def _objection(generator: GeneratorConfig, reply: dict[str, Any] | None) -> str:
    """Why a generator cannot be opened, in a sentence."""
    label = f"generator {generator.name!r}"
    if reply is None:
        return f"{label} did not start within {_DRAW_SECONDS:g} processor seconds and 4 GiB"
    if reply.get("unknown") == "generator":
        known = [name for name in reply["known"] if name not in UNSOUND]
        hint = near(generator.name, known) or f"known: {', '.join(known)}"
        return f"unknown generator {generator.name!r}; {hint}"
    if "unknown" in reply:
        hint = near(reply["unknown"], reply["known"]) or f"known: {', '.join(reply['known'])}"
        own = "; seed and number of questions are the task's" if reply["unknown"] in ("seed", "size") else ""
        return f"{label} has no config key {reply['unknown']!r}{own}; {hint}"
    if "levels" in reply:
        if reply["levels"] is None:
            return f"{label} has no levels of difficulty: leave difficulty out, and set its config"
        return f"{label} has the difficulties 0 to {reply['levels'] - 1}, not {generator.difficulty}"
    return f"{label} does not accept its config {generator.config}: {reply['error']}"
