"""What is tried on a model when it is loaded: head, packing, and that it is sampled as it is scored.

Each check runs a few tokens through the very functions that training uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from selfdistill.errors import ModelError, first_line, is_full
from selfdistill.models.architecture import head_shape
from selfdistill.models.attention import install, packable, uninstall
from selfdistill.models.head import HeadInput
from selfdistill.models.packing import build_prefix_tree, pack
from selfdistill.models.prefill import Decoder, Prefill, closed_up
from selfdistill.types import SequenceBatch

LARGE_LOGIT = 300.0
"""Logits are compared at this size: a soft cap at 30 moves those below 0.5 by less than rounding does."""
ROUNDING = {torch.float32: (5e-5, 1e-3), torch.float64: (5e-5, 1e-3), torch.bfloat16: (0.3, 0.3)}
"""Nats by which two ways to compute a token's log-probability may differ, on average over what may be drawn there: so
many in any model, and the most in one that rounds more.

Over the families of the tests it was at most 2.5e-6 in float32 and 0.018 in bfloat16, where a router that chooses
another expert moves a token by more. NemotronH without its limits was 7e-5 off, a lost history nats.
"""
MARGIN = 20
"""Times that decoding may be off by what forwards without a cache differ by, alone and padded."""
PROMPTS = ((4, 5, 6, 7, 8, 9, 10), (11, 12))
"""Of unequal length, the shorter one below the width of a convolution."""
COUNT, TOKENS, ENDS_EARLY = 2, 5, 2
"""Completions of each prompt, their tokens, and those of the first, which leaves before the other."""

Said = tuple[list[int], list[int]]


class Checked(Decoder, Protocol):
    """What the checks ask of a policy."""

    vocab_size: int
    packs: bool
    pads: bool
    scale: float
    cap: float | None

    @property
    def decoder(self) -> nn.Module:
        """The model below its head."""

    def head_input(self, batch: SequenceBatch) -> HeadInput:
        """Hidden states of scored tokens with the head."""


@contextmanager
def runs(policy: Checked, path: str) -> Iterator[None]:
    """Say in one sentence that a model's own forward fails, whatever it fails with.

    Raises:
        ModelError: with the first line of what the library says.
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
    """Refuse weights that are not numbers, also where no probe would meet them: in an expert, or a token's embedding.

    Raises:
        ModelError: it names the first such tensor.
    """
    for name, parameter in policy.causal_lm.named_parameters():
        # A sum is finite where all its terms are, and needs no second tensor of this size.
        if not torch.isfinite(parameter.sum(dtype=torch.promote_types(parameter.dtype, torch.float32))):
            raise ModelError(
                f"{path} holds weights that are not numbers (NaN or infinite), in {name}: download or save it again"
            )


@torch.no_grad()
def check_head(policy: Checked, path: str) -> None:
    """Find out whether a model's logits are a linear map of its last hidden state, or that map scaled and capped.

    Its config is asked only where the plain map is not right, so that a name which a model does not use does no harm.

    Raises:
        ModelError: they are something else, or no numbers.
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
    """Let batches be packed if the model's layers allow it and packed tokens come out as they do row by row."""
    if not packable(policy.causal_lm):
        return
    sequences = [tuple(n % policy.vocab_size for n in ids) for ids in ((4, 5, 6, 7, 8), (4, 5, 6, 1), (2, 3, 4))]
    rows = [torch.tensor([ids], device=policy.device) for ids in sequences]
    expected = torch.cat([policy.decoder(input_ids=row, use_cache=False).last_hidden_state[0] for row in rows])
    made = pack(build_prefix_tree(sequences, share_from=1))
    places = torch.cat(made.places)
    batch = SequenceBatch(
        made.ids_T[None], torch.zeros_like(places), places, places, made.position_T[None], made.layout
    )
    install(policy.causal_lm)
    policy.packs = _same(policy.head_input(batch).hidden_ND, expected)
    if not policy.packs:
        uninstall(policy.causal_lm)


@torch.no_grad()
def check_scoring(policy: Checked, path: str) -> float:
    """Refuse a model that scores a sequence otherwise beside others, padded, than alone.

    Returns the nats that rounding may explain in other comparisons, by what it did to this one.

    Raises:
        ModelError: by how many nats.
    """
    sequences = _sequences(policy)
    least, most = ROUNDING[next(policy.causal_lm.parameters()).dtype]
    alone = torch.cat([_scored(policy, [one]) for one in sequences])
    apart = _distance(alone, _scored(policy, sequences))
    if not apart <= most:
        raise ModelError(
            f"{type(policy.causal_lm).__name__} of {path} gives the tokens of a sequence other log-probabilities, by "
            f"{apart:.2g} nats, where longer ones stand beside it: it cannot be scored in batches, so use another model"
        )
    return min(most, max(least, MARGIN * apart))


