"""Servers that cannot sample for a run are told apart before anything is loaded."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from selfdistill.config.sampler import ServerConfig
from selfdistill.errors import SamplerError
from selfdistill.sampling.probe import check_servers
from support.fake_vllm import FakeVLLM, serving


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    fake = FakeVLLM()
    with serving(fake):
        yield fake


def refusal(url: str, *, lora: bool = False, max_tokens: int = 8, sleep: bool = False) -> str:
    """The sentence that refuses one server, without its address."""
    config = ServerConfig(kind="server", urls=[url], sleep=sleep, timeout=0.2)
    with pytest.raises(SamplerError) as error:
        check_servers(config, lora=lora, max_tokens=max_tokens, log=pytest.fail)
    return str(error.value).replace(url, "URL")


def test_a_server_that_has_all_is_taken_and_samples_nothing(fake: FakeVLLM) -> None:
    config = ServerConfig(kind="server", urls=[fake.url], sleep=True)
    check_servers(config, lora=False, max_tokens=8, log=pytest.fail)
    check_servers(config, lora=True, max_tokens=8, log=pytest.fail)
    assert fake.bodies == [] and fake.version == "default" and fake.adapters == {}


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("<!doctype html><title>a proxy</title>", "sampler URL answers with a web page at URL/v1/models (200)"),
        ('{"hello": 1}', "sampler URL is no vLLM server (lists no models at /v1/models)"),
        ("[1, 2]", "sampler URL is no vLLM server (lists no models at /v1/models)"),
        ("pong", "sampler URL is no vLLM server (lists no models at /v1/models)"),
        (
            '{"data": [{"id": "base", "max_model_len": 8}]}',
            "sampler URL has a window of 8 tokens, and sampling.max_tokens is 8",
        ),
    ],
    ids=["page", "other JSON", "list", "text", "window"],
)
def test_what_answers_otherwise_is_told(page: str, sentence: str, fake: FakeVLLM) -> None:
    fake.pages["/v1/models"] = page
    assert refusal(fake.url).startswith(sentence)


@pytest.mark.parametrize(
    ("path", "lora", "sleep"),
    [
        ("/inference/v1/generate", False, False),
        ("/weight_info", False, False),
        ("/update_weight_version", False, False),
        ("/collective_rpc", False, False),
        ("/v1/load_lora_adapter", True, False),
        ("/sleep", False, True),
    ],
)
def test_an_endpoint_that_is_missing_is_named(path: str, lora: bool, sleep: bool, fake: FakeVLLM) -> None:
    fake.missing.add(path)
    assert refusal(fake.url, lora=lora, sleep=sleep).startswith(f"sampler URL has no {path}: it needs ")


def test_a_neighbour_of_vllm_is_called_by_its_name(fake: FakeVLLM) -> None:
    fake.missing.add("/inference/v1/generate")
    fake.pages["/v1/models"] = '{"data": [{"id": "llama3.2", "owned_by": "library"}]}'
    assert "(its models are owned by 'library', not 'vllm')" in refusal(fake.url)


def test_an_address_that_ends_in_v1_is_told_without(fake: FakeVLLM) -> None:
    assert refusal(f"{fake.url}/v1").endswith(f"leave /v1 away, as in {fake.url}")


def test_a_server_that_wants_a_login_is_told(fake: FakeVLLM) -> None:
    fake.password = "Bearer key"
    assert "wants a login or another key (401 at URL/v1/models)" in refusal(fake.url)


def test_a_port_that_accepts_and_never_answers_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "does not answer (nothing came from it" in refusal(f"http://127.0.0.1:{silent.getsockname()[1]}")
