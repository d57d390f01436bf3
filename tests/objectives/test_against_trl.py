"""Divergences against another implementation, where it is installed (``make bench`` installs it)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfdistill.objectives import forward_kl, jensen_shannon, reverse_kl

gkd: Any = pytest.importorskip("trl.experimental.gkd.gkd_trainer", reason="TRL is not installed", exc_type=ImportError)


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_value_and_gradient_are_those_of_trls_generalised_jensen_shannon(weight: float) -> None:
    """TRL's ends 0 and 1 are the two KLs, which have names of their own here."""
    generator = torch.Generator().manual_seed(0)
    teacher_NV = 2 * torch.randn(50, 40, dtype=torch.float64, generator=generator)
    start_NV = 2 * torch.randn(50, 40, dtype=torch.float64, generator=generator)
    mine_NV, theirs_NV = start_NV.clone().requires_grad_(), start_NV.clone().requires_grad_()
    student, teacher = mine_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    if weight in (0.0, 1.0):
        mine = (forward_kl if weight == 0.0 else reverse_kl)(student, teacher).sum()
    else:
        mine = jensen_shannon(student, teacher, teacher_weight=weight).sum()
    theirs = gkd.GKDTrainer.generalized_jsd_loss(theirs_NV[None], teacher_NV[None], beta=weight, reduction="sum")
    assert float(mine.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    mine.backward()
    theirs.backward()
    assert mine_NV.grad is not None and theirs_NV.grad is not None
    torch.testing.assert_close(mine_NV.grad, theirs_NV.grad, rtol=1e-9, atol=1e-12)
