"""Read the rows of a run, and refuse what they cannot be used for, before torch is imported, which takes seconds."""

from __future__ import annotations

from selfdistill.cli.terminal import announce
from selfdistill.config.hyperparameters import NEED_REWARDS, default_of
from selfdistill.config.run import RunConfig
from selfdistill.config.tasks import RowsConfig
from selfdistill.contexts.fields import example_fields, missing_column, missing_in_data, no_rewards, reference_text
from selfdistill.contexts.templates import HINDSIGHT, apply, load_templates
from selfdistill.errors import ConfigError, DataError
from selfdistill.tasks.build import build_task
from selfdistill.types import Message, Skipped, Task


def read_task(config: RunConfig) -> Task | None:
    """The task of a config that reads rows. None for other tasks and with reward functions, which may need torch.

    Raises:
        UserError: the rows cannot be read, or not be used by the method.
    """
    if not isinstance(config.task, RowsConfig) or config.reward is not None:
        return None
    announce("reading the rows")
    task = build_task(config.task, seed=config.seed, reward=None)
    name, example = str(config.method["name"]), task.examples("train")[0]
    if name in NEED_REWARDS and not task.has_verifier:
        raise ConfigError(no_rewards(name, task))
    if name == "sft" and reference_text(example) is None:
        raise DataError(f"example {example.id} has no solution to learn from: {missing_column(example, 'solution')}")
    # The same check as for every role of the method, which needs torch, here for its main context.
    context = config.method.get("context", default_of(name, "context"))
    templates = load_templates(config.contexts or task.contexts)
    if isinstance(context, str) and context in templates:
        fields = {**dict.fromkeys(HINDSIGHT, ""), **example_fields(example)}
        rendered = apply(templates, context, (Message("user", ""),), fields)
        if isinstance(rendered, Skipped):
            raise DataError(missing_in_data(rendered, example))
    return task
