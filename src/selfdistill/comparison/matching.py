"""Equal budgets of the arms of a comparison: in what they are equal, and how many steps that makes for each."""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.comparison.runs import UNITS
from selfdistill.config.run import ResolvedConfig
from selfdistill.errors import ConfigError
from selfdistill.training.problem import method_of

MATCH = "completions"
"""The default: the methods compete for what a sampler gives out, whichever role asks for it."""

SPLITS = ("validation", "test")
"""Splits that final figures may come from."""


def check_match(match: str, split: str) -> None:
    """Refuse a unit or a split that does not exist, and two that exclude each other.

    Raises:
        ConfigError: says what would be right.
    """
    if match not in UNITS:
        raise ConfigError(f"--match {match!r} is no budget; choose from {', '.join(UNITS)}")
    if split not in SPLITS:
        raise ConfigError(f"--final-split {split!r} is no split; choose from {', '.join(SPLITS)}")
    if split == "test" and match in ("tokens", "seconds"):
        raise ConfigError(
            f"--match {match} reads arms at an evaluation in the course of training, and the test split is answered "
            "only at its end: use --match completions, --match steps or --final-split validation"
        )


def matched_steps(configs: Sequence[ResolvedConfig], match: str) -> list[int]:
    """Return how many steps each arm makes.

    With completions matched, an arm that draws more of them a step than the most frugal one makes fewer steps: PBSD,
    whose student and teacher both draw, makes half. An arm that learns from given solutions draws none and keeps its
    steps. All other budgets keep the steps of the configs.

    Raises:
        ConfigError: an arm would not make a single step.
    """
    if match != "completions":
        return [config.steps for config in configs]
    draws = [_drawn_in_a_step(config) for config in configs]
    least = min((drawn for drawn in draws if drawn), default=1)
    steps = [
        config.steps * least // drawn if drawn else config.steps for config, drawn in zip(configs, draws, strict=True)
    ]
    if not min(steps):
        raise ConfigError(
            "at equal completions an arm would make no step, because it draws more of them in one step than another in "
            "all: raise --set steps=… or use --match steps"
        )
    return steps


def _drawn_in_a_step(config: ResolvedConfig) -> int:
    method = method_of(config)
    roles = len(method.sampling_roles()) if method.on_policy else 0
    return roles * config.sampling.prompts * config.sampling.completions
