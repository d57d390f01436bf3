"""An adapter on a base that is kept in 4 bits: its numbers, its gradients, whole runs, exports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from selfdistill import load_policy as api_load
from selfdistill.cli.evaluate import evaluate_model
from selfdistill.cli.export import export_run
from selfdistill.config.sampler import VLLMConfig
from selfdistill.config.sections import LoraConfig
from selfdistill.contexts.chat import Chat
from selfdistill.errors import CheckpointError, ConfigError, ModelError
from selfdistill.models.policy import Policy, load_policy, save_policy
from selfdistill.models.quantised import BLOCK, dequantised, quantised_layers
from selfdistill.sampling.build import build_engine
from selfdistill.training.banner import banner, describe_quantised, in_short, quantised_warnings, warnings
from selfdistill.training.build import assemble
from selfdistill.training.run_folder import export_model, load_model
from support.families import saved
from support.runs import METHODS, lines, outcome, tiny_run, train
from support.tiny import save_tiny_model

pytestmark = [
    pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
    pytest.mark.usefixtures("no_page"),
]

NF4 = ("model.quantisation=nf4", "model.lora.rank=2", "model.lora.alpha=4", "optimiser.learning_rate=0.05")
IDS = torch.arange(8, 40)[None]
EVEN = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
"""A model all of whose layers have a multiple of :data:`~selfdistill.models.quantised.BLOCK` inputs."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 that nothing else writes to."""
    return save_tiny_model(tmp_path_factory.mktemp("base") / "qwen3", **EVEN)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an adapter with an averaged teacher."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(tiny_run(base, METHODS["sdpo"], *NF4), folder)
    return folder


def load(path: Path | str, **options: Any) -> tuple[Policy, Chat]:
    return load_policy(str(path), dtype=torch.float32, device=torch.device("cpu"), **options)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def dequantised_twin(policy: Policy, path: Path) -> Any:
    """The model in float32 whose linear layers have the weights that the quantised ones stand for."""
    twin: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    quantised = {name.removesuffix(".base_layer"): module for name, module in policy.causal_lm.named_modules()}
    with torch.no_grad():
        for name, module in twin.named_modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(dequantised(quantised[name].weight))
    return twin


def test_a_weight_is_the_nearest_code_of_its_block(base: Path) -> None:
    policy, _ = load(base, quantisation="nf4")
    stored = load_file(base / "model.safetensors")
    for name, parameter in policy.causal_lm.named_parameters():
        if "_proj" not in name:
            assert torch.equal(parameter, stored[name])
            continue
        codes = parameter.quant_state.code
        blocks = stored[name].flatten().split(BLOCK)
        for block, found in zip(blocks, dequantised(parameter).flatten().split(BLOCK), strict=True):
            scale = block.abs().max()
            expected = codes[(block[:, None] / scale - codes).abs().argmin(1)] * scale
            # The scales are quantised too, to 8 bits.
            torch.testing.assert_close(found, expected, rtol=0.05, atol=0.002)


def test_logits_are_those_of_the_weights_that_it_stands_for(base: Path) -> None:
    policy, _ = load(base, quantisation="nf4")
    torch.testing.assert_close(logits(policy.model), logits(dequantised_twin(policy, base)))
    assert (logits(policy.model) - logits(load(base)[0].model)).abs().max() > 0.1


def test_every_layer_of_the_adapter_has_the_gradient_of_that_model(base: Path) -> None:
    """Also after a forward pass without gradient, as scoring and sampling make."""
    lora = LoraConfig(rank=2, alpha=4)
    policy, _ = load(base, quantisation="nf4", lora=lora)
    twin, _ = load(base, lora=lora)
    weights = dict(dequantised_twin(policy, base).named_parameters())
    with torch.no_grad():
        for name, parameter in twin.causal_lm.named_parameters():
            if ".base_layer" in name:
                parameter.copy_(weights[name.replace(".base_layer", "")])
        # A new adapter's B is zero, and so would be the gradient of A.
        for one in (policy, twin):
            for name, parameter in one.trained().items():
                if "lora_B" in name:
                    parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    for one in (policy, twin):
        logits(one.model)
        one.model(IDS).logits.logsumexp(-1).sum().backward()
    gradients = {name: parameter.grad for name, parameter in twin.trained().items()}
    assert len(gradients) == 2 * 14
    for name, parameter in policy.trained().items():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-4)


