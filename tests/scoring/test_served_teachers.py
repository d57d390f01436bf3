"""A teacher behind a server scores as the same model does in this process; what it cannot give is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.errors import ConfigError, DataError, ModelError, SamplerError
from selfdistill.models.policy import load_external, load_policy
from selfdistill.models.served import ServedModel
from selfdistill.models.teachers import Teachers
from selfdistill.scoring.score import head_inputs, score_roles
from selfdistill.training.banner import describe_role, warnings
from selfdistill.training.problem import build_problem
from selfdistill.types import STUDENT, External, Role, RoutedPrompt, Server, View
from support.fake_vllm import FakeVLLM, serving
from support.runs import lines, open_run, recorder, tiny_run, train
from support.tiny import save_tiny_model

pytestmark = pytest.mark.usefixtures("no_page")

K = 5


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same vocabulary."""
    return save_tiny_model(tmp_path_factory.mktemp("other"), seed=7, hidden_size=48)


@pytest.fixture
def fake(other: Path) -> Iterator[FakeVLLM]:
    fake = FakeVLLM()
    fake.owner, fake.base = "vllm", other
    with serving(fake):
        yield fake


def top(kind: str) -> dict[str, Any]:
    return {"divergence": {"kind": kind, "support": {"kind": "top_k", "k": K, "chosen_by": "teacher"}}}


@pytest.mark.parametrize(
    "method",
    [
        {"name": "sd"},
        {"name": "sdpo", **top("jensen_shannon")},
        {"name": "sdft", **top("reverse_kl")},
        {"name": "opsd", "score_temperature": 1.0, **top("forward_kl")},
        {"name": "antisd", "gate_signal": "student_entropy"},
        {"name": "pbsd"},
    ],
    ids=lambda method: method["name"],
)
def test_a_run_with_a_served_teacher_is_the_run_with_that_model(
    method: Mapping[str, Any], fake: FakeVLLM, other: Path, model: Path, tmp_path: Path
) -> None:
    still = ("steps=2", "sampling.top_k=1", "evaluation.every=50")
    weights = {"own": {"kind": "external", "path": str(other)}, "served": {"kind": "server", "url": fake.url}}
    for name, kind in weights.items():
        train(tiny_run(model, {**method, "weights": kind}, *still), tmp_path / name)
    own, served = (lines(tmp_path / name / "metrics.jsonl") for name in weights)
    assert len(own) == len(served) == 2
    for mine, theirs in zip(own, served, strict=True):
        for key in ("loss", "grad_norm", "pmi", "tokens", "weight"):
            assert theirs.get(key) == pytest.approx(mine.get(key), rel=2e-4, abs=1e-6), key
    sources = [[(r["source"], r["ids"]) for r in lines(tmp_path / name / "rollouts.jsonl")] for name in weights]
    assert sources[0] == sources[1]
    assert any("prompt_logprobs" in body for body in fake.bodies)


def test_the_known_ids_the_sampled_token_and_the_tail_are_exact(fake: FakeVLLM, other: Path, model: Path) -> None:
    device = torch.device("cpu")
    policy, chat = load_policy(str(model), dtype=torch.float32, device=device)
    external, served = External(str(other)), Server(fake.url)
    teacher = load_external(str(other), policy, chat, dtype=torch.float32, device=device)
    server = ServedModel(fake.url)
    server.probe()
    teachers = Teachers(policy, needed=set(), rate=0.0, external={external: teacher}, served={served: server})
    plain = View({STUDENT: (20, 21), "teacher": (22, 23, 24)}, (30, 31, 9), (1.0,) * 3, (0.0,) * 3, 0.0, 0, 0)
    without = View({STUDENT: (20, 21)}, (40, 41), (1.0,) * 2, (0.0,) * 2, 0.0, 0, 1)
    # An episode of two turns, between which the teacher reads other words than the student.
    gaps = {STUDENT: ((1, (50,)),), "teacher": ((1, (51, 52)),)}
    episode = View({STUDENT: (20,), "teacher": (22,)}, (30, 31, 9), (1.0,) * 3, (0.0,) * 3, 0.0, 0, 2, gaps=gaps)
    views = [plain, without, episode]
    target_N = torch.tensor([token for view in views for token in view.completion_ids])
    heads = {
        name: head_inputs(teachers, views, {"teacher": kind}, target_N, likeliest=lambda role: K)["teacher"]
        for name, kind in (("own", external), ("served", served))
    }
    rows = [0, 1, 2, 5, 6, 7]
    own, theirs = (heads[name].logprobs(slice(None))[rows] for name in ("own", "served"))
    assert theirs.exp().sum(-1) == pytest.approx(1.0, abs=1e-5)
    likeliest = own.topk(K, -1)
    assert torch.equal(theirs.topk(K, -1).indices, likeliest.indices)
    assert torch.allclose(theirs.gather(-1, likeliest.indices), likeliest.values, atol=1e-5)
    sampled = target_N[rows][:, None]
    assert torch.allclose(theirs.gather(-1, sampled), own.gather(-1, sampled), atol=1e-5)
    assert torch.equal(theirs.isinf(), own.isinf()), "padded ids"
    scores = [
        score_roles(teachers, views, {"teacher": kind}, max_tokens=64, max_logits_per_chunk=1 << 20)["teacher"]
        for kind in (external, served)
    ]
    for mine, their in zip(*scores, strict=True):
        assert (mine is None) == (their is None)
        if mine is not None and their is not None:
            assert torch.allclose(their.target_N, mine.target_N, atol=1e-5)
            assert their.entropy_N.isnan().all()
    assert scores[1][1] is None


