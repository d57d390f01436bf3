"""Convert a GGUF file to a plain model directory, once, so that everything else reads one format."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from selfdistill.errors import ModelError, first_line, is_full
from selfdistill.models.folder import POINTER

RECORD = "gguf.json"
"""File of a converted directory: the GGUF file's name, its SHA-256, and how many tensors it stores in which type."""

MAGIC = b"GGUF"
"""First bytes of every GGUF file."""

PLAIN_TYPES = {"F32", "F16", "BF16", "F64"}
"""Tensor types of GGUF that hold plain floating-point numbers. All others are quantised."""


def gguf_file(path: str) -> Path | None:
    """The GGUF file that a model's path refers to: the file itself, or the only one in a folder without config.json.

    Raises:
        ModelError: the folder holds several GGUF files.
    """
    source = Path(path)
    if source.suffix == ".gguf" and source.is_file():
        return source
    if not source.is_dir() or any((source / name).is_file() for name in ("config.json", "adapter_config.json")):
        return None
    files = sorted(source.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ModelError(f"{path} holds several GGUF files ({names}): name one of them, {path}/{files[0].name}")
    return files[0] if files else None


def converted(file: Path) -> Path:
    """The directory that a GGUF file was converted into, converting it now if that has not been done.

    It is kept below ``$SELFDISTILL_CACHE`` (``~/.cache/selfdistill``), under the file's path, size and time of change.

    Raises:
        ModelError: the file cannot be converted.
    """
    status = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    target = _cache() / f"{file.stem}-{key}"
    if not (target / RECORD).is_file():
        convert(file, target)
    return target


def conversions() -> set[Path]:
    """The directories that GGUF files have been converted into so far."""
    return {record.parent for record in _cache().glob(f"*/{RECORD}")}


def _cache() -> Path:
    return Path(os.environ.get("SELFDISTILL_CACHE") or Path.home() / ".cache" / "selfdistill") / "gguf"


def convert(file: Path, target: Path) -> None:
    """Write the model in a GGUF file as a plain directory: float32 weights, tokenizer, chat template and a record.

    The directory appears whole or not at all.

    Raises:
        ModelError: the ``gguf`` package is missing, or transformers cannot read the file.
    """
    types = tensor_types(file)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        # Alone in a folder: transformers also reads what lies beside the file, such as another model's tokenizer.
        with tempfile.TemporaryDirectory(prefix="selfdistill-gguf-") as alone:
            (Path(alone) / file.name).symlink_to(file.resolve())
            quantised = AutoModelForCausalLM.from_pretrained(alone, gguf_file=file.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=file.name)
    # transformers and the tokenizers library raise many different types.
    except Exception as error:
        if is_full(error):
            raise
        raise ModelError(f"cannot convert {file}: {first_line(error)}") from error
    # The loaded model remembers its quantisation and would be saved as one that must be dequantised again.
    config: Any = quantised.config
    del config.quantization_config
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        record = {"file": file.name, "sha256": _sha256(file), "tensors": dict(types)}
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        # Of two processes that convert at once, the second finds the first one's directory: both hold the same.
        if not (target / RECORD).is_file():
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def tensor_types(file: Path) -> Counter[str]:
    """Counts of a GGUF file's tensors by type, for example ``{"Q4_1": 210, "F32": 61, "Q8_0": 1}``.

    Raises:
        ModelError: the ``gguf`` package is missing, or the file is no GGUF, damaged or cut off.
    """
    with file.open("rb") as opened:
        start = opened.read(len(POINTER))
    if start == POINTER:
        raise ModelError(f"{file} is a pointer of git-lfs, not the file itself: run git lfs pull there")
    if not start.startswith(MAGIC):
        raise ModelError(f"{file} is no GGUF file, although its name ends in .gguf: download or copy it again")
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(
            f"{file} is a GGUF file, which needs the gguf package: pip install 'selfdistill[gguf]'"
        ) from error
    try:
        tensors = GGUFReader(file).tensors
    # The reader maps the file and may raise any error. Only its message about a version is shown to the user.
    except Exception as error:
        if is_full(error):
            raise
        if "version" in str(error):
            raise ModelError(f"{file} cannot be read: {first_line(error)}") from error
        raise ModelError(f"{file} is damaged or was not copied to its end: download or copy it again") from error
    return Counter(tensor.tensor_type.name for tensor in tensors)


def quantised_as(*kinds: str | None) -> str | None:
    """How weights were quantised, one time after another, for example ``"Q4_1, then nf4"``; None if they were not."""
    return ", then ".join(kind for kind in kinds if kind) or None


def gguf_quantisation(folder: str | Path) -> str | None:
    """How the weights of a converted directory were quantised, for example ``"Q4_1"``; None if they were not.

    It is the most frequent quantised type.
    """
    record = Path(folder) / RECORD
    if not record.is_file():
        return None
    tensors: dict[str, int] = json.loads(record.read_text(encoding="utf-8"))["tensors"]
    quantised = {name: count for name, count in tensors.items() if name not in PLAIN_TYPES}
    return max(quantised, key=quantised.__getitem__) if quantised else None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
