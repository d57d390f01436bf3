"""In the place of ``vllm.entrypoints.openai.api_server``: a process that speaks what a run needs of vLLM's protocol.

It loads no model. What it samples follows from the prompt, the seed and the bytes of the weights that it was sent, so
that a test computes the same with :func:`completion`. A test tells it what to do by files in the folder ``STAND_IN``:

- ``fails``: it complains and ends before it listens;
- ``dies…`` and ``hangs…``: the next request for a completion from weights whose label ends with the file's text ends
  it, or leaves this and all later ones without an answer. Each file is used once, whichever server it is.

Each start is a line of ``starts.jsonl``. Beside the server runs a process that ignores SIGTERM, as a stuck worker does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER = "STAND_IN"
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
KEPT = ("CUDA_VISIBLE_DEVICES", "VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "RANK", "MASTER_ADDR")


def weights_of(folder: Path) -> str:
    """What a completion follows from instead of a model: the bytes of a directory's weights."""
    [path] = [folder / name for name in WEIGHTS if (folder / name).exists()]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def completion(prompt: Sequence[int], seed: int, weights: str, *, max_tokens: int, stop: int) -> list[int]:
    """Token ids, ended by ``stop`` if they are fewer than ``max_tokens``."""
    generator = random.Random(f"{list(prompt)} {seed} {weights}")
    length = generator.randint(1, max_tokens)
    return [generator.randrange(20, 40) for _ in range(length - 1)] + [stop if length < max_tokens else 20]


@dataclass
class StandIn:
    """The server's state."""

    folder: Path
    model: Path
    version: str = "default"
    weights: str = ""
    adapters: dict[str, str] = field(default_factory=dict)
    hangs: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Status and JSON."""
        match path:
            case "/health":
                return 200, {}
            case "/weight_info":
                return 200, {"weight_version": self.version}
            case "/update_weight_version":
                self.version = body["new_version"]
                return 200, {}
            case "/collective_rpc":
                self.weights = weights_of(Path(body["args"][0]))
                return 200, {"results": body["args"]}
            case "/v1/models":
                return 200, {"data": [{"id": name} for name in ("base", *self.adapters)]}
            case "/v1/load_lora_adapter":
                self.adapters[body["lora_name"]] = weights_of(Path(body["lora_path"]))
                return 200, {}
            case "/v1/unload_lora_adapter":
                del self.adapters[body["lora_name"]]
                return 200, {}
            case "/inference/v1/generate":
                return self._generate(body)
        return 404, {"detail": "Not Found"}

    def _generate(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        # Held until the process has ended: no second request may use up a second file.
        with self.lock:
            label = body["model"] or self.version
            if self._is_told("dies", label):
                print("the engine core is out of memory", flush=True)
                os._exit(3)
            self.hangs = self.hangs or self._is_told("hangs", label)
        if self.hangs:
            time.sleep(600)
        how = body["sampling_params"]
        weights = self.adapters[body["model"]] if body["model"] else self.weights or weights_of(self.model)
        [stop] = how["stop_token_ids"]
        ids = completion(body["token_ids"], how["seed"], weights, max_tokens=how["max_tokens"], stop=stop)
        choice = {
            "token_ids": ids,
            "finish_reason": "stop" if ids[-1] == stop else "length",
            "logprobs": {"content": [{"token_id": token, "logprob": -1.0} for token in ids]},
            "weight_versions": [{"version": self.version}],
        }
        return 200, {"choices": [choice]}

    def _is_told(self, what: str, label: str) -> bool:
        for path in sorted(self.folder.glob(f"{what}*")):
            try:
                if label.endswith(path.read_text(encoding="utf-8")):
                    path.unlink()
                    return True
            # Another server was told first.
            except FileNotFoundError:
                continue
        return False


def handler(server: StandIn) -> type[BaseHTTPRequestHandler]:
    """The class that answers requests for a server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self._reply(json.loads(self.rfile.read(length)) if length else {})

        def _reply(self, body: Mapping[str, Any]) -> None:
            status, content = server.answer(self.path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", type=Path, default=Path())
    options, _ = parser.parse_known_args()
    folder = Path(os.environ[FOLDER])
    if (folder / "fails").exists():
        print("loading the model\n\nValueError: no room for the cache", flush=True)
        raise SystemExit(1)
    beside = subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    server = ThreadingHTTPServer(("127.0.0.1", options.port), handler(StandIn(folder, options.model)))
    server.daemon_threads = True
    start = {
        "pids": [os.getppid(), os.getpid(), beside.pid],
        "port": options.port,
        "arguments": sys.argv[1:],
        "environment": {name: os.environ.get(name) for name in KEPT},
    }
    with (folder / "starts.jsonl").open("a", encoding="utf-8") as starts:
        starts.write(json.dumps(start) + "\n")
    server.serve_forever()


if __name__ == "__main__":
    main()
