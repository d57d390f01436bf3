"""The Jensen-Shannon divergence against Liger's fused one, where it is installed (``make bench`` installs it)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfdistill.models.head import HeadInput, LossInputs, sliced_loss
from selfdistill.objectives import jensen_shannon
from selfdistill.types import TokenSlice

liger: Any = pytest.importorskip("liger_kernel.chunked_loss", reason="Liger is not installed", exc_type=ImportError)


@pytest.mark.parametrize("teacher_weight", [0.1, 0.5, 0.9])
def test_sliced_loss_and_its_gradients_are_those_of_ligers_fused_linear_jsd(teacher_weight: float) -> None:
    """Liger's ``beta`` is the teacher's share of the mixture; hidden states and head weight get the same gradient."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND, theirs_ND = torch.randn(2, 37, 8, dtype=torch.float64, generator=generator)
    weight_VD, theirs_VD = torch.randn(2, 50, 8, dtype=torch.float64, generator=generator)
    target_N = torch.randint(50, (37,), generator=generator)
    ours = [hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()]
    others = [hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()]

    def loss_of(tokens: TokenSlice) -> torch.Tensor:
        return jensen_shannon(tokens.student, tokens.roles["teacher"], teacher_weight=teacher_weight)

    job = LossInputs(
        target_N,
        torch.full((37,), 1 / 37, dtype=torch.float64),
        loss_of,
        head_inputs={"teacher": HeadInput(theirs_ND, theirs_VD, None, 50)},
        max_logits_per_chunk=50 * 10,
    )
    mine = sliced_loss(HeadInput(ours[0], ours[1], None, 50), job).loss
    fused = liger.LigerFusedLinearJSDLoss(0.0, 1.0, beta=teacher_weight, compiled=False, chunk_size=10)
    expected = fused(others[0], others[1], theirs_ND, theirs_VD, target_N)
    # Liger adds its chunks up in float32, whatever it is given.
    torch.testing.assert_close(mine, expected, rtol=1e-6, atol=0, check_dtype=False)
    mine.backward()
    expected.backward()
    for one, other in zip(ours, others, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-9)
