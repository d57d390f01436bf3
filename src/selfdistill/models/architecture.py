"""Differences between model families of transformers: decoder, head, cache, adapters, Mamba-2's time steps."""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.errors import ModelError


def decoder_of(causal_lm: Any) -> Any:
    """The submodule of a transformers model that returns the last hidden states.

    ``get_decoder`` is not enough: it returns Llama-4 itself, and the head of models that call their head ``decoder``.
    """
    head = causal_lm.get_output_embeddings()
    for module in (causal_lm.get_decoder(), causal_lm.base_model, getattr(causal_lm, "model", None)):
        if isinstance(module, nn.Module) and module is not causal_lm and module is not head:
            return module
    raise ModelError(
        f"{type(causal_lm).__name__} has no decoder below its head, which scoring reads hidden states from"
    )


def head_shape(causal_lm: Any) -> tuple[float, float | None]:
    """Scale and soft cap of a model's logits, read from its config (Gemma, Granite, Cohere, Falcon-H1)."""
    config = causal_lm.config.get_text_config().to_dict()
    scale = config.get("logit_scale") or config.get("lm_head_multiplier") or 1.0
    cap = config.get("final_logit_softcapping") or config.get("logits_soft_cap")
    return float(scale) / float(config.get("logits_scaling") or 1.0), None if cap is None else float(cap)


CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")
"""Names of the key-value cache in a decoder's forward, newest first (transformers 5.24 renamed it)."""


def cache_argument(decoder: type[nn.Module]) -> str:
    """The name of the key-value cache among the arguments of a decoder's forward.

    Raises:
        ModelError: the forward has none of the known names. It would accept any of them as a keyword argument, ignore
            it, and decode every token without a cache.
    """
    parameters = inspect.signature(decoder.forward).parameters
    for name in CACHE_ARGUMENTS:
        if name in parameters:
            return name
    raise ModelError(
        f"{decoder.__name__}.forward takes its cache under none of the names {', '.join(CACHE_ARGUMENTS)} (its "
        f"arguments are {', '.join(list(parameters)[1:])}), so nothing can be sampled with it: use another model, or a "
        "release of transformers that this one supports (`selfdistill doctor` names them)"
    )


def fused_outputs(model: nn.Module) -> list[str]:
    """Names of the state-space layers' output projections, where an adapter would have no effect.

    Mamba's kernels read the weights of these modules and never call the modules.
    """
    names = []
    for name, mixer in model.named_modules():
        if {"A_log", "D"} <= {parameter for parameter, _ in mixer.named_parameters(recurse=False)}:
            names.append(f"{name}.out_proj")
    return names


def outside_decoder(causal_lm: Any) -> list[str]:
    """Names of the linear layers outside the decoder and the head: vision and audio towers and their projectors."""
    head, inside = causal_lm.get_output_embeddings(), set(decoder_of(causal_lm).modules())
    return [
        name
        for name, module in causal_lm.named_modules()
        if isinstance(module, nn.Linear) and module is not head and module not in inside
    ]


@torch.no_grad()
def not_linear(causal_lm: Any) -> list[str]:
    """Names of modules that subclass ``nn.Linear`` but return something else than the linear map.

    The routers of Llama-4 and Phimoe return a choice of experts. Running a few tokens finds them; the class does not
    tell, because other subclasses (Falcon's) implement the plain map.
    """
    suspects = {
        module: name
        for name, module in causal_lm.named_modules()
        if isinstance(module, nn.Linear) and type(module).__module__.startswith("transformers.models.")
    }
    is_linear: dict[str, bool] = {}

    def compare(module: nn.Module, args: Any, output: Any) -> None:
        expected = nn.functional.linear(args[0], module.weight, module.bias)  # type: ignore[arg-type]
        same = isinstance(output, Tensor) and output.shape == expected.shape and torch.allclose(output, expected)
        is_linear[suspects[module]] = same  # type: ignore[index]

    hooks = [module.register_forward_hook(compare) for module in suspects]
    try:
        if suspects:
            decoder_of(causal_lm)(input_ids=torch.arange(4, device=causal_lm.device)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, linear in is_linear.items() if not linear]


def limit_time_steps(model: nn.Module) -> None:
    """Clamp the time steps of every Mamba-2 layer to the layer's limits, in scoring and in decoding.

    transformers clamps them in the scan over a sequence but not in the one-token update: sampling with NemotronH and
    Zamba2 was 6e-4 and 1.4e-3 nats off their scores. The last outputs of ``in_proj`` are the steps before bias and
    softplus. Both are increasing, so clamping these outputs to the preimage of the limits works on either path.
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
    """The inverse of softplus."""
    return -math.inf if step <= 0 else step + math.log(-math.expm1(-step))
