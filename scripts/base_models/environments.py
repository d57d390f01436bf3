"""The embedded environments with a base model: tokenizer, trace writer and phases of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from base_models.trace import Writer
from countdown_base import tokenizer as countdown_tokenizer
from countdown_base import traces as countdown_traces
from selfdistill.contexts.templates import Template
from toolbox_base import tokenizer as toolbox_tokenizer
from toolbox_base import traces as toolbox_traces
from toolbox_turns_base import traces as turn_traces

Templates = Mapping[str, Template]


@dataclass(frozen=True, slots=True)
class Plan:
    """One phase of training: the shares of its contexts, its steps, their tokens, and the peak learning rate."""

    name: str
    shares: Mapping[str, float]
    steps: int
    tokens: int
    lr: float


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment's tokenizer, its writer of traces, and the phases that train its base model."""

    contexts: str
    """The shipped context file of its prompts."""
    tokenizer: Callable[[Templates], PreTrainedTokenizerFast]
    writer: Callable[[Templates, int, Mapping[str, float]], Writer]
    plans: tuple[Plan, ...]


def _countdown(templates: Templates, seed: int, shares: Mapping[str, float]) -> Writer:
    return countdown_traces.TraceWriter(templates, seed, shares=shares)


def _toolbox(templates: Templates, seed: int, shares: Mapping[str, float]) -> Writer:
    return toolbox_traces.TraceWriter(templates, seed, shares=shares)


def _turns(templates: Templates, seed: int, shares: Mapping[str, float]) -> Writer:
    return turn_traces.TurnWriter(templates, seed, shares=shares)


TOOLBOX = (
    Plan("broad", toolbox_traces.CONTEXT_SHARES, steps=700, tokens=4000, lr=6e-3),
    Plan("hindsight", toolbox_traces.HINDSIGHT_SHARES, steps=750, tokens=2500, lr=5e-3),
    Plan("dates", toolbox_traces.DATE_SHARES, steps=200, tokens=2500, lr=3e-3),
    Plan("settle", toolbox_traces.SETTLED_SHARES, steps=300, tokens=2500, lr=2.5e-3),
)
ENVIRONMENTS = {
    "countdown": Environment(
        "countdown",
        countdown_tokenizer.build_tokenizer,
        _countdown,
        (
            Plan("broad", countdown_traces.CONTEXT_SHARES, steps=1800, tokens=4500, lr=6e-3),
            Plan("feedback", countdown_traces.POLISH_SHARES, steps=600, tokens=4500, lr=3e-3),
        ),
    ),
    "toolbox": Environment(
        "toolbox",
        toolbox_tokenizer.build_tokenizer,
        _toolbox,
        TOOLBOX,
    ),
    "toolbox-turns": Environment(
        "toolbox",
        toolbox_tokenizer.build_tokenizer,
        _turns,
        (*TOOLBOX, Plan("turns", turn_traces.TURN_SHARES, steps=400, tokens=3000, lr=2.5e-3)),
    ),
}
