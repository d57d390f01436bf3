"""Models of other families: scored, sampled, trained, saved and loaded as Qwen3 is, thinking switch and all."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from selfdistill.contexts.chat import Chat
from selfdistill.errors import ModelError
from selfdistill.methods import build_method
from selfdistill.models.architecture import cache_argument
from selfdistill.models.head import LossInputs
from selfdistill.models.policy import Policy, load_external, load_policy
from selfdistill.models.prefill import Prefill, keeps_all, new_cache
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import HFSampler, policy_sampler
from selfdistill.scoring.batching import collate
from selfdistill.types import STUDENT, Message, View
from support.engine import token_logprobs
from support.families import MODELS, REFUSED, SAMPLED, saved
from support.runs import open_run, recorder, tiny_run
from support.tiny import STOP, TEMPLATE, save_model, save_tiny_model, tiny_settings, tiny_tokenizer


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
    monkeypatch.setattr("selfdistill.models.packing.SHARE_FROM", 1)
    policy, _ = load(folders[name])
    assert policy.packs
    batch = collate(views(), STUDENT, packed=packed)
    with torch.no_grad():
        expected = torch.cat([plain_logprobs(policy.model, view, policy.vocab_size) for view in views()])
    torch.testing.assert_close(policy.score(batch, max_logits_per_chunk=400).target_N, expected, rtol=1e-4, atol=1e-4)

    count = len(batch.target_N)
    method = build_method("sft", {})
    policy(
        batch, LossInputs(batch.target_N, torch.full((count,), 1 / count), method.loss, max_logits_per_chunk=400)
    ).loss.backward()
    sliced = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad(set_to_none=True)
    whole = torch.cat([plain_logprobs(policy.model, view, policy.vocab_size) for view in views()])
    (-whole.mean()).backward()
    for parameter, grad in sliced.items():
        other = policy.get_parameter(parameter).grad
        assert other is not None
        torch.testing.assert_close(grad, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()) + 1e-7)
    assert len(sliced) > 10


# --- sampled as scored -----------------------------------------------------------------------------------------------

PROMPTS = ((20, 21, 22), tuple(range(30, 47)), (50, 51, 52, 53, 54), (60, 61, 62, 63, 64), (70,))


def off_the_whole_model(policy: Policy) -> float:
    """The most nats by which a sampled token's log-probability is off that of the model without a cache.

    Prompts of unequal length stand in one batch, and completions end at different times.
    """
    sampler = HFSampler(policy, stop_ids=[STOP, *range(8, 90, 9)]).in_turns()
    drawn = sampler.sample(PROMPTS, SamplingParams(count=3, max_tokens=20, seed=9))
    assert len({len(one.ids) for row in drawn for one in row}) > 3
    # A second turn after what an environment says. What a batch has read may go on in another one.
    said = [
        (*prompt, *row[0].ids, *range(40, 42 + n)) for n, (prompt, row) in enumerate(zip(PROMPTS, drawn, strict=True))
    ]
    again = sampler.sample(said, SamplingParams(count=1, max_tokens=8, seed=3))
    apart = [
        (torch.tensor(one.logprobs) - token_logprobs(policy.causal_lm, prompt, one.ids, policy.vocab_size)).abs()
        for prompt, row in (*zip(PROMPTS, drawn, strict=True), *zip(said, again, strict=True))
        for one in row
    ]
    return float(torch.cat(apart).max())


@pytest.mark.parametrize("name", SAMPLED)
def test_a_family_is_sampled_with_the_probabilities_of_the_whole_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the rounding of float32, whose norms and scans add up to 4e-5 in the worst of these (Zamba2)."""
    policy, _ = load(saved(tmp_path, name))
    assert policy.pads
    assert off_the_whole_model(policy) < 1e-4
    # Prompts are shared by every family that can be packed and keeps all keys, unless it keeps them in another form.
    keeps = keeps_all(new_cache(policy.causal_lm.config)) and "latent" not in name
    assert policy.shares == (policy.packs and keeps)
    if policy.shares:
        monkeypatch.setattr("selfdistill.models.prefill.SHARE_FROM", 1)
        assert off_the_whole_model(policy) < 1e-4


