"""The frozen base of an adapter in 4 bits (NormalFloat of QLoRA, arXiv:2305.14314), by bitsandbytes.

The linear layers are quantised while they are loaded. These stay in the model's number type: embedding, head, norms,
experts that are no linear layers, the output projections of state-space layers, whose kernels read the weights
themselves, and layers whose inputs are no multiple of 64.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from selfdistill.config.bits import PACKAGE, require_bitsandbytes
from selfdistill.errors import ConfigError, ModelError, first_line
from selfdistill.models.architecture import fused_outputs
from selfdistill.models.sizing import BLOCK_4_BITS

ASKS_THE_HUB = "kernels"
"""Package with which bitsandbytes fetches a further kernel for CPUs from the hub while it is imported."""
BLOCK = BLOCK_4_BITS
"""Weights that share a scale. On CPUs bitsandbytes reads scales wrongly if a layer's inputs are no multiple of it."""
CPU_LOGGER = "bitsandbytes.backends.cpu.ops"
"""Logger of the warning that this kernel is missing."""


READ_AS_PLAIN = ("mxfp4", "fp8")
"""Quantisations of a model's files whose layers are not kept: transformers reads them as plain weights where it must,
without a GPU or its kernels, and here everywhere. No gradient passes the kernels of the first."""


@dataclass(frozen=True, slots=True)
class QuantisedLayers:
    """What of a model is quantised. All counts but ``layers`` are weights."""

    kind: str
    """``"nf4"``, or ``"fp4"`` where the model's own files are."""
    layers: int
    uneven: int
    """Linear layers whose inputs are no multiple of :data:`BLOCK`, and which stay as they are."""
    weights: int
    tables: int
    """In the embedding and the head, which stay as they are."""
    others: int
    """In everything else that stays as it is."""
    largest: str
    """Name of the largest of these others."""


def import_bitsandbytes(setting: str) -> Any:
    """The module. It asks no hub for kernels, and does not warn that it found none.

    Raises:
        ConfigError: it is not installed, or cannot be imported here. ``setting`` is the one that needs it.
    """
    require_bitsandbytes(setting)
    try:
        with _without_hub():
            return importlib.import_module(PACKAGE)
    # A native library that does not fit the machine raises any of these.
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"{setting} needs bitsandbytes, which is installed and cannot be imported: {first_line(error)}"
        ) from error


def import_peft() -> Any:
    """The peft module. It imports bitsandbytes itself where that is installed, so the same holds as above."""
    if find_spec(PACKAGE) is None:
        return importlib.import_module("peft")
    with _without_hub():
        return importlib.import_module("peft")


@contextmanager
def _without_hub() -> Iterator[None]:
    missing = object()
    logger, former = logging.getLogger(CPU_LOGGER), sys.modules.get(ASKS_THE_HUB, missing)
    level = logger.level
    # An import of a module that is None fails as if it were not installed.
    sys.modules[ASKS_THE_HUB] = None  # type: ignore[assignment]
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if former is missing:
            del sys.modules[ASKS_THE_HUB]
        else:
            sys.modules[ASKS_THE_HUB] = former  # type: ignore[assignment]


def loading_options(
    source: str, path: str, kind: str, dtype: torch.dtype, device: torch.device | None
) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that quantise a model while it is loaded. ``path`` is its name for messages.

    Raises:
        ConfigError: bitsandbytes cannot be used.
        ModelError: the model's files are quantised already.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    import_bitsandbytes(f"model.quantisation {kind!r}")
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    stored = getattr(config, "quantization_config", None)
    if stored is not None:
        method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
        raise ModelError(f"{path} is quantised already ({method}): leave out model.quantisation")
    # The names of its layers, without their weights.
    with torch.device("meta"):
        skeleton: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return {
        "device_map": {"": device or "cpu"},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=[*_tables(skeleton), *fused_outputs(skeleton), *_uneven(skeleton)],
        ),
    }


def plain_options(source: str) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that read files in MXFP4 (GPT-OSS) or FP8 as plain weights; else none."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    # An adapter of the hub, which from_pretrained knows, or a config that it refuses in words of its own.
    except (OSError, ValueError):
        return {}
    stored = getattr(config, "quantization_config", None)
    if not isinstance(stored, dict) or stored.get("quant_method") not in READ_AS_PLAIN:
        return {}
    config.quantization_config = {**stored, "dequantize": True}
    return {"config": config}


def keep_unpacked(model: nn.Module) -> None:
    """Let quantised layers compute in the same way with and without gradients on a CPU that has bf16 instructions.

    bitsandbytes repacks their weights there in the first forward pass without gradient, computes in bf16 from then on,
    and gives the layers below no gradient.
    """
    for layer in _layers(model):
        layer.support_avx512bf16_for_cpu = False


