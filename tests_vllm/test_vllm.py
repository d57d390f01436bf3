"""The real engine draws what the Transformers sampler draws, with its log-probabilities, before and after updates."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import IO, cast

import pytest
import torch

from selfdistill.config.sampler import ServerConfig, VLLMConfig
from selfdistill.config.sections import LoraConfig
from selfdistill.contexts.chat import Chat
from selfdistill.errors import SamplerError
from selfdistill.models.policy import Policy, load_policy
from selfdistill.models.served import ServedModel
from selfdistill.sampling.base import Sampler, SamplingParams
from selfdistill.sampling.hf import policy_sampler
from selfdistill.sampling.own_servers import OwnServers
from selfdistill.sampling.requests import Engine
from selfdistill.sampling.rollouts import sample_and_verify
from selfdistill.sampling.served import ServedSampler
from selfdistill.sampling.server import ServerSampler
from selfdistill.sampling.vllm import WORKER_EXTENSION, VLLMSampler
from selfdistill.types import Completion, Task
from support.runs import as_toml, lines, open_run, recorder, tiny_run
from support.tiny import save_tiny_model
from support.turns import OFTEN, Talks, examples

PROMPTS = ([20, 21, 22], [30, 31, 9, 9, 9], [40] * 20, [20, 21, 22])
WINDOW = 64
ENGINE = VLLMConfig(kind="vllm", gpu_memory_utilization=0.1, max_model_len=WINDOW, max_num_seqs=32, enforce_eager=True)
LORA = LoraConfig(rank=4, alpha=8)
# The adapter first: new weights replace the base that it belongs to.
WEIGHTS = pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "all weights"])


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A head dimension that vLLM's attention has on CPUs, and no padded rows: they are in its softmax and not in ours.
    sizes = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 92}
    return save_tiny_model(tmp_path_factory.mktemp("model"), seed=0, **sizes, max_position_embeddings=WINDOW)


@dataclass
class Server:
    """A vLLM server in a process of its own."""

    model: Path
    port: int
    log: IO[bytes]
    process: subprocess.Popen[bytes] | None = field(default=None)
    adapters: bool = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--enforce-eager"]
        command += ["--max-model-len", str(WINDOW), "--gpu-memory-utilization", "0.1", "--enable-scale-out"]
        command += ["--worker-extension-cls", WORKER_EXTENSION]
        command += ["--enable-lora", "--max-lora-rank", "8"] if self.adapters else []
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, start_new_session=True)

    def wait(self) -> None:
        assert self.process is not None
        while self.process.poll() is None:
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        raise AssertionError(f"the server ended with {self.process.returncode}: see {self.log.name}")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def servers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    logs = tmp_path_factory.mktemp("logs")
    made = []
    for name in ("first", "second"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        made.append(Server(model, port, (logs / f"{name}.log").open("wb")))
        made[-1].start()
    try:
        for server in made:
            server.wait()
        yield made
    finally:
        for server in made:
            server.kill()
            server.log.close()


def load(model: Path, lora: LoraConfig | None) -> tuple[Policy, Chat]:
    return load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"), lora=lora)


def move(policy: Policy, seed: int) -> None:
    """New weights, far enough from the old ones that they say something else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def with_more_stops(chat: Chat) -> Chat:
    """A chat in which the random model ends its turns soon."""
    return Chat(chat.tokenizer, stop_ids=OFTEN, window=chat.window, name=chat.name)


def greedy(engine: Sampler) -> list[list[Completion]]:
    return engine.sample(PROMPTS, SamplingParams(count=2, max_tokens=12, temperature=0.0, seed=3))