def test_what_a_served_teacher_cannot_hold_is_left_out_and_counted(fake: FakeVLLM, model: Path, tmp_path: Path) -> None:
    settings = tiny_run(model, {"name": "sd", "weights": {"kind": "server", "url": fake.url}}, "steps=1")
    reason = "context sibling_or_solution_verdict: prompt and completion do not fit the window"
    # A teacher's prompt of 38 tokens with a completion of 10, and the token that every request samples.
    for window, left_out in ((49, 0), (48, 9)):
        fake.window = window
        run = open_run(settings, tmp_path / str(window))
        run.train(recorder(run).stop)
        [line] = lines(tmp_path / str(window) / "metrics.jsonl")
        scored = [len(body["prompt"]) for body in fake.bodies if "prompt_logprobs" in body][1:]
        assert scored == [48] * (9 - left_out)
        assert line["skipped"] == ({reason: left_out} if left_out else {})
        said = f"holds {window} tokens, so a prompt and its completion may have {window - 1} together"
        assert any(said in warning for warning in warnings(run.parts))
        fake.bodies.clear()


# --- several teachers, of which a column of the rows names one --------------------------------------------------------


@pytest.fixture
def pair(other: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeVLLM, FakeVLLM]]:
    """Servers of two models."""
    fakes = FakeVLLM(), FakeVLLM()
    for fake, base in zip(fakes, (other, save_tiny_model(tmp_path_factory.mktemp("third"), seed=8)), strict=True):
        fake.owner, fake.base = "vllm", base
    with serving(*fakes):
        yield fakes


def test_each_prompt_is_scored_by_its_own_teacher(pair: tuple[FakeVLLM, FakeVLLM], model: Path) -> None:
    policy, _ = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    first, second = (Server(fake.url) for fake in pair)
    both = Server(column="subject", servers={"sums": first, "words": second})
    served = {server: ServedModel(str(server.url)) for server in both.each}
    for server in served.values():
        server.probe()
    teachers = Teachers(policy, needed=set(), rate=0.0, served=served)

    def views(*readers: Server | None) -> list[View]:
        ids = ((22, 23, 24), (25,), (26, 27))
        prompts = [
            given if reader is None else RoutedPrompt.to(reader, given)
            for given, reader in zip(ids, readers, strict=True)
        ]
        return [
            View({STUDENT: (20, 21), "teacher": prompt}, (30, 31, 9), (1.0,) * 3, (0.0,) * 3, 0.0, n, 0)
            for n, prompt in enumerate(prompts)
        ]

    def found(made: list[View], kind: Server) -> tuple[torch.Tensor, torch.Tensor]:
        weights = {"teacher": kind}
        scores = score_roles(teachers, made, weights, max_tokens=64, max_logits_per_chunk=1 << 20)["teacher"]
        targets = torch.tensor([token for view in made for token in view.completion_ids])
        head = head_inputs(teachers, made, weights, targets, likeliest=lambda role: K)["teacher"]
        return torch.cat([one.target_N for one in scores if one is not None]), head.logprobs(slice(None))

    alone = [found(views(None, None, None), server) for server in both.each]
    mixed = found(views(second, first, second), both)
    for mine, of_first, of_second in zip(mixed, *alone, strict=True):
        assert torch.equal(mine, torch.cat([of_second[:3], of_first[3:6], of_second[6:]]))
        assert not torch.allclose(of_first, of_second)


