"""A corpus of models that cannot be used: each is one sentence at the terminal, and nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from selfdistill.cli.app import main
from support.tiny import save_tiny_model
from support.wrong_models import WRONG_MODELS


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("good"))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", WRONG_MODELS)
def test_a_wrong_model_is_one_sentence(
    case: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, sentence = WRONG_MODELS[case]
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    other = change(folder)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder if other is None else other), "--task", "countdown", "--limit", "1"])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    # A library's progress bars and warnings may stand before the sentence.
    last = said.err.rstrip("\n").rpartition("\n")[2]
    assert last.startswith("selfdistill: ") and sentence in last
    assert "Traceback" not in said.err
    assert sorted(tmp_path.rglob("*")) == before
