"""A run's folder: one run at a time, what a disk refuses, and damage that is mended or refused, never carried on."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.cli.app import main
from selfdistill.errors import CheckpointError
from selfdistill.files.disk import disk_message, lock_folder
from selfdistill.files.jsonl import JsonLines
from selfdistill.training import atomic
from selfdistill.training.loop import Run
from support.runs import METHODS, lines, open_run, outcome, recorder, tiny_run, train
from support.tiny import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps with checkpoints of steps 4 and 5."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_run(model, METHODS["sdpo"]), folder)
    return folder


@pytest.fixture
def damaged(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# --- one run at a time -----------------------------------------------------------------------------------------------


def test_a_second_run_in_one_folder_is_refused(model: Path, tmp_path: Path) -> None:
    config, folder = tiny_run(model), tmp_path / "run"
    first = open_run(config, folder)
    with pytest.raises(CheckpointError, match=r"another run still writes to .*run: wait for it to end, or choose"):
        open_run(config, folder, resume=True)
    first.train(recorder(first).stop)

    assert [line["step"] for line in lines(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert open_run(config, folder, resume=True).counters.step == 5, "the lock ended with the run"


def test_a_run_that_could_not_be_opened_holds_its_folder_no_longer(model: Path, finished: Path, tmp_path: Path) -> None:
    """A notebook keeps the traceback of the latest error, and with it the run."""
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    with pytest.raises(CheckpointError, match="was made with another config") as kept:
        open_run(tiny_run(model, METHODS["sdpo"], "seed=7"), folder, resume=True)

    assert open_run(tiny_run(model, METHODS["sdpo"]), folder, resume=True).counters.step == 5
    assert kept.tb is not None


def test_of_two_runs_that_began_together_one_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found the folder empty, and loaded their models."""
    config, folder = tiny_run(model), tmp_path / "run"
    loop: Any = importlib.import_module("selfdistill.training.loop")
    built = loop.assemble

    def slowly(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(loop, "assemble", built)
        Run(config, folder).train()
        return built(*arguments, **options)

    monkeypatch.setattr(loop, "assemble", slowly)
    with pytest.raises(CheckpointError, match="holds another run"):
        Run(config, folder)
    assert len(lines(folder / "metrics.jsonl")) == 5


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    program = "import sys, pathlib, time\nfrom selfdistill.files.disk import lock_folder\n"
    program += "lock_folder(pathlib.Path(sys.argv[1]), '')\nprint('held', flush=True)\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == b"held\n"
            with pytest.raises(CheckpointError, match="somebody has it"):
                lock_folder(tmp_path, "somebody has it")
        finally:
            other.kill()
    descriptor = lock_folder(tmp_path, "somebody has it")
    assert descriptor is not None
    os.close(descriptor)


# --- what a disk refuses ---------------------------------------------------------------------------------------------

PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a file": (lambda tmp: _file(tmp / "file"), "is a file: choose another --out"),
    "below a file": (lambda tmp: _file(tmp / "file") / "run", "it is or lies below a file"),
    "a dangling link": (lambda tmp: _link(tmp / "link", tmp / "nothing"), "is a link to nothing"),
    "a link to itself": (lambda tmp: _link(tmp / "circle", tmp / "circle"), "link"),
    "a name too long": (lambda tmp: tmp / ("x" * 300), "its name is too long: choose a shorter one"),
    "a path too long": (lambda tmp: tmp / ("x/" * 3000), "its name is too long"),
    "a name that is not UTF-8": (lambda tmp: Path(os.fsdecode(os.fsencode(tmp) + b"/\xff")), "is not UTF-8"),
}


def _file(path: Path) -> Path:
    path.write_text("something", encoding="utf-8")
    return path


def _link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


