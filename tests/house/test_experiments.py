"""The stages of experiments/run.py, with comparisons that are made up."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "experiments" / "run.py"
START = 0.05
"""The accuracy before training."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """experiments/run.py as a module that keeps its results in the folder of the test."""
    spec = importlib.util.spec_from_file_location("experiments_run", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A script's own folder is on the path, and a dataclass looks its module up by name.
    monkeypatch.syspath_prepend(str(SOURCE.parent))
    monkeypatch.setitem(sys.modules, "experiments_run", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


@pytest.fixture
def tuned(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Tune two methods, whose arms have the accuracies that a function gives them.

    Returns what was chosen and the arms of each comparison.
    """
    grids: dict[str, list[tuple[float, dict[str, Any]]]] = {
        "grpo": [(1e-4, {}), (2e-4, {}), (4e-4, {})],
        "sd": [(2e-4, {"strength": 0.05}), (2e-4, {"strength": 0.1}), (4e-4, {"strength": 0.1})],
    }
    monkeypatch.setattr(run, "ARMS", {"countdown": tuple(grids)})
    monkeypatch.setattr(run, "GRIDS", grids)

    def tune(accuracy: Callable[[str], float]) -> tuple[dict[str, Any], list[list[str]]]:
        compared: list[list[str]] = []

        def compare(arms: Sequence[Path], out: Path, kept: str, terms: Any, jobs: int) -> dict[str, Any]:
            assert (kept, terms.split) == ("countdown-tune", "validation") and all(path.is_file() for path in arms)
            compared.append([path.stem for path in arms])
            tables = [tomllib.loads(path.read_text(encoding="utf-8")) for path in arms]
            return {
                "arms": [
                    {
                        "name": path.stem,
                        "method": table["method"],
                        "optimiser": table["optimiser"],
                        "accuracy": {"before": {"value": START}, "final": {"value": accuracy(path.stem)}},
                    }
                    for path, table in zip(arms, tables, strict=True)
                ]
            }

        monkeypatch.setattr(run, "compare", compare)
        run.tune(run.Stage("countdown", run.TUNING, tmp_path / "out", 1))
        return json.loads((tmp_path / "countdown-chosen.json").read_text(encoding="utf-8")), compared

    return tune


def added(compared: list[list[str]]) -> list[list[str]]:
    """The arms that each comparison has beyond the one before it."""
    return [[name for name in later if name not in earlier] for earlier, later in itertools.pairwise(compared)]


def test_only_a_grid_whose_best_candidate_is_at_an_edge_is_widened(tuned: Any) -> None:
    chosen, compared = tuned(lambda name: {"grpo-0.0002": 0.5, "sd-0.0002-0.1": 0.4}.get(name, 0.1))
    # The best sd has the smallest rate and the largest strength, so half and twice of it are tried.
    assert added(compared) == [["sd-0.0001-0.1", "sd-0.0002-0.2"]]
    assert chosen["grpo"] == {
        "learning_rate": 2e-4,
        "hyperparameters": {},
        "accuracy": 0.5,
        "arm": "grpo-0.0002",
        "candidates": 3,
    }
    assert chosen["sd"] == {
        "learning_rate": 2e-4,
        "hyperparameters": {"strength": 0.1},
        "accuracy": 0.4,
        "arm": "sd-0.0002-0.1",
        "candidates": 5,
    }


