"""The control tokens of known model families, to find them in rows before any tokenizer is known."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

MARKS: tuple[str, ...] = (
    # ChatML: Qwen, SmolLM3, LFM2, Yi, Hermes; Phi-4
    *("<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|endoftext|>", "<|startoftext|>"),
    # Llama-3 and Llama-4
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    *("<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>", "<|python_tag|>", "<|python_start|>"),
    "<|python_end|>",
    # Llama-2 and Mistral
    *("<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    # Gemma, Gemma-4
    *("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<|turn>", "<turn|>"),
    # gpt-oss
    *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>"),
    # Phi-3, GLM-4, OLMo, Zephyr; ChatGLM
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "[gMASK]", "<sop>"),
    # DeepSeek, Hunyuan
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>"),
    *("<｜hy_User｜>", "<｜hy_Assistant｜>"),
    # Command
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
    # Granite, EXAONE, Kimi, Seed-OSS, MiniMax
    *("<|start_of_role|>", "<|end_of_role|>", "[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]"),
    *("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<seed:bos>", "<seed:eos>"),
    *("]~b]", "[e~["),
)
"""The only list of such marks. A tokenizer at hand names its own; see :func:`special_tokens`."""


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """A tokenizer's special tokens by id. Some added tokens are special without being among the named ones."""
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return named | {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds each of the tokens; nothing if there are none."""
    # Longest first, so that a token is matched before its prefixes.
    return re.compile("|".join(map(re.escape, sorted(set(tokens), key=len, reverse=True))) or r"(?!)")
