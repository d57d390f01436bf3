"""Write a model directory as one GGUF file, for families whose tensors llama.cpp only renames or permutes.

Names, metadata keys and number types are those of the ``gguf`` package. What the package does not know, the layout of a
family's attention and the name of a pre-tokenizer, is written down here for a few families.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from selfdistill.errors import ModelError

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
"""Classes of transformers that are written, and their names in GGUF."""

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PRE_TOKENIZERS: Mapping[tuple[object, ...], str] = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", QWEN2_SPLIT), ("ByteLevel", False)): "qwen2",
    (("Split", LLAMA3_SPLIT), ("ByteLevel", False)): "llama-bpe",
}
"""How text is cut before merges are applied, as llama.cpp names it."""
IGNORES_MERGES = "llama-bpe"
"""The pre-tokenizer with which llama.cpp takes a whole word of the vocabulary before any merge."""


def require_gguf() -> None:
    """Check that the ``gguf`` package is installed.

    Raises:
        ModelError: it is not; the message says what to install.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ModelError("--gguf needs the gguf package: pip install 'selfdistill[gguf]'") from error


def write_gguf(folder: Path, file: Path, *, name: str, stays: bool = True) -> None:
    """Write the model, the tokenizer and the chat template of a plain directory. The file appears whole or not at all.

    One tensor is in memory at a time. Matrices keep their number type, vectors are in float32, as llama.cpp wants them.
    ``name`` is the model's in the file. ``stays`` says that the directory is the user's to convert in another way.

    Raises:
        ModelError: the family or its tokenizer is none that is written here; the message names llama.cpp's converter.
    """
    import gguf

    config = _read(folder, "config.json")
    tokenizer = _read(folder, "tokenizer.json")
    reason = _objection(config, tokenizer)
    if reason is not None and not stays:
        raise ModelError(
            f"{name} cannot be written as GGUF: {reason}. Export it with --out DIR, and convert that with llama.cpp: "
            "python convert_hf_to_gguf.py DIR"
        )
    if reason is not None:
        raise ModelError(
            f"{folder} is written as it is, and not as GGUF: {reason}. Convert it with llama.cpp: "
            f"python convert_hf_to_gguf.py {folder}"
        )
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".gguf", dir=file.parent)
    os.close(handle)
    try:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURES[config["architectures"][0]])
        _describe(writer, config, name=name)
        _add_tokenizer(writer, folder, tokenizer, rows=config["vocab_size"])
        for name, tensor in _tensors(folder, config):
            kind, shape = _kind(tensor), list(tensor.shape)
            if kind == gguf.GGMLQuantizationType.BF16:
                shape[-1] *= tensor.element_size()
            data = _data(tensor)
            writer.add_tensor_info(name, shape, data.dtype, data.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in _tensors(folder, config):
            writer.write_tensor_data(_data(tensor))
        writer.close()
        Path(temporary).chmod(0o644)
        Path(temporary).replace(file)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _read(folder: Path, name: str) -> Mapping[str, Any]:
    path = folder / name
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _objection(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> str | None:
    """Why a model cannot be written here; None if it can."""
    family = (config.get("architectures") or ["no class"])[0]
    if family not in ARCHITECTURES:
        return f"its class is {family}, and {', '.join(ARCHITECTURES)} are known here"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1) != 1:
        return f"its positions are scaled ({rope.get('rope_type')})"
    if config.get("use_sliding_window") or config.get("hidden_act", "silu") != "silu":
        return "it has a sliding window or another activation than silu"
    if config.get("attention_bias") or config.get("mlp_bias"):
        return "it has biases that transformers does not read again"
    if config.get("dtype") == "float64":
        return "GGUF's models have no float64 (add --dtype float32)"
    model = tokenizer.get("model", {})
    pre = _pre_tokenizer(tokenizer)
    if model.get("type") != "BPE" or model.get("byte_fallback") or pre is None:
        return "its tokenizer is no byte-level BPE that is known here"
    if bool(model.get("ignore_merges")) != (pre == IGNORES_MERGES):
        return "its tokenizer applies merges in another order than llama.cpp"
    return None


def _pre_tokenizer(tokenizer: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of how a tokenizer cuts text; None if it is not known here."""
    form = tokenizer.get("pre_tokenizer") or {}
    parts = form.get("pretokenizers", [form])
    if any(part.get("add_prefix_space") for part in parts):
        return None
    what = {"ByteLevel": "use_regex", "Digits": "individual_digits"}
    cuts = tuple(
        (part.get("type"), part.get("pattern", {}).get("Regex") if part.get("type") == "Split" else part.get(key))
        for part in parts
        for key in [what.get(part.get("type"), "")]
    )
    return PRE_TOKENIZERS.get(cuts)


def _describe(writer: Any, config: Mapping[str, Any], *, name: str) -> None:
    """The model's sizes under GGUF's keys."""
    import gguf

    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    writer.add_vocab_size(config["vocab_size"])
    types = {"bfloat16": gguf.LlamaFileType.MOSTLY_BF16, "float16": gguf.LlamaFileType.MOSTLY_F16}
    writer.add_file_type(types.get(str(config.get("dtype")), gguf.LlamaFileType.ALL_F32))


def _add_tokenizer(writer: Any, folder: Path, tokenizer: Mapping[str, Any], *, rows: int) -> None:
    """Tokens by id, merges, special ids and the chat template. Rows of the model without a token get a name."""
    import gguf

    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [int(gguf.TokenType.UNUSED)] * rows
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = token, int(gguf.TokenType.NORMAL)
    for added in tokenizer.get("added_tokens", []):
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=rows)
    # Unless it is told otherwise, llama.cpp puts this token before every text that is cut as Llama-3's.
    special.add_special_token.setdefault("bos", False)
    special.add_to_gguf(writer, quiet=True)


def _tensors(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """GGUF's name and the values of each tensor.

    Raises:
        ModelError: a tensor has no name in GGUF.
    """
    import gguf

    family = ARCHITECTURES[config["architectures"][0]]
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():  # noqa: SIM118
                # Tied to the embeddings, which GGUF says by leaving it out.
                if key == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                name = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise ModelError(f"{folder}: the tensor {key} has no name in GGUF")
                tensor = stored.get_tensor(key)
                heads = config["num_attention_heads"]
                if family == "llama" and ".q_proj." in key:
                    tensor = _interleaved(tensor, heads)
                elif family == "llama" and ".k_proj." in key:
                    tensor = _interleaved(tensor, config.get("num_key_value_heads") or heads)
                yield name, tensor


def _interleaved(tensor: Tensor, heads: int) -> Tensor:
    """The rows of a query or key projection in llama.cpp's order: the two halves that a rotation mixes alternate."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _kind(tensor: Tensor) -> Any:
    import gguf

    kinds = {torch.bfloat16: gguf.GGMLQuantizationType.BF16, torch.float16: gguf.GGMLQuantizationType.F16}
    whole = gguf.GGMLQuantizationType.F32
    return whole if tensor.dim() == 1 else kinds.get(tensor.dtype, whole)


def _data(tensor: Tensor) -> Any:
    """The values as an array: vectors in float32, bfloat16 as bytes, which numpy has no type for."""
    if tensor.dim() == 1:
        tensor = tensor.float()
    tensor = tensor.contiguous()
    return (tensor.view(torch.uint8) if tensor.dtype == torch.bfloat16 else tensor).numpy()