def test_a_grid_is_widened_three_times_at_most_and_its_edge_is_named(
    tuned: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The accuracy of grpo rises with its rate, that of sd as its strength falls."""
    chosen, compared = tuned(
        lambda name: float(name[5:]) if name.startswith("grpo") else 1.0 - float(name.rpartition("-")[2])
    )
    assert added(compared) == [
        ["grpo-0.0008", "sd-0.0001-0.05", "sd-0.0002-0.025"],
        ["grpo-0.0016", "sd-0.0002-0.0125"],
        ["grpo-0.0032", "sd-0.0002-0.00625"],
    ]
    assert (chosen["grpo"]["learning_rate"], chosen["grpo"]["candidates"]) == (3.2e-3, 6)
    assert (chosen["sd"]["arm"], chosen["sd"]["candidates"]) == ("sd-0.0002-0.00625", 7)
    said = capsys.readouterr().err
    assert "The best grpo has the largest optimiser.learning_rate" in said
    assert "The best sd has the smallest method.strength" in said


def test_what_gains_nothing_is_not_tried_at_smaller_rates(tuned: Any) -> None:
    """Towards the rate 0 an arm stays at the start, so that there is no best rate to be found."""
    chosen, compared = tuned(lambda name: {"grpo-0.0001": START, "sd-0.0002-0.1": 0.4}.get(name, 0.01))
    assert [name for names in added(compared) for name in names if name.startswith("grpo")] == []
    assert chosen["grpo"]["arm"] == "grpo-0.0001"


def test_final_arms_are_compared_at_equal_completions_on_the_test_split_in_growing_numbers(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {
        method: {"learning_rate": rate, "hyperparameters": hyperparameters}
        for method, rate, hyperparameters in [("grpo", 4e-4, {}), ("antisd", 2e-4, {"strength": 0.1}), ("sdpo", 1, {})]
    }
    (tmp_path / "countdown-chosen.json").write_text(json.dumps(chosen), encoding="utf-8")
    commands: list[list[str]] = []

    def command(words: list[str], **options: Any) -> None:
        commands.append(words[4:])
        out = Path(words[words.index("--out") + 1])
        out.mkdir(exist_ok=True)
        (out / "compare.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(run.subprocess, "run", command)
    stage = run.Stage("countdown", run.FINAL, tmp_path / "out", 2)
    run.final(stage)
    arms = [[Path(word).stem for word in words if word.endswith(".toml")] for words in commands]
    names = ["grpo", "antisd", "antisd-published", "antisd-ungated", "sdpo"]
    assert arms == [names[:2], names[:4], names]
    assert commands[0][2:] == [
        *("--match", "completions", "--seeds", "0,1,2,3,4", "--final-split", "test", "--jobs", "2"),
        *("--out", str(tmp_path / "out")),
    ]
    published = tomllib.loads((tmp_path / "out" / "configs" / "antisd-published.toml").read_text(encoding="utf-8"))
    assert published["method"] == {"name": "antisd", "strength": 0.5, "warmup": 1}
    assert published["optimiser"] == {"learning_rate": 4e-4}
    # A few of the arms: the baseline is among them.
    commands.clear()
    run.final(run.replace(stage, only=frozenset(["sdpo"])))
    assert [Path(word).stem for word in commands[0] if word.endswith(".toml")] == ["grpo", "sdpo"]
    with pytest.raises(SystemExit, match="--arms: opsd is not of this stage; its arms: grpo, antisd, "):
        run.final(run.replace(stage, only=frozenset(["opsd"])))


def test_a_stage_goes_on_from_the_archive_of_its_runs(run: Any, tmp_path: Path) -> None:
    """An archive has the numbers of ended runs, and not the place where they were made."""
    runs, archive = tmp_path / "stages" / "final" / "runs", tmp_path / "results" / "final.tar.xz"
    for seed in (0, 1):
        (runs / "grpo" / f"seed-{seed}").mkdir(parents=True)
        (runs / "grpo" / f"seed-{seed}" / "metrics.jsonl").write_text(f'{{"step": {seed}}}\n', encoding="utf-8")
    ended = runs / "grpo" / "seed-0"
    (ended / "summary.json").write_text(f'{{"command": "train --out {ended}"}}', encoding="utf-8")
    (ended / "rollouts.jsonl").write_text("long", encoding="utf-8")
    run.unpack(archive, runs)
    run.pack(runs, archive)
    again = tmp_path / "elsewhere" / "runs"
    (again / "sd" / "seed-0").mkdir(parents=True)
    run.unpack(archive, again)
    made = {path.relative_to(again).as_posix(): path.read_text(encoding="utf-8") for path in again.rglob("*.json*")}
    assert made == {
        "grpo/seed-0/metrics.jsonl": '{"step": 0}\n',
        "grpo/seed-0/summary.json": '{"command": "train --out runs/experiments/final/runs/grpo/seed-0"}',
    }
    # A run that is there stays as it is, and equal runs make equal bytes.
    (again / "grpo" / "seed-0" / "metrics.jsonl").write_text("newer", encoding="utf-8")
    run.unpack(archive, again)
    assert (again / "grpo" / "seed-0" / "metrics.jsonl").read_text(encoding="utf-8") == "newer"
    first = archive.read_bytes()
    run.pack(runs, archive)
    assert archive.read_bytes() == first


def test_no_convention_and_no_seed_of_the_tuning_is_one_of_the_final_runs(run: Any) -> None:
    tuning, final = (
        {terms.conventions + int(seed) for seed in terms.seeds.split(",")} for terms in (run.TUNING, run.FINAL)
    )
    assert not tuning & final and not set(run.TUNING.seeds.split(",")) & set(run.FINAL.seeds.split(","))
    assert min(final) >= 1000 and len(final) == 5


def test_the_draws_of_an_arm_are_kept_when_all_its_seeds_are_drawn(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Path] = []

    def evaluate(words: list[str], **options: Any) -> Any:
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(Path(words[words.index("evaluate") + 1]))
        out = json.dumps({"hits": [len(drawn), 0], "problem_set": "the same"})
        return subprocess.CompletedProcess(words, 0, stdout=out)

    monkeypatch.setattr(run.subprocess, "run", evaluate)
    stage = run.Stage("countdown", run.replace(run.FINAL, seeds="0,1"), tmp_path / "out", 1)
    with pytest.raises(KeyboardInterrupt):
        run.draw(stage)
    assert [f"{path.parent.name}/{path.name}" for path in drawn] == [
        "grpo/seed-0",
        "grpo/seed-1",
        f"{run.PASS_ARMS[1]}/seed-0",
    ]
    kept = json.loads((tmp_path / "countdown-pass.json").read_text(encoding="utf-8"))
    assert kept["hits"] == {"grpo": {"0": [1, 0], "1": [2, 0]}}
    assert kept["shared_problems"] is True and kept["baseline"] == "grpo"
