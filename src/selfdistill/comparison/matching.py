"""Equal budgets of the arms of a comparison: the unit, and the number of steps of each arm."""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.config.run import ResolvedConfig
from selfdistill.errors import ConfigError
from selfdistill.training.problem import method_of


def check_resampling(configs: Sequence[ResolvedConfig], match: str, split: str) -> None:
    """Refuse equal completions on the test split if an arm resamples.

    The completions of such an arm are counted as they are drawn, so all arms are read in the course of training. The
    test split is answered only at its end.

    Raises:
        ConfigError: the message names the options that would be right.
    """
    if match == "completions" and split == "test" and any(config.signal.equal == "resample" for config in configs):
        raise ConfigError(
            "with signal.equal = 'resample' the completions of a step are known only once they are drawn, so arms of "
            "equal completions are read in the course of training, and the test split is answered only at its end: use "
            "--match steps or --final-split validation"
        )


def matched_steps(configs: Sequence[ResolvedConfig], match: str) -> list[int]:
    """Return the number of steps of each arm.

    With completions matched, an arm that samples more of them per step than the most frugal arm makes fewer steps.
    PBSD, which samples from student and teacher, makes half. An arm that learns from given solutions samples none and
    keeps its steps. All other budgets keep the steps of the configs. What ``signal.equal = "resample"`` draws beyond
    the first completions of a step is not known here: :func:`~selfdistill.comparison.reading.read_arms` matches it.

    Raises:
        ConfigError: an arm would not make a single step.
    """
    if match != "completions":
        return [config.steps for config in configs]
    sampled = [_completions_per_step(config) for config in configs]
    least = min((count for count in sampled if count), default=1)
    steps = [
        config.steps * least // count if count else config.steps for config, count in zip(configs, sampled, strict=True)
    ]
    if not min(steps):
        raise ConfigError(
            "at equal completions an arm would make no step, because it draws more of them in one step than another in "
            "all: raise --set steps=… or use --match steps"
        )
    return steps


def _completions_per_step(config: ResolvedConfig) -> int:
    method = method_of(config)
    roles = len(method.sampling_roles()) if method.on_policy else 0
    return roles * config.sampling.prompts * config.sampling.completions
