"""What a run says before its first step, the same without a run, and the record of its starts."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from selfdistill.config.sections import Model
from selfdistill.errors import CheckpointError, ConfigError, UserError
from selfdistill.models import devices
from selfdistill.models.devices import Device
from selfdistill.models.sizing import GIB, Shape
from selfdistill.tracking.progress import Progress
from selfdistill.training import banner as module
from selfdistill.training.banner import banner, in_short, short, warnings
from selfdistill.training.build import assemble
from selfdistill.training.dry_run import rehearse
from selfdistill.training.provenance import commit_of, start_record
from support.runs import LORA, METHODS, lines, open_run, recorder, tiny_run, train
from support.tiny import save_tiny_model

pytestmark = pytest.mark.usefixtures("no_page")


def rehearsed(config: Any, folder: Path, *, resume: bool = False) -> str:
    text = io.StringIO()
    rehearse(config, folder, resume=resume, progress=Progress(Console(file=text, width=300)))
    return text.getvalue()


def test_the_banner_of_a_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "machine_memory", lambda: 3 * GIB)
    said = banner(assemble(tiny_run(model, METHODS["sdpo"])), tmp_path / "run")
    assert {key: said[key] for key in ("device", "method", "rows", "batch", "output")} == {
        "device": "cpu (3.0 GiB), float32",
        "method": "sdpo; teacher: context sibling_or_feedback, ema weights (rate 0.3)",
        "rows": "8 to train on, 3 held out (validation)",
        "batch": "3 prompts × 3 completions of at most 10 tokens, 9 of 9 decoded at once; "
        "micro-batches of 4,096 tokens",
        "output": str(tmp_path / "run"),
    }
    # Embedding of 96 × 32, tied; one layer of 32·(32 + 16 + 16 + 32) + 3·32·48 + 2·8 + 2·32 weights; a norm of 32.
    assert said["model"] == f"{model}, {short(3072 + (3072 + 4608 + 80) + 32)} weights, all trained"
    assert said["memory"].endswith(" at the peak of a step, of 3.0 GiB")


def test_the_banner_of_other_runs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = banner(assemble(tiny_run(model, "grpo", *LORA, "parallel.activation_checkpointing=true")), tmp_path)
    # One layer of factors 2·(32 + 32) for q and 2·(48 + 32) for down.
    assert adapter["model"].endswith(f"weights, {short(128 + 160)} of them trained")
    assert (adapter["method"], adapter["batch"].rpartition("; ")[2]) == (
        "grpo; no teacher",
        "micro-batches of 4,096 tokens, activations computed again",
    )
    assert banner(assemble(tiny_run(model, "sft")), tmp_path)["batch"].startswith("3 prompts with the data's own resp")
    monkeypatch.setattr(module, "read_device", lambda name: Device("cpu", "cpu", 1 << 20, 1 << 20))
    assert "MiB: more than there is; train an adapter" in banner(assemble(tiny_run(model)), tmp_path)["memory"]
    for shape in (None, Shape(1, 1, 1, 1, 1, 1, 1, tied=True, approximate=True)):
        monkeypatch.setattr(module, "shape_in", lambda config, shape=shape: shape)
        assert banner(assemble(tiny_run(model)), tmp_path)["memory"].startswith("not estimated: the sizing model does")


def test_a_loaded_model_in_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = assemble(tiny_run(model, "grpo", "model.dtype=bfloat16"))
    assert in_short(parts.policy, "m") == "model: m, 10.9K weights, bfloat16 on cpu"
    monkeypatch.setattr(module, "read_device", lambda name: Device("cuda", "H1", 1, 1, (9, 0)))
    assert in_short(parts.policy, "m").endswith("on cpu (H1)")


def test_an_apple_gpu_that_is_left_out_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(devices, "mps_objection", lambda: "it has no float64")
    sentence = "device: mps is left out: it has no float64"
    assert sentence in warnings(assemble(tiny_run(model, "grpo", "model.device=auto")))
    assert sentence not in warnings(assemble(tiny_run(model, "grpo", "model.device=cpu")))


def test_more_prompts_than_examples_are_said(model: Path) -> None:
    said, silent = (warnings(assemble(tiny_run(model, "grpo", f"sampling.prompts={n}"))) for n in (11, 8))
    assert [sentence for sentence in said if not sentence.startswith("reward:")] == [
        "data: sampling.prompts is 11 and there are 8 examples, so 3 prompts of every step repeat an example of the "
        "same step"
    ]
    assert [sentence for sentence in silent if not sentence.startswith("reward:")] == []


def test_vllm_is_suggested_where_a_gpu_samples_with_the_model_itself(model: Path) -> None:
    def suggested(device: str, method: str = "grpo", *settings: str) -> bool:
        parts = assemble(tiny_run(model, method, *settings))
        parts.policy.device = torch.device(device)
        return any(sentence.endswith('set sampler.kind = "vllm"') for sentence in warnings(parts))

    assert suggested("cuda") and not suggested("cpu")
    # These sample nothing, or with servers.
    assert not suggested("cuda", "sft")
    assert not suggested("cuda", "grpo", "sampler.kind=server", 'sampler.urls=["http://127.0.0.1:9"]')


@pytest.mark.parametrize(("method", "alone"), [("grpo", True), ("sd", True), ("opsd", False), ("hdpo", False)])
def test_a_completion_that_is_compared_with_none_is_said(model: Path, method: str, alone: bool) -> None:
    """``opsd`` compares no rewards, and in ``hdpo`` the teacher's completions may join the group."""
    told = "reward: sampling.completions is 1, and a completion alone in its group has advantage 0"
    for completions in (1, 2):
        run = tiny_run(model, METHODS.get(method, method), f"sampling.completions={completions}")
        assert (told in list(warnings(assemble(run)))) is (alone and completions == 1)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("optimiser.learning_rate=1e9", "optimiser: a learning rate of 1e+09 moves every weight"),
        ("sampling.temperature=1e6", "sampling: at temperature 1e+06 unlikely tokens"),
    ],
)
def test_an_absurd_value_is_said(setting: str, sentence: str, model: Path) -> None:
    assert sum(told.startswith(sentence) for told in warnings(assemble(tiny_run(model, "grpo", setting)))) == 1
    usual = ("optimiser.learning_rate=0.01", "sampling.temperature=2.0")
    said = warnings(assemble(tiny_run(model, "grpo", *usual)))
    assert not [told for told in said if told.startswith(("optimiser:", "sampling:"))]


