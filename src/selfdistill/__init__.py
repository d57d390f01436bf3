"""On-policy self-distillation: a model that knows the answer in hindsight teaches itself.

Everything that a notebook needs is a name of this package, found when it is first used, so that the import itself loads
nothing heavy. ``objectives`` is the namespace of losses for loops of one's own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill import objectives
    from selfdistill.api.comparison import compare
    from selfdistill.api.evaluation import evaluate
    from selfdistill.api.inspection import inspect
    from selfdistill.api.models import load_policy, save_policy
    from selfdistill.api.rollouts import rollout
    from selfdistill.api.scores import score
    from selfdistill.api.settings import load_config
    from selfdistill.api.tasks import load_task
    from selfdistill.api.training import train
    from selfdistill.config.run import RunConfig
    from selfdistill.contexts.chat import Chat
    from selfdistill.contexts.templates import Template, load_templates
    from selfdistill.errors import UserError
    from selfdistill.methods import METHODS, Method, build_method
    from selfdistill.models.policy import Policy
    from selfdistill.sampling.base import Sampler, SamplingParams
    from selfdistill.sampling.hf import HFSampler
    from selfdistill.sampling.scripted import ScriptedSampler
    from selfdistill.tasks.agents.conversation import AskedModel
    from selfdistill.tasks.agents.task import AgentTask
    from selfdistill.tasks.tools.loop import ToolError, ToolLoop
    from selfdistill.tasks.tools.mcp_server import McpServer
    from selfdistill.tasks.tools.python import PythonTool
    from selfdistill.tasks.turns import Environment
    from selfdistill.training.trainer import Trainer
    from selfdistill.types import (
        Completion,
        Episode,
        Example,
        Message,
        Reply,
        Role,
        Rollout,
        RolloutGroup,
        Scores,
        Start,
        Task,
        TokenSlice,
        Turn,
        Verdict,
        View,
    )

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "AgentTask",
    "AskedModel",
    "Chat",
    "Completion",
    "Environment",
    "Episode",
    "Example",
    "HFSampler",
    "McpServer",
    "Message",
    "Method",
    "Policy",
    "PythonTool",
    "Reply",
    "Role",
    "Rollout",
    "RolloutGroup",
    "RunConfig",
    "Sampler",
    "SamplingParams",
    "Scores",
    "ScriptedSampler",
    "Start",
    "Task",
    "Template",
    "TokenSlice",
    "ToolError",
    "ToolLoop",
    "Trainer",
    "Turn",
    "UserError",
    "Verdict",
    "View",
    "build_method",
    "compare",
    "evaluate",
    "inspect",
    "load_config",
    "load_policy",
    "load_task",
    "load_templates",
    "objectives",
    "rollout",
    "save_policy",
    "score",
    "train",
]

_ROOMS = {
    "selfdistill.api.comparison": ("compare",),
    "selfdistill.api.evaluation": ("evaluate",),
    "selfdistill.api.inspection": ("inspect",),
    "selfdistill.api.models": ("load_policy", "save_policy"),
    "selfdistill.api.rollouts": ("rollout",),
    "selfdistill.api.scores": ("score",),
    "selfdistill.api.settings": ("load_config",),
    "selfdistill.api.tasks": ("load_task",),
    "selfdistill.api.training": ("train",),
    "selfdistill.contexts.chat": ("Chat",),
    "selfdistill.config.run": ("RunConfig",),
    "selfdistill.contexts.templates": ("Template", "load_templates"),
    "selfdistill.errors": ("UserError",),
    "selfdistill.methods": ("METHODS", "Method", "build_method"),
    "selfdistill.models.policy": ("Policy",),
    "selfdistill.sampling.base": ("Sampler", "SamplingParams"),
    "selfdistill.sampling.hf": ("HFSampler",),
    "selfdistill.sampling.scripted": ("ScriptedSampler",),
    "selfdistill.tasks.agents.conversation": ("AskedModel",),
    "selfdistill.tasks.agents.task": ("AgentTask",),
    "selfdistill.tasks.tools.loop": ("ToolError", "ToolLoop"),
    "selfdistill.tasks.tools.mcp_server": ("McpServer",),
    "selfdistill.tasks.tools.python": ("PythonTool",),
    "selfdistill.tasks.turns": ("Environment",),
    "selfdistill.training.trainer": ("Trainer",),
    "selfdistill.types": (
        "Completion",
        "Episode",
        "Example",
        "Message",
        "Reply",
        "Role",
        "Rollout",
        "RolloutGroup",
        "Scores",
        "Start",
        "Task",
        "TokenSlice",
        "Turn",
        "Verdict",
        "View",
    ),
}
"""Where each name is found: the same as above, for the interpreter (a test compares them)."""

_FOUND_IN = {name: room for room, names in _ROOMS.items() for name in names}


if not TYPE_CHECKING:  # a type checker that saw it would take any misspelt name for a public one

    def __getattr__(name: str) -> Any:
        if name == "objectives":
            return import_module("selfdistill.objectives")
        if name not in _FOUND_IN:
            raise AttributeError(f"module 'selfdistill' has no attribute {name!r}")
        value = getattr(import_module(_FOUND_IN[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
