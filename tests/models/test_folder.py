"""What a model's folder may hold besides floating-point weights: none of it is refused before the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfdistill.models.folder import check_folder
from support.tiny import save_tiny_model


def change(folder: Path, settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), **settings}), encoding="utf-8")
    save_file({**load_file(weights), **tensors}, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("settings", "tensors"),
    [
        ({}, {"model.position_ids": torch.arange(3)}),
        ({}, {"model.attn.masked": torch.ones(2, dtype=torch.bool)}),
        ({"quantization_config": {"quant_method": "gptq"}}, {"model.norm.weight": torch.ones(3, dtype=torch.int8)}),
        ({"quantization_config": {"quant_method": "bitsandbytes_4bit"}}, {}),
        ({"dtype": None, "torch_dtype": "float16"}, {}),
    ],
    ids=["positions", "a mask", "packed weights", "a further name of bitsandbytes", "the old key"],
)
def test_a_sound_folder_is_not_refused(
    settings: dict[str, Any], tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    change(save_tiny_model(tmp_path, num_hidden_layers=1), settings, tensors)
    check_folder(tmp_path, "the model")
