"""Models as people have them when something is wrong: each case changes a good one, or names another place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from support.tiny import save_tiny_model, tiny_settings, tiny_tokenizer

Case = Callable[[Path], Path | str | None]
"""Changes the model in a folder; returns the name to give instead, or None for the folder itself."""
WEIGHTS, LFS = "model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0123abcd\nsize 3945441\n"
INDEX = "model.safetensors.index.json"


def config(file: str = "config.json", drop: str = "", **changes: Any) -> Case:
    """Other values in a JSON file of the model, and one key less."""

    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text(encoding="utf-8"))
        values.pop(drop, None)
        (folder / file).write_text(json.dumps({**values, **changes}), encoding="utf-8")

    return change


def holds(file: str, content: bytes | str) -> Case:
    """A file with other content."""

    def change(folder: Path) -> None:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def cut(file: str, keep: float) -> Case:
    """A file of which only a part was copied."""

    def change(folder: Path) -> None:
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: int(len(whole) * keep)])

    return change


def longer(file: str) -> Case:
    """A file with bytes behind its end."""

    def change(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes() + b"\x00" * 9)

    return change


def without(*files: str) -> Case:
    """A model that lacks files."""

    def change(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return change


def instead(*files: str, of: str = WEIGHTS) -> Case:
    """Other files where one is needed."""

    def change(folder: Path) -> None:
        (folder / of).unlink()
        for file in files:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(b"\x00" * 64)

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Case:
    """Other weights."""

    def changed(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return changed


def filled(name: str, value: float) -> Case:
    """One entry of a tensor with another value."""

    def change(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        held[name].view(-1)[3] = value
        return held

    return weights(change)


def sharded(*then: Case) -> Case:
    """The model in several files, and what became of them."""

    def change(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder)
        (folder / WEIGHTS).unlink()
        model.save_pretrained(folder, max_shard_size="10KB")
        for one in then:
            one(folder)

    return change


def last_shard(change: Callable[[Path], Any]) -> Case:
    """A change of the last of several files."""

    def last(folder: Path) -> None:
        change(sorted(folder.glob("model-*.safetensors"))[-1])

    return last


def built(kind: str, settings: str, **keys: Any) -> Case:
    """A model of another kind beside the tokenizer."""

    def change(folder: Path) -> None:
        model = getattr(transformers, kind)(getattr(transformers, settings)(**keys))
        shutil.rmtree(folder)
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)

    return change


def named(name: str) -> Case:
    """Another name than the folder's; {} is the folder."""
    return lambda folder: name.format(folder)


def adapter(*then: Case, hidden: int = 32, base: str = "{}") -> Case:
    """An adapter of a model in the folder ``base`` beside it, and what became of it."""

    def change(folder: Path) -> Path:
        place = folder.parent / "adapter"
        own = folder if hidden == 32 else save_tiny_model(folder.parent / "other", hidden_size=hidden)
        model = AutoModelForCausalLM.from_pretrained(own)
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(place))
        tiny_tokenizer().save_pretrained(place)
        config("adapter_config.json", base_model_name_or_path=base.format(folder))(place)
        for one in then:
            one(place)
        return place

    return change


def template(text: str) -> Case:
    """Another chat template."""
    return holds("chat_template.jinja", text)


def linked(file: str) -> Case:
    """A link to nothing, as a cache has it whose files were cleared."""

    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to("../../blobs/0123abcd")

    return change


def folder_of(file: str) -> Case:
    """A folder where a file is needed."""

    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return change


def deeper(*parts: str) -> Case:
    """The model in a folder inside the one that is named."""

    def change(folder: Path) -> Path:
        target = folder.parent.joinpath("cache", *parts)
        shutil.copytree(folder, target)
        return folder.parent / "cache"

    return change


def only(*files: str) -> Case:
    """A folder that holds nothing but these files."""

    def change(folder: Path) -> Path:
        place = folder.parent / "only"
        place.mkdir()
        for file in files:
            (place / file).write_text("{}", encoding="utf-8")
        return place

    return change


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
T5 = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 96}
NO_END = (config(eos_token_id=None), config("generation_config.json", eos_token_id=None))


