"""Where a completion's thinking ends and its answer begins, in the marks of all models that are known."""

from __future__ import annotations

from typing import NamedTuple


class Marks(NamedTuple):
    """What a family writes before its thinking, and what it may write behind it."""

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
    # gpt-oss: the next message ends the analysis. The header of a call names its tool, so it belongs to what is said.
    Marks("<|channel|>analysis<|message|>", ("<|channel|>final<|message|>", "<|end|><|start|>assistant")),
)
"""The one place for them: verdicts, contexts and pages all ask the functions below."""


def answer_start(text: str) -> int | None:
    """The place behind the last end of a thought, 0 where nothing is marked; None where a thought is unfinished.

    The begin of a thought may stand in the prompt, so that an end alone counts too.
    """
    start = max(
        (place + len(end) for marks in MARKS for end in marks.ends if (place := text.rfind(end)) >= 0), default=0
    )
    return None if any(marks.begin in text[start:] for marks in MARKS) else start


def after_thinking(text: str) -> str:
    """The text behind the last thought, or the whole text where nothing is marked.

    It is empty where a thought was begun and never ended: an unfinished thought is no answer.
    """
    start = answer_start(text)
    return "" if start is None else text[start:]


def begins_thinking(text: str) -> bool:
    """Whether a text holds the begin of a thought."""
    return any(marks.begin in text for marks in MARKS)


def ends_thinking(text: str) -> bool:
    """Whether a text holds the end of a thought."""
    return any(end in text for marks in MARKS for end in marks.ends)


def is_left_thinking(prompt: str) -> bool:
    """Whether a prompt ends with the begin of a thought, so that what follows is inside it."""
    return prompt.rstrip().endswith(tuple(marks.begin for marks in MARKS))
