"""Sinks get a run's numbers and completions, read back from what each library wrote; none of them can end the run."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from selfdistill.config.run import parse_config
from selfdistill.config.sections import Sink
from selfdistill.errors import ConfigError
from selfdistill.files.records import RolloutLine
from selfdistill.tracking import trackers
from selfdistill.tracking.trackers import COLUMNS, Begin, Trackers, evaluation_numbers, step_numbers, table_of
from support.runs import lines, metrics, open_run, outcome, recorder, tiny_run, train

SCORE = {"k": 2, "value": 0.5, "low": 0.25, "high": 0.75}
EVALUATION = {"problems": 3, "avg": SCORE, "pass": SCORE, "maj": SCORE, "length": 8.0, "hits": [1, 0, 2]}
LINE = {
    "step": 4,
    "loss": 0.125,
    "reward": None,
    "skipped": {"no sibling": 2.0},
    "phase_seconds": {"student": 1.5},
    "alarms": ["no_signal"],
}
HOSTILE = "a | b\n<script>alert(1)</script> \ud83d"


class Fake:
    """Keeps what it is told."""

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        self.told: list[tuple[int, dict[str, float]]] = []
        self.tables: list[tuple[int, list[list[Any]]]] = []
        self.closed = False
        opened.append(self)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append((step, dict(values)))

    def completions(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        self.tables.append((step, [list(row) for row in rows]))

    def close(self) -> None:
        self.closed = True


class Broken(Fake):
    """Fails whatever it is asked."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        raise RuntimeError("no\nroom")

    def completions(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        raise OSError("disk is full")

    def close(self) -> None:
        raise ValueError("never opened")


opened: list[Fake] = []


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("selfdistill.training.loop.write_report", lambda folder: None)
    opened.clear()
    yield
    opened.clear()


def installed(monkeypatch: pytest.MonkeyPatch, sink: type[Fake]) -> None:
    """Put a fake in the place of TensorBoard, whether or not that is here."""
    monkeypatch.setattr(trackers, "SINKS", {"tensorboard": sink})
    monkeypatch.setattr("selfdistill.training.loop.require", lambda names: None)


# --- what is told ----------------------------------------------------------------------------------------------------


def test_a_line_becomes_numbers_by_name_and_what_is_none_is_left_out() -> None:
    assert step_numbers(LINE) == {
        "train/loss": 0.125,
        "skipped/no sibling": 2.0,
        "seconds/student": 1.5,
        "alarms/active": 1.0,
    }
    ends = {f"evaluation/{key}_{end}": SCORE[end] for key in ("avg", "pass", "maj") for end in ("low", "high")}
    means = {f"evaluation/{key}": 0.5 for key in ("avg", "pass", "maj")}
    assert evaluation_numbers(EVALUATION) == {"evaluation/problems": 3.0, "evaluation/length": 8.0, **means, **ends}


def completion(step: int, **more: Any) -> RolloutLine:
    values = {"step": step, "example": "a", "reward": 1.0, "prompt": "use 3", "text": "3", "u": (0.5, -0.25), **more}
    return RolloutLine(**values)


def test_completions_become_rows_of_a_few_right_and_wrong_ones() -> None:
    rows = table_of([completion(1, reward=float(n % 2), example=str(n)) for n in range(30)])
    assert len(rows) == 8
    assert {row[2] for row in rows} == {0.0, 1.0}
    assert dict(zip(COLUMNS, rows[0], strict=True))["sum of u"] == 0.25
    [row] = table_of([completion(1, reward=None, u=None, text=HOSTILE)])
    assert (row[2], row[3]) == (None, None)
    assert row[5].encode("utf-8").decode("utf-8") == HOSTILE.replace("\ud83d", "\N{REPLACEMENT CHARACTER}")


def test_a_run_tells_its_sink_what_stands_in_its_files(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, Fake)
    summary = train(tiny_run(model, "sdpo", "sinks=['tensorboard']"), tmp_path)
    [sink] = opened
    written = lines(tmp_path / "metrics.jsonl")
    assert [told for told in sink.told if "train/loss" in told[1]] == [
        (row["step"], step_numbers(row)) for row in written
    ]
    evaluations = [(row["step"], row["avg"]["value"]) for row in lines(tmp_path / "evaluations.jsonl")]
    assert [(step, told["evaluation/avg"]) for step, told in sink.told if "evaluation/avg" in told] == evaluations
    assert [step for step, _ in sink.tables] == [2, 4, 5]
    assert sink.closed
    assert sink.begin.step == 0
    assert sink.begin.config == json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert summary["sink_failures"] == {}


def test_a_resume_goes_on_after_its_step_and_may_choose_other_sinks(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_run(model, "sdpo"), tmp_path / "run", stop_after=3)
    installed(monkeypatch, Fake)
    train(tiny_run(model, "sdpo", "sinks=['tensorboard']"), tmp_path / "run", resume=True)
    [sink] = opened
    assert sink.begin.step == 3
    assert [step for step, told in sink.told if "train/loss" in told] == [4, 5]
    assert sink.begin.identity() == Begin(tmp_path / "run", {}, 5).identity()


def test_a_run_is_named_by_its_folder_and_of_a_comparison_by_its_arm(tmp_path: Path) -> None:
    assert Begin(tmp_path / "mine", {}, 0).name == "mine"
    assert Begin(tmp_path / "antisd" / "seed-2", {}, 0).name == "antisd-seed-2"


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_sink_that_fails_is_said_once_and_counted_and_changes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_run(model, "sdpo"), tmp_path / "alone")
    installed(monkeypatch, Broken)
    run = open_run(tiny_run(model, "sdpo", "sinks=['tensorboard']"), tmp_path / "run")
    summary = run.train(recorder(run).stop)
    said = [sentence for sentence in recorder(run).said if "sink" in sentence]
    assert said == [
        "warning: sink tensorboard failed (RuntimeError: no room); the run goes on, "
        "and metrics.jsonl holds what it misses"
    ]
    # Five steps, four evaluations (one before training), three tables, and the end.
    assert summary["sink_failures"] == {"tensorboard": 13}
    assert metrics(tmp_path / "run") == metrics(tmp_path / "alone")
    assert outcome(tmp_path / "run")["weights"] == outcome(tmp_path / "alone")["weights"]