def test_what_is_quantised_and_what_stays_is_counted_and_said(base: Path, tmp_path: Path) -> None:
    parts = assemble(tiny_run(base, "grpo", *NF4))
    # A layer has q and o of 64 × 64, k and v of 32 × 64, three of 128 × 64; norms of 2·64 and 2·16, the last one of 64.
    quantised, norms = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64), 2 * (2 * 64 + 2 * 16) + 64
    layers = quantised_layers(parts.policy.model)
    assert layers is not None
    assert (layers.layers, layers.weights, layers.tables, layers.others) == (14, quantised, 96 * 64, norms)
    said = banner(parts, tmp_path)
    assert (
        said["base"] == "nf4: 14 linear layers with 73.7K weights; not quantised: embedding and head 6.14K, others 384"
    )
    trained = sum(p.numel() for p in parts.policy.trainable())
    assert (
        said["model"]
        == f"{base}, {(quantised + norms + 96 * 64 + trained) / 1e3:.3g}K weights, {trained / 1e3:.3g}K of them trained"
    )
    assert "model: its linear layers are kept in nf4, so it is not the original model" in warnings(parts)
    assert ", quantised (nf4), float32 on cpu" in in_short(parts.policy, "m")


def test_fused_experts_stay_and_are_named(tmp_path: Path) -> None:
    model = saved(tmp_path / "moe", "qwen3 mixture of experts", **EVEN)
    parts = assemble(tiny_run(model, "grpo", *NF4, "model.lora.target_modules=['q_proj']"))
    assert re.search(r", the largest model\.layers\.0\.mlp\.experts\.", banner(parts, tmp_path)["base"])


def test_a_resumed_run_is_the_whole_run(run: Path, base: Path, tmp_path: Path) -> None:
    config = tiny_run(base, METHODS["sdpo"], *NF4)
    train(config, tmp_path / "cut", stop_after=3)
    train(config, tmp_path / "cut", resume=True)
    assert outcome(tmp_path / "cut") == outcome(run)
    assert lines(run / "starts.jsonl")[0]["quantised"] == "nf4"


