"""Distributions on a few ids, with one tail bin for all others.

Axis letters: ``N`` scored tokens, ``K`` ids of the support.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selfdistill.objectives._checks import check_logprobs


def with_tail(logprobs_NK: Tensor) -> Tensor:
    """The K log-probabilities and, as a last bin, log(1 − Σ_K p).

    The K+1 bins are a distribution, so a divergence on them never exceeds the one on the vocabulary, grows with K, and
    equals it at K = V − 1 (SDPO, arXiv 2601.20802). Takes N×K, float32 or float64, returns N×(K+1); gradient flows.

    Our choice: the tail is never below log(eps) of the type, −15.9 in float32. Log-probabilities of that type carry
    an error of about eps where the mass is near one, so a smaller tail would be rounding noise; and a support that
    holds all the mass would have a tail of zero, whose logarithm poisons value and gradient. At the floor the tail
    is constant.
    """
    check_logprobs(logprobs_NK)
    nothing_N1 = (logprobs_NK == -math.inf).all(-1, keepdim=True)
    # A support without any mass has the constant tail log(1) = 0; logsumexp has no gradient there.
    mass_N1 = torch.logsumexp(logprobs_NK.masked_fill(nothing_N1, 0.0), -1, keepdim=True)
    mass_N1 = mass_N1.clamp(max=-torch.finfo(logprobs_NK.dtype).eps)
    tail_N1 = log1mexp(mass_N1).masked_fill(nothing_N1, 0.0)
    return torch.cat([logprobs_NK, tail_N1], -1)


def log1mexp(logprobs: Tensor) -> Tensor:
    """log(1 − exp(x)) for x < 0, accurate at both ends: the log-probability of "not that".

    Any shape, elementwise; x = 0 gives −inf. Splits at −ln 2, after Mächler, "Accurately computing log(1 − exp(−|a|))"
    (2012). The far branch must not see inputs near 0: through a plain ``where`` its infinite slope there would come
    back as 0 · inf. The near branch is finite everywhere.
    """
    near = logprobs > -math.log(2.0)
    from_near = torch.log(-torch.expm1(logprobs))
    from_far = torch.log1p(-torch.exp(logprobs.masked_fill(near, -math.log(2.0))))
    return torch.where(near, from_near, from_far)
