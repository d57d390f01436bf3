"""The ``compare`` command: the plan of the arms, their training and the closing table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console

from selfdistill.cli.terminal import echo, echo_json
from selfdistill.comparison.arms import describe_plan
from selfdistill.comparison.compare import Comparison, find_arm, plan, report_plan, run_comparison, write_results
from selfdistill.comparison.options import parse_seeds
from selfdistill.comparison.tables import closing
from selfdistill.distributed.signals import stop_on_signals
from selfdistill.tracking.progress import Progress


def plan_comparison(
    configs: Sequence[str],
    overrides: Sequence[str],
    *,
    methods: Sequence[str],
    sweeps: Sequence[str],
    seeds: str,
    baseline: str | None,
    main: str | None,
    folder: Path,
    match: str,
    split: str,
    engine: str | None = None,
) -> Comparison:
    """Return the plan of the comparison that the options describe.

    Raises:
        UserError: a config, a method, the seeds or the name of an arm is wrong.
    """
    chosen = parse_seeds(seeds)
    comparison = plan(
        configs,
        overrides,
        seeds=chosen,
        baseline=baseline,
        folder=folder,
        methods=methods,
        sweeps=sweeps,
        match=match,
        split=split,
        engine=engine,
    )
    if main is not None:
        find_arm(comparison, main, "--main")
    return comparison


def describe_arms(comparison: Comparison, *, json: bool) -> None:
    """Print the arms and what differs between them, as lines or as one JSON document."""
    report = report_plan(comparison)
    if json:
        echo_json(report)
    for line in [] if json else describe_plan(report):
        echo(line)


def compare_arms(comparison: Comparison, *, jobs: int | None, main: str | None, json: bool) -> None:
    """Train all arms, write the results and print them, as lines or as the content of ``compare.json``.

    Raises:
        UserError: a folder holds something else, or a run failed.
        Exit: the comparison was stopped by a signal.
    """
    with Progress(Console(stderr=json)) as progress, stop_on_signals(progress.log) as stop:
        finished = run_comparison(comparison, jobs=jobs, progress=progress, stop=stop)
    if not finished:
        progress.log(f"stopped; the same command goes on where the runs in {comparison.folder} are")
        raise typer.Exit(128 + (stop.signal or 0))
    result = write_results(comparison, main=main)
    if json:
        echo_json(result)
    for line in (*closing(result), f"page: {comparison.folder / 'compare.html'}"):
        echo(line, err=json)
