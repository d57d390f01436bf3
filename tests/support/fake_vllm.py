"""A server that speaks the part of vLLM's protocol that the library uses, with a Transformers model behind it.

What it answers is sampled by the library's own sampler from the directory that it was sent, so tests can compare; it
can die, forget its weights, fail and refuse.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from selfdistill.models.loading import read_tokenizer
from selfdistill.models.policy import Policy, load_policy
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import HFSampler
from selfdistill.types import Completion
from support.tiny import STOP


class FakeVLLM:
    """The state behind the address; ``calls`` are the paths in the order in which they were asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.bodies: list[Mapping[str, Any]] = []
        """What was asked of ``/inference/v1/generate``."""
        self.version = "default"
        self.label_override: str | None = None
        self.policy: Policy | None = None
        self.base: Path | None = None
        """The model that it was started with. Tests that send it weights leave it out."""
        self.adapters: dict[str, Policy] = {}
        self.dies_after: int | None = None
        """Answers to ``/inference/v1/generate`` until connections break off."""
        self.refusal: tuple[int, str] | None = None
        self.missing: set[str] = set()
        self.window = 1000
        """Its max_model_len."""
        self.owner: str | None = None
        """Whose server its list of models says it is: "vllm", "sglang" or "llamacpp"."""
        self.failing: list[tuple[Any, ...]] = []
        """Answers to the next completions instead."""
        self.max_logprobs = 20
        """Most log-probabilities of a position, vLLM's --max-logprobs."""
        self.lock = threading.Lock()
        self.url = ""
        self.pages: dict[str, str] = {}
        """What it answers at a path instead, word for word."""
        self.connections = 0
        """Connections that were opened to it."""
        self.idle: float | None = None
        """Seconds after which it closes a connection that asks for nothing; None keeps it."""
        self.hangups = 0
        """Requests whose connection it closes without an answer."""
        self.password: str | None = None
        """The ``Authorization`` header without which it refuses everything."""

    def restart(self) -> None:
        """A new process: alive, and without what the old one was handed."""
        self.version, self.policy, self.adapters, self.dies_after = "default", None, {}, None

    def answer(self, verb: str, path: str, body: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Status, body and, if there are any, headers; None breaks the connection off."""
        place = urlsplit(path).path
        self.calls.append(path)
        if verb == "GET" and place in POST_ONLY and place not in self.missing:
            return 405, {"detail": "Method Not Allowed"}
        if place in self.pages:
            return 200, self.pages[place]
        if place in self.missing:
            return 404, {"detail": "Not Found"}
        if self.dies_after is not None and self.dies_after <= 0:
            return None
        match place:
            case "/weight_info":
                return 200, {"weight_version": self.version}
            case "/update_weight_version":
                self.version = body["new_version"]
                return 200, {"success": True}
            case "/collective_rpc":
                path = body["args"][0] if body["method"] == "receive_weights" else body["kwargs"]["weights_path"]
                self.policy = _load(path)
                return 200, {"results": [path]}
            case "/v1/models":
                told: dict[str, Any] = {} if self.owner is None else {"owned_by": self.owner}
                if self.owner == "vllm":
                    told["max_model_len"] = self.window
                return 200, {"data": [{"id": name, **told} for name in ("base", *self.adapters)]}
            case "/v1/load_lora_adapter":
                self.adapters[body["lora_name"]] = _load(body["lora_path"])
                return 200, "Success"
            case "/v1/unload_lora_adapter":
                del self.adapters[body["lora_name"]]
                return 200, "Success"
            case "/sleep" | "/wake_up":
                return 200, {}
            case "/inference/v1/generate":
                return self._generate(body)
            case "/tokenize":
                tokens = _tokenizer(str(self.base))(body["prompt"], add_special_tokens=False)["input_ids"]
                return 200, {"tokens": tokens, "count": len(tokens)}
            case "/v1/completions" if self.owner != "sglang":
                return self._complete(body)
            case "/generate" if self.owner == "sglang":
                return self._complete_as_sglang(body)
        return 404, {"detail": "Not Found"}

    def _sampled(self, prompt: list[int], how: Mapping[str, Any], stops: list[int], max_tokens: int) -> Completion:
        if self.policy is None:
            self.policy = _load(str(self.base))
        sampler = HFSampler(self.policy, stop_ids=stops, max_batch_size=8)
        drawn = {name: how[name] for name in ("temperature", "top_p")}
        params = SamplingParams(
            count=1,
            max_tokens=max_tokens,
            top_k=max(how["top_k"], 0),
            seed=how.get("seed", how.get("sampling_seed")),
            **drawn,
        )
        with self.lock:
            [[one]] = sampler.sample([prompt], params)
        return one

    def _complete(self, body: Mapping[str, Any]) -> tuple[Any, ...]:
        """OpenAI's completions, as vLLM and llama.cpp answer them: each its own way to the ids."""
        if "prompt" not in body:
            return 400, {"error": {"message": "a prompt is missing"}}
        self.bodies.append(body)
        if self.failing:
            return self.failing.pop(0)
        if "prompt_logprobs" in body:
            return self._score(body)
        stops = body["stop_token_ids"] if self.owner == "vllm" else [STOP]
        one = self._sampled(body["prompt"], body, stops, body["max_tokens"])
        choice: dict[str, Any] = {"text": "…", "finish_reason": "stop" if one.finished else "length"}
        if self.owner == "llamacpp":
            entries = [{"id": i, "token": "…", "logprob": p} for i, p in zip(one.ids, one.logprobs, strict=True)]
            choice["logprobs"] = {"content": entries}
        else:
            choice["logprobs"] = {"tokens": ["…"] * len(one.ids), "token_logprobs": one.logprobs}
            choice |= {"token_ids": one.ids} if self.owner == "vllm" else {}
        return 200, {"choices": [choice]}

    def _complete_as_sglang(self, body: Mapping[str, Any]) -> tuple[Any, ...]:
        if "input_ids" not in body:
            return 400, {"error": {"message": "a prompt is missing"}}
        self.bodies.append(body)
        if self.failing:
            return self.failing.pop(0)
        how = body["sampling_params"]
        one = self._sampled(body["input_ids"], how, how["stop_token_ids"], how["max_new_tokens"])
        entries = [[p, i, None] for i, p in zip(one.ids, one.logprobs, strict=True)]
        reason = {"type": "stop" if one.finished else "length"}
        return 200, {"text": "…", "meta_info": {"finish_reason": reason, "output_token_logprobs": entries}}

    def _score(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        """The log-probabilities of a prompt's ids, with those of the likeliest ones, as vLLM gives them."""
        if self.policy is None:
            self.policy = _load(str(self.base))
        ids, top = body["prompt"], body["prompt_logprobs"]
        if top > self.max_logprobs:
            message = f"Requested prompt logprobs of {top}, which is greater than max allowed: {self.max_logprobs}"
            return 400, {"error": {"message": message}}
        with self.lock, torch.no_grad():
            logits_LV = self.policy.causal_lm(torch.tensor([ids])).logits[0, :, : self.policy.vocab_size]
        logprobs_LV = torch.log_softmax(logits_LV, -1)
        positions: list[Any] = [None]
        for place, token in enumerate(ids[1:]):
            likeliest = logprobs_LV[place].topk(top).indices.tolist()
            entries = {*likeliest, token}
            positions.append({str(i): {"logprob": float(logprobs_LV[place, i]), "decoded_token": "…"} for i in entries})
        return 200, {"choices": [{"text": "…", "prompt_logprobs": positions}]}

    def _generate(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        if self.dies_after is not None:
            self.dies_after -= 1
        if self.refusal is not None:
            return self.refusal[0], {"error": {"message": self.refusal[1]}}
        self.bodies.append(body)
        if self.policy is None and self.base is not None:
            self.policy = _load(str(self.base))
        policy = self.adapters.get(body["model"]) if body["model"] else self.policy
        if policy is None:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        how = body["sampling_params"]
        sampler = HFSampler(policy, stop_ids=how["stop_token_ids"], max_batch_size=8)
        params = SamplingParams(
            count=1,
            max_tokens=min(how["max_tokens"], self.window - len(body["token_ids"])),
            temperature=how["temperature"],
            top_p=how["top_p"],
            top_k=how["top_k"],
            seed=how["seed"],
        )
        with self.lock:
            [[one]] = sampler.sample([body["token_ids"]], params)
        label = self.label_override or self.version
        choice = {
            "token_ids": one.ids,
            "finish_reason": "stop" if one.finished else "length",
            "logprobs": {
                "content": [{"token_id": i, "logprob": p} for i, p in zip(one.ids, one.logprobs, strict=True)]
            },
            "weight_versions": [{"version": label, "start": 0, "end": len(one.ids)}],
        }
        return 200, {"choices": [choice]}


POST_ONLY = {
    "/update_weight_version",
    "/collective_rpc",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/sleep",
    "/wake_up",
    "/inference/v1/generate",
}
"""Endpoints that answer a GET with 405, as vLLM's web framework does."""
LOADING = threading.Lock()
"""transformers loads one model at a time: it sets the whole process's default device meanwhile."""


def _load(path: str) -> Policy:
    with LOADING:
        return load_policy(path, dtype=torch.float32, device=torch.device("cpu"))[0]


def _tokenizer(path: str) -> Any:
    with LOADING:
        return read_tokenizer(path)


@contextmanager
def serving(*fakes: FakeVLLM) -> Iterator[tuple[str, ...]]:
    """The addresses at which they answer."""
    servers = []
    for fake in fakes:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        servers.append(server)
    try:
        yield tuple(fake.url for fake in fakes)
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(fake: FakeVLLM) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # as vLLM's: a connection stays open for the next request
        disable_nagle_algorithm = True  # headers and body are two writes: the second would wait for a late answer

        def setup(self) -> None:
            super().setup()
            self.connection.settimeout(fake.idle)
            with fake.lock:
                fake.connections += 1

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self._reply("GET", {})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self._reply("POST", json.loads(self.rfile.read(length)) if length else {})

        def _reply(self, verb: str, body: Mapping[str, Any]) -> None:
            with fake.lock:
                fake.hangups -= 1
            answer = None if fake.hangups >= 0 else fake.answer(verb, self.path, body)
            if fake.password is not None and self.headers.get("Authorization") != fake.password:
                answer = 401, {"detail": "Unauthorized"}
            if answer is None:
                self.close_connection = True
                return
            status, content, *headers = answer
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            for name, value in dict(*headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def fresh_folder(folder: Path) -> list[str]:
    """Names of the versions that are kept for the servers."""
    return sorted(path.name for path in folder.glob("version-*"))
