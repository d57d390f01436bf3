"""Sampling from servers: the same completions however many there are, new weights after every update, and failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.config.sampler import ServerConfig
from selfdistill.config.sections import LoraConfig
from selfdistill.contexts.chat import Chat
from selfdistill.errors import SamplerError
from selfdistill.models.policy import Policy, load_policy
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import HFSampler
from selfdistill.sampling.server import ServerSampler
from selfdistill.seeds import derive
from selfdistill.types import Completion
from support.fake_vllm import FakeVLLM, fresh_folder, serving
from support.tiny import STOP

PROMPTS = ([20, 21, 22], [30, 31, 9, 9, 9], [40], [20, 21, 22])
PARAMS = SamplingParams(count=2, max_tokens=9, seed=3)
GREEDY = replace(PARAMS, temperature=0.0)


@pytest.fixture
def student(model: Path) -> tuple[Policy, Chat]:
    return load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def three() -> Iterator[list[FakeVLLM]]:
    fakes = [FakeVLLM(), FakeVLLM(), FakeVLLM()]
    with serving(*fakes):
        yield fakes


Make = Callable[..., ServerSampler]


@pytest.fixture
def make(student: tuple[Policy, Chat], tmp_path: Path) -> Make:
    def made(fakes: Sequence[FakeVLLM], **settings: Any) -> ServerSampler:
        given = {"timeout": 60.0, "retries": 3, "wait": 0.0, "concurrency": 3, **settings}
        config = ServerConfig(kind="server", urls=[fake.url for fake in fakes], **given)
        said: list[str] = []
        sampler = ServerSampler(student[1], config, folder=tmp_path / "weights", log=said.append)
        sampler.said = said  # type: ignore[attr-defined]
        return sampler

    return made


def draw(sampler: ServerSampler, params: SamplingParams = PARAMS) -> list[list[Completion]]:
    ordinals = range(len(PROMPTS)) if params.ordinals is None else params.ordinals
    return sampler.sample([PROMPTS[ordinal] for ordinal in ordinals], params)


def greedy(policy: Policy) -> list[list[tuple[int, ...]]]:
    sampler = HFSampler(policy, stop_ids=[STOP], max_batch_size=64)
    return [[completion.ids for completion in row] for row in sampler.sample(PROMPTS, GREEDY)]


def move(policy: Policy, seed: int) -> None:
    with torch.no_grad():
        for parameter in policy.trainable():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.add_(0.3 * noise)


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_completions_do_not_depend_on_the_number_of_servers(
    make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat]
) -> None:
    drawn = []
    for fakes in (three[:1], three, three[1:]):
        sampler = make(fakes)
        sampler.update(student[0], 0)
        drawn.append(draw(sampler))
    assert drawn[0] == drawn[1] == drawn[2]
    assert all(three[n].bodies for n in range(3)), "every server has its share"
    assert len({one.ids for row in drawn[0] for one in row}) == 8, "equal prompts are drawn apart"


def test_a_share_of_the_prompts_gets_what_it_gets_among_all(
    make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat]
) -> None:
    sampler = make(three)
    sampler.update(student[0], 0)
    whole = draw(sampler)
    assert draw(sampler, replace(PARAMS, ordinals=[3, 1])) == [whole[3], whole[1]]
    assert draw(sampler, replace(PARAMS, seed=4)) != whole


def test_a_request_says_everything_that_a_server_could_have_other_ideas_about(
    make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat]
) -> None:
    sampler = make(three[:1], concurrency=1)
    sampler.update(student[0], 4)
    draw(sampler, replace(PARAMS, temperature=0.7, top_p=0.9, top_k=5))
    first, second, *_ = three[0].bodies
    assert first["token_ids"] == PROMPTS[0]
    assert (first["model"], first["cache_salt"]) == (None, three[0].version)
    assert three[0].version.endswith("-4")
    how = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": 9,
        "ignore_eos": True,
        "stop_token_ids": [STOP],
        "logprobs": 0,
        "detokenize": False,
        "logit_bias": {"92": -100.0, "93": -100.0, "94": -100.0, "95": -100.0},  # rows that no token has
    }
    assert first["sampling_params"] == {**how, "seed": derive(3, 0, 0)}
    assert second["sampling_params"] == {**how, "seed": derive(3, 0, 1)}


# --- new weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4)])
@pytest.mark.parametrize("worker_extension", [True, False])
def test_after_an_update_every_server_draws_from_the_new_weights(
    lora: LoraConfig | None, worker_extension: bool, make: Make, three: list[FakeVLLM], model: Path, tmp_path: Path
) -> None:
    policy, _ = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"), lora=lora)
    sampler = make(three, worker_extension=worker_extension)
    seen = []
    for version in range(3):
        sampler.update(policy, version)
        seen.append([[one.ids for one in row] for row in draw(sampler, GREEDY)])
        assert seen[-1] == greedy(policy)
        move(policy, version)
    assert seen[0] != seen[1] != seen[2]
    assert fresh_folder(tmp_path / "weights") == ["version-000001", "version-000002"]
    if lora:
        assert [len(fake.adapters) for fake in three] == [1, 1, 1], "older adapters are taken back"
    sampler.close()
    assert fresh_folder(tmp_path / "weights") == []


def test_servers_sleep_between_their_turns(
    make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = three[0]
    monkeypatch.setattr(
        "selfdistill.sampling.server.empty_cache", lambda device: fake.calls.append("the learner gives memory back")
    )
    sampler = make([fake], sleep=True, concurrency=1)
    for version in range(2):
        fake.calls.clear()
        sampler.update(student[0], version)
        sampler.sample([[20]], SamplingParams(count=1, max_tokens=4))
    assert fake.calls == [
        "the learner gives memory back",
        "/wake_up?tags=weights",
        "/update_weight_version",
        "/collective_rpc",
        "/update_weight_version",
        "/wake_up?tags=kv_cache",
        "/weight_info",
        "/inference/v1/generate",
        "/sleep?level=2",
    ]


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dead", [[0], [0, 2]])
def test_what_a_dead_server_leaves_undone_the_others_do(
    dead: list[int], make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat]
) -> None:
    sampler = make(three)
    sampler.update(student[0], 0)
    whole = draw(sampler)
    for n in dead:
        three[n].dies_after = 1
    assert draw(sampler) == whole
    assert {sentence.split(": ")[0] for sentence in said(sampler)} == {f"sampler {three[n].url}" for n in dead}
    assert "does not answer" in said(sampler)[0]


def test_a_request_on_a_connection_that_is_just_closed_is_sent_once_more(
    make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat]
) -> None:
    sampler = make(three[:1])
    sampler.update(student[0], 0)
    whole = draw(sampler)
    three[0].hangups = 1
    assert (draw(sampler), said(sampler)) == (whole, [])
    three[0].hangups = 100
    sampler.config = sampler.config.model_copy(update={"retries": 0})
    with pytest.raises(SamplerError):
        draw(sampler)
    assert "does not answer" in said(sampler)[0]


def test_an_adapter_that_was_loaded_without_an_answer_is_unloaded_and_loaded_again(
    make: Make, three: list[FakeVLLM], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, _ = load_policy(
        str(model), dtype=torch.float32, device=torch.device("cpu"), lora=LoraConfig(rank=2, alpha=4)
    )
    fake = three[0]
    answer_of, loads = fake.answer, iter([None])

    def answer(verb: str, path: str, body: Any) -> Any:
        if path == "/v1/load_lora_adapter" and body["lora_name"] in fake.adapters:
            return 400, {"detail": "the adapter is loaded already"}
        answer = answer_of(verb, path, body)
        # The first load is done, and its connection is closed.
        return next(loads, answer) if path == "/v1/load_lora_adapter" else answer

    monkeypatch.setattr(fake, "answer", answer)
    sampler = make([fake])
    sampler.update(policy, 0)
    assert [[completion.ids for completion in row] for row in draw(sampler, GREEDY)] == greedy(policy)
    assert "does not answer" in said(sampler)[0]


def test_a_server_that_is_back_gets_the_weights_again(
    make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat]
) -> None:
    sampler = make(three[:2])
    sampler.update(student[0], 0)
    three[0].dies_after = 0
    move(student[0], 1)
    sampler.update(student[0], 1)
    assert [[one.ids for one in row] for row in draw(sampler, GREEDY)] == greedy(student[0])
    three[0].restart()
    three[0].bodies.clear()
    assert [[one.ids for one in row] for row in draw(sampler, GREEDY)] == greedy(student[0])
    assert three[0].bodies
    assert three[0].version == three[1].version


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4)])
def test_a_server_that_was_started_anew_unseen_gets_the_weights_again(
    lora: LoraConfig | None, make: Make, three: list[FakeVLLM], model: Path
) -> None:
    policy, _ = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"), lora=lora)
    sampler = make(three[:1])
    sampler.update(policy, 7)
    three[0].restart()
    assert [[one.ids for one in row] for row in draw(sampler, GREEDY)] == greedy(policy)


def test_completions_from_other_weights_are_not_taken(
    make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat]
) -> None:
    sampler = make(three[:2])
    sampler.update(student[0], 0)
    whole = draw(sampler)
    three[0].label_override = "another-run-3"
    assert draw(sampler) == whole
    assert any("sampled from weights another-run-3, not selfdistill-" in sentence for sentence in said(sampler))


def test_an_adapter_is_not_drawn_from_on_another_base(make: Make, three: list[FakeVLLM], model: Path) -> None:
    policy, _ = load_policy(
        str(model), dtype=torch.float32, device=torch.device("cpu"), lora=LoraConfig(rank=2, alpha=4)
    )
    sampler = make(three[:1])
    sampler.update(policy, 0)
    three[0].version = "another-run-3"
    with pytest.raises(SamplerError, match=r"holds other weights \(another-run-3\) than the model that the adapter"):
        draw(sampler)


def test_no_server_left_is_one_sentence_after_all_retries(
    make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat]
) -> None:
    sampler = make(three[:1], retries=2)
    sampler.update(student[0], 0)
    three[0].dies_after = 0
    with pytest.raises(SamplerError) as error:
        draw(sampler)
    assert str(error.value) == (
        f"{three[0].url} did not sample the 8 completions of this step, after 3 tries: "
        "start the servers again and continue the run with --resume"
    )
    pauses = [sentence for sentence in said(sampler) if sentence.startswith("no sampler server answers")]
    assert pauses == [f"no sampler server answers: trying again in 0 s, {n} tries left" for n in (2, 1)]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (429, []),
        (
            503,
            [
                "sampler URL: failed with 503 at /inference/v1/generate: too many requests",
                "no sampler server answers: trying again in 0 s, 3 tries left",
            ],
        ),
    ],
)
def test_a_server_with_too_much_to_do_is_asked_again(
    status: int,
    told: list[str],
    make: Make,
    three: list[FakeVLLM],
    student: tuple[Policy, Chat],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampler = make(three[:1])
    sampler.update(student[0], 0)
    whole, fake = draw(sampler), three[0]
    answer_of, busy = fake.answer, [(status, {"detail": "too many requests"})]

    def answer(verb: str, path: str, body: Any) -> Any:
        return busy.pop() if busy and path == "/inference/v1/generate" else answer_of(verb, path, body)

    monkeypatch.setattr(fake, "answer", answer)
    assert draw(sampler) == whole
    assert [sentence.replace(fake.url, "URL") for sentence in said(sampler)] == told


def test_a_refusal_is_not_tried_again(make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat]) -> None:
    sampler = make(three[:1])
    sampler.update(student[0], 0)
    three[0].refusal = (400, "the prompt is longer than max_model_len")
    with pytest.raises(SamplerError, match=r"refuses /inference/v1/generate \(400\): the prompt is longer than"):
        draw(sampler)


def test_a_completion_that_the_servers_window_cuts_is_not_taken(
    make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat]
) -> None:
    sampler = make(three[:1])
    sampler.update(student[0], 0)
    three[0].window = 12
    with pytest.raises(SamplerError, match=r"cut a completion after 7 of 9 tokens: its max_model_len must hold the"):
        sampler.sample([[30, 31, 9, 9, 9]], replace(GREEDY, count=1))


@pytest.mark.parametrize(
    ("missing", "lora", "hint"),
    [
        ("/update_weight_version", None, "it needs vLLM 0.32 or newer with VLLM_SERVER_DEV_MODE=1"),
        (
            "/v1/load_lora_adapter",
            LoraConfig(rank=2, alpha=4),
            "it needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora",
        ),
    ],
)
def test_a_server_that_lacks_a_switch_is_told_which(
    missing: str, lora: LoraConfig | None, hint: str, make: Make, three: list[FakeVLLM], model: Path
) -> None:
    policy, _ = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"), lora=lora)
    three[0].missing.add(missing)
    with pytest.raises(SamplerError) as error:
        make(three[:1]).update(policy, 0)
    assert str(error.value) == f"sampler {three[0].url} refuses {missing} (404): Not Found; {hint}"


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("/collective_rpc", "<!doctype html><title>a proxy</title>"),
        ("/inference/v1/generate", "<!doctype html><title>a proxy</title>"),
        ("/inference/v1/generate", '{"choices": [{"token_ids": [1, 2'),
        ("/inference/v1/generate", "[" * 100_000),
        ("/inference/v1/generate", '{"choices": []}'),
        ("/inference/v1/generate", '{"choices": [{"finish_reason": "stop"}]}'),
    ],
    ids=["a page for the weights", "a page", "cut JSON", "brackets", "no choice", "a choice without tokens"],
)
def test_what_no_vllm_answers_is_one_sentence(
    path: str, page: str, make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat]
) -> None:
    sampler = make(three[:1])
    three[0].pages[path] = page

    def sample() -> None:
        sampler.update(student[0], 0)
        draw(sampler)

    with pytest.raises(SamplerError, match=f"^sampler {three[0].url} answers otherwise than vLLM 0.32 does"):
        sample()


def test_requests_share_their_connections(make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat]) -> None:
    sampler = make(three[:1], concurrency=2)
    for version in range(3):
        sampler.update(student[0], version)
        draw(sampler)
    assert len(three[0].calls) > 12
    assert three[0].connections <= 2


def test_a_connection_that_the_server_closed_meanwhile_is_opened_again(
    make: Make, three: list[FakeVLLM], student: tuple[Policy, Chat]
) -> None:
    """uvicorn closes a connection after five idle seconds, and a training step is often longer."""
    three[0].idle = 0.05
    sampler = make(three[:1])
    sampler.update(student[0], 0)
    whole = draw(sampler)
    opened = three[0].connections
    time.sleep(0.3)
    assert (draw(sampler), said(sampler)) == (whole, [])
    assert three[0].connections > opened


def said(sampler: ServerSampler) -> list[str]:
    """What the run would have been told."""
    return sampler.said  # type: ignore[attr-defined,no-any-return]
