"""Equal budgets of the arms of a comparison: the unit, and what ends each arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfdistill.config.run import ResolvedConfig
from selfdistill.errors import ConfigError
from selfdistill.training.problem import completions_of_step, method_of


def limits_of_arms(configs: Sequence[ResolvedConfig], match: str) -> list[dict[str, Any]]:
    """Return what ends each arm, as keys of its config: ``steps`` and, where it needs one, ``max_completions``.

    With completions matched, an arm that samples more of them per step than the most frugal arm makes fewer steps.
    PBSD, which samples from student and teacher, makes half. An arm that learns from given solutions samples none and
    keeps its steps. An arm whose steps draw a number that is known only afterwards, because a role samples on demand or
    ``signal.equal = "resample"`` draws further prompts, ends once the budget of the others has no room for its next
    step. All other budgets keep the steps of the configs.

    Raises:
        ConfigError: an arm would not make a single step.
    """
    if match != "completions":
        return [{"steps": config.steps} for config in configs]
    each = [completions_of_step(config, method_of(config)) for config in configs]
    least = min((count for count in each if count), default=1)
    limits: list[dict[str, Any]] = []
    for config, count in zip(configs, each, strict=True):
        budget = min(config.steps * least, config.max_completions or config.steps * least)
        limits.append({"steps": budget // count if count else config.steps})
        if config.signal.equal == "resample" or method_of(config).samples_on_demand:
            limits[-1]["max_completions"] = budget
    if not min(limit["steps"] for limit in limits):
        raise ConfigError(
            "at equal completions an arm would make no step, because it draws more of them in one step than another in "
            "all: raise --set steps=… or use --match steps"
        )
    return limits
