"""The ``watch`` command: serve the page of one or several runs until Ctrl-C, or write it."""

from __future__ import annotations

from pathlib import Path

from selfdistill.cli.terminal import echo
from selfdistill.report.index import write_index
from selfdistill.report.page import write_report
from selfdistill.report.server import is_loopback, server_of


def serve(folder: Path, *, host: str, port: int) -> None:
    """Serve the page of a run and print its address. Returns after Ctrl-C.

    Raises:
        UserError: the folder holds no run, or the address cannot be bound.
    """
    with server_of(folder, host=host, port=port) as server:
        if not is_loopback(host):
            echo(
                f"warning: at {host} anybody who can reach this machine reads the run's prompts and completions; "
                "there is no password",
                err=True,
            )
        name = f"[{host}]" if ":" in host else host
        echo(f"page: http://{name}:{server.server_address[1]}/ (Ctrl-C ends)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            echo("no longer served; the run itself goes on")


def write_pages(folder: Path) -> Path:
    """Write the page of a run, or the index of a folder of runs with their pages. Returns the written page.

    Raises:
        UserError: the folder holds no run, or a file of the run cannot be read.
    """
    if not folder.is_dir() or (folder / "config.json").is_file():
        return write_report(folder)
    return write_index(folder)
