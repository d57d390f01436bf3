"""A model's files, read through transformers and peft: weights, stop ids, window."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch

from selfdistill.errors import ModelError, first_line, is_full
from selfdistill.models.prefill import keeps_keys, new_cache

TOKENIZER_FILES = ("tokenizer.*", "vocab*", "*.model", "*.tiktoken", "adapter_config.json")
"""What some file of a model directory is called if there is a tokenizer; an adapter may leave it to its base."""


def _reason(error: Exception) -> str:
    """One sentence on why a library could not read a model."""
    if isinstance(error, PickleError):
        return "its .bin files hold more than tensors, or are damaged, and are not opened: save it as safetensors"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config.json says"
    if isinstance(error, LookupError | ArithmeticError):
        return f"{type(error).__name__}: {first_line(error)}; see its config.json"
    # A config's own checks put the field into the first line, and what is wrong with it into the second.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines and lines[0].endswith(":") else first_line(error)


def resolve_model(path: str) -> str:
    """A shipped model's name, or a path or hub id as it stands."""
    shipped = resources.files("selfdistill.models") / "shipped" / path
    return str(shipped) if "/" not in path and shipped.is_dir() else path


def lasting_name(path: str) -> str:
    """The name by which a model is found from any folder: a directory's absolute path, anything else as it stands."""
    return str(Path(path).absolute()) if resolve_model(path) == path and Path(path).is_dir() else path


def read_model(source: str, path: str, dtype: torch.dtype) -> Any:
    """The transformers model in a directory, an adapter merged into its base; ``path`` is what the user calls it.

    Raises:
        ModelError: it cannot be read, or lacks weights.
    """
    from transformers import AutoModelForCausalLM

    loaded: Any
    adapter = Path(source) / "adapter_config.json"
    try:
        if adapter.is_file():
            from peft import PeftModel

            # The base may itself be an adapter, where one run went on from another.
            below = _read_base(adapter, path, dtype)
            if not any(True for _ in Path(source).glob("adapter_model.*")):
                raise ModelError(f"{path} holds an adapter_config.json and no adapter_model.safetensors beside it")
            with quiet_peft():
                adapted: Any = PeftModel.from_pretrained(below, source)
            return adapted.merge_and_unload()
        # Without a word on code that comes with a model, transformers asks at the terminal whether to run it.
        loaded = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    except ModelError:
        raise
    # Each reader of transformers, peft, torch and their packages raises what it likes.
    except Exception as error:
        if is_full(error):
            raise
        raise ModelError(f"cannot load a causal language model from {path}: {_reason(error)}") from error
    model, report = loaded
    # transformers fills them with random numbers and says so only in a log.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{path} lacks {len(missing)} of its weights, the first is {missing[0]}")
    return model


def _read_base(adapter: Path, path: str, dtype: torch.dtype) -> Any:
    """The model below the adapter that a peft config describes.

    Raises:
        ModelError: it is not where the adapter's config says, or cannot be read.
    """
    base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    remedy = f"write where it is now as base_model_name_or_path in {adapter}"
    if not base:
        raise ModelError(f"the adapter in {path} names no base model: {remedy}")
    source = resolve_model(base)
    if not Path(source).is_dir() and ("/" not in base or Path(base).is_absolute() or base.startswith(".")):
        raise ModelError(f"the adapter in {path} belongs to the model in {base}, which is not there: {remedy}")
    try:
        return read_model(source, base, dtype)
    except ModelError as error:
        raise ModelError(
            f"the adapter in {path} cannot be put on its base model: {error}; if it has moved, {remedy}"
        ) from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep two warnings from the user that peft gives of its own doings whenever it makes an adapter.

    Fused experts are no linear layers and get no adapter, and it warns of patterns for them that it made itself. It
    also asks transformers for an attribute that has been renamed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys", RuntimeWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a completion: those that the model declares, and the tokenizer's own."""
    declared = model.generation_config.eos_token_id
    ids = declared if isinstance(declared, list) else [declared]
    return sorted({token for token in [*ids, tokenizer.eos_token_id] if token is not None})


def window_of(model: Any) -> int:
    """The tokens that the model attends to at most; without a bound where it attends to none and keeps a state.

    Raises:
        ModelError: its config does not say.
    """
    config = model.config.get_text_config()
    window = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if window is None and not keeps_keys(new_cache(config)):
        return sys.maxsize
    if window is None:
        raise ModelError(
            "the model's config names no max_position_embeddings, so prompts could not be checked against its window"
        )
    return int(window)
