"""The names of the methods and of their hyperparameters, so that a misspelt one is reported before torch is imported.

The methods' own classes declare the same names with defaults and limits, but need torch. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from selfdistill.config.suggest import near
from selfdistill.errors import ConfigError

_ALL = ("weights", "teacher_thinking", "teacher_rate")
_GRPO = (*_ALL, "scale", "ratio", "clip_low", "clip_high", "kl", "entropy", "dual_clip")

METHOD_KEYS: Mapping[str, tuple[str, ...]] = {
    "grpo": _GRPO,
    "sft": _ALL,
    "opsd": (*_ALL, "weight_drift", "divergence", "score_temperature", "context"),
    "sdft": (*_ALL, "weight_drift", "divergence", "context"),
    "sdpo": (*_ALL, "weight_drift", "divergence", "ratio_cap", "context"),
    "credit": (
        *_ALL,
        "weight_drift",
        "divergence",
        "ratio_cap",
        "context",
        "strength",
        "contrasts",
        "contrast",
        "form",
        "clip_low",
        "clip_high",
    ),
    "sd": (*_GRPO, "strength", "context"),
    "antisd": (
        *_GRPO,
        "strength",
        "warmup",
        "gate_ratio",
        "gate_signal",
        "gated",
        "ascend",
        "compose",
        "hindsight",
        "context",
    ),
    "purified": (*_ALL, "beta", "clip", "teacher_weight", "context", "reference_context", "subtraction", "pmi_target"),
    "pbsd": (*_ALL, "beta", "length", "reward_filter", "context"),
    "pbsd_reward": (*_ALL, "beta", "length", "drop_wrong_groups", "context"),
    "sc_sdpo": (*_ALL, "weight_drift", "divergence", "ratio_cap", "context", "exponent", "normalise"),
    "paced": (*_ALL, "weight_drift", "alpha", "beta", "reverse_from", "support", "context"),
    "demopsd": (*_ALL, "weight_drift", "divergence", "ratio_cap", "context", "alpha_max", "beta"),
    "eopd": (*_ALL, "weight_drift", "threshold", "k", "strength", "clip_low", "clip_high", "context"),
    "hdpo": (*_GRPO, "strength", "divergence", "context"),
    "cepo": (*_GRPO, "strength", "decay", "weight_clip", "context", "without_wrong", "wrong_context"),
    "rlcsd": (
        *_GRPO,
        "strength",
        "sharpness",
        "bonus_clip",
        "selected_above",
        "selected_weight",
        "contrasts",
        "context",
        "wrong_context",
    ),
    "rlsd": (*_GRPO, "strength", "decay", "weight_clip", "context"),
    "sdar": (*_GRPO, "strength", "sharpness", "context"),
    "sdpg": (
        *_GRPO,
        "strength",
        "kl_clip",
        "warmup",
        "decay",
        "only_praised",
        "reference_weight",
        "reference_form",
        "context",
    ),
    "srpo": (*_GRPO, "entropy_weight", "divergence", "ratio_cap", "context"),
}
"""Each method of the package → its hyperparameters."""


def check_method_name(name: str) -> None:
    """Refuse a name that is neither a method of the package nor a class of the user, ``module:Class``.

    Raises:
        ConfigError: unknown method, with the nearest known one.
    """
    if name not in METHOD_KEYS and ":" not in name:
        hint = f"{near(name, METHOD_KEYS)} known: {', '.join(sorted(METHOD_KEYS))}; or module:Class".lstrip()
        raise ConfigError(f"unknown method {name!r}; {hint}")


def check_method_keys(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse hyperparameters that a method does not have.

    Raises:
        ConfigError: unknown hyperparameter, with the nearest known one.
    """
    names = [key for key in known if key != "name"]
    for key in given:
        if key not in names:
            hint = near(key, names) or f"known: {', '.join(sorted(names))}"
            raise ConfigError(f"unknown key method.{key} for method {name!r}; {hint}")