def test_a_sink_that_cannot_be_opened_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(begin: Begin) -> Fake:
        raise PermissionError("not logged in")

    monkeypatch.setattr(trackers, "SINKS", {"wandb": closed, "tensorboard": Fake})
    said: list[str] = []
    sinks = Trackers(["wandb", "tensorboard", "tensorboard"], Begin(tmp_path, {}, 0), warn=said.append)
    sinks.step(LINE, [])
    assert (sinks.failures, len(opened)) == ({"wandb": 1}, 1)
    assert said[0].startswith("warning: sink wandb failed (PermissionError: not logged in); ")
    assert opened[0].told == [(4, step_numbers(LINE))]


def test_a_full_memory_is_no_failure_of_a_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(begin: Begin) -> Fake:
        raise MemoryError

    monkeypatch.setattr(trackers, "SINKS", {"wandb": full})
    with pytest.raises(MemoryError):
        Trackers(["wandb"], Begin(tmp_path, {}, 0), warn=print)


def test_a_missing_package_is_one_sentence_and_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        open_run(tiny_run(model, "sdpo", "sinks=['wandb']"), tmp_path / "run")
    assert str(error.value) == "sinks: 'wandb' needs the package wandb, which is not installed: pip install wandb"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["tensorbord"], "sinks: unknown name 'tensorbord'; did you mean 'tensorboard'?"),
        (["qqq"], "sinks: unknown name 'qqq'; known: tensorboard, wandb, trackio"),
    ],
)
def test_unknown_sinks_are_refused(names: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({"method": "grpo", "sinks": names}, "a test")
    assert sentence in str(error.value)


def test_a_config_names_the_sinks_that_there_are() -> None:
    assert tuple(trackers.SINKS) == get_args(Sink)


# --- the libraries themselves ----------------------------------------------------------------------------------------


def write(name: str, folder: Path, **environment: str) -> str:
    """Two steps, an evaluation and a table, in a process of its own: these libraries keep threads and globals."""
    program = (
        "import sys, json; from pathlib import Path; from selfdistill.files.records import RolloutLine\n"
        "from selfdistill.tracking.trackers import Begin, Trackers\n"
        "name, folder, line, evaluation, row = sys.argv[1], Path(sys.argv[2]), *map(json.loads, sys.argv[3:])\n"
        "sinks = Trackers([name], Begin(folder, {'seed': 7}, 0), warn=print)\n"
        "sinks.evaluation(0, evaluation)\n"
        "sinks.step({**line, 'step': 1}, [row])\n"
        "sinks.step({**line, 'step': 2, 'loss': 0.25, 'evaluation': evaluation}, [RolloutLine.from_json(row, '')])\n"
        "sinks.close(); print('failures', sum(sinks.failures.values()))\n"
    )
    folder.mkdir()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            name,
            folder,
            *map(json.dumps, (LINE, EVALUATION, completion(2, text=HOSTILE).to_json())),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), **environment},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "failures 0", done.stdout
    return done.stdout


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="sink tensorboard: the package is not installed")
    write("tensorboard", tmp_path / "run")
    program = (
        "import sys, json; from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "found = EventAccumulator(sys.argv[1]); found.Reload()\n"
        "numbers = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()['scalars']}\n"
        "text = [e.tensor_proto.string_val[0].decode() for e in found.Tensors('completions/text_summary')]\n"
        "print(json.dumps([numbers, text]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "run" / "tensorboard"], capture_output=True, text=True, check=True
    )
    numbers, [table] = json.loads(done.stdout.splitlines()[-1])
    assert numbers["train/loss"] == [[1, 0.125], [2, 0.25]]
    assert numbers["evaluation/avg"] == [[0, 0.5]]
    assert numbers["alarms/active"] == [[1, 1.0], [2, 1.0]]
    assert "<script>" not in table
    assert "a &#124; b<br>&lt;script&gt;" in table


