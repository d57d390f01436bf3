"""A GGUF file is converted once into a plain directory that every command loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.config.sections import LoraConfig
from selfdistill.contexts.chat import Chat
from selfdistill.errors import ModelError
from selfdistill.models.gguf import RECORD, convert, converted, gguf_file, gguf_quantisation
from selfdistill.models.loading import resolve_model
from selfdistill.models.policy import Policy, load_policy, save_policy
from selfdistill.types import Message

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

WIDTH, INNER, HEADS, LAYERS = 32, 64, 4, 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_gguf(file: Path, kind: str = "Q8_0") -> Path:
    """A tiny Llama of random weights whose matrices are stored as ``kind``, with a byte-level tokenizer."""
    from tokenizers import pre_tokenizers

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    generator = torch.Generator().manual_seed(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = (torch.randn(rows, columns, generator=generator) * 0.2).numpy()
        quantised = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)

    matrix("token_embd.weight", len(tokens), WIDTH)
    writer.add_tensor("output_norm.weight", torch.ones(WIDTH).numpy())
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
        matrix(f"blk.{layer}.ffn_gate.weight", INNER, WIDTH)
        matrix(f"blk.{layer}.ffn_up.weight", INNER, WIDTH)
        matrix(f"blk.{layer}.ffn_down.weight", WIDTH, INNER)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", torch.ones(WIDTH).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def load(path: Path | str, lora: LoraConfig | None = None) -> tuple[Policy, Chat]:
    return load_policy(str(path), dtype=torch.float32, device=torch.device("cpu"), lora=lora)


def test_a_converted_file_has_the_logits_the_tokens_and_the_prompt_of_the_gguf(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    policy, chat = load(file)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    question = [{"role": "user", "content": "hello"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert list(chat.encode((Message("user", "hello"),))) == ids
    with torch.no_grad():
        assert torch.equal(policy.model(torch.tensor([ids])).logits, theirs(torch.tensor([ids])).logits)
    assert not hasattr(policy.model.config, "quantization_config")
    assert policy.quantised == "Q8_0"


def test_a_model_beside_the_file_does_not_lend_it_its_tokenizer(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    alone, chat = load(file)
    beside = tmp_path / "beside"
    save_policy(alone, chat, beside)
    (beside / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    shutil.copy(file, beside / "other.gguf")
    _, again = load(beside / "other.gguf")
    question = (Message("user", "hello"),)
    assert again.encode(question) == chat.encode(question)


def test_a_file_is_converted_once_and_again_when_it_has_changed(tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    first = converted(file)
    (first / "mark").touch()
    assert converted(file) == first
    assert (first / "mark").exists()
    record = json.loads((first / RECORD).read_text())
    assert record["file"] == "tiny.gguf"
    assert record["tensors"] == {"Q8_0": 1 + 7 * LAYERS, "F32": 1 + 2 * LAYERS}
    file.unlink()
    second = converted(write_gguf(file, "F32"))
    assert second != first
    assert gguf_quantisation(second) is None
    assert sorted(path.name for path in (cache / "gguf").iterdir()) == sorted([first.name, second.name])


def test_a_folder_stands_for_its_only_gguf_file(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    assert resolve_model(str(tmp_path)) == resolve_model(str(file)) != str(tmp_path)
    shutil.copy(file, tmp_path / "other.gguf")
    with pytest.raises(ModelError, match=r"several GGUF files \(other\.gguf, tiny\.gguf\): name one of them"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert gguf_file(str(tmp_path)) is None


def test_an_adapter_on_a_gguf_names_the_converted_directory_as_its_base(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    policy, chat = load(file, LoraConfig(rank=2, alpha=4))
    save_policy(policy, chat, tmp_path / "adapter")
    base = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(base) == converted(file)
    again, _ = load(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, policy.model(ids).logits)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (lambda whole: b"", "is no GGUF file, although"),
        (lambda whole: b"not a model at all" * 10, "is no GGUF file, although"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs"),
        (lambda whole: whole[:4], "is damaged or was not copied to its end: download or copy it again"),
        (lambda whole: whole[:40], "is damaged or was not copied to its end"),
        (lambda whole: whole[:-2000], "is damaged or was not copied to its end"),
        (lambda whole: whole[:4] + b"\x63" + whole[5:], "cannot be read: .* version 99"),
    ],
    ids=["empty", "text", "pointer", "magic alone", "header cut", "end cut", "version"],
)
def test_what_is_no_gguf_is_refused_in_plain_words_and_leaves_nothing(
    contents: Callable[[bytes], bytes], said: str, tmp_path: Path, cache: Path
) -> None:
    file = write_gguf(tmp_path / "bad.gguf")
    file.write_bytes(contents(file.read_bytes()))
    with pytest.raises(ModelError, match=rf"bad\.gguf {said}"):
        load(file)
    assert list(cache.rglob("*")) == []


def test_a_failed_conversion_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", fail)
    with pytest.raises(OSError, match="no space"):
        convert(file, tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []
