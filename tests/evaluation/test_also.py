"""What is evaluated beside a run's task, against numbers worked out by brute force or by hand."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from selfdistill.api.evaluation import evaluate
from selfdistill.config.evaluation import General
from selfdistill.config.run import lasting, parse_config
from selfdistill.config.sections import limits_on
from selfdistill.contexts.chat import Chat
from selfdistill.errors import ConfigError, DataError, UserError
from selfdistill.evaluation.also import values_of
from selfdistill.evaluation.general import GeneralScorer, GeneralSet, load_general
from selfdistill.evaluation.statistics import paired_difference
from selfdistill.models.policy import Policy
from selfdistill.models.teachers import Teachers
from selfdistill.report.numbers import plain
from selfdistill.tracking.progress import Progress
from selfdistill.tracking.trackers import evaluation_numbers
from selfdistill.types import Message
from support.bytewise import save_bytewise_model
from support.engine import load_exact
from support.pages import Page
from support.runs import LORA, lines, open_run, outcome, tiny_run, train
from support.tiny import save_tiny_model

TEXTS = ("try 3 + 4 = 7 . wait", "let me use the numbers 1 2 5 to make 8", "9")
PROMPTS = (("use 3 4 to make 12 .", "3 × 4"), ("make 9 .", "answer 9 . yes"), ("hmm", "perhaps not"))
SOME = GeneralSet(PROMPTS, TEXTS)


def logprobs(policy: Policy, ids: tuple[int, ...]) -> torch.Tensor:
    """The model's own log-probabilities [L, V] after each of these ids, real entries of the vocabulary alone."""
    with torch.no_grad():
        logits: torch.Tensor = policy.causal_lm(torch.tensor([ids])).logits[0, :, : policy.vocab_size]
    return logits.double().log_softmax(-1)


