"""Low-rank adapters on a model: where they go, and how peft puts them there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from selfdistill.config.sections import LoraConfig
from selfdistill.errors import ModelError, first_line
from selfdistill.models.architecture import fused_outputs, not_linear, outside_decoder
from selfdistill.models.loading import lasting_name, quiet_peft

STUDENT_ADAPTER = "default"


def add_lora(model: Any, lora: LoraConfig, path: str, seed: int) -> Any:
    """Wrap a model with a new adapter, drawn with a seed.

    "all-linear" means every linear map that scoring passes through, but for the head. Towers for images and sound get
    no adapter by any name, as nothing that is scored passes through them. There is no dropout: student and sampler must
    be the same function of the weights.

    Raises:
        ModelError: the model takes no adapter there, in one sentence.
    """
    import peft

    everywhere = lora.target_modules == "all-linear"
    unusual = not_linear(model)
    outside, fused = outside_decoder(model), fused_outputs(model)
    _check_targets(model, lora.target_modules, unusual, {*outside, *fused, *unusual}, path)
    left_out = [*outside, *([*fused, *unusual] if everywhere else [])]
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=lora.target_modules,
        exclude_modules=left_out or None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), quiet_peft():
        torch.manual_seed(seed)
        try:
            wrapped: Any = peft.get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(f"{path} takes no adapter on {lora.target_modules!r}: {first_line(error)}") from error
    # Not transformers' own name of it: that of a shipped model is found where the package lies elsewhere.
    wrapped.peft_config[STUDENT_ADAPTER].base_model_name_or_path = lasting_name(path)
    return wrapped


def _check_targets(
    model: Any, targets: str | list[str], unusual: Sequence[str], set_aside: set[str], path: str
) -> None:
    """Refuse names that no module has, and modules beside which an adapter would do nothing or something else.

    peft passes over a name that fits nowhere if another one fits. An adapter on the head would stand beside a weight
    that the sliced loss reads alone; one on the embedding would move a head that is tied to it.
    """
    if targets == "all-linear":
        return
    where, modules = f"model.lora.target_modules of {path}", dict(model.named_modules())
    try:
        found = {
            target: [
                name
                for name in modules
                if (
                    name == target or name.endswith(f".{target}")
                    if isinstance(targets, list)
                    else re.fullmatch(target, name)
                )
            ]
            for target in ([targets] if isinstance(targets, str) else targets)
        }
    except re.error as error:
        raise ModelError(f"{where}: {targets!r} is no regular expression ({error})") from error
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = {
        name.rpartition(".")[2]
        for name, module in modules.items()
        if isinstance(module, nn.Linear | Conv1D) and name not in set_aside and module not in ends
    }
    advice = f'write "all-linear" or names among {", ".join(sorted(names))}'
    if not found:
        raise ModelError(f"{where}: the list is empty; {advice}")
    for target, matches in found.items():
        if not matches:
            raise ModelError(f"{where}: no module of the model is called {target!r}; {advice}")
        for name in matches:
            if modules[name] in ends:
                raise ModelError(f"{where}: {name} is the head or the embedding, which take no adapter here; {advice}")
            # peft takes convolutions too, and has a sentence of its own for those of state-space layers.
            if name in unusual or not isinstance(modules[name], nn.Linear | nn.Conv1d | Conv1D):
                kind = type(modules[name]).__name__
                raise ModelError(f"{where}: {name} ({kind}) is no plain linear map, so it takes no adapter; {advice}")
