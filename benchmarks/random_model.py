"""Qwen3 models with random weights, by their shapes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from selfdistill.contexts.chat import Chat
from selfdistill.models.check import allow_packing
from selfdistill.models.policy import Policy, load_policy
from selfdistill.models.sizing import Shape


def random_model(shape: Shape, **others: Any) -> Qwen3ForCausalLM:
    """A model of a shape; ``others`` are further entries of its config."""
    config = Qwen3Config(
        vocab_size=shape.V,
        hidden_size=shape.D,
        intermediate_size=shape.F,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.H,
        num_key_value_heads=shape.K,
        head_dim=shape.E,
        tie_word_embeddings=shape.tied,
        **others,
    )
    return Qwen3ForCausalLM(config)


def random_policy(shape: Shape, device: str, dtype: torch.dtype, window: int) -> tuple[Policy, Chat]:
    """Random weights behind the tokenizer of the shipped model, whose ids are the first of the vocabulary."""
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = random_model(shape, max_position_embeddings=window)
    _, shipped = load_policy("countdown-base", dtype=torch.float32, device=torch.device("cpu"))
    policy = Policy(model.to(dtype), vocab_size=shape.V).eval()
    with torch.no_grad():
        allow_packing(policy)
    return policy, Chat(shipped.tokenizer, stop_ids=shipped.stop_ids, window=window, name="random")
