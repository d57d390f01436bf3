"""Weights through shared memory: what arrives is what a saved directory holds, a few layers at a time."""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from selfdistill.errors import SamplerError
from selfdistill.models.policy import Policy, load_policy, save_policy
from selfdistill.sampling.vllm_worker import RELOAD, WorkerExtension
from selfdistill.sampling.weight_stream import stream, whole_layers
from support import families
from support.tiny import save_tiny_model


class Worker(WorkerExtension):
    """A worker that keeps what it is given. It may stop in the middle."""

    def __init__(self, stops_after: int | None = None) -> None:
        self.got: dict[str, torch.Tensor] = {}
        self.stops_after = stops_after

    @property
    def model_runner(self) -> Worker:
        return self

    def get_model(self) -> torch.nn.Module:
        return torch.nn.Module()

    def reload_weights(self, weights_iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights_iterator:
            assert name not in self.got
            self.got[name] = tensor
            if len(self.got) == self.stops_after:
                raise RuntimeError("no room for the weights")


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def loaded(model: Path, folder: Path) -> tuple[Policy, dict[str, torch.Tensor]]:
    """A policy, and what its saved directory holds."""
    policy, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    save_policy(policy, chat, folder)
    return policy, saved(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("piece", [1, 3000, 1 << 20])
def test_every_worker_gets_the_weights_of_a_saved_directory(tmp_path: Path, tied: bool, piece: int) -> None:
    model = save_tiny_model(tmp_path / "model", seed=0, tie_word_embeddings=tied)
    policy, expected = loaded(model, tmp_path / "saved")
    workers = [Worker(), Worker()]

    def receive(path: str) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda worker: worker.receive_stream(path), workers)) == [path] * 2

    sent = stream(whole_layers(policy), receive, len(workers), piece=piece)
    assert sent == sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    for worker in workers:
        assert set(worker.got) == set(expected)
        for name, tensor in expected.items():
            assert worker.got[name].dtype == tensor.dtype and torch.equal(worker.got[name], tensor)
    # They are gathered by layers, and not the whole model at once.
    layers = list(whole_layers(policy))
    assert len(layers) > 2 and sum(map(len, layers)) == len(expected)


@pytest.mark.parametrize("family", ["mixtral", "qwen3 mixture of experts", "gpt-oss, sinks"])
def test_experts_are_sent_as_checkpoints_hold_them(tmp_path: Path, family: str) -> None:
    policy, expected = loaded(families.saved(tmp_path / "model", family), tmp_path / "saved")
    worker = Worker()
    stream(whole_layers(policy), worker.receive_stream, 1)
    assert set(worker.got) == set(expected)
    assert all(torch.equal(worker.got[name], tensor) for name, tensor in expected.items())


def test_numbers_of_other_types_and_of_no_or_no_dimension_arrive() -> None:
    tensors = {
        "half": torch.arange(7, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(3.5, dtype=torch.float64),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "count": torch.tensor([1, 2], dtype=torch.int64),
    }
    worker = Worker()
    stream([tensors], worker.receive_stream, 1, piece=64)
    for name, tensor in tensors.items():
        assert worker.got[name].shape == tensor.shape and torch.equal(worker.got[name], tensor)


def test_a_workers_own_error_is_told() -> None:
    with pytest.raises(RuntimeError, match="no room for the weights"):
        stream([{str(n): torch.ones(100)} for n in range(50)], Worker(stops_after=3).receive_stream, 1, piece=64)


def test_the_other_workers_do_not_wait_for_one_that_fails() -> None:
    """As vLLM asks the workers of an engine: it reads their answers in order, the failed one's last."""
    told = queue.SimpleQueue[BaseException]()

    def receive(path: str) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda worker: worker.receive_stream(path), [Worker(), Worker(stops_after=3)]))

    def send() -> None:
        try:
            stream([{str(n): torch.ones(100)} for n in range(50)], receive, 2, piece=64)
        except BaseException as error:
            told.put(error)

    # Not in this thread, which would hang with it.
    threading.Thread(target=send, daemon=True).start()
    assert isinstance(told.get(timeout=60), EOFError)


def test_a_sender_that_no_longer_hears_has_ended(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "weights"))
        listener.listen(1)

        def send() -> None:
            connection, _ = listener.accept()
            connection.shutdown(socket.SHUT_RD)
            connection.sendall(b'{"tensors": []}\n')
            connection.close()

        sender = threading.Thread(target=send)
        sender.start()
        with pytest.raises(EOFError, match="the process that sends the weights has ended"):
            Worker().receive_stream(str(tmp_path / "weights"))
        sender.join()


def test_a_worker_that_hangs_up_or_never_comes_is_one_sentence() -> None:
    def hangs_up(path: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(path)

    with pytest.raises(SamplerError, match="ended while it was sent weights"):
        stream([{"a": torch.ones(3)}], hangs_up, 1)
    with pytest.raises(SamplerError, match="fewer workers"):
        stream([{"a": torch.ones(3)}], lambda path: None, 1)


def test_nothing_is_left_in_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen: list[list[str]] = []

    class Looks(Worker):
        def reload_weights(self, weights_iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
            super().reload_weights(weights_iterator)
            seen.append([path.name for path in tmp_path.rglob("*") if path.is_file()])

    stream([{"a": torch.ones(1000)}], Looks().receive_stream, 1)
    assert seen == [[]] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tied", [True, False])
def test_vllm_warns_of_missing_weights_and_not_of_those_that_are_shared(
    tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Warns(Worker):
        def get_model(self) -> torch.nn.Module:
            model = torch.nn.Module()
            model.config = SimpleNamespace(tie_word_embeddings=tied)  # type: ignore[assignment]
            return model

        def reload_weights(self, weights_iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
            super().reload_weights(weights_iterator)
            for layer in ("YaRNScalingRotaryEmbedding", "ParallelLMHead", "RMSNorm"):
                logging.getLogger(RELOAD).warning("%s: Failed to load weights", layer)
            logging.getLogger(RELOAD).warning("ParallelLMHead: no such quantisation")

    stream([{"a": torch.ones(3)}], Warns().receive_stream, 1)
    logging.getLogger(RELOAD).warning("RotaryEmbedding: Failed to load weights")
    head = [] if tied else ["ParallelLMHead: Failed to load weights"]
    others = ["RMSNorm: Failed to load weights", "ParallelLMHead: no such quantisation"]
    assert caplog.messages == [*head, *others, "RotaryEmbedding: Failed to load weights"]
