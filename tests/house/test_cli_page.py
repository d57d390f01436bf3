"""The table of other tools' options on docs/cli.md is the program's."""

from __future__ import annotations

import re
from pathlib import Path

from docs_site.config_keys import tables
from selfdistill.cli.terminal import FOREIGN
from selfdistill.config.run import RunConfig
from selfdistill.config.tasks import SourceConfig

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


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
