"""torch.compile, where a run asks for it."""

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
    """The function, compiled when it is first called, for tensors of any length.

    Raises:
        ModelError: when called, where torch cannot compile.
    """
    # Not at the top: it takes a second, and few runs compile.
    from torch._dynamo.exc import TorchDynamoException

    made = torch.compile(function, dynamic=True)

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _compiler_undisturbed():
                return made(*args, **kwargs)
        except TorchDynamoException as error:
            cause = getattr(error, "inner_exception", error)
            first = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no reason given")
            raise ModelError(
                f"model.compile: torch cannot compile here ({type(cause).__name__}: {first}); install what it lacks, "
                "on a CPU a C++ compiler and on a GPU Triton, or leave model.compile unset"
            ) from error

    return called


def check_compiler(device: torch.device) -> None:
    """Find out at the door whether torch can compile.

    Raises:
        ModelError: it cannot.
    """
    compiled(_probe)(torch.ones(2, device=device))


def _probe(values: Tensor) -> Tensor:
    return values.exp().sum()


@contextmanager
def _compiler_undisturbed() -> Iterator[None]:
    """Signals wait. Ctrl-C reaches a compiler at work too, and the run means to go on to the end of its step."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
