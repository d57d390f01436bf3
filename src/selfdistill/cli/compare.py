"""The ``compare`` command: what the plan of the arms says, their training and the closing table."""

from __future__ import annotations

import typer
from rich.console import Console

from selfdistill.cli.terminal import echo, echo_json
from selfdistill.comparison.arms import describe_plan
from selfdistill.comparison.compare import Comparison, report_plan, run_comparison, write_results
from selfdistill.comparison.tables import closing
from selfdistill.distributed.signals import stop_on_signals
from selfdistill.tracking.progress import Progress


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
