"""Processes that are started, stopped and killed from outside: one sentence, an exit code, and a run that goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from selfdistill.distributed.launch import launch
from selfdistill.distributed.signals import StopRequest
from selfdistill.training import atomic as checkpoint
from support.runs import as_toml, lines, metrics, tiny_run, train
from support.tiny import save_tiny_model

LONG = ("steps=400", "evaluation.every=400", "checkpoint.every=3", "checkpoint.keep=1", "sampling.prompts=2")
LAUNCH = ("-m", "selfdistill", "train", "--launch", "2")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "selfdistill", "train")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    model = save_tiny_model(folder / "model", seed=0, num_hidden_layers=1)
    path = folder / "config.toml"
    path.write_text(as_toml(tiny_run(model, "sdpo", *LONG).model_dump(exclude_none=True)), encoding="utf-8")
    return path


class Started:
    """A command whose run is followed through its folder."""

    def __init__(self, command: Sequence[str], config: Path, run: Path, *options: str) -> None:
        tests = Path(__file__).parents[1]
        environment = {**os.environ, "PYTHONPATH": f"{tests.parent / 'src'}{os.pathsep}{tests}", "OMP_NUM_THREADS": "1"}
        self.run = run
        self.process = subprocess.Popen(
            [sys.executable, *command, str(config), "--out", str(run), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def reached(self, step: int) -> None:
        """Wait for the checkpoint of a step or a later one."""
        saved = self.run / "checkpoints"
        while self.process.poll() is None and not any(
            int(path.parent.name[-6:]) >= step for path in saved.glob("step-??????/manifest.json")
        ):
            time.sleep(0.02)

    def kill_rank(self, rank: int) -> None:
        """As the operating system kills what needs too much memory."""
        (found,) = [pid for pid in descendants(self.process.pid) if f"RANK={rank}".encode() in environment_of(pid)]
        os.kill(found, signal.SIGKILL)

    def ended(self) -> tuple[int, str, str]:
        """Exit code, output and errors, once it has ended; nothing that it started is left."""
        below = descendants(self.process.pid)
        output, errors = self.process.communicate()
        assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
        return self.process.returncode, output, errors


def descendants(pid: int) -> list[int]:
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return [*found, *(below for child in found for below in descendants(child))]


def environment_of(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def test_ranks_are_told_of_this_launch_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine of vLLM in this process may have left a LOCAL_WORLD_SIZE of its own."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$WORLD_SIZE $LOCAL_WORLD_SIZE" > "$3.$RANK"\n', encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert launch([str(tmp_path / "told")], 2, stop=StopRequest(), resume="") == 0
    assert [(tmp_path / f"told.{rank}").read_text(encoding="utf-8") for rank in range(2)] == ["2 2\n"] * 2


def test_a_killed_rank_ends_the_others_and_the_run_goes_on_to_a_stop(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = Started(LAUNCH, config, run, "--set", "parallel=fsdp2")
    started.reached(3)
    started.kill_rank(1)
    code, _, errors = started.ended()
    assert code == 2
    assert errors == (
        "loading torch\nselfdistill: rank 1 was killed by SIGKILL, and the others were ended; "
        f"continue with --resume --out {run}\n"
    )
    newest, _ = checkpoint.latest_valid(run / "checkpoints")
    assert newest is not None
    reached = int(newest.name[-6:])

    again = Started(LAUNCH, config, run, "--set", "parallel=ddp", "--resume")
    again.reached(reached + 3)
    again.process.send_signal(signal.SIGTERM)
    code, output, errors = again.ended()
    assert (code, errors) == (143, "loading torch\n")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    done = summary["steps"]
    assert output.count("Finishing this step, then stopping") == 1
    assert f"stopped after step {done}; continue with --resume --out {run}" in output
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == list(range(1, done + 1))
    newest, _ = checkpoint.latest_valid(run / "checkpoints")
    assert newest == checkpoint.checkpoint_path(run / "checkpoints", done)
    alone = tiny_run(config.parent / "model", "sdpo", *LONG)
    train(alone, tmp_path / "alone", stop_after=done)
    for mine, theirs in zip(metrics(run), metrics(tmp_path / "alone"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


@pytest.mark.long
def test_under_torchrun_one_rank_speaks_for_those_that_lost_another(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = Started(TORCHRUN, config, run)
    started.reached(3)
    started.kill_rank(1)
    code, _, errors = started.ended()
    assert code != 0
    ours = [line for line in errors.splitlines() if line.startswith("selfdistill: ")]
    assert ours in (
        [],  # torchrun was faster and has ended it
        [
            "selfdistill: rank 0 has lost another process of the run, which ended or was killed; "
            f"continue with --resume --out {run}"
        ],
    )
    assert "selfdistill/training.py" not in errors


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--set", "parallel=none"), 'parallel.kind is "none", but 2 processes were started'),
        (("--set", "steps=none"), "steps: input should be a valid integer"),
    ],
)
def test_a_mistake_that_all_ranks_find_is_told_once(
    options: tuple[str, ...], sentence: str, config: Path, tmp_path: Path
) -> None:
    code, _, errors = Started(LAUNCH, config, tmp_path / "run", *options).ended()
    assert code == 2
    assert errors.removeprefix("loading torch\n").count("\n") == 1
    assert sentence in errors
    assert not (tmp_path / "run").exists()
