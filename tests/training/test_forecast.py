"""What a dry run says before the model is loaded: steps, tokens, memory and where it ends."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfdistill.config.run import parse_config
from selfdistill.config.sections import Limits
from selfdistill.models.devices import Device
from selfdistill.models.fit import expected_bytes, peak
from selfdistill.models.sizing import GIB, Shape, memory, resting
from selfdistill.tracking.progress import Progress
from selfdistill.training import forecast as module
from selfdistill.training import problem as problem_module
from selfdistill.training.dry_run import rehearse
from selfdistill.training.forecast import forecast, in_gib, step_plan, too_large
from selfdistill.training.problem import PROMPT_TOKENS, Problem, build_problem, resolve
from support.runs import METHODS, lines, tiny_run, train

QWEN = Shape(28, 2048, 16, 8, 128, 6144, 151_936, tied=True)
"""Qwen3-1.7B."""
WIDE = ("limits.max_tokens_per_microbatch=60000", "sampling.max_tokens=9000")


def problem_on(monkeypatch: pytest.MonkeyPatch, model: Path, total: float, *settings: str) -> Problem:
    """A run of a Qwen3-1.7B in bf16 on a device of so many bytes."""
    problem = build_problem(tiny_run(model, "grpo", "model.dtype=bfloat16", *settings))
    monkeypatch.setattr(module, "read_shape", lambda path: QWEN)
    monkeypatch.setattr(module, "read_device", lambda name: Device("cpu", "cpu", int(total), int(total)))
    return problem


@pytest.mark.usefixtures("no_page")
def test_steps_and_tokens_by_hand_and_as_a_run_has_them(model: Path, tmp_path: Path) -> None:
    config = tiny_run(model, "grpo", "optimiser.updates_per_batch=2")
    told = forecast(build_problem(config))
    assert told["steps"] == "5 steps of 3 prompts × 3 completions, 10 updates; 1.9 passes over 8 examples"
    # 3 · 3 completions of 10 tokens; evaluations of 3 problems, 2 samples each, at steps 0, 2, 4 and 5.
    assert told["tokens"] == "at most 90 sampled a step, 450 in all; 4 evaluations of at most 60"
    train(config, tmp_path / "run")
    assert len(lines(tmp_path / "run" / "evaluations.jsonl")) == 4
    responses = forecast(build_problem(tiny_run(model, "sft", "steps=1", "sampling.prompts=8")))
    assert responses["steps"] == "1 step of 8 prompts, 1 update; 1 pass over 8 examples"
    assert responses["tokens"].startswith("none sampled, the data's own responses are read; 2 evaluations of at most")


def test_the_parts_of_the_memory_are_named_by_size(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_on(monkeypatch, model, 500 * GIB)
    plan, _ = step_plan(problem, QWEN, PROMPT_TOKENS + 10)
    terms = memory(QWEN, plan)
    told = forecast(problem)["memory"]
    assert told.startswith(f"about {in_gib(sum(terms.values()))} in an update, with prompts of 1,024 tokens: moments ")
    for name in ("moments", "weights", "gradients", "activations", "computed weights"):
        assert f"{name} {in_gib(terms[name])}" in told
    # Many long completions at once need more while they are sampled than an update does.
    problem = problem_on(monkeypatch, model, 500 * GIB, "sampling.prompts=300", "sampling.max_tokens=2000")
    rest = in_gib(resting(QWEN, step_plan(problem, QWEN, PROMPT_TOKENS + 2000)[0]))
    assert re.search(
        rf"while sampling, .* completions decoded at once .*the model between updates {rest}",
        forecast(problem)["memory"],
    )


def test_the_longest_completion_that_fits_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = 60 * GIB
    problem = problem_on(monkeypatch, model, total)
    found = re.fullmatch(
        r"cpu has 60\.0 GiB; completions of up to ([\d,]+) tokens fit, the largest part is then (.*)",
        forecast(problem)["limit"],
    )
    assert found is not None
    longest = int(found[1].replace(",", "")) + PROMPT_TOKENS
    for length, fits in ((longest, True), (longest + 1, False)):
        plan, _ = step_plan(problem, QWEN, length)
        assert (expected_bytes(QWEN, plan, rows=1, length=length) <= total) is fits
    assert found[2] == "activations"
    problem = problem_on(monkeypatch, model, 2**60)
    assert "memory does not limit the completions up to" in forecast(problem)["limit"]


@pytest.mark.parametrize(
    ("gigabytes", "settings", "said"),
    [
        (
            28,
            (),
            "a step does not fit, and would with optimiser.kind=adamw8bit, or with model.lora.rank=64, "
            "or with model.lora.rank=64 and model.quantisation=nf4",
        ),
        (
            20,
            (),
            "a step does not fit, and would with model.lora.rank=64, "
            "or with model.lora.rank=64 and model.quantisation=nf4",
        ),
        (4, ("model.lora.rank=8",), "a step does not fit, and would with model.quantisation=nf4"),
        (1, (), "a step does not fit, with an adapter on a base in 4 bits neither: take a smaller model"),
        (60, WIDE, "a step does not fit, and would with unset limits"),
    ],
)
def test_what_would_fit_instead_is_said(
    gigabytes: float, settings: tuple[str, ...], said: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = forecast(problem_on(monkeypatch, model, gigabytes * 1e9, *settings))["limit"]
    assert limit.partition("; ")[2].startswith(said), limit


def engine(settings: str) -> str:
    return f'sampler={{kind="vllm",{settings}}}'


def test_an_engine_of_the_run_s_own_leaves_the_rest_to_the_learner(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_on(monkeypatch, model, 100 * GIB, engine("gpu_memory_utilization=0.4"))
    plan, rows = step_plan(problem, QWEN, PROMPT_TOKENS + 10)
    assert rows == 0
    told = forecast(problem)
    assert told["memory"].startswith(f"about {in_gib(peak(QWEN, plan))} in an update")
    start, _, room = told["limit"].partition("; ")
    assert start == "cpu has 100.0 GiB, of which the engine takes 40.0 GiB"
    assert room == forecast(problem_on(monkeypatch, model, 60 * GIB))["limit"].partition("; ")[2]
    # 6 bytes a weight are 9.6 GiB.
    problem = problem_on(monkeypatch, model, 15 * GIB, engine("gpu_memory_utilization=0.4"))
    assert too_large(problem) == (
        f"its weights take {in_gib(QWEN.parameters * 6)} and cpu has 15.0 GiB, of which the engine takes 6.0 GiB"
    )
    assert too_large(problem_on(monkeypatch, model, 15 * GIB, engine("sleep=true"))) is None


def test_sizes_are_chosen_for_what_an_engine_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem_module, "read_shape", lambda path: QWEN)

    def chosen(total: int, **sampler: Any) -> tuple[Limits, bool, int]:
        monkeypatch.setattr(problem_module, "read_device", lambda name: Device("cpu", "cpu", total, total))
        config = {
            "method": "grpo",
            "model": {"device": "cpu", "dtype": "bfloat16"},
            "sampler": {"kind": "hf"} | sampler,
        }
        made = resolve(parse_config(config, "here"))
        return made.limits, made.parallel.activation_checkpointing, made.sampling.max_batch_size

    share = {"kind": "vllm", "gpu_memory_utilization": 0.5}
    assert chosen(60 * GIB, **share) == chosen(30 * GIB) != chosen(60 * GIB)
    assert chosen(60 * GIB, **share, sleep=True) == chosen(60 * GIB)


def test_a_model_larger_than_the_device_is_not_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem_on(monkeypatch, model, 4e9)

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("selfdistill.training.dry_run.assemble", load)
    text = io.StringIO()
    config = tiny_run(model, METHODS["sdpo"], "model.dtype=bfloat16")
    rehearse(config, tmp_path / "run", resume=False, progress=Progress(Console(file=text, width=300)))
    last = text.getvalue().splitlines()[-1]
    # Four bytes a weight and two that compute, of the student and of its average.
    taken = in_gib(QWEN.parameters * 6 * 2)
    assert last == (
        f"dry run: the model was not loaded, because its weights take {taken} and cpu has 3.7 GiB; nothing was written"
    )
    assert not (tmp_path / "run").exists()


def test_an_architecture_that_the_sizing_model_does_not_know(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_on(monkeypatch, model, 1)
    assert too_large(problem) is not None
    for shape in (None, replace(QWEN, approximate=True)):
        monkeypatch.setattr(module, "read_shape", lambda path, shape=shape: shape)
        told = forecast(problem)
        assert told["memory"].startswith("not estimated: the config.json at model.path cannot be read")
        assert "limit" not in told
        assert too_large(problem) is None
