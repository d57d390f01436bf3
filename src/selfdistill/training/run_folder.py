"""Load or export the weights of a run folder or a model, without training."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from selfdistill.config.renamed import with_new_names
from selfdistill.config.run import RunConfig
from selfdistill.config.sections import LimitsConfig
from selfdistill.config.sources import find_source, read_config
from selfdistill.contexts.chat import Chat
from selfdistill.errors import CheckpointError, ConfigError
from selfdistill.files.jsonl import read_object
from selfdistill.models.devices import parse_device, resolve_device
from selfdistill.models.policy import ADAPTER, DTYPES, Policy, load_weights, save_policy
from selfdistill.tracking.progress import activity
from selfdistill.training import atomic
from selfdistill.training.build import Models, build_models, build_policy
from selfdistill.training.checkpoint import best_step, load_averages, load_trained
from selfdistill.training.problem import Problem


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights that a name refers to, and their checkpoint."""

    path: str
    """Model directory, hub id or shipped name."""
    checkpoint: str | None = None
    """``"last"``, ``"best"``, or ``"step"`` for an earlier one; None if the weights belong to no run."""
    step: int | None = None
    """Step of the checkpoint; None if the weights belong to no run, or an earlier version wrote the best ones."""
    folder: Path | None = None
    """Folder of the checkpoint, which may hold the weights as shards."""
    warnings: tuple[str, ...] = ()
    """Sentences for the user, for example about a damaged checkpoint that was skipped."""

    def describe(self) -> str:
        """Return the path with the checkpoint and its step in words."""
        if self.step is None:
            return self.path if self.checkpoint is None else f"{self.path} ({self.checkpoint} checkpoint)"
        which = "checkpoint" if self.checkpoint == "step" else f"{self.checkpoint} checkpoint"
        return f"{self.path} ({which}, step {self.step})"


def find_weights(name: str, config: RunConfig, checkpoint: str | None = None) -> Weights:
    """Find the weights of a config, a run folder, a checkpoint or a model.

    A config refers to its model, a run to its newest valid checkpoint unless ``checkpoint`` is ``"best"`` or a step.

    Raises:
        UserError: the checkpoint does not exist, is damaged or has been written as shards.
    """
    source = find_source(name)
    if source.kind != "run" or source.path is None:
        if checkpoint is not None:
            raise ConfigError(f"--checkpoint {checkpoint} chooses among those of a run, and {name} is no run folder")
        if source.kind == "config":
            return Weights(config.model.path)
        # A checkpoint that was copied away from its run has the model in a folder of its own.
        has_model = source.path is not None and (Path(name) / "model").is_dir()
        return Weights(str(source.path) if has_model else name)
    if checkpoint is not None and source.checkpoint is not None:
        raise ConfigError(f"{name} is a checkpoint already: leave out --checkpoint, or give its run, {source.path}")
    selected = checkpoint or source.checkpoint or "last"
    saved = source.path / "checkpoints"
    if selected == "best":
        reason = atomic.corruption(saved / "best") if (saved / "best").is_dir() else "it does not exist yet"
        if reason is not None:
            raise CheckpointError(f"{source.path} has no best checkpoint to use: {reason}")
        return Weights(str(saved / "best"), "best", best_step(saved), saved / "best")
    warnings: list[str] = []
    if selected == "last":
        newest, warnings = atomic.latest_valid(saved)
        if newest is None:
            # A run writes its best checkpoint at step 0, before the first regular one.
            only_best = (saved / "best").is_dir()
            raise CheckpointError(
                f"{name} has no checkpoint {'but its best: add --checkpoint best' if only_best else 'yet'}"
            )
    else:
        steps = [int(path.name.removeprefix("step-")) for path in atomic.checkpoints(saved)]
        if not selected.isdecimal() or int(selected) not in steps:
            listed = ", ".join(map(str, steps)) or "none so far"
            raise CheckpointError(
                f"{source.path} has no checkpoint {selected!r}: write best, last or a step; it keeps those of steps "
                f"{listed}"
            )
        newest = atomic.checkpoint_path(saved, int(selected))
        reason = atomic.corruption(newest)
        if reason is not None:
            raise CheckpointError(f"checkpoint {newest.name} is torn ({reason})")
    which = "last" if newest == atomic.checkpoints(saved)[-1] or selected == "last" else "step"
    step = int(newest.name.removeprefix("step-"))
    return Weights(str(newest / "model"), which, step, newest, tuple(warnings))


def on_this_machine(name: str, config: RunConfig) -> tuple[RunConfig, list[str]]:
    """Return a run's config with this machine's device if the recorded one is missing here, and a warning about it.

    The number type stays the run's, because results depend on it; the memory limits are those of this device. Every
    other config is returned unchanged, because a device that its user names must exist.
    """
    device = config.model.device
    source = find_source(name)
    recorded = read_config(name).get("model", {}).get("device") if source.kind == "run" else None
    if device == "auto" or device != recorded:
        return config, []
    try:
        parse_device(device)
    except ConfigError:
        model, _ = resolve_device(config.model.model_copy(update={"device": "auto"}))
        sampling = config.sampling.model_copy(update={"max_batch_size": None})
        config = config.model_copy(update={"model": model, "sampling": sampling, "limits": LimitsConfig()})
        return config, [
            f"the run trained on {device}, which is not here: {model.device} is used, with {model.dtype} as there"
        ]
    return config, []