@pytest.mark.parametrize("name", ["sd", "pbsd"])
def test_a_run_asks_the_teacher_that_its_rows_name(
    name: str, pair: tuple[FakeVLLM, FakeVLLM], other: Path, model: Path, tmp_path: Path
) -> None:
    for fake in pair:
        fake.base = other
    still = ("steps=2", "sampling.top_k=1", "evaluation.every=50")
    examples = build_problem(tiny_run(model, "grpo")).task.examples("train")
    targets = sorted({str(example.columns["target"]) for example in examples})
    servers = {target: {"url": pair[n % 2].url} for n, target in enumerate(targets)}
    kinds = {
        "own": {"kind": "external", "path": str(other)},
        "routed": {"kind": "server", "column": "target", "servers": servers},
    }
    for run, kind in kinds.items():
        train(tiny_run(model, {"name": name, "weights": kind}, *still), tmp_path / run)
    own, routed = (lines(tmp_path / run / "metrics.jsonl") for run in kinds)
    for mine, theirs in zip(own, routed, strict=True):
        for key in ("loss", "grad_norm", "tokens", "weight"):
            assert theirs.get(key) == pytest.approx(mine.get(key), rel=2e-4, abs=1e-6), key
    rollouts = [[(r["source"], r["ids"]) for r in lines(tmp_path / run / "rollouts.jsonl")] for run in kinds]
    assert rollouts[0] == rollouts[1]
    # Beside the two requests of the start, which every server gets.
    asked = [{tuple(body["prompt"]) for body in fake.bodies if len(fake.bodies) > 1} for fake in pair]
    shared = asked[0] & asked[1]
    assert len(shared) == 1
    assert asked[0] - shared
    assert asked[1] - shared


def test_the_banner_names_every_teacher() -> None:
    servers = {"sums": Server("http://a"), "words": Server("http://b")}
    role = Role("solution", Server(column="subject", servers=servers))
    assert describe_role(role) == (
        "context solution, weights behind the server that column 'subject' names: http://a (sums), http://b (words)"
    )


