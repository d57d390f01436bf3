"""Low-rank adapters on a model: where they go, and how peft puts them there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from selfdistill.errors import ModelError, first_line
from selfdistill.models.architecture import fused_outputs
from selfdistill.models.loading import quiet_peft

STUDENT_ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adaptation. No dropout: student and sampler must be the same function of the weights."""

    rank: int
    alpha: float
    target_modules: str | list[str] = "all-linear"


def add_lora(model: Any, lora: Lora, path: str, seed: int) -> Any:
    """Wrap a model with a new adapter, drawn with a seed.

    Raises:
        ModelError: the model takes no adapter there.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=lora.target_modules,
        exclude_modules=(lora.target_modules == "all-linear" and fused_outputs(model)) or None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), quiet_peft():
        torch.manual_seed(seed)
        try:
            wrapped: Any = get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(f"{path} takes no adapter on {lora.target_modules!r}: {first_line(error)}") from error
    # The name that the user wrote finds the base again, also where the package lies elsewhere.
    wrapped.peft_config[STUDENT_ADAPTER].base_model_name_or_path = path
    return wrapped
