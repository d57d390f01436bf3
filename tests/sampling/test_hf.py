"""The sampler on the learner's own weights: it draws what ``generate`` draws, and knows with which probability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from selfdistill.errors import ModelError
from selfdistill.models.policy import Policy, load_policy
from selfdistill.models.prefill import InPlaceLayer, closed_up
from selfdistill.sampling import hf
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import HFSampler, sample_token
from selfdistill.sampling.rng import uniform
from selfdistill.types import Completion
from support.engine import token_logprobs
from support.tiny import STOP, save_model, save_tiny_model, tiny_settings

LENGTHS = (3, 17, 9, 9, 1, 12)
REAL = 92
MODELS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {}),
    "qwen3 with a sliding window": (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "mistral with a sliding window": ("MistralForCausalLM", "MistralConfig", {"sliding_window": 6}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {}),
    "gemma3 with a sliding window": ("Gemma3ForCausalLM", "Gemma3TextConfig", {"sliding_window": 6}),
    "gpt2, absolute positions": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    ),
}


def load(folder: Path, *, dtype: torch.dtype = torch.float32) -> Policy:
    policy, chat = load_policy(str(folder), dtype=dtype, device=torch.device("cpu"))
    assert chat.stop_ids == (STOP,)
    return policy


def build(folder: Path, name: str, **changes: Any) -> Path:
    kind, config, own = MODELS[name]
    torch.manual_seed(0)
    settings = tiny_settings(**{**own, **changes})
    return save_model(folder, getattr(transformers, kind)(getattr(transformers, config)(**settings)))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load(save_tiny_model(tmp_path_factory.mktemp("model"), seed=0))


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(8, REAL, (length,), generator=generator).tolist() for length in LENGTHS]


def sampler(policy: Policy, *, max_batch_size: int = 512) -> HFSampler:
    return HFSampler(policy, stop_ids=[STOP], max_batch_size=max_batch_size)


def params(**parameters: Any) -> SamplingParams:
    """One completion of one token at temperature 1, with some parameters replaced."""
    return SamplingParams(**{"count": 1, "max_tokens": 1, **parameters})


def ids(drawn: Sequence[Sequence[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.ids for completion in row] for row in drawn]


def close(mine: Sequence[Sequence[Completion]], theirs: Sequence[Sequence[Completion]]) -> bool:
    """Same tokens, and the same log-probabilities up to the rounding of another batch shape."""
    if ids(mine) != ids(theirs):
        return False
    pairs = [(a, b) for x, y in zip(mine, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    return all(a.finished == b.finished and a.logprobs == pytest.approx(b.logprobs, abs=1e-5) for a, b in pairs)


def generated(policy: Policy, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    output = policy.causal_lm.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=STOP,
        pad_token_id=0,
        suppress_tokens=list(range(REAL, 96)),
    )
    return tuple(output[0, len(prompt) :].tolist())


# --- the same as other ways of doing it -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_what_generate_gives_for_mixed_lengths_in_one_batch(name: str, tmp_path: Path) -> None:
    policy = load(build(tmp_path, name))
    drawn = sampler(policy).sample(prompts(), params(max_tokens=14, temperature=0.0))
    assert ids(drawn) == [[generated(policy, prompt, 14)] for prompt in prompts()]


def test_padded_prompts_give_what_each_gives_alone(policy: Policy) -> None:
    greedy = params(max_tokens=20, temperature=0.0)
    together = sampler(policy).sample(prompts(), replace(greedy, count=2))
    alone = [sampler(policy).sample([prompt], greedy)[0] for prompt in prompts()]
    assert close(together, [row * 2 for row in alone])


def test_log_probabilities_are_the_models_own_at_temperature_1(policy: Policy) -> None:
    for how in (params(), params(temperature=0.6, top_p=0.8, top_k=12), params(temperature=0.0)):
        drawn = sampler(policy).sample(prompts(), replace(how, count=3, max_tokens=20, seed=4))
        for prompt, completions in zip(prompts(), drawn, strict=True):
            for completion in completions:
                expected = token_logprobs(policy.model, prompt, completion.ids, REAL)
                assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_when_finished_rows_leave_does_not_change_what_the_others_say(
    temperature: float, share: float, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0: never; 1: at once."""
    with_stops = HFSampler(policy, stop_ids=[STOP, *range(8, REAL, 6)])
    how = params(count=2, max_tokens=30, temperature=temperature)
    expected = [with_stops.sample([prompt], replace(how, ordinals=[n]))[0] for n, prompt in enumerate(prompts())]
    assert len({len(row[0].ids) for row in expected}) > 2
    monkeypatch.setattr(hf, "COMPACT_BELOW", share)
    assert close(with_stops.sample(prompts(), how), expected)


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("name", ["qwen3", "qwen3 with a sliding window"])
def test_sampled_rows_are_right_whenever_finished_ones_leave(
    name: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(build(tmp_path, name))
    monkeypatch.setattr(hf, "COMPACT_BELOW", share)
    with_stops = HFSampler(policy, stop_ids=[STOP, *range(8, REAL, 6)])
    drawn = with_stops.sample(prompts(), params(count=4, max_tokens=30, seed=9))
    assert len({len(completion.ids) for row in drawn for completion in row}) > 3
    for prompt, completions in zip(prompts(), drawn, strict=True):
        for completion in completions:
            expected = token_logprobs(policy.model, prompt, completion.ids, REAL)
            assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-5)
            assert completion.finished == (completion.ids[-1] in with_stops.stop_ids)
            assert not any(token in with_stops.stop_ids for token in completion.ids[:-1])


