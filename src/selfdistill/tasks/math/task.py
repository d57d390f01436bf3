r"""Mathematics from rows of data: a question, a final answer, and optionally a worked solution.

Columns are mapped to fields by name, dotted path or ``$`` template (see ``tasks/data.py``), so any schema can be read.
The files in ``tasks/presets/`` map those of GSM8K, MATH, AIME, AMC, DAPO and OpenThoughts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from selfdistill.config.tasks import MathConfig
from selfdistill.contexts.thinking import after_thinking
from selfdistill.errors import ConfigError, DataError
from selfdistill.tasks.data import MemoryRows, Row
from selfdistill.tasks.math.answers import boxed_answer, final_answer, marked_answer, stated_answer, tagged_answer
from selfdistill.tasks.math.checker import AnswerChecker
from selfdistill.tasks.math.forms import canonical
from selfdistill.tasks.rows import RowTask, example_id, question_and_fields, system_messages
from selfdistill.types import Example, Message, Verdict

_LONGEST_ANSWER = 300
_PROSE = frozenset(
    "is are was were has have had be been so then therefore thus hence we she he they it there since because find get "
    "gets gives make makes need needs must can will would sold bought take takes total".split()
)


class MathTask(RowTask):
    r"""Problems with a final answer, verified by symbolic equality.

    The answer of a row is the last ``\boxed{…}`` or ``#### …`` line of its text, else the whole text. If
    ``answer_pattern`` is given, the answer is group 1 of its last match. Without ``answer`` nothing is verified
    (``has_verifier`` is False) and a reward function is required. Unless ``boxed_only`` is set, ``#### 72`` and "the
    answer is 72" count like a box.

    Args:
        config: the task's table.
        rows: rows in memory; see :class:`~selfdistill.tasks.rows.RowTask`.

    Raises:
        DataError: a file or a row that cannot be used, with its line number.
        ConfigError: a malformed pattern.
    """

    name = "math"

    def __init__(self, config: MathConfig, rows: Mapping[str, MemoryRows] | None = None) -> None:
        self.config = config
        named = {"prompt": config.prompt, "answer": config.answer, "solution": config.solution}
        self._mapping = {**{name: source for name, source in named.items() if source is not None}, **config.fields}
        self.has_verifier = config.answer is not None
        self._answer_pattern = _compile("answer_pattern", config.answer_pattern)
        self._solution_remove = _compile("solution_remove", config.solution_remove)
        self._checker = AnswerChecker(timeout=config.timeout)
        super().__init__(config, rows)

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        r"""Reward 1 for an answer equal to the row's, else 0.

        The answer is the last ``\boxed{…}`` after the thinking, else the one in a ``####`` line or after "the answer
        is". If the token limit cut off the completion, only a closed box counts: "the answer is 1" may be a cut 12.
        """
        find_answer = boxed_answer if self.config.boxed_only else final_answer
        given = find_answer(after_thinking(text), finished=finished)
        if not self.has_verifier:
            return Verdict(reward=None, answer=None if given is None else canonical(given))
        if given is None:
            missing = "no answer in \\boxed{} was found" if finished else "the completion was cut off before an answer"
            return Verdict(reward=0.0, feedback=missing, details={"no_answer": 1.0})
        comparison = self._checker.compare(example.fields["answer"], given)
        if comparison.unchecked:
            seconds = f"{self._checker.timeout:g}"
            feedback = f"the final answer {given[:100]} could not be checked within {seconds} s"
            return Verdict(reward=0.0, answer=comparison.canonical, feedback=feedback, details={"unchecked": 1.0})
        if comparison.equal:
            return Verdict(reward=1.0, answer=comparison.canonical)
        return Verdict(
            reward=0.0,
            answer=comparison.canonical,
            feedback=f"the final answer {given[:100]} is wrong" if self.config.reveal_incorrect else None,
        )

    def reference(self, example: Example) -> str:
        r"""The answer in ``\boxed{}``."""
        return f"\\boxed{{{example.fields['answer']}}}"

    def close(self) -> None:
        """End the checker's process; it also ends with this object."""
        self._checker.close()

    def example_of(self, row: Row) -> tuple[str, Example]:
        """The row's question, and the example that asks it with the suffix."""
        question, fields = question_and_fields(row, self._mapping)
        if self.has_verifier:
            fields["answer"] = self._gold(row, fields.get("answer", ""))
        if self._solution_remove is not None and "solution" in fields:
            fields["solution"] = self._solution_remove.sub("", fields["solution"])
        prompt = (*system_messages(row, self.config.system), Message("user", question + self.config.suffix))
        return question, Example(example_id(row), prompt, fields, row.values)

    def _gold(self, row: Row, text: str) -> str:
        if self._answer_pattern is not None:
            matches = list(self._answer_pattern.finditer(text))
            if not matches:
                raise DataError(f"{row.location}: no answer matches {self._answer_pattern.pattern!r}")
            gold = (matches[-1].group(1) if self._answer_pattern.groups else matches[-1].group()) or ""
        else:
            gold = boxed_answer(text) or marked_answer(text) or tagged_answer(text) or text
            if gold is text and _is_prose(text):
                gold = stated_answer(text) or text
        gold = gold.strip()
        if not canonical(gold):
            raise DataError(f"{row.location}: the answer is empty")
        if len(gold) > _LONGEST_ANSWER or "\n" in gold or (self._answer_pattern is None and _is_prose(gold)):
            marks = "no \\boxed{} and no '####' line"
            raise DataError(
                f"{row.location}: the answer is a long text with {marks}; give an answer_pattern that finds it"
            )
        return gold


def _is_prose(text: str) -> bool:
    """Whether a text is prose about an answer: at least five words, a verb or "so", and a number."""
    words = [word.lower() for word in re.findall(r"(?<![\\a-zA-Z])[a-zA-Z']+", text)]
    long = len([word for word in words if len(word) > 1])
    return long >= 5 and bool(_PROSE & set(words)) and re.search("[0-9=]", text) is not None


def _compile(name: str, pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ConfigError(f"{name} {pattern!r} is not a regular expression: {error}") from error
