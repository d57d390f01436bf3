"""Models by name, folder or hub id."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.api.quiet import silenced
from selfdistill.api.rollouts import check_pair
from selfdistill.config.bits import check_quantisation
from selfdistill.config.run import parse_config
from selfdistill.config.sources import find_source, read_config
from selfdistill.contexts.chat import Chat
from selfdistill.errors import CheckpointError
from selfdistill.models.policy import Policy
from selfdistill.models.policy import save_policy as save_folder
from selfdistill.training.run_folder import load_model

if TYPE_CHECKING:
    import torch


def load_policy(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    lora: Mapping[str, Any] | None = None,
    seed: int = 0,
    quantisation: str | None = None,
) -> tuple[Policy, Chat]:
    """Load a causal language model with its tokenizer and chat template.

    Args:
        path: a shipped name (``"countdown-base"``), a model directory, a hub id, or the folder of a run, whose newest
            checkpoint is loaded.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float64"``, of weights and activations; ``"auto"`` is bfloat16 on a
            GPU that is fast in it, else float32.
        device: a torch device, for example ``"cuda"``; ``"auto"`` is the GPU with most free memory, else the CPU.
        lora: train an adapter instead of all weights, for example ``{"rank": 8, "alpha": 16}``.
        seed: draws a new adapter's weights.
        quantisation: ``"nf4"`` keeps the linear layers below the adapter in 4 bits, by bitsandbytes; None keeps them as
            the run at ``path`` did, and in ``dtype`` elsewhere.

    Returns:
        The model, and the chat that encodes messages as token ids and decodes them. A skipped corrupt checkpoint gives
        a warning.

    Raises:
        UserError: the model cannot be found or used.
    """
    table = {
        "path": str(path),
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "lora": None if lora is None else dict(lora),
        "quantisation": quantisation or _of_run(str(path)),
    }
    config = parse_config({"method": "grpo", "model": table, "seed": seed}, "load_policy")
    check_quantisation(config.model)
    with silenced():
        policy, chat, weights = load_model(str(path), config)
    for warning in weights.warnings:
        warnings.warn(warning, stacklevel=2)
    return policy, chat


def _of_run(path: str) -> str | None:
    """How a run kept the base of its adapter; None for everything that is no run."""
    table = read_config(path).get("model") if find_source(path).kind == "run" else None
    return table.get("quantisation") if isinstance(table, dict) else None


def save_policy(policy: Policy, chat: Chat, folder: str | Path) -> Path:
    """Write a directory that :func:`load_policy` and transformers read: full weights, or the adapter alone.

    An adapter on another adapter is written merged, as full weights.

    Returns:
        The folder.

    Raises:
        UserError: the folder is a file.
    """
    check_pair(policy, chat)
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file: choose another folder")
    save_folder(policy, chat, path)
    return path
