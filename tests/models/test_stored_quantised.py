"""Files in MXFP4 or FP8 are read as plain weights on every machine; layers that pass no gradient are not trained."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from selfdistill.errors import ModelError
from selfdistill.models.policy import load_policy, save_policy
from selfdistill.models.quantised import check_learner
from support.families import saved
from support.tiny import save_tiny_model

CPU = torch.device("cpu")
IDS = torch.arange(8, 40)[None]
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""The values of the four bits of MXFP4 without the first of them, the sign."""


def store(folder: Path, tensors: dict[str, Tensor], **quantisation: Any) -> Path:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = quantisation
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def in_mxfp4(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """GPT-OSS as it is published: experts in blocks of 32 numbers with a power of two. Also what they stand for."""
    saved(folder, "gpt-oss, sinks", intermediate_size=32)
    stored: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = weight
            continue
        experts, inputs, outputs = weight.shape
        codes = torch.randint(16, (experts, outputs, inputs))
        pairs = codes.view(experts, outputs, inputs // 32, 16, 2)
        stored[f"{name}_blocks"] = (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8)
        # The exponent is counted from -127.
        stored[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), 124, dtype=torch.uint8)
        signs = torch.where(codes < 8, 1.0, -1.0)
        expected[name] = (signs * FP4[codes % 8] / 8).transpose(1, 2)
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return store(folder, stored, quant_method="mxfp4", modules_to_not_convert=kept), expected


def in_fp8(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Qwen3 as it is published in FP8: a scale for each 128 × 128 weights. Also what they stand for."""
    save_tiny_model(folder, hidden_size=64, intermediate_size=128, head_dim=16)
    stored = load_file(folder / "model.safetensors")
    expected: dict[str, Tensor] = {}
    for name in [name for name in stored if "_proj" in name]:
        expected[name] = 2 * stored[name].to(torch.float8_e4m3fn).float()
        stored[name] = stored[name].to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = torch.full((1, 1), 2.0)
    kinds = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    return store(folder, stored, **kinds), expected


@pytest.mark.parametrize("write", [in_mxfp4, in_fp8])
def test_files_for_inference_are_read_as_the_weights_that_they_stand_for(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = write(tmp_path / "model")
    asked: list[Any] = []
    original = AutoModelForCausalLM.from_pretrained

    def watched(*args: Any, **options: Any) -> Any:
        asked.append(getattr(options.get("config"), "quantization_config", {}).get("dequantize"))
        return original(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    policy, chat = load_policy(str(folder), dtype=torch.float32, device=CPU)
    # transformers does so by itself without a GPU, and with one only if it is asked to.
    assert asked == [True]
    check_learner(policy)
    weights = dict(policy.causal_lm.named_parameters())
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=0)
    save_policy(policy, chat, tmp_path / "saved")
    again, _ = load_policy(str(tmp_path / "saved"), dtype=torch.float32, device=CPU)
    assert torch.equal(again.causal_lm(IDS).logits, policy.causal_lm(IDS).logits)
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text("utf-8")


def test_layers_that_pass_no_gradient_are_not_trained(folder: Path) -> None:
    policy, _ = load_policy(str(folder), dtype=torch.float32, device=CPU)
    kept = SimpleNamespace(is_trainable=True, quantization_config=SimpleNamespace(quant_method="gptq"))
    policy.causal_lm.hf_quantizer = kept
    check_learner(policy)
    kept.is_trainable = False
    with pytest.raises(ModelError, match=r"model\.path is stored in gptq, whose layers pass no gradient"):
        check_learner(policy)
