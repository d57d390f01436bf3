"""Packing: what sequences share stands once, and attention over the pack is attention over each sequence alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from selfdistill.models.attention import attend
from selfdistill.models.packing import Segment, build_prefix_tree, pack
from selfdistill.scoring.batching import collate, cut_by_tokens
from selfdistill.types import STUDENT, View

Ids = tuple[int, ...]
BRANCHING: tuple[Ids, ...] = ((1, 2, 3, 4), (1, 9), (1, 2, 3, 5, 6), (1, 2, 3, 4), (7,), (1, 2))


def test_a_tree_by_hand() -> None:
    tree = build_prefix_tree(BRANCHING, share_from=1)
    assert tree.segments == [
        Segment((1,), 0, None),
        Segment((2,), 1, 0),
        Segment((3,), 2, 1),
        Segment((4,), 3, 2),
        Segment((5, 6), 3, 2),
        Segment((9,), 1, 0),
        Segment((7,), 0, None),
    ]
    assert tree.ends == [3, 5, 4, 3, 6, 1]
    assert tree.tokens == 8
    assert [tree.path(i) for i in range(3)] == [[0, 1, 2, 3], [0, 5], [0, 1, 2, 4]]


def test_what_saves_too_little_is_not_shared() -> None:
    """A head of two tokens saves 2 · 3 = 6; the three tokens behind it, of two sequences, save 3, with the head 5."""
    head, tail = (1, 2), (3, 4, 5)
    sequences = [(*head, *tail, 6), (*head, *tail, 7), (*head, 8), (*head, 9)]
    assert [build_prefix_tree(sequences, share_from=n).tokens for n in (1, 3, 4, 5, 6, 7)] == [9, 9, 12, 12, 12, 18]
    # Were the head too dear by itself, the two would still share all five.
    assert [build_prefix_tree([*sequences[:2], (1, 9)], share_from=n).tokens for n in (2, 3, 5, 6)] == [8, 9, 9, 14]


def drawn(seed: int, *, count: int = 12, longest: int = 9) -> list[Ids]:
    """Sequences of few different tokens, so that many begin alike."""
    generator = random.Random(seed)
    return [tuple(generator.choices(range(2), k=generator.randint(1, longest))) for _ in range(count)]


@pytest.mark.parametrize("share_from", [1, 4, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_every_sequence_stands_in_the_pack_in_order_and_from_position_0(seed: int, share_from: int) -> None:
    sequences = drawn(seed)
    tree = build_prefix_tree(sequences, share_from=share_from)
    made = pack(tree)
    for ids, places in zip(sequences, made.token_indices, strict=True):
        assert tuple(made.ids_T[places].tolist()) == ids
        assert made.position_T[places].tolist() == list(range(len(ids)))
    assert len(made.ids_T) == tree.tokens
    if share_from == 1:
        assert tree.tokens == len({ids[:n] for ids in sequences for n in range(1, len(ids) + 1)})
    if share_from == 1000:
        assert tree.tokens == sum(map(len, sequences))


def alone(states: Sequence[Tensor], places: Tensor, window: int | None, sink_H: Tensor | None = None) -> Tensor:
    """Attention [L, heads, dim] of one sequence by itself, its mask and its sinks written out."""
    query, key, value = (one[0][:, places] for one in states)
    key, value = (one.repeat_interleave(len(query) // len(one), 0) for one in (key, value))
    i, j = torch.arange(len(places))[:, None], torch.arange(len(places))[None]
    mask = (j <= i) if window is None else (j <= i) & (j > i - window)
    if sink_H is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3).transpose(0, 1)
    weights = (0.3 * query @ key.transpose(1, 2)).masked_fill(~mask, float("-inf")).exp()
    shares = weights / (weights.sum(-1, keepdim=True) + sink_H.exp()[:, None, None])
    return (shares @ value).transpose(0, 1)


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("queries", [512, 2, 1])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("share_from", [1, 4, 1000])
@pytest.mark.parametrize("cheap", [{"cpu"}, set()], ids=["masks are cheap", "masks are not"])
def test_attention_over_the_pack_is_that_of_each_sequence_alone(
    cheap: set[str], share_from: int, window: int | None, queries: int, sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfdistill.models.attention.QUERIES", queries)
    monkeypatch.setattr("selfdistill.models.attention.MASKS_ARE_CHEAP", cheap)
    made = pack(build_prefix_tree(drawn(1), share_from=share_from))
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(1, heads, len(made.ids_T), 5, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    query, key, value = states
    sink_H = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True) if sinks else None
    packed, _ = attend(
        *(torch.nn.Module(), query, key, value, None),
        layout=made.layout,
        scaling=0.3,
        sliding_window=window,
        s_aux=sink_H,
    )
    weight = torch.randn(packed.shape, generator=generator, dtype=torch.float64)
    mine, theirs = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for places in made.token_indices:
        expected = alone(states, places, window, sink_H)
        torch.testing.assert_close(packed[0, places], expected, rtol=1e-12, atol=1e-12)
        mine = mine + (packed[0, places] * weight[0, places]).sum()
        theirs = theirs + (expected * weight[0, places]).sum()
    inputs = states if sink_H is None else [*states, sink_H]
    for one, other in zip(torch.autograd.grad(mine, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_one_query_a_row_gets_what_the_librarys_attention_gives_it(scaling: float | None, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, length, 5, generator=generator, dtype=torch.float64)
        for heads, length in ((6, 1), (2, 7), (2, 7))
    )
    mask = torch.arange(7)[None] >= torch.tensor([0, 2, 6])[:, None] if masked else None
    mask = mask[:, None, None] if mask is not None else None
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
    found, _ = attend(torch.nn.Module(), query, key, value, mask, scaling=scaling)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("length", "keys"), [(1, 7), (7, 7), (3, 7)])
def test_sinks_without_packing_are_those_of_the_librarys_model(
    length: int, keys: int, masked: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, long, 8, generator=generator, dtype=torch.float64).to(dtype)
        for heads, long in ((6, length), (2, keys), (2, keys))
    )
    sinks = torch.nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64).to(dtype))
    layer = torch.nn.Module()
    vars(layer).update(num_key_value_groups=3, sinks=sinks)
    mask = None
    if masked:
        # The first row's first keys are padding.
        mask = (torch.arange(keys)[None] <= torch.arange(keys - length, keys)[:, None])[None, None].repeat(2, 1, 1, 1)
        mask[0, ..., :2] = False
    # The library's own form takes an added mask. Without one, keys behind the last query are empty places of a cache.
    visible = torch.ones(length, keys, dtype=torch.bool).tril(0 if length > 1 else keys) if mask is None else mask
    added = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    expected, _ = eager_attention_forward(layer, query, key, value, added, scaling=0.3)
    found, _ = attend(layer, query, key, value, mask, scaling=0.3, s_aux=sinks)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_packed_tokens_have_no_attention_that_is_not_computed() -> None:
    made = pack(build_prefix_tree(drawn(1)))
    states = torch.ones(1, 1, len(made.ids_T), 4)
    with pytest.raises(ValueError, match="packed tokens have no attention with softcap"):
        attend(torch.nn.Module(), states, states, states, None, layout=made.layout, softcap=30.0)


def test_one_query_under_anything_else_is_left_to_the_library() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 2, length, 4, generator=generator) for length in (1, 5, 5))
    bias = torch.randn(2, 2, 1, 5, generator=generator)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)
    found, _ = attend(torch.nn.Module(), query, key, value, bias)
    torch.testing.assert_close(found, expected)
    found, _ = attend(torch.nn.Module(), query, key, value, None, position_bias=bias)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="softcap"):
        attend(torch.nn.Module(), query, key, value, None, softcap=30.0)
    # In half precision the shares would be rounded before they weigh the values.
    query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    found, _ = attend(torch.nn.Module(), query, key, value, None)
    assert torch.equal(found, scaled_dot_product_attention(query, key, value).transpose(1, 2))


# --- batches ----------------------------------------------------------------------------------------------------------


def view(prompt: Ids, completion: Ids, **others: Ids) -> View:
    return View({STUDENT: prompt, **others}, completion, (), (), 0.0, 0, 0)


def test_a_shared_prompt_counts_once_against_the_budget() -> None:
    views = [view(tuple(range(100)), tuple(range(200 + 10 * i, 210 + 10 * i))) for i in range(8)]
    cut = {budget: cut_by_tokens(views, max_tokens=budget, packed=True) for budget in (180, 179, 110, 1)}
    assert [len(batch) for batch in cut[180]] == [8]
    assert [len(batch) for batch in cut[179]] == [7, 1]
    assert [len(batch) for batch in cut[110]] == [1] * 8 == [len(batch) for batch in cut[1]]
    assert [len(batch) for batch in cut_by_tokens(views, max_tokens=880)] == [8]
    assert [len(batch) for batch in cut_by_tokens(views, max_tokens=879)] == [7, 1]


def test_roles_of_one_forward_share_its_budget() -> None:
    prompt = tuple(range(70))
    views = [view(prompt, (200 + i,) * 10, teacher=(*prompt, 90, 91), base=prompt) for i in range(4)]
    apart = cut_by_tokens(views, max_tokens=112, packed=True)
    assert [len(batch) for batch in apart] == [4]
    # A prompt once, two tokens more of the teacher's for each of its completions, and every completion twice.
    whole = 70 + 4 * (10 + 12)
    joint = [cut_by_tokens(views, max_tokens=whole - n, forwards=[["teacher", "base"]], packed=True) for n in (0, 1)]
    assert [[len(batch) for batch in cut] for cut in joint] == [[4], [3, 1]]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("budget", [1, 20, 55, 10_000])
def test_cuts_keep_every_view_and_the_budget(budget: int, packed: bool) -> None:
    prompts, completions = drawn(3, count=9, longest=30), drawn(4, count=9, longest=20)
    views = [view(p, c, teacher=p[::-1]) for p, c in zip(prompts, completions, strict=True)]
    batches = cut_by_tokens(views, max_tokens=budget, packed=packed)
    assert sorted(i for batch in batches for i in batch) == list(range(9))
    for batch in batches:
        for role in (STUDENT, "teacher"):
            size = collate([views[i] for i in batch], role, packed=packed).ids_BL.numel()
            assert size <= budget or len(batch) == 1


def test_padded_and_packed_batches_name_the_same_tokens() -> None:
    views = [view(p, c) for p, c in zip(drawn(5), drawn(6), strict=True)]
    padded, packed = (collate(views, STUDENT, packed=how) for how in (False, True))
    assert torch.equal(padded.target_N, packed.target_N)
    assert packed.position_BL is not None
    before = padded.ids_BL[padded.row_N, padded.column_N]
    assert torch.equal(before, packed.ids_BL[packed.row_N, packed.column_N])
    assert torch.equal(padded.column_N, packed.position_BL[0, packed.column_N])
