"""A device apart: tensors that are computed on the CPU and may meet others only where a GPU's tensors may.

Code that forgets to move a tensor works on a CPU and breaks on the first GPU. Here it breaks as well, without one:
every operation between the device and the CPU that CUDA refuses is refused. Run as a program it makes the cases of
test_other_device.py, because a backend, once it is registered, stays for the rest of a process.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from torch.utils.checkpoint import set_checkpoint_early_stop

from selfdistill.cli import app as cli
from support.runs import LORA, METHODS, tiny_run, train

NAME = "apart"
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
}
"""Operations whose indices may lie on the CPU."""


class Apart(torch.Tensor):
    """A tensor of the device; its numbers are in ``held``, a tensor of the CPU."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Apart:
        """Looks like the tensor that it holds, elsewhere."""
        made: Apart = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def __init__(self, held: torch.Tensor) -> None:
        """All is done by ``__new__``."""

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Operations outside of :func:`device_apart`, as in a backward pass."""
        return compute(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy with numbers of its own."""
        made: torch.Tensor = Apart(self.held.detach().clone())
        if getattr(self, "_is_param", False):
            made = torch.nn.Parameter(made, self.requires_grad)
        return memo.setdefault(id(self), made)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """In a file it is a tensor like others."""
        return self.held.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        """The numbers."""
        return self.held.tolist()

    def storage(self) -> Any:
        """That of the numbers: saving asks which tensors share one."""
        return self.held.storage()

    def untyped_storage(self) -> Any:
        """The same without a type."""
        return self.held.untyped_storage()


def is_apart(place: Any) -> bool:
    """Whether something is this device."""
    return isinstance(place, torch.device) and place.type == NAME


def compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on the CPU, if a GPU would do it too.

    Raises:
        RuntimeError: tensors of both devices meet.
    """
    leaves = tree_leaves((args, kwargs))
    ours = [leaf for leaf in leaves if isinstance(leaf, Apart)]
    if not ours and not any(map(is_apart, leaves)):
        return func(*args, **kwargs)
    if func is aten._fused_sdp_choice.default:
        return 0  # plain operations
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with Operations():  # type: ignore[no-untyped-call]
            return func.decompose(*args, **kwargs)
    _refuse_strangers(func, args, leaves)
    wanted = kwargs.get("device")
    here = {**kwargs, "device": torch.device("cpu")} if is_apart(wanted) else kwargs
    known = {id(tensor.held): tensor for tensor in ours}
    bare = tree_map(lambda leaf: leaf.held if isinstance(leaf, Apart) else leaf, (args, here))
    found = func(*bare[0], **bare[1])
    stays = isinstance(args[0], Apart) if func is aten.copy_.default else bool(ours)
    wraps = stays if wanted is None else is_apart(wanted)

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else Apart(leaf) if wraps else leaf

    return tree_map(placed, found)


def _refuse_strangers(func: Any, args: Sequence[Any], leaves: Sequence[Any]) -> None:
    """A GPU takes numbers without dimensions from the CPU, and indices; all else must lie where it is."""
    if func in COPIES:
        return
    if func in INDEXED and isinstance(args[0], Apart):
        leaves = [args[0], *args[2:3]]
    theirs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Apart) and leaf.dim()]
    if theirs and any(isinstance(leaf, Apart) for leaf in leaves):
        shapes = [f"{leaf.device} {tuple(leaf.shape)}" for leaf in leaves if isinstance(leaf, torch.Tensor)]
        raise RuntimeError(f"expected all tensors to be on the same device: {func} of {', '.join(shapes)}")


class Operations(TorchDispatchMode):
    """Hands every operation to :func:`compute`."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute it."""
        return compute(func, args, kwargs or {})


class NewTensors(TorchFunctionMode):
    """``torch.tensor`` moves what it has made where no mode sees it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Make it here, and wrap it."""
        given = dict(kwargs or {})
        if func is torch.tensor and is_apart(given.get("device")):
            del given["device"]
            return Apart(torch.tensor(*args, **given))
        return func(*args, **given)


class Backend(_DummyBackendModule):
    """What torch asks a backend."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Number types of automatic mixed precision, which is switched off and on again around a recomputation."""
        return [torch.bfloat16, torch.float16]


@contextmanager
def device_apart() -> Iterator[None]:
    """The device can be used by its name, under which it is known to torch."""
    # A module that moves keeps its parameters, and those that are tied stay so.
    torch.__future__.set_swap_module_params_on_conversion(True)
    # An early stop throws through the device's guard, which a backend in Python does not survive.
    with set_checkpoint_early_stop(False), NewTensors(), Operations():  # type: ignore[no-untyped-call]
        yield


# --- the cases of test_other_device.py ----------------------------------------------------------------------------

SHORT = ("steps=2", "checkpoint.every=1", "limits.max_tokens_per_microbatch=120", "limits.max_logits_per_chunk=4096")
"""Small batches: several of a kind, and some with a few views."""
RECOMPUTED = ("parallel.activation_checkpointing=true",)


def run_on(place: str, folder: Path, name: str, method: str, overrides: Sequence[str]) -> None:
    """A short run of a method."""
    config = tiny_run(folder / "model", METHODS[method], *SHORT, *overrides, f"model.device={place}")
    train(config, folder / f"{name} {place}")


def resumed(place: str, folder: Path, *, name: str = "resumed", overrides: tuple[str, ...] = ()) -> None:
    """A run that is stopped and goes on."""
    config = tiny_run(folder / "model", METHODS["sdpo"], *SHORT, *overrides, f"model.device={place}")
    train(config, folder / f"{name} {place}", stop_after=1)
    train(config, folder / f"{name} {place}", resume=True)


def inspected(place: str, folder: Path) -> None:
    """The microscope."""
    arguments = ["inspect", str(folder / "model"), "--task", "countdown", "--set", "task.difficulty=easy"]
    arguments += ["--problems", "2", "--max-tokens", "12", "--out", str(folder / f"inspected {place}")]
    try:
        cli.main([*arguments, "--set", f"model.device={place}"])
    except SystemExit as ended:
        if ended.code:
            raise


def cases() -> Mapping[str, Callable[[str, Path], None]]:
    """What is done on both devices."""
    twice = ("optimiser.updates_per_batch=2",)
    methods = {name: partial(run_on, name=name, method=name, overrides=twice) for name in METHODS}
    return {
        **methods,
        "lora": partial(run_on, name="lora", method="antisd", overrides=LORA),
        "recomputed": partial(run_on, name="recomputed", method="sdpo", overrides=RECOMPUTED),
        "resumed": resumed,
        "bf16": partial(resumed, name="bf16", overrides=("model.dtype=bfloat16",)),
        "inspected": inspected,
    }


def main(folder: Path, names: Sequence[str]) -> None:
    """Do the named cases on the CPU, then apart; write down what failed."""
    failed: dict[str, str] = {}
    made = {name: case for name, case in cases().items() if name in names}
    waits: list[torch.device] = []
    torch.accelerator.synchronize = waits.append  # type: ignore[assignment]
    _setup_privateuseone_for_python_backend(NAME, Backend())
    for case in made.values():
        case("cpu", folder)
    assert not waits
    with device_apart():
        for name, case in made.items():
            try:
                case(NAME, folder)
            except (Exception, SystemExit):
                failed[name] = traceback.format_exc()
    (folder / "waits.json").write_text(json.dumps(len(waits)), encoding="utf-8")
    (folder / "failed.json").write_text(json.dumps(failed), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