def test_the_last_rows_take_the_places_of_finished_ones_and_no_other_moves() -> None:
    going = torch.tensor([True, False, True, False, True, False, True, True])
    assert closed_up(going).tolist() == [0, 6, 2, 7, 4]
    assert closed_up(torch.tensor([True, True])).tolist() == [0, 1]
    assert closed_up(torch.tensor([False, False, True])).tolist() == [2]


@pytest.mark.parametrize("rows", [[0, 1, 2], [3, 1, 0], [1, 0, 3, 2], [2], [2, 2, 0, 1, 3, 3]])
def test_a_cache_selects_moves_and_repeats_its_rows(rows: list[int]) -> None:
    layer, states = InPlaceLayer(), torch.arange(4 * 2 * 3 * 2.0).view(4, 2, 3, 2)
    layer.update(states, -states)
    layer.reorder_cache(torch.tensor(rows))
    new = torch.full((len(rows), 2, 1, 2), 99.0)
    keys, values = layer.update(new, new)
    assert torch.equal(keys, torch.cat([states[rows], new], 2))
    assert torch.equal(values, torch.cat([-states[rows], new], 2))


@pytest.mark.parametrize(
    "how", [params(temperature=0.0), params(), params(temperature=0.8, top_p=0.9, top_k=30)], ids=["greedy", "1", "0.8"]
)
def test_how_the_prompts_are_cut_into_batches_does_not_change_what_is_drawn(
    how: SamplingParams, policy: Policy
) -> None:
    def drawn(max_batch_size: int, *ordinals: int) -> list[list[Completion]]:
        share = [prompts()[n] for n in ordinals]
        return sampler(policy, max_batch_size=max_batch_size).sample(
            share, replace(how, count=2, max_tokens=12, ordinals=ordinals)
        )

    whole = drawn(512, *range(len(LENGTHS)))
    for max_batch_size in (1, 4, 5):
        assert close(drawn(max_batch_size, *range(len(LENGTHS))), whole)
    assert close(drawn(512, 4, 1), [whole[4], whole[1]])


def test_equal_prompts_of_one_batch_are_drawn_apart(policy: Policy) -> None:
    first, second = sampler(policy).sample([[20, 21]] * 2, params(count=3, max_tokens=10, seed=0))
    assert len({completion.ids for completion in [*first, *second]}) == 6


