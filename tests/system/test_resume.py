"""Stopped, killed or torn, a run goes on as if nothing had happened: bit for bit, for every method."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.errors import CheckpointError, TrainingError
from selfdistill.training import atomic as checkpoint
from support.dying import Disk, Killed
from support.engine import parameters
from support.runs import (
    LORA,
    METHODS,
    STEPS,
    as_toml,
    lines,
    metrics,
    open_run,
    outcome,
    plain,
    recorder,
    tiny_run,
    train,
)
from support.tiny import save_tiny_model

pytestmark = pytest.mark.usefixtures("no_page")

SNAPSHOT = "sdpo of a snapshot"
"""A teacher that is renewed after every second step: the stop at step 3 is between two renewals."""
CASES = [(name, adapter) for name in (*METHODS, SNAPSHOT) for adapter in ((), LORA)]


@pytest.fixture(scope="module")
def uninterrupted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdpo run from start to end: an averaged teacher, and a loss that no reward is needed for."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(tiny_run(model, METHODS["sdpo"]), folder)
    return folder


def test_a_resume_reads_to_the_machines_memory_whatever_device_has_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight ranks that read what GPU 0 has written would all read it to GPU 0."""
    config = tiny_run(model, METHODS["sdpo"])
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        train(config, tmp_path / "run", stop_after=2)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "run" / "checkpoints" / "step-000002" / "training.pt", weights_only=True)
    assert train(config, tmp_path / "run", resume=True)["finished"]


