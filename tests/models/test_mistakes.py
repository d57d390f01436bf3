"""Models that cannot be used, as users have them: each is one sentence that says what is wrong and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfdistill.contexts import rendering
from selfdistill.errors import ModelError
from selfdistill.models.policy import load_policy
from selfdistill.types import Message
from support.families import save_current
from support.tiny import save_tiny_model

Mistake = Callable[[Path], Any]
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


class Strange:
    """What a pickle may hold beside tensors."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


def config(**changes: Any) -> Mistake:
    """Other values in the model's config."""

    def change(folder: Path) -> None:
        place = folder / "config.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))

    return change


def text(name: str, content: str) -> Mistake:
    """Another text in one of the files."""
    return lambda folder: (folder / name).write_text(content)


def pickled(weights: Any) -> Mistake:
    """Weights as torch.save writes them."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")

    return change


def spoiled(folder: Path) -> None:
    """One embedding, of a token that no probe shows, is no number."""
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][90, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def adapter(**keys: Any) -> Mistake:
    """A peft config beside the model, and no weights of an adapter."""
    return text("adapter_config.json", json.dumps({"peft_type": "LORA", **keys}))


def quantised(method: str, **keys: Any) -> Mistake:
    """Weights that a package must unpack which is not installed."""
    return config(quantization_config={"quant_method": method, **keys})


MISTAKES: dict[str, tuple[Mistake, str]] = {
    "awq without its package": (quantised("awq", bits=4), "requires gptqmodel"),
    "gptq without its package": (quantised("gptq", bits=4), "requires optimum"),
    "bitsandbytes without its package": (quantised("bitsandbytes", load_in_4bit=True), "requires bitsandbytes"),
    "a pickle of more than tensors": (
        pickled({"model.norm.weight": Strange()}),
        "hold more than tensors.*",
    ),
    "weights that are damaged": (text("model.safetensors", "damaged"), "is damaged or was not copied to its end"),
    "weights of another shape": (config(hidden_size=64), "other shapes than its config.json says"),
    "weights that are no numbers": (spoiled, r"not numbers \(NaN or infinite\), in model.embed_tokens.weight"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"holds no weights \(model.safetensors\)"),
    "a word for a number": (config(hidden_size="many"), "field 'hidden_size': TypeError: .* expected int, got str"),
    "no heads": (config(num_attention_heads=0), "ZeroDivisionError: .*; see its config.json"),
    "an unknown activation": (config(hidden_act="nope"), "KeyError: 'nope'; see its config.json"),
    "code of its own": (
        config(model_type="mine", auto_map={"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}),
        "contains custom code",
    ),
    "half a config": (text("config.json", "{"), "config.json is no JSON"),
    "half a tokenizer": (text("tokenizer.json", "{"), "no usable tokenizer in"),
    "a tokenizer of no known kind": (
        text("tokenizer.json", json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "nope"}})),
        "no usable tokenizer in",
    ),
    "an adapter without weights": (adapter(base_model_name_or_path="countdown-base"), "no adapter_model.safetensors"),
    "a template that divides by zero": (
        text("chat_template.jinja", "{{ 1 / 0 }}"),
        "cannot render .*: ZeroDivisionError",
    ),
    "a template that adds words to numbers": (text("chat_template.jinja", "{{ 1 + 'a' }}"), "TypeError: unsupported"),
    "a template that raises": (text("chat_template.jinja", "{{ raise_exception('no') }}"), r"\['user'\]: no"),
    "a template with a mistake": (text("chat_template.jinja", "{% if %}"), "Expected an expression"),
    "a template that calls itself": (
        text("chat_template.jinja", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
        "RecursionError",
    ),
    "a template without words": (text("chat_template.jinja", "{# nothing #}"), "writes nothing of"),
    "a template that loops": (text("chat_template.jinja", LOOP), "takes more than 0.2 seconds .*: look for a loop"),
}


def prompt_of(folder: Path) -> tuple[int, ...]:
    """The ids of a prompt, once the model is loaded."""
    _, chat = load_policy(str(folder), dtype=torch.float32, device=torch.device("cpu"))
    return chat.encode([Message("user", "make 9 .")])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MISTAKES)
def test_a_model_that_cannot_be_used_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.2 if "loops" in name else 60.0)
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    mistake, said = MISTAKES[name]
    mistake(save_tiny_model(tmp_path, num_hidden_layers=1))
    with pytest.raises(ModelError, match=said) as caught:
        prompt_of(tmp_path)
    assert "\n" not in str(caught.value)
    assert "this must not run" not in capsys.readouterr().out


def test_a_pickle_of_tensors_alone_is_read(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, num_hidden_layers=1)
    pickled(load_file(folder / "model.safetensors"))(folder)
    assert prompt_of(folder)


def test_the_folder_one_stands_in_is_a_model_and_an_empty_name_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(save_tiny_model(tmp_path, num_hidden_layers=1))
    assert prompt_of(Path("."))
    with pytest.raises(ModelError, match="the model's name is empty"):
        load_policy("", dtype=torch.float32, device=torch.device("cpu"))


def test_nobody_is_asked_to_run_a_tokenizer_s_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_current(tmp_path, "SmolLM3")
    place = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    place.write_text(json.dumps({**json.loads(place.read_text()), **own}))
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", asked.append)
    with pytest.raises(ModelError, match=r"no usable tokenizer in .*contains custom code"):
        prompt_of(folder)
    assert not asked
