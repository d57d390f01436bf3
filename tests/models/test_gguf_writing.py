"""A model written as GGUF is read back through the library's own way from GGUF: the same logits, tokens and prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from selfdistill.cli.app import main
from selfdistill.errors import ModelError
from selfdistill.models.gguf_writing import LLAMA3_SPLIT, QWEN2_SPLIT, write_gguf
from selfdistill.models.policy import Policy, load_policy
from selfdistill.types import Message
from support.bytewise import TEMPLATE
from support.runs import LORA, tiny_run, train

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
pytestmark = pytest.mark.usefixtures("no_page")

TEXT = "Hello hello, there're 1234 of them?\n\n  def f(x): return {'a': 1}  # naïve 你好 🙂<|im_end|>"
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
}
SPLITS = {"qwen2": QWEN2_SPLIT, "llama-bpe": LLAMA3_SPLIT}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFDISTILL_CACHE", str(tmp_path / "cache"))


def save_tokenizer(folder: Path, pre: str) -> None:
    """A byte-level BPE with two merges, which leaves rows of the model without a token."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    entries = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "hel", "12"]
    vocab = {entry: i for i, entry in enumerate(entries)}
    merges = [("h", "e"), ("he", "l"), ("1", "2")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    cuts: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if pre in SPLITS:
        cuts = [
            pre_tokenizers.Split(Regex(SPLITS[pre]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    elif pre == "smollm":
        cuts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts) if len(cuts) > 1 else cuts[0]
    tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": special[1:2]})
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def save_model(folder: Path, family: str, *, pre: str, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    classes: Mapping[str, tuple[Any, Any]] = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }
    config, kind = classes[family]
    torch.manual_seed(0)
    model = kind(config(**SIZES | more))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(folder, pre)
    return folder


def load(path: Path) -> tuple[Policy, Any]:
    return load_policy(str(path), dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("family", "pre", "more"),
    [
        (
            "llama",
            "gpt-2",
            {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        ),
        ("llama", "llama-bpe", {"head_dim": 16}),
        ("llama", "gpt-2", {"num_key_value_heads": 4, "rms_norm_eps": 1e-3}),
        ("qwen2", "qwen2", {"tie_word_embeddings": True}),
        # The head size is the one that transformers takes for every Qwen3 in GGUF.
        ("qwen3", "qwen2", {"head_dim": 128}),
    ],
    ids=["tied", "head size", "no groups", "qwen2", "qwen3"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_written_model_is_the_one_that_was_there(
    family: str, pre: str, more: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "plain", family, pre=pre, dtype=dtype, **more)
    file = tmp_path / "written.gguf"
    write_gguf(folder, file, name="lab/mine")
    (own, chat), (read, again) = load(folder), load(file)
    ids = torch.tensor([chat.encode((Message("user", TEXT),))])
    assert list(again.encode((Message("user", TEXT),))) == ids[0].tolist()
    assert again.tokenizer(TEXT)["input_ids"] == chat.tokenizer(TEXT)["input_ids"]
    assert again.stop_ids == chat.stop_ids
    with torch.no_grad():
        assert torch.equal(read.model(ids).logits, own.model(ids).logits)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert gguf.GGUFReader(file).fields["general.name"].contents() == "lab/mine"
    assert types["blk.1.ffn_up.weight"] == ("BF16" if dtype == torch.bfloat16 else "F32")
    assert types["blk.1.attn_norm.weight"] == "F32"
    assert ("output.weight" in types) is not bool(more.get("tie_word_embeddings"))
    assert [path.name for path in tmp_path.glob(".*.gguf")] == []


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_llama_cpp_is_told_how_text_is_cut(pre: str, tmp_path: Path) -> None:
    file = tmp_path / "written.gguf"
    write_gguf(save_model(tmp_path / "plain", "llama", pre=pre), file, name="m")
    fields = gguf.GGUFReader(file).fields
    assert fields["tokenizer.ggml.pre"].contents() == pre
    types = fields["tokenizer.ggml.token_type"].contents()
    assert (types[:4], types[-1], len(types)) == ([3, 3, 3, 1], int(gguf.TokenType.UNUSED), SIZES["vocab_size"])
    assert fields["tokenizer.ggml.merges"].contents() == ["h e", "he l", "1 2"]
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


def without(folder: Path, name: str, **changes: Any) -> Path:
    """The model with other entries in one of its files."""
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(content.get(key), dict) else value
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("config.json", {"rope_parameters": {"rope_type": "llama3"}}, "its positions are scaled (llama3)"),
        ("config.json", {"use_sliding_window": True}, "it has a sliding window"),
        ("config.json", {"attention_bias": True}, "it has biases that transformers does not read again"),
        ("config.json", {"dtype": "float64"}, "have no float64 (add --dtype float32)"),
        ("tokenizer.json", {"model": {"type": "WordLevel"}}, "its tokenizer is no byte-level BPE that is known here"),
        ("tokenizer.json", {"model": {"byte_fallback": True}}, "its tokenizer is no byte-level BPE"),
        ("tokenizer.json", {"pre_tokenizer": {"add_prefix_space": True}}, "its tokenizer is no byte-level BPE"),
        ("tokenizer.json", {"model": {"ignore_merges": True}}, "its tokenizer applies merges in another order"),
    ],
    ids=["positions", "window", "biases", "float64", "words", "bytes", "prefix", "merges"],
)
def test_what_is_not_known_here_is_left_to_llama_cpp(
    name: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = without(save_model(tmp_path / "plain", "llama", pre="gpt-2"), name, **changes)
    with pytest.raises(ModelError) as error:
        write_gguf(folder, tmp_path / "written.gguf", name="m")
    assert reason in str(error.value)
    assert str(error.value).endswith(f"Convert it with llama.cpp: python convert_hf_to_gguf.py {folder}")
    # A folder that is removed after an upload is not named.
    with pytest.raises(ModelError, match=r"^m cannot be written as GGUF: .* python convert_hf_to_gguf\.py DIR$"):
        write_gguf(folder, tmp_path / "written.gguf", name="m", stays=False)
    assert not (tmp_path / "written.gguf").exists()


def test_another_family_is_left_to_llama_cpp(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "vocab_size": 300,
    }
    GPTNeoXForCausalLM(GPTNeoXConfig(**settings)).save_pretrained(tmp_path / "plain")
    save_tokenizer(tmp_path / "plain", "gpt-2")
    with pytest.raises(ModelError, match="its class is GPTNeoXForCausalLM, and LlamaForCausalLM, Qwen2ForCausalLM"):
        write_gguf(tmp_path / "plain", tmp_path / "written.gguf", name="m")


@pytest.mark.parametrize("lora", [False, True])
def test_an_export_has_the_file_beside_the_model(
    lora: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_model(tmp_path / "base", "llama", pre="gpt-2")
    adapter = LORA if lora else ()
    train(tiny_run(base, "sft", "steps=1", "sampling.max_tokens=4", *adapter), tmp_path / "run")
    out = tmp_path / "out"
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["export", str(tmp_path / "run"), "--out", str(out), "--gguf", *(["--merge"] if lora else [])])
    assert end.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"as one file: {out / 'model.gguf'}"
    assert gguf.GGUFReader(out / "model.gguf").fields["general.name"].contents() == "run"
    (own, _), (read, _) = load(out), load(out / "model.gguf")
    ids = torch.tensor([[40, 41, 42, 43]])
    with torch.no_grad():
        assert torch.equal(read.model(ids).logits, own.model(ids).logits)
        assert not torch.equal(own.model(ids).logits, load(base)[0].model(ids).logits)
    if lora:
        with pytest.raises(SystemExit):
            main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "other"), "--gguf"])
        assert "--gguf writes whole weights, and this export is an adapter: add --merge" in capsys.readouterr().err
        assert not (tmp_path / "other").exists()
