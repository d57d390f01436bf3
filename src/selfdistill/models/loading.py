"""Load a model's files with transformers and peft: weights, stop ids, window."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch

from selfdistill.config.sources import model_not_found
from selfdistill.errors import ModelError, UserError, first_line, is_full
from selfdistill.models.folder import check_folder
from selfdistill.models.gguf import converted, gguf_file
from selfdistill.models.prefill import keeps_keys, new_cache
from selfdistill.models.quantised import (
    BLOCK,
    check_widths,
    import_peft,
    keep_unpacked,
    loading_options,
    plain_options,
    quantised_layers,
)

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
"""A model's id on the hub, with its owner."""
TOKENIZER_FILES = ("tokenizer.*", "vocab*", "*.model", "*.tiktoken", "adapter_config.json")
"""Name patterns of tokenizer files. An adapter directory may leave the tokenizer to its base."""
_REMEDY = "write where it is now as base_model_name_or_path in {}"


def _reason(error: Exception) -> str:
    """Why a library could not load a model, in one sentence."""
    if isinstance(error, PickleError):
        return "its .bin files hold more than tensors, or are damaged, and are not opened: save it as safetensors"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than its config.json says"
    if "size mismatch for base_model" in str(error):
        return "its adapter has other shapes than its base model: it was trained on another one"
    if "Unrecognized configuration class" in str(error):
        return "its architecture is no causal language model (AutoModelForCausalLM has no class for it)"
    # An error inside a library, caused by a value that it did not expect.
    if isinstance(error, TypeError | AttributeError):
        return f"{type(error).__name__}: {first_line(error)}; see its config.json"
    if isinstance(error, LookupError | ArithmeticError):
        return f"{type(error).__name__}: {first_line(error)}; see its config.json"
    # The validation errors of a config name the field in the first line and the mistake in the second.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines and lines[0].endswith(":") else first_line(error)


def resolve_model(path: str) -> str:
    """The directory of a shipped model by name, or of a converted GGUF file; any other path or hub id unchanged.

    Raises:
        ModelError: the name is empty, or a GGUF file cannot be converted.
    """
    if not path.strip():
        raise ModelError("the model's name is empty: give a directory, a hub id or a shipped model, countdown-base")
    shipped = resources.files("selfdistill.models") / "shipped" / path
    # "." and ".." are the user's own folders, not those around the shipped models.
    if "/" not in path and path.strip(".") and shipped.is_dir():
        return str(shipped)
    file = gguf_file(path)
    return str(converted(file)) if file else path


def find_model(path: str) -> str:
    """The directory or hub id of a model by any name that a user may give.

    Raises:
        ModelError: the name is none of these.
    """
    if is_nowhere(path):
        if "\0" not in path and len(path) < 200 and Path(path).is_file():
            raise ModelError(f"model {path!r} is a file: give the directory that holds it")
        raise ModelError(model_not_found(path))
    return resolve_model(path)


def is_nowhere(path: str) -> bool:
    """Whether a name is neither a model's directory, nor a shipped model, nor could be a hub id (org/name)."""
    try:
        return not HUB_ID.fullmatch(path) and not gguf_file(path) and not Path(resolve_model(path)).is_dir()
    except (OSError, ValueError):
        return True


def lasting_name(path: str) -> str:
    """A name that works from any working directory: absolute if it is a directory or a GGUF file, else unchanged."""
    own = gguf_file(path) or (resolve_model(path) == path and Path(path).is_dir())
    return str(Path(path).absolute()) if own else path


@dataclass(frozen=True, slots=True)
class Placed:
    """How a model is loaded: its number type, and what its linear layers are quantised to, on which device."""

    dtype: torch.dtype
    quantisation: str | None = None
    device: torch.device | None = None
    """Device of a quantised model. All others are loaded on the CPU."""


