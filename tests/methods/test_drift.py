"""u under frozen or averaged weights: the pMI of the context, and how far the weights have moved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from selfdistill.contexts.templates import Template, load_templates
from support.engine import CONTEXTS, distance, invent_groups, load_exact, make_bench, numbers_of, perturb
from support.tiny import save_tiny_model


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Template]:
    path = tmp_path_factory.mktemp("contexts") / "own.toml"
    path.write_text(CONTEXTS, encoding="utf-8")
    return load_templates(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=3)


@pytest.mark.parametrize("name", ["opsd", "sdft", "sdpo", "credit"])
@pytest.mark.parametrize("weights", ["frozen", "ema", "live"])
def test_u_is_pmi_and_drift(name: str, weights: str, folder: Path, templates: Mapping[str, Template]) -> None:
    values, gradients = [], []
    for split in (True, False):
        policy, chat = load_exact(folder)
        bench = make_bench(policy, chat, templates, name, {"weights": weights, "weight_drift": split})
        perturb(policy, seed=5)
        groups = invent_groups(policy, chat)
        result = bench.step(groups)
        values.append((numbers_of(result.record), result.record.roles["teacher"]))
        gradients.append(bench.gradient())
    (parts, teacher), (whole, _) = values
    assert teacher.u is not None
    u = teacher.u / teacher.tokens
    assert parts["pmi"] + parts["weight_drift"] == pytest.approx(u, rel=1e-9)
    # The student itself has not drifted; older weights have.
    assert (abs(parts["weight_drift"]) < 1e-12) == (weights == "live")
    assert abs(parts["pmi"]) > 1e-6
    # It is measured and nothing else: the loss is the same.
    assert "weight_drift" not in whole
    assert distance(*gradients) < 1e-12 and torch.isfinite(torch.tensor(parts["pmi"]))