def test_a_row_without_a_teacher_is_one_sentence(fake: FakeVLLM, model: Path) -> None:
    def refused(column: str) -> str:
        weights = {"kind": "server", "column": column, "servers": {"sums": {"url": fake.url}}}
        with pytest.raises(DataError) as error:
            build_problem(tiny_run(model, {"name": "sd", "weights": weights}))
        return str(error.value)

    assert "has no column 'subject', which names its teacher; it has " in refused("subject")
    assert "names the teacher '" in refused("target")
    assert refused("target").endswith("' in its column 'target'; weights.servers has sums")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"column": "subject"}, "several teachers are a column and a table servers"),
        ({"servers": {"a": {"url": "http://h"}}}, "several teachers are a column and a table servers"),
        ({"column": "s", "servers": {"a": {"url": "http://h"}}, "url": "http://h"}, "several teachers are a column"),
        (
            {"column": "s", "servers": {"a": {"column": "s", "servers": {"b": {"url": "http://h"}}}}},
            "an entry of servers is one server",
        ),
        ({"column": "s", "servers": {"a": {"url": "h"}}}, "a teacher's server is an http:// or https:// address"),
    ],
    ids=["no servers", "no column", "both", "nested", "no address"],
)
def test_a_table_of_teachers_that_is_none_is_one_sentence(table: dict[str, Any], sentence: str, model: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        tiny_run(model, {"name": "sd", "weights": {"kind": "server", **table}})


@pytest.mark.parametrize(
    "method",
    [
        "opsd",
        "sdpo",
        "purified",
        "credit",
        "antisd",
        "srpo",
        "eopd",
        {"name": "sdpo", "divergence": {"kind": "reverse_kl", "support": {"kind": "top_k", "k": 5}}},
        {"name": "opsd", "score_temperature": 1.1, **top("forward_kl")},
        {"name": "demopsd", **top("forward_kl")},
    ],
    ids=str,
)
def test_a_method_that_reads_more_is_refused_by_name(method: Any, model: Path) -> None:
    table = {"name": method} if isinstance(method, str) else dict(method)
    table["weights"] = {"kind": "server", "url": "http://127.0.0.1:9"}
    with pytest.raises(ConfigError, match=f"method '{table['name']}' reads the whole distribution of '"):
        build_problem(tiny_run(model, table))


def test_what_a_teachers_server_lacks_is_one_sentence(fake: FakeVLLM, model: Path, tmp_path: Path) -> None:
    table = {"name": "sdft", "weights": {"kind": "server", "url": fake.url}, **top("reverse_kl")}

    def refused(**changes: Any) -> str:
        method = {**table, "weights": {**table["weights"], **changes}}
        with pytest.raises((SamplerError, ModelError)) as error:
            train(tiny_run(model, method), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return str(error.value)

    fake.max_logprobs = K - 1
    assert "refuses /v1/completions (400): Requested prompt logprobs of 5, which is greater than max" in refused()
    assert refused(model="qwen") == f"server {fake.url} serves no model 'qwen', but base"
    assert "does not answer" in refused(url="http://127.0.0.1:9")
    fake.max_logprobs = 20
    fake.pages["/tokenize"] = '{"tokens": [1, 2, 3]}'
    assert refused().startswith(f"teacher {fake.url} has another vocabulary than {model}: it reads a text as 1, 2, 3 …")
    del fake.pages["/tokenize"]
    fake.pages["/v1/completions"] = '{"choices": [{"text": "4", "prompt_logprobs": null}]}'
    assert "gives no prompt log-probabilities, which a teacher is scored by" in refused()
    fake.pages.clear()
    fake.missing.add("/tokenize")
    assert "has no /tokenize (404: Not Found), which compares its vocabulary: serve it with vLLM" in refused()
    fake.missing.add("/v1/completions")
    assert "has no /v1/completions (404: Not Found): it must return token ids" in refused()
    fake.missing.clear()
    # Nothing is tried again at the start.
    asked = len(fake.bodies)
    fake.failing = [(503, {"error": "overloaded"})] * 2
    assert "refuses /v1/completions (503): overloaded" in refused()
    assert len(fake.bodies) == asked + 1


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"21": -1.0, "5": -2.0}, "2 log-probabilities at a place where 3 were asked for"),
        ({"21": -1.0, "5": -2.0, "6": -3.0, "7": -4.0, "8": -5.0}, "5 log-probabilities at a place where 3 were"),
        ({"21": -1.0, "5": -2.0, "6": math.nan}, "a log-probability of nan"),
        ({"21": -math.inf, "5": -2.0, "6": -3.0}, "a log-probability of -inf"),
        ({"21": 0.5, "5": -2.0, "6": -3.0}, "a log-probability of 0.5"),
        ({"21": -0.1, "5": -0.2, "6": -3.0}, "probabilities that add up to more than 1"),
        ({"21": None, "5": -2.0, "6": -3.0}, "NoneType"),
        ({"token_id:21": -1.0, "5": -2.0, "6": -3.0}, "token_id:21"),
    ],
    ids=["fewer", "more", "nan", "impossible", "above 0", "logits", "null", "a token's name"],
)
def test_log_probabilities_that_are_none_are_one_sentence(
    entries: dict[str, Any], told: str, fake: FakeVLLM, model: Path
) -> None:
    server = ServedModel(fake.url)
    server.probe()
    place = {token: {"logprob": logprob, "decoded_token": "…"} for token, logprob in entries.items()}
    fake.failing = [(200, {"choices": [{"prompt_logprobs": [None, place]}]})]
    with pytest.raises(SamplerError, match="gives no prompt log-probabilities, which a teacher is scored by") as error:
        server.prompt_logprobs([20, 21], top=3, begin=1)
    assert told in str(error.value)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://me:secret@host", "http://host?key=secret"])
def test_an_address_that_is_none_is_refused(url: str, model: Path) -> None:
    with pytest.raises(ConfigError, match="a teacher's server is an http:// or https:// address without") as error:
        tiny_run(model, {"name": "sdft", "weights": {"kind": "server", "url": url}})
    assert "secret" not in str(error.value)


def test_a_teacher_whose_server_dies_ends_the_run_after_its_steps_are_saved(
    fake: FakeVLLM, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(model, {"name": "sd", "weights": {"kind": "server", "url": fake.url}}, "checkpoint.every=50")
    train(config, tmp_path / "whole")
    answer_of, asked = fake.answer, len(fake.bodies)

    def answer(verb: str, path: str, body: Any) -> Any:
        # In the middle of the third of five steps; the first request is that of the start.
        over = path == "/v1/completions" and len(fake.bodies) - asked > asked // 2
        return (400, {"error": {"message": "gone"}}) if over else answer_of(verb, path, body)

    monkeypatch.setattr(fake, "answer", answer)
    with pytest.raises(SamplerError, match=r"refuses /v1/completions \(400\): gone"):
        train(config, tmp_path / "run")
    [saved] = [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert saved == "step-000002"
    monkeypatch.undo()
    train(config, tmp_path / "run", resume=True)
    assert [line["loss"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [
        line["loss"] for line in lines(tmp_path / "whole" / "metrics.jsonl")
    ]
