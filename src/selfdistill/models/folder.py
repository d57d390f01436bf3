"""Checks of a model's folder before its files are loaded, because libraries name neither file nor remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfdistill.errors import ModelError
from selfdistill.models.quantised import import_peft

POINTER = b"version https://git-lfs"
"""First bytes of a git-lfs pointer, which git stores instead of a large file."""
OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json")
INDEX = "model.safetensors.index.json"
FOREIGN = ("*.gguf", "*.h5", "*.msgpack", "consolidated.*", "*.onnx", "*.ckpt", "*.pth", "*.pt", "*.npz")
"""Weights of other programs."""
WHOLE_NUMBERS = {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL"}
"""Names that safetensors gives to types that are no floating-point numbers."""
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "adapter_model.*", INDEX, "pytorch_model.bin.index.json")


def check_folder(folder: Path, path: str) -> None:
    """Refuse a model's folder whose files are absent, cut off, pointers or no JSON. ``path`` is its name for messages.

    Raises:
        ModelError: names the first such file and what to do.
    """
    for file in sorted(folder.iterdir()):
        if file.is_symlink() and not file.exists():
            raise ModelError(f"{file} is a link to nothing: download or copy the model again")
        if file.is_file() and file.suffix in {".json", ".safetensors", ".bin", ".model"}:
            with file.open("rb") as opened:
                if opened.read(len(POINTER)) == POINTER:
                    raise ModelError(f"{file} is a pointer of git-lfs, not the file itself: run git lfs pull there")
    objects = {name: _object(folder / name) for name in OBJECTS if (folder / name).is_file()}
    if "adapter_config.json" in objects:
        _check_adapter(objects["adapter_config.json"], path)
    elif "config.json" not in objects:
        _refuse_without_config(folder, path)
    else:
        _check_config(objects["config.json"], path)
        if not any(True for pattern in WEIGHTS for file in folder.glob(pattern) if file.is_file()):
            foreign = sorted(str(file.relative_to(folder)) for name in FOREIGN for file in folder.rglob(name))
            instead = f", only {foreign[0]}" if foreign else ""
            remedy = (
                f"give {folder / foreign[0]}"
                if foreign and foreign[0].endswith(".gguf")
                else "save them as safetensors"
            )
            raise ModelError(f"{path} holds no weights (model.safetensors){instead}: {remedy}")
        _check_shards(folder, path)
    quantised = objects.get("config.json", {}).get("quantization_config") is not None
    for file in sorted([*folder.glob("model*.safetensors"), *folder.glob("adapter_model.safetensors")]):
        types = _types(file)
        odd = next((name for name, kind in types.items() if kind in WHOLE_NUMBERS and name.endswith("weight")), None)
        if odd is not None and not quantised:
            raise ModelError(
                f"{file} holds {odd} as {types[odd]}, which is no floating-point number, and config.json names no "
                "quantization_config: save the weights as float32 or bfloat16"
            )


def _object(file: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    # RecursionError: deeply nested brackets, such as a file of one repeated byte.
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is no JSON ({error}): download or copy it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} does not hold a JSON object: download or copy it again")
    return value


def _check_adapter(config: Mapping[str, Any], path: str) -> None:
    kind, kinds = str(config.get("peft_type")), import_peft().PeftType.__members__
    # A prompt or a prefix does not change weights, so it cannot be merged into the model.
    if kind not in kinds or "PROMPT" in kind or kind in {"P_TUNING", "PREFIX_TUNING", "CPT"}:
        raise ModelError(f"the adapter in {path} is of the kind {kind}, which cannot be merged into its base: use LORA")


def _refuse_without_config(folder: Path, path: str) -> None:
    inner = sorted(file.parent for pattern in ("*/", "*/*/") for file in folder.glob(f"{pattern}config.json"))
    hint = f"give {inner[0]}" if inner else "give the directory that transformers saved the model in"
    raise ModelError(f"{path} is no model directory, it holds no config.json: {hint}")


def _check_config(config: Mapping[str, Any], path: str) -> None:
    import torch
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    dtype = config.get("dtype", config.get("torch_dtype"))
    if isinstance(dtype, str) and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ModelError(f"the config.json of {path} names {dtype!r} as its dtype, which is no number type of torch")
    quantised = config.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    # bitsandbytes has further names, which all begin with its own.
    if method is not None and method != "bitsandbytes" and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise ModelError(
            f"the config.json of {path} names the quantisation {method!r}, which transformers does not know"
        )


def _check_shards(folder: Path, path: str) -> None:
    index = folder / INDEX
    if (folder / "model.safetensors").is_file():
        return
    if not index.is_file():
        shards = sorted(folder.glob("model-*-of-*.safetensors"))
        if shards:
            raise ModelError(f"{path} holds {shards[0].name} and no {INDEX}: copy that file too")
        return
    file_of = _object(index).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise ModelError(f"{index} names no files (weight_map): download or copy it again")
    absent = sorted({str(name) for name in file_of.values() if not (folder / str(name)).is_file()})
    if absent:
        raise ModelError(
            f"{path} lacks {len(absent)} of the {len(set(file_of.values()))} files of weights that {INDEX} names, the "
            f"first is {absent[0]}: download or copy it"
        )


def _types(file: Path) -> dict[str, str]:
    """The number type of every tensor, read off a safetensors file's header, whose sizes must be those of the file."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            size = file.stat().st_size
            header = json.loads(opened.read(length)) if 2 <= length <= size - 8 else {}
        tensors = {name: about for name, about in header.items() if name != "__metadata__"}
        complete = bool(header) and size == 8 + length + max(
            (about["data_offsets"][1] for about in tensors.values()), default=0
        )
        types = {name: str(about["dtype"]) for name, about in tensors.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file} is damaged: download or copy it again") from error
    if not complete:
        raise ModelError(f"{file} is damaged or was not copied to its end: download or copy it again")
    return types
