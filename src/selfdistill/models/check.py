"""Checks of a loaded model: its head, packing, padding, and equal probabilities in sampling and scoring.

Each check runs a few tokens through the functions that training uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from selfdistill.errors import ModelError, first_line, is_full
from selfdistill.models.architecture import head_shape
from selfdistill.models.attention import install, obstacle, uninstall
from selfdistill.models.head import HeadInput
from selfdistill.models.packing import build_prefix_tree, pack
from selfdistill.models.prefill import Decoder, Prefill, closed_up, keeps_all
from selfdistill.models.quantised import dequantised
from selfdistill.types import SequenceBatch

LARGE_LOGIT = 300.0
"""Size at which logits are compared. A soft cap at 30 changes logits below 0.5 by less than rounding."""
ROUNDING = {torch.float32: (5e-5, 1e-3), torch.float64: (5e-5, 1e-3), torch.bfloat16: (0.3, 0.3)}
"""Tolerances in nats for two ways to compute a token's log-probabilities, averaged over the token's distribution: one
for every model, and an upper limit for models that round more.

The tested families differ by at most 2.5e-6 in float32 and 0.018 in bfloat16, where one router that picks another
expert costs more. NemotronH without its time step limits was off by 7e-5; a model that loses its cache is off by nats.
"""
MARGIN = 20
"""Tolerance of decoding with a cache, as a multiple of the difference between scoring alone and padded."""
UNRUNNABLE = (TypeError, ValueError, AttributeError, LookupError, RuntimeError)
"""Errors of a model whose layers do not take what they are given."""
PROMPTS = ((4, 5, 6, 7, 8, 9, 10), (11, 12))
"""Prompts of unequal length. The shorter one is shorter than a convolution kernel."""
COUNT, TOKENS, ENDS_EARLY = 2, 5, 2
"""Completions per prompt, their length, and the length of each prompt's first completion, which ends early."""

PromptAndCompletion = tuple[list[int], list[int]]


class Checked(Decoder, Protocol):
    """The attributes of a policy that the checks use."""

    vocab_size: int
    packs: bool
    pads: bool
    shares: bool
    continues: bool
    scale: float
    cap: float | None

    @property
    def decoder(self) -> nn.Module:
        """The model below its head."""

    def head_input(self, batch: SequenceBatch) -> HeadInput:
        """Hidden states of scored tokens with the head."""


@contextmanager
def runs(policy: Checked, path: str) -> Iterator[None]:
    """Turn any error of a model's forward pass into one sentence.

    Raises:
        ModelError: holds the first line of the library's message.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if is_full(error):
            raise
        raise ModelError(
            f"{type(policy.causal_lm).__name__} of {path} cannot be run on a few tokens "
            f"({type(error).__name__}: {first_line(error).rstrip('.')}): use another model or release of transformers"
        ) from error


@torch.no_grad()
def check_weights(policy: Checked, path: str) -> None:
    """Refuse NaN and infinite weights, also where the other checks never look: in an expert, or a token's embedding.

    Raises:
        ModelError: names the first such tensor.
    """
    for name, parameter in policy.causal_lm.named_parameters():
        # The sum is finite if all weights are, and needs no second tensor of this size where nothing is quantised.
        weight = dequantised(parameter)
        if not torch.isfinite(weight.sum(dtype=torch.promote_types(weight.dtype, torch.float32))):
            raise ModelError(
                f"{path} holds weights that are not numbers (NaN or infinite), in {name}: download or save it again"
            )


@torch.no_grad()
def check_head(policy: Checked, path: str) -> None:
    """Check that a model's logits are a linear map of its last hidden state, or that map scaled and softly capped.

    Scale and cap are read from the config only if the plain map is wrong: a config may name a scale that its model
    ignores.

    Raises:
        ModelError: the logits are computed in another way, or are not finite.
    """
    batch = probe(policy.device)
    largest = float(policy.head_input(batch).logits(slice(0, 4)).abs().max())
    if not largest < float("inf"):
        raise ModelError(
            f"{path} gives logits that are not numbers: its weights are broken, or too large for its dtype"
        )

    def enlarge(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state * (LARGE_LOGIT / max(largest, 1e-6))
        return output

    hook = policy.decoder.register_forward_hook(enlarge)
    try:
        expected = policy.causal_lm(input_ids=batch.ids_BL, use_cache=False).logits[0]
        if not _same(policy.head_input(batch).logits(slice(0, 4)), expected):
            policy.scale, policy.cap = head_shape(policy.causal_lm)
        actual = policy.head_input(batch).logits(slice(0, 4))
    finally:
        hook.remove()
    if not _same(actual, expected):
        raise ModelError(
            f"the head of {path} is neither a linear map of its last hidden state nor that map with the scale and soft "
            "cap that its config names, so the sliced loss cannot reproduce it: use another model"
        )


@torch.no_grad()
def allow_packing(policy: Checked) -> None:
    """Enable packing if the model's layers allow it and packed hidden states equal those computed row by row."""
    if obstacle(policy.causal_lm) is not None:
        return
    sequences = [tuple(n % policy.vocab_size for n in ids) for ids in ((4, 5, 6, 7, 8), (4, 5, 6, 1), (2, 3, 4))]
    rows = [torch.tensor([ids], device=policy.device) for ids in sequences]
    expected = torch.cat([policy.decoder(input_ids=row, use_cache=False).last_hidden_state[0] for row in rows])
    packed = pack(build_prefix_tree(sequences, share_from=1))
    index_N = torch.cat(packed.token_indices)
    batch = SequenceBatch(
        packed.ids_T[None], torch.zeros_like(index_N), index_N, index_N, packed.position_T[None], packed.layout
    )
    before = policy.causal_lm.config.get_text_config()._attn_implementation
    install(policy.causal_lm)
    try:
        policy.packs = _same(policy.head_input(batch).hidden_ND, expected)
    except UNRUNNABLE as error:
        # A layer that takes no layout, as in another release of transformers.
        if is_full(error):
            raise
    if not policy.packs:
        uninstall(policy.causal_lm, before)