def test_a_completion_longer_than_the_caches_spare_room_is_still_right(policy: Policy) -> None:
    without_stop = HFSampler(policy, stop_ids=[95])
    ((completion,),) = without_stop.sample([[20, 21]], params(count=1, max_tokens=200, seed=0))
    assert len(completion.ids) == 200
    expected = token_logprobs(policy.model, [20, 21], completion.ids, REAL)
    assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-5)


# --- limits and seeds ------------------------------------------------------------------------------------------------


def test_a_completion_that_the_limit_cuts_is_not_finished(policy: Policy) -> None:
    prompt = [20, 21]
    ((long,),) = sampler(policy).sample([prompt], params(max_tokens=50, temperature=0.0))
    # Any token that is new at its place can serve as the stop id.
    last = next(n for n in range(2, 50) if long.ids[n] not in long.ids[:n])
    stopped = HFSampler(policy, stop_ids=[long.ids[last]], max_batch_size=8)
    ((enough,),) = stopped.sample([prompt], params(max_tokens=last + 1, temperature=0.0))
    ((cut,),) = stopped.sample([prompt], params(max_tokens=last, temperature=0.0))
    assert (enough.ids, enough.finished) == (long.ids[: last + 1], True)
    assert (cut.ids, cut.finished) == (long.ids[:last], False)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_whose_probabilities_are_no_numbers_is_refused_in_one_sentence(
    temperature: float, tmp_path: Path
) -> None:
    broken = load(save_tiny_model(tmp_path, seed=0))
    with torch.no_grad():
        broken.layers[0].mlp.down_proj.weight.fill_(math.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(ModelError, match="not numbers"):
        sampler(broken).sample(prompts(), params(count=2, max_tokens=5, temperature=temperature))


def test_the_same_seed_draws_the_same_and_another_one_does_not(policy: Policy) -> None:
    hot = sampler(policy)
    first = hot.sample(prompts(), params(count=3, max_tokens=10, seed=5))
    torch.manual_seed(123)  # nobody else's generator is asked
    assert hot.sample(prompts(), params(count=3, max_tokens=10, seed=5)) == first
    assert hot.sample(prompts(), params(count=3, max_tokens=10, seed=6)) != first
    assert len(set(ids(first)[0])) > 1, "completions of one prompt must differ"


def test_sampling_leaves_the_global_generator_alone(policy: Policy) -> None:
    before = torch.get_rng_state()
    sampler(policy).sample(prompts(), params(count=3, max_tokens=10, seed=5))
    assert torch.equal(torch.get_rng_state(), before)


# --- distributions ---------------------------------------------------------------------------------------------------


def support(how: SamplingParams, probabilities: Sequence[float]) -> set[int]:
    """Which ids are drawn at all, in many draws."""
    rows = torch.tensor(probabilities, dtype=torch.float64).log().expand(4000, -1)
    return set(sample_token(rows, how, uniform(torch.arange(4000), 0)).tolist())


PROBABILITIES = (0.05, 0.4, 0.1, 0.3, 0.15)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (params(), {0, 1, 2, 3, 4}),
        (params(temperature=0.0), {1}),
        (params(top_k=1), {1}),
        (params(top_k=3), {1, 3, 4}),
        (params(top_k=99), {0, 1, 2, 3, 4}),
        (params(top_p=0.39), {1}),
        (params(top_p=0.41), {1, 3}),  # the token that crosses the threshold stays
        (params(top_p=0.69), {1, 3}),
        (params(top_p=0.71), {1, 3, 4}),
        (params(top_p=0.951), {0, 1, 2, 3, 4}),
        # Temperature comes first: squared and normalised, the likeliest two are .561 and .316.
        (params(temperature=0.5, top_p=0.53), {1}),
        (params(temperature=0.5, top_p=0.6), {1, 3}),
        # Then top-k, and the nucleus of what is left: 0.4/0.7 = 0.57 of it.
        (params(top_k=2, top_p=0.5), {1}),
        (params(top_k=2, top_p=0.6), {1, 3}),
    ],
)
def test_the_support_of_each_decoding_by_hand(how: SamplingParams, expected: set[int]) -> None:
    assert support(how, PROBABILITIES) == expected