def test_bf16_runs_and_resumes(base: Path, tmp_path: Path) -> None:
    config = tiny_run(base, "grpo", *NF4, "model.dtype=bfloat16", "steps=2", "checkpoint.every=1")
    train(config, tmp_path / "whole")
    train(config, tmp_path / "cut", stop_after=1)
    train(config, tmp_path / "cut", resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_the_weights_of_a_run_are_loaded_quantised_again(run: Path, base: Path) -> None:
    config = tiny_run(base, METHODS["sdpo"], *NF4)
    alone = config.model.model_copy(update={"lora": None})
    policy, _, _ = load_model(str(run), config.model_copy(update={"model": alone}))
    assert policy.quantised == "nf4"
    trained = assemble(config).policy
    newest = run / "checkpoints" / "step-000005" / "model"
    stored = load_file(newest / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in trained.trained().items():
            parameter.copy_(stored[name.replace(".default.", ".")])
    assert torch.equal(logits(policy.model), logits(trained.model))
    assert torch.equal(logits(api_load(run)[0].model), logits(trained.model))
    options: dict[str, Any] = {"split": "test", "temperature": 1.0, "max_tokens": 4, "seed": 0, "overrides": []}
    result = evaluate_model(str(run), None, samples=1, limit=2, **options)
    assert "model: its linear layers are kept in nf4, so it is not the original model" in result["warnings"]
    with pytest.raises(ModelError, match="none of them is trained, so that there is nothing to save"):
        save_policy(*load(base, quantisation="nf4"), run / "copy")


def test_an_export_names_the_users_base_and_a_merge_is_into_the_unquantised_one(
    run: Path, base: Path, tmp_path: Path
) -> None:
    said = list(export_run(run, tmp_path / "adapter", step=None, dtype=None, merge=False))
    assert said == [f"step-000005 of {run} is in {tmp_path / 'adapter'}"]
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert adapter["base_model_name_or_path"] == str(base)
    assert "On that model without quantisation its logits differ somewhat." in (
        tmp_path / "adapter" / "README.md"
    ).read_text("utf-8")
    said = list(export_run(run, tmp_path / "merged", step=None, dtype=None, merge=True))
    assert said[0].endswith("It is merged into that model as it is without quantisation: its logits differ somewhat.")
    assert said[0] in (tmp_path / "merged" / "README.md").read_text("utf-8")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    # The adapter's directory, read without quantisation, is merged as well.
    torch.testing.assert_close(logits(merged), logits(load(tmp_path / "adapter")[0].model))
    trained = logits(load(tmp_path / "adapter", quantisation="nf4")[0].model)
    assert (logits(merged) - trained).abs().max() > 0.1


def test_a_model_that_is_stored_in_4_bits_trains_an_adapter_and_nothing_else(base: Path, tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    policy, chat = load(base, quantisation="nf4")
    policy.causal_lm.save_pretrained(stored)
    chat.tokenizer.save_pretrained(stored)
    with pytest.raises(
        ModelError, match=r"stored stores model\..* as uint8, which cannot be trained: train an adapter"
    ):
        assemble(tiny_run(stored, "grpo"))
    with pytest.raises(ModelError, match=r"stored is quantised already \(bitsandbytes\): leave out model.quantisation"):
        load(stored, quantisation="nf4")
    config = tiny_run(stored, "grpo", *NF4[1:], "steps=1", "checkpoint.every=1")
    parts = assemble(config)
    assert parts.policy.quantised == "nf4"
    torch.testing.assert_close(logits(parts.policy.model), logits(policy.model))
    train(config, tmp_path / "run")
    adapter = tmp_path / "run" / "checkpoints" / "step-000001" / "model"
    for more in ((), NF4[1:]):
        with pytest.raises(ModelError, match="is an adapter on a base that is stored quantised, into which it can"):
            assemble(tiny_run(adapter, "grpo", *more))
    with pytest.raises(
        CheckpointError, match="is stored in nf4, and an adapter that is merged into it would be rounded"
    ):
        export_model(tmp_path / "run", tmp_path / "merged", step=None, merge=True)


def test_a_weight_that_is_no_number_is_found_behind_its_bytes(base: Path, tmp_path: Path) -> None:
    broken = save_tiny_model(tmp_path / "broken", **EVEN)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"NaN or infinite\), in model.layers.1.mlp.up_proj.weight"):
        load(broken, quantisation="nf4")


def test_an_engine_gets_the_base_of_the_adapter_and_never_a_quantised_model(
    run: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfdistill.sampling import engines

    asked: list[str] = []
    monkeypatch.setattr(engines, "build_engine", lambda *_, model, **options: asked.append(model))
    newest = run / "checkpoints" / "step-000005" / "model"
    for path in (newest, base):
        policy, chat = load(newest, quantisation="nf4")
        with engines.command_engines(VLLMConfig(kind="vllm"), policy, chat, model=str(path), max_batch_size=1):
            pass
    assert asked == [str(base), str(base)]
    [_, told] = quantised_warnings(policy, VLLMConfig(kind="vllm"))
    assert told.startswith("sampler: the engine holds the model below the adapter as it is stored, not quantised")
    plain, chat = load(base, quantisation="nf4")
    with pytest.raises(ConfigError, match="samples from the model as it is stored, not from one that is kept in nf4"):
        build_engine(VLLMConfig(kind="vllm"), plain, chat, model="", dtype="float32", folder=tmp_path, log=print)


def test_a_layer_whose_inputs_are_no_multiple_of_64_stays(tmp_path: Path) -> None:
    """bitsandbytes reads the scales of such a layer wrongly on CPUs."""
    model = save_tiny_model(tmp_path / "model", **{**EVEN, "intermediate_size": 48})
    policy, _ = load(model, quantisation="nf4", lora=LoraConfig(rank=2, alpha=4))
    torch.testing.assert_close(logits(policy.model), logits(dequantised_twin(policy, model)))
    layers = quantised_layers(policy.model)
    assert layers is not None
    assert (layers.layers, layers.uneven, layers.others) == (12, 2, 2 * (48 * 64 + 2 * 64 + 2 * 16) + 64)
    assert describe_quantised(layers).endswith(
        "others 6.53K, the largest model.layers.0.mlp.down_proj.weight; "
        "2 linear layers stay because their inputs are no multiple of 64"
    )
    with pytest.raises(ModelError, match="has no linear layer whose inputs are a multiple of 64, so nothing is quant"):
        load(save_tiny_model(tmp_path / "uneven"), quantisation="nf4")


def test_files_with_such_a_layer_quantised_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("selfdistill.models.quantised.BLOCK", 16)
        policy, chat = load(save_tiny_model(tmp_path / "model"), quantisation="nf4")
        policy.causal_lm.save_pretrained(tmp_path / "stored")
        chat.tokenizer.save_pretrained(tmp_path / "stored")
    with pytest.raises(ModelError, match="a quantised layer with 32 inputs, which is no multiple of 64"):
        load(tmp_path / "stored")


def test_no_hub_is_asked_for_kernels_and_nothing_is_said_of_them(tmp_path: Path) -> None:
    """bitsandbytes fetches one while it is imported, if the package ``kernels`` is there, and else warns."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('asked the hub')", encoding="utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from selfdistill.models.quantised import import_bitsandbytes, import_peft\n"
        "import_{}\n"
        "print('bitsandbytes' in sys.modules, 'kernels' in sys.modules)"
    )
    for imported in ("bitsandbytes('x')", "peft()"):
        done = subprocess.run([sys.executable, "-c", code.format(imported)], capture_output=True, text=True, check=True)
        assert (done.stdout.split(), done.stderr) == (["True", "False"], "")
