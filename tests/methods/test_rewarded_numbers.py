"""CEPO, RLCSD and SRPO in numbers by hand: missing contexts, the bonus's bound, weights of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from selfdistill.methods import build_method
from selfdistill.methods.base import BatchScores
from selfdistill.methods.cepo import CEPO
from selfdistill.types import Scores, TokenSlice, View


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def view(*weights: float, reward: float = 0.0) -> View:
    n = len(weights)
    return View({"student": (1,)}, (5,) * n, weights, (0.0,) * n, 0.0, 0, 0, "student", reward)


def test_cepo_falls_back_wherever_either_answer_is_missing() -> None:
    student = torch.tensor([[0.5, 0.5]] * 4, dtype=torch.float64).log()
    inputs = {
        "teacher": numbers(0.8, 0.8, math.nan, math.nan).log(),
        "wrong": numbers(0.2, math.nan, 0.2, math.nan).log(),
    }
    tokens = TokenSlice(torch.zeros(4, dtype=torch.long), {"student": student}, inputs)
    assert CEPO().evidence(tokens).tolist() == pytest.approx([math.log(4), 0.0, 0.0, 0.0])
    instead = CEPO(without_wrong="student").evidence(tokens).tolist()
    assert instead == pytest.approx([math.log(4), math.log(0.8 / 0.5), 0.0, 0.0])


def test_rlcsds_bonus_is_bounded() -> None:
    right, wrong = (Scores(numbers(*said).log(), numbers(0.0, 0.0)) for said in ((0.9, 0.1), (0.1, 0.9)))
    method = build_method("rlcsd", {"contrasts": 1, "strength": 0.5, "bonus_clip": 0.3})
    found = method.on_batch(None, BatchScores({"teacher": [right], "wrong_0": [wrong]}, [view(1.0, 1.0)]))
    assert isinstance(bonus := found["bonus"], Sequence) and bonus[0].tolist() == [0.3, -0.3]


def test_srpos_weights_have_a_mean_of_1_by_the_weights_of_the_tokens() -> None:
    entropies = (numbers(0.0, math.log(2)), numbers(math.log(4)))
    scores: list[Scores | None] = [Scores(torch.zeros_like(entropy), entropy) for entropy in entropies]
    found = build_method("srpo", {}).on_batch(None, BatchScores({"teacher": scores}, [view(0.5, 0.5), view(1.0)]))
    assert isinstance(distil := found["distil"], Sequence)
    # exp(−H) is 1, ½ and ¼; their mean is (½ · 1 + ½ · ½ + 1 · ¼) / 2 = ½.
    assert [weight.tolist() for weight in distil] == [pytest.approx([2.0, 1.0]), pytest.approx([0.5])]
