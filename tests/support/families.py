"""Random replicas of model families: two to four layers of width 32 each, in the words of their own configs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from support.tiny import save_model, tiny_settings

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
GATED = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
SHARED_EXPERT = {"shared_expert_intermediate_size": 24, "decoder_sparse_step": 1}
MAMBA = {"state_size": 8, "conv_kernel": 4, "expand": 2, "time_step_rank": 4}
MAMBA2 = {**MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}
INNER = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}
INNER2 = {**INNER, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_chunk_size": 8}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
MODELS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {}),
    "llama, head of its own": ("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": False}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {"sliding_window": 16}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {"tie_word_embeddings": False}),
    "olmo3": ("Olmo3ForCausalLM", "Olmo3Config", {"sliding_window": 16, "tie_word_embeddings": False}),
    "qwen3 mixture of experts": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**EXPERTS, "decoder_sparse_step": 1}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss, sinks": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    ),
    "qwen3.5": ("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", GATED),
    "qwen3.5 mixture of experts": (
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeTextConfig",
        {**GATED, **EXPERTS, **SHARED_EXPERT},
    ),
    "qwen3-next": ("Qwen3NextForCausalLM", "Qwen3NextConfig", {**GATED, **EXPERTS, **SHARED_EXPERT}),
    "olmo hybrid": ("OlmoHybridForCausalLM", "OlmoHybridConfig", GATED),
    "lfm2": ("Lfm2ForCausalLM", "Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
    "mamba2": ("Mamba2ForCausalLM", "Mamba2Config", MAMBA2),
    "mamba2, time steps with limits": (
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {**MAMBA2, "time_step_limit": (0.2, 0.4)},
    ),
    "nemotron-h, time steps with a limit": (
        "NemotronHForCausalLM",
        "NemotronHConfig",
        {
            "layers_block_type": ["mamba", "attention", "moe"],
            "num_hidden_layers": 3,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "conv_kernel": 4,
            "chunk_size": 8,
            "moe_shared_expert_intermediate_size": 24,
            "time_step_min": 0.2,
            "tie_word_embeddings": False,
            **{name: ROUTED[name] for name in ROUTED if name not in ("n_shared_experts", "first_k_dense_replace")},
        },
    ),
    "zamba2": (
        "Zamba2ForCausalLM",
        "Zamba2Config",
        {
            "layers_block_type": ["mamba", "hybrid"],
            "num_mem_blocks": 1,
            "mamba_ngroups": 2,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "chunk_size": 8,
            "num_key_value_heads": 4,
            "time_step_min": 0.2,
            **INNER,
        },
    ),
    "bamba": ("BambaForCausalLM", "BambaConfig", {"attn_layer_indices": [1], **INNER2}),
    "falcon-h1": ("FalconH1ForCausalLM", "FalconH1Config", {"mamba_d_ssm": 64, "lm_head_multiplier": 1.0, **INNER2}),
    "granite hybrid": (
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        {
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 24,
            "logits_scaling": 1.0,
            **INNER2,
        },
    ),
}
"""Families whose sequences are packed, and whose gradients are compared with the whole model's."""

LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
SAMPLED: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    **MODELS,
    "llama4, chunks and a decoder that is the model": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {"num_local_experts": 4, "intermediate_size_mlp": 48, "attention_chunk_size": 8, "num_hidden_layers": 4},
    ),
    "gemma4, keys of other layers": (
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 6,
            "num_kv_shared_layers": 2,
            "global_head_dim": 8,
            "vocab_size_per_layer_input": 96,
            "hidden_size_per_layer_input": 8,
            "final_logit_softcapping": None,
        },
    ),
    "glm4 mixture of experts": ("Glm4MoeForCausalLM", "Glm4MoeConfig", ROUTED),
    "deepseek v3, latent attention": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {**ROUTED, **LATENT, "head_dim": 4, "num_key_value_heads": 4},
    ),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", {}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {}),
    "mamba": ("MambaForCausalLM", "MambaConfig", MAMBA),
    "falcon mamba": ("FalconMambaForCausalLM", "FalconMambaConfig", MAMBA),
    "jamba": (
        "JambaForCausalLM",
        "JambaConfig",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
            **INNER,
        },
    ),
}
REFUSED: Mapping[str, tuple[str, str, dict[str, Any], str]] = {
    "recurrent gemma, a state of its own": (
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 6},
        "RecurrentGemmaForCausalLM of .* is sampled with other probabilities than it is scored with",
    ),
    "minimax, a cache of its own": (
        "MiniMaxForCausalLM",
        "MiniMaxConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "block_size": 4,
        },
        r"MiniMaxForCausalLM of .* cannot be decoded with a key-value cache \(MiniMax uses cache of its own",
    ),
    "rwkv, a state": (
        "RwkvForCausalLM",
        "RwkvConfig",
        {"context_length": 256, "attention_hidden_size": 32},
        r"RwkvModel.forward takes its cache under none of the names .*state",
    ),
}


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CURRENT: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3 mixture of experts", {}),
    "Qwen3.5": ("qwen3.5", {}),
    "Qwen3.5-MoE": ("qwen3.5 mixture of experts", {}),
    "Qwen3-Next": ("qwen3-next", {}),
    "Llama-3": ("llama, head of its own", {"rope_parameters": LLAMA3_ROPE}),
    "Llama-4": ("llama4, chunks and a decoder that is the model", {}),
    "Gemma-3": ("gemma3", {}),
    "Gemma-4": ("gemma4, keys of other layers", {"final_logit_softcapping": 30.0}),
    "GPT-OSS": ("gpt-oss, sinks", {}),
    "OLMo-3": ("olmo3", {}),
    "SmolLM3": ("smollm3", {}),
    "LFM2": ("lfm2", {}),
    "GLM-4-MoE": ("glm4 mixture of experts", {}),
    "DeepSeek-V3": ("deepseek v3, latent attention", {}),
}
"""The families that people train now, with the settings that their published models have and the others lack."""

EYE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
GRID = {**EYE, "image_size": 28, "patch_size": 14}
DEEP_EYE = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
PLACES = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
SEEING = {"vision_config": DEEP_EYE, "tie_word_embeddings": True, **PLACES}
TOWERS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "Gemma-3": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {"vision_config": {**GRID, "model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4},
    ),
    "Llama-4": (
        "Llama4ForConditionalGeneration",
        "Llama4Config",
        {
            "vision_config": {
                **GRID,
                "vision_output_dim": 16,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
                "pixel_shuffle_ratio": 1.0,
            }
        },
    ),
    "Gemma-4": ("Gemma4ForConditionalGeneration", "Gemma4Config", {"vision_config": None, "audio_config": None}),
    "Qwen3.5": ("Qwen3_5ForConditionalGeneration", "Qwen3_5Config", SEEING),
    "Qwen3.5-MoE": ("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeConfig", SEEING),
}
"""Families whose checkpoints hold a model for images as well, as it is published."""


def save_current(folder: Path, family: str, *, tower: bool = False) -> Path:
    """A random model of one of :data:`CURRENT` in a folder, or of its checkpoint in :data:`TOWERS`."""
    name, changes = CURRENT[family]
    if not tower:
        return saved(folder, name, **changes)
    _, config, own = SAMPLED[name]
    text = getattr(transformers, config)(**tiny_settings(**{**own, **changes})).to_dict()
    kind, config, own = TOWERS[family]
    torch.manual_seed(0)
    return save_model(folder, getattr(transformers, kind)(getattr(transformers, config)(text_config=text, **own)))


def saved(folder: Path, name: str, **changes: Any) -> Path:
    """A random model of a family in a folder."""
    kind, config, own = SAMPLED[name] if name in SAMPLED else REFUSED[name][:3]
    torch.manual_seed(0)
    settings = tiny_settings(**{**own, **changes})
    return save_model(folder, getattr(transformers, kind)(getattr(transformers, config)(**settings)))
