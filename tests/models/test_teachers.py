"""Teacher weights: which model answers behind each name, before and after the student moves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfdistill.config.sections import LoraConfig
from selfdistill.contexts.chat import Chat
from selfdistill.errors import ConfigError
from selfdistill.methods import build_method
from selfdistill.models.policy import Policy, load_weights, save_policy
from selfdistill.models.teachers import Teachers
from selfdistill.scoring.batching import collate
from selfdistill.types import Snapshot, View, Weights
from support.engine import load_exact, parameters, perturb, token_logprobs
from support.tiny import save_tiny_model

LORA = LoraConfig(rank=3, alpha=6)
PROMPT, COMPLETION = (3, 20, 21, 22, 2, 5), (30, 31, 7, 32, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), seed=5)


@pytest.fixture(params=[None, LORA], ids=["full", "lora"])
def student(request: pytest.FixtureRequest, folder: Path) -> tuple[Policy, Chat]:
    policy, chat = load_exact(folder, lora=request.param)
    if request.param is not None:
        perturb(policy, seed=7)  # a fresh adapter is the identity, which would hide which one is on
    return policy, chat


def scored(policy: Policy) -> Tensor:
    ones = (1.0,) * len(COMPLETION)
    view = View({"student": PROMPT}, COMPLETION, ones, ones, 0.0, 0, 0)
    return policy.score(collate([view], "student"), max_logits_per_chunk=1 << 20).target_N


def under(teachers: Teachers, kind: Weights) -> Tensor:
    with teachers.weights(kind) as policy:
        return scored(policy)


def by_hand(policy: Policy) -> Tensor:
    """Log-probabilities of the student by one plain forward of the transformers model."""
    return token_logprobs(policy.model, PROMPT, COMPLETION, policy.vocab_size)


def close(mine: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(mine, theirs, rtol=1e-12, atol=1e-12)


def test_live_is_the_student_wherever_it_goes(student: tuple[Policy, Chat]) -> None:
    policy, _ = student
    teachers = Teachers(policy, needed={"live"}, rate=0.0)
    before = under(teachers, "live")
    assert close(before, by_hand(policy))
    perturb(policy)
    after = under(teachers, "live")
    assert close(after, by_hand(policy))
    assert not close(after, before)


def test_frozen_never_moves(student: tuple[Policy, Chat], folder: Path) -> None:
    policy, _ = student
    teachers = Teachers(policy, needed={"frozen"}, rate=0.5)
    original, _ = load_exact(folder)
    base = by_hand(original)
    for seed in range(3):
        perturb(policy, seed=seed)
        teachers.update()
        assert close(under(teachers, "frozen"), base)
        assert not close(scored(policy), base)


def test_the_average_starts_as_the_student(student: tuple[Policy, Chat]) -> None:
    policy, _ = student
    teachers = Teachers(policy, needed={"ema"}, rate=0.25)
    start = by_hand(policy)
    assert close(under(teachers, "ema"), start)
    perturb(policy)
    assert close(under(teachers, "ema"), start)
    assert not close(scored(policy), start)


def test_the_average_follows_the_student_by_its_rule(student: tuple[Policy, Chat]) -> None:
    """θ' ← (1−η)θ' + ηθ with η = 1/4 from 0 along 4, 8, 8: 1, 2.75, 4.0625, in numbers exact in binary."""
    policy, _ = student
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.zero_()
    teachers = Teachers(policy, needed={"ema"}, rate=0.25)
    seen = []
    for value in (4.0, 8.0, 8.0):
        with torch.no_grad():
            for parameter in policy.trainable():
                parameter.fill_(value)
        teachers.update()
        averages = teachers.state_dict()
        assert len(averages) == len(policy.trainable())
        seen.append({float(number) for values in averages.values() for number in values.unique()})
    assert seen == [{1.0}, {2.75}, {4.0625}]


def test_the_model_behind_the_average_is_the_averaged_model(folder: Path) -> None:
    policy, _ = load_exact(folder)
    start = parameters(policy.model)
    teachers = Teachers(policy, needed={"ema"}, rate=0.3)
    perturb(policy)
    teachers.update()
    averaged = copy.deepcopy(policy)
    with torch.no_grad():
        for name, parameter in averaged.model.named_parameters():
            parameter.copy_(0.7 * start[name] + 0.3 * parameter)
    assert close(under(teachers, "ema"), by_hand(averaged))


def test_the_averaged_adapter_is_the_average_of_both_factors(folder: Path) -> None:
    policy, _ = load_exact(folder, lora=LORA)
    perturb(policy, seed=7)
    start = {name: values for name, values in parameters(policy.model).items() if ".default." in name}
    teachers = Teachers(policy, needed={"ema"}, rate=0.3)
    perturb(policy)
    teachers.update()
    averaged, _ = load_exact(folder, lora=LORA)
    students = parameters(policy.model)
    with torch.no_grad():
        for name, parameter in averaged.model.named_parameters():
            if name in start:
                parameter.copy_(0.7 * start[name] + 0.3 * students[name])
    assert close(under(teachers, "ema"), by_hand(averaged))


def test_a_snapshot_is_the_student_of_the_last_step_that_its_period_divides(student: tuple[Policy, Chat]) -> None:
    policy, _ = student
    kind = Snapshot(every=2)
    teachers = Teachers(policy, needed={kind, "ema"}, rate=0.5)
    expected = by_hand(policy)
    for step in range(1, 6):
        assert close(under(teachers, kind), expected)
        perturb(policy, seed=step)
        teachers.update()
        teachers.take_snapshots(step)
        if step % 2 == 0:
            expected = by_hand(policy)
    assert close(under(teachers, kind), expected)
    assert not close(under(teachers, "live"), expected)
    assert not close(under(teachers, "ema"), expected)
    # A checkpoint holds it beside the average.
    saved = {name: values.clone() for name, values in teachers.state_dict().items()}
    perturb(policy, seed=9)
    teachers.take_snapshots(6)
    assert not close(under(teachers, kind), expected)
    teachers.load_state_dict(saved)
    assert close(under(teachers, kind), expected)


def test_a_snapshot_of_no_period_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weights.*every 1 or more steps, not every 0"):
        build_method("sdpo", {"weights": {"kind": "snapshot", "every": 0}})


def test_a_teacher_that_was_asked_leaves_the_student_as_it_was(student: tuple[Policy, Chat]) -> None:
    policy, _ = student
    teachers = Teachers(policy, needed={"live", "frozen", "ema"}, rate=0.5)
    trained = [id(parameter) for parameter in policy.trainable()]
    needs = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    perturb(policy)
    before, values = scored(policy), parameters(policy.model)
    kinds: tuple[Weights, ...] = ("live", "frozen", "ema", "frozen", "ema")
    for kind in kinds:
        with teachers.weights(kind) as teacher:
            assert not torch.is_grad_enabled()
            scored(teacher)
        assert torch.is_grad_enabled()
    assert [id(parameter) for parameter in policy.trainable()] == trained
    assert {name: parameter.requires_grad for name, parameter in policy.named_parameters()} == needs
    assert torch.equal(scored(policy), before)
    assert same(parameters(policy.model), values)
    assert not any("ema" in name for name, parameter in policy.named_parameters() if parameter.requires_grad)


def test_a_teacher_whose_scoring_fails_still_gives_the_student_back(folder: Path) -> None:
    policy, _ = load_exact(folder, lora=LORA)
    perturb(policy, seed=7)
    teachers = Teachers(policy, needed={"frozen", "ema"}, rate=0.5)
    perturb(policy)
    before = scored(policy)
    kinds: tuple[Weights, ...] = ("frozen", "ema")
    for kind in kinds:
        with pytest.raises(RuntimeError, match="in the middle"), teachers.weights(kind):
            raise RuntimeError("in the middle")
        assert torch.equal(scored(policy), before)


def test_making_an_averaged_adapter_leaves_the_students_alone(folder: Path) -> None:
    policy, _ = load_exact(folder, lora=LORA)
    perturb(policy, seed=7)
    before, trained = parameters(policy.model), [id(parameter) for parameter in policy.trainable()]
    Teachers(policy, needed={"ema"}, rate=0.5)
    after = parameters(policy.model)
    assert same({name: after[name] for name in before}, before)
    assert [id(parameter) for parameter in policy.trainable()] == trained


def test_updates_of_the_average_leave_the_student_alone(student: tuple[Policy, Chat]) -> None:
    policy, _ = student
    teachers = Teachers(policy, needed={"ema"}, rate=0.5)
    perturb(policy)
    before = scored(policy)
    teachers.update()
    assert torch.equal(scored(policy), before)


def test_saved_and_loaded_an_average_goes_on_where_it_was(
    student: tuple[Policy, Chat], folder: Path, tmp_path: Path
) -> None:
    policy, chat = student
    teachers = Teachers(policy, needed={"ema"}, rate=0.3)
    perturb(policy)
    teachers.update()
    save_policy(policy, chat, tmp_path / "model")
    torch.save(teachers.state_dict(), tmp_path / "teachers.pt")
    lora = LORA if policy.is_lora else None
    other, _ = load_exact(folder, lora=lora)
    resumed = Teachers(other, needed={"ema"}, rate=0.3)
    load_weights(other, tmp_path / "model")
    resumed.load_state_dict(torch.load(tmp_path / "teachers.pt", weights_only=True))
    for one, two in ((policy, teachers), (other, resumed)):
        perturb(one, seed=11)
        two.update()
    assert torch.equal(scored(other), scored(policy))
    assert torch.equal(under(resumed, "ema"), under(teachers, "ema"))
    assert same(resumed.state_dict(), teachers.state_dict())


def test_only_what_is_asked_for_is_copied(folder: Path) -> None:
    policy, _ = load_exact(folder)
    teachers = Teachers(policy, needed={"live"}, rate=0.0)
    assert teachers.copies == {}
    assert teachers.state_dict() == {}


def same(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)
