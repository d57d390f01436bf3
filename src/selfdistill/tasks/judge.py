"""A language model as the judge of completions, behind any endpoint that speaks OpenAI's ``/chat/completions``.

Each completion gets a number, or it is compared with others of its group and its reward is the share of comparisons
that it wins, a tie counting one half. What the model wrote stands in the request as text: its ``$`` names no field, and
nothing of it is read as a setting. Answers are kept on disk, so a run that is taken up again asks nothing twice. A
request that fails, an answer that cannot be read and a request beyond the budget leave what they ask for unjudged; all
three are counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations, groupby
from pathlib import Path
from typing import Any, TypeAlias

from selfdistill.config.reward import JudgeConfig
from selfdistill.contexts.fields import reference_text
from selfdistill.errors import ConfigError, UserError
from selfdistill.files.jsonl import write_json
from selfdistill.files.text import well_formed
from selfdistill.tasks.endpoint import Endpoint, Refused
from selfdistill.types import Example

Asked: TypeAlias = tuple[Example, str, bool]
"""What is judged: an example, a completion's text, and whether the completion is finished."""

COUNTS = ("asked", "cached", "failed", "unreadable", "over_budget")
"""What is counted of requests: sent, answered before, without an answer, with one that holds no number, not sent."""
FOLDER = "judge"
"""Folder of a run that holds the answers and the ledger of its judge."""


@dataclass(slots=True)
class Judged:
    """A completion's reward, and counts of the requests that were made for it, by :data:`COUNTS`."""

    reward: float | None = None
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Question:
    """One request: the completion that it is counted for, its text, and the pair that it compares."""

    owner: int
    text: str
    first: int | None = None
    second: int | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str | None
    how: str


