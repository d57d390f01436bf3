"""torch.compile for runs with ``model.compile``."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from selfdistill.errors import ModelError

P = ParamSpec("P")
R = TypeVar("R")


@cache
def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function at its first call, for tensors of any length.

    Raises:
        ModelError: on a call, if torch cannot compile here.
    """
    # Imported here because it takes a second and few runs compile.
    from torch._dynamo.exc import TorchDynamoException

    optimised = torch.compile(function, dynamic=True)

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _signals_blocked():
                return optimised(*args, **kwargs)
        except TorchDynamoException as error:
            cause = getattr(error, "inner_exception", error)
            first = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no reason given")
            raise ModelError(
                f"model.compile: torch cannot compile here ({type(cause).__name__}: {first}); install what it lacks, "
                "on a CPU a C++ compiler and on a GPU Triton, or leave model.compile unset"
            ) from error

    return called


def check_compiler(device: torch.device) -> None:
    """Check torch.compile on the training device only, before the run starts.

    Raises:
        ModelError: torch cannot compile for this device.
    """
    compiled(_probe)(torch.ones(2, device=device))


def _probe(values: Tensor) -> Tensor:
    return values.exp().sum()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM during compilation.

    Ctrl-C in a terminal would also kill the C++ compiler, but the run still has to finish its step.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
