"""The ``export`` command: a checkpoint's model with its card, in a folder or on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from selfdistill.errors import ConfigError
from selfdistill.files.jsonl import read_object
from selfdistill.models.gguf_writing import require_gguf, write_gguf
from selfdistill.training.hub import make_repo, upload
from selfdistill.training.model_card import quantised_base, write_card
from selfdistill.training.run_folder import checkpoint_to_export, export_model

GGUF = "model.gguf"
"""File of an export that holds the whole model."""
WHOLE_WEIGHTS = "--gguf writes whole weights, and this export is an adapter: add --merge"


def export_run(
    run: Path,
    out: Path | None,
    *,
    step: int | None,
    dtype: str | None,
    merge: bool,
    gguf: bool = False,
    push: str | None = None,
    private: bool = False,
) -> Iterator[str]:
    """Export a checkpoint as :func:`export_model` does, write its card, and upload it; yields what was done as lines.

    Without ``out`` nothing is left here. ``gguf`` also writes ``model.gguf``. ``push`` is a repository of the hub. It
    is made before anything is exported, and after the run is known to have the checkpoint.

    Raises:
        UserError: the checkpoint cannot be exported, or not as GGUF, or the hub refuses.
    """
    if gguf:
        require_gguf()
    checkpoint = checkpoint_to_export(run, out, step=step, dtype=dtype)
    if gguf and not merge and (checkpoint / "model" / "adapter_config.json").is_file():
        raise ConfigError(WHOLE_WEIGHTS)
    repo = None if push is None else make_repo(push, private=private)
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(TemporaryDirectory(prefix="selfdistill-export-")))
        path = export_model(run, folder, step=step, dtype=dtype, merge=merge)
        number = int(path.name.removeprefix("step-"))
        write_card(run, number, folder, name=repo)
        model = read_object(run / "config.json")["model"]
        if merge and model.get("quantisation"):
            yield quantised_base(model["quantisation"], model["path"], merged=True)
        if out is not None:
            yield f"{path.name} of {run} is in {out}"
        if gguf and (folder / "adapter_config.json").is_file():
            # A sharded checkpoint does not show it before.
            raise ConfigError(WHOLE_WEIGHTS)
        if gguf:
            write_gguf(folder, folder / GGUF, name=repo or run.resolve().name, stays=out is not None)
            if out is not None:
                yield f"as one file: {out / GGUF}"
        if repo is not None:
            yield f"{path.name} of {run} is at {upload(repo, folder, message=f'Step {number} of {run.resolve().name}')}"
