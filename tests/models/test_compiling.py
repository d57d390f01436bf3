"""``model.compile``: the same numbers by fewer passes over the vocabulary, and one sentence where torch cannot compile.

Most of these let torch trace and differentiate what it would compile and then run it plainly, which needs no compiler;
``fullgraph`` refuses whatever it cannot take as a whole.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.utils import counters

from selfdistill.cli.app import main
from selfdistill.errors import ModelError
from selfdistill.methods import build_method
from selfdistill.models import head
from selfdistill.models.compile import compiled
from selfdistill.models.head import HeadInput, LossInputs, score_head_input, sliced_loss
from selfdistill.models.policy import load_policy
from selfdistill.objectives import jensen_shannon
from selfdistill.training.build import assemble
from selfdistill.training.importance import SAMPLER, corrected, metrics_of_learner
from selfdistill.types import Scores, TokenSlice
from support.compiler import compiles
from support.quick import quick_first
from support.runs import METHODS, metrics, tiny_run, train

pytestmark = pytest.mark.usefixtures("no_page")

N, V, D = 11, 29, 6


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    compiled.cache_clear()
    torch._dynamo.reset()
    counters.clear()
    yield
    compiled.cache_clear()


def graphs() -> int:
    """How often something was compiled."""
    return int(counters["stats"]["unique_graphs"])


def head_input(*, hidden: int, rows: int = V, real: int = V, grad: bool = False) -> HeadInput:
    generator = torch.Generator().manual_seed(hidden)
    states, weight = (torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (N, rows))
    bias = torch.randn(rows, generator=generator, dtype=torch.float64)
    leaves = [each.requires_grad_(grad) for each in (states, weight, bias)]
    return HeadInput(leaves[0], leaves[1], leaves[2], real, padded_vocab_size=V)


def job(**others: Any) -> LossInputs:
    """A teacher with a head of its own, five padded rows longer, and numbers of tokens and of the step."""

    def loss(tokens: TokenSlice) -> Tensor:
        gap = jensen_shannon(tokens.student, tokens.roles["teacher"])
        return tokens.inputs["advantage"] * gap + tokens.values["gate"] * tokens.target("student")

    fields: dict[str, Any] = {
        "target_N": torch.arange(N) % (V - 4),
        "weight_N": torch.linspace(0.1, 1.0, N, dtype=torch.float64),
        "loss": loss,
        "metrics": lambda tokens: {"teacher": tokens.target("teacher")},
        "head_inputs": {"teacher": head_input(hidden=1, rows=V + 5, real=V - 3)},
        "inputs": {"advantage": torch.linspace(-1.0, 1.0, N, dtype=torch.float64)},
        "values": {"gate": 0.5},
        "max_logits_per_chunk": 5 * (2 * V + 5),
    }
    return LossInputs(**(fields | others))


def found(student: HeadInput, work: LossInputs) -> dict[str, Any]:
    """All that a sliced loss comes to."""
    result = sliced_loss(student, work)
    assert student.bias_V is not None
    gradients = torch.autograd.grad(2 * result.loss, [student.hidden_ND, student.weight_VD, student.bias_V])
    return {"loss": result.loss.detach(), "gradients": gradients, "scores": result.scores, "sums": result.metric_sums}


def both(scores: Scores) -> tuple[Tensor, Tensor]:
    return scores.target_N, scores.entropy_N


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@compiles
def test_a_compiled_slice_gives_the_numbers_of_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of several tokens in pieces of two and one, heads with padded rows and of different length."""
    monkeypatch.setattr(head, "PIECE_ON_CPU", 2 * V)
    student = head_input(hidden=0, real=V - 3, grad=True)
    plain, fast = found(student, job()), found(replace(student, compiled=True), job())
    assert graphs()
    for name in ("loss", "gradients", "sums"):
        same(fast[name], plain[name])
    for role, scores in plain["scores"].items():
        same(both(fast["scores"][role]), both(scores))
    so_far = graphs()
    alone = score_head_input(replace(head_input(hidden=1), compiled=True), job().target_N, max_logits_per_chunk=5 * V)
    same(both(alone), both(score_head_input(head_input(hidden=1), job().target_N, max_logits_per_chunk=5 * V)))
    assert graphs() > so_far


def test_neither_lengths_nor_numbers_of_the_step_compile_it_again(traced: None) -> None:
    student = head_input(hidden=0, grad=True)
    fast = replace(student, compiled=True)
    for gate in (0.0, 1.0, 0.25, -3.0):
        for tokens in (2, 3, 5, 7, 11):
            work = job(values={"gate": gate}, max_logits_per_chunk=tokens * (2 * V + 5))
            same(found(fast, work)["gradients"], found(student, work)["gradients"])
    # A single token, several, and their first number: what torch tells apart.
    assert 1 <= graphs() <= 3


