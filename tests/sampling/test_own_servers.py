"""Servers that a run starts: they answer like a user's, are started again once, and end with whatever ends the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

import selfdistill as sd
from selfdistill.config.run import parse_config
from selfdistill.config.sampler import VLLMConfig
from selfdistill.config.sections import LoraConfig
from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import World
from selfdistill.errors import ConfigError, SamplerError
from selfdistill.models.policy import Policy, load_policy
from selfdistill.sampling import keeper
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.build import check_teacher
from selfdistill.sampling.own_servers import OwnServers, server_devices
from selfdistill.training.atomic import checkpoints
from selfdistill.types import Completion, External
from support.ranks import WholeRun, run_cases
from support.runs import lines, open_run, recorder, tiny_run, train
from support.stand_in import FOLDER, completion, weights_of
from support.tiny import STOP

pytestmark = pytest.mark.usefixtures("no_page")

PROMPTS = ([20, 21, 22], [30, 31, 9, 9, 9], [40], [20, 21, 22])
PARAMS = SamplingParams(count=2, max_tokens=9, seed=3)
TESTS = Path(__file__).parents[1]
T = TypeVar("T")


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder by whose files the stand-in is told what to do. It is what ``-m vllm.…api_server`` runs."""
    package = tmp_path / "packages" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text("from support.stand_in import main\nmain()\n", encoding="utf-8")
    folder = tmp_path / "told"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "packages"), str(TESTS), *sys.path]))
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.setattr("selfdistill.sampling.vllm.find_spec", lambda name: name)
    return folder


@pytest.fixture
def student(model: Path) -> tuple[Policy, Chat]:
    return load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))


Make = Callable[..., OwnServers]


@pytest.fixture
def make(model: Path, student: tuple[Policy, Chat], told: Path, tmp_path: Path) -> Iterator[Make]:
    made: list[OwnServers] = []

    def start(devices: list[list[int]] | None = None, **settings: Any) -> OwnServers:
        said: list[str] = []
        engine = OwnServers(
            str(model),
            student[1],
            VLLMConfig(kind="vllm", **settings),
            dtype="float32",
            folder=tmp_path / "run" / "weights",
            logs=tmp_path / "run",
            devices=devices,
            log=said.append,
        )
        made.append(engine)
        engine.said = said  # type: ignore[attr-defined]
        return engine

    yield start
    for engine in made:
        engine.close()


def said(engine: OwnServers) -> list[str]:
    """What the run would have been told, without addresses and places."""
    told: list[str] = engine.said  # type: ignore[attr-defined]
    return [line.partition("; its output")[0].partition(" at http")[0] for line in told]


def draw(engine: OwnServers) -> list[list[Completion]]:
    return engine.sample(PROMPTS, PARAMS)


def expected(weights: Path) -> list[list[tuple[int, ...]]]:
    """The tokens that the stand-in samples from the weights in a directory."""
    digest, seeds = weights_of(weights), PARAMS.seeds(len(PROMPTS))
    return [
        [tuple(completion(prompt, seed, digest, max_tokens=PARAMS.max_tokens, stop=STOP)) for seed in row]
        for prompt, row in zip(PROMPTS, seeds, strict=True)
    ]


def ids(rows: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[one.ids for one in row] for row in rows]


def move(policy: Policy) -> None:
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.1)


def starts(told: Path) -> list[dict[str, Any]]:
    return lines(told / "starts.jsonl")


