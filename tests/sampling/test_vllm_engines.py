"""Several vLLM engines of one run: who is started where, which requests each gets, and which weights."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from selfdistill.config.sampler import VLLMConfig
from selfdistill.config.sections import LoraConfig
from selfdistill.distributed.world import World
from selfdistill.errors import SamplerError
from selfdistill.models.policy import Policy, load_policy
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.vllm import VLLMSampler
from selfdistill.sampling.vllm_worker import WorkerExtension

PROMPTS = [[20, n] for n in range(5)]


class Worker(WorkerExtension):
    """Keeps the weights that it is given."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    @property
    def model_runner(self) -> Any:
        return SimpleNamespace(get_model=torch.nn.Module)

    def reload_weights(self, weights_iterator: Iterator[tuple[str, Tensor]]) -> None:
        self.weights = dict(weights_iterator)


class Engine:
    """Answers each request with its own prompt's last id and seed, and remembers how it was started."""

    made: ClassVar[list[Engine]] = []
    fails = ""

    def __init__(self, **options: Any) -> None:
        names = ("CUDA_VISIBLE_DEVICES", "RANK", "MASTER_ADDR")
        self.options, self.environment = options, {name: os.environ.get(name) for name in names}
        os.environ["LOCAL_WORLD_SIZE"] = "1"  # as vLLM does on a CPU
        self.workers = [Worker() for _ in range(options["tensor_parallel_size"])]
        self.version, self.asked, self.stopped = "", list[tuple[list[int], int]](), False
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.stop))
        Engine.made.append(self)

    def stop(self) -> None:
        self.stopped = True

    def collective_rpc(self, name: str, args: Sequence[str]) -> list[str]:
        if Engine.fails and name == "receive_stream":
            raise RuntimeError(Engine.fails)
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(self.workers)) as pool:
            return list(pool.map(lambda worker: getattr(worker, name)(*args), self.workers))

    def update_weight_version(self, label: str) -> None:
        self.version = label

    def generate(self, inputs: Sequence[Mapping[str, Any]], params: Sequence[Any], **_: Any) -> list[Any]:
        self.asked += [(one["prompt_token_ids"], each.seed) for one, each in zip(inputs, params, strict=True)]
        return [self.answer(one["prompt_token_ids"][-1], each) for one, each in zip(inputs, params, strict=True)]

    def answer(self, last: int, params: Any) -> Any:
        ids = [last, params.seed % 7, params.stop_token_ids[0]]
        logprobs = [{token: SimpleNamespace(logprob=-1.0)} for token in ids]
        versions = [SimpleNamespace(version=self.version)]
        output = SimpleNamespace(finish_reason="stop", weight_versions=versions, token_ids=ids, logprobs=logprobs)
        return SimpleNamespace(outputs=[output])


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module, platforms = ModuleType("vllm"), ModuleType("vllm.platforms")
    vars(module).update(LLM=Engine, SamplingParams=SimpleNamespace)
    vars(platforms).update(current_platform=SimpleNamespace(is_cpu=lambda: True))
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.setattr(Engine, "made", [])
    monkeypatch.setattr(Engine, "fails", "")


@pytest.fixture
def policy(model: Path) -> Policy:
    return load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))[0]


def sampler(model: Path, folder: Path, *, ranks: int, spread: int = 1) -> VLLMSampler:
    _, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    config = VLLMConfig(kind="vllm", tensor_parallel_size=spread)
    return VLLMSampler(str(model), chat, config, dtype="float32", folder=folder / "weights", log=print, ranks=ranks)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("before", ["2", None])
