"""Models of other families: scored, sampled, trained, saved and loaded as Qwen3 is, thinking switch and all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from selfdistill.batching import collate
from selfdistill.chat import Chat
from selfdistill.errors import ModelError
from selfdistill.head import STUDENT, SliceJob
from selfdistill.methods import build_method
from selfdistill.policy import Policy, load_policy
from selfdistill.types import Message, View
from support.runs import lines, open_run, recorder, tiny_run
from support.tiny import TEMPLATE, save_model, save_tiny_model, tiny_settings, tiny_tokenizer

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
MODELS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {}),
    "llama, head of its own": ("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": False}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {"sliding_window": 16}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {"tie_word_embeddings": False}),
    "olmo3": ("Olmo3ForCausalLM", "Olmo3Config", {"sliding_window": 16, "tie_word_embeddings": False}),
    "qwen3 mixture of experts": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**EXPERTS, "decoder_sparse_step": 1}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A random model of each family."""
    made = {}
    for name, (kind, config, own) in MODELS.items():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(getattr(transformers, config)(**tiny_settings(**own)))
        made[name] = save_model(tmp_path_factory.mktemp("model"), model)
    return made


def load(folder: Path) -> tuple[Policy, Chat]:
    return load_policy(str(folder), dtype=torch.float32, device=torch.device("cpu"))


def views() -> list[View]:
    """Sequences of different lengths, so that all but one are padded; two share a prompt longer than the windows."""
    generator = torch.Generator().manual_seed(3)

    def drawn(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(8, 90, (count,), generator=generator).tolist())

    shared = drawn(19)
    return [
        View({STUDENT: prompt}, drawn(size), (1.0,) * size, (0.0,) * size, 0.0, 0, i)
        for i, (prompt, size) in enumerate(((shared, 21), (drawn(4), 6), (shared, 18)))
    ]


def plain_logprobs(model: Any, view: View, real: int) -> Tensor:
    """Log-probability of each completion token, by the whole model on the whole sequence alone."""
    ids = torch.tensor([[*view.prompts[STUDENT], *view.completion_ids]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(view.prompts[STUDENT]) - 1 : -1, :real]
    found: Tensor = logits.log_softmax(-1).gather(-1, torch.tensor(view.completion_ids)[:, None]).squeeze(-1)
    return found


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_and_gradients_are_those_of_the_whole_model(
    name: str, packed: bool, folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfdistill.packing.SHARE_FROM", 1)
    policy, _ = load(folders[name])
    assert policy.packs
    batch = collate(views(), STUDENT, packed=packed)
    with torch.no_grad():
        expected = torch.cat([plain_logprobs(policy.model, view, policy.real_vocabulary) for view in views()])
    torch.testing.assert_close(policy.score(batch, elements=400).target_N, expected, rtol=1e-4, atol=1e-4)

    count = len(batch.target_N)
    method = build_method("sft", {})
    policy(batch, SliceJob(batch.target_N, torch.full((count,), 1 / count), method.loss, elements=400)).loss.backward()
    sliced = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad(set_to_none=True)
    whole = torch.cat([plain_logprobs(policy.model, view, policy.real_vocabulary) for view in views()])
    (-whole.mean()).backward()
    for parameter, grad in sliced.items():
        other = policy.get_parameter(parameter).grad
        assert other is not None
        torch.testing.assert_close(grad, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()) + 1e-7)
    assert len(sliced) > 10


@pytest.mark.parametrize("adapter", [(), ("model.lora.rank=2", "model.lora.alpha=4")], ids=["full", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_trains_saves_and_is_loaded_again(
    name: str, adapter: tuple[str, ...], folders: Mapping[str, Path], tmp_path: Path
) -> None:
    config = tiny_run(folders[name], "sdft", "steps=2", "sampling.prompts=2", "sampling.completions=2", *adapter)
    run = open_run(config, tmp_path / "run")
    run.train(recorder(run).stop)
    steps = lines(tmp_path / "run" / "metrics.jsonl")
    assert all(step["grad_norm"] > 0 for step in steps)
    trained = run.parts.policy
    again, _ = load(tmp_path / "run" / "checkpoints" / "step-000002" / "model")
    batch = collate(views(), STUDENT)
    torch.testing.assert_close(
        again.score(batch, elements=1 << 20).target_N,
        trained.score(batch, elements=1 << 20).target_N,
        rtol=1e-4,
        atol=1e-4,
    )
    start, _ = load(folders[name])
    assert not torch.allclose(
        start.score(batch, elements=1 << 20).target_N, again.score(batch, elements=1 << 20).target_N
    )


# --- chat templates as models have them ------------------------------------------------------------------------------

SWITCHED = TEMPLATE.replace(
    "'<|assistant|> <think> '",
    "'<|assistant|> ' + ('<think> </think> ' if enable_thinking is defined and not enable_thinking else '<think> ')",
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


def with_template(folder: Path, template: str) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def test_a_student_that_does_not_think_under_a_teacher_that_does(tmp_path: Path) -> None:
    folder = with_template(save_tiny_model(tmp_path / "model"), SWITCHED)
    config = tiny_run(
        folder, {"name": "opsd", "teacher_thinking": True}, "steps=1", "sampling.thinking=false", "evaluation.every=1"
    )
    run = open_run(config, tmp_path / "run")
    run.train(recorder(run).stop)
    groups = run.parts.collector.groups(run.parts.examples[:1], seed=0, version=0)
    view = run.parts.trainer.views(groups, step=1).views[0]
    shown = {role: run.parts.chat.tokenizer.decode(ids).split() for role, ids in view.prompts.items()}
    assert shown["student"][-2:] == ["<think>", "</think>"]
    assert shown["teacher"][-1] == "<think>"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"]["teacher_thinking"] is True


def test_a_template_without_the_switch_says_so(tmp_path: Path) -> None:
    _, chat = load(save_tiny_model(tmp_path / "model"))
    with pytest.raises(ModelError, match="has no enable_thinking switch: leave 'thinking' unset"):
        chat.encode([Message("user", "make 9 .")], thinking=False)


def test_a_template_without_a_system_role_gets_the_system_text_before_the_question(tmp_path: Path) -> None:
    _, chat = load(with_template(save_tiny_model(tmp_path / "model"), NO_SYSTEM))
    asked = [Message("system", "use numbers"), Message("user", "make 9 .")]
    joined = chat.encode([Message("user", "use numbers\n\nmake 9 .")])
    assert chat.encode(asked) == joined
    plain = load(save_tiny_model(tmp_path / "other"))[1]
    assert plain.encode(asked) != plain.encode([Message("user", "use numbers\n\nmake 9 .")])