def moved(policy: Policy, *, by: float = 0.05) -> None:
    """Add noise to all weights."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.trainable():
            weight.add_(by * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def scorer(policy: Policy, chat: Chat, chosen: GeneralSet = SOME, *, tokens: int = 64) -> GeneralScorer:
    limits = limits_on("cpu").model_copy(update={"max_tokens_per_microbatch": tokens})
    teachers = Teachers(policy, needed={"frozen"}, rate=0.0)
    return GeneralScorer(chosen=chosen, teachers=teachers, start="frozen", chat=chat, limits=limits, thinking=None)


def test_perplexity_and_divergence_by_brute_force(model: Path) -> None:
    policy, chat = load_exact(model)
    start, _ = load_exact(model)
    asked = scorer(policy, chat)
    moved(policy)
    found = asked.measure()

    # The one word of the third text has nothing before it and nothing after: it cannot be scored.
    texts = [tuple(chat.tokenizer(text)["input_ids"]) for text in TEXTS[:2]]
    level = [
        math.fsum(float(logprobs(policy, ids)[at, ids[at + 1]]) for at in range(len(ids) - 1)) / (len(ids) - 1)
        for ids in texts
    ]
    assert found["each"]["loglikelihood"] == pytest.approx(level, abs=1e-6)
    assert found["loglikelihood"]["value"] == pytest.approx(sum(level) / 2, rel=1e-6)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(-sum(level) / 2), rel=1e-6)
    assert found["perplexity"]["low"] <= found["perplexity"]["value"] <= found["perplexity"]["high"]
    assert found["left_out"] == 1

    divergences = []
    for prompt, answer in PROMPTS:
        before, said = chat.encode((Message("user", prompt),)), chat.response(answer)
        then, now = (logprobs(one, (*before, *said)) for one in (start, policy))
        each = (then.exp() * (then - now)).sum(-1)[len(before) - 1 : -1]
        assert len(each) == len(said)
        divergences.append(float(each.mean()))
    assert found["each"]["kl"] == pytest.approx(divergences, rel=1e-5, abs=1e-6)
    assert min(divergences) > 1e-3
    assert found["kl"]["value"] == pytest.approx(sum(divergences) / 3, rel=1e-5)


def test_the_numbers_do_not_depend_on_how_the_work_is_cut(model: Path) -> None:
    policy, chat = load_exact(model)
    one, many = scorer(policy, chat, tokens=4096), scorer(policy, chat, tokens=8)
    moved(policy)
    whole, cut = one.measure(), many.measure()
    assert cut["each"]["kl"] == pytest.approx(whole["each"]["kl"], abs=1e-6)
    assert cut["each"]["loglikelihood"] == pytest.approx(whole["each"]["loglikelihood"], abs=1e-6)


def test_an_untrained_model_has_not_moved(model: Path) -> None:
    policy, chat = load_exact(model)
    assert scorer(policy, chat).measure()["kl"]["value"] == pytest.approx(0.0, abs=1e-12)


def test_a_prompt_that_does_not_fit_is_left_out_and_none_that_fit_are_refused(model: Path) -> None:
    policy, chat = load_exact(model)
    long = " ".join(["try"] * chat.window)
    found = scorer(policy, chat, GeneralSet((*PROMPTS, ("make 9 .", long)), (*TEXTS[:2], f"{long} try"))).measure()
    assert found["left_out"] == 2
    assert len(found["each"]["kl"]) == 3
    with pytest.raises(DataError, match=r"do not fit the window of .* leave 'general' out"):
        scorer(policy, chat, GeneralSet(((long, "9"), PROMPTS[0]), TEXTS)).measure()


def test_the_shipped_set_is_chosen_by_its_seed() -> None:
    whole, some, other = (load_general(General(size=size, seed=seed)) for size, seed in ((24, 0), (5, 0), (5, 1)))
    assert len(set(whole.texts)) == len({prompt for prompt, _ in whole.prompts}) == 24
    assert len(some.texts) == len(some.prompts) == 5
    assert set(some.texts) < set(whole.texts)
    assert some == load_general(General(size=5))
    assert len({one.fingerprint for one in (whole, some, other)}) == 3


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bytewise_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def also(tmp_path: Path) -> str:
    """Another task, rows that nothing judges and the general set, as an override."""
    rows = [{"prompt": f"{n}?", "completion": f"It is {n}."} for n in range(30)]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    other = "{ name = 'other', task = { kind = 'countdown', difficulty = 'easy' }, problems = 4, samples = 3 }"
    return f"evaluation.also=[{other}, {{ kind = 'text', path = '{path}' }}, {{ kind = 'general', size = 3 }}]"


@pytest.mark.parametrize("overrides", [(), LORA], ids=["all weights", "adapter"])
def test_a_run_measures_what_it_was_not_trained_on_and_resumes_exactly(
    tmp_path: Path, bytewise: Path, also: str, overrides: tuple[str, ...]
) -> None:
    config = tiny_run(bytewise, "grpo", also, *overrides)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    summary = train(config, whole)
    train(config, resumed, stop_after=3)
    train(config, resumed, resume=True)
    assert outcome(resumed) == outcome(whole)

    evaluations = lines(whole / "evaluations.jsonl")
    assert [row["step"] for row in evaluations] == [0, 2, 4, 5]
    for row in evaluations:
        assert [*row["also"]] == ["other", "text", "general"]
        assert (row["also"]["other"]["problems"], row["also"]["other"]["samples"]) == (4, 3)
        assert len(row["also"]["general"]["each"]["kl"]) == 3
        assert "hits" not in row["also"]["text"]
    first, last = evaluations[0]["also"], evaluations[-1]["also"]
    assert "change" not in first["general"]
    assert first["general"]["kl"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert last["general"]["kl"]["value"] > 1e-4

    # Each change is the paired difference since the start, of the numbers that both lines hold.
    assert [*last["other"]["change"], *last["text"]["change"]] == ["accuracy", "loglikelihood"]
    assert [*last["general"]["change"]] == ["loglikelihood", "kl"]
    for name, measures in {name: values_of(one) for name, one in last.items()}.items():
        for measure, values in measures.items():
            before = values_of(first[name])[measure]
            expected = paired_difference(before, values, k=1, seed=0)
            assert last[name]["change"][measure] == expected.as_dict()
    assert summary["before"]["also"] == first
    assert summary["after"]["also"] == last

    # The command finds the same numbers for the run's newest weights, whose start it loads again.
    found = evaluate(whole, split="validation", seed=config.seed, overrides={"seed": config.seed})["also"]
    assert found["general"]["each"]["kl"] == pytest.approx(last["general"]["each"]["kl"], abs=1e-5)
    assert found["text"]["each"]["loglikelihood"] == pytest.approx(last["text"]["each"]["loglikelihood"], abs=1e-5)
    assert found["other"]["problem_set"] == last["other"]["problem_set"]


def test_page_terminal_and_trackers_tell_of_it(tmp_path: Path, bytewise: Path, also: str) -> None:
    run = open_run(tiny_run(bytewise, "grpo", also, "steps=2"), tmp_path / "run")
    summary = run.train()
    last = lines(tmp_path / "run" / "evaluations.jsonl")[-1]["also"]["general"]
    change = last["change"]["kl"]
    page = Page(tmp_path / "run" / "report.html").text
    assert "What it was not trained on" in page
    assert (
        f"general KL from the start, nats a token 0 (no spread) "
        f"{shown(last['kl'])} +{plain(change['value'])} (+{plain(change['low'])} to +{plain(change['high'])})"
    ) in page
    for words in ("other accuracy", "text log-likelihood, nats a token", "general log-likelihood, nats a token"):
        assert words in page

    run.progress = Progress(Console(file=(said := io.StringIO()), width=200))
    run.progress.evaluation(2, summary["after"])
    [line] = [line for line in said.getvalue().splitlines() if "also general" in line]
    assert f"perplexity {last['perplexity']['value']:.3f}" in line
    assert f"KL(start ‖ now) a token {last['kl']['value']:.3f}" in line
    sent = evaluation_numbers({"also": {"general": last}})
    assert sent == {f"also/general/{key}": last[key]["value"] for key in ("loglikelihood", "perplexity", "kl")}


def shown(estimate: dict[str, float]) -> str:
    value, low, high = (plain(estimate[end]) for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["countdwn"], "evaluation.also: 'countdwn' is no task; did you mean 'countdown'?"),
        ([3], "evaluation.also: 3 names no kind of task; write 'general', a kind"),
        ([{"path": "rows.jsonl"}], "names no kind of task"),
        (["math"], "evaluation.also.0.task.path: field required"),
        ([{"kind": "math", "pth": "a"}], "unknown key 'evaluation.also.0.task.pth'; did you mean"),
        ([{"task": "toolbox", "problem": 3}], "unknown key 'evaluation.also.0.problem'; did you mean"),
        (
            [{"task": "toolbox", "problems": 0}],
            "evaluation.also.0.problems: input should be greater than or equal to 1",
        ),
        ([{"kind": "general", "size": 25}], "evaluation.also.0.size: input should be less than or equal to 24"),
        (["countdown", {"task": "countdown"}], "evaluation.also has two entries named 'countdown': give each a name"),
        ([{"preset": "gsm9k", "path": "a"}], "preset 'gsm9k' not found; did you mean 'gsm8k'?"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(entries: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"method": "grpo", "evaluation": {"also": entries}}, "here")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_written_reads_back_the_same_and_may_not_change_on_a_resume() -> None:
    also = ["countdown", "general", {"preset": "gsm8k", "path": "a"}, {"name": "x", "task": "toolbox", "samples": 2}]
    config = parse_config({"method": "grpo", "evaluation": {"also": also}}, "here")
    assert [entry.name for entry in config.evaluation.also] == ["countdown", "general", "math", "x"]
    assert parse_config(json.loads(config.model_dump_json()), "there") == config
    assert json.loads(json.dumps(lasting(config)["evaluation"]["also"])) == config.model_dump()["evaluation"]["also"]


def test_a_task_that_cannot_be_built_is_named(tmp_path: Path, bytewise: Path) -> None:
    absent = "evaluation.also=[{ kind = 'math', path = 'nowhere.jsonl' }]"
    with pytest.raises(UserError, match=r"^evaluation.also, math: .*nowhere.jsonl"):
        open_run(tiny_run(bytewise, "grpo", absent), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{n}?"}}\n' for n in range(30)), encoding="utf-8")
    silent = f"evaluation.also=[{{ name = 'mine', task = {{ kind = 'text', path = '{tmp_path}/rows.jsonl' }} }}]"
    with pytest.raises(UserError, match=r"^evaluation.also, mine: example .* has no solution to learn from"):
        open_run(tiny_run(bytewise, "grpo", silent), tmp_path / "run")


def test_a_window_too_small_for_the_general_texts_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    # One of the texts fits into this window, and so does the run's own task.
    small = save_tiny_model(tmp_path / "model", max_position_embeddings=23)
    also = "evaluation.also=[{ kind = 'general', name = 'mine' }]"
    with pytest.raises(DataError, match=r"^evaluation.also, mine: the general .* 23 tokens; leave 'general' out$"):
        open_run(tiny_run(small, "grpo", "sampling.max_tokens=8", also), tmp_path / "run")
    assert not (tmp_path / "run").exists()
