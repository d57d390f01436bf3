"""Split a completion into thinking and answer, by the thinking marks of all known models."""

from __future__ import annotations

from typing import NamedTuple


class Marks(NamedTuple):
    """The mark that starts a model family's thinking, and the marks that may end it."""

    begin: str
    ends: tuple[str, ...]


MARKS = (
    Marks("<think>", ("</think>",)),  # Qwen3, DeepSeek, GLM, OLMo-3, SmolLM3, Hunyuan and most others
    Marks("[THINK]", ("[/THINK]",)),  # Magistral, Ministral
    Marks("<seed:think>", ("</seed:think>",)),  # Seed-OSS
    Marks("◁think▷", ("◁/think▷",)),  # Kimi-VL
    Marks("<thought>", ("</thought>",)),  # EXAONE Deep
    Marks("<thinking>", ("</thinking>",)),  # dots, and prompts that ask for it
    Marks("<reasoning>", ("</reasoning>",)),  # prompts that ask for it
    Marks("<|begin_of_thought|>", ("<|end_of_thought|>",)),  # Sky-T1 and others trained on such traces
    Marks("<|START_THINKING|>", ("<|END_THINKING|>",)),  # Command A
    Marks("<|inner_prefix|>", ("<|inner_suffix|>",)),  # Apertus
    Marks("<|channel>thought", ("<channel|>",)),  # Gemma-4
    # gpt-oss: the next message ends the analysis. The header of a call names its tool, so it is part of the answer.
    Marks("<|channel|>analysis<|message|>", ("<|channel|>final<|message|>", "<|end|><|start|>assistant")),
)
"""The only list of marks: verdicts, contexts and pages all use the functions below."""


def answer_start(text: str) -> int | None:
    """The index after the last end mark; 0 without marks, None if the thinking is unfinished.

    The start mark may be part of the prompt, so an end mark alone also counts.
    """
    start = max(
        (index + len(end) for marks in MARKS for end in marks.ends if (index := text.rfind(end)) >= 0), default=0
    )
    return None if any(marks.begin in text[start:] for marks in MARKS) else start


def after_thinking(text: str) -> str:
    """The text after the thinking; the whole text if it has no marks.

    It is empty if the thinking is unfinished: unfinished thinking is no answer.
    """
    start = answer_start(text)
    return "" if start is None else text[start:]


def thought_of(text: str) -> str:
    """The thinking in a text without its marks; empty if the text has none."""
    start = answer_start(text)
    thought = (text if start is None else text[:start]).strip()
    for begin, ends in MARKS:
        for end in ends:
            thought = thought.removesuffix(end)
        thought = thought.removeprefix(begin)
    return thought.strip()


def begins_thinking(text: str) -> bool:
    """Whether a text contains a mark that starts thinking."""
    return any(marks.begin in text for marks in MARKS)


def ends_thinking(text: str) -> bool:
    """Whether a text contains a mark that ends thinking."""
    return any(end in text for marks in MARKS for end in marks.ends)


def is_left_thinking(prompt: str) -> bool:
    """Whether a prompt ends with a start mark, so that the completion starts inside the thinking."""
    return prompt.rstrip().endswith(tuple(marks.begin for marks in MARKS))