def check_widths(model: nn.Module, path: str) -> None:
    """Refuse a model on a CPU whose files hold a quantised layer that bitsandbytes reads wrongly there.

    Raises:
        ModelError: names the layer's width.
    """
    for layer in _layers(model):
        if layer.in_features % BLOCK and layer.weight.device.type == "cpu":
            raise ModelError(
                f"{path} holds a quantised layer with {layer.in_features} inputs, which is no multiple of {BLOCK}: "
                "bitsandbytes reads it wrongly on a CPU, so use a GPU, or the model before it was quantised"
            )


def quantised_layers(model: Any) -> QuantisedLayers | None:
    """Count what of a model is quantised; None if nothing is. An adapter's weights are not counted."""
    layers = _layers(model)
    if not layers:
        return None
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    tables = {id(module.weight) for module in (base.get_input_embeddings(), base.get_output_embeddings())}
    stay = {
        name: parameter
        for name, parameter in base.named_parameters()
        if is_plain(parameter) and "lora_" not in name and id(parameter) not in tables
    }
    return QuantisedLayers(
        layers=len(layers),
        uneven=len([name for name in _uneven(base) if "lora_" not in name]),
        weights=sum(count(layer.weight) for layer in layers),
        kind=layers[0].weight.quant_state.quant_type,
        tables=sum(p.numel() for p in base.parameters() if id(p) in tables),
        others=sum(parameter.numel() for parameter in stay.values()),
        largest=max(stay, key=lambda name: stay[name].numel(), default="").replace(".base_layer", ""),
    )


def kept_in(model: Any) -> str | None:
    """How the linear layers of a model are quantised; None if they are not."""
    layers = quantised_layers(model)
    return None if layers is None else layers.kind


def check_trainable(policy: Any, path: str) -> None:
    """Refuse to train all weights of a model of which some are stored as whole numbers. ``path`` is its name.

    Raises:
        ModelError: names the first such tensor.
    """
    for name, parameter in policy.named_parameters():
        if not parameter.is_floating_point() and not policy.is_lora:
            raise ModelError(
                f"{path} stores {name} as {str(parameter.dtype).removeprefix('torch.')}, which cannot be trained: "
                "train an adapter beside it (model.lora.rank=64), or start from the model before it was quantised"
            )


def check_learner(policy: Any) -> None:
    """Refuse to train on quantised layers that pass no gradient, and an adapter that is loaded beside its base.

    Raises:
        ModelError: names the quantisation.
    """
    quantiser = getattr(policy.causal_lm, "hf_quantizer", None)
    if quantiser is not None and not quantiser.is_trainable:
        method = quantiser.quantization_config.quant_method
        raise ModelError(
            f"model.path is stored in {getattr(method, 'value', method)}, whose layers pass no gradient in "
            "transformers: start from the model before it was quantised"
        )
    if policy.is_lora and not policy.trained():
        raise ModelError(_BESIDE.format("model.path"))


def check_whole(model: Any, path: str) -> None:
    """Refuse a new adapter on one that is loaded beside its quantised base: the two could not be saved merged.

    Raises:
        ModelError: says where it can be trained.
    """
    if hasattr(model, "peft_config"):
        raise ModelError(_BESIDE.format(path))


_BESIDE = (
    "{} is an adapter on a base that is stored quantised, into which it cannot be merged: train a new one on that base "
    "itself (model.path is its base_model_name_or_path, model.lora.rank=64)"
)


def check_saved(policy: Any, name: str) -> None:
    """Refuse to save a quantised model without an adapter. ``name`` is its own.

    Raises:
        ModelError: names its own files.
    """
    if policy.quantisation is not None and not policy.is_lora:
        raise ModelError(
            f"the weights are kept in {policy.quantisation} and none of them is trained, so that there is nothing to "
            f"save: use the model's own files ({name})"
        )


def is_plain(parameter: Tensor) -> bool:
    """Whether a parameter is stored as it is, and not quantised."""
    return getattr(parameter, "quant_state", None) is None


def count(parameter: Tensor) -> int:
    """Weights of a parameter, of which a quantised one stores two in a byte."""
    return parameter.numel() if is_plain(parameter) else int(parameter.quant_state.shape.numel())  # type: ignore[attr-defined]


def dequantised(parameter: Tensor) -> Tensor:
    """The weights that a parameter stands for, in the number type that the model computes in."""
    if is_plain(parameter):
        return parameter
    functional = importlib.import_module(f"{PACKAGE}.functional")
    weight: Tensor = functional.dequantize_4bit(parameter.data, parameter.quant_state)  # type: ignore[attr-defined]
    return weight


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.Linear) and not is_plain(module.weight)]


def _uneven(model: nn.Module) -> list[str]:
    """Names of the linear layers whose inputs are no multiple of :data:`BLOCK`."""
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module.in_features % BLOCK)
        or (isinstance(module, Conv1D) and module.weight.shape[0] % BLOCK)
    ]


def _tables(model: Any) -> list[str]:
    """Names of the embedding and the head."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name for name, module in model.named_modules() if any(module is table for table in tables)]