def test_a_model_that_goes_on_wrongly_after_a_turn_reads_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path, "qwen3")
    policy, chat = load(folder)
    assert policy.continues and policy_sampler(policy, chat).in_turns().conversations is not None

    def forgets(model: Any, kept: Any, following: Any) -> Prefill:
        return Prefill.of(model, following, 1)

    def refuses(model: Any, kept: Any, following: Any) -> Prefill:
        raise ValueError("no cache of several tokens")

    for wrong in (forgets, refuses):
        monkeypatch.setattr(Prefill, "continued", wrong)
        policy, chat = load(folder)
        sampler = policy_sampler(policy, chat)
        assert not policy.continues and sampler.in_turns() is sampler


@pytest.mark.parametrize("adapter", [(), ("model.lora.rank=2", "model.lora.alpha=4")], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["mamba", "nemotron-h, time steps with a limit"])
def test_a_recurrent_model_trains_and_is_still_sampled_as_it_is_scored(
    name: str, adapter: tuple[str, ...], tmp_path: Path
) -> None:
    config = tiny_run(saved(tmp_path / "model", name), "sdft", "steps=2", *adapter)
    run = open_run(config, tmp_path / "run")
    run.train(recorder(run).stop)
    trained, batch = run.parts.policy, collate(views(), STUDENT, packed=False)
    assert off_the_whole_model(trained) < 1e-4
    again, _ = load(tmp_path / "run" / "checkpoints" / "step-000002" / "model")
    scores = [policy.score(batch, max_logits_per_chunk=1 << 20).target_N for policy in (again, trained)]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)


def test_a_copy_of_a_model_limits_time_steps_by_its_own_weights(tmp_path: Path) -> None:
    """A frozen teacher is a copy: what the student learns must not reach it."""
    policy, _ = load(saved(tmp_path, "nemotron-h, time steps with a limit"))
    copied, batch = copy.deepcopy(policy), collate(views(), STUDENT, packed=False)
    before = copied.score(batch, max_logits_per_chunk=1 << 20).target_N
    with torch.no_grad():
        for parameter_name, parameter in policy.named_parameters():
            if parameter_name.endswith("dt_bias"):
                parameter.add_(1.0)
    assert torch.equal(copied.score(batch, max_logits_per_chunk=1 << 20).target_N, before)
    assert not torch.allclose(policy.score(batch, max_logits_per_chunk=1 << 20).target_N, before, atol=1e-3)


def test_mamba_in_half_precision_keeps_its_residuals_wide_and_is_loaded(tmp_path: Path) -> None:
    policy, _ = load_policy(str(saved(tmp_path, "mamba2")), dtype=torch.bfloat16, device=torch.device("cpu"))
    assert off_the_whole_model(policy) < 0.1


def test_a_window_ends_where_rotations_would_change_with_the_longest_sequence_of_a_batch(tmp_path: Path) -> None:
    """LongRoPE, as Phi-4-mini has it: written in the words of its published config."""
    folder = saved(tmp_path / "model", "phi3", original_max_position_embeddings=24)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["rope_parameters"]
    scaled = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config |= {"rope_theta": 10_000.0, "rope_scaling": scaled}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    policy, chat = load(folder)
    assert chat.window == 24

    def states(*lengths: int) -> Tensor:
        """Of a row of 8 tokens beside others."""
        ids = torch.full((len(lengths), max(lengths)), 9)
        ids[0, :8] = torch.arange(8, 16)
        with torch.no_grad():
            found: Tensor = policy.decoder(input_ids=ids, use_cache=False).last_hidden_state[0, :8]
        return found

    torch.testing.assert_close(states(8), states(8, 24))
    assert (states(8) - states(8, 25)).abs().max() > 0.1


