"""Completions from Python: sampled by a model, or written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from selfdistill.api.settings import check_counts
from selfdistill.api.tasks import Prompts, as_examples, as_task
from selfdistill.contexts.chat import Chat, usual_length
from selfdistill.errors import DataError, ModelError
from selfdistill.models.policy import Policy
from selfdistill.sampling.base import Sampler, SamplingParams
from selfdistill.sampling.hf import policy_sampler
from selfdistill.sampling.rollouts import fitting, sample_and_verify, verify
from selfdistill.seeds import derive
from selfdistill.tasks.build import fitted
from selfdistill.types import Example, Rollout, RolloutGroup, Task


def rollout(
    policy: Policy,
    chat: Chat,
    task: Task | str | None,
    examples: Any,
    *,
    completions: int = 4,
    max_tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    thinking: bool | None = None,
    seed: int = 0,
    reward: Any = None,
    sampler: Sampler | None = None,
    max_batch_size: int = 512,
) -> list[RolloutGroup]:
    """Sample completions of every problem and verify them: the same as in ``selfdistill inspect`` with the same seed.

    Args:
        policy, chat: from :func:`load_policy`.
        task: the task that verifies: from :func:`load_task`, its kind, your own object, or None for no verifier.
        examples: ``task.examples("train")[:2]``; or rows (dicts, a ``datasets.Dataset``), which the task reads; or
            prompts, each a text or a list of messages; or a task, whose training problems are taken.
        completions: of every problem.
        max_tokens: longest completion; unset: 1024, or half the window of a small model.
        temperature, top_p, top_k: how a token is sampled; temperature 0 is greedy, ``top_k`` 0 keeps all tokens.
        thinking: switch of chat templates that have one; unset: the template's default.
        seed: the same seed draws the same completions.
        reward: a function that replaces the task's reward, as for :func:`load_task`.
        sampler: another engine, for example a :class:`ScriptedSampler`; it gets the same parameters.
        max_batch_size: completions decoded at once. It does not change the completions.

    Returns:
        One :class:`RolloutGroup` per problem, in order: ``group.rollouts[i].text``, ``group.verdicts[i].reward``.

    Raises:
        UserError: a prompt that does not fit the window, or an argument of the wrong kind.
    """
    check_pair(policy, chat)
    judge = fitted(as_task(task, reward) or Prompts(), chat)
    problems = as_examples(examples, judge)
    if not problems:
        raise DataError("there are no problems to sample completions of")
    check_counts(completions=completions, max_tokens=max_tokens, max_batch_size=max_batch_size)
    tokens = max_tokens or usual_length(chat)
    params = SamplingParams(
        count=completions,
        max_tokens=tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=derive(seed, "sampling", 1),
    )
    _check_room(problems, chat, tokens, thinking)
    sampler = sampler or policy_sampler(policy, chat, max_batch_size=max_batch_size)
    groups = sample_and_verify(problems, judge, sampler, chat, params, thinking=thinking)
    return [replace(group, contexts=judge.contexts) for group in groups]


def _check_room(problems: Sequence[Example], chat: Chat, tokens: int, thinking: bool | None) -> None:
    """Refuse prompts that leave no room for a completion, instead of skipping them silently."""
    _, unfit = fitting(problems, chat, max_tokens=tokens, thinking=thinking)
    if unfit:
        raise DataError(
            f"{sum(unfit.values())} of {len(problems)} prompts leave no room for {tokens} tokens in the window of "
            f"{chat.name}, {chat.window}: lower max_tokens, or leave these problems out"
        )


def verify_texts(
    chat: Chat, examples: Sequence[Example], completions: Sequence[Any], judge: Task, *, thinking: bool | None
) -> list[RolloutGroup]:
    """Tokenise texts as completions and verify them. The log-probabilities of a sampler are unknown (NaN).

    Raises:
        DataError: a problem has no text or list of texts, or a text does not fit the window.
    """
    if isinstance(completions, str) or len(completions) != len(examples):
        count = "one text" if isinstance(completions, str) else len(completions)
        raise DataError(f"completions must hold one entry for each of the {len(examples)} prompts, got {count}")
    rollouts_by_example: list[tuple[Rollout, ...]] = []
    for example, given in zip(examples, completions, strict=True):
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
            raise DataError(f"completions of {example.id} must be a text or a list of texts, got {given!r:.80}")
        prompt = chat.encode(example.prompt, thinking=thinking)
        rollouts = []
        for text in texts:
            ids = chat.response(text)
            if len(prompt) + len(ids) > chat.window:
                raise DataError(
                    f"prompt and completion of {example.id} have {len(prompt) + len(ids)} tokens, the window of "
                    f"{chat.name} is {chat.window}"
                )
            rollouts.append(Rollout(prompt, ids, (math.nan,) * len(ids), True, text, 0))
        rollouts_by_example.append(tuple(rollouts))
    return [replace(group, contexts=judge.contexts) for group in verify(judge, examples, rollouts_by_example)]


def check_pair(policy: object, chat: object) -> None:
    """Refuse anything but the two objects that ``load_policy`` returns.

    Raises:
        ModelError: one of them is something else; the message names it.
    """
    for name, given, kind in (("policy", policy, Policy), ("chat", chat, Chat)):
        if not isinstance(given, kind):
            raise ModelError(
                f"{name} must come from load_policy, as in policy, chat = load_policy(…); not a {type(given).__name__}"
            )
