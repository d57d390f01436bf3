"""The ``train`` command: train in this process, as one rank of several, or in N launched processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from selfdistill.cli.early import check_run
from selfdistill.cli.terminal import quiet
from selfdistill.config.run import load_config
from selfdistill.distributed.signals import STOPPED_BY_ALARM, stop_on_signals
from selfdistill.errors import ConfigError


def train(
    config: str,
    overrides: Sequence[str],
    folder: Path,
    *,
    resume: bool,
    dry_run: bool = False,
    untrained: Path | None = None,
) -> int:
    """Train in this process, as one rank if the environment sets ``WORLD_SIZE``. Returns the exit code.

    ``dry_run`` does everything up to the first step, prints it and writes nothing. Runs with the same folder
    ``untrained`` share the evaluation of an untrained model.

    Raises:
        UserError: the run failed. One rank raises it, the others exit.
    """
    task = None
    if "WORLD_SIZE" not in os.environ:
        # A mistake is reported before torch is imported, which takes seconds.
        task = check_run(load_config(config, overrides), folder, resume=resume)
    quiet()
    from rich.console import Console

    from selfdistill.distributed.world import connect, report_error_once
    from selfdistill.models.devices import on_gpu
    from selfdistill.tracking.progress import Progress
    from selfdistill.training.dry_run import rehearse
    from selfdistill.training.loop import Run

    with report_error_once(resume=_go_on(folder)):
        settings = load_config(config, overrides)
        world = connect(cuda=on_gpu(settings.model), timeout=settings.parallel.timeout)
        if dry_run:
            with Progress(Console(quiet=not world.is_rank_zero)) as progress:
                rehearse(settings, folder, resume=resume, progress=progress, task=task)
            return 0
        with Progress(Console(quiet=not world.is_rank_zero)) as progress, stop_on_signals(progress.log) as stop:
            run = Run(settings, folder, resume=resume, progress=progress, task=task, untrained=untrained)
            summary = run.train(stop)
    progress.closing(summary, str(folder / "report.html"))
    if summary["stopped_by"]:
        best = summary["best_step"]
        which = "the newest evaluated" if best is None else "the best"
        of = summary["after_step"] if best is None else best
        progress.log(
            f"ended after step {summary['steps']} by {', '.join(summary['stopped_by'])}; {which} checkpoint, of step "
            f"{of}, is {folder / 'checkpoints' / 'best'}; to go on, take the name out of stop_on "
            "and use --resume"
        )
        return STOPPED_BY_ALARM
    if stop.signal is not None and not summary["finished"]:
        progress.log(f"stopped after step {summary['steps']}; {_go_on(folder)}")
        return 128 + stop.signal
    return 0


def train_with(processes: int, config: str, overrides: Sequence[str], folder: Path, *, resume: bool) -> int:
    """Train in N processes on this machine. Returns the exit code.

    Raises:
        UserError: the run failed and no process has reported the error.
    """
    from selfdistill.distributed.launch import launch

    if "WORLD_SIZE" in os.environ:
        raise ConfigError("--launch starts the processes itself; here others have (WORLD_SIZE is set): leave it out")
    check_run(load_config(config, overrides), folder, resume=resume)
    settings = [part for override in overrides for part in ("--set", override)]
    arguments = ["train", config, *settings, "--out", str(folder), *(["--resume"] if resume else [])]
    with stop_on_signals(lambda message: None) as stop:
        return launch(arguments, processes, stop=stop, resume=_go_on(folder))


def _go_on(folder: Path) -> str:
    return f"continue with --resume --out {folder}"