def test_a_correction_for_another_engine_is_compiled_once(traced: None) -> None:
    """A trainer wraps the loss for every micro-batch anew."""
    method = build_method("grpo", {})
    numbers = {name: torch.linspace(-2.0, -1.0, N, dtype=torch.float64) for name in ("old_logprob", SAMPLER)}
    inputs = {"advantage": torch.linspace(-1.0, 1.0, N, dtype=torch.float64), **numbers}
    student = head_input(hidden=0, grad=True)
    for _ in range(4):
        wrapped = {"loss": corrected(method.loss, cap=2.0), "metrics": metrics_of_learner(method.metrics)}
        work = job(inputs=inputs, head_inputs={}, max_logits_per_chunk=N * V, **wrapped)
        same(found(replace(student, compiled=True), work)["gradients"], found(student, work)["gradients"])
    assert graphs() == 1


@pytest.mark.parametrize("name", quick_first(METHODS, ("credit", "pbsd")))
def test_a_run_of_every_method_is_compiled_whole_and_gives_the_same(
    name: str, model: Path, tmp_path: Path, traced: None
) -> None:
    overrides = (
        "steps=2",
        "optimiser.updates_per_batch=2",
        "limits.max_tokens_per_microbatch=120",
        "limits.max_logits_per_chunk=4096",
        "checkpoint.every=1",
    )
    runs = [tmp_path / "plain", tmp_path / "compiled"]
    train(tiny_run(model, METHODS[name], *overrides), runs[0])
    assert not graphs()
    train(tiny_run(model, METHODS[name], *overrides, "model.compile=true"), runs[1])
    # The question whether torch can is one of them.
    assert 2 <= graphs() <= 6, "torch gives up at eight of a kind"
    told = [[numbers(line) for line in metrics(run)] for run in runs]
    assert told[1] == [pytest.approx(line, rel=1e-4, abs=1e-6, nan_ok=True) for line in told[0]]
    weights = [load_file(run / "checkpoints" / "step-000002" / "model" / "model.safetensors") for run in runs]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)


def numbers(line: dict[str, Any]) -> dict[str, Any]:
    """What a step measured, but for what depends on the clock."""
    return {name: value for name, value in line.items() if isinstance(value, float) and "second" not in name}


def test_teachers_and_other_models_are_compiled_as_the_student_is(model: Path) -> None:
    from selfdistill.models.policy import load_external

    policy, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    assert not load_external(str(model), policy, chat, dtype=torch.float32, device=torch.device("cpu")).compiled
    policy.compiled = True
    assert load_external(str(model), policy, chat, dtype=torch.float32, device=torch.device("cpu")).compiled
    assert policy.head_of(torch.zeros(1, 8)).compiled


def test_where_torch_cannot_compile_one_sentence_says_so_before_anything_is_written(tmp_path: Path) -> None:
    absent = tmp_path / "no-such-compiler"
    environment = {**os.environ, "CXX": str(absent), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "selfdistill", "train", "countdown-grpo", "--out", str(tmp_path / "run")]
    command += ["--set", "model.compile=true"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    *_, told = ended.stderr.splitlines()
    assert told.startswith("selfdistill: model.compile: torch cannot compile here (")
    assert str(absent) in told
    assert "leave model.compile unset" in told
    assert not (tmp_path / "run").exists()


def test_the_device_that_is_asked_is_the_one_that_trains(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that will be sharded are loaded in the machine's memory, where nobody compiles."""
    asked: list[torch.device] = []

    def ask(device: torch.device) -> None:
        asked.append(device)
        raise ModelError("far enough")

    monkeypatch.setattr("selfdistill.training.build.parse_device", torch.device)
    monkeypatch.setattr("selfdistill.training.build.check_compiler", ask)
    for kind in ("ddp", "fsdp2"):
        with pytest.raises(ModelError, match="far enough"):
            assemble(tiny_run(model, "grpo", "model.compile=true", "model.device=cuda", f"parallel.kind={kind}"))
    assert asked == [torch.device("cuda")] * 2


def test_an_evaluation_looks_at_no_logits_and_needs_no_compiler(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    arguments = ["evaluate", str(model), "--task", "countdown", "--limit", "1", "--samples", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--max-tokens", "4", "--set", "model.compile=true"])
    assert not ended.value.code, capsys.readouterr().err
    assert not graphs()


def broken(graph: object, inputs: object) -> Callable[..., Any]:
    """A compiler that fails."""
    raise RuntimeError("no such instruction\nand much more")


def test_an_error_within_what_is_compiled_that_torch_makes_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    with pytest.raises(
        ModelError, match=r"^model.compile: torch cannot compile here \(.*no such instruction"
    ) as caught:
        compiled(doubled)(torch.ones(3))
    assert "\n" not in str(caught.value)


def test_signals_wait_for_the_compiler_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C would reach it too, and the run, which means to finish its step, would have nothing to finish it with."""
    held: list[set[Any]] = []

    def slow(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        held.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=slow))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not before & {signal.SIGINT, signal.SIGTERM}
    assert torch.equal(compiled(doubled)(torch.ones(3)), torch.full((3,), 2.0))
    assert held == [before | {signal.SIGINT, signal.SIGTERM}]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def doubled(values: Tensor) -> Tensor:
    return values * 2
