"""A sample is scored under the very prompt that drew it, and a context that no one can know then draws nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfdistill.contexts.chat import Chat
from selfdistill.errors import ConfigError
from selfdistill.methods import METHODS, build_method
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import HFSampler
from selfdistill.training.build import Parts, assemble
from selfdistill.training.trainer import StepResult, Trainer
from selfdistill.types import Completion, RolloutGroup, View
from support.fake_vllm import FakeVLLM, serving
from support.runs import lines, open_run, outcome, recorder, tiny_run, train
from support.tiny import TEMPLATE, save_tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("no_page")

DRAWING = sorted(
    name for name, kind in METHODS.items() if tuple(kind.model_validate({}).sampling_roles()) != ("student",)
)
COACHED, NAMELESS = "support.methods:Coached", "support.methods:Nameless"
SHORT = "sampling.max_tokens=4"
FAILS = "reward=support.rewards:never"
"""So that a role draws which samples only where the student has failed."""
SWITCHED = TEMPLATE.replace(
    "'<|assistant|> <think> '",
    "'<|assistant|> ' + ('<think> </think> ' if enable_thinking is defined and not enable_thinking else '<think> ')",
)


def with_template(folder: Path, template: str) -> Path:
    save_tiny_model(folder, num_hidden_layers=1)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, ...]]:
    """The prompt under which each completion was drawn, by the identity of its ids."""
    found: dict[int, tuple[int, ...]] = {}
    plain = HFSampler.sample

    def sample(self: HFSampler, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[Completion]]:
        rows = plain(self, prompts, params)
        found.update({id(one.ids): tuple(ids) for ids, row in zip(prompts, rows, strict=True) for one in row})
        return rows

    monkeypatch.setattr(HFSampler, "sample", sample)
    return found


def each_day_another(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the template show another date at every rendering, as Llama's and gpt-oss's do once a day."""
    plain = chat.tokenizer.apply_chat_template
    days = iter(range(10_000))

    def dated(turns: Sequence[dict[str, str]], **how: Any) -> str:
        return f"the numbers {next(days) % 41} : {plain(turns, **how)}"

    monkeypatch.setattr(chat.tokenizer, "apply_chat_template", dated)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rendered prompt is remembered."""
    monkeypatch.setattr("selfdistill.contexts.chat.REMEMBERED", 0)


def views_of(parts: Parts) -> tuple[list[RolloutGroup], list[View]]:
    groups = parts.worker.rollout(parts.examples[:4], seed=7, version=0, count=4)
    return groups, parts.trainer.prepare(groups, step=1).views


def check(groups: Sequence[RolloutGroup], views: Sequence[View], drawn: Mapping[int, tuple[int, ...]]) -> set[str]:
    """Every view is scored for its source under what drew it, and one prompt a role serves a group; the sources."""
    assert views
    per_group: dict[tuple[int, str], set[tuple[int, ...]]] = {}
    for view in views:
        rollout = groups[view.group].rollouts[view.index]
        assert view.prompts[view.source] == drawn[id(rollout.completion_ids)]
        for name in {"student", *(r.source for r in groups[view.group].rollouts)}:
            per_group.setdefault((view.group, name), set()).add(view.prompts[name])
    assert {len(prompts) for prompts in per_group.values()} == {1}
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert all((one.role_prompt_ids or one.prompt_ids) == drawn[id(one.completion_ids)] for one in rollouts)
    return {rollout.source for rollout in rollouts}


@pytest.mark.parametrize("context", ["student", "solution", "reference_only", "answer_only"])
@pytest.mark.parametrize("name", [*DRAWING, COACHED])
def test_every_sample_is_scored_under_the_prompt_that_drew_it(
    name: str, context: str, model: Path, drawn: dict[int, tuple[int, ...]]
) -> None:
    parts = assemble(tiny_run(model, {"name": name, "context": context}, FAILS))
    assert check(*views_of(parts), drawn) == set(parts.method.sampling_roles())


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("name", [*DRAWING, COACHED])
def test_also_with_a_switch_for_thinking_and_a_template_that_shows_the_date(
    name: str, tmp_path: Path, drawn: dict[int, tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_template(tmp_path / "model", SWITCHED)
    parts = assemble(tiny_run(folder, {"name": name, "teacher_thinking": True}, "sampling.thinking=false", FAILS))
    each_day_another(parts.chat, monkeypatch)
    groups, views = views_of(parts)
    assert check(groups, views, drawn) == set(parts.method.sampling_roles())
    ends = {role: parts.chat.tokenizer.decode(views[0].prompts[role][-2:]) for role in ("student", "teacher")}
    assert ends["student"] == "<think> </think>"
    assert ends["teacher"] == "<|assistant|> <think>"


@pytest.mark.parametrize("name", DRAWING)
def test_a_field_that_the_data_has_is_not_replaced_by_the_groups_own(
    name: str, model: Path, tmp_path: Path, drawn: dict[int, tuple[int, ...]]
) -> None:
    rows = [{"question": f"make {n}", "answer": str(n), "other": f"{n} = {n}"} for n in range(1, 12)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    table = {"kind": "math", "path": str(path), "suffix": "", "answer": "answer", "fields": {"sibling": "other"}}
    config = tiny_run(model, {"name": name, "context": "sibling"}).model_dump(exclude={"task"}, exclude_none=True)
    config = {**config, "contexts": "countdown", "task": {**table, "prompt": "question"}}
    parts = assemble(type(tiny_run(model)).model_validate(config))
    groups, views = views_of(parts)
    assert any(verdict.correct for group in groups for verdict in group.verdicts), "the groups have siblings too"
    check(groups, views, drawn)
    for view in views:
        shown = groups[view.group].example.fields["sibling"]
        assert f"another attempt was correct : {shown} ." in parts.chat.tokenizer.decode(view.prompts["teacher"])


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("overlap", ["false", "true"])
@pytest.mark.parametrize("name", ["grpo", "pbsd"])
def test_what_an_engine_drew_is_scored_under_what_it_was_asked(
    name: str, overlap: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(fake := FakeVLLM()):
        sampler = ("sampler.kind=server", f"sampler.urls=['{fake.url}']", f"sampler.overlap={overlap}", SHORT)
        run = open_run(tiny_run(model, name, *sampler), tmp_path)
        each_day_another(run.parts.chat, monkeypatch)
        seen: list[RolloutGroup] = []
        plain = Trainer.step

        def step(self: Trainer, groups: Sequence[RolloutGroup], **how: Any) -> StepResult:
            seen.extend(groups)
            return plain(self, groups, **how)

        monkeypatch.setattr(Trainer, "step", step)
        run.train(recorder(run).stop)
    asked = {tuple(body["token_ids"]) for body in fake.bodies}
    scored = {rollout.role_prompt_ids or rollout.prompt_ids for group in seen for rollout in group.rollouts}
    assert scored < asked, "beside them the prompts of evaluations"


def test_what_was_drawn_ahead_keeps_its_prompts_through_a_resume(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(fake := FakeVLLM()):
        sampler = ("sampler.kind=server", f"sampler.urls=['{fake.url}']", "sampler.overlap=true", SHORT)
        config = tiny_run(model, "pbsd", *sampler)
        train(config, tmp_path / "whole")
        train(config, tmp_path / "run", stop_after=2)
        stored = json.loads((tmp_path / "run" / "checkpoints" / "step-000002" / "pending.json").read_text())
        run = open_run(config, tmp_path / "run", resume=True)
        assert run.parts.prefetcher is not None
        pending = run.parts.prefetcher.pending
        assert pending is not None
        assert [list(ids) for ids in pending.prompts] == stored["prompts"]
        assert {tuple(ids) for ids in stored["prompts"]} <= {tuple(body["token_ids"]) for body in fake.bodies}
        run.train(recorder(run).stop)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    rollouts = lines(tmp_path / "run" / "rollouts.jsonl")
    assert rollouts == lines(tmp_path / "whole" / "rollouts.jsonl")
    versions = {(rollout["step"], rollout["policy_version"]) for rollout in rollouts}
    assert versions == {(1, 0), (2, 0), (3, 1), (4, 2), (5, 3)}, "one version a step, of the teacher's rollouts too"


# --- what is refused -------------------------------------------------------------------------------------------------

OWN = """
[first_the_data]
first_of = ["solution", "sibling"]
[solution]
text = "$question $solution"
[sibling]
text = "$question $sibling"
[solution_verdict]
text = "$question $solution $verdict"
"""
LATE = {
    "sibling": "sibling",
    "sibling_or_solution": "sibling",
    "feedback": "feedback",
    "sibling_or_feedback": "sibling",
    "solution_verdict": "verdict",
    "sibling_verdict": "sibling",
    "sibling_or_solution_verdict": "sibling",
    "other_question": "other_question",
    "other_question_bare": "other_question",
    "wrong_sibling": "wrong_sibling",
}


def sentence(name: str, context: str, field: str) -> str:
    return (
        f"method {name!r} samples completions from its role 'teacher', whose context {context!r} may show ${field}, "
        "which is not known before a step is sampled: name a context that shows fields of the example alone, "
        "such as $solution"
    )


@pytest.mark.parametrize(("context", "field"), LATE.items())
@pytest.mark.parametrize("name", [*DRAWING, COACHED])
def test_a_context_of_hindsight_is_refused_as_a_source_before_anything_is_loaded(
    name: str, context: str, field: str
) -> None:
    config = tiny_run(Path("no such model"), {"name": name, "context": context})
    with pytest.raises(ConfigError) as error:
        assemble(config)
    assert str(error.value) == sentence(name, context, field)


@pytest.mark.parametrize("name", [*DRAWING, COACHED])
def test_so_is_a_choice_of_ones_own_that_comes_to_it_only_where_the_data_lack_something(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN, encoding="utf-8")
    config = tiny_run(Path("no such model"), {"name": name, "context": "first_the_data"}, f"contexts='{path}'")
    with pytest.raises(ConfigError) as error:
        assemble(config)
    assert str(error.value) == sentence(name, "first_the_data", "sibling")


def test_a_rollout_worker_of_ones_own_refuses_it_before_it_samples(
    model: Path, drawn: dict[int, tuple[int, ...]]
) -> None:
    parts = assemble(tiny_run(model, "pbsd"))
    method = build_method("pbsd", {"context": "sibling_or_solution"})
    with pytest.raises(ConfigError) as error:
        replace(parts.worker, method=method).rollout(parts.examples[:2], seed=0, version=0)
    assert str(error.value) == sentence("PBSD", "sibling_or_solution", "sibling")
    assert not drawn


def test_a_source_that_is_no_role_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        assemble(tiny_run(Path("no such model"), NAMELESS))
    assert str(error.value) == (
        f"method {NAMELESS!r} lets 'coach' sample completions, which is none of its roles: student, teacher"
    )


def test_contexts_of_hindsight_stay_where_nobody_draws_from_them(model: Path) -> None:
    for name, kind in METHODS.items():
        method = kind.model_validate({})
        if kind.on_policy and tuple(method.sampling_roles()) == ("student",) and "context" in kind.model_fields:
            assemble(tiny_run(model, {"name": name, "context": "sibling_or_solution"}))
