"""Tasks of the user: build one by import path, and check that it has all parts of a task."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from selfdistill.config.base import load_named
from selfdistill.config.suggest import near
from selfdistill.config.tasks import OwnTaskConfig
from selfdistill.errors import ConfigError, UserError
from selfdistill.tasks.frames import raised_in
from selfdistill.tasks.turns import Environment, check_limits
from selfdistill.types import Task

PARTS = ("name", "contexts", "has_verifier", "examples", "verify")
"""The attributes that every task must have; one with ``start`` and ``reply`` needs no ``verify``."""


def build_own_task(config: OwnTaskConfig, *, seed: int) -> Task:
    """Build the task of a class named ``"package.module:Class"``. The working folder is searched too.

    The class is called with the table's other keys, and with ``seed`` if it takes one. The task's context file may be
    in the folder of its module.

    Raises:
        UserError: the class is missing, does not take these keys, raises, or makes no task.
    """
    label = f"task.kind {config.kind!r}"
    task_class = load_named(config.kind, "task.kind", "class")
    if not callable(task_class):
        raise ConfigError(f"{label} is a {type(task_class).__name__}, no class")
    arguments: dict[str, Any] = dict(config.model_extra or {})
    parameters = inspect.signature(task_class).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        unknown = next((key for key in arguments if key not in parameters), None)
        if unknown is not None:
            known = [name for name in parameters if name != "seed"]
            hint = near(unknown, known, "task.") or f"known: {', '.join(known) or 'none'}"
            raise ConfigError(f"unknown key 'task.{unknown}', which {config.kind} does not take; {hint}")
    if "seed" in parameters and "seed" not in arguments:
        arguments["seed"] = seed
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        and name not in arguments
    ]
    if missing:
        raise ConfigError(f"{label} needs the key task.{missing[0]}")
    try:
        task = task_class(**arguments)
    except UserError:
        raise
    # SystemExit too: a class that calls sys.exit() would end the command without a message.
    except (Exception, SystemExit) as error:
        raise raised_in(label, error) from error
    task = checked_task(task)
    file = getattr(sys.modules.get(type(task).__module__), "__file__", None)
    context_file = Path(file).parent / task.contexts if file else Path(task.contexts)
    if context_file.is_file():
        task.contexts = str(context_file)
    return task


def checked_task(given: Any) -> Task:
    """Check that an object is a task and return it.

    Raises:
        ConfigError: an attribute is missing, or a limit of an environment is none; the message names it.
    """
    # A task that is played in turns rewards in its replies.
    needed = [part for part in PARTS if not (part == "verify" and isinstance(given, Environment))]
    lacking = [part for part in needed if getattr(given, part, None) is None]
    if lacking:
        raise ConfigError(
            f"a {type(given).__name__} is no task, for it has no {lacking[0]!r}: give load_task(…), a kind "
            f"('countdown'), or an object with {', '.join(PARTS)}"
        )
    if isinstance(given, Environment):
        check_limits(given, given.name)  # type: ignore[attr-defined]
    task: Task = given
    return task