def test_a_model_without_positions_has_no_window(tmp_path: Path) -> None:
    folder = saved(tmp_path, "mamba")
    config = json.loads((folder / "config.json").read_text())
    del config["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder)[1].window == sys.maxsize


# --- refused in one sentence -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_used_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=REFUSED[name][3]):
        load(saved(tmp_path, name, initializer_range=0.002))


def test_a_head_that_the_config_does_not_describe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the logits are so small that no cap shows."""
    folder = saved(tmp_path, "gemma4, keys of other layers", final_logit_softcapping=30.0, initializer_range=0.002)
    assert load(folder)[0].cap == 30.0
    monkeypatch.setattr("selfdistill.models.check.head_shape", lambda model: (1.0, 31.0))
    with pytest.raises(ModelError, match="neither a linear map of its last hidden state nor that map with the scale"):
        load(folder)


def stub(monkeypatch: pytest.MonkeyPatch, forward: Callable[..., Any]) -> None:
    """Let transformers' Qwen3 have another forward, as after a release that changed it."""
    monkeypatch.setattr(transformers.Qwen3Model, "forward", forward)


NATIVE = transformers.Qwen3Model.forward
CACHE = cache_argument(transformers.Qwen3Model)


def renamed(self: Any, input_ids: Tensor, memory: Any = None, **kwargs: Any) -> Any:
    return NATIVE(self, input_ids, **{**kwargs, CACHE: memory})


def forgetful(self: Any, input_ids: Tensor, cache: Any = None, **kwargs: Any) -> Any:
    return NATIVE(self, input_ids, **{**kwargs, CACHE: None})


def maskless(self: Any, input_ids: Tensor, attention_mask: Any = None, cache: Any = None, **kwargs: Any) -> Any:
    return NATIVE(self, input_ids, **{**kwargs, CACHE: cache})


def blended(self: Any, input_ids: Tensor, cache: Any = None, **kwargs: Any) -> Any:
    """A little of every token in every other, pads and later ones included."""
    output = NATIVE(self, input_ids, **{**kwargs, CACHE: cache})
    output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(1, keepdim=True)
    return output


def test_a_library_that_renamed_the_cache_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_model(tmp_path)
    stub(monkeypatch, renamed)
    with pytest.raises(ModelError, match=r"Qwen3Model\.forward takes its cache under none of the names.*memory"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_library_that_swallows_the_cache_is_refused_with_the_distance(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_model(tmp_path)
    stub(monkeypatch, forgetful)
    with pytest.raises(
        ModelError, match=r"Qwen3ForCausalLM of .* log-probability \d(\.\d+)? nats off the whole forward"
    ):
        load_policy(str(folder), dtype=dtype, device=torch.device("cpu"))


@pytest.mark.parametrize("forgets", [False, True])
def test_the_check_sees_time_steps_whose_limits_decoding_forgets(
    forgets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NemotronH with the limit of its config, 0.001: a token's log-probability was up to 6e-4 nats off."""
    folder = saved(tmp_path, "nemotron-h, time steps with a limit", time_step_min=0.001)
    if forgets:
        monkeypatch.setattr("selfdistill.models.policy.limit_time_steps", lambda model: None)
        with pytest.raises(ModelError, match=r"NemotronHForCausalLM of .* \d\.\d+e-05 nats off the whole forward"):
            load(folder)
    else:
        assert off_the_whole_model(load(folder)[0]) < 1e-5


def test_a_model_that_only_teaches_need_not_be_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, chat = load(save_tiny_model(tmp_path / "student"))
    folder = save_tiny_model(tmp_path / "teacher", seed=1)
    stub(monkeypatch, renamed)
    teacher = load_external(str(folder), student, chat, dtype=torch.float32, device=torch.device("cpu"))
    assert teacher.score(collate(views(), STUDENT), max_logits_per_chunk=400).target_N.isfinite().all()


def test_a_model_that_heeds_no_mask_has_no_pads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_model(tmp_path)
    stub(monkeypatch, maskless)
    monkeypatch.setattr("selfdistill.models.check.obstacle", lambda model: "a layout needs a mask")
    policy, _ = load(folder)
    assert not policy.pads
    assert off_the_whole_model(policy) < 1e-4
    policy.pads = True
    assert off_the_whole_model(policy) > 0.1


def test_a_model_whose_scores_depend_on_what_stands_beside_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_model(tmp_path)
    stub(monkeypatch, blended)
    with pytest.raises(ModelError, match=r"Qwen3ForCausalLM of .* by \d\.\d+ nats, where longer ones stand beside"):
        load(folder)


def test_weights_that_are_no_numbers_are_refused_at_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**tiny_settings()))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not numbers"):
        load(save_model(tmp_path, model))


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
    groups = run.parts.worker.rollout(run.parts.examples[:1], seed=0, version=0)
    view = run.parts.trainer.prepare(groups, step=1).views[0]
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
