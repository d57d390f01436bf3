r"""Multiple choice from rows of data: a question, options, and the right option.

The options are lines ``A: …`` of the prompt (SciKnowEval), or separate columns (GPQA) that are appended to the
question. They may be shuffled once or in every epoch; the answer's letter changes with them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from selfdistill.config.tasks import AnswerIs, ChoiceConfig
from selfdistill.errors import DataError
from selfdistill.seeds import derive
from selfdistill.tasks.choice.letters import chosen_letter, names_letter
from selfdistill.tasks.choice.options import OptionLines, option_lines, with_options
from selfdistill.tasks.data import MemoryRows, Row, lookup, map_row
from selfdistill.tasks.rows import RowTask, example_id, question_and_fields, system_messages
from selfdistill.types import Example, Message, Verdict

# Such an option refers to others by position, so it must not move.
_REFERS = re.compile(
    r"\b(?:all|none|both|any|neither|either) of (?:the|these|those)\b|\b(?:above|below)\b"
    r"|\b[A-H] (?:and|or|nor|&) [A-H]\b"
    r"|\b(?:all|none) (?:are|is|options|choices)\b",
    re.IGNORECASE,
)


_KINDS: Mapping[AnswerIs, str] = {
    "index0": "number from 0",
    "index1": "number from 1",
    "letter": "letter",
    "text": "text",
}


@dataclass(frozen=True, slots=True)
class _Problem:
    """A row's question with options in the row's order; ``right`` is the index of the right option, from 0."""

    question: str
    options: tuple[str, ...]
    right: int
    lines: OptionLines | None
    fields: Mapping[str, str]
    system: tuple[Message, ...]


class ChoiceTask(RowTask):
    r"""Questions with options, verified by the letter.

    A solution that names a letter is left out when options are shuffled, because its letter would be wrong. Options
    that refer to each other or span several lines are not shuffled. Held-out problems keep the first epoch's order.

    Args:
        config: the task's table.
        rows: rows in memory; see :class:`~selfdistill.tasks.rows.RowTask`.
        seed: seed of the shuffling.

    Raises:
        DataError: a source or a row that cannot be used, with its line number.
    """

    name = "choice"

    def __init__(self, config: ChoiceConfig, rows: Mapping[str, MemoryRows] | None = None, *, seed: int = 0) -> None:
        self.config = config
        self._mapping = {"prompt": config.prompt, "answer": config.answer, **config.fields}
        if config.solution is not None:
            self._mapping["solution"] = config.solution
        self._seed = seed
        super().__init__(config, rows)

    def example_of(self, row: Row) -> tuple[str, Example]:
        """The row's question, and the example with its options in the first epoch's order."""
        question, fields = question_and_fields(row, self._mapping)
        lines = option_lines(question) if self.config.choices is None else None
        texts = lines.texts if lines else self._texts(row)
        try:
            right = _option_index(fields.pop("answer", ""), texts, self.config.answer_is)
        except ValueError as error:
            raise DataError(f"{row.location}: {error}") from error
        problem = _Problem(question, texts, right, lines, fields, system_messages(row, self.config.system))
        example = Example(example_id(row), columns=row.values, prompt=())
        fixed = (lines is not None and not lines.movable) or any(_REFERS.search(text) for text in texts)
        if self.config.shuffle == "never" or fixed:
            return question, self._in_order(problem, example, tuple(range(len(texts))))

        def in_epoch(epoch: int) -> Example:
            order = list(range(len(texts)))
            random.Random(derive(self._seed, "options", example.id, epoch)).shuffle(order)
            return self._in_order(problem, example, tuple(order))

        first = in_epoch(0)
        return question, replace(first, redraw=in_epoch) if self.config.shuffle == "epoch" else first

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """Reward 1 for the right letter, else 0. Gives feedback if no letter, or no letter of an option, was found."""
        options = example.columns["shown_options"]
        letters = ascii_uppercase[: len(options)]
        chosen = chosen_letter(text, finished=finished, letters=letters)
        if chosen.letter is None:
            missing = "no letter of an option was found" if finished else "the completion was cut off before an answer"
            if chosen.said is not None:
                missing = f"the answer {chosen.said[:100]!r} is not the letter of an option"
            return Verdict(0.0, feedback=missing, details={"no_answer": 1.0})
        if chosen.letter not in letters:
            feedback = f"the answer {chosen.letter} is not among the options {', '.join(letters)}"
            return Verdict(0.0, answer=chosen.letter, feedback=feedback)
        # Six of 800 published rows have the same option twice. Both letters are then right.
        if options[letters.index(chosen.letter)] == example.fields["option"]:
            return Verdict(1.0, answer=chosen.letter)
        return Verdict(
            0.0,
            answer=chosen.letter,
            feedback=f"the answer {chosen.letter} is wrong" if self.config.reveal_incorrect else None,
        )

    def reference(self, example: Example) -> str:
        """The tagged letter."""
        return f"<answer>{example.fields['answer']}</answer>"

    def _texts(self, row: Row) -> tuple[str, ...]:
        if self.config.choices is None:
            raise DataError(f"{row.location}: the prompt has no lines 'A: …', 'B: …'; name the columns of the options")
        if isinstance(self.config.choices, str):
            listed = lookup(row, "choices", self.config.choices)
            if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
                raise DataError(
                    f"{row.location}: {self.config.choices!r} is no list of texts, but the options need one"
                )
            texts = tuple(listed)
        else:
            named = {f"choices.{n}": source for n, source in enumerate(self.config.choices)}
            texts = tuple(map_row(row, named).values())
        if not 2 <= len(texts) <= len(ascii_uppercase):
            raise DataError(
                f"{row.location}: a question needs 2 to {len(ascii_uppercase)} options, this has {len(texts)}"
            )
        return tuple(text.strip() for text in texts)

    def _in_order(self, problem: _Problem, example: Example, order: tuple[int, ...]) -> Example:
        """The example with its options in the given order."""
        letter = ascii_uppercase[order.index(problem.right)]
        moved = order != tuple(range(len(order)))
        if problem.lines is not None:
            question = with_options(problem.question, problem.lines, order) if moved else problem.question
        else:
            listed = "\n".join(
                f"{ascii_uppercase[index]}: {problem.options[source]}" for index, source in enumerate(order)
            )
            question = f"{problem.question}\n\n{listed}"
        fields = {**problem.fields, "answer": letter, "option": problem.options[problem.right]}
        if moved and "solution" in fields and names_letter(fields["solution"]):
            del fields["solution"]
        options = [problem.options[source] for source in order]
        columns: dict[str, Any] = {**example.columns, "shown_options": options, "shown_letter": letter}
        return replace(
            example,
            prompt=(*problem.system, Message("user", question + self.config.suffix)),
            fields=fields,
            columns=columns,
        )


def _option_index(answer: str, options: Sequence[str], answer_is: AnswerIs | None) -> int:
    """The index of the option that an answer means: by its letter (``B``, ``(B)``), a number, or its text.

    Raises:
        ValueError: the answer matches no option, or several and ``answer_is`` is None.
    """
    answer = answer.strip()
    letter, number = re.fullmatch(r"\(?([A-Za-z])[).:]?", answer), re.fullmatch(r"[0-9]{1,3}", answer)
    candidates: dict[AnswerIs, int] = {}
    if letter:
        candidates["letter"] = ascii_uppercase.find(letter.group(1).upper())
    if number:
        candidates |= {"index0": int(answer), "index1": int(answer) - 1}
    if answer in options:
        candidates["text"] = options.index(answer)
    candidates = {kind: index for kind, index in candidates.items() if 0 <= index < len(options)}
    if answer_is is not None:
        if answer_is not in candidates:
            raise ValueError(
                f"the answer {answer[:80]!r} is no {_KINDS[answer_is]} of its {len(options)} options; "
                f'the config says task.answer_is = "{answer_is}"'
            )
        return candidates[answer_is]
    if not candidates:
        raise ValueError(f"the answer {answer[:80]!r} is neither a letter nor a text of its options")
    if len(set(candidates.values())) > 1:
        readings = ", ".join(f'"{kind}" ({ascii_uppercase[index]})' for kind, index in candidates.items())
        raise ValueError(f"the answer {answer!r} may mean different options: write task.answer_is as one of {readings}")
    return next(iter(candidates.values()))
