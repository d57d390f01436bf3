"""Every output that docs/cli.md shows is what its command prints, and its table of other tools is the program's."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from docs_site.config_keys import tables
from selfdistill.cli.app import main
from selfdistill.cli.terminal import FOREIGN
from selfdistill.config.run import RunConfig
from selfdistill.config.tasks import SourceConfig

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^```text\n\$ selfdistill (.*)\n((?:.*\n)*?)```", PAGE, re.MULTILINE)


def test_every_shown_output_is_what_its_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}.\n#### {n + 1}"} for n in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert len(SHOWN) == 4
    for command, output in SHOWN:
        with pytest.raises(SystemExit):
            main(shlex.split(command))
        said = capsys.readouterr()
        assert (said.out + said.err).startswith(output), command


def test_the_table_of_other_tools_is_the_programs() -> None:
    table = dict(re.findall(r"^\| `(--[\w-]+)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert {name: text.strip("`") for name, text in table.items()} == FOREIGN


def test_what_is_said_of_another_tools_option_is_a_key_of_ours() -> None:
    known = {key.path for table in tables(RunConfig) for key in table.keys}
    # A set of rows may be a table of its own, and any key's value is text here.
    known |= {f"task.path.{part}" for part in SourceConfig.model_fields}
    named = {key for text in FOREIGN.values() for key in re.findall(r"--set '?([a-z_.]+)=", text)}
    assert named - known <= {"sampler.kind"}
    assert len(named) > 20