def test_wandb_offline_holds_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="sink wandb: the package is not installed")
    write("wandb", tmp_path / "run", WANDB_MODE="offline")
    [folder] = (tmp_path / "run" / "wandb").glob("offline-run-*")
    [file] = folder.glob("*.wandb")
    history = [dict(record) for record in wandb_history(file)]
    assert [(row["step"], row["train/loss"]) for row in history if "train/loss" in row] == [(1, 0.125), (2, 0.25)]
    assert [row["step"] for row in history if "evaluation/avg" in row] == [0]
    [table] = (folder / "files" / "media" / "table").glob("*.json")
    found = json.loads(table.read_text(encoding="utf-8"))
    assert found["columns"] == list(COLUMNS)
    assert found["data"][0][5].startswith("a | b\n<script>")


def wandb_history(path: Path) -> Iterator[Mapping[str, Any]]:
    """The logged rows of an offline run: records of a LevelDB log, of one chunk each while the file is this short."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    place = 7
    assert len(data) < 32768, "a block of the log; longer files have records in several chunks"
    while place + 7 <= len(data):
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        assert kind == 1
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data[place + 7 : place + 7 + length])
        place += 7 + length
        if record.HasField("history"):
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def test_trackio_holds_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="sink trackio: the package is not installed")
    write("trackio", tmp_path / "run", TRACKIO_DIR=str(tmp_path / "store"))
    with sqlite3.connect(tmp_path / "store" / "selfdistill.db") as store:
        rows = [
            (step, json.loads(text)) for step, text in store.execute("SELECT step, metrics FROM metrics ORDER BY id")
        ]
    store.close()
    assert [(step, row["train/loss"]) for step, row in rows if "train/loss" in row] == [(1, 0.125), (2, 0.25)]
    assert [step for step, row in rows if "evaluation/avg" in row] == [0]
    [table] = [row["completions"]["_value"] for _, row in rows if "completions" in row]
    assert table[0]["completion"].startswith("a | b\n<script>")
