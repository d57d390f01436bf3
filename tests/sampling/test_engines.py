"""One engine for everything that samples: every command, every teacher's weights, evaluations and turns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import selfdistill as sd
from selfdistill.cli.app import main
from selfdistill.config.run import config_for
from selfdistill.config.sampler import ServerConfig, engine_overrides
from selfdistill.config.sections import LoraConfig
from selfdistill.contexts.chat import Chat
from selfdistill.errors import ConfigError
from selfdistill.models.policy import Policy, load_policy
from selfdistill.models.teachers import Teachers
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.engines import Engines, command_engines
from selfdistill.sampling.hf import policy_sampler
from selfdistill.sampling.memory import BatchSizeLimit
from selfdistill.sampling.server import ServerSampler
from selfdistill.training.problem import build_problem
from selfdistill.types import Snapshot, Weights
from support.fake_vllm import FakeVLLM, fresh_folder, serving
from support.runs import lines, tiny_run, train

pytestmark = pytest.mark.usefixtures("no_page")

PROMPTS = ([20, 21, 22], [30, 31, 9, 9, 9], [40])
GREEDY = SamplingParams(count=2, max_tokens=9, temperature=0.0)
EMA = 0.3


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    fake = FakeVLLM()
    with serving(fake):
        yield fake


def move(policy: Policy, seed: int) -> None:
    with torch.no_grad():
        for parameter in policy.trainable():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.add_(0.3 * noise)


def served(policy: Policy, chat: Chat, fake: FakeVLLM, folder: Path) -> Engines:
    config = ServerConfig(kind="server", urls=[fake.url], retries=0, wait=0.0)
    engine = ServerSampler(chat, config, folder=folder, log=print)
    return Engines(chat, BatchSizeLimit(8), engine=engine)


def ids(rows: list[list[Any]]) -> list[list[tuple[int, ...]]]:
    return [[one.ids for one in row] for row in rows]


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4)], ids=["all weights", "adapter"])
def test_each_teacher_samples_with_its_own_weights(
    lora: LoraConfig | None, model: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    fake.base = model
    policy, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"), lora=lora)
    if lora is None:
        move(policy, 0)
    kinds: list[Weights] = ["live", "frozen", "ema", Snapshot(2)]
    teachers = Teachers(policy, needed={"frozen", "ema", Snapshot(2)}, rate=EMA)
    engines = served(policy, chat, fake, tmp_path)
    seen: dict[tuple[int, int], list[list[tuple[int, ...]]]] = {}
    for version in range(3):
        engines.version = version
        # In turns from the front and from the back: the same teacher may sample twice in a row, at two steps.
        for n, kind in list(enumerate(kinds))[:: -1 if version % 2 == 0 else 1]:
            with teachers.weights(kind) as weights:
                own = policy_sampler(weights, chat).sample(PROMPTS, GREEDY)
                assert ids(engines.of(weights, kind).sample(PROMPTS, GREEDY)) == ids(own), (version, kind)
            seen[version, n] = ids(own)
        move(policy, 10 + version)
        teachers.update()
        teachers.take_snapshots(version + 1)
    assert seen[2, 0] != seen[2, 1] != seen[2, 2] != seen[2, 0]
    assert seen[0, 1] == seen[1, 1] == seen[2, 1], "frozen weights stay"
    assert (seen[1, 3], seen[2, 3]) == (seen[0, 0], seen[2, 0]), "a copy of every second step"
    engines.close()
    assert list(tmp_path.glob("*")) == [], "nothing is left of any weights"


def test_weights_that_the_engine_has_are_not_sent_again(model: Path, fake: FakeVLLM, tmp_path: Path) -> None:
    policy, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    engines = served(policy, chat, fake, tmp_path)
    written = set()
    for _ in range(3):
        engines.of(policy).sample(PROMPTS, GREEDY)
        written.add((tmp_path / "version-000000" / "model.safetensors").stat().st_mtime_ns)
    assert len(written) == 1
    assert fake.calls.count("/collective_rpc") == 1
    # What was sent is counted once: the bytes of all files of a version.
    size = sum(file.stat().st_size for file in (tmp_path / "version-000000").iterdir())
    taken = engines.take_synced()
    assert (set(taken), taken["sync_bytes"]) == ({"sync_bytes", "sync_seconds"}, size) and taken["sync_seconds"] > 0
    assert engines.take_synced() == {}
    engines.version = 1
    engines.of(policy).sample(PROMPTS, GREEDY)
    assert fake.calls.count("/collective_rpc") == 2
    assert fresh_folder(tmp_path) == ["version-000000", "version-000001"]


# --- commands --------------------------------------------------------------------------------------------------------

SMALL = ("sampling.max_tokens=8", "evaluation.problems=3")


def evaluation(model: Path, *more: str, engine: str | None = None, **how: Any) -> dict[str, Any]:
    given = {"task": "countdown", "samples": 2, "limit": 3, "max_tokens": 8, "overrides": list(more), **how}
    return sd.evaluate(str(model), engine=engine, **given)


MEASURED = ("hits", "tokens", "length", "problem_set", "truncated", "words")


def test_a_server_evaluates_as_the_model_itself_does(model: Path, fake: FakeVLLM) -> None:
    own = evaluation(model, temperature=0.0)
    theirs = evaluation(model, temperature=0.0, engine=fake.url)
    assert [theirs[key] for key in MEASURED] == [own[key] for key in MEASURED]
    assert (own["engine"], theirs["engine"]) == ("hf", "server")
    assert len(fake.bodies) == 6
    by_config = evaluation(model, "sampler.kind=server", f"sampler.urls=['{fake.url}']", temperature=0.0)
    assert [by_config[key] for key in MEASURED] == [own[key] for key in MEASURED]
    assert len(fake.bodies) == 12


def test_a_server_samples_what_is_inspected(model: Path, fake: FakeVLLM) -> None:
    how: dict[str, Any] = {"task": "countdown", "methods": ["grpo"], "problems": 2, "samples": 2, "max_tokens": 6}
    own = sd.inspect(str(model), temperature=0.0, **how)
    theirs = sd.inspect(str(model), temperature=0.0, engine=fake.url, **how)
    texts = [[r.text for group in one.groups for r in group.rollouts] for one in (own, theirs)]
    assert texts[0] == texts[1]
    assert len(fake.bodies) == 4


def test_a_server_samples_for_the_student_and_the_teacher_that_are_compared(
    model: Path, fake: FakeVLLM, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["teachers", "countdown-opsd", "--problems", "2", "--samples", "2", "--json"]
    given += ["--set", f"model.path={model}", "--set", "sampling.max_tokens=4", "--engine", fake.url]
    with pytest.raises(SystemExit) as end:
        main(given)
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["teacher"]["completions"] == 4
    assert len(fake.bodies) == 8
    assert len({tuple(body["token_ids"]) for body in fake.bodies}) > 2, "the teacher is asked with its context"


def test_nothing_is_left_after_a_command(model: Path, fake: FakeVLLM, tmp_path: Path) -> None:
    policy, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    config = ServerConfig(kind="server", urls=[fake.url], folder=str(tmp_path))
    with command_engines(config, policy, chat, model=str(model), max_batch_size=8) as engines:
        engines.of(policy).sample(PROMPTS, GREEDY)
        assert fresh_folder(tmp_path) == ["version-000000"]
    assert fresh_folder(tmp_path) == []


# --- the same seed ---------------------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_with_hf_in_every_command(model: Path, tmp_path: Path) -> None:
    train(tiny_run(model, "grpo", "seed=5", "steps=1"), tmp_path / "run")
    before = lines(tmp_path / "run" / "evaluations.jsonl")[0]
    table: dict[str, Any] = {"kind": "countdown", "difficulty": "easy", "train": 8, "validation": 4, "test": 4}
    overrides = ["seed=5", "reward=support.rewards:even"]
    given: dict[str, Any] = {"split": "validation", "samples": 2, "limit": 3, "max_tokens": 10, "seed": 5}
    for engine in (None, "hf"):
        found = sd.evaluate(str(model), table, engine=engine, overrides=overrides, **given)
        assert [found[key] for key in MEASURED] == [before[key] for key in MEASURED]
    # The first step's completions, by the problem that they answer.
    drawn: dict[str, list[list[int]]] = {}
    for line in lines(tmp_path / "run" / "rollouts.jsonl"):
        drawn.setdefault(line["example"], []).append(line["ids"])
    first = list(drawn)
    policy, chat = sd.load_policy(model)
    task = sd.load_task(**table, seed=5)
    examples = {example.id: example for example in task.examples("train")}
    groups = sd.rollout(policy, chat, task, [examples[name] for name in first], completions=3, max_tokens=10, seed=5)
    assert [[list(r.completion_ids) for r in group.rollouts] for group in groups] == [drawn[name] for name in first]
    looked = sd.inspect(
        str(model),
        table,
        engine="hf",
        methods=["grpo"],
        problems=8,
        samples=3,
        max_tokens=10,
        seed=5,
        overrides=["seed=5"],
    )
    plain = sd.rollout(policy, chat, task, task.examples("train"), completions=3, max_tokens=10, seed=5)
    assert [[r.completion_ids for r in group.rollouts] for group in looked.groups] == [
        [r.completion_ids for r in group.rollouts] for group in plain
    ]


# --- training --------------------------------------------------------------------------------------------------------


def test_a_run_samples_everything_from_its_server_as_its_own_model_would(
    model: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    greedy = ("sampling.top_k=1", "evaluation.temperature=0.0", "steps=3")
    server = ("sampler.kind=server", f"sampler.urls=['{fake.url}']")
    train(tiny_run(model, "pbsd", *greedy), tmp_path / "own")
    train(tiny_run(model, "pbsd", *greedy, *server), tmp_path / "served")
    drawn = [
        [(line["step"], line["source"], line["ids"]) for line in lines(tmp_path / name / "rollouts.jsonl")]
        for name in ("own", "served")
    ]
    assert drawn[0] == drawn[1]
    measured = [
        [[line[key] for key in MEASURED] for line in lines(tmp_path / name / "evaluations.jsonl")]
        for name in ("own", "served")
    ]
    assert measured[0] == measured[1]
    assert len(fake.bodies) == 18 * 3 + 6 * 3, "nothing is sampled beside the server"
    sent = [{"sync_bytes", "sync_seconds"} <= set(line) for line in lines(tmp_path / "served" / "metrics.jsonl")]
    assert sent == [True] * 3
    assert not any("sync_bytes" in line for line in lines(tmp_path / "own" / "metrics.jsonl"))


def test_turns_are_sampled_by_the_server(model: Path, fake: FakeVLLM, tmp_path: Path) -> None:
    turns = ("task={kind='countdown-turns',train=4,validation=2,test=2}", "sampling.top_k=1", "steps=2")
    still = ("evaluation.temperature=0.0", "evaluation.problems=2", "optimiser.warmup=0")
    server = ("sampler.kind=server", f"sampler.urls=['{fake.url}']")
    config = tiny_run(model, "grpo", *turns, *still).model_copy(update={"reward": None})
    train(config, tmp_path / "own")
    other = tiny_run(model, "grpo", *turns, *still, *server).model_copy(update={"reward": None})
    train(other, tmp_path / "served")
    drawn = [
        [(line["step"], line["ids"], line["text"]) for line in lines(tmp_path / name / "rollouts.jsonl")]
        for name in ("own", "served")
    ]
    assert drawn[0] == drawn[1]
    assert fake.bodies
    with pytest.raises(ConfigError, match=r"sampler\.overlap samples single answers ahead: set it to false"):
        build_problem(
            tiny_run(model, "grpo", *turns, *server, "sampler.overlap=true").model_copy(update={"reward": None})
        )


# --- what is refused, and how it is written --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "present", "overrides"),
    [
        ("hf", None, []),
        ("hf", {"kind": "vllm", "max_num_seqs": 9}, ['sampler={kind="hf"}']),
        ("vllm", {"kind": "vllm", "max_num_seqs": 9}, []),
        (
            "http://a:1,http://b:2",
            {"kind": "server", "urls": [], "retries": 1},
            ['sampler.urls=["http://a:1", "http://b:2"]'],
        ),
        ("https://a", None, ['sampler={kind="server",urls=["https://a"]}']),
    ],
)
def test_an_engine_replaces_the_sampler_of_a_config(engine: str, present: Any, overrides: list[str]) -> None:
    assert engine_overrides(engine, present) == overrides


def test_keys_of_the_engine_come_after_it(model: Path) -> None:
    config = config_for(str(model), "countdown", ["sampler.retries=3"], command="evaluate", engine="http://a:1/")
    assert isinstance(config.sampler, ServerConfig)
    assert (config.sampler.urls, config.sampler.retries) == (["http://a:1"], 3)


@pytest.mark.parametrize("command", ["evaluate", "inspect", "teachers", "compare"])
def test_an_engine_that_is_none_is_one_sentence(
    command: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "evaluate": [str(model), "--task", "countdown"],
        "inspect": [str(model), "--task", "countdown", "--out", str(tmp_path / "look")],
        "teachers": ["countdown-opsd"],
        "compare": ["countdown-grpo", "countdown-opsd", "--out", str(tmp_path / "arms")],
    }[command]
    with pytest.raises(SystemExit) as end:
        main([command, *given, "--engine", "sglang"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "selfdistill: --engine 'sglang': write hf, vllm, or the address of a server, such as http://127.0.0.1:8000\n"
    )


def test_arms_get_one_engine_and_share_no_server_at_once(
    fake: FakeVLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["compare", "countdown-grpo", "countdown-opsd", "--out", str(tmp_path), "--engine", fake.url]
    with pytest.raises(SystemExit) as end:
        main([*given, "--jobs", "2"])
    assert end.value.code == 2
    assert "--jobs 2: runs at once would overwrite each other's weights on a server" in capsys.readouterr().err


def test_a_teacher_of_another_model_does_not_sample_on_the_students_servers(model: Path, fake: FakeVLLM) -> None:
    method = {"name": "pbsd", "weights": {"kind": "external", "path": str(model)}}
    config = tiny_run(model, method, "sampler.kind=server", f"sampler.urls=['{fake.url}']")
    with pytest.raises(ConfigError, match=r"the teacher .* is another model, which samples too: set sampler\.kind"):
        build_problem(config)