@pytest.mark.parametrize(
    ("uniform_number", "token"), [(0.0, 1), (0.2499, 1), (0.25, 2), (0.4999, 2), (0.5, 4), (1 - 2**-53, 4)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_number_draws_the_token_whose_share_of_the_unit_interval_it_falls_into(
    uniform_number: float, token: int, dtype: torch.dtype
) -> None:
    """Tokens without probability have no share, not even at the ends; in float32 the last number rounds to 1."""
    row = torch.tensor([[0.0, 0.25, 0.25, 0.0, 0.5, 0.0]], dtype=dtype).log()
    assert sample_token(row, params(), torch.tensor([uniform_number], dtype=torch.float64)).tolist() == [token]


def test_uniform_numbers_are_those_of_splitmix64() -> None:
    """Vigna's C code prints these for seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    for number, expected in enumerate(published):
        assert uniform(torch.tensor([1234567]), number).tolist() == [(expected >> 11) / 2**53]


def test_uniform_numbers_of_neighbouring_rows_and_places_look_independent() -> None:
    table = torch.stack([uniform(torch.arange(300), number) for number in range(300)])
    bins = torch.ones(100, dtype=torch.float64) / 100
    for numbers in (table.flatten(), (table[1:] - table[:-1]) % 1, (table[:, 1:] - table[:, :-1]) % 1):
        assert chi_square((numbers.flatten() * 100).long(), bins) < limit(100)


def test_temperature_sharpens_by_its_power() -> None:
    """p^2 / Σ p^2: .16 of .285 for the likeliest."""
    rows = torch.tensor(PROBABILITIES, dtype=torch.float64).log().expand(40_000, -1)
    drawn = sample_token(rows, params(temperature=0.5), uniform(torch.arange(40_000), 0))
    squares = torch.tensor(PROBABILITIES, dtype=torch.float64) ** 2
    assert chi_square(drawn, squares / squares.sum()) < limit(5)


def test_the_first_token_is_drawn_with_the_models_probabilities(policy: Policy) -> None:
    prompt = [20, 21, 22]
    count = 6000
    (drawn,) = sampler(policy, max_batch_size=count).sample([prompt], params(count=count, seed=2))
    firsts = torch.tensor([completion.ids[0] for completion in drawn])
    with torch.no_grad():
        logits_V = policy.model(torch.tensor([prompt])).logits[0, -1, :REAL].double()
    assert chi_square(firsts, torch.softmax(logits_V, -1)) < limit(REAL)


def test_padded_vocabulary_ids_are_never_drawn(tmp_path: Path) -> None:
    policy = load(save_tiny_model(tmp_path, seed=0, tie_word_embeddings=False))
    with torch.no_grad():
        policy.causal_lm.lm_head.weight[REAL:] = policy.causal_lm.lm_head.weight[:4] * 100
    for how in (params(), params(temperature=2.0), params(top_p=0.9), params(top_k=95), params(temperature=0.0)):
        drawn = sampler(policy).sample(prompts(), replace(how, count=8, max_tokens=8, seed=3))
        assert max(max(completion.ids) for row in drawn for completion in row) < REAL
        assert all(math.isfinite(number) for row in drawn for completion in row for number in completion.logprobs)


def chi_square(drawn: Tensor, probability_V: Tensor) -> float:
    expected_V = probability_V * len(drawn)
    observed_V = torch.bincount(drawn, minlength=len(probability_V)).double()
    # Rare tokens share one bin: the statistic wants at least a handful in each.
    rare = expected_V < 5
    pooled = [(float(observed_V[rare].sum()), float(expected_V[rare].sum()))]
    pairs = [*zip(observed_V[~rare].tolist(), expected_V[~rare].tolist(), strict=True), *pooled]
    return float(sum((seen - wanted) ** 2 / wanted for seen, wanted in pairs if wanted > 0))


def limit(bins: int) -> float:
    """Mean and four standard deviations of a chi-square: the seed is fixed, so this is a bound and not a gamble."""
    return bins + 4 * math.sqrt(2 * bins)
