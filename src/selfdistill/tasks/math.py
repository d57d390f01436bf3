r"""Mathematics from rows of data: a question, a final answer, perhaps a worked solution.

Any schema is read by naming its columns (a column, a dotted path or a ``$`` template, see ``selfdistill.data``):

====================  ==================  ===================================  =============
data                  ``prompt``          ``answer``                           ``solution``
====================  ==================  ===================================  =============
GSM8K                 ``question``        ``answer`` (its ``#### 72`` line)    ``answer``
MATH                  ``problem``         ``solution`` (its ``\boxed{…}``)     ``solution``
AIME, AMC             ``problem``         ``answer``                           ``solution``
====================  ==================  ===================================  =============
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from selfdistill.data import SPLITS, Duplicates, Row, count_duplicates, map_row, read_rows, split_prompts
from selfdistill.errors import ConfigError, DataError
from selfdistill.tasks.math_answers import (
    AnswerChecker,
    after_thinking,
    boxed_answer,
    canonical,
    marked_answer,
    stated_answer,
)
from selfdistill.types import Example, Message, Verdict

SUFFIX = "\nReason step by step and put the final answer in \\boxed{}."

_LONGEST_ANSWER = 300


class MathTask:
    r"""Problems with a final answer, verified by symbolic equality.

    Args:
        path: rows to train on, JSONL or Parquet; also the source of every split that has no file of its own.
        prompt: source of the question.
        answer: source of the final answer: the last ``\boxed{…}`` or ``#### …`` line of its text, else all of it.
            None for rows without answers: nothing is judged (``judges`` is False), and a reward function must.
        solution: source of a worked solution, shown in hindsight as ``$solution``.
        fields: further fields for context templates, name → source.
        system: system message, a ``$`` template over the row's columns (``"$system"`` is the column of that name).
        suffix: added to every question.
        answer_pattern: regular expression that finds the answer in its source instead (group 1 of the last match).
        solution_remove: regular expression of what solutions are shown without, e.g. ``<<[^>]*>>`` for GSM8K's sums.
        validation_path, test_path: files that hold these splits; without them the shares of ``path`` by a stable hash.
        validation_share, test_share: parts of ``path``; of no account for a split that has its own file.
        limit: at most so many examples a split, the first in the file's order.
        boxed_only: whether a completion must box its answer; else ``#### 72`` and "the answer is 72" count as well.
        tell_wrong: whether feedback names a wrong answer; else a wrong answer has no feedback.
        timeout: seconds for one symbolic check.

    Raises:
        DataError: a file or a row that cannot be used, with its line number.
        ConfigError: a malformed pattern.
    """

    name = "math"
    contexts = "default"

    def __init__(
        self,
        path: str | Path,
        *,
        prompt: str = "question",
        answer: str | None = "answer",
        solution: str | None = None,
        fields: Mapping[str, str] | None = None,
        system: str | None = None,
        suffix: str = SUFFIX,
        answer_pattern: str | None = None,
        solution_remove: str | None = None,
        validation_path: str | Path | None = None,
        test_path: str | Path | None = None,
        validation_share: float = 0.1,
        test_share: float = 0.1,
        limit: int | None = None,
        boxed_only: bool = False,
        tell_wrong: bool = False,
        timeout: float = 5.0,
    ) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"limit must be at least 1, got {limit}")
        named = {"prompt": prompt, "answer": answer, "solution": solution}
        self._mapping = {**{name: source for name, source in named.items() if source is not None}, **(fields or {})}
        self.judges = answer is not None
        self._system = system
        self._suffix = suffix
        self._answer_pattern = None if answer_pattern is None else _compile("answer_pattern", answer_pattern)
        self._solution_remove = None if solution_remove is None else _compile("solution_remove", solution_remove)
        self._boxed_only = boxed_only
        self._tell_wrong = tell_wrong
        self._checker = AnswerChecker(timeout=timeout)
        self._path = Path(path)
        files = {"validation": validation_path, "test": test_path}
        shares = {"validation": validation_share, "test": test_share}
        shares = {split: 0.0 if files[split] else share for split, share in shares.items()}
        examples = {
            **self._split(read_rows(path), **shares),
            **{split: [self._example(row) for row in read_rows(file)] for split, file in files.items() if file},
        }
        everything = [self._question(one) for split in SPLITS for one in examples[split]]
        self.duplicates: Duplicates = count_duplicates(everything)
        """How often questions repeat, over all files: a question of two files would be trained on and tested with."""
        self._examples = {split: tuple(chosen[:limit]) for split, chosen in examples.items()}

    def examples(self, split: str) -> Sequence[Example]:
        """Examples of ``"train"``, ``"validation"`` or ``"test"``, in the order of their file.

        Raises:
            DataError: the split is empty.
        """
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        if not self._examples[split]:
            raise DataError(f"no row of {self._path} is in the {split} split: give it a file or a larger share")
        return self._examples[split]

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        r"""Reward 1 for an answer equal to the row's, else 0.

        The answer is the last ``\boxed{…}`` behind the thinking, else what a ``####`` line or "the answer is" states.
        Of a completion that the token limit cut, only a closed box is believed: "the answer is 1" may have meant 12.
        """
        given = self._find(text, finished=finished)
        if not self.judges:
            return Verdict(reward=None, answer=None if given is None else canonical(given))
        if given is None:
            missing = "no answer in \\boxed{} was found" if finished else "the completion was cut off before an answer"
            return Verdict(reward=0.0, feedback=missing, details={"no_answer": 1.0})
        found = self._checker.compare(example.fields["answer"], given)
        if found.unchecked:
            seconds = f"{self._checker.timeout:g}"
            feedback = f"the final answer {given[:100]} could not be checked within {seconds} s"
            return Verdict(reward=0.0, answer=found.canonical, feedback=feedback, details={"unchecked": 1.0})
        if found.equal:
            return Verdict(reward=1.0, answer=found.canonical)
        return Verdict(
            reward=0.0,
            answer=found.canonical,
            feedback=f"the final answer {given[:100]} is wrong" if self._tell_wrong else None,
        )

    def close(self) -> None:
        """End the checker's process; it also ends with this object."""
        self._checker.close()

    def _find(self, text: str, *, finished: bool) -> str | None:
        said = after_thinking(text)
        boxed = boxed_answer(said)
        if boxed is not None or self._boxed_only or not finished:
            return boxed
        stated = stated_answer(said)
        return None if stated is None or len(stated) > _LONGEST_ANSWER else stated

    def _split(self, rows: Sequence[Row], *, validation: float, test: float) -> dict[str, list[Example]]:
        examples = [self._example(row) for row in rows]
        split_of = split_prompts((self._question(one) for one in examples), validation=validation, test=test)
        return {split: [one for one in examples if split_of[self._question(one)] == split] for split in SPLITS}

    def _example(self, row: Row) -> Example:
        fields = map_row(row, self._mapping)
        question = fields.pop("prompt")
        if not question.strip():
            raise DataError(f"{row.place}: the prompt is empty")
        if self.judges:
            fields["answer"] = self._gold(row, fields["answer"])
        if self._solution_remove is not None and "solution" in fields:
            fields["solution"] = self._solution_remove.sub("", fields["solution"])
        system = () if self._system is None else (Message("system", _system_text(row, self._system)),)
        return Example(
            id=f"{Path(row.file).stem}:{row.line}",
            prompt=(*system, Message("user", question + self._suffix)),
            fields=fields,
            columns=row.values,
        )

    def _question(self, example: Example) -> str:
        """The row's own question: splits must not move when the suffix changes."""
        text = example.prompt[-1].content
        return text[: len(text) - len(self._suffix)]

    def _gold(self, row: Row, text: str) -> str:
        if self._answer_pattern is not None:
            matches = list(self._answer_pattern.finditer(text))
            if not matches:
                raise DataError(f"{row.place}: no answer matches {self._answer_pattern.pattern!r}")
            gold = (matches[-1].group(1) if self._answer_pattern.groups else matches[-1].group()) or ""
        else:
            gold = boxed_answer(text) or marked_answer(text) or text
        gold = gold.strip()
        if not canonical(gold):
            raise DataError(f"{row.place}: the answer is empty")
        if len(gold) > _LONGEST_ANSWER or "\n" in gold:
            marks = "no \\boxed{} and no '####' line"
            raise DataError(
                f"{row.place}: the answer is a long text with {marks}; give an answer_pattern that finds it"
            )
        return gold


def _system_text(row: Row, system: str) -> str:
    return map_row(row, {"system": system})["system"] if "$" in system else system


def _compile(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ConfigError(f"{name} {pattern!r} is not a regular expression: {error}") from error