def test_what_vllm_tells_its_own_processes_is_not_told_to_ours(
    ranks: int, before: str | None, model: Path, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set first, so that it is taken away again after the test.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    if before is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE")
    sampler(model, tmp_path, ranks=ranks).update(policy, 0)
    assert len(Engine.made) == ranks
    assert os.environ.get("LOCAL_WORLD_SIZE") == before


def test_every_rank_has_an_engine_on_its_device_and_every_worker_the_weights(
    model: Path, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    engines = sampler(model, tmp_path, ranks=4, spread=2)
    engines.update(policy, 0)
    assert [engine.environment["CUDA_VISIBLE_DEVICES"] for engine in Engine.made] == ["0,1", "2,3"]
    assert {engine.environment[name] for engine in Engine.made for name in ("RANK", "MASTER_ADDR")} == {None}
    assert (os.environ["RANK"], os.environ["MASTER_ADDR"]) == ("0", "127.0.0.1")
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    with torch.no_grad():
        policy.trainable()[0].add_(1.0)
    engines.update(policy, 1)
    assert len(Engine.made) == 2 and len({engine.version for engine in Engine.made}) == 1
    own = policy.model.state_dict()
    for worker in (worker for engine in Engine.made for worker in engine.workers):
        assert worker.weights and all(torch.equal(own[name], tensor) for name, tensor in worker.weights.items())
    size = sum(t.numel() * t.element_size() for t in Engine.made[0].workers[0].weights.values())
    # They are sent once for all workers.
    assert engines.synced == 2 * size and not (tmp_path / "weights").exists()
    engines.close()
    assert all(engine.stopped for engine in Engine.made)


def test_the_visible_devices_are_shared_out_and_one_engine_sees_all(
    model: Path, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5,6")
    sampler(model, tmp_path, ranks=3).update(policy, 0)
    sampler(model, tmp_path, ranks=1).update(policy, 0)
    assert [engine.environment["CUDA_VISIBLE_DEVICES"] for engine in Engine.made] == ["4", "GPU-5", "6", "4,GPU-5,6"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,GPU-5,6"


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_drawn_does_not_depend_on_how_many_engines_draw(
    count: int, model: Path, policy: Policy, tmp_path: Path
) -> None:
    params = SamplingParams(count=count, max_tokens=9, seed=5)
    drawn = []
    for ranks in (1, 2, 3, 7):
        engines = sampler(model, tmp_path, ranks=ranks)
        engines.update(policy, 0)
        drawn.append(engines.sample(PROMPTS, params))
        asked = [{prompt[-1] for prompt, _ in engine.asked} for engine in engines.engines]
        # Every prompt is computed by one engine, and they share the prompts out evenly.
        assert sorted(n for each in asked for n in each) == [0, 1, 2, 3, 4]
        assert max(map(len, asked)) - min(map(len, asked)) <= 1
    assert drawn[1:] == drawn[:1] * 3
    assert [{one.ids[0] for one in row} for row in drawn[0]] == [{n} for n in range(5)]


def test_an_engine_that_takes_no_weights_is_one_sentence_and_all_layers_are_gathered(
    model: Path, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfdistill.sampling import vllm, weight_stream

    gathered: list[int] = []

    def layers(policy: Policy) -> Iterator[dict[str, Tensor]]:
        for layer in weight_stream.whole_layers(policy):
            gathered.append(len(layer))
            yield layer

    monkeypatch.setattr(vllm, "whole_layers", layers)
    Engine.fails = "Engine core died.\nCUDA error: an illegal memory access"
    with pytest.raises(SamplerError, match=r"^vLLM cannot take the weights of version 3: CUDA error: an illegal"):
        sampler(model, tmp_path, ranks=2).update(policy, 3)
    # Other ranks gather along with the first: it goes through all layers, whatever fails.
    assert len(gathered) == len(list(weight_stream.whole_layers(policy)))


def test_an_engine_that_has_died_does_not_leave_the_others_waiting(model: Path, policy: Policy, tmp_path: Path) -> None:
    told = queue.SimpleQueue[BaseException]()
    engines = sampler(model, tmp_path, ranks=2)
    engines.update(policy, 0)

    def dead(name: str, args: Sequence[str]) -> Any:
        raise RuntimeError("Engine core died.")

    Engine.made[1].collective_rpc = dead  # type: ignore[method-assign]

    def update() -> None:
        try:
            engines.update(policy, 1)
        except BaseException as error:
            told.put(error)

    # Not in this thread, which would hang with it.
    threading.Thread(target=update, daemon=True).start()
    assert str(told.get(timeout=60)) == "vLLM cannot take the weights of version 1: Engine core died."


def test_ctrl_c_does_not_reach_what_an_engine_starts(
    model: Path, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Starts(Engine):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            started.append(subprocess.Popen(["sleep", "600"]))

    monkeypatch.setattr(sys.modules["vllm"], "LLM", Starts)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    sampler(model, tmp_path, ranks=1).update(policy, 0)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
    [process] = started
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM


def test_a_worker_ends_with_the_run_that_was_killed() -> None:
    WorkerExtension().end_with(os.getpid())
    run = subprocess.Popen(["sleep", "600"])
    code = (
        "import time; from selfdistill.sampling.vllm_worker import WorkerExtension; "
        f"WorkerExtension().end_with({run.pid}); print('so', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == b"so\n" and worker.poll() is None
        run.kill()
        run.wait()
        assert worker.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("free", [1 << 26, 1 << 30])
def test_an_adapter_is_kept_in_memory_where_there_is_room(
    free: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ModuleType("vllm.lora.request")
    vars(request).update(LoRARequest=lambda name, number, path: SimpleNamespace(lora_int_id=number, path=path))
    for name, module in (("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr("selfdistill.sampling.weight_sync.SHARED", tmp_path / "shared")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    policy, _ = load_policy(
        str(model), dtype=torch.float32, device=torch.device("cpu"), lora=LoraConfig(rank=2, alpha=4)
    )
    engines = sampler(model, tmp_path, ranks=1)
    engines.update(policy, 0)
    place = Path(engines.adapter.path).relative_to(tmp_path)
    # A container has 64 MB of shared memory.
    assert place.parts[0] == ("weights" if free == 1 << 26 else "shared")
    engines.close()
    assert list((tmp_path / "shared").iterdir()) == []


def test_other_ranks_gather_and_start_nothing(
    model: Path, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfdistill.sampling import vllm

    gathered: list[int] = []

    def layers(policy: Policy) -> Iterator[dict[str, Tensor]]:
        for n in range(3):
            gathered.append(n)
            yield {}

    monkeypatch.setattr(vllm, "whole_layers", layers)
    monkeypatch.setattr(World, "broadcast_from_rank_zero", lambda self, ask: None)
    engines = sampler(model, tmp_path, ranks=2)
    engines.update(policy, 0, World(rank=1, size=2, local_rank=1))
    assert (len(gathered), Engine.made, engines.synced) == (3, [], 0)


def test_other_ranks_leave_the_adapter_that_the_first_has_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = LoraConfig(rank=2, alpha=4)
    policy, _ = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"), lora=lora)
    monkeypatch.setattr("selfdistill.sampling.weight_sync.SHARED", tmp_path)
    monkeypatch.setattr(World, "broadcast_from_rank_zero", lambda self, ask: None)
    engines = sampler(model, tmp_path, ranks=2)
    written = tmp_path / f"selfdistill-{engines.weight_sync.run}" / "version-000000"
    written.mkdir(parents=True)
    engines.update(policy, 0, World(rank=1, size=2, local_rank=1))
    assert written.is_dir()
