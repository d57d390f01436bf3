"""A language model as the judge of completions, behind any endpoint that speaks OpenAI's ``/chat/completions``.

Each completion gets a number; or it is compared with others of its group, and its reward is the share of comparisons
that it wins, where a tie counts one half. The completion is inserted into the request as plain text: a ``$`` in it does
not name a field. Answers are kept on disk, so a resumed run repeats no request. A failed request, an unreadable answer
and a request beyond the budget leave the completion unjudged; all three are counted.
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
from selfdistill.files.text import counted, well_formed
from selfdistill.tasks.endpoint import Endpoint, Refused
from selfdistill.types import Example

Asked: TypeAlias = tuple[Example, str, bool]
"""A completion to judge: its example, its text, and whether it is finished."""

COUNTS = ("asked", "cached", "failed", "unreadable", "over_budget")
"""Counts of requests: sent, answered from the cache, without an answer, with an unreadable answer, not sent."""
FOLDER = "judge"
"""Folder of a run that holds the answers and the ledger of its judge."""


@dataclass(slots=True)
class Judged:
    """A completion's reward, and the counts of its requests by the names of :data:`COUNTS`."""

    reward: float | None = None
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Question:
    """One request: the index of the completion that it is counted for, its text, and the pair that it compares."""

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
            ConfigError: the environment variable of the key is not set, or cannot be sent in a header.
        """
        self.config = config
        self.concurrency = concurrency
        self.log: Callable[[str], None] = lambda message: None
        self._endpoint = Endpoint(config, concurrency=concurrency)
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
        """Send one request, so that an endpoint that does not answer is noticed before training.

        Raises:
            UserError: the endpoint does not answer after all retries.
        """
        self._endpoint.probe()
        text = reference_text(example) or ""
        try:
            self._endpoint.post(self._body(self._text(example, completion=text, first=text, second=text)))
        except Refused as refused:
            raise UserError(
                f"judge {self.config.url}: {refused}: start the endpoint, or correct reward.judge"
            ) from refused

    def judge(self, batch: Sequence[Asked]) -> list[Judged]:
        """The reward of every completion from 0 to 1, or None if it could not be judged. Groups must not be split.

        Raises:
            ConfigError: the template names a column that an example lacks.
        """
        questions = list(self._pointwise(batch) if self.config.compare == "none" else self._pairs(batch))
        answers = self._answers([self._body(question.text) for question in questions])
        results = [Judged() for _ in batch]
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
        # Equal completions are a tie, without a request.
        for n, other in self._ties(batch):
            points.setdefault(n, []).append(0.5)
            points.setdefault(other, []).append(0.5)
        for n, won in points.items():
            results[n].reward = sum(won) / len(won)
        self._log(results)
        return results

    def _pointwise(self, batch: Sequence[Asked]) -> Iterator[_Question]:
        for n, (example, text, _) in enumerate(batch):
            yield _Question(n, self._text(example, completion=text))

    def _pairs(self, batch: Sequence[Asked]) -> Iterator[_Question]:
        """The comparisons of every group. A completion equal to the reference is compared with it too."""
        if self.config.compare == "reference":
            for n, (example, text, _) in enumerate(batch):
                reference = reference_text(example)
                if reference is None:
                    raise ConfigError(
                        f"reward.judge.compare = 'reference', but example {example.id} has no response and no solution"
                    )
                yield _Question(n, self._text(example, first=text, second=reference), first=n)
                if self.config.both_orders:
                    yield _Question(n, self._text(example, first=reference, second=text), second=n)
            return
        for i, j in self._compared(batch):
            if batch[i][1] != batch[j][1]:
                for a, b in [(i, j), (j, i)][: 1 + self.config.both_orders]:
                    yield _Question(j, self._text(batch[i][0], first=batch[a][1], second=batch[b][1]), a, b)

    def _ties(self, batch: Sequence[Asked]) -> list[tuple[int, int]]:
        if self.config.compare in ("none", "reference"):
            return []
        same = [(i, j) for i, j in self._compared(batch) if batch[i][1] == batch[j][1]]
        return same * (1 + self.config.both_orders)

    def _compared(self, batch: Sequence[Asked]) -> Iterator[tuple[int, int]]:
        """The pairs i < j of completions that are compared."""
        for _, group in groupby(range(len(batch)), key=lambda n: batch[n][0].id):
            members = list(group)
            yield from (
                pair for pair in combinations(members, 2) if self.config.compare == "all" or pair[0] == members[0]
            )

    def _text(self, example: Example, **texts: str) -> str:
        """The question. The values are substituted once, so a ``$`` in a value stays as it is."""
        turns = [message for message in example.prompt if message.role != "tools"]
        prompt = turns[0].content if len(turns) == 1 else "\n\n".join(f"{m.role}: {m.content}" for m in turns)
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
        """The reward in an answer: for a pair that of the first completion. None if the answer has none."""
        matches = [match.group(1) for match in self._pattern.finditer(answer) if match.group(1) is not None]
        if not matches:
            return None
        if self.config.compare != "none":
            return {"A": 1.0, "B": 0.0}.get(matches[-1].strip().upper(), 0.5)
        try:
            share = (float(matches[-1]) - self.config.lowest) / (self.config.highest - self.config.lowest)
        except ValueError:
            return None
        return share if 0 <= share <= 1 else None

    def _answers(self, bodies: Sequence[str]) -> list[_Answer]:
        """The answer to every body. Cached answers are reused, and equal bodies are sent once."""
        keys = [hashlib.sha256(f"{self.config.url}\n{body}".encode()).hexdigest() for body in bodies]
        answer_of: dict[str, _Answer] = {}
        sending: dict[str, str] = {}
        # In order, so that the requests beyond the budget do not depend on which answer comes first.
        for key, body in zip(keys, bodies, strict=True):
            if key in answer_of or key in sending:
                continue
            cached = self._cached_answer(key)
            if cached is not None:
                answer_of[key] = _Answer(cached, "cached")
            elif self._reserve():
                sending[key] = body
            else:
                answer_of[key] = _Answer(None, "over_budget")
        if sending:
            self._down.clear()
            with ThreadPoolExecutor(self.concurrency) as pool:
                answer_of.update(zip(sending, pool.map(self._ask, sending, sending.values()), strict=True))
        answers, fresh = [], set(sending)
        for key in keys:
            answer = answer_of[key]
            again = answer.how == "asked" and key not in fresh
            answers.append(_Answer(answer.text, "cached") if again else answer)
            fresh.discard(key)
        return answers

    def _ask(self, key: str, body: str) -> _Answer:
        """Send one request. After the endpoint failed all retries once, other requests of the batch are tried once."""
        try:
            text = self._endpoint.post(body, patient=not self._down.is_set())
        except Refused as refused:
            if refused.again and not self._down.is_set():
                self._down.set()
                self.log(f"judge {self.config.url}: {refused}")
            return _Answer(None, "failed")
        self._keep(key, body, text)
        return _Answer(text, "asked")

    def _cached_answer(self, key: str) -> str | None:
        """The cached answer from memory or disk, or None."""
        if self._cache is None or key in self._kept:
            return self._kept.get(key)
        try:
            answer = json.loads(self._file(self._cache, key).read_text(encoding="utf-8"))["answer"]
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return None  # missing or damaged: the request is sent again
        return answer if isinstance(answer, str) else None

    def _keep(self, key: str, body: str, text: str) -> None:
        if self._cache is None:
            self._kept[key] = text
            return
        path = self._file(self._cache, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The temporary name contains the process id, because ranks and runs may share the folder.
        temporary = path.with_name(f"{path.stem}.{os.getpid()}")
        write_json(temporary, {"request": json.loads(body), "answer": text})
        temporary.replace(path)

    @staticmethod
    def _file(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.json"

    def _reserve(self) -> bool:
        """Count one request in the ledger. Returns False if the budget is spent.

        The ledger is a file with one byte per request, so ranks and restarts of a run share it without a lock.
        """
        budget = self.config.budget
        if self._ledger is None:
            available = budget is None or self._sent < budget
            self._sent += available
            return available
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
        """Log the number of missing answers of a batch."""
        total: Counter[str] = Counter()
        for judged in results:
            total.update(judged.counts)
        requests = sum(count for name, count in total.items() if name != "unreadable")
        words = {
            "failed": "without an answer",
            "unreadable": "without anything that reward.judge.pattern matches on the scale",
            "over_budget": f"not sent, because the budget of {self.config.budget} is spent",
        }
        missing = [f"{total[name]} {text}" for name, text in words.items() if total[name]]
        if missing:
            unjudged = sum(judged.reward is None for judged in results)
            stay = counted(unjudged, "completion stays", "completions stay")
            self.log(f"judge: of {counted(requests, 'request')} {', '.join(missing)}; {stay} unjudged")


def judge_counts(details: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sums of the judge's counts over verdicts' details, as ``judge_asked`` …; empty without a judge."""
    if not any(f"{FOLDER}/asked" in detail for detail in details):
        return {}
    return {f"judge_{name}": sum(detail.get(f"{FOLDER}/{name}", 0.0) for detail in details) for name in COUNTS}


def judge_details(judged: Judged) -> dict[str, float]:
    """The counts of one completion as details of its verdict."""
    return {f"{FOLDER}/{name}": float(judged.counts[name]) for name in COUNTS}