@torch.no_grad()
def check_sampling(policy: Checked, path: str, *, rounding: float) -> None:
    """Refuse a model whose samples are not drawn with the probabilities that it is scored with.

    Prompts of unequal length are decoded together. Where that goes wrong and those of one length go right, the policy
    pads no prompts from now on.

    Raises:
        ModelError: by how many nats, or that the model cannot be decoded with a cache.
    """
    name, sequences = type(policy.causal_lm).__name__, _sequences(policy)
    expected = _scored(policy, sequences)
    try:
        apart = padded = _distance(expected, _decoded(policy, sequences))
        if not padded <= rounding:
            policy.pads = False
            parts = [sequences[at : at + COUNT] for at in range(0, len(sequences), COUNT)]
            apart = _distance(expected, torch.cat([_decoded(policy, part) for part in parts]))
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
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


def probe(device: torch.device) -> SequenceBatch:
    """The first four ids, each scored at its own place."""
    places = torch.arange(4, device=device)
    return SequenceBatch(places[None], torch.zeros_like(places), places, places)


def _sequences(policy: Checked) -> list[Said]:
    """Prompt and completion of each row: every prompt's first completion ends before its others."""
    real, rows = policy.vocab_size, [prompt for prompt in PROMPTS for _ in range(COUNT)]
    return [
        (
            [token % real for token in prompt],
            [(13 + 5 * row + 3 * t) % real for t in range(TOKENS if row % COUNT else ENDS_EARLY)],
        )
        for row, prompt in enumerate(rows)
    ]


def _scored(policy: Checked, sequences: Sequence[Said]) -> Tensor:
    """Log-probabilities [N, V] at every token of the completions, as training scores them, padded in one batch."""
    longest = max(len(prompt) + len(said) for prompt, said in sequences)
    ids = [[*prompt, *said, *[0] * (longest - len(prompt) - len(said))] for prompt, said in sequences]
    rows = [row for row, (_, said) in enumerate(sequences) for _ in said]
    columns = [len(prompt) - 1 + t for prompt, said in sequences for t in range(len(said))]
    targets = [token for _, said in sequences for token in said]
    batch = SequenceBatch(torch.tensor(ids), torch.tensor(rows), torch.tensor(columns), torch.tensor(targets))
    return policy.head_input(batch).logprobs(slice(None)).float()


def _decoded(policy: Checked, sequences: Sequence[Said]) -> Tensor:
    """The same [N, V] as the sampler has them: ``COUNT`` rows of each prompt decoded together, while they last."""
    prompts, said = [prompt for prompt, _ in sequences[::COUNT]], [said for _, said in sequences]
    state = Prefill.of(policy, prompts, COUNT)
    logprobs, alive = state.logprobs, torch.arange(len(said), device=policy.device)
    found: list[list[Tensor]] = [[] for _ in said]
    for t in range(TOKENS):
        for row, logprobs_V in zip(alive.tolist(), logprobs.float(), strict=True):
            found[row].append(logprobs_V)
        going = torch.tensor([len(said[row]) > t + 1 for row in alive.tolist()], device=policy.device)
        if not going.any():
            break
        if not going.all():
            kept = closed_up(going)
            state.keep(kept)
            alive = alive[kept]
        logprobs = state.advance(torch.tensor([said[row][t] for row in alive.tolist()], device=policy.device))
    return torch.stack([logprobs_V for row in found for logprobs_V in row])


def _distance(expected_NV: Tensor, actual_NV: Tensor) -> float:
    """Nats by which a log-probability is off at the worst place, on average over draws by the expected ones."""
    apart_NV = (expected_NV - actual_NV).abs() * expected_NV.exp()
    # A token without probability on both sides is nowhere apart; on one side, infinitely.
    return float(apart_NV.masked_fill(expected_NV == actual_NV, 0.0).sum(-1).max())


def _same(actual: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-4 if actual.dtype in (torch.float32, torch.float64) else 5e-2
    actual, expected = actual.double(), expected.double()
    return torch.allclose(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
