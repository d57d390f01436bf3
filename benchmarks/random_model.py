"""Qwen3 models with random weights, by their shapes."""

from __future__ import annotations

from typing import Any

from transformers import Qwen3Config, Qwen3ForCausalLM

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
