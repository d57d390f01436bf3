"""What ``make real`` trains, and the gallery of docs/real-model.md: its pictures are drawn from the kept numbers."""

from __future__ import annotations

import json
import math
import operator
import re
import subprocess
from pathlib import Path

import pytest

from real import gallery, show
from real.word_problems import SUMS, rows
from selfdistill.config.run import load_config
from selfdistill.report.tokens import Piece

ROOT = Path(__file__).parents[2]
SIGNS = {"+": operator.add, "-": operator.sub, "×": operator.mul, "÷": operator.truediv}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_pictures_are_those_of_the_kept_numbers() -> None:
    drawn = gallery.pictures()
    assert len(drawn) == 4
    page = (ROOT / "docs" / "real-model.md").read_text(encoding="utf-8")
    for name, picture in drawn.items():
        assert (gallery.PICTURES / f"{name}.svg").read_text(encoding="utf-8") == picture
        assert f"(pictures/{name}.svg)" in page


def test_the_kept_signals_agree_with_each_other_and_with_the_page() -> None:
    kept = json.loads(gallery.KEPT.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "real-model.md").read_text(encoding="utf-8")
    assert f"| {kept['right'][0]} of {kept['right'][1]} |" in page
    for case in kept["cases"].values():
        assert {len(values) for values in case["signals"].values()} == {len(case["pieces"])}
        # φ(u) = ½ (log(1 + eᵘ) − log 2), and the generic part has no mean.
        for u, phi in zip(case["signals"]["u"], case["signals"]["phi"], strict=True):
            assert phi == pytest.approx(0.5 * (math.log1p(math.exp(u)) - math.log(2)), abs=2e-3)
        assert math.fsum(case["signals"]["generic"]) / len(case["pieces"]) == pytest.approx(0.0, abs=1e-2)
    arithmetic = kept["cases"]["wrong by arithmetic"]
    u = dict(
        zip((Piece(*piece).body.strip() for piece in arithmetic["pieces"]), arithmetic["signals"]["u"], strict=True)
    )
    for token, told in (("*", "−1.2"), ("Hugo", "−3.2"), ("owns", "−2.0")):
        assert f"{u[token]:.1f}".replace("-", "−") == told
        assert told in page
    # The first wrong digit, and the wrong sign that is hardly seen.
    wrong_digit = [piece[1] for piece in arithmetic["pieces"]].index("4")
    assert f"(−{-arithmetic['signals']['u'][wrong_digit]:.1f})" in page
    reading = kept["cases"]["wrong by reading"]
    wrong_sign = [piece[1].strip() for piece in reading["pieces"]].index("+")
    assert f"(u = −{-reading['signals']['u'][wrong_sign]:.2f})" in page
    assert reading["question"].split(". ")[1].removeprefix("Emma leaves ") in page
    assert max(abs(u) for u in kept["cases"]["rambling"]["signals"]["u"]) < 1


def test_the_arms_of_make_real_differ_in_their_method_alone(tmp_path: Path) -> None:
    paths = show.arm_configs(tmp_path / "real")
    configs = [load_config(str(path)) for path in paths]
    assert [config.method["name"] for config in configs] == [*show.ARMS]
    assert configs[2].method["context"] == "solution_turn"
    assert {config.task.model_dump()["path"] for config in configs} == {str(SUMS)}
    assert len({config.model_copy(update={"method": {}}).model_dump_json() for config in configs}) == 1
    short, whole = (show.commands(tmp_path / "real", short=short) for short in (True, False))
    assert [command[0] for command in whole] == ["compare", "inspect"]
    assert "steps=2" in short[0]
    assert "steps=2" not in whole[0]


def test_the_short_job_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(show, "write_sums", lambda: None)
    monkeypatch.setattr("subprocess.run", run)
    for short in (False, True):
        assert show.main(tmp_path / "real", short=short) == 0
    outs = [command[command.index("--out") + 1] for command in commands]
    folders = [tmp_path / "real", tmp_path / "real-short"]
    assert outs == [str(path) for folder in folders for path in (folder, folder / "microscope")]


def test_every_written_solution_calculates_its_answer() -> None:
    for row in rows(300, operations=3, largest=12, seed=1):
        solution = str(row["solution"])
        steps = re.findall(r"(\d+) ([+×÷-]) (\d+) = (\d+)", solution)
        for left, sign, right, result in steps:
            assert SIGNS[sign](int(left), int(right)) == int(result) > 0
        # Every step starts from the result of the one before it, and the last result is the answer.
        assert [left for left, *_ in steps[1:]] == [result for *_, result in steps[:-1]]
        assert solution.endswith(f" #### {row['answer']}") and row["answer"] == steps[-1][3]
        assert len(steps) == row["operations"]


def test_every_target_that_the_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    page = (ROOT / "docs" / "real-model.md").read_text(encoding="utf-8")
    assert {*re.findall(r"(?:^|`)make ([a-z-]+)", page, re.MULTILINE)} <= targets