@torch.no_grad()
def check_scoring(policy: Checked, path: str) -> float:
    """Refuse a model whose scores of a sequence depend on padding.

    Returns the tolerance in nats for later comparisons, from the rounding seen in this one.

    Raises:
        ModelError: says by how many nats the scores differ.
    """
    sequences = _sequences(policy)
    least, most = ROUNDING[next(policy.causal_lm.parameters()).dtype]
    alone = torch.cat([_scored(policy, [sequence]) for sequence in sequences])
    apart = _distance(alone, _scored(policy, sequences))
    if not apart <= most:
        raise ModelError(
            f"{type(policy.causal_lm).__name__} of {path} gives the tokens of a sequence other log-probabilities, by "
            f"{apart:.2g} nats, where longer ones stand beside it: it cannot be scored in batches, so use another model"
        )
    return min(most, max(least, MARGIN * apart))


@torch.no_grad()
def check_sampling(policy: Checked, path: str, *, rounding: float) -> None:
    """Refuse a model whose sampling probabilities, with the cache, differ from its scores.

    Prompts of unequal length are decoded in one batch first. If that fails and batches of one length pass, the policy
    never pads prompts.

    Raises:
        ModelError: says by how many nats they differ, or that the model cannot be decoded with a cache.
    """
    name, sequences = type(policy.causal_lm).__name__, _sequences(policy)
    expected = _scored(policy, sequences)
    try:
        apart = padded = _distance(expected, _decoded(policy, sequences))
        if not padded <= rounding:
            policy.pads = False
            parts = [sequences[at : at + COUNT] for at in range(0, len(sequences), COUNT)]
            apart = _distance(expected, torch.cat([_decoded(policy, part) for part in parts]))
    except UNRUNNABLE as error:
        if is_full(error):
            raise
        raise ModelError(
            f"{name} of {path} cannot be decoded with a key-value cache ({first_line(error).rstrip('.')}), "
            "so nothing can be sampled with it: use another model"
        ) from error
    if not apart <= rounding:
        raise ModelError(
            f"{name} of {path} is sampled with other probabilities than it is scored with: decoding with the cache "
            f"puts a token's log-probability {apart:.2g} nats off the whole forward's, where rounding explains "
            f"{rounding:.2g}; use another model, or a release of transformers that decodes it right"
        )
    policy.shares = policy.packs and _shares(policy, sequences, expected, rounding)
    policy.continues = policy.pads and _continues(policy, sequences, expected, rounding)


def _shares(policy: Checked, sequences: Sequence[PromptAndCompletion], expected_NV: Tensor, rounding: float) -> bool:
    """Whether rows go on from shared prompts here, with the probabilities of rows that have a prompt each."""
    policy.shares = True
    try:
        if Prefill.of(policy, [prompt for prompt, _ in sequences], 1, share_from=1).prompts is None:
            return False
        return _distance(expected_NV, _decoded(policy, sequences, share_from=1)) <= rounding
    except UNRUNNABLE as error:
        if is_full(error):
            raise
        return False
    finally:
        policy.shares = False