def ids(drawn: Sequence[Sequence[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[one.ids for one in row] for row in drawn]


def check_against_transformers(engine: Engine, policy: Policy, chat: Chat) -> None:
    """Through three versions of the weights: the same tokens, and log-probabilities to rounding."""
    own = policy_sampler(policy, chat, max_batch_size=64)
    said = []
    for version in range(3):
        engine.update(policy, version)
        mine, theirs = greedy(own), greedy(engine)
        assert ids(theirs) == ids(mine)
        for ours, others in zip(chain(*mine), chain(*theirs), strict=True):
            assert others.logprobs == pytest.approx(ours.logprobs, abs=2e-5)
            assert others.finished == ours.finished
        said.append(ids(theirs))
        move(policy, version)
    assert said[0] != said[1] != said[2]


def check_seeds(engine: Engine) -> None:
    """What is drawn follows from the seed and the place of prompt and completion, not from the company."""
    params = SamplingParams(count=3, max_tokens=12, seed=5)
    whole = ids(engine.sample(PROMPTS, params))
    assert ids(engine.sample(PROMPTS, params)) == whole
    assert ids(engine.sample(PROMPTS, replace(params, seed=6))) != whole
    alone = engine.sample([PROMPTS[3], PROMPTS[1]], replace(params, ordinals=[3, 1]))
    assert ids(alone) == [whole[3], whole[1]]
    assert len({one for row in whole for one in row}) == 12


def check_episodes(engine: Sampler, policy: Policy, chat: Chat) -> None:
    """Turn by turn the episodes that the Transformers sampler plays, which end at different turns."""
    params = SamplingParams(count=2, max_tokens=12, temperature=0.0, seed=3)
    mine, theirs = (
        sample_and_verify(examples(), cast("Task", Talks()), sampler, chat, params)
        for sampler in (policy_sampler(policy, chat), engine)
    )
    for ours, others in zip(chain(*(g.rollouts for g in mine)), chain(*(g.rollouts for g in theirs)), strict=True):
        assert (others.prompt_ids, others.ids_after_prompt) == (ours.prompt_ids, ours.ids_after_prompt)
        assert others.segments == ours.segments and others.episode == ours.episode
        assert others.logprobs == pytest.approx(ours.logprobs, abs=2e-5)
    assert 3 in {turn for group in theirs for rollout in group.rollouts for turn in rollout.segments}


@WEIGHTS
def test_an_engine_of_the_runs_own(lora: LoraConfig | None, model: Path, tmp_path: Path) -> None:
    policy, chat = load(model, lora)
    said: list[str] = []
    engine = VLLMSampler(str(model), chat, ENGINE, dtype="float32", folder=tmp_path / "weights", log=said.append)
    try:
        check_against_transformers(engine, policy, chat)
        check_seeds(engine)
        # Weights went through memory: nothing was written, and every version was sent.
        assert not (tmp_path / "weights").exists() and said == []
        trained = sum(p.numel() * p.element_size() for p in policy.trainable())
        assert engine.synced > 2 * trained
        with pytest.raises(SamplerError, match=r"cut a completion after \d+ of 50 tokens: its max_model_len must hold"):
            engine.sample([[40] * 40], SamplingParams(count=8, max_tokens=50))
    finally:
        engine.close()
    assert not list(Path("/dev/shm").glob("selfdistill-*"))


def test_weights_go_through_files_where_a_folder_is_named(model: Path, tmp_path: Path) -> None:
    policy, chat = load(model, None)
    said: list[str] = []
    named = ENGINE.model_copy(update={"folder": str(tmp_path / "named")})
    engine = VLLMSampler(str(model), chat, named, dtype="float32", folder=tmp_path / "named", log=said.append)
    try:
        check_against_transformers(engine, policy, chat)
        [line] = said
        assert line.endswith(f"files in {tmp_path / 'named'}, because sampler.folder names a folder for them")
        assert list((tmp_path / "named").iterdir()) and engine.streamed == 0 < engine.synced
    finally:
        engine.close()


def test_sleep_is_refused_where_the_engine_cannot(model: Path, tmp_path: Path) -> None:
    policy, chat = load(model, None)
    sleeping = ENGINE.model_copy(update={"sleep": True})
    engine = VLLMSampler(str(model), chat, sleeping, dtype="float32", folder=tmp_path, log=print)
    with pytest.raises(SamplerError, match="needs a GPU: vLLM's CPU engine cannot sleep"):
        engine.update(policy, 0)


def served(servers: Sequence[Server], chat: Chat, folder: Path, said: list[str]) -> ServerSampler:
    urls = [server.url for server in servers]
    config = ServerConfig(kind="server", urls=urls, timeout=300.0, retries=2, wait=0.1, concurrency=8)
    return ServerSampler(chat, config, folder=folder, log=said.append)


@WEIGHTS
def test_two_servers(lora: LoraConfig | None, servers: list[Server], model: Path, tmp_path: Path) -> None:
    policy, chat = load(model, lora)
    said: list[str] = []
    engine = served(servers, chat, tmp_path / "weights", said)
    check_against_transformers(engine, policy, chat)
    check_seeds(engine)
    one = served(servers[:1], chat, tmp_path / "weights", said)
    one.update(policy, 9)
    engine.update(policy, 9)
    params = SamplingParams(count=2, max_tokens=12, seed=1)
    assert ids(one.sample(PROMPTS, params)) == ids(engine.sample(PROMPTS, params))
    assert said == []


# After the tests of adapters: from then on the servers hold other weights than they were started with.
def test_episodes(servers: list[Server], model: Path, tmp_path: Path) -> None:
    policy, chat = load(model, None)
    chat, said = with_more_stops(chat), list[str]()
    asked = served(servers, chat, tmp_path / "weights", said)
    own = VLLMSampler(str(model), chat, ENGINE, dtype="float32", folder=tmp_path / "own", log=said.append)
    try:
        engines: tuple[Engine, ...] = (asked, own)
        for engine in engines:
            engine.update(policy, 0)
            check_episodes(engine, policy, chat)
    finally:
        own.close()
    assert said == []


@pytest.mark.parametrize("overlap", ["false", "true"])
def test_a_whole_run(overlap: str, servers: list[Server], model: Path, tmp_path: Path) -> None:
    urls = str([server.url for server in servers])
    config = tiny_run(model, "grpo", "sampler.kind=server", f"sampler.urls={urls}", f"sampler.overlap={overlap}")
    run = open_run(config, tmp_path)
    run.train(recorder(run).stop)
    found = lines(tmp_path / "metrics.jsonl")
    versions = sorted({(line["step"], line["policy_version"]) for line in lines(tmp_path / "rollouts.jsonl")})
    assert versions == [(n, max(0, n - 2 if overlap == "true" else n - 1)) for n in range(1, 6)]
    exact = found[:1] if overlap == "true" else found
    assert max(line["sampler_gap_max"] for line in exact) < 1e-4
    assert [line["importance"] for line in exact] == pytest.approx([1.0] * len(exact), abs=1e-4)


def test_a_dead_server_is_one_sentence_and_the_step_is_drawn_again(
    servers: list[Server], model: Path, tmp_path: Path
) -> None:
    policy, chat = load(model, None)
    said: list[str] = []
    engine = served(servers, chat, tmp_path / "weights", said)
    engine.update(policy, 0)
    whole = ids(greedy(engine))
    servers[0].kill()
    assert ids(greedy(engine)) == whole
    assert len(said) == 1
    assert said[0].startswith(f"sampler {servers[0].url}: does not answer")
    servers[1].kill()
    with pytest.raises(SamplerError) as error:
        greedy(engine)
    assert str(error.value).endswith("start the servers again and continue the run with --resume")
    servers[0].start()
    servers[0].wait()
    assert ids(greedy(engine)) == whole


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def processes() -> Iterator[tuple[str, int]]:
    """State and process group of every process."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:3]
            yield state, int(group)


@WEIGHTS
def test_servers_that_the_run_starts(lora: LoraConfig | None, model: Path, tmp_path: Path) -> None:
    """They sample what the model samples, also after one was killed, and end when they are closed."""
    policy, chat = load(model, lora)
    said: list[str] = []
    config, others = ENGINE.model_copy(update={"servers": 2}), set(children(os.getpid()))
    engine = OwnServers(
        str(model),
        chat,
        config,
        dtype="float32",
        folder=tmp_path / "weights",
        logs=tmp_path,
        devices=None,
        log=said.append,
    )
    try:
        check_against_transformers(engine, policy, chat)
        check_seeds(engine)
        whole = ids(greedy(engine))
        keepers = sorted(set(children(os.getpid())) - others)
        assert len(keepers) == 2
        [killed] = children(keepers[0])
        os.kill(killed, 9)
        # The other server draws what the killed one no longer can; the next draw finds it ended.
        assert ids(greedy(engine)) == whole
        assert ids(greedy(engine)) == whole
        assert [line for line in said if line.endswith("it is started again, once")] == [
            "vLLM server 1 of 2 ended: it is started again, once"
        ]
        keepers += sorted(set(children(os.getpid())) - others)
    finally:
        engine.close()
    # No process of their groups runs any more, the engine cores included.
    assert not [group for state, group in processes() if group in keepers and state not in "ZX"]


# --- a server that has the weights already, and a teacher behind it --------------------------------------------------


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 92}
    return save_tiny_model(tmp_path_factory.mktemp("other"), seed=1, **sizes, max_position_embeddings=WINDOW)


@pytest.fixture(scope="session")
def teacher(other: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # vLLM 0.32 on a CPU ends at the first prompt log-probability if it serves adapters.
    server = Server(other, port, (tmp_path_factory.mktemp("log") / "teacher.log").open("wb"), adapters=False)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()
        server.log.close()


def test_a_server_of_the_same_weights_draws_what_the_model_draws(teacher: Server, other: Path) -> None:
    policy, chat = load(other, None)
    server = ServedModel(teacher.url)
    server.probe()
    said: list[str] = []
    sampler = ServedSampler([server], chat, concurrency=4, log=said.append)
    sampler.update(policy, 0)
    mine, theirs = greedy(policy_sampler(policy, chat, max_batch_size=64)), greedy(sampler)
    assert ids(theirs) == ids(mine)
    for ours, others in zip(chain(*mine), chain(*theirs), strict=True):
        assert others.logprobs == pytest.approx(ours.logprobs, abs=2e-5)
    assert len(said) == 1


@pytest.mark.parametrize("name", ["sd", "sdft"])
def test_a_teacher_behind_a_server_scores_as_the_model_does(
    name: str, teacher: Server, other: Path, model: Path, tmp_path: Path
) -> None:
    support = {"kind": "top_k", "k": 8, "chosen_by": "teacher"}
    method = {"name": name} | ({"divergence": {"kind": "reverse_kl", "support": support}} if name == "sdft" else {})
    weights = {"own": {"kind": "external", "path": str(other)}, "served": {"kind": "server", "url": teacher.url}}
    for folder, kind in weights.items():
        config = tiny_run(model, {**method, "weights": kind}, "steps=3", "sampling.top_k=1")
        open_run(config, tmp_path / folder).train()
    own, served = (lines(tmp_path / folder / "metrics.jsonl") for folder in weights)
    assert len(own) == len(served) == 3
    for mine, theirs in zip(own, served, strict=True):
        for key in ("loss", "grad_norm", "pmi"):
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_ranks_have_two_engines(parallel: str, model: Path, tmp_path: Path) -> None:
    """A run of two processes draws with two engines what one process draws with one, and learns the same."""
    found = {}
    for ranks in (1, 2):
        out = tmp_path / f"ranks-{ranks}"
        config = tiny_run(model, "grpo", "steps=2", "evaluation.every=1")
        config = config.model_copy(update={"sampler": ENGINE})
        (tmp_path / f"{ranks}.toml").write_text(as_toml(config.model_dump(exclude_none=True)), encoding="utf-8")
        command = [sys.executable, "-m", "selfdistill", "train", str(tmp_path / f"{ranks}.toml"), "--out", str(out)]
        subprocess.run(
            [*command, *(["--launch", "2", "--set", f"parallel={parallel}"] if ranks > 1 else [])], check=True
        )
        found[ranks] = [(line["step"], line["ids"]) for line in lines(out / "rollouts.jsonl")]
        assert not (out / "weights").exists()
        assert all(line["sync_bytes"] > 0 for line in lines(out / "metrics.jsonl"))
    assert found[1] == found[2]
    assert len(lines(tmp_path / "ranks-2" / "evaluations.jsonl")) == 3