def endless(folder: Path) -> None:
    """Nothing names an end of sequence, and the template ends no turn."""
    for one in NO_END:
        one(folder)
    config("tokenizer_config.json", drop="eos_token")(folder)


def wide_tokenizer(folder: Path) -> None:
    """A tokenizer of another model, with more words than the embedding has rows."""
    tiny_tokenizer(more=500).save_pretrained(folder)


def itself(folder: Path) -> Path:
    """An adapter that names itself as its base."""
    place = Path(str(adapter()(folder)))
    config("adapter_config.json", base_model_name_or_path=str(place))(place)
    return place


WRONG_MODELS: Mapping[str, tuple[Case, str]] = {
    # weights
    "weights half copied": (cut(WEIGHTS, 0.5), "is damaged or was not copied to its end: download or copy it again"),
    "weights cut in their header": (
        holds(WEIGHTS, b"\x40\x01\x00\x00"),
        "is damaged or was not copied to its end: download or copy it again",
    ),
    "weights with bytes behind their end": (
        longer(WEIGHTS),
        "is damaged or was not copied to its end: download or copy it again",
    ),
    "weights of no bytes": (holds(WEIGHTS, b""), "is damaged or was not copied to its end: download or copy it again"),
    "weights of zeros": (
        holds(WEIGHTS, b"\x00" * 4096),
        "is damaged or was not copied to its end: download or copy it again",
    ),
    "weights with a header too long": (
        holds(WEIGHTS, b"\xff" * 64),
        "is damaged or was not copied to its end: download or copy it again",
    ),
    "weights as a pointer of git-lfs": (
        holds(WEIGHTS, LFS),
        "is a pointer of git-lfs, not the file itself: run git lfs pull there",
    ),
    "weights as a page of a web server": (
        holds(WEIGHTS, "<!doctype html><html>401</html>"),
        "is damaged or was not copied to its end: download or copy it again",
    ),
    "weights as a link to nothing": (linked(WEIGHTS), "is a link to nothing: download or copy the model again"),
    "weights that are a folder": (
        folder_of(WEIGHTS),
        "holds no weights (model.safetensors): save them as safetensors",
    ),
    "weights of another model": (
        weights(lambda held: {f"transformer.{name}": t for name, t in held.items()}),
        "lacks 25 of its weights, the first is lm_head.weight",
    ),
    "weights of fewer layers": (
        config(num_hidden_layers=4, layer_types=["full_attention"] * 4),
        "lacks 22 of its weights, the first is model.layers.2.input_layernorm.weight",
    ),
    "weights of more words": (config(vocab_size=80), "its weights have other shapes than its config.json says"),
    "weights of another width": (
        config(intermediate_size=64),
        "its weights have other shapes than its config.json says",
    ),
    "weights with an infinity": (
        filled("model.layers.0.mlp.up_proj.weight", float("inf")),
        "holds weights that are not numbers (NaN or infinite), in",
    ),
    "weights with a NaN in a norm": (
        filled("model.norm.weight", float("nan")),
        "holds weights that are not numbers (NaN or infinite), in",
    ),
    "weights that are whole numbers": (
        weights(lambda held: {n: t.to(torch.int8) for n, t in held.items()}),
        "holds model.embed_tokens.weight as I8, which is no floating-point number,",
    ),
    "weights of truth values": (
        weights(lambda held: {n: t > 0 for n, t in held.items()}),
        "holds model.embed_tokens.weight as BOOL, which is no floating-point",
    ),
    "whole numbers beside an empty quantisation": (
        lambda folder: (
            config(quantization_config=None)(folder)
            or weights(lambda held: {n: t.to(torch.int8) for n, t in held.items()})(folder)
        ),
        "holds model.embed_tokens.weight as I8, which is no floating-point number,",
    ),
    "weights whose header is brackets": (
        holds(WEIGHTS, (100_000).to_bytes(8, "little") + b"[" * 100_000),
        "is damaged: download or copy it again",
    ),
    "weights without their head": (
        config(tie_word_embeddings=False),
        "lacks 1 of its weights, the first is lm_head.weight",
    ),
    "a shard that was not copied": (
        sharded(last_shard(Path.unlink)),
        "lacks 1 of the 10 files of weights that model.safetensors.index.json",
    ),
    "a shard half copied": (
        sharded(last_shard(lambda p: p.write_bytes(p.read_bytes()[:200]))),
        "is damaged or was not copied to its end: download or copy it again",
    ),
    "a shard as a pointer of git-lfs": (
        sharded(last_shard(lambda p: p.write_bytes(LFS))),
        "is a pointer of git-lfs, not the file itself: run git lfs pull there",
    ),
    "an index that names an absent shard": (
        sharded(config(INDEX, weight_map={"model.norm.weight": "model-00009-of-00009.safetensors"})),
        "lacks 1 of the 1 files of weights that model.safetensors.index.json names,",
    ),
    "an index that is no JSON": (sharded(holds(INDEX, "{")), "is no JSON ("),
    "an index without its map": (sharded(holds(INDEX, "{}")), "names no files (weight_map): download or copy it again"),
    "shards without their index": (sharded(without(INDEX)), "holds model-00001-of-00010.safetensors and no"),
    "a pickle half copied": (
        instead("pytorch_model.bin"),
        "its .bin files hold more than tensors, or are damaged, and are not opened:",
    ),
    "a pickle as a pointer of git-lfs": (
        lambda folder: without(WEIGHTS)(folder) or holds("pytorch_model.bin", LFS)(folder),
        "is a pointer of git-lfs, not the file itself: run git lfs pull there",
    ),
    "llama.cpp's format alone": (
        instead("model-q4_k_m.gguf"),
        "holds no weights (model.safetensors), only model-q4_k_m.gguf: give ",
    ),
    "TensorFlow's format alone": (
        instead("tf_model.h5"),
        "holds no weights (model.safetensors), only tf_model.h5: save them as safetensors",
    ),
    "flax's format alone": (
        instead("flax_model.msgpack"),
        "holds no weights (model.safetensors), only flax_model.msgpack: save them as safetensors",
    ),
    "Meta's format alone": (
        instead("consolidated.00.pth", "params.json"),
        "holds no weights (model.safetensors), only consolidated.00.pth: save them as safetensors",
    ),
    "ONNX alone": (
        instead("onnx/model.onnx"),
        "holds no weights (model.safetensors), only onnx/model.onnx: save them as safetensors",
    ),
    # the config
    "no config": (without("config.json"), "is no model directory, it holds no config.json: give the directory that"),
    "a config that is a list": (holds("config.json", "[]"), "does not hold a JSON object: download or copy it again"),
    "a config of numbers": (holds("config.json", "3"), "does not hold a JSON object: download or copy it again"),
    "a config as a pointer of git-lfs": (
        holds("config.json", LFS),
        "is a pointer of git-lfs, not the file itself: run git lfs pull there",
    ),
    "a config of brackets": (holds("config.json", "[" * 100_000), "is no JSON ("),
    "a config in UTF-16": (holds("config.json", '{"model_type": "qwen3"}'.encode("utf-16")), "is no JSON ("),
    "a config with a comment": (holds("config.json", '{"model_type": "qwen3", // mine\n}'), "is no JSON ("),
    "a config without the kind": (config(drop="model_type"), "cannot load a causal language model from"),
    "a kind of the future": (config(model_type="qwen9"), "cannot load a causal language model from"),
    "heads that divide nothing": (
        config(num_key_value_heads=3),
        "its weights have other shapes than its config.json says",
    ),
    "a negative width": (config(hidden_size=-32), "cannot load a causal language model from"),
    "no words": (config(vocab_size=0), "cannot load a causal language model from"),
    "no window": (config(max_position_embeddings=None), "cannot load a causal language model from"),
    "a window of one token": (
        config(max_position_embeddings=1),
        "no prompt fits: the longest of 1 has 14 tokens, completions may take 1,",
    ),
    "a number type that is none": (
        config(dtype="float99"),
        "names 'float99' as its dtype, which is no number type of torch",
    ),
    "a number type to be chosen": (
        config(dtype="auto"),
        "names 'auto' as its dtype, which is no number type of torch",
    ),
    "a number type that is none, under the old key": (
        config(drop="dtype", torch_dtype="float99"),
        "names 'float99' as its dtype, which is no number type of torch",
    ),
    "an unknown rope": (
        config(rope_parameters={"rope_type": "nope", "rope_theta": 1e4}),
        "cannot load a causal language model from",
    ),
    "an unknown kind of layer": (config(layer_types=["nope", "nope"]), "cannot load a causal language model from"),
    "a folder of diffusers": (
        only("model_index.json"),
        "is no model directory, it holds no config.json: give the directory that",
    ),
    "a folder of sentence-transformers": (
        only("modules.json", "tokenizer.json"),
        "is no model directory, it holds no config.json: give the directory that",
    ),
    # other kinds of model
    "an encoder": (
        built("BertModel", "BertConfig", vocab_size=96, **SMALL),
        "lacks 6 of its weights, the first is cls.predictions.bias",
    ),
    "an encoder with its head": (
        built("BertForMaskedLM", "BertConfig", vocab_size=96, **SMALL),
        "is neither a linear map of its last hidden state nor that map with the",
    ),
    "an encoder and a decoder": (
        built("T5ForConditionalGeneration", "T5Config", **T5),
        "its architecture is no causal language model (AutoModelForCausalLM has no",
    ),
    "a model of images": (
        built("ViTModel", "ViTConfig", image_size=8, patch_size=4, **SMALL),
        "its architecture is no causal language model (AutoModelForCausalLM has no",
    ),
    "a classifier": (
        built(
            "Qwen3ForSequenceClassification", "Qwen3Config", **tiny_settings(tie_word_embeddings=False, num_labels=2)
        ),
        "lacks 1 of its weights, the first is lm_head.weight",
    ),
    # quantised weights
    "hqq weights": (
        config(quantization_config={"quant_method": "hqq", "quant_config": {}}),
        "cannot load a causal language model from",
    ),
    "compressed tensors": (
        config(quantization_config={"quant_method": "compressed-tensors", "config_groups": {}}),
        "cannot load a causal language model from",
    ),
    "an unknown quantisation": (
        config(quantization_config={"quant_method": "nope"}),
        "names the quantisation 'nope', which transformers does not know",
    ),
    "a quantisation without its method": (
        config(quantization_config={"bits": 4}),
        "cannot load a causal language model from",
    ),
    # the tokenizer
    "a tokenizer as a pointer of git-lfs": (
        holds("tokenizer.json", LFS),
        "is a pointer of git-lfs, not the file itself: run git lfs pull there",
    ),
    "a tokenizer of no words": (
        holds("tokenizer.json", '{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {}}}'),
        "no usable tokenizer in",
    ),
    "a tokenizer of another model": (
        wide_tokenizer,
        "has ids up to 591 but the model embeds only 96: they do not belong together",
    ),
    "a tokenizer's config that is no JSON": (holds("tokenizer_config.json", "{"), "is no JSON ("),
    "a tokenizer's config that is a list": (
        holds("tokenizer_config.json", "[]"),
        "does not hold a JSON object: download or copy it again",
    ),
    "sentencepiece that is damaged": (
        lambda folder: without("tokenizer.json")(folder) or holds("tokenizer.model", b"\x00")(folder),
        "no usable tokenizer in",
    ),
    "sentencepiece as a pointer of git-lfs": (
        lambda folder: without("tokenizer.json")(folder) or holds("tokenizer.model", LFS)(folder),
        "is a pointer of git-lfs, not the file itself: run git lfs pull there",
    ),
    "a vocabulary without merges": (
        lambda folder: without("tokenizer.json")(folder) or holds("vocab.json", '{"a": 0}')(folder),
        "no usable tokenizer in",
    ),
    "nothing that ends": (endless, "names no end-of-sequence id in its tokenizer or generation config, so no"),
    "a generation config that is no JSON": (holds("generation_config.json", "{"), "is no JSON ("),
    # the chat template
    "a template of no text": (template(""), "has no chat template: use an instruction-tuned model, or put a"),
    "a template that calls what is not there": (template("{{ render(messages) }}"), "cannot render ['user']"),
    "a template that includes a file": (template("{% include 'chat.jinja' %}"), "cannot render ['user']"),
    "a template that is not closed": (template("{% for m in messages %}{{ m.content }}"), "cannot render ['user']"),
    "a template that reaches for Python": (template("{{ messages.__class__.__mro__ }}"), "cannot render ['user']"),
    "a template for messages of parts": (
        template("{% for m in messages %}{{ m.content[0]['text'] }}{% endfor %}"),
        "writes nothing of ['user']",
    ),
    # adapters
    "an adapter of another width": (
        adapter(hidden=64),
        "its adapter has other shapes than its base model: it was trained on",
    ),
    "an adapter whose base is gone": (
        adapter(base="{}/../gone"),
        "which is not there: write where it is now as base_model_name_or_path in",
    ),
    "an adapter whose base is on the hub": (adapter(base="org/base"), "cannot be put on its base model"),
    "an adapter that names no base": (
        adapter(base=""),
        "names no base model: write where it is now as base_model_name_or_path in",
    ),
    "an adapter of itself": (itself, "is its own base model"),
    "an adapter's config that is no JSON": (adapter(holds("adapter_config.json", "{")), "is no JSON ("),
    "an adapter's config that is a list": (
        adapter(holds("adapter_config.json", "[]")),
        "does not hold a JSON object: download or copy it again",
    ),
    "an adapter of an unknown kind": (
        adapter(config("adapter_config.json", peft_type="NOPE")),
        "is of the kind NOPE, which cannot be merged into its base: use LORA",
    ),
    "an adapter that is a prompt": (
        adapter(config("adapter_config.json", peft_type="PROMPT_TUNING")),
        "is of the kind PROMPT_TUNING, which cannot be merged into its base: use",
    ),
    "an adapter half copied": (
        adapter(cut("adapter_model.safetensors", 0.5)),
        "is damaged or was not copied to its end: download or copy it again",
    ),
    "an adapter as a pointer of git-lfs": (
        adapter(holds("adapter_model.safetensors", LFS)),
        "is a pointer of git-lfs, not the file itself: run git lfs pull there",
    ),
    "an adapter of layers that are not there": (
        adapter(config("adapter_config.json", target_modules=["c_attn"])),
        "cannot load a causal language model from",
    ),
    # names
    "a hub id without a network": (named("Qwen/Qwen3-0.6B"), "cannot load a causal language model from"),
    "a hub id that cannot be": (named("org/name/more"), "not found: give a model directory"),
    "a hub id with its revision": (named("org/name@main"), "not found: give a model directory"),
    "an address of the hub": (named("https://huggingface.co/Qwen/Qwen3-8B"), "not found: give a model directory"),
    "a home folder in quotes": (named("~/models/qwen"), "not found: give a model directory"),
    "a variable of the shell": (named("$HOME/models/qwen"), "not found: give a model directory"),
    "a path of Windows": (named("C:\\models\\qwen"), "not found: give a model directory"),
    "a trailing space": (named("{} "), "not found: give a model directory"),
    "a leading space": (named(" {}"), "not found: give a model directory"),
    "a trailing line": (named("{}\n"), "not found: give a model directory"),
    "the config itself": (named("{}/config.json"), "is a file: give the directory that holds it"),
    "the weights themselves": (named("{}/model.safetensors"), "is a file: give the directory that holds it"),
    "a file below a file": (named("{}/config.json/model"), "not found: give a model directory"),
    "a name that is too long": (named("x" * 5000), "its name is too long"),
    "a name with a zero byte": (named("mo\x00del"), "not found: give a model directory"),
    "an empty name": (named(""), "the model's name is empty: give a directory, a hub id or a shipped model,"),
    "a blank": (named("  "), "the model's name is empty: give a directory, a hub id or a shipped model,"),
    "a folder of nothing": (only(), "is no model directory, it holds no config.json: give the directory that"),
    "a cache of the hub": (deeper("snapshots", "0123abcd"), "cache/snapshots/0123abcd"),
    "the folder around a model": (deeper("weights"), "cache/weights"),
}
"""What is wrong, how it came about, and words of the sentence that says so."""