def read_model(source: str, path: str, placed: Placed, adapters: Sequence[Path] = ()) -> Any:
    """Load the transformers model in a directory, with an adapter merged into its base. ``path`` is for messages.

    An adapter on a quantised base stays beside it, because merging would round the sum. ``adapters`` are the
    directories whose base model this is.

    Raises:
        ModelError: it cannot be loaded, or weights are missing.
    """
    from transformers import AutoModelForCausalLM

    loaded: Any
    adapter = Path(source) / "adapter_config.json"
    if Path(source).is_dir():
        check_folder(Path(source), path)
    try:
        if adapter.is_file():
            # The base may itself be an adapter, if one run started from another run's adapter.
            base = _read_base(adapter, path, placed, adapters)
            if not any(True for _ in Path(source).glob("adapter_model.*")):
                raise ModelError(f"{path} holds an adapter_config.json and no adapter_model.safetensors beside it")
            quantised_base = quantised_layers(base) is not None
            if quantised_base and hasattr(base, "peft_config"):
                raise ModelError(f"{path} is an adapter on another adapter, whose base is quantised: merge that first")
            with quiet_peft():
                adapted: Any = import_peft().PeftModel.from_pretrained(base, source)
            return adapted if quantised_base else adapted.merge_and_unload()
        # If trust_remote_code is unset, transformers asks at the terminal whether to run a model's own code.
        if placed.quantisation is None:
            options = plain_options(source)
        else:
            options = loading_options(source, path, placed.quantisation, placed.dtype, placed.device)
        loaded = AutoModelForCausalLM.from_pretrained(
            source, dtype=placed.dtype, output_loading_info=True, trust_remote_code=False, **options
        )
    except UserError:
        raise
    # The loaders of transformers, peft and torch raise many different types.
    except Exception as error:
        if is_full(error):
            raise
        raise ModelError(f"cannot load a causal language model from {path}: {_reason(error)}") from error
    model, report = loaded
    # transformers initialises missing weights at random and only logs it.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{path} lacks {len(missing)} of its weights, the first is {missing[0]}")
    keep_unpacked(model)
    check_widths(model, path)
    if placed.quantisation is not None and quantised_layers(model) is None:
        raise ModelError(
            f"{path} has no linear layer whose inputs are a multiple of {BLOCK}, so nothing is quantised: leave out "
            "model.quantisation"
        )
    return model


def read_tokenizer(path: str) -> Any:
    """The tokenizer of a model by any name that a user may give.

    Raises:
        ModelError: there is no such model, or its tokenizer is absent or cannot be used.
    """
    from transformers import AutoTokenizer

    source = find_model(path)
    folder = Path(source)
    # transformers builds an empty tokenizer if the directory has none.
    if folder.is_dir() and not any(True for name in TOKENIZER_FILES for _ in folder.glob(name)):
        raise ModelError(f"{path} holds no tokenizer (tokenizer.json): save the model's own beside its weights")
    if folder.is_dir():
        check_folder(folder, path)
    try:
        # If trust_remote_code is unset, transformers asks at the terminal whether to run a tokenizer's own code.
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    # The tokenizers library raises a bare Exception for a file that it cannot read.
    except Exception as error:
        reason = first_line(error).rstrip(" :.")
        raise ModelError(
            f"no usable tokenizer in {path}: {reason}; save its tokenizer.json and tokenizer_config.json again"
        ) from error


def base_name(adapter: Path, path: str) -> str:
    """The name of the model that an adapter was trained on. ``path`` is the adapter's name for messages.

    Raises:
        ModelError: its config names none, or one that is not there.
    """
    base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"the adapter in {path} names no base model: {_REMEDY.format(adapter)}")
    if is_nowhere(base):
        raise ModelError(
            f"the adapter in {path} belongs to the model in {base}, which is not there: {_REMEDY.format(adapter)}"
        )
    return str(base)


def _read_base(adapter: Path, path: str, placed: Placed, adapters: Sequence[Path]) -> Any:
    """Load the base model of the adapter that a peft config describes.

    Raises:
        ModelError: the path in the adapter's config does not exist, or the base cannot be loaded.
    """
    base, remedy = base_name(adapter, path), _REMEDY.format(adapter)
    if adapter.parent.resolve() in adapters:
        raise ModelError(f"the adapter in {path} is its own base model: {remedy}")
    try:
        return read_model(resolve_model(base), base, placed, [*adapters, adapter.parent.resolve()])
    except ModelError as error:
        raise ModelError(
            f"the adapter in {path} cannot be put on its base model: {error}; if it has moved, {remedy}"
        ) from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Suppress three warnings that peft causes itself whenever it creates an adapter.

    It warns about its own patterns for fused experts, which are no linear layers and get no adapter. It also reads an
    attribute that transformers has renamed, and says that it transposes the weights of GPT-2's layers, as it must.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys", RuntimeWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        yield


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a completion: the end-of-sequence ids of the model's generation config and of the tokenizer."""
    declared = model.generation_config.eos_token_id
    ids = declared if isinstance(declared, list) else [declared]
    return sorted({token for token in [*ids, tokenizer.eos_token_id] if token is not None})


def window_of(model: Any) -> int:
    """The model's context window in tokens; ``sys.maxsize`` for models that keep a state instead of a key-value cache.

    Models with LongRoPE (Phi-4-mini) rotate every token of a batch in another way once one sequence in it is longer
    than they were first trained with. Then scores would depend on what stands beside a sequence, and differ from the
    probabilities that it was sampled with: the window ends there.

    Raises:
        ModelError: the config names no window.
    """
    config = model.config.get_text_config()
    window = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if window is None and not keeps_keys(new_cache(config)):
        return sys.maxsize
    if window is None:
        raise ModelError(
            "the model's config names no max_position_embeddings, so prompts could not be checked against its window"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    switches = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
    return int(min(window, switches or window))