def _continues(policy: Checked, sequences: Sequence[PromptAndCompletion], expected_NV: Tensor, rounding: float) -> bool:
    """Whether rows that were read may be taken from the batch and go on in another, as turns of an episode do."""
    state = Prefill.of(policy, [prompt for prompt, _ in sequences], 1)
    if not keeps_all(state.cache):
        return False
    kept = [state.row(row, len(prompt)) for row, (prompt, _) in enumerate(sequences)]
    # One to three tokens of every completion follow at once, and then one more alone.
    completions = [completion for _, completion in sequences]
    ends = [min(len(completion) - 1, 1 + row % 3) for row, completion in enumerate(completions)]
    begins = [sum(map(len, completions[:row])) for row in range(len(completions))]
    index_B = torch.tensor([begin + end for begin, end in zip(begins, ends, strict=True)], device=expected_NV.device)
    more_B = torch.tensor([len(completion) > end + 1 for completion, end in zip(completions, ends, strict=True)])
    try:
        following = [completion[:end] for completion, end in zip(completions, ends, strict=True)]
        state = Prefill.continued(policy, kept, following)
        first, next_ids = state.logprobs, [completion[end] for completion, end in zip(completions, ends, strict=True)]
        second = state.advance(torch.tensor(next_ids, device=policy.device))[more_B]
    except UNRUNNABLE as error:
        if is_full(error):
            raise
        return False
    expected = torch.cat([expected_NV[index_B], expected_NV[index_B[more_B] + 1]])
    return _distance(expected, torch.cat([first, second]).float()) <= rounding


def probe(device: torch.device) -> SequenceBatch:
    """A batch of the first four ids, each scored at its own index."""
    ids = torch.arange(4, device=device)
    return SequenceBatch(ids[None], torch.zeros_like(ids), ids, ids)


def _sequences(policy: Checked) -> list[PromptAndCompletion]:
    """Prompt and completion of each row. The first completion of every prompt is shorter than the others."""
    vocab_size, rows = policy.vocab_size, [prompt for prompt in PROMPTS for _ in range(COUNT)]
    return [
        (
            [token % vocab_size for token in prompt],
            [(13 + 5 * row + 3 * t) % vocab_size for t in range(TOKENS if row % COUNT else ENDS_EARLY)],
        )
        for row, prompt in enumerate(rows)
    ]


def _scored(policy: Checked, sequences: Sequence[PromptAndCompletion]) -> Tensor:
    """Log-probabilities [N, V] at every token of the completions, as training scores them, padded in one batch."""
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids = [[*prompt, *completion, *[0] * (longest - len(prompt) - len(completion))] for prompt, completion in sequences]
    rows = [row for row, (_, completion) in enumerate(sequences) for _ in completion]
    columns = [len(prompt) - 1 + t for prompt, completion in sequences for t in range(len(completion))]
    targets = [token for _, completion in sequences for token in completion]
    batch = SequenceBatch(torch.tensor(ids), torch.tensor(rows), torch.tensor(columns), torch.tensor(targets))
    return policy.head_input(batch).logprobs(slice(None)).float()


def _decoded(policy: Checked, sequences: Sequence[PromptAndCompletion], *, share_from: int | None = None) -> Tensor:
    """The same log-probabilities [N, V] by decoding with the cache, as the sampler does: ``COUNT`` rows per prompt."""
    prompts, completions = [prompt for prompt, _ in sequences[::COUNT]], [completion for _, completion in sequences]
    state = Prefill.of(policy, prompts, COUNT, share_from=share_from)
    logprobs, alive = state.logprobs, torch.arange(len(completions), device=policy.device)
    logprobs_of_row: list[list[Tensor]] = [[] for _ in completions]
    for t in range(TOKENS):
        for row, logprobs_V in zip(alive.tolist(), logprobs.float(), strict=True):
            logprobs_of_row[row].append(logprobs_V)
        unfinished = torch.tensor([len(completions[row]) > t + 1 for row in alive.tolist()], device=policy.device)
        if not unfinished.any():
            break
        if not unfinished.all():
            remaining = closed_up(unfinished)
            state.keep(remaining)
            alive = alive[remaining]
        logprobs = state.advance(torch.tensor([completions[row][t] for row in alive.tolist()], device=policy.device))
    return torch.stack([logprobs_V for row in logprobs_of_row for logprobs_V in row])


def _distance(expected_NV: Tensor, actual_NV: Tensor) -> float:
    """Mean difference of log-probabilities in nats under the expected distribution, at the worst token."""
    apart_NV = (expected_NV - actual_NV).abs() * expected_NV.exp()
    # Equal values differ by 0 also if both are -inf; -inf on one side only is an infinite difference.
    return float(apart_NV.masked_fill(expected_NV == actual_NV, 0.0).sum(-1).max())


def _same(actual: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-4 if actual.dtype in (torch.float32, torch.float64) else 5e-2
    actual, expected = actual.double(), expected.double()
    return torch.allclose(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
