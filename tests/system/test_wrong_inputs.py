"""A corpus of wrong command lines, settings, configs, data and folders: each is said, and nothing is written."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from selfdistill.cli.app import main
from support.wrong_inputs import WRONG_INPUTS


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_a_wrong_input_is_said_and_leaves_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, sentence = WRONG_INPUTS[case]
    line = words if isinstance(words, str) else words(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line))
    said = capsys.readouterr()
    # Rows that are rejected are the answer of data check; its report is no refusal.
    if ended.value.code == 1:
        assert line.startswith("data check") and said.err == ""
        assert f"rejected: {sentence}" in said.out
    else:
        assert (ended.value.code, said.out) == (2, "")
        # Whether torch is there already depends on the tests before.
        refusal = said.err.removeprefix("loading torch\n")
        assert refusal.startswith("selfdistill: ") and sentence in refusal
        assert refusal.count("\n") == 1
    assert "Traceback" not in said.err
    assert sorted(tmp_path.rglob("*")) == before