class Judge:
    """Judges completions with a language model.

    Without :meth:`open` it keeps answers and the count of its requests in memory.
    """

    def __init__(self, config: JudgeConfig, *, concurrency: int = 8) -> None:
        """``concurrency`` is the number of requests at once.

        Raises:
            ConfigError: the environment variable of the key is not set, or holds what no header can.
        """
        self.config = config
        self.concurrency = concurrency
        self.log: Callable[[str], None] = lambda message: None
        self._endpoint = Endpoint(config)
        self._question, self._pattern = config.question, config.answer_pattern
        self._cache = Path(config.cache) if config.cache else None
        self._ledger: Path | None = None
        self._kept: dict[str, str] = {}
        self._sent = 0
        self._down = threading.Event()

    def open(self, folder: Path, log: Callable[[str], None]) -> None:
        """Keep answers and the ledger of requests in a run's folder, and give messages for the user to ``log``."""
        self.log = log
        self._ledger = folder / FOLDER / "requests"
        self._cache = self._cache or folder / FOLDER / "answers"

    def check(self, example: Example) -> None:
        """Ask one question, so that an endpoint that does not answer is noticed before anything is trained.

        Raises:
            UserError: it gives no answer, after all retries.
        """
        text = reference_text(example) or ""
        try:
            self._endpoint.post(
                self._body(self._text(example, completion=text, first=text, second=text)), self.config.retries
            )
        except Refused as refused:
            raise UserError(
                f"judge {self.config.url}: {refused}: start the endpoint, or correct reward.judge"
            ) from refused

    def judge(self, asked: Sequence[Asked]) -> list[Judged]:
        """The reward of every completion from 0 to 1, None where none could be had. Groups are not split.

        Raises:
            ConfigError: the template names a column that an example lacks.
        """
        questions = list(self._pointwise(asked) if self.config.compare == "none" else self._pairs(asked))
        answers = self._answers([self._body(question.text) for question in questions])
        results = [Judged() for _ in asked]
        points: dict[int, list[float]] = {}
        for question, answer in zip(questions, answers, strict=True):
            counts = results[question.owner].counts
            counts[answer.how] += 1
            value = None if answer.text is None else self._read(answer.text)
            if answer.text is not None and value is None:
                counts["unreadable"] += 1
            if value is None:
                continue
            if question.first is None and question.second is None:
                points.setdefault(question.owner, []).append(value)
            for side, points_won in ((question.first, value), (question.second, 1 - value)):
                if side is not None:
                    points.setdefault(side, []).append(points_won)
        # Equal completions are a tie that need not be asked for.
        for n, other in self._ties(asked):
            points.setdefault(n, []).append(0.5)
            points.setdefault(other, []).append(0.5)
        for n, won in points.items():
            results[n].reward = sum(won) / len(won)
        self._log(results)
        return results

    def _pointwise(self, asked: Sequence[Asked]) -> Iterator[_Question]:
        for n, (example, text, _) in enumerate(asked):
            yield _Question(n, self._text(example, completion=text))

    def _pairs(self, asked: Sequence[Asked]) -> Iterator[_Question]:
        """The comparisons of every group. A completion that is the reference's own text is compared too."""
        if self.config.compare == "reference":
            for n, (example, text, _) in enumerate(asked):
                reference = reference_text(example)
                if reference is None:
                    raise ConfigError(
                        f"reward.judge.compare = 'reference', but example {example.id} has no response and no solution"
                    )
                yield _Question(n, self._text(example, first=text, second=reference), first=n)
                if self.config.both_orders:
                    yield _Question(n, self._text(example, first=reference, second=text), second=n)
            return
        for i, j in self._compared(asked):
            if asked[i][1] != asked[j][1]:
                for a, b in [(i, j), (j, i)][: 1 + self.config.both_orders]:
                    yield _Question(j, self._text(asked[i][0], first=asked[a][1], second=asked[b][1]), a, b)

    def _ties(self, asked: Sequence[Asked]) -> list[tuple[int, int]]:
        if self.config.compare in ("none", "reference"):
            return []
        same = [(i, j) for i, j in self._compared(asked) if asked[i][1] == asked[j][1]]
        return same * (1 + self.config.both_orders)

    def _compared(self, asked: Sequence[Asked]) -> Iterator[tuple[int, int]]:
        """The pairs i < j of completions that are compared."""
        for _, group in groupby(range(len(asked)), key=lambda n: asked[n][0].id):
            members = list(group)
            yield from (
                pair for pair in combinations(members, 2) if self.config.compare == "all" or pair[0] == members[0]
            )

    def _text(self, example: Example, **texts: str) -> str:
        """The question. Values are put in once, so that a ``$`` in them stays a sign."""
        spoken = [message for message in example.prompt if message.role != "tools"]
        prompt = spoken[0].content if len(spoken) == 1 else "\n\n".join(f"{m.role}: {m.content}" for m in spoken)
        scale = {"lowest": f"{self.config.lowest:g}", "highest": f"{self.config.highest:g}"}
        values = {**example.columns, **example.fields, **scale, "prompt": prompt, **texts}
        try:
            return well_formed(self._question.substitute(values))
        except KeyError as error:
            raise ConfigError(
                f"reward.judge.template names ${error.args[0]}, which example {example.id} lacks; it has "
                f"{', '.join(sorted(map(str, values)))}"
            ) from error

    def _body(self, text: str) -> str:
        """The body of a request; equal questions have equal bodies."""
        system = [{"role": "system", "content": self.config.system}] if self.config.system else []
        messages = [*system, {"role": "user", "content": text}]
        return json.dumps({**self.config.parameters, "model": self.config.model, "messages": messages}, sort_keys=True)

    def _read(self, answer: str) -> float | None:
        """The number in an answer: a reward, or what the first of two wins. None if it holds none."""
        found = [match.group(1) for match in self._pattern.finditer(answer) if match.group(1) is not None]
        if not found:
            return None
        if self.config.compare != "none":
            return {"A": 1.0, "B": 0.0}.get(found[-1].strip().upper(), 0.5)
        try:
            share = (float(found[-1]) - self.config.lowest) / (self.config.highest - self.config.lowest)
        except ValueError:
            return None
        return share if 0 <= share <= 1 else None

    def _answers(self, bodies: Sequence[str]) -> list[_Answer]:
        """An answer to every body. Bodies that were answered before, or stand twice among them, are asked once."""
        keys = [hashlib.sha256(f"{self.config.url}\n{body}".encode()).hexdigest() for body in bodies]
        found: dict[str, _Answer] = {}
        sending: dict[str, str] = {}
        # In order, so that which requests are beyond the budget does not depend on which answer comes first.
        for key, body in zip(keys, bodies, strict=True):
            if key in found or key in sending:
                continue
            known = self._known(key)
            if known is not None:
                found[key] = _Answer(known, "cached")
            elif self._reserve():
                sending[key] = body
            else:
                found[key] = _Answer(None, "over_budget")
        if sending:
            self._down.clear()
            with ThreadPoolExecutor(self.concurrency) as pool:
                found.update(zip(sending, pool.map(self._ask, sending, sending.values()), strict=True))
        answers, fresh = [], set(sending)
        for key in keys:
            answer = found[key]
            again = answer.how == "asked" and key not in fresh
            answers.append(_Answer(answer.text, "cached") if again else answer)
            fresh.discard(key)
        return answers

    def _ask(self, key: str, body: str) -> _Answer:
        """Send one request. Once the endpoint did not answer after all retries, the rest of a batch tries once each."""
        try:
            text = self._endpoint.post(body, 0 if self._down.is_set() else self.config.retries)
        except Refused as refused:
            if refused.again and not self._down.is_set():
                self._down.set()
                self.log(f"judge {self.config.url}: {refused}")
            return _Answer(None, "failed")
        self._keep(key, body, text)
        return _Answer(text, "asked")

    def _known(self, key: str) -> str | None:
        """The answer that was given before, from memory or disk."""
        if self._cache is None or key in self._kept:
            return self._kept.get(key)
        try:
            answer = json.loads(self._file(self._cache, key).read_text(encoding="utf-8"))["answer"]
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return None  # none, or a file that was damaged: asked again
        return answer if isinstance(answer, str) else None

    def _keep(self, key: str, body: str, text: str) -> None:
        if self._cache is None:
            self._kept[key] = text
            return
        path = self._file(self._cache, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own for each process, because ranks and runs may share the folder.
        own = path.with_name(f"{path.stem}.{os.getpid()}")
        write_json(own, {"request": json.loads(body), "answer": text})
        own.replace(path)

    @staticmethod
    def _file(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.json"

    def _reserve(self) -> bool:
        """Enter one request in the ledger; False if the budget is spent.

        The ledger is a file of one byte a request, so that ranks and starts of a run share it without a lock.
        """
        budget = self.config.budget
        if self._ledger is None:
            left = budget is None or self._sent < budget
            self._sent += left
            return left
        if budget is not None and self._ledger.exists() and self._ledger.stat().st_size >= budget:
            return False
        self._ledger.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, b".")
            position = os.lseek(descriptor, 0, os.SEEK_CUR)
        finally:
            os.close(descriptor)
        return budget is None or position <= budget

    def _log(self, results: Sequence[Judged]) -> None:
        """Say what is missing among the answers of a batch."""
        total: Counter[str] = Counter()
        for judged in results:
            total.update(judged.counts)
        asked = sum(count for name, count in total.items() if name != "unreadable")
        words = {
            "failed": "without an answer",
            "unreadable": "without anything that reward.judge.pattern matches on the scale",
            "over_budget": f"not sent, because the budget of {self.config.budget} is spent",
        }
        missing = [f"{total[name]} {text}" for name, text in words.items() if total[name]]
        if missing:
            unjudged = sum(judged.reward is None for judged in results)
            self.log(f"judge: of {asked} requests {', '.join(missing)}; {unjudged} completions stay unjudged")


def judge_counts(details: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sums of the judge's counts over verdicts' details, as ``judge_asked`` …; empty without a judge."""
    if not any(f"{FOLDER}/asked" in one for one in details):
        return {}
    return {f"judge_{name}": sum(one.get(f"{FOLDER}/{name}", 0.0) for one in details) for name in COUNTS}


def judge_details(judged: Judged) -> dict[str, float]:
    """The counts of one completion as details of its verdict."""
    return {f"{FOLDER}/{name}": float(judged.counts[name]) for name in COUNTS}