def runs(pid: int) -> bool:
    """Whether a process still runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def left(told: Path, *, seconds: float = 0.0) -> list[int]:
    """Processes of all servers that still run, once they had some time to end."""
    until = time.monotonic() + seconds
    while True:
        found = [pid for start in starts(told) for pid in start["pids"] if runs(pid)]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.1)


# --- start and end ---------------------------------------------------------------------------------------------------


def test_servers_start_with_the_first_weights_and_sample_from_each_version(
    make: Make, student: tuple[Policy, Chat], told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5,6")
    engine = make([[1], [2]], servers=2, max_model_len=64, max_num_seqs=7, enforce_eager=True)
    for version in range(2):
        engine.update(student[0], version)
        drawn = draw(engine)
        assert ids(drawn) == expected(tmp_path / "run" / "weights" / f"version-00000{version}")
        move(student[0])
    both = sorted(starts(told), key=lambda start: start["environment"]["CUDA_VISIBLE_DEVICES"])
    assert [start["port"] for start in both] == [process.port for process in reversed(engine.processes)]
    assert [start["environment"]["CUDA_VISIBLE_DEVICES"] for start in both] == ["6", "GPU-5"]
    assert {start["environment"]["VLLM_SERVER_DEV_MODE"] for start in both} == {"1"}
    assert {start["environment"]["RANK"] for start in both} == {None}
    arguments = " ".join(both[1]["arguments"])
    assert arguments == (
        f"--model {engine.base} --host 127.0.0.1 --port {engine.processes[0].port} --dtype float32 "
        "--gpu-memory-utilization 0.4 --tensor-parallel-size 1 --max-model-len 64 --max-num-seqs 7 "
        "--worker-extension-cls selfdistill.sampling.vllm_worker.WorkerExtension --logprobs-mode raw_logprobs "
        "--generation-config vllm --enable-scale-out --disable-uvicorn-access-log --enforce-eager"
    )
    assert said(engine) == ["vLLM server 1 of 2 starts", "vLLM server 2 of 2 starts"]
    # Each server has a process group of its own.
    assert {os.getpgid(pid) for start in both for pid in start["pids"]} == {start["pids"][0] for start in both}
    assert (tmp_path / "run" / "server-1.log").exists() and (tmp_path / "run" / "server-2.log").exists()
    engine.close()
    assert left(told) == []
    assert list((tmp_path / "run" / "weights").iterdir()) == []


def test_servers_of_an_adapter_are_sent_the_adapter(make: Make, told: Path, model: Path, tmp_path: Path) -> None:
    policy, _ = load_policy(
        str(model), dtype=torch.float32, device=torch.device("cpu"), lora=LoraConfig(rank=2, alpha=4)
    )
    engine = make(servers=1)
    for version in range(2):
        engine.update(policy, version)
        assert ids(draw(engine)) == expected(tmp_path / "run" / "weights" / f"version-00000{version}")
        move(policy)
    [start] = starts(told)
    assert " ".join(start["arguments"]).endswith(
        "--max-lora-rank 8 --enable-scale-out --disable-uvicorn-access-log --enable-lora"
    )
    assert start["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_a_rank_that_is_not_the_first_starts_nothing(
    make: Make, student: tuple[Policy, Chat], told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hear_nothing(self: World, ask: Callable[[], T]) -> T | None:
        return None

    monkeypatch.setattr(World, "broadcast_from_rank_zero", hear_nothing)
    engine = make(servers=2)
    engine.update(student[0], 0, World(1, 2, 1))
    assert [process.starts for process in engine.processes] == [0, 0]
    assert not (told / "starts.jsonl").exists()


def test_a_server_that_ends_while_it_starts_is_a_sentence_with_what_it_said(
    make: Make, student: tuple[Policy, Chat], told: Path
) -> None:
    (told / "fails").touch()
    engine = make(servers=1)
    with pytest.raises(SamplerError) as error:
        engine.update(student[0], 0)
    assert str(error.value).splitlines() == [
        "vLLM server 1 of 1 ended while it started; it said last:",
        "  loading the model",
        "  ValueError: no room for the cache",
        "  the server ended with exit code 1",
    ]


# --- once more, and no second time -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "what", "sentence"),
    [(1, "dies", "ended"), (2, "dies", "ended"), (1, "hangs", "no longer answers")],
)
def test_a_server_that_fails_is_started_once_more_with_the_current_weights(
    count: int, what: str, sentence: str, make: Make, student: tuple[Policy, Chat], told: Path, tmp_path: Path
) -> None:
    engine = make(servers=count, timeout=60.0 if what == "dies" else 4.0)
    engine.update(student[0], 0)
    draw(engine)
    move(student[0])
    engine.update(student[0], 1)
    whole = draw(engine)
    assert ids(whole) == expected(tmp_path / "run" / "weights" / "version-000001")
    (told / f"{what}-once").touch()
    assert draw(engine) == whole
    assert len(starts(told)) == count + 1
    [line] = [line for line in said(engine) if "started again" in line]
    assert line in [f"vLLM server {n} of {count} {sentence}: it is started again, once" for n in (1, 2)]
    # What the failed server was asked for may have been answered by the other one.
    assert draw(engine) == whole
    if count == 1:
        (told / f"{what}-again").touch()
        with pytest.raises(
            SamplerError, match=rf"^vLLM server 1 of 1 {sentence}, for the second time; .* with --resume"
        ):
            draw(engine)
    engine.close()
    assert left(told) == []


def test_a_server_that_died_between_two_steps_is_started_again_before_it_is_asked(
    make: Make, student: tuple[Policy, Chat], told: Path
) -> None:
    engine = make(servers=1)
    engine.update(student[0], 0)
    whole = draw(engine)
    os.kill(starts(told)[0]["pids"][1], signal.SIGKILL)
    assert draw(engine) == whole
    engine.update(student[0], 0)
    assert (len(starts(told)), engine.processes[0].starts) == (2, 2)
    assert "the server was killed by SIGKILL" in engine.processes[0].log.read_text(encoding="utf-8")


# --- whatever ends the run -------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys, time
from pathlib import Path
from selfdistill.sampling.server_process import ServerProcess, free_ports, wait_for_health
assert "torch" not in sys.modules
server = ServerProcess("the server", free_ports(1)[0], Path(sys.argv[1]) / "server.log")
server.start([sys.executable, "-m", "support.stand_in", "--port", str(server.port)], os.environ)
wait_for_health([server], "starting")
print("well", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_when_the_one_that_started_it_is_killed(
    number: signal.Signals, told: Path, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as program:
        assert program.stdout is not None and program.stdout.readline() == "well\n"
        assert len(left(told)) == 3
        program.send_signal(number)
    assert left(told, seconds=30.0) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process is not told that its parent has ended")
def test_a_server_ends_with_its_keeper(make: Make, student: tuple[Policy, Chat], told: Path) -> None:
    engine = make(servers=1)
    engine.update(student[0], 0)
    whole = draw(engine)
    watcher, server, _ = starts(told)[0]["pids"]
    os.kill(watcher, signal.SIGKILL)
    until = time.monotonic() + 10
    while runs(server) and time.monotonic() < until:
        time.sleep(0.05)
    assert not runs(server)
    assert draw(engine) == whole
    engine.close()
    assert left(told) == []


def test_a_return_code_is_told_in_words() -> None:
    assert [keeper.ending(code) for code in (3, -9)] == ["ended with exit code 3", "was killed by SIGKILL"]


# --- runs and commands -----------------------------------------------------------------------------------------------

SERVERS = ("sampler.kind=vllm", "sampler.servers=1", "steps=3", "checkpoint.every=3", "evaluation.every=3")


def test_a_run_ends_its_servers_and_goes_on_after_a_second_death(model: Path, told: Path, tmp_path: Path) -> None:
    config = tiny_run(model, "grpo", *SERVERS)
    train(config, tmp_path / "whole")
    assert left(told) == []
    # The server dies in the third step, and once more when it is asked again.
    for name in ("dies-a", "dies-b"):
        (told / name).write_text("-2", encoding="utf-8")
    with pytest.raises(SamplerError, match=r"^vLLM server 1 of 1 ended, for the second time"):
        train(config, tmp_path / "run")
    assert left(told) == []
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000002"]
    train(config, tmp_path / "run", resume=True)
    assert left(told) == []
    for name in ("rollouts.jsonl", "evaluations.jsonl"):
        assert lines(tmp_path / "run" / name) == lines(tmp_path / "whole" / name)
    losses = [[line["loss"] for line in lines(tmp_path / name / "metrics.jsonl")] for name in ("run", "whole")]
    assert losses[0] == losses[1]
    assert (tmp_path / "run" / "server-1.log").exists()


@pytest.mark.long
def test_two_processes_share_the_servers_of_the_first(model: Path, told: Path, tmp_path: Path) -> None:
    settings = ("sampler.kind=vllm", "sampler.servers=1", "steps=1")
    train(tiny_run(model, "grpo", *settings), tmp_path / "alone")
    run_cases([WholeRun("both", 2, "model", "grpo", (*settings, f"model.path='{model}'", "parallel=ddp"))], tmp_path)
    assert len(starts(told)) == 2 and left(told) == []
    drawn = [[line["ids"] for line in lines(tmp_path / name / "rollouts.jsonl")] for name in ("alone", "both")]
    assert drawn[0] == drawn[1]


def test_a_run_that_is_told_to_stop_ends_its_servers(model: Path, told: Path, tmp_path: Path) -> None:
    run = open_run(tiny_run(model, "grpo", *SERVERS), tmp_path / "run", stop_after=1)
    run.train(recorder(run).stop)
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 1
    assert len(starts(told)) == 1 and left(told) == []


def test_a_command_starts_servers_and_ends_them(model: Path, told: Path) -> None:
    given: dict[str, Any] = {"task": "countdown", "samples": 2, "limit": 2, "max_tokens": 8}
    sd.evaluate(str(model), engine="vllm", overrides=["sampler.servers=2"], **given)
    assert len(starts(told)) == 2 and left(told) == []


# --- what cannot work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "sentence"),
    [
        ({"kind": "hf", "servers": 2}, 'sampler.servers is for sampler.kind = "vllm", whose servers the run starts'),
        ({"kind": "server", "urls": ["http://a"], "servers": 2}, 'are sampler.urls of sampler.kind = "server"'),
        ({"kind": "vllm", "servers": 0}, "sampler.servers: input should be greater than or equal to 1 (got 0)"),
        ({"kind": "vllm", "devices": [1]}, "devices are those of servers: set servers too"),
        ({"kind": "vllm", "timeout": 60}, "timeout is that of servers: set servers too"),
        (
            {"kind": "vllm", "servers": 2, "tensor_parallel_size": 2, "devices": [1, 2]},
            "devices names 2 GPUs, and servers = 2 with tensor_parallel_size = 2 need 4",
        ),
    ],
)
def test_a_config_that_cannot_be(sampler: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({"method": "grpo", "sampler": sampler}, "a test")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("settings", "taken", "count", "devices"),
    [
        ({"servers": 2}, [], 0, None),
        ({"servers": 2}, [0], 4, [[1], [2]]),
        ({"servers": 1, "tensor_parallel_size": 2}, [1], 4, [[0, 2]]),
        ({"servers": 2, "devices": [0, 0]}, [0], 1, [[0], [0]]),
    ],
)
def test_servers_get_the_gpus_that_train_nothing(
    settings: dict[str, Any], taken: list[int], count: int, devices: list[list[int]] | None
) -> None:
    assert server_devices(VLLMConfig(kind="vllm", **settings), taken=taken, count=count) == devices


@pytest.mark.parametrize(
    ("settings", "count", "sentence"),
    [
        ({"servers": 2}, 2, r"sampler\.servers = 2 is more than .* of its 2 GPUs the run itself trains on 1; lower"),
        ({"servers": 1, "devices": [2]}, 2, r"sampler\.devices names GPU 2, and this machine has 2 GPUs"),
        ({"servers": 1, "devices": [0]}, 0, r"sampler\.devices names GPU 0, and this machine has 0 GPUs"),
        ({"servers": 1, "sleep": True}, 0, "vLLM's CPU engine cannot sleep"),
    ],
)
def test_gpus_that_there_are_not(settings: dict[str, Any], count: int, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        server_devices(VLLMConfig(kind="vllm", **settings), taken=[0], count=count)


def test_a_teacher_of_another_model_does_not_sample_on_them() -> None:
    with pytest.raises(ConfigError, match=r"the teacher org/other is another model, .*: leave sampler\.servers out"):
        check_teacher(VLLMConfig(kind="vllm", servers=1), External("org/other"))
