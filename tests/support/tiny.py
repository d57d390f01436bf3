"""A random model of a few thousand weights with a tokenizer of its own, as real directories on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from selfdistill.config.tasks import CountdownConfig
from selfdistill.models.policy import Policy
from selfdistill.tasks.countdown.task import CountdownTask

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|> ' + m.content + ' <|end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> <think> ' }}{% endif %}"
)
SPECIAL = ["<pad>", "<unk>", "<|end|>", "<|user|>", "<|system|>", "<|assistant|>", "<think>", "</think>"]
WORDS = (
    "answer try wait maybe hmm perhaps let me yes not use the numbers to make a correct solution is now solve problem "
    "yourself another attempt was : . , ( ) + - × ÷ = below wrong feedback on an earlier reaches"
).split()
STOP = 2
"""Id of ``<|end|>``."""


def tiny_tokenizer(more: int = 0) -> PreTrainedTokenizerFast:
    """Whole words and the numbers up to 40, and ``more`` words that nobody writes."""
    entries = dict.fromkeys([*SPECIAL, *WORDS, *(str(n) for n in range(41)), *(f"word{n}" for n in range(more))])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(entries)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def tiny_settings(**changes: Any) -> dict[str, Any]:
    """Two layers of width 32, in the words that most configs share; some vocabulary rows are padding."""
    settings: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "eos_token_id": STOP,
        "bos_token_id": None,
        "pad_token_id": 0,
    }
    return {**settings, **changes}


def tiny_config(**changes: Any) -> Qwen3Config:
    """The Qwen3 of :func:`tiny_settings`."""
    return Qwen3Config(**tiny_settings(**changes))


def save_tiny_model(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a random Qwen3 and return its directory."""
    torch.manual_seed(seed)
    return save_model(folder, Qwen3ForCausalLM(tiny_config(**changes)))


def save_brief_model(folder: Path, *, positions: int) -> Path:
    """Write a random model of one layer whose turns end soon: every second id is one that ends a turn."""
    save_tiny_model(folder, num_hidden_layers=1, max_position_embeddings=positions)
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["eos_token_id"] = [STOP, *range(9, 90, 2)]
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


def save_model(folder: Path, model: Any) -> Path:
    """Write any model beside the tiny tokenizer and return the directory."""
    model.generation_config.eos_token_id = STOP
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def keep_float64(policy: Policy) -> Policy:
    """Let a float64 model's norms compute in float64: the library's own round every activation to float32."""
    for parent in list(policy.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm") and not isinstance(child, nn.RMSNorm):
                old: Any = child
                norm = nn.RMSNorm(old.weight.shape, eps=old.variance_epsilon, dtype=old.weight.dtype)
                norm.weight = old.weight
                setattr(parent, name, norm)
    return policy


def tiny_task() -> CountdownTask:
    """A few easy problems."""
    return CountdownTask(CountdownConfig(difficulty="easy", train=8, validation=4, test=4))