def test_a_dry_run_shows_the_banner_and_two_prompts_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    said = rehearsed(tiny_run(model, METHODS["opsd"]), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert (
        said.startswith("steps ")
        and "\nmodel " in said
        and said.endswith("dry run: nothing was sampled, trained or written\n")
    )
    student, teacher = said.split("── ")[1:]
    assert student.startswith("student: what the model is asked; countdown-")
    assert "<|user|> use the numbers" in student and "solution" not in student
    assert teacher.startswith("teacher: context solution, ") and "a correct solution is" in teacher


def test_a_dry_run_shows_by_its_name_what_is_known_after_sampling(model: Path, tmp_path: Path) -> None:
    said = rehearsed(tiny_run(model, {"name": "sdpo", "context": "feedback"}), tmp_path / "run")
    assert "── teacher: context feedback, ema weights" in said


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda m, f: (tiny_run(m / "gone"), f / "new"), "not found: give a model directory"),
        (lambda m, f: (tiny_run(m, "grpo", "model.device=abacus"), f / "new"), "'abacus' cannot be used here"),
        (lambda m, f: (tiny_run(m), f / "full"), "is not empty and holds no run"),
        (lambda m, f: (tiny_run(m, "grpo", "sinks=['wandb']"), f / "new"), "wandb"),
    ],
)
def test_a_dry_run_refuses_what_training_refuses(
    wrong: Callable[[Path, Path], tuple[Any, Path]], sentence: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    config, folder = wrong(model, tmp_path)
    with pytest.raises(UserError) as by_rehearsal:
        rehearsed(config, folder)
    with pytest.raises(UserError) as by_training:
        open_run(config, folder)
    assert str(by_rehearsal.value) == str(by_training.value)
    assert sentence in str(by_rehearsal.value)


def test_a_dry_run_of_a_resume_compares_the_configs(model: Path, tmp_path: Path) -> None:
    train(tiny_run(model, "grpo", "steps=1"), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    said = rehearsed(tiny_run(model, "grpo", "steps=2"), tmp_path / "run", resume=True)
    assert f"\n{tmp_path / 'run'} would be resumed after step 1 of 2\nmodel " in said
    said = rehearsed(tiny_run(model, "grpo", "steps=1"), tmp_path / "run", resume=True)
    assert "is already at step 1 of 1: nothing is left to train" in said
    with pytest.raises(CheckpointError, match="seed was 0 and is now 1"):
        rehearsed(tiny_run(model, "grpo", "seed=1"), tmp_path / "run", resume=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_dry_run_of_a_resume_says_where_it_would_go_on(model: Path, tmp_path: Path) -> None:
    folder, config = tmp_path / "run", tiny_run(model, "grpo", "steps=2", "checkpoint.every=1")
    assert f"nothing to resume in {folder}: this would be a new run\n" in rehearsed(config, folder, resume=True)
    assert "new run" not in rehearsed(config, folder)
    train(config, folder)
    # The newest checkpoint is torn: the one before it is taken, as training would.
    (folder / "checkpoints" / "step-000002" / "state.json").write_text("{}")
    said = rehearsed(config, folder, resume=True)
    assert "checkpoint step-000002 is torn (state.json is damaged); using the one before it\n" in said
    assert f"{folder} would be resumed after step 1 of 2\n" in said
    # Lines from before a checkpoint are gone: no checkpoint can be gone on from.
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl has lost or changed lines from before it"):
        rehearsed(config, folder, resume=True)
    shutil.rmtree(folder / "checkpoints")
    assert f"{folder} has no checkpoint yet: it would start over\n" in rehearsed(config, folder, resume=True)


def test_a_dry_run_refuses_a_resume_from_other_weights(tmp_path: Path) -> None:
    own = save_tiny_model(tmp_path / "own")
    train(tiny_run(own, "grpo", "steps=1"), tmp_path / "run")
    save_tiny_model(own, seed=1)
    with pytest.raises(CheckpointError, match=f"began from other weights than {own} holds now: it cannot resume"):
        rehearsed(tiny_run(own, "grpo", "steps=1"), tmp_path / "run", resume=True)


def test_a_dry_run_says_what_it_converted(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFDISTILL_CACHE", str(tmp_path / "cache"))
    mine = tmp_path / "cache" / "gguf" / "tiny-1"

    def converting(config: Any, **options: Any) -> Any:
        mine.mkdir(parents=True, exist_ok=True)
        (mine / "gguf.json").write_text("{}")
        return assemble(config, **options)

    monkeypatch.setattr("selfdistill.training.dry_run.assemble", converting)
    first, second = (rehearsed(tiny_run(model), tmp_path / "run").splitlines()[-1] for _ in range(2))
    assert first.startswith(f"dry run: nothing was sampled or trained, and only {mine} written")
    assert second == "dry run: nothing was sampled, trained or written"


def test_every_start_leaves_its_record(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://me:secret@host"
    monkeypatch.setattr(sys, "argv", ["/opt/python/__main__.py", "train", "mine.toml", f"--set=urls=['{url}']"])
    run = tmp_path / "run"
    train(tiny_run(model), run, stop_after=2)
    summary = train(tiny_run(model), run, resume=True)
    first, second = lines(run / "starts.jsonl")
    assert summary["starts"] == [first, second]
    assert (first["step"], second["step"]) == (0, 2)
    assert first["command"].startswith("selfdistill train mine.toml") and "secret" not in json.dumps(first)
    assert first["versions"].keys() == {"python", "selfdistill", "torch", "transformers"}
    assert (first["device"], first["dtype"], first["seed"], first["processes"]) == ("cpu", "float32", 0, 1)


def test_the_name_of_a_gpu_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfdistill.training.provenance.read_device", lambda name: Device("cuda", "H1", 1, 1, (9, 0)))
    assert start_record(Model(device="cuda:1"), step=0, seed=0)["device"] == "cuda:1, H1"


def test_the_commit_of_a_checkout_and_of_nothing_else(tmp_path: Path) -> None:
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("", encoding="utf-8")

    def git(*words: str) -> str:
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", "-C", str(tmp_path), *author, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert commit_of(package) is None
    git("init", "-q")
    assert commit_of(package) is None, "nothing is committed yet"
    git("add", "-A")
    git("commit", "-qm", "one")
    assert commit_of(package) == git("rev-parse", "HEAD")
    (package / "code.py").write_text("changed", encoding="utf-8")
    assert commit_of(package) == git("rev-parse", "HEAD") + "+"
    installed = tmp_path / "lib" / "package"
    installed.mkdir(parents=True)
    assert commit_of(installed) is None


def test_a_resume_behind_or_at_the_last_step_says_so(model: Path, tmp_path: Path) -> None:
    train(tiny_run(model, "grpo", "steps=2"), tmp_path / "run")
    settings = (tmp_path / "run" / "config.json").read_bytes()
    again = open_run(tiny_run(model, "grpo", "steps=2"), tmp_path / "run", resume=True)
    assert (
        recorder(again)
        .said[-1]
        .endswith("is already at step 2 of 2: nothing is left to train; set steps higher to go on")
    )
    again.hold.release()
    with pytest.raises(CheckpointError, match="is already at step 2, beyond steps = 1: set steps higher"):
        open_run(tiny_run(model, "grpo", "steps=1"), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.json").read_bytes() == settings


def test_a_stop_in_a_huge_step_leaves_it_and_a_resume_makes_the_same_run(model: Path, tmp_path: Path) -> None:
    """The second step is left after its first batch of sampling; whole and resumed runs have the same steps."""
    config = tiny_run(model, "grpo", "steps=3", "sampling.max_batch_size=2", "evaluation.every=9")
    whole, left = tmp_path / "whole", tmp_path / "left"
    train(config, whole)
    run = open_run(config, left)
    with run.progress:
        asked = run.parts.worker.sampler._sample_batch  # type: ignore[attr-defined]
        calls: list[int] = []

        def sample_batch(*arguments: Any) -> Any:
            if run.counters.before is not None and run.counters.step == 1:
                calls.append(1)
                recorder(run).stop.signal = 2
            return asked(*arguments)

        run.parts.worker.sampler._sample_batch = sample_batch  # type: ignore[attr-defined]
        summary = run.train(recorder(run).stop)
    assert len(calls) == 1 and summary["steps"] == 1
    assert "step 2 was left while it was sampled: --resume samples it anew" in recorder(run).said
    train(config, left, resume=True)
    assert (left / "rollouts.jsonl").read_bytes() == (whole / "rollouts.jsonl").read_bytes()


def test_an_empty_out_is_no_folder() -> None:
    from selfdistill.api.training import train as api_train
    from selfdistill.cli.terminal import folder

    with pytest.raises(ConfigError, match="--out is empty, which would be the current folder"):
        folder(" ")
    assert folder("runs/a") == Path("runs/a")
    with pytest.raises(ConfigError, match="out is empty"):
        api_train("countdown-grpo", out="")
