"""Measure the base model of the toolbox in turns: ``make properties TASK=toolbox-turns``.

The script plays validation episodes at temperature 1 under several conventions, alone and with the openings of a
teacher.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from base_models.subject import MODELS, share
from selfdistill.api.models import load_policy
from selfdistill.config.tasks import ToolboxTurnsConfig
from selfdistill.contexts.templates import apply, load_templates
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.episodes import play
from selfdistill.sampling.hf import policy_sampler
from selfdistill.tasks.toolbox.task import final_call
from selfdistill.tasks.toolbox.turns import ToolboxTurnsTask
from selfdistill.types import Episode, Example, Skipped

MODEL_DIR = MODELS / "toolbox-turns-base"
CONVENTIONS = (0, 1, 2, 3)
HELP = ("solution", "solution_verdict", "reference_only", "feedback")


def shown(example: Example, context: str, task: ToolboxTurnsTask) -> Example:
    """The example with the opening of a context, whose feedback is that on a call without any convention."""
    verdict = task.verify(task.single(example, 0), "</think> call : nothing ( )", finished=True)
    fields = {**example.fields, "verdict": "wrong", "feedback": verdict.feedback or ""}
    messages = apply(load_templates(task.contexts), context, example.prompt, fields)
    if isinstance(messages, Skipped):
        raise AssertionError(messages.reason)
    return replace(example, prompt=messages)


def episodes(model_dir: Path, context: str, *, count: int, seed: int = 0) -> list[Episode]:
    """Play ``count`` validation episodes under each of :data:`CONVENTIONS`."""
    policy, chat = load_policy(str(model_dir))
    sampler, played = policy_sampler(policy, chat), list[Episode]()
    for conventions in CONVENTIONS:
        task = ToolboxTurnsTask(ToolboxTurnsConfig(conventions=conventions, validation=count))
        examples = [shown(example, context, task) for example in task.examples("validation")]
        params = SamplingParams(count=1, max_tokens=96, seed=seed)
        groups = play(examples, task, sampler.sample, chat, params, thinking=None)
        played += [rollout.episode for group in groups for rollout in group.rollouts if rollout.episode]
    return played


def succeeded(episode: Episode) -> bool:
    """Whether the report was right."""
    return bool(episode.turns[-1].reward)


def properties(played: Sequence[Episode]) -> dict[str, float]:
    """Return shares of episodes and of turns."""
    reports = [succeeded(episode) for episode in played if episode.ended == "done" and not _calls_missing(episode)]
    pairs = [pair for episode in played for pair in _after_refusals(episode)]
    return {
        "success": share([succeeded(episode) for episode in played]),
        "first_call_right": share([episode.turns[0].error is False for episode in played]),
        "report_right": share(reports),
        "same_call_after_refusal": share([final_call(one) == final_call(other) for one, other in pairs]),
        "turns": sum(len(episode.turns) for episode in played) / len(played),
    }


def _calls_missing(episode: Episode) -> bool:
    """Whether the last turn was a call."""
    return final_call(episode.turns[-1].text) is not None


def _after_refusals(episode: Episode) -> Iterator[tuple[str, str]]:
    """Each refused call and the turn after it."""
    for refused, after in zip(episode.turns, episode.turns[1:], strict=False):
        if refused.error and final_call(after.text) is not None:
            yield refused.text, after.text


def main() -> None:
    """Print the properties alone and with help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=MODEL_DIR)
    parser.add_argument("--count", type=int, default=64)
    args = parser.parse_args()
    for context in ("student", *HELP):
        found = properties(episodes(args.model, context, count=args.count))
        print(f"{context:18}", *(f"{name} {value:.3f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
