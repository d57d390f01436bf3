"""Rows that share what was read of their prompt: attention by hand, rows that leave, turns, and models that cannot."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfdistill.models.policy import Policy, load_policy
from selfdistill.models.prefill import Prefill
from selfdistill.models.shared_prompts import SharedPrompts, attend_over_prompts
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import HFSampler
from support.tiny import STOP

PROMPTS = ((20, 21, 22), tuple(range(30, 47)), (50, 51, 52, 53, 54))


def by_hand(query: Tensor, keys: list[Tensor], values: list[Tensor], scaling: float, sink: float | None) -> Tensor:
    """Attention of one query over keys, one number at a time."""
    scores = [scaling * sum(float(a) * float(b) for a, b in zip(query, key, strict=True)) for key in keys]
    total = sum(map(math.exp, scores)) + (0.0 if sink is None else math.exp(sink))
    return torch.stack([math.exp(s) / total * value for s, value in zip(scores, values, strict=True)]).sum(0)


@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "with sinks"])
@pytest.mark.parametrize("padded", [False, True], ids=["equal lengths", "padded"])
def test_attention_is_that_over_one_row_of_keys(padded: bool, sinks: bool) -> None:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    heads, groups, read, own, dim = 2, 2, 4, 3, 3
    of_row = torch.tensor([2, 0, 2, 1, 2])
    mask = torch.tensor([[False, True, True, True], [True] * 4, [False, False, False, True]]) if padded else None
    prompts = SharedPrompts([(drawn(3, heads, read, dim), drawn(3, heads, read, dim))], mask, of_row)
    query, sink = drawn(5, heads * groups, 1, dim), drawn(heads * groups)
    key, value = drawn(5, heads, own, dim), drawn(5, heads, own, dim)
    found = attend_over_prompts(query, key, value, prompts, 0, scaling=0.7, sink_H=sink if sinks else None)
    for row, prompt in enumerate(of_row.tolist()):
        seen = range(read) if mask is None else mask[prompt].nonzero().flatten().tolist()
        for head in range(heads * groups):
            of = head // groups
            keys, values = (
                [*(prompts.layers[0][part][prompt, of, at] for at in seen), *states[row, of]]
                for part, states in ((0, key), (1, value))
            )
            expected = by_hand(query[row, head, 0], keys, values, 0.7, float(sink[head]) if sinks else None)
            torch.testing.assert_close(found[row, 0, head], expected)


def test_prompts_whose_rows_have_left_are_dropped_once_they_are_half() -> None:
    states = torch.arange(4.0).view(4, 1, 1, 1)
    prompts = SharedPrompts([(states, 10 * states)], None, torch.tensor([0, 0, 1, 2, 3, 3]))
    prompts.keep(torch.tensor([5, 1, 3]))
    assert prompts.layers[0][0].flatten().tolist() == [0, 1, 2, 3], "three of four prompts are asked"
    assert [float(prompts.row(row, 0, 1)[0]) for row in range(3)] == [3, 0, 2]
    prompts.keep(torch.tensor([2, 0]))
    assert prompts.layers[0][1].flatten().tolist() == [20, 30]
    assert [float(prompts.row(row, 0, 1)[1]) for row in range(2)] == [20, 30]
    table = prompts.together(torch.tensor([5.0, 7.0]).view(2, 1, 1, 1))
    assert prompts.apart(table).flatten().tolist() == [5, 7]


def policy_of(folder: Path) -> Policy:
    return load_policy(str(folder), dtype=torch.float64, device=torch.device("cpu"))[0]


def test_the_same_is_sampled_turn_after_turn(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(model)
    assert policy.shares
    found = []
    for share_from in (1, 1000):
        monkeypatch.setattr("selfdistill.models.prefill.SHARE_FROM", share_from)
        sampler = HFSampler(policy, stop_ids=[STOP, *range(8, 90, 9)]).in_turns()
        drawn = sampler.sample(PROMPTS, SamplingParams(count=3, max_tokens=20, seed=9))
        said = [(*prompt, *row[1].ids, 40, 41) for prompt, row in zip(PROMPTS, drawn, strict=True)]
        found.append([*drawn, *sampler.sample(said, SamplingParams(count=1, max_tokens=8, seed=3))])
        # One prompt for all rows of a group, which go on to a second turn.
        again = sampler.sample(PROMPTS[:1] * 4, SamplingParams(count=1, max_tokens=20, seed=5))
        said = [(*PROMPTS[0], *row[0].ids, 40) for row in again]
        found[-1] += [*again, *sampler.sample(said, SamplingParams(count=1, max_tokens=8, seed=3))]
    for one, other in zip(*found, strict=True):
        assert [c.ids for c in one] == [c.ids for c in other]
        for a, b in zip(one, other, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-9)
    assert len({len(c.ids) for row in found[0] for c in row}) > 3, "rows leave the batch at different times"


def test_what_was_read_of_a_prompt_is_kept_once(model: Path) -> None:
    policy = policy_of(model)
    with torch.no_grad():
        state = Prefill.of(policy, PROMPTS, 5, share_from=1)
        assert state.prompts is not None
        assert state.prompts.layers[0][0].shape[0] == 3
        state.advance(torch.full((15,), 9))
    assert state.cache.layers[0].keys.shape[:3:2] == (15, 1)  # type: ignore[union-attr]
    assert Prefill.of(policy, PROMPTS, 1, share_from=1).prompts is None, "one row a prompt has nothing to share"
    assert Prefill.of(policy, PROMPTS, 5).prompts is None, "short prompts are not worth it"


def test_a_model_that_would_share_wrongly_does_not(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object, **options: object) -> Tensor:
        return attend_over_prompts(*args, **options).flip(-1)  # type: ignore[arg-type]

    def refuses(*args: object, **options: object) -> Tensor:
        raise TypeError("unknown argument")

    for broken in (wrong, refuses):
        monkeypatch.setattr("selfdistill.models.attention.attend_over_prompts", broken)
        policy = policy_of(model)
        assert (policy.shares, policy.packs) == (False, True)