@pytest.mark.parametrize("command", ["train", "inspect", "compare"])
@pytest.mark.parametrize("place", PLACES)
def test_an_out_that_cannot_be_a_folder_is_one_sentence(
    command: str, place: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, sentence = PLACES[place]
    out = str(make(tmp_path))
    config = tmp_path / "tiny.json"
    config.write_text(tiny_run(model, "grpo", "steps=1").model_dump_json(), encoding="utf-8")
    arguments = {
        "train": ["train", str(config)],
        "compare": ["compare", str(config)],
        "inspect": ["inspect", str(model), "--task", "countdown", "--problems", "1", "--samples", "1"],
    }[command]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", out])
    said = capsys.readouterr().err.strip().splitlines()[-1]

    assert ended.value.code == 2
    assert said.startswith("selfdistill: ") and (sentence in said or "is a file: choose another --out" in said), said


def refusing(number: int) -> Callable[..., Any]:
    def refuse(path: Any, *_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number), os.fspath(path) if isinstance(path, str | Path) else "a file")

    return refuse


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("name", ["mkdir", "fsync", "replace", "open"])
def test_what_the_disk_refuses_is_one_sentence(
    number: int, name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the tests may be root, who has every permission."""
    config, folder = tiny_run(model), tmp_path / "run"
    run = open_run(config, folder) if name != "mkdir" else None
    if name == "mkdir":
        monkeypatch.setattr(os, name, refusing(number))
        with pytest.raises(CheckpointError, match=r"^[^\n]*run[^\n]*: [a-z]"):
            open_run(config, folder)
        return
    assert run is not None
    monkeypatch.setattr(os, name, refusing(number))
    with pytest.raises(CheckpointError, match=r"^[^\n]+: [a-z]"):
        run.train()


@pytest.mark.parametrize(
    ("number", "share"),
    list(zip([errno.ENOSPC, errno.EDQUOT] * 4, [0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97], strict=True)),
)
def test_a_disk_that_is_full_at_any_moment_is_one_sentence_and_the_run_goes_on(
    number: int, share: float, model: Path, finished: Path, tmp_path: Path
) -> None:
    """``share``: of the calls of fsync that a whole run makes; the disk stays full from there on."""
    config, folder, made = tiny_run(model, METHODS["sdpo"]), tmp_path / "run", [0]
    real, last = os.fsync, round(share * 50)

    def full(descriptor: int) -> None:
        made[0] += 1
        if made[0] > last:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            CheckpointError, match=r"^(no room is left|the quota is used up) on the disk of .*run: make"
        ):
            train(config, folder)
    train(config, folder, resume=True)
    expected, actual = outcome(finished), outcome(folder)
    assert set(actual.pop("checkpoints")) >= set(expected.pop("checkpoints"))
    assert actual == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl", "summary.json.tmp"])
def test_a_file_that_cannot_be_written_is_one_sentence(name: str, model: Path, tmp_path: Path) -> None:
    run = open_run(tiny_run(model), tmp_path / "run")
    (tmp_path / "run" / name).symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"no room is left on the disk of .*run: make some, and continue the run"):
        run.train()


def test_what_libraries_make_of_a_full_disk_is_recognised(tmp_path: Path) -> None:
    """The words of safetensors, of pyarrow, and of torch, which buries the error of the file that it writes to."""

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None: ...

    with pytest.raises((RuntimeError, OSError)) as torchs:
        torch.save({"a": torch.zeros(100_000)}, Full())  # type: ignore[arg-type]
    rust = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    quota = OSError("[Errno 122] Error writing bytes to file. Detail: [errno 122] Disk quota exceeded")
    for error, kind in ((torchs.value, "no room"), (rust, "no room"), (quota, "the quota")):
        assert str(disk_message(error, tmp_path)).startswith(kind)
    for other in (ValueError("no"), ConnectionRefusedError(errno.ECONNREFUSED, "refused"), RuntimeError("a shape")):
        assert disk_message(other, tmp_path) is None


def test_a_run_that_ended_before_its_config_was_written_left_nothing(
    model: Path, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json.tmp").write_text("{", encoding="utf-8")
    train(tiny_run(model, METHODS["sdpo"]), folder, resume=True)
    assert outcome(folder) == outcome(finished)


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path, place: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x20
    path.write_bytes(data)


def change_lines(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.write_text("".join(change(path.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")

    return apply


LINES: dict[str, Callable[[Path], Any]] = {
    "a lost first line": change_lines(lambda lines: lines[1:]),
    "a lost line": change_lines(lambda lines: [*lines[:1], *lines[2:]]),
    "a lost last line": change_lines(lambda lines: lines[:-1]),
    "a doubled line": change_lines(lambda lines: [lines[0], *lines]),
    "a doubled last line": change_lines(lambda lines: [*lines, lines[-1]]),
    "a torn line": change_lines(lambda lines: [lines[0][:9] + "\n", *lines[1:]]),
    "a torn last line": change_lines(lambda lines: [*lines[:-1], lines[-1][:9]]),
    "lines in another order": change_lines(lambda lines: [*lines[1:], lines[0]]),
    "a flipped byte": flip,
    "a flipped last byte": lambda path: flip(path, 1.0),
    "no bytes at all": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
    "no file": Path.unlink,
}
"""Damage to a file of lines."""
WHOLE: dict[str, Callable[[Path], Any]] = {
    name: LINES[name] for name in ("a flipped byte", "a flipped last byte", "no bytes at all", "zeros", "no file")
}
WHOLE |= {
    "an empty object": lambda path: path.write_text("{}", encoding="utf-8"),
    "a list": lambda path: path.write_text("[]", encoding="utf-8"),
    "no JSON": lambda path: path.write_text("{", encoding="utf-8"),
    "deep nesting": lambda path: path.write_text("[" * 100_000, encoding="utf-8"),
    "not UTF-8": lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
}
"""Damage to any other file."""
NEWEST = ("manifest.json", "state.json", "training.pt", "model/model.safetensors", "model/config.json")
DAMAGE = [
    *((f"{name}.jsonl", kind) for name in ("metrics", "rollouts", "evaluations") for kind in LINES),
    *((f"checkpoints/step-000005/{name}", kind) for name in NEWEST for kind in WHOLE),
    *(("config.json", kind) for kind in WHOLE),
    *(("summary.json", kind) for kind in WHOLE),
    *(("checkpoints/best/model.safetensors", kind) for kind in WHOLE),
]
"""(file of a finished run, kind of damage)."""


@pytest.mark.parametrize(("name", "kind"), DAMAGE)
def test_damage_is_mended_with_a_sentence_or_refused(
    name: str, kind: str, model: Path, finished: Path, damaged: Path
) -> None:
    """What is mended ends where the undamaged run does, bit for bit."""
    expected = outcome(finished)
    {**LINES, **WHOLE}[kind](damaged / name)
    config, refused = tiny_run(model, METHODS["sdpo"]), ""
    try:
        run = open_run(config, damaged, resume=True)
    except CheckpointError as error:
        refused = str(error)
    if refused:
        assert re.search(r"config|no whole checkpoint", refused) and "\n" not in refused
        return
    run.train(recorder(run).stop)
    actual = outcome(damaged)
    assert actual == expected
    told = [one for one in recorder(run).said if "damaged" in one or "is torn" in one]
    # Lines behind the newest checkpoint are what a kill leaves; summary and page are made of the others.
    if kind not in ("a doubled last line",) and name != "summary.json":
        assert told, recorder(run).said


def test_a_checkpoint_of_an_older_version_holds_no_hashes_of_lines(model: Path, finished: Path, damaged: Path) -> None:
    expected, saved = outcome(finished), damaged / "checkpoints"
    shutil.rmtree(saved / "step-000005")

    def fill(folder: Path) -> None:
        shutil.copytree(finished / "checkpoints" / "step-000004", folder, dirs_exist_ok=True)
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        state.pop("logs"), state.pop("config")
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
        (folder / "manifest.json").unlink()

    atomic.write_folder(saved / "step-000004", fill)
    train(tiny_run(model, METHODS["sdpo"]), damaged, resume=True)
    assert outcome(damaged) == expected


def test_lines_of_one_file_are_as_its_mark_says(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "x.jsonl")
    assert not log.differs(log.mark())
    log.append({"step": 1})
    first = log.mark()
    log.append({"step": 2}, {"step": 2})
    assert (first["bytes"], log.mark()["bytes"]) == (12, 36)
    assert not log.differs(first) and not log.differs(log.mark())
    log.cut(first)
    assert list(log.read()) == [{"step": 1}] and log.mark() == first
    log.cut(None)
    assert log.differs(first) and not log.path.exists()


def test_a_checkpoint_holds_what_its_manifest_names_and_nothing_else(damaged: Path) -> None:
    newest = atomic.checkpoints(damaged / "checkpoints")[-1]
    assert atomic.corruption(newest) is None
    manifest = json.loads((newest / "manifest.json").read_text(encoding="utf-8"))
    manifest.pop("state.json")
    (newest / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert atomic.corruption(newest) == "its manifest does not name state.json"
