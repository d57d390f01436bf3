"""The methods, one file each, and the table of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdistill.config.base import load_named
from selfdistill.config.hyperparameters import check_method_name, validated
from selfdistill.errors import ConfigError
from selfdistill.methods.antisd import AntiSD
from selfdistill.methods.base import Method
from selfdistill.methods.cepo import CEPO
from selfdistill.methods.credit import CREDIT
from selfdistill.methods.demopsd import DemoPSD
from selfdistill.methods.eopd import EOPD
from selfdistill.methods.grpo import GRPO
from selfdistill.methods.hdpo import HDPO
from selfdistill.methods.opsd import OPSD
from selfdistill.methods.paced import PACED
from selfdistill.methods.pbsd import PBSD
from selfdistill.methods.pbsd_reward import PBSDReward
from selfdistill.methods.purified import Purified
from selfdistill.methods.rlcsd import RLCSD
from selfdistill.methods.rlsd import RLSD
from selfdistill.methods.sc_sdpo import SCSDPO
from selfdistill.methods.sd import SD
from selfdistill.methods.sdar import SDAR
from selfdistill.methods.sdft import SDFT
from selfdistill.methods.sdpg import SDPG
from selfdistill.methods.sdpo import SDPO
from selfdistill.methods.sft import SFT
from selfdistill.methods.skill_sd import SkillSD
from selfdistill.methods.srpo import SRPO

METHODS: Mapping[str, type[Method]] = {
    "grpo": GRPO,
    "sft": SFT,
    "opsd": OPSD,
    "sdft": SDFT,
    "sdpo": SDPO,
    "credit": CREDIT,
    "sd": SD,
    "antisd": AntiSD,
    "purified": Purified,
    "pbsd": PBSD,
    "pbsd_reward": PBSDReward,
    "sc_sdpo": SCSDPO,
    "paced": PACED,
    "demopsd": DemoPSD,
    "eopd": EOPD,
    "hdpo": HDPO,
    "cepo": CEPO,
    "rlcsd": RLCSD,
    "rlsd": RLSD,
    "sdar": SDAR,
    "sdpg": SDPG,
    "skill_sd": SkillSD,
    "srpo": SRPO,
}
"""Every method's class by name. ``build_method`` makes one with its hyperparameters."""


def build_method(name: str, hyperparameters: Mapping[str, Any] | None = None) -> Method:
    """Build a method by name, or any importable ``module:Class``, with checked hyperparameters.

    Unset hyperparameters have their defaults.

    Raises:
        ConfigError: unknown method, unknown hyperparameter (with the nearest known one) or a value out of range.
    """
    return validated(_resolve(name), name, hyperparameters or {})


def _resolve(name: str) -> type[Method]:
    if name in METHODS:
        return METHODS[name]
    check_method_name(name)
    method = load_named(name, "method", "Class")
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ConfigError(f"method {name!r} is not a subclass of selfdistill.methods.Method")
    return method


__all__ = ["METHODS", "Method", "build_method"]
