"""Where the families of transformers differ and this library must know: decoder, cache and Mamba-2's time steps."""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.errors import ModelError


def decoder_of(causal_lm: Any) -> Any:
    """The part of a transformers model that gives the last hidden states.

    ``get_decoder`` gives Llama-4 itself, and the head of models that call that ``decoder``.
    """
    head = causal_lm.get_output_embeddings()
    for module in (causal_lm.get_decoder(), causal_lm.base_model, getattr(causal_lm, "model", None)):
        if isinstance(module, nn.Module) and module is not causal_lm and module is not head:
            return module
    raise ModelError(
        f"{type(causal_lm).__name__} has no decoder below its head, which scoring reads hidden states from"
    )


def head_shape(causal_lm: Any) -> tuple[float, float | None]:
    """Scale and soft cap of a model's logits, as far as its config names them: Gemma, Granite, Cohere, Falcon-H1."""
    named = causal_lm.config.get_text_config().to_dict()
    scale = named.get("logit_scale") or named.get("lm_head_multiplier") or 1.0
    cap = named.get("final_logit_softcapping") or named.get("logits_soft_cap")
    return float(scale) / float(named.get("logits_scaling") or 1.0), None if cap is None else float(cap)


CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")
"""Names of the key-value cache in a decoder's forward, newest first (transformers 5.24 renamed it)."""


def cache_argument(decoder: type[nn.Module]) -> str:
    """The name under which a decoder's forward takes the key-value cache, read off its signature.

    Raises:
        ModelError: the forward names none of those that are known. It would swallow another one among its keyword
            arguments and decode every token without its history.
    """
    named = inspect.signature(decoder.forward).parameters
    for name in CACHE_ARGUMENTS:
        if name in named:
            return name
    raise ModelError(
        f"{decoder.__name__}.forward takes its cache under none of the names {', '.join(CACHE_ARGUMENTS)} (its "
        f"arguments are {', '.join(list(named)[1:])}), so nothing can be sampled with it: use another model, or a "
        "release of transformers that this one supports (`selfdistill doctor` names them)"
    )


def fused_outputs(model: nn.Module) -> list[str]:
    """Names of the state-space layers' output projections.

    Mamba's kernels are handed their weights and never call them, so that an adapter there would be passed by.
    """
    names = []
    for name, mixer in model.named_modules():
        if {"A_log", "D"} <= {own for own, _ in mixer.named_parameters(recurse=False)}:
            names.append(f"{name}.out_proj")
    return names


def outside_decoder(causal_lm: Any) -> list[str]:
    """Names of the linear maps that no scored token passes through: towers for images and sound, their projectors."""
    head, inside = causal_lm.get_output_embeddings(), set(decoder_of(causal_lm).modules())
    return [
        name
        for name, module in causal_lm.named_modules()
        if isinstance(module, nn.Linear) and module is not head and module not in inside
    ]


@torch.no_grad()
def not_linear(causal_lm: Any) -> list[str]:
    """Names of modules that are linear layers by their class and give something else than their linear map.

    Routers of Llama-4 and Phimoe give a choice of experts. They are found by running a few tokens, since other classes
    of transformers (Falcon's) write the same map another way.
    """
    suspects = {
        module: name
        for name, module in causal_lm.named_modules()
        if isinstance(module, nn.Linear) and type(module).__module__.startswith("transformers.models.")
    }
    found: dict[str, bool] = {}

    def compare(module: nn.Module, args: Any, output: Any) -> None:
        expected = nn.functional.linear(args[0], module.weight, module.bias)  # type: ignore[arg-type]
        same = isinstance(output, Tensor) and output.shape == expected.shape and torch.allclose(output, expected)
        found[suspects[module]] = same  # type: ignore[index]

    hooks = [module.register_forward_hook(compare) for module in suspects]
    try:
        if suspects:
            decoder_of(causal_lm)(input_ids=torch.arange(4, device=causal_lm.device)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, same in found.items() if not same]


def limit_time_steps(model: nn.Module) -> None:
    """Hold the time steps of every Mamba-2 layer to its limits before the layer sees them, however it runs.

    transformers clamps them in the scan over a sequence and not in the update by one token, so NemotronH and Zamba2
    were sampled 6e-4 and 1.4e-3 nats off their scores. The last outputs of a layer's ``in_proj`` are its steps before
    bias and softplus, both of which rise: clamped there to the limits' preimage, the step keeps them on either path.
    """
    for mixer in model.modules():
        lowest, highest = getattr(mixer, "time_step_limit", (0.0, math.inf))
        if lowest > 0 or highest < math.inf:
            mixer.in_proj.register_forward_hook(partial(_clamp, mixer))  # type: ignore[union-attr]


def _clamp(mixer: Any, module: nn.Module, args: Any, projected_BLD: Tensor) -> Tensor:
    rest_BLD, step_BLH = projected_BLD.split([projected_BLD.shape[-1] - mixer.num_heads, mixer.num_heads], -1)
    lowest, highest = (_before_softplus(limit) - mixer.dt_bias for limit in mixer.time_step_limit)
    clamped_BLH = step_BLH.clamp(lowest.to(step_BLH.dtype), highest.to(step_BLH.dtype))
    return torch.cat([rest_BLD, clamped_BLH], -1)


def _before_softplus(step: float) -> float:
    """What softplus makes this step of."""
    return -math.inf if step <= 0 else step + math.log(-math.expm1(-step))
