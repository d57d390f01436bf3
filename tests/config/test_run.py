"""The whole config: what resolving decides, and what must stay when a run is taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfdistill.config.run import KEYS, ResolvedConfig, lasting, load_config, parse_config
from selfdistill.errors import ConfigError
from selfdistill.methods import METHODS
from selfdistill.training.problem import resolve


def resolved(**tables: Any) -> ResolvedConfig:
    return resolve(parse_config({"method": "antisd", **tables}, "here"))


def test_what_is_open_follows_the_method_and_what_is_given_stays() -> None:
    recommended = METHODS["antisd"].recommended
    found = resolved(sampling={"completions": 3, "top_p": 0.5})
    assert (found.sampling.completions, found.sampling.top_p) == (3, 0.5)
    assert (found.sampling.max_tokens, found.sampling.temperature) == (recommended.max_tokens, recommended.temperature)
    assert found.optimiser.learning_rate == recommended.learning_rate
    assert resolved(model={"lora": {}}).optimiser.learning_rate == recommended.lora_learning_rate
    assert resolved(optimiser={"learning_rate": 0.5}).optimiser.learning_rate == 0.5
    assert found.method.keys() == METHODS["antisd"].model_fields.keys() | {"name"}


def test_resolving_again_and_reading_what_was_written_change_nothing() -> None:
    found = resolved(sampler={"kind": "vllm"}, limits={"max_tokens_per_microbatch": 7})
    assert resolve(found) == found
    assert ResolvedConfig.model_validate_json(found.model_dump_json()) == found
    assert [*found.model_dump()] == [*parse_config({"method": "antisd"}, "here").model_dump()]


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("", KEYS - {"steps", "max_completions", "sinks", "stop_on"}),
        ("limits", set()),
        ("checkpoint", set()),
        ("parallel", {"param_dtype", "reduce_dtype"}),
        ("sampler", {"kind", "importance_cap", "overlap"}),
        ("sampling", {"prompts", "completions", "max_tokens", "temperature", "top_p", "top_k", "thinking"}),
    ],
)
@pytest.mark.parametrize("sampler", [{"kind": "vllm"}, {"kind": "server", "urls": ["http://a"]}])
def test_a_resume_may_change_what_is_marked_and_nothing_else(
    path: str, kept: set[str], sampler: dict[str, Any]
) -> None:
    found = lasting(resolved(sampler=sampler))
    assert (found[path] if path else found).keys() == kept


@pytest.mark.parametrize("ending", [".toml", ".json", ""])
@pytest.mark.parametrize(("value", "cause"), [("1" * 5000, "4300 digits"), ("[" * 9000, "recursion depth")])
def test_text_that_python_refuses_to_read_is_one_sentence(ending: str, value: str, cause: str, tmp_path: Path) -> None:
    name, overrides = "countdown-grpo", [f"seed={value}"]
    if ending:
        path = tmp_path / f"own{ending}"
        path.write_text(f'{{"seed": {value}' if ending == ".json" else f"seed = {value}", encoding="utf-8")
        name, overrides = str(path), []
    with pytest.raises(ConfigError, match=f"is not valid {'JSON' if ending == '.json' else 'TOML'}: .*{cause}"):
        load_config(name, overrides)


def test_the_learners_own_sampler_stays() -> None:
    assert lasting(resolved())["sampler"] == {"kind": "hf"}
