"""Servers that have the weights already: vLLM, SGLang and llama.cpp's, each in its own words, and what others lack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import selfdistill as sd
from selfdistill.cli.app import main
from selfdistill.errors import SamplerError
from selfdistill.models.policy import load_policy
from selfdistill.models.served import TAKES_WEIGHTS, ServedModel, takes_weights
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import policy_sampler
from selfdistill.sampling.served import ServedSampler
from support.fake_vllm import FakeVLLM, serving
from support.tiny import STOP

PROMPTS = ([20, 21, 22], [30, 31, 9, 9, 9], [40])
GREEDY = SamplingParams(count=2, max_tokens=9, temperature=0.0)


@pytest.fixture
def fake(model: Path) -> Iterator[FakeVLLM]:
    fake = FakeVLLM()
    fake.owner, fake.base = "vllm", model
    fake.missing.update(TAKES_WEIGHTS)
    with serving(fake):
        yield fake


def sampler_of(fake: FakeVLLM, model: Path, **how: Any) -> tuple[ServedSampler, Any, list[str]]:
    policy, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    server = ServedModel(fake.url, **{"retries": 2, "wait": 0.0, **how})
    server.probe()
    said: list[str] = []
    sampler = ServedSampler([server], chat, concurrency=3, log=said.append)
    sampler.update(policy, 0)
    return sampler, policy_sampler(policy, chat), said


@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp"])
def test_what_a_server_draws_is_what_the_model_draws(owner: str, fake: FakeVLLM, model: Path) -> None:
    fake.owner = owner
    sampler, own, said = sampler_of(fake, model)
    mine, theirs = own.sample(PROMPTS, GREEDY), sampler.sample(PROMPTS, GREEDY)
    assert [[one.ids for one in row] for row in theirs] == [[one.ids for one in row] for row in mine]
    assert [one.finished for row in theirs for one in row] == [one.finished for row in mine for one in row]
    for row, other in zip(mine, theirs, strict=True):
        for ours, their in zip(row, other, strict=True):
            assert their.logprobs == pytest.approx(ours.logprobs, abs=1e-5)
    [line] = said
    assert line.startswith(f"server {fake.url} has the weights of {model}: log-probabilities differ by ")


def test_a_request_has_a_seed_of_its_own_and_connections_stay_open(fake: FakeVLLM, model: Path) -> None:
    sampler, _, _ = sampler_of(fake, model)
    params = SamplingParams(count=3, max_tokens=6, seed=3)
    first = sampler.sample(PROMPTS, params)
    assert sampler.sample(PROMPTS, params) == first
    assert len({body["seed"] for body in fake.bodies}) == 9 + 1, "nine completions and what was compared"
    assert fake.connections <= 1 + 4 + 3
    body = fake.bodies[-1]
    assert (body["ignore_eos"], body["repetition_penalty"], body["model"]) == (True, 1.0, "base")


def test_commands_sample_from_a_server_that_has_the_weights(fake: FakeVLLM, model: Path) -> None:
    given: dict[str, Any] = {"samples": 2, "limit": 2, "max_tokens": 6, "temperature": 0.0}
    own = sd.evaluate(str(model), "countdown", **given)
    theirs = sd.evaluate(str(model), "countdown", engine=fake.url, **given)
    assert (theirs["tokens"], theirs["hits"]) == (own["tokens"], own["hits"])
    assert "/collective_rpc" not in fake.calls


def test_other_weights_are_refused(fake: FakeVLLM, model: Path) -> None:
    sampler, _, _ = sampler_of(fake, model)
    assert sampler._unchecked is not None
    with torch.no_grad():
        for parameter in sampler._unchecked.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(SamplerError, match=r"serves other weights than .*: log-probabilities differ by \d\.?\d* nats"):
        sampler.sample(PROMPTS, GREEDY)


def test_a_failed_request_is_sent_again(fake: FakeVLLM, model: Path) -> None:
    sampler, own, _ = sampler_of(fake, model)
    fake.failing = [(503, {"error": "overloaded"}), (429, "slow down")]
    assert sampler.sample(PROMPTS[:1], GREEDY)[0][0].ids == own.sample(PROMPTS[:1], GREEDY)[0][0].ids
    fake.failing = [(503, {"error": "overloaded"})] * 9
    with pytest.raises(SamplerError, match=r"refuses /v1/completions \(503\): overloaded"):
        sampler.sample(PROMPTS[:1], GREEDY)
    fake.failing = [(400, {"error": {"message": "the prompt is too long"}})]
    asked = len(fake.bodies)
    with pytest.raises(SamplerError, match=r"refuses /v1/completions \(400\): the prompt is too long"):
        sampler.sample(PROMPTS[:1], SamplingParams(count=1, max_tokens=4))
    assert len(fake.bodies) == asked + 1, "a refusal is not tried again"


@pytest.mark.parametrize("when", ["before its weights are compared", "later"])
def test_other_servers_take_the_requests_of_one_that_fails(when: str, fake: FakeVLLM, model: Path) -> None:
    policy, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    other, said = FakeVLLM(), list[str]()
    other.owner, other.base = "vllm", model
    other.missing.update(TAKES_WEIGHTS)
    overloaded = [(503, {"error": "overloaded"})] * 99
    with serving(other):
        servers = [ServedModel(each.url, retries=1, wait=0.0) for each in (fake, other)]
        for server in servers:
            server.probe()
        sampler = ServedSampler(servers, chat, concurrency=2, log=said.append)
        sampler.update(policy, 0)
        own = policy_sampler(policy, chat).sample(PROMPTS, GREEDY)
        if when == "later":
            sampler.sample(PROMPTS, GREEDY)
        other.failing, asked = list(overloaded), len(fake.bodies)
        drawn = sampler.sample(PROMPTS, GREEDY)
        assert [[one.ids for one in row] for row in drawn] == [[one.ids for one in row] for row in own]
        assert len(fake.bodies) >= asked + 6
        # It is left out from then on, and that is said once.
        left = len(other.failing)
        sampler.sample(PROMPTS, GREEDY)
        assert len(other.failing) == left
        [line] = [line for line in said if "has the weights" not in line]
        refusal = f"server {other.url} refuses /v1/completions (503): overloaded"
        assert line == f"{refusal}; from here on the other servers take its requests"
        fake.failing = list(overloaded)
        with pytest.raises(SamplerError, match=rf"server {fake.url} refuses /v1/completions \(503\): overloaded$"):
            sampler.sample(PROMPTS, GREEDY)
    assert len(said) == (2 if when == "before its weights are compared" else 3)


@pytest.mark.parametrize(
    ("answer", "lack"),
    [
        ({"choices": [{"text": "4", "finish_reason": "stop", "logprobs": {"token_logprobs": [-1.0]}}]}, "'token_ids'"),
        ({"choices": [{"text": "4", "finish_reason": "stop", "logprobs": None, "token_ids": [4]}]}, "NoneType"),
        ({"choices": [{"text": "4", "finish_reason": "stop", "token_ids": [4]}]}, "'logprobs'"),
        ({"choices": []}, "ValueError"),
        ({"object": "error"}, "'choices'"),
    ],
    ids=["texts alone", "no log-probabilities", "no field for them", "no choice", "another document"],
)
def test_what_an_answer_lacks_is_one_sentence(answer: Any, lack: str, fake: FakeVLLM, model: Path) -> None:
    sampler, _, _ = sampler_of(fake, model)
    fake.failing = [(200, answer)]
    with pytest.raises(SamplerError) as error:
        sampler.sample(PROMPTS, GREEDY)
    assert str(error.value).startswith(f"server {fake.url} (vllm) answers without token ids or log-probabilities (")
    assert lack in str(error.value)
    assert str(error.value).endswith("as vLLM, SGLang and llama.cpp's server do")


def completion_of(ids: list[int], logprobs: list[Any], reason: str = "stop", **more: Any) -> tuple[int, Any]:
    logs = {"token_logprobs": logprobs}
    return 200, {"choices": [{"finish_reason": reason, "token_ids": ids, "logprobs": logs}], **more}


def test_a_completion_ends_at_its_first_stop_on_a_server_that_goes_on(fake: FakeVLLM, model: Path) -> None:
    sampler, _, _ = sampler_of(fake, model)
    sampler._unchecked = None
    fake.failing = [completion_of([20, 21, STOP, 22, 23], [-1.0, -2.0, -3.0, -4.0, -5.0], "length")]
    [[one]] = sampler.sample(PROMPTS[:1], SamplingParams(count=1, max_tokens=5))
    assert (one.ids, one.logprobs, one.finished) == ((20, 21, STOP), (-1.0, -2.0, -3.0), True)


@pytest.mark.parametrize("owner", ["llamacpp", "sglang"])
def test_tokens_that_an_answer_leaves_out_are_missed(owner: str, fake: FakeVLLM, model: Path) -> None:
    """llama.cpp lists no token that ends within a character: the others alone would be another completion."""
    fake.owner = owner
    sampler, _, _ = sampler_of(fake, model)
    sampler._unchecked = None
    entries = [{"id": 20, "logprob": -1.0}, {"id": STOP, "logprob": -1.0}]
    listed = {"choices": [{"finish_reason": "stop", "logprobs": {"content": entries}}]}
    meta = {"finish_reason": {"type": "stop"}, "output_token_logprobs": [[-1.0, 20, None], [-1.0, STOP, None]]}
    fake.failing = [
        (200, {"meta_info": {**meta, "completion_tokens": 3}})
        if owner == "sglang"
        else (200, {**listed, "usage": {"completion_tokens": 3}})
    ]
    with pytest.raises(SamplerError, match=r"answers with 2 of the 3 tokens that it sampled"):
        sampler.sample(PROMPTS[:1], SamplingParams(count=1, max_tokens=9))


@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp"])
def test_rows_without_a_token_are_never_sampled(owner: str, fake: FakeVLLM, model: Path) -> None:
    fake.owner = owner
    sampler, _, _ = sampler_of(fake, model)
    sampler.padding = range(5, 7)
    sampler.sample(PROMPTS[:1], GREEDY)
    bias = {"5": -100.0, "6": -100.0}
    assert all((body.get("sampling_params", body))["logit_bias"] == bias for body in fake.bodies)


def test_weights_of_which_nothing_was_compared_are_not_called_the_same(fake: FakeVLLM, model: Path) -> None:
    sampler, _, said = sampler_of(fake, model)
    fake.failing = [completion_of([], [])]
    with pytest.raises(SamplerError, match="sampled no token to compare its weights by"):
        sampler.sample(PROMPTS[:1], GREEDY)
    assert said == []


def test_a_server_of_texts_is_refused(fake: FakeVLLM, model: Path) -> None:
    fake.owner = "openai"
    sampler, _, _ = sampler_of(fake, model)
    with pytest.raises(SamplerError, match=r"\(openai\) answers without token ids"):
        sampler.sample(PROMPTS, GREEDY)


@pytest.mark.parametrize(("owner", "path"), [("vllm", "/v1/completions"), ("sglang", "/generate")])
def test_a_server_without_the_endpoint_that_samples_is_refused_before_a_model_is_loaded(
    owner: str, path: str, fake: FakeVLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.owner = owner
    fake.missing.add(path)
    with pytest.raises(SystemExit):
        main(["evaluate", "countdown-base", "--task", "countdown", "--engine", fake.url])
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith(f"selfdistill: server {fake.url} has no {path} (404: Not Found): it must return token ids")


def test_a_server_that_is_still_loading_says_so(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    loading = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    monkeypatch.setattr(fake, "answer", lambda verb, path, body: (503, loading))
    with pytest.raises(SamplerError, match=r"is not ready \(503: Loading model\): wait until it is"):
        ServedModel(fake.url).probe()


def test_a_server_that_falls_silent_is_not_taken_for_one_that_has_the_weights(fake: FakeVLLM) -> None:
    fake.missing.clear()
    server = ServedModel(fake.url)
    assert takes_weights([server])
    fake.hangups = 1
    with pytest.raises(SamplerError, match="does not answer"):
        takes_weights([server])


@pytest.mark.parametrize("command", ["evaluate", "inspect", "teachers"])
def test_a_wrong_server_is_one_sentence_at_once(
    command: str, fake: FakeVLLM, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "evaluate": [str(model), "--task", "countdown"],
        "inspect": [str(model), "--task", "countdown", "--out", str(tmp_path / "look")],
        "teachers": ["countdown-opsd"],
    }[command]
    for url, name, sentence in (
        ("http://127.0.0.1:9", None, "server http://127.0.0.1:9 does not answer"),
        (fake.url + "/v1", None, f"server {fake.url}/v1 lists no models at /v1/models (404): leave /v1 away"),
        (fake.url, "qwen", f"server {fake.url} serves no model 'qwen', but base"),
    ):
        named = [] if name is None else ["--set", f"sampler.model={name}"]
        with pytest.raises(SystemExit) as end:
            main([command, *given, "--engine", url, *named])
        assert end.value.code == 2
        # Inspect learns a setting after it has loaded the model, because overrides may be a method's.
        error = capsys.readouterr().err.splitlines()
        assert error[-1].startswith(f"selfdistill: {sentence}")
        assert len(error) == 1 or (command, name) == ("inspect", "qwen")
    assert fake.bodies == []