def load_model(
    name: str, config: RunConfig, loaded: tuple[Policy, Chat] | None = None, *, checkpoint: str | None = None
) -> tuple[Policy, Chat, Weights]:
    """Load the model of a config, a run folder, a checkpoint or a model; also returns which weights were loaded.

    ``loaded`` is returned as it is if the model is already in memory. ``checkpoint`` is as for :func:`find_weights`.

    Raises:
        UserError: the model cannot be found or used.
    """
    if loaded is not None:
        return (*loaded, Weights(loaded[1].name))
    weights = find_weights(name, config, checkpoint)
    if weights.folder is not None and not Path(weights.path).is_dir():
        raise CheckpointError(
            f"{weights.folder} holds shards and no model directory: make one with selfdistill export "
            f"{weights.folder.parent.parent} --step {weights.step} --out DIR"
        )
    with activity(f"loading {weights.path}"):
        policy, chat = build_policy(config.model.model_copy(update={"path": weights.path}), seed=config.seed)
    return policy, chat, weights


def load_models(
    problem: Problem, source: str | None = None, *, checkpoint: str | None = None
) -> tuple[Models, Weights]:
    """Load the student and all teachers of a config, or of a run at a checkpoint.

    ``source`` is the name that the problem's config was read from; unset: the config's own model. Frozen teachers have
    the weights of the run's start. ``checkpoint`` is as for :func:`find_weights`.

    Raises:
        UserError: the config, the data or the checkpoint cannot be used.
    """
    weights = Weights(problem.config.model.path)
    if source is not None:
        weights = find_weights(source, problem.config, checkpoint)
    models = build_models(problem)
    if weights.folder is None:
        return models, weights
    if weights.checkpoint == "best":
        if models.teachers.followers:
            raise CheckpointError(
                f"{weights.folder} holds the student alone, and the method's teacher follows the student: choose a step"
            )
        load_weights(models.policy, weights.folder)
    else:
        load_trained(weights.folder, models.policy)
        load_averages(weights.folder, models.teachers)
    return models, weights


def checkpoint_to_export(run: Path, out: Path | None, *, step: int | None, dtype: str | None) -> Path:
    """The checkpoint that :func:`export_model` would write.

    Raises:
        CheckpointError: there is no such checkpoint, it is corrupt, or ``out`` is not empty.
        ConfigError: the number type is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype!r} is no number type: write one of {', '.join(DTYPES)}")
    saved = run / "checkpoints"
    if out is not None and out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty: choose another --out")
    path = atomic.latest_valid(saved)[0] if step is None else atomic.checkpoint_path(saved, step)
    steps = ", ".join(str(int(folder.name.removeprefix("step-"))) for folder in atomic.checkpoints(saved))
    if not steps:
        raise CheckpointError(f"{run} holds no checkpoint: give the folder of a run that has saved one")
    if path is None or not path.is_dir():
        raise CheckpointError(f"{run} has no checkpoint of step {step}; it keeps: {steps}")
    reason = atomic.corruption(path)
    if reason is not None:
        raise CheckpointError(f"checkpoint {path.name} is torn ({reason})")
    return path


def export_model(run: Path, out: Path, *, step: int | None, dtype: str | None = None, merge: bool = False) -> Path:
    """Write a checkpoint's model, sharded or not, as a transformers directory; returns the checkpoint's path.

    ``merge`` adds an adapter to its base, so that the directory is a plain model and needs no other.

    ``step`` selects the checkpoint; None is the newest valid one. ``dtype`` is the number type of the written weights;
    None is the run's ``model.dtype``.

    Raises:
        UserError: as for :func:`checkpoint_to_export`, or a base that is stored quantised cannot be merged with its
            adapter.
    """
    path = checkpoint_to_export(run, out, step=step, dtype=dtype)
    model = path / "model"
    adapter = (model / "adapter_config.json").is_file()
    if model.is_dir() and dtype is None and not (merge and adapter):
        # The merged model's folder also has the adapter, which only a resume needs.
        shutil.copytree(model, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ADAPTER))
        return path
    config = RunConfig.model_validate(with_new_names(read_object(run / "config.json")))
    # An adapter is read and merged with the base as it is before it is quantised.
    overrides = {"device": "cpu", "dtype": dtype or config.model.dtype, "quantisation": None}
    policy, chat = build_policy(config.model.model_copy(update=overrides), seed=config.seed)
    load_trained(path, policy)
    if not merge or not policy.is_lora:
        save_policy(policy, chat, out)
        return path
    with TemporaryDirectory(prefix="selfdistill-export-") as aside:
        save_policy(policy, chat, Path(aside), adapter_only=True)
        merged = {"path": aside, "lora": None, **overrides}
        whole, chat = build_policy(config.model.model_copy(update=merged), seed=config.seed)
        if whole.quantisation is not None:
            raise CheckpointError(
                f"{config.model.path} is stored in {whole.quantisation}, and an adapter that is merged into it would "
                "be rounded: export without --merge"
            )
        save_policy(whole, chat, out)
    return path
