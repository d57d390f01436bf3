"""The Python API: the commands' own numbers, objects in the place of files, and one sentence for a mistake."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import selfdistill as sd
from selfdistill.cli.app import main
from support.rewards import even
from support.runs import as_toml, lines, metrics, outcome, tiny_run

QUESTIONS = [
    {"question": f"use the numbers {n} {n + 1} to make {2 * n + 1} .", "answer": str(2 * n + 1)} for n in range(12)
]


@pytest.fixture
def loaded(model: Path) -> tuple[sd.Policy, sd.Chat]:
    """The tiny model, as a notebook loads it."""
    return sd.load_policy(model)


@pytest.fixture
def config(model: Path, no_page: None) -> dict[str, Any]:
    """A run of five steps on the tiny model, as a dict."""
    return tiny_run(model).model_dump(exclude_none=True)


def command(*arguments: object) -> None:
    """A command that succeeds."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    assert not end.value.code


def refusal(call: Callable[[], object]) -> str:
    """The one sentence that a call is refused with."""
    with pytest.raises(sd.UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the same numbers as the commands --------------------------------------------------------------------------------


def test_train_writes_what_the_command_writes(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(as_toml(config), encoding="utf-8")
    command("train", tmp_path / "run.toml", "--set", "steps=3", "--set", "seed=2", "--out", tmp_path / "theirs")
    summary = sd.train(config, out=tmp_path / "mine", steps=3, overrides={"seed": 2})
    assert outcome(tmp_path / "mine") == outcome(tmp_path / "theirs")
    assert summary == json.loads((tmp_path / "mine" / "summary.json").read_text())
    assert summary.metrics() == lines(tmp_path / "mine" / "metrics.jsonl")
    assert summary.to_pandas()["step"].tolist() == [1, 2, 3]


def test_a_config_is_the_same_in_every_form(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(as_toml(config), encoding="utf-8")
    (tmp_path / "run.json").write_text(json.dumps(config), encoding="utf-8")
    before = json.dumps(config)
    forms: list[Any] = [tmp_path / "run.toml", str(tmp_path / "run.json"), config, sd.load_config(config)]
    made = [
        sd.load_config(form, {"optimiser.warmup": 1}, steps=7, sampling={"prompts": 2}, method={"name": "sd"})
        for form in forms
    ]
    assert all(one == made[0] for one in made)
    assert (made[0].steps, made[0].optimiser.warmup) == (7, 1)
    assert (made[0].sampling.prompts, made[0].sampling.completions) == (2, 3)  # merged into the table
    assert made[0].method == {"name": "sd"}  # another name: another table
    assert json.dumps(config) == before


def test_u_is_what_inspect_writes(loaded: tuple[sd.Policy, sd.Chat], model: Path, tmp_path: Path) -> None:
    policy, chat = loaded
    task = sd.load_task("countdown", difficulty="easy", train=8)
    groups = sd.rollout(policy, chat, task, task.examples("train")[:3], completions=2, max_tokens=12, seed=5)
    scores = sd.score(policy, chat, groups, contexts=["solution_verdict", "answer_only"], seed=5)
    options = ("--samples", 2, "--problems", 3, "--max-tokens", 12, "--seed", 5, "--methods", "")
    table = ("--set", "task.difficulty=easy", "--set", "task.train=8", "--contexts", "solution_verdict")
    command("inspect", model, "--task", "countdown", *options, *table, "--out", tmp_path / "look")

    import pandas

    written = pandas.read_parquet(tmp_path / "look" / "tokens.parquet")
    assert written["id"].tolist() == scores.to_pandas()["id"].tolist()
    for name in ("solution_verdict", "answer_only"):
        u = scores[name].logprobs - scores["student"].logprobs
        assert u.tolist() == written[f"u {name}"].tolist()
        assert torch.equal(u, scores.u(name))
    assert float(scores.u("solution_verdict").abs().max()) > 0.01

    asked: dict[str, Any] = {"samples": 2, "problems": 3, "max_tokens": 12, "seed": 5, "out": tmp_path / "mine"}
    seen = sd.inspect(loaded, task, methods=[], contexts=["solution_verdict"], **asked)
    pandas.testing.assert_frame_equal(seen.to_pandas(), written)
    assert seen.groups == groups
    assert seen.save(tmp_path / "again").read_bytes() == (tmp_path / "mine" / "index.html").read_bytes()
    assert (tmp_path / "mine" / "tokens.parquet").read_bytes() == (tmp_path / "look" / "tokens.parquet").read_bytes()


def test_evaluate_is_the_command(
    loaded: tuple[sd.Policy, sd.Chat], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("evaluate", model, "--task", "countdown", "--limit", 3, "--samples", 2, "--max-tokens", 8, "--json")
    theirs = json.loads(capsys.readouterr().out)
    assert sd.evaluate(model, "countdown", limit=3, samples=2, max_tokens=8) == theirs
    mine = sd.evaluate(loaded, sd.load_task("countdown"), limit=3, samples=2, max_tokens=8, reward=even)
    told = [example.id for example in sd.load_task("countdown").examples("test")[:3]]
    assert mine["problems"] == len(told) and mine["tokens"] == theirs["tokens"]
    assert mine["hits"] != theirs["hits"]  # the untrained model solves nothing, but some of its texts are even


def test_a_run_is_evaluated_with_its_own_task(config: dict[str, Any], tmp_path: Path) -> None:
    summary = sd.train(config, out=tmp_path / "run", steps=2)
    mine = sd.evaluate(tmp_path / "run", split="validation", limit=3, samples=2)
    assert mine["hits"] == summary["after"]["hits"]
    policy, chat = sd.load_policy(tmp_path / "run")
    assert sd.evaluate((policy, chat), "countdown", limit=1, samples=1, max_tokens=5)["problems"] == 1
    assert sd.save_policy(policy, chat, tmp_path / "saved") == tmp_path / "saved"
    again, _ = sd.load_policy(tmp_path / "saved")
    assert all(map(torch.equal, again.state_dict().values(), policy.state_dict().values()))


# --- objects in the place of files ----------------------------------------------------------------------------------


def rows_config(model: Path, **task: Any) -> dict[str, Any]:
    table = tiny_run(model).model_dump(exclude_none=True)
    return {**table, "task": {"kind": "math", "suffix": "", "validation_share": 0.25, "test_share": 0.0, **task}}


def test_rows_in_any_form_train_alike(model: Path, tmp_path: Path, no_page: None) -> None:
    import datasets

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    sd.train(rows_config(model, path=str(tmp_path / "rows.jsonl")), out=tmp_path / "file", steps=2)
    forms: dict[str, dict[str, Any]] = {
        "list": {"examples": QUESTIONS},
        "dataset": {"examples": datasets.Dataset.from_list(QUESTIONS)},
        "path": {"task": {"path": QUESTIONS}},
    }
    for name, form in forms.items():
        sd.train(rows_config(model), out=tmp_path / name, steps=2, **form)
        assert metrics(tmp_path / name) == metrics(tmp_path / "file"), name
    made = sd.load_task("math", path=QUESTIONS, suffix="", validation_share=0.25, test_share=0.0)
    sd.train(rows_config(model, path="none"), out=tmp_path / "task", steps=2, examples=made)
    sd.train(rows_config(model, path="none"), out=tmp_path / "object", steps=2, task=made)
    assert metrics(tmp_path / "task") == metrics(tmp_path / "object") == metrics(tmp_path / "file")
    # The run remembers which rows these were.
    said = refusal(
        lambda: sd.train(rows_config(model), out=tmp_path / "list", steps=3, examples=QUESTIONS[1:], resume=True)
    )
    assert "was made with another config: task.path was 'rows in memory, sha256 " in said
    assert "give that task again" in refusal(lambda: sd.evaluate(tmp_path / "object"))
    assert sd.evaluate(tmp_path / "object", made, split="validation", samples=1, max_tokens=4)["problems"] == 2


def test_chosen_examples_are_all_that_is_trained_on(config: dict[str, Any], tmp_path: Path) -> None:
    task = sd.load_task("countdown", difficulty="easy", train=8, validation=4, test=4)
    chosen = task.examples("train")[2:5]
    sd.train(config, out=tmp_path / "run", steps=2, examples=chosen)
    asked = {line["example"] for line in lines(tmp_path / "run" / "rollouts.jsonl")}
    assert asked == {example.id for example in chosen}


def test_a_reward_is_a_function(config: dict[str, Any], tmp_path: Path) -> None:
    seen: list[Mapping[str, Any]] = []

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        seen.append({"prompts": prompts, **columns})
        return even(prompts, completions)

    sd.train(config, out=tmp_path / "named", steps=2)
    config["reward"] = None
    sd.train(config, out=tmp_path / "own", steps=2, reward=reward)
    assert metrics(tmp_path / "own") == metrics(tmp_path / "named")
    assert seen[0]["prompts"][0].startswith("use the numbers")
    assert json.loads((tmp_path / "own" / "config.json").read_text())["reward"]["function"].endswith("<locals>.reward")


def test_a_callback_sees_every_step(config: dict[str, Any], tmp_path: Path) -> None:
    records: list[Any] = []
    summary = sd.train(config, out=tmp_path / "run", steps=3, on_step=records.append)
    assert [record.step for record in records] == [1, 2, 3]
    for record, line in zip(records, summary.metrics(), strict=True):
        assert record.values["reward"] == line["reward"] and record.values["loss"] == line["loss"]
        assert record.values["length"] == line["length"]
        assert sum(record.seconds.values()) == pytest.approx(line["seconds"], abs=1e-3)


def interrupt(record: Any) -> None:
    if record.step == 3:
        raise KeyboardInterrupt


def ctrl_c(record: Any) -> None:
    if record.step == 3:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("on_step", [interrupt, ctrl_c])
def test_an_interrupted_run_goes_on_bit_for_bit(
    config: dict[str, Any], tmp_path: Path, on_step: Callable[[Any], None], capfd: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        sd.train(config, out=tmp_path / "stopped", on_step=on_step, checkpoint={"every": 50})
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(lines(tmp_path / "stopped" / "metrics.jsonl")) == 3
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").glob("step-*")] == ["step-000003"]
    summary = sd.train(config, out=tmp_path / "stopped", resume=True, checkpoint={"every": 50})
    sd.train(config, out=tmp_path / "whole", checkpoint={"every": 50})
    assert summary["finished"]
    for name in ("metrics", "state", "weights", "training"):
        assert outcome(tmp_path / "stopped")[name] == outcome(tmp_path / "whole")[name], name
    assert capfd.readouterr() == ("", "")  # silent unless asked


def test_a_run_may_be_made_in_a_thread(config: dict[str, Any], tmp_path: Path) -> None:
    # Signals can be handled in the main thread alone.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(sd.train, config, out=tmp_path / "run", steps=1).result()["finished"]


def test_progress_speaks_when_asked(config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sd.train(config, out=tmp_path / "run", steps=1, progress=True)
    assert "page:" in capsys.readouterr().out


# --- completions and scores -----------------------------------------------------------------------------------------


def by_hand(policy: sd.Policy, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logits = policy.causal_lm(input_ids=ids).logits[0, len(prompt) - 1 : -1, : policy.vocab_size]
    logprobs: torch.Tensor = logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)
    return logprobs


def test_own_prompts_texts_and_contexts_are_scored(loaded: tuple[sd.Policy, sd.Chat]) -> None:
    policy, chat = loaded
    prompts: list[Any] = ["make 3", [{"role": "system", "content": "try"}, {"role": "user", "content": "make 5"}]]
    hint = "$question : the answer is not 7 ."
    table = sd.score(policy, chat, prompts, completions=["let me try", ["5", "now 4"]], contexts={"hint": hint})
    assert table.places == [(0, 0), (1, 0), (1, 1)]
    systems = [(), (sd.Message("system", "try"),), (sd.Message("system", "try"),)]
    asked = ["make 3", "make 5", "make 5"]
    for n, text in enumerate(["let me try", "5", "now 4"]):
        ids = chat.response(text)
        assert ids[-1] == chat.stop_ids[0] and chat.decode(ids) == text
        student = (*systems[n], sd.Message("user", asked[n]))
        teacher = (*systems[n], sd.Message("user", f"{asked[n]} : the answer is not 7 ."))
        for context, shown in (("student", student), ("hint", teacher)):
            expected = by_hand(policy, chat.encode(shown), ids)
            torch.testing.assert_close(table.split(table[context].logprobs)[n], expected, rtol=1e-4, atol=1e-5)
    assert not table.skipped and table.shown("hint") == [True] * 3


def test_a_skipped_context_is_seen(loaded: tuple[sd.Policy, sd.Chat]) -> None:
    policy, chat = loaded
    rows = [{"prompt": "make 3", "clue": "try 2"}, {"prompt": "make 5"}]
    table = sd.score(policy, chat, rows, completions=["1", "2"], contexts={"clued": "$question $clue", "no": "$absent"})
    assert table.skipped == {"context clued: no clue": 1, "context no: no absent": 2}
    assert table.shown("clued") == [True, False] and table.shown("no") == [False, False]
    assert table["no"].logprobs.isnan().all() and not table["student"].logprobs.isnan().any()
    assert "skipped: 2 × context no: no absent" in repr(table)
    assert list(table) == ["student", "clued", "no"] and "clued" in table and "other" not in table
    assert "'other' was not scored; there are: student, clued, no" in refusal(lambda: table["other"])


def test_rollout_takes_problems_in_any_form(loaded: tuple[sd.Policy, sd.Chat]) -> None:
    policy, chat = loaded
    task = sd.load_task("math", path=QUESTIONS, suffix="", validation_share=0.0, test_share=0.0)
    options: dict[str, Any] = {"completions": 2, "max_tokens": 6}
    of_task = sd.rollout(policy, chat, task, task, **options)
    assert len(of_task) == len(QUESTIONS) and of_task[0].contexts == "default"
    of_rows = sd.rollout(policy, chat, task, QUESTIONS, **options)
    of_texts = sd.rollout(policy, chat, None, [row["question"] for row in QUESTIONS], **options)
    ids = [[r.completion_ids for r in group.rollouts] for group in of_task]
    for groups in (of_rows, of_texts):
        assert [[r.completion_ids for r in group.rollouts] for group in groups] == ids
    assert of_rows[0].example.fields["answer"] == "1"
    assert [v.reward for v in of_rows[0].verdicts] == [v.reward for v in of_task[0].verdicts]
    assert of_texts[0].verdicts[0].reward is None
    judged = sd.rollout(policy, chat, None, ["make 3"], reward=even, **options)
    assert judged[0].verdicts[0].reward == float(len(judged[0].rollouts[0].text) % 2 == 0)

    prompt = chat.encode([sd.Message("user", "make 3")])
    scripted = sd.ScriptedSampler({prompt: [sd.Completion(chat.response("3"), (-1.0, -1.0), True)]})
    (group,) = sd.rollout(policy, chat, None, ["make 3"], completions=1, sampler=scripted)
    assert group.rollouts[0].text == "3"


def test_the_contexts_are_those_of_the_groups_own_task(loaded: tuple[sd.Policy, sd.Chat]) -> None:
    policy, chat = loaded
    task = sd.load_task("countdown", difficulty="easy")
    groups = sd.rollout(policy, chat, task, task.examples("train")[:1], completions=1, max_tokens=5)
    own = sd.score(policy, chat, groups, contexts=["solution"])
    named = sd.score(policy, chat, groups[:1], contexts=["solution"], templates="countdown")
    other = sd.score(policy, chat, groups, contexts=["solution"], templates=sd.load_templates("default"))
    assert torch.equal(own["solution"].logprobs, named["solution"].logprobs)
    assert not torch.equal(own["solution"].logprobs, other["solution"].logprobs)


def test_one_text_is_judged() -> None:
    task = sd.load_task("math", path=QUESTIONS, suffix="", validation_share=0.0, test_share=0.0)
    example = task.examples("train")[1]
    assert task.verify(example, r"\boxed{3}", finished=True) == sd.Verdict(1.0, "3")
    assert task.verify(example, r"\boxed{4}", finished=True).reward == 0.0


def test_a_method_object_is_inspected(loaded: tuple[sd.Policy, sd.Chat]) -> None:
    options: dict[str, Any] = {"problems": 2, "samples": 2, "max_tokens": 6}
    built: dict[str, Any] = {"plain": "sd", "strong": sd.build_method("sd", {"strength": 3.0})}
    look = sd.inspect(loaded, "countdown", methods=built, **options)
    named = sd.inspect(
        loaded, "countdown", methods=["plain=sd", "strong=sd"], overrides={"strong.strength": 3.0}, **options
    )
    assert look.to_pandas().equals(named.to_pandas())
    assert {"credit strong", "credit plain"} <= set(look.signals)
    assert look.summary["hyperparameters"]["strong"] == {"method": "sd", "hyperparameters": {"strength": 3.0}}


def test_a_loop_of_ones_own_has_the_trainers_step(loaded: tuple[sd.Policy, sd.Chat], model: Path) -> None:
    policy, chat = loaded
    task = sd.load_task("countdown", difficulty="easy")
    groups = sd.rollout(policy, chat, task, task.examples("train")[:2], completions=2, max_tokens=6, reward=even)
    method = sd.build_method("sdpo", {"teacher_rate": 0.5})
    optimiser = torch.optim.AdamW(policy.trainable(), lr=1.0)
    trainer = sd.Trainer(policy, None, method, sd.load_templates("countdown"), chat, optimiser, learning_rate=0.01)
    assert trainer.teachers.has_ema and trainer.teachers.rate == 0.5
    result = trainer.step(groups, step=1)
    assert optimiser.param_groups[0]["lr"] == 0.01
    assert result.record.values["learning_rate"] == 0.01 and math.isfinite(result.record.loss)
    before, _ = sd.load_policy(model)
    assert any(not torch.equal(a, b) for a, b in zip(policy.trainable(), before.trainable(), strict=True))
    external = sd.build_method("opsd", {"weights": {"kind": "external", "path": str(model)}})
    said = refusal(lambda: sd.Trainer(policy, None, external, {}, chat, optimiser, learning_rate=0.1))
    assert "is trained by train(…)" in said


# --- comparison and figures -----------------------------------------------------------------------------------------


def test_compare_gives_a_table(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(sd.__file__).parents[1]), str(Path(__file__).parents[1])])
    )
    arms = {name: tiny_run(model, name, "evaluation.every=1") for name in ("grpo", "sft")}
    found = sd.compare(arms, out=tmp_path / "c", steps=1, jobs=2, match="steps", final_split="test")
    frame = found.frame()
    assert frame.index.tolist() == ["grpo", "sft"] and frame["runs"].tolist() == [1, 1]
    stored = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert found.result == stored
    assert frame.loc["sft", "accuracy_final"] == stored["arms"][1]["accuracy"]["final"]["value"]
    assert math.isnan(frame.loc["grpo", "accuracy_against_baseline"])
    assert math.isnan(frame.loc["grpo", "accuracy_final_sd"])  # one seed
    assert (stored["match"], stored["verdict_split"]) == ("steps", "test")
    assert (tmp_path / "c" / "compare.html").is_file()


def test_figures_are_axes(loaded: tuple[sd.Policy, sd.Chat], tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    from selfdistill.api.figures import curves, intervals

    policy, chat = loaded
    table = sd.score(policy, chat, ["make 3"], completions=[["1 2", "3"]], contexts={"hint": "$question try"})
    axes = table.plot("hint", completion=0)
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(table.split(table.u("hint"))[0].tolist())
    assert axes.get_ylabel() == "u hint (nats)"
    own = pyplot.subplots()[1]
    assert curves([{"step": 1, "reward": 0.5}, {"step": 2, "reward": None}], ["reward"], ax=own) is own
    assert own.lines[0].get_ydata()[0] == 0.5 and math.isnan(own.lines[0].get_ydata()[1])
    look = sd.inspect(loaded, "countdown", methods=["sd"], problems=1, samples=2, max_tokens=6)
    axes = look.plot("credit sd", completion=1)
    second = look.to_pandas().query("completion == 1")
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(second["credit sd"].tolist(), rel=1e-6)
    assert "unknown signal 'credit'; there are: u " in refusal(lambda: look.plot("credit"))
    made = intervals(["a"], [{"value": 0.5, "low": 0.25, "high": 1.0}], "accuracy", ax=None)
    assert made.get_xlabel() == "accuracy"
    made.figure.savefig(tmp_path / "figure.png")
    pyplot.close("all")


# --- mistakes -------------------------------------------------------------------------------------------------------

CONFIG = "countdown-antisd"
WRONG: dict[str, tuple[Callable[[tuple[sd.Policy, sd.Chat]], object], str]] = {
    "config name": (lambda m: sd.train("countdown-antisdd", out="x"), "did you mean 'countdown-antisd' or "),
    "config type": (lambda m: sd.train(3, out="x"), "is a shipped name, a path, a RunConfig or a dict"),  # type: ignore[arg-type]
    "config key": (lambda m: sd.train(CONFIG, out="x", stepz=1), "unknown key 'stepz'; did you mean 'steps'?"),
    "key below": (lambda m: sd.load_config({"method": "sd", "model": {"pth": ""}}), "did you mean 'model.path'?"),
    "value": (lambda m: sd.train(CONFIG, out="x", steps="many"), "steps: input should be a valid integer"),
    "method": (lambda m: sd.train(CONFIG, out="x", method="antsd"), "did you mean 'antisd'?"),
    "hyperparameter": (
        lambda m: sd.train(CONFIG, out="x", overrides={"method.strenght": 1}),
        "did you mean 'strength'?",
    ),
    "overrides": (lambda m: sd.load_config(CONFIG, "steps=3"), "overrides are a list of 'a.b=value' texts"),
    "callback": (lambda m: sd.train(CONFIG, out="x", on_step=3), "on_step must be a function"),  # type: ignore[arg-type]
    "reward": (lambda m: sd.train(CONFIG, out="x", reward=3), "reward must be a function or"),  # type: ignore[arg-type]
    "no rows": (lambda m: sd.train(CONFIG, out="x", examples=QUESTIONS), "makes its own problems and reads no rows"),
    "splits": (lambda m: sd.train(CONFIG, out="x", examples={"train": []}), "has several splits (train)"),
    "task object": (lambda m: sd.train(CONFIG, out="x", task=object()), "is no task, for it has no 'name'"),
    "task kind": (lambda m: sd.load_task("countdwn"), "unknown kind 'countdwn'"),
    "task key": (lambda m: sd.load_task("math", path=QUESTIONS, anser="a"), "did you mean 'task.answer'?"),
    "row": (lambda m: sd.load_task("math", path=[{"question": "1"}]), "rows, line 1: no 'answer'"),
    "row type": (lambda m: sd.load_task("math", path=["text"]), "every row must be a dict of columns"),
    "nothing": (lambda m: sd.load_task(), "load_task needs a kind"),
    "model": (lambda m: sd.load_policy("countdown-bas"), "model 'countdown-bas' not found"),
    "dtype": (lambda m: sd.load_policy("countdown-base", dtype="float8"), "model.dtype: input should be 'float32'"),
    "device": (lambda m: sd.load_policy("countdown-base", device="warp"), "model.device 'warp' cannot be used here"),
    "lora": (lambda m: sd.load_policy("countdown-base", lora={"rnk": 3}), "did you mean 'model.lora.rank'?"),
    "swapped": (lambda m: sd.rollout(m[1], m[0], None, ["a"]), "policy must come from load_policy"),  # type: ignore[arg-type]
    "one text": (lambda m: sd.rollout(*m, None, "a"), "problems come as a list"),
    "prompt": (lambda m: sd.rollout(*m, None, [[{"text": "a"}]]), "prompt 1 is neither a text nor a list of messages"),
    "too long": (lambda m: sd.rollout(*m, None, ["1", "1 " * 300]), "1 of 2 prompts leave no room for"),
    "count": (lambda m: sd.rollout(*m, None, ["1"], completions=0), "completions must be a whole number of at least 1"),
    "top_p": (lambda m: sd.rollout(*m, None, ["1"], top_p=0), "top_p must be a number above 0"),
    "no groups": (lambda m: sd.score(*m, ["1"], contexts=[]), "prompts together with completions="),
    "too few": (lambda m: sd.score(*m, ["1", "2"], completions=["1"], contexts=[]), "each of the 2 prompts, got 1"),
    "context": (lambda m: sd.score(*m, ["1"], completions=["1"], contexts=["sol"]), "unknown context 'sol'; known: "),
    "context type": (lambda m: sd.score(*m, ["1"], completions=["1"], contexts="sol"), "write contexts=['sol']"),
    "stray dollar": (
        lambda m: sd.score(*m, ["1"], completions=["1"], contexts={"mine": "5 $"}),
        "[mine].text holds a stray '$'",
    ),
    "inspected": (lambda m: sd.inspect(m, "countdown", methods=["antsd"]), "did you mean 'antisd'?"),
    "inspect list": (lambda m: sd.inspect(m, "countdown", methods="antisd"), "write methods=['antisd']"),
    "inspect none": (lambda m: sd.inspect(m, "countdown", methods=[]), "Nothing to inspect"),
    "no task": (lambda m: sd.evaluate("countdown-base"), "add --task"),
    "pair": (lambda m: sd.evaluate(m[0], "countdown"), "the pair (policy, chat) from load_policy"),  # type: ignore[arg-type]
    "split": (lambda m: sd.evaluate(m, "countdown", split="tset"), "tset"),
    "seeds": (lambda m: sd.compare([CONFIG], out="x", seeds=[1, 1]), "different whole numbers"),
    "arms": (lambda m: sd.compare(CONFIG, out="x"), "configs are a list of names and paths"),
    "terms": (lambda m: sd.compare([CONFIG, "toolbox-grpo"], out="x"), "not on equal terms"),
    "sweep of one": (lambda m: sd.compare([CONFIG], out="x", sweep={"method.scale": [True]}), "two values or more"),
    "sweep twice": (
        lambda m: sd.compare([CONFIG], out="x", sweep={"a.b": [True, True]}),
        "names a value twice",
    ),
    "sweep's comma": (lambda m: sd.compare([CONFIG], out="x", sweep={"a": ["b,c", "d"]}), "sweep of a: b,c contains a"),
    "sweep's text": (lambda m: sd.compare([CONFIG], out="x", sweep={"a": "0.9,1"}), "sweep is a dict of keys to lists"),
    "sweep's number": (lambda m: sd.compare([CONFIG], out="x", sweep={"a": 1}), "sweep is a dict of keys to lists"),  # type: ignore[dict-item]
    "sweep's list": (lambda m: sd.compare([CONFIG], out="x", sweep=["a=1,2"]), "sweep is a dict of keys to lists"),  # type: ignore[arg-type]
    "sweep's None": (lambda m: sd.compare([CONFIG], out="x", sweep={"a": [None, 1]}), "a: None cannot be written"),
}


def test_a_comparison_in_a_folder_of_something_else_leaves_it_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("x")
    assert "is not empty and holds no comparison" in refusal(lambda: sd.compare({"a": CONFIG}, out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_sentence(
    name: str, loaded: tuple[sd.Policy, sd.Chat], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, sentence = WRONG[name]
    assert sentence in refusal(lambda: call(loaded))
    assert not list(tmp_path.iterdir())  # nothing is written before everything is known to be right
