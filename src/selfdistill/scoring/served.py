"""Scores of a teacher behind a server: log-probabilities of the sampled tokens, and of the teacher's likeliest ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.distributed.world import World
from selfdistill.models.head import HeadInput
from selfdistill.models.policy import Policy
from selfdistill.models.served import CONCURRENCY, ServedModel
from selfdistill.tracking.progress import advance
from selfdistill.types import RoutedPrompt, Scores, Server, View


@dataclass(frozen=True, slots=True)
class KnownHead(HeadInput):
    """A head of which a few log-probabilities [N, K] are known at each token, those of the ids ``known_NK``.

    Every other id has an equal share of what is left. The K likeliest ids, the sampled token, and the mass of all
    others are therefore exact, and the entropy is an upper bound.
    """

    known_NK: Tensor | None = None
    logprobs_NK: Tensor | None = None
    rest_N: Tensor | None = None
    """Log-probability of each other id."""

    def real_logits(self, rows: slice) -> Tensor:
        """Log-probabilities [n, V] of the tokens in ``rows``, −inf at padded ids."""
        assert self.known_NK is not None and self.logprobs_NK is not None and self.rest_N is not None
        rest_n = self.rest_N[rows]
        logits = rest_n[:, None].repeat(1, self.weight_VD.shape[0])
        logits.scatter_(-1, self.known_NK[rows], self.logprobs_NK[rows])
        logits[:, self.vocab_size :] = float("-inf")
        return logits


Servers = Mapping[Server, ServedModel]


def served_scores(servers: Servers, kind: Server, views: Sequence[View], role: str, world: World) -> list[Scores]:
    """The log-probability of every completion token under a role's prompts; one entry per view.

    Entropies are NaN, because the server does not give the distributions. The ranks share the requests.

    Raises:
        SamplerError: the server fails after all retries, or refuses a request.
    """
    own = world.shard_indices(len(views))
    found = _ask(servers, kind, [views[i] for i in own], role, top=0)
    results: dict[int, Scores] = {}
    for i, rows in zip(own, found, strict=True):
        target_N = torch.tensor([entries[token] for token, entries in zip(views[i].completion_ids, rows, strict=True)])
        results[i] = Scores(target_N, torch.full_like(target_N, math.nan))
    return world.all_gather_by_index(results, len(views))


def served_head(
    servers: Servers, kind: Server, views: Sequence[View], role: str, top: int, student: Policy
) -> HeadInput:
    """What a server tells of the role's distributions at every token of the views, on the student's vocabulary.

    A token whose view lacks the role's prompt has a distribution without meaning.

    Raises:
        SamplerError: as for :func:`served_scores`.
    """
    with_prompt = [view for view in views if role in view.prompts]
    found = iter(_ask(servers, kind, with_prompt, role, top=top))
    nothing: dict[int, float] = {}
    rows = [next(found) if role in view.prompts else [nothing] * len(view.completion_ids) for view in views]
    known = [entries for of_view in rows for entries in of_view]
    targets = [token for view in views for token in view.completion_ids]
    # A token beside the likeliest ids makes a row longer: shorter ones repeat an id with its log-probability.
    ids, logprobs, rest = [], [], []
    for token, entries in zip(targets, known, strict=True):
        # Rows of the teacher's head without a token are none of the student's ids.
        real = {i: logprob for i, logprob in entries.items() if i < student.vocab_size}
        whole = real or {token: -math.log(student.vocab_size)}
        padded = [*whole, *[next(iter(whole))] * (top + 1 - len(whole))]
        ids.append(padded)
        logprobs.append([whole[i] for i in padded])
        left = max(1.0 - math.fsum(math.exp(p) for p in whole.values()), torch.finfo(torch.float32).tiny)
        rest.append(math.log(left / max(student.vocab_size - len(whole), 1)))
    head = student.causal_lm.get_output_embeddings().weight
    device, dtype = student.device, torch.promote_types(head.dtype, torch.float32)
    return KnownHead(
        hidden_ND=torch.empty(len(targets), 0, dtype=dtype, device=device),
        weight_VD=torch.empty(head.shape[0], 0, dtype=dtype, device=device),
        bias_V=None,
        vocab_size=student.vocab_size,
        known_NK=torch.tensor(ids, device=device).reshape(len(targets), top + 1),
        logprobs_NK=torch.tensor(logprobs, dtype=dtype, device=device).reshape(len(targets), top + 1),
        rest_N=torch.tensor(rest, dtype=dtype, device=device),
    )


def _ask(servers: Servers, kind: Server, views: Sequence[View], role: str, *, top: int) -> list[list[dict[int, float]]]:
    """For every view and every token of its completion, the log-probabilities by id that its teacher gives."""

    def ask(view: View) -> list[dict[int, float]]:
        prompt = view.prompts[role]
        server = servers[prompt.teacher if isinstance(prompt, RoutedPrompt) else kind]
        rows = server.prompt_logprobs([*prompt, *view.ids_after(role)], top=top, begin=len(prompt))
        return [rows[place] for place in view.places(role)]

    with ThreadPoolExecutor(CONCURRENCY * len(kind.each)) as pool:
        found = []
        for rows in pool.map(ask, views):
            advance(0)
            found.append(rows)
        return found