# --- stopped ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "adapter"), CASES, ids=[f"{name} {'lora' if adapter else 'full'}" for name, adapter in CASES]
)
def test_a_run_that_was_stopped_twice_ends_where_an_uninterrupted_one_does(
    name: str, adapter: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    snapshot = {**METHODS["sdpo"], "weights": {"kind": "snapshot", "every": 2}}
    config = tiny_run(model, snapshot if name == SNAPSHOT else METHODS[name], *adapter)
    whole = train(config, tmp_path / "whole")
    assert whole["finished"]
    folder = tmp_path / "stopped"
    for stop_after in (2, 3):  # at a checkpoint that is due, and between two
        summary = train(config, folder, resume=True, stop_after=stop_after)
        assert (summary["steps"], summary["finished"]) == (stop_after, False)
        assert [line["step"] for line in lines(folder / "metrics.jsonl")] == list(range(1, stop_after + 1))
    train(config, folder, resume=True)
    expected = outcome(tmp_path / "whole")
    actual = outcome(folder)
    # The stop at 3 saved one checkpoint more, in the place of an older one.
    for key in expected:
        assert actual[key] == expected[key], key
    losses = [line["loss"] for line in metrics(folder)]
    assert len(set(losses)) == STEPS, "a run that learns nothing would resume exactly in any case"


def test_a_run_in_bf16_resumes_exactly(model: Path, tmp_path: Path) -> None:
    config = tiny_run(model, METHODS["sdpo"], "model.dtype=bfloat16")
    train(config, tmp_path / "whole")
    train(config, tmp_path / "stopped", stop_after=3)
    train(config, tmp_path / "stopped", resume=True)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_a_stop_before_the_first_step_leaves_a_run_that_can_start(
    model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    config = tiny_run(model, METHODS["sdpo"])
    run = open_run(config, tmp_path / "run")
    recorder(run).stop.signal = signal.SIGINT
    summary = run.train(recorder(run).stop)
    assert (summary["steps"], summary["finished"], summary["after"]) == (0, False, summary["before"])
    train(config, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def test_resuming_a_finished_run_changes_nothing(model: Path, uninterrupted: Path, tmp_path: Path) -> None:
    folder = copied(uninterrupted, tmp_path)
    train(tiny_run(model, METHODS["sdpo"]), folder, resume=True)
    assert outcome(folder) == outcome(uninterrupted)


def test_resume_of_nothing_starts_a_run_and_says_so(model: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run = open_run(tiny_run(model, METHODS["sdpo"]), tmp_path / "run", resume=True)
    assert recorder(run).said == [f"nothing to resume in {tmp_path / 'run'}: starting a new run"]
    run.train(recorder(run).stop)
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def changes(model: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often an uninterrupted run changes the disk."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        train(tiny_run(model, METHODS["sdpo"]), tmp_path_factory.mktemp("counted") / "run")
    return disk.changes


@pytest.mark.parametrize("share", [0.05, 0.18, 0.3, 0.42, 0.5, 0.6, 0.7, 0.82, 0.94, 0.97])
def test_a_run_killed_at_any_moment_ends_where_an_uninterrupted_one_does(
    share: float, changes: int, model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """``share``: of all the changes to the disk that the run would have made."""
    config = tiny_run(model, METHODS["sdpo"])
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, last=max(1, round(share * changes)))
        with pytest.raises(Killed):
            train(config, tmp_path / "run")
    assert disk.changes == disk.last
    train(config, tmp_path / "run", resume=True)
    expected, actual = outcome(uninterrupted), outcome(tmp_path / "run")
    # Death between the last checkpoint and the removal of older ones leaves one too many.
    assert set(actual.pop("checkpoints")) >= set(expected.pop("checkpoints"))
    assert actual == expected


def test_a_run_killed_in_the_middle_of_a_step_ends_where_an_uninterrupted_one_does(
    model: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the optimiser's part of step 4, before the teacher's."""
    config = tiny_run(model, METHODS["sdpo"])
    run = open_run(config, tmp_path / "run")
    update, updates = run.parts.teachers.update, iter(range(1, STEPS + 1))

    def deadly() -> None:
        if next(updates) == 4:
            raise Killed
        update()

    monkeypatch.setattr(run.parts.teachers, "update", deadly)
    with pytest.raises(Killed):
        run.train(recorder(run).stop)
    train(config, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl"])
def test_a_line_torn_in_the_middle_of_a_letter_is_dropped(
    name: str, model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    config = tiny_run(model, METHODS["sdpo"])
    folder = tmp_path / "run"
    train(config, folder, stop_after=3)
    half = '{"step": 3, "text": "3 ×'.encode()[:-1]
    with (folder / name).open("ab") as file:
        file.write(half)
    train(config, folder, resume=True)
    assert outcome(folder) == outcome(uninterrupted)


def test_a_folder_is_replaced_whole_or_not_at_all_whenever_the_process_dies(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    endings = set()
    for last in range(1, 30):
        shutil.rmtree(tmp_path)
        checkpoint.write_folder(target, filler("old"))
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, last=last)
            try:
                checkpoint.write_folder(target, filler("new"))
            except Killed:
                pass
            else:
                break
        checkpoint.repair(target)
        assert checkpoint.corruption(target) is None
        texts = {path.read_text(encoding="utf-8") for path in target.glob("*.txt")}
        assert texts in ({"old"}, {"new"})
        endings |= texts
        checkpoint.write_folder(target, filler("newer"))
        assert (target / "a.txt").read_text(encoding="utf-8") == "newer"
        assert [path.name for path in tmp_path.iterdir()] == ["folder"], "nothing is left lying about"
    assert endings == {"old", "new"}
    assert disk.changes > 5


def filler(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name in ("a.txt", "b.txt"):
            (folder / name).write_text(text, encoding="utf-8")

    return fill


# --- killed by the operating system ----------------------------------------------------------------------------------


LONG = ("steps=400", "evaluation.every=400", "checkpoint.every=5", "checkpoint.keep=1", "sampling.prompts=2")


PLAIN = ("sdpo", *LONG)
SIGNAL = ("grpo", *LONG, "signal.equal=resample", "signal.curriculum=true")
"""Other prompts in the place of those of equal rewards, and prompts drawn by what earlier steps have shown."""


@pytest.fixture
def started(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A long run in a process of its own, past its first checkpoint; of sdpo, if the test does not say of what."""
    name, *settings = getattr(request, "param", PLAIN)
    config = tiny_run(model, METHODS[name], *settings)
    path = tmp_path / "config.toml"
    path.write_text(as_toml(config.model_dump(exclude_none=True)), encoding="utf-8")
    tests = Path(__file__).parents[1]
    # As many threads as here, where the run goes on: another number adds up in another order.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = {**os.environ, **threads, "PYTHONPATH": f"{tests.parent / 'src'}{os.pathsep}{tests}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "selfdistill", "train", str(path), "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        while process.poll() is None and not list((tmp_path / "run" / "checkpoints").glob("step-??????/manifest.json")):
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_sigterm_finishes_the_step_saves_and_exits_with_143(started: subprocess.Popen[str], tmp_path: Path) -> None:
    started.send_signal(signal.SIGTERM)
    output, errors = started.communicate()
    assert started.returncode == 143, errors
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    done = summary["steps"]
    assert not summary["finished"]
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == list(range(1, done + 1))
    newest, warnings = checkpoint.latest_valid(tmp_path / "run" / "checkpoints")
    assert newest == checkpoint.checkpoint_path(tmp_path / "run" / "checkpoints", done)
    assert warnings == []
    assert "Finishing this step, then stopping" in output
    assert f"stopped after step {done}; continue with --resume --out" in output


@pytest.mark.parametrize(
    ("started", "settings"), [(PLAIN, PLAIN), (SIGNAL, SIGNAL)], indirect=["started"], ids=["sdpo", "signal"]
)
def test_kill_9_loses_no_more_than_the_steps_since_the_last_checkpoint(
    started: subprocess.Popen[str], settings: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    time.sleep(0.3)
    started.send_signal(signal.SIGKILL)
    started.communicate()
    assert started.returncode == -signal.SIGKILL
    name, *overrides = settings
    config = tiny_run(model, METHODS[name], *overrides)
    run = open_run(config, tmp_path / "run", resume=True)
    reached = run.counters.step
    assert reached >= 5
    assert reached % 5 == 0
    assert recorder(run).said == [f"resuming {tmp_path / 'run'} after step {reached}"]
    recorder(run).stop_after = reached + 2
    run.train(recorder(run).stop)
    train(config, tmp_path / "whole", stop_after=reached + 2)
    resumed, whole = outcome(tmp_path / "run"), outcome(tmp_path / "whole")
    for kept in ("metrics", "rollouts", "weights", "training", "state"):
        assert resumed[kept] == whole[kept]
    if settings is SIGNAL:
        # Both had something to remember: before the kill prompts were drawn in vain, after it the curriculum knows.
        before, after = resumed["metrics"][:reached], resumed["metrics"][reached:]
        assert sum(line["resampled_prompts"] for line in before) > 0
        assert all(line["curriculum_known"] > 0 for line in after)


# --- torn ------------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("file", ["training.pt", "model/model.safetensors", "state.json", "manifest.json"])
def test_a_torn_checkpoint_is_recognised_and_the_one_before_is_used(
    file: str, model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    folder = copied(uninterrupted, tmp_path)
    truncate(folder / "checkpoints" / "step-000005" / file)
    run = open_run(tiny_run(model, METHODS["sdpo"]), folder, resume=True)
    reason = "its manifest is missing or unreadable" if file == "manifest.json" else f"{file} is damaged"
    assert recorder(run).said == [
        f"checkpoint step-000005 is torn ({reason}); using the one before it",
        f"resuming {folder} after step 4",
    ]
    run.train(recorder(run).stop)
    assert outcome(folder) == outcome(uninterrupted)
    newest, warnings = checkpoint.latest_valid(folder / "checkpoints")
    assert newest is not None and newest.name == "step-000005"
    assert warnings == []


def test_a_checkpoint_without_one_of_its_files_is_torn(uninterrupted: Path, tmp_path: Path) -> None:
    folder = copied(uninterrupted, tmp_path)
    (folder / "checkpoints" / "step-000005" / "training.pt").unlink()
    newest, warnings = checkpoint.latest_valid(folder / "checkpoints")
    assert newest is not None and newest.name == "step-000004"
    assert warnings == ["checkpoint step-000005 is torn (training.pt is missing); using the one before it"]


def test_all_checkpoints_torn_is_one_sentence(model: Path, uninterrupted: Path, tmp_path: Path) -> None:
    folder = copied(uninterrupted, tmp_path)
    for step in (4, 5):
        truncate(folder / "checkpoints" / f"step-{step:06d}" / "training.pt")
    before = snapshot(folder)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint in .*step-000005 is torn .*step-000004 is torn"):
        open_run(tiny_run(model, METHODS["sdpo"]), folder, resume=True)
    assert snapshot(folder) == before


def test_a_torn_checkpoint_never_pushes_out_a_whole_one(model: Path, uninterrupted: Path, tmp_path: Path) -> None:
    folder = copied(uninterrupted, tmp_path)
    truncate(folder / "checkpoints" / "step-000005" / "training.pt")
    config = tiny_run(model, METHODS["sdpo"], "checkpoint.keep=1")
    run = open_run(config, folder, resume=True)
    run.counters.step = 4
    recorder(run).stop.signal = signal.SIGINT
    run.train(recorder(run).stop)
    newest, _ = checkpoint.latest_valid(folder / "checkpoints")
    assert newest is not None and newest.name == "step-000004"


# --- another run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed=1", "seed was 0 and is now 1"),
        ("method.teacher_rate=0.2", "method.teacher_rate was 0.3 and is now 0.2"),
        ("sampling.max_tokens=11", "sampling.max_tokens was 10 and is now 11"),
        ("optimiser.learning_rate=0.02", "optimiser.learning_rate was 0.01 and is now 0.02"),
        ("model.lora.rank=2", "model.lora was None and is now"),
        ("task.difficulty=default", "task.difficulty was 'easy' and is now 'default'"),
    ],
)
def test_another_config_is_refused_and_the_key_named(
    override: str, sentence: str, model: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    folder = copied(uninterrupted, tmp_path)
    before = snapshot(folder)
    with pytest.raises(CheckpointError) as error:
        open_run(tiny_run(model, METHODS["sdpo"], override), folder, resume=True)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert snapshot(folder) == before


def test_steps_may_grow(model: Path, tmp_path: Path) -> None:
    constant = "optimiser.schedule=constant"
    train(tiny_run(model, METHODS["sdpo"], constant), tmp_path / "whole")
    train(tiny_run(model, METHODS["sdpo"], constant, "steps=3"), tmp_path / "grown")
    train(tiny_run(model, METHODS["sdpo"], constant), tmp_path / "grown", resume=True)
    whole, grown = outcome(tmp_path / "whole"), outcome(tmp_path / "grown")
    assert grown["weights"] == whole["weights"]
    assert grown["rollouts"] == whole["rollouts"]
    # The shorter run evaluated at its end, step 3; the longer one has no reason to.
    grown["metrics"][2].pop("evaluation")
    assert grown["metrics"] == whole["metrics"]


def test_a_folder_of_another_run_is_refused(model: Path, uninterrupted: Path, tmp_path: Path) -> None:
    folder = copied(uninterrupted, tmp_path)
    before = snapshot(folder)
    with pytest.raises(CheckpointError, match="holds another run: choose another --out, or continue it with --resume"):
        open_run(tiny_run(model, METHODS["sdpo"]), folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_with_other_things_in_it_is_refused(resume: bool, model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not empty and holds no run: choose another --out"):
        open_run(tiny_run(model), tmp_path, resume=resume)
    assert snapshot(tmp_path) == {"thesis.txt": b"mine"}


def test_other_weights_behind_the_models_name_are_refused(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", seed=0)
    config = tiny_run(model, METHODS["sdpo"])
    train(config, tmp_path / "run", stop_after=2)
    save_tiny_model(model, seed=1)
    with pytest.raises(CheckpointError, match="began from other weights than"):
        open_run(config, tmp_path / "run", resume=True)


# --- not a number ----------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(model: Path, tmp_path: Path) -> None:
    config = tiny_run(model, {"name": "support.methods:Poisoned", "poisoned_step": 4})
    folder = tmp_path / "run"
    run = open_run(config, folder)
    weights: list[dict[str, torch.Tensor]] = []
    step = run.progress.step

    def remember(line: Mapping[str, Any], *, total: int, evaluation_left: float = 0.0) -> None:
        weights.append(parameters(run.parts.policy))
        step(line, total=total, evaluation_left=evaluation_left)

    run.progress.step = remember  # type: ignore[method-assign]
    with pytest.raises(TrainingError) as error:
        run.train(recorder(run).stop)
    assert str(error.value) == (
        "step 4: loss nan with gradient norm nan is not a number; the weights were not updated; "
        "try a lower optimiser.learning_rate or optimiser.clip_norm, or model.dtype = 'float32'; "
        f"the batch is in {folder / 'bad-batch-000004.jsonl'}, the last checkpoint is kept"
    )
    assert plain(parameters(run.parts.policy)) == plain(weights[-1])
    assert [line["step"] for line in lines(folder / "metrics.jsonl")] == [1, 2, 3]
    batch = lines(folder / "bad-batch-000004.jsonl")
    assert len(batch) == 9
    assert {line["step"] for line in batch} == {4}
    assert all(line["ids"] and line["prompt"] for line in batch)
    newest, warnings = checkpoint.latest_valid(folder / "checkpoints")
    assert (newest, warnings) == (folder / "checkpoints" / "step-000002", [])


def test_a_run_can_go_on_from_before_the_loss_that_was_no_number(model: Path, tmp_path: Path) -> None:
    """With the cause removed (here: by another poisoned step of an equal config) it ends where a clean run does."""
    clean = tiny_run(model, {"name": "support.methods:Poisoned", "poisoned_step": 0})
    train(clean, tmp_path / "whole")
    folder = tmp_path / "run"
    with pytest.raises(TrainingError):
        train(tiny_run(model, {"name": "support.methods:Poisoned", "poisoned_step": 4}), folder)
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored["method"]["poisoned_step"] = 0
    (folder / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    train(clean, folder, resume=True)
    assert outcome(folder) == outcome(tmp_path / "whole")


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
