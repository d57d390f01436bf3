"""Checks of the settings that keep numbers in fewer bits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from selfdistill.config.sections import ModelConfig, OptimiserConfig, ParallelConfig
from selfdistill.errors import ConfigError

PACKAGE = "bitsandbytes"
"""Package that quantises, and name of the extra that installs it."""
MOMENTS_IN_8_BITS = "adamw8bit"
"""The kind of optimiser that needs it."""


def require_bitsandbytes(setting: str) -> None:
    """Check that bitsandbytes is installed. ``setting`` is the one that needs it, for the message.

    Raises:
        ConfigError: it is not; the message says what to install.
    """
    if find_spec(PACKAGE) is None:
        raise ConfigError(f"{setting} needs bitsandbytes: pip install 'selfdistill[{PACKAGE}]'")


def check_quantisation(model: ModelConfig) -> None:
    """Refuse a quantised model that cannot be loaded, whether it is trained or not.

    Raises:
        ConfigError: names the setting and what would be right.
    """
    if model.quantisation is None:
        return
    setting = f"model.quantisation {model.quantisation!r}"
    if model.dtype == "float64":
        raise ConfigError(f'{setting} has no kernels for float64: set model.dtype to "float32" or "bfloat16"')
    require_bitsandbytes(setting)


def check_bits(model: ModelConfig, optimiser: OptimiserConfig, parallel: ParallelConfig) -> None:
    """Refuse settings of a training run that do not fit a quantised base, or moments in 8 bits.

    Raises:
        ConfigError: names the setting and what would be right.
    """
    if model.quantisation is not None:
        setting = f"model.quantisation {model.quantisation!r}"
        if model.lora is None:
            raise ConfigError(
                f"{setting} keeps weights in 4 bits, which cannot be trained: train an adapter beside them "
                "(model.lora.rank=64), or leave model.quantisation out"
            )
        _check_parallel(setting, parallel)
        if (Path(model.path) / "adapter_config.json").is_file():
            raise ConfigError(adapter_below(model.path))
        check_quantisation(model)
    if optimiser.kind == MOMENTS_IN_8_BITS:
        setting = f"optimiser.kind {optimiser.kind!r}"
        _check_parallel(setting, parallel)
        if model.dtype == "float64":
            raise ConfigError(f'{setting} has no kernels for float64: set model.dtype to "float32" or "bfloat16"')
        require_bitsandbytes(setting)


def adapter_below(path: str) -> str:
    """The message about a quantised base that is itself an adapter."""
    return (
        f"model.quantisation needs a whole model below the new adapter, and {path} is itself an adapter: merge it into "
        "its base first (selfdistill export RUN --merge --out DIR) and set model.path to the result"
    )


def _check_parallel(setting: str, parallel: ParallelConfig) -> None:
    if parallel.sharded:
        raise ConfigError(
            f'{setting} cannot be sharded: set parallel.kind to "ddp", under which every process holds the whole '
            f"model, or leave it out under {parallel.kind!r}"
        )
