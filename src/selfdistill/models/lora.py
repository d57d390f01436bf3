"""LoRA: which modules get an adapter, and how peft adds it."""

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
from selfdistill.models.gguf import gguf_file
from selfdistill.models.loading import lasting_name, quiet_peft, resolve_model
from selfdistill.models.quantised import check_whole, import_peft

STUDENT_ADAPTER = "default"


def add_lora(model: Any, lora: LoraConfig, path: str, seed: int) -> Any:
    """Wrap a model with a new adapter, initialised from ``seed``.

    "all-linear" selects every linear layer that scored tokens pass through, except the head. Vision and audio towers
    never get an adapter, because no scored token passes through them. There is no dropout: student and sampler must be
    the same function of the weights.

    Raises:
        ModelError: the model takes no adapter on these modules, or is one beside its quantised base.
    """
    check_whole(model, path)
    peft, all_linear = import_peft(), lora.target_modules == "all-linear"
    not_plain = not_linear(model)
    outside, fused = outside_decoder(model), fused_outputs(model)
    _check_targets(model, lora.target_modules, not_plain, {*outside, *fused, *not_plain}, path)
    excluded = [*outside, *([*fused, *not_plain] if all_linear else [])]
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
        exclude_modules=excluded or None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), quiet_peft():
        torch.manual_seed(seed)
        try:
            wrapped: Any = peft.get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(f"{path} takes no adapter on {lora.target_modules!r}: {first_line(error)}") from error
    # Not transformers' name_or_path: a shipped model must also be found if the package is installed elsewhere. peft
    # reads no GGUF, so that the converted directory is the base.
    base = resolve_model(path) if gguf_file(path) else path
    wrapped.peft_config[STUDENT_ADAPTER].base_model_name_or_path = lasting_name(base)
    return wrapped


def _check_targets(
    model: Any, targets: str | list[str], not_plain: Sequence[str], excluded: set[str], path: str
) -> None:
    """Refuse names that match no module, and modules on which an adapter would have no effect or a wrong one.

    peft ignores a name without a match if another name matches. The sliced loss reads the head's weight directly, so an
    adapter on the head would have no effect. An adapter on the embedding would change a tied head.
    """
    if targets == "all-linear":
        return
    where, modules = f"model.lora.target_modules of {path}", dict(model.named_modules())
    try:
        matches_of = {
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
        if isinstance(module, nn.Linear | Conv1D) and name not in excluded and module not in ends
    }
    hint = f'write "all-linear" or names among {", ".join(sorted(names))}'
    if not matches_of:
        raise ModelError(f"{where}: the list is empty; {hint}")
    for target, matches in matches_of.items():
        if not matches:
            raise ModelError(f"{where}: no module of the model is called {target!r}; {hint}")
        for name in matches:
            if modules[name] in ends:
                raise ModelError(f"{where}: {name} is the head or the embedding, which take no adapter here; {hint}")
            # peft also adapts convolutions, and has its own message for those of state-space layers.
            if name in not_plain or not isinstance(modules[name], nn.Linear | nn.Conv1d | Conv1D):
                kind = type(modules[name]).__name__
                raise ModelError(f"{where}: {name} ({kind}) is no plain linear map, so it takes no adapter; {hint}")
