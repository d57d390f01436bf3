"""Which teachers are made at all, and that every other model is given its place."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch

from selfdistill.config.sections import LoraConfig
from selfdistill.models.policy import Policy
from selfdistill.models.served import ServedModel
from selfdistill.models.teachers import Teachers, adapter_of
from selfdistill.types import External, Server, Snapshot, Weights
from support.engine import load_exact

OTHER = External(kind="external", path="elsewhere")


@pytest.mark.parametrize(
    ("needed", "made"),
    [
        ((), ()),
        (("live",), ()),
        (("frozen",), ("frozen",)),
        (("ema",), ("ema",)),
        (("ema", "frozen"), ("frozen", "ema")),
    ],
)
def test_a_full_student_is_copied_once_for_each_kind_that_is_needed(
    needed: tuple[Weights, ...], made: tuple[Weights, ...], model: Path
) -> None:
    policy, _ = load_exact(model)
    external, _ = load_exact(model)
    placed: list[Policy] = []
    teachers = Teachers(policy, needed={*needed, OTHER}, rate=0.5, external={OTHER: external}, place=placed.append)
    assert tuple(teachers.copies) == (OTHER, *made)
    assert placed == list(teachers.copies.values())
    assert placed[0] is external
    assert not any(parameter.requires_grad for copy in placed[1:] for parameter in copy.parameters())
    assert not any(copy.training for copy in placed[1:])
    with teachers.weights(OTHER) as found:
        assert found is external
    # Without a place to give, they stay where they are.
    assert tuple(Teachers(policy, needed=set(needed), rate=0.5).copies) == made


def test_models_behind_servers_are_known_by_their_declaration(model: Path) -> None:
    policy, _ = load_exact(model)
    assert Teachers(policy, needed=set(), rate=0.5).served == {}
    server, behind = Server("http://127.0.0.1:1"), cast(ServedModel, object())
    assert Teachers(policy, needed={server}, rate=0.5, served={server: behind}).served == {server: behind}


def test_adapters_have_the_names_of_whose_weights_they_are() -> None:
    kinds: tuple[Weights, ...] = ("live", "ema", Snapshot(10), Snapshot(3))
    assert [adapter_of(kind) for kind in kinds] == ["default", "ema", "snapshot10", "snapshot3"]


def test_a_snapshot_is_the_student_bit_for_bit(model: Path) -> None:
    policy, _ = load_exact(model)
    teachers = Teachers(policy, needed={Snapshot(2)}, rate=0.5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / 3)
    teachers.take_snapshots(2)
    copied = dict(teachers.copies[Snapshot(2)].model.named_parameters())
    assert all(torch.equal(copied[name], parameter) for name, parameter in policy.model.named_parameters())


@pytest.mark.parametrize("needed", [set(), {"frozen"}, {"ema"}], ids=str)
def test_an_adapter_is_averaged_only_where_that_is_asked(needed: set[Weights], model: Path) -> None:
    policy, _ = load_exact(model, lora=LoraConfig(rank=2, alpha=4))
    teachers = Teachers(policy, needed=needed, rate=0.5)
    names = [name for name, _ in policy.model.named_parameters() if ".ema." in name]
    assert bool(names) == ("ema" in needed)
    assert set(teachers.state_dict()) == set(names)
    # The student's adapter is the one that is on, and the one that learns.
    assert all(".default." in name for name, p in policy.model.named_parameters() if p.requires_grad)
    assert teachers.copies == {}


def test_all_are_released_and_all_must_pack(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = load_exact(model)
    teachers = Teachers(policy, needed={"frozen", "ema"}, rate=0.5)
    released: list[Policy] = []
    monkeypatch.setattr(Policy, "release", lambda self: released.append(self))
    teachers.release()
    assert released == [policy, *teachers.copies.values()]
    for one in released:
        one.packs = True
    assert teachers.pack
    for one in released:
        with monkeypatch.context() as patch:
            patch.setattr(one, "packs", False)
            assert not teachers.pack


def test_without_an_average_there_is_nothing_to_load(model: Path) -> None:
    policy, _ = load_exact(model)
    teachers = Teachers(policy, needed={"frozen"}, rate=0.5)
    before = [parameter.clone() for parameter in teachers.copies["frozen"].parameters()]
    teachers.load_state_dict({})
    assert all(map(torch.equal, before, teachers.copies["frozen"].parameters()))


def test_an_average_keeps_its_own_type(model: Path) -> None:
    policy, _ = load_exact(model)
    teachers = Teachers(policy, needed={"ema"}, rate=0.25)
    teachers.copies["ema"].float()
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.fill_(1.0)
        for parameter in teachers.copies["ema"].parameters():
            parameter.zero_()
    teachers.update()
    for average in teachers.state_dict().values():
        assert average.dtype == torch.float32
        assert average.unique().tolist() == [0.25]


def test_an_average_that_was_loaded_is_computed_with(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = load_exact(model)
    teachers = Teachers(policy, needed={"ema"}, rate=0.5)
    saved = {name: torch.full_like(values, 2.0) for name, values in teachers.state_dict().items()}
    seen: list[list[float]] = []
    monkeypatch.setattr(
        teachers.copies["ema"],
        "refresh",
        lambda: seen.append(next(iter(teachers.state_dict().values())).unique().tolist()),
    )
    teachers.load_state_dict(saved)
    assert seen == [[2.0]]


def test_no_weight_of_an_average_learns_whatever_it_is_kept_as(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = load_exact(model)
    # Behind bfloat16 weights that compute, others are kept.
    monkeypatch.setattr(Policy, "kept", lambda self: {})
    average = Teachers(policy, needed={"ema"}, rate=0.5).copies["ema"]
    assert not any(parameter.requires_grad for parameter in average.parameters())
