"""Checks of a command before torch is imported, which takes seconds: folders, rows, rewards, addresses, arms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfdistill.cli.terminal import announce
from selfdistill.comparison.options import arm_names, check_arm, check_folder, check_match, engine_for_all, parse_seeds
from selfdistill.config.bits import check_bits
from selfdistill.config.hyperparameters import NEED_REWARDS, default_of
from selfdistill.config.run import RunConfig, load_config
from selfdistill.config.sampler import ServerConfig
from selfdistill.config.sources import check_model_name, find_source
from selfdistill.config.tasks import RowsConfig
from selfdistill.contexts.fields import example_fields, missing_column, missing_in_data, no_rewards, reference_text
from selfdistill.contexts.templates import HINDSIGHT, apply, load_templates
from selfdistill.errors import ConfigError, DataError
from selfdistill.files.disk import check_place
from selfdistill.tasks.build import build_task
from selfdistill.training.place import holds_run
from selfdistill.types import Message, Skipped, Task


def check_run(config: RunConfig, folder: Path, *, resume: bool) -> Task | None:
    """Check what a training run needs besides its config: its folder, its rewards, its rows and its servers.

    Returns the task if it could be read here, see :func:`read_task`.

    Raises:
        UserError: the folder holds something else, or rows, a function or an address cannot be used.
    """
    check_place(folder)
    check_bits(config.model, config.optimiser, config.parallel)
    # A run that goes on has its own weights.
    if not holds_run(folder, resume=resume):
        check_model_name(config.model.path)
    check_sources(config)
    task = read_task(config)
    check_sampler(config)
    return task


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


def check_sources(config: RunConfig, *, judge: bool = True) -> None:
    """Check that a config's context file and reward functions load, and that its judge answers.

    Raises:
        UserError: one of them cannot be used.
    """
    if config.contexts is not None:
        load_templates(config.contexts)
    if config.reward is None:
        return
    from selfdistill.tasks.endpoint import Endpoint
    from selfdistill.tasks.reward import parse_reward

    parse_reward(config.reward)
    if judge and config.reward.judge is not None:
        Endpoint(config.reward.judge).probe()


def check_sampler(config: RunConfig) -> None:
    """Check that the servers of a config can sample for it.

    Raises:
        SamplerError: none answers, or one is no vLLM server that has what the run needs.
    """
    if isinstance(config.sampler, ServerConfig):
        from selfdistill.sampling.probe import check_servers

        lora, longest = config.model.lora is not None, config.sampling.max_tokens
        # A warning is logged when the run is built, which asks again.
        check_servers(config.sampler, lora=lora, max_tokens=longest, log=lambda message: None)


def check_served(config: RunConfig) -> None:
    """Check that the servers of a config answer, for a command that trains nothing.

    Raises:
        SamplerError: one does not answer, is no such server, or does not serve the model.
    """
    if isinstance(config.sampler, ServerConfig):
        from selfdistill.models.served import served_models

        for server in served_models(config.sampler):
            server.probe()


def check_comparison(
    configs: Sequence[str],
    overrides: Sequence[str],
    *,
    methods: Sequence[str],
    sweeps: Sequence[str],
    seeds: str,
    baseline: str | None,
    main: str | None,
    folder: Path,
    match: str,
    split: str,
    engine: str | None = None,
) -> list[int]:
    """Check the options of a comparison, its folder, and the sources of its arms. Returns its seeds.

    Raises:
        UserError: an option, a config or the folder is wrong.
    """
    chosen = parse_seeds(seeds)
    check_match(match, split)
    check_folder(folder)
    arms = arm_names([find_source(config).label for config in configs], methods, sweeps)
    for option, name in (("--baseline", baseline), ("--main", main)):
        if name is not None:
            check_arm(name, arms, option)
    first = [*(f'method="{method}"' for method in methods[:1]), *engine_for_all(engine, configs)]
    for config in configs:
        settings = load_config(config, [*first, *overrides])
        # A comparison that is over can be read again when its judge and its servers are gone.
        over = (folder / "compare.json").exists()
        check_sources(settings, judge=not over)
        if not over:
            check_bits(settings.model, settings.optimiser, settings.parallel)
            check_model_name(settings.model.path)
            check_sampler(settings)
    return chosen
