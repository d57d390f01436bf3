"""Log-probabilities of completions under several contexts, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdistill.api.rollouts import check_pair, verify_texts
from selfdistill.api.tasks import Prompts, as_examples, as_task
from selfdistill.contexts.chat import Chat
from selfdistill.contexts.templates import Template, load_templates, parse_template
from selfdistill.errors import ConfigError, DataError
from selfdistill.files.text import counted
from selfdistill.inspection.credit import inspect_groups, plan
from selfdistill.inspection.findings import Findings
from selfdistill.models.policy import Policy
from selfdistill.seeds import derive
from selfdistill.types import STUDENT, RolloutGroup, Scores, Task


class ScoreTable(Mapping[str, Scores]):
    """Scores by context, including ``"student"``. Each concatenates the tokens of all completions.

    ``table["solution"].logprobs - table["student"].logprobs`` is u, in nats. If a context could not be rendered for a
    completion, the scores are NaN, and ``table.skipped`` counts the reasons.
    """

    def __init__(self, findings: Findings, contexts: Sequence[str], tokens: Sequence[str]) -> None:
        self.groups = findings.groups
        """The problems with their completions."""
        self.places = list(findings.places)
        """(group, index) of each completion, in the order of the scores."""
        self.lengths = findings.lengths
        """Tokens of each completion."""
        self.tokens = list(tokens)
        """Each token's text."""
        self.skipped: dict[str, int] = dict(sorted(findings.skipped.items()))
        """The reasons why a context could not be rendered, with the number of completions."""
        missing = torch.full((sum(self.lengths),), float("nan"))
        self._scores = {
            name: Scores(torch.from_numpy(findings.logprobs[name]), torch.from_numpy(findings.entropies[name]))
            if name in findings.contexts
            else Scores(missing.clone(), missing.clone())
            for name in (STUDENT, *contexts)
        }

    def __getitem__(self, context: str) -> Scores:
        if context not in self._scores:
            raise ConfigError(f"context {context!r} was not scored; there are: {', '.join(self._scores)}")
        return self._scores[context]

    def __contains__(self, context: object) -> bool:
        return context in self._scores

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    def u(self, context: str) -> Tensor:
        """Return u [N] = log T(y) − log S(y) of each token, in nats. It is positive if the context raises the token."""
        return self[context].logprobs - self[STUDENT].logprobs

    def split(self, values: Tensor) -> list[Tensor]:
        """Split the numbers of all tokens into those of each completion."""
        return list(values.split(self.lengths))

    def shown(self, context: str) -> list[bool]:
        """Return for each completion whether the context could be rendered for it."""
        return [not bool(part.isnan().any()) for part in self.split(self[context].logprobs)]

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row per token."""
        import pandas

        rollouts = [self.groups[g].rollouts[i] for g, i in self.places]
        pairs = list(zip(rollouts, self.places, strict=True))
        columns: dict[str, Any] = {
            "completion": [n for n, r in enumerate(rollouts) for _ in r.completion_ids],
            "example": [self.groups[g].example.id for r, (g, _) in pairs for _ in r.completion_ids],
            "index": [i for r, (_, i) in pairs for _ in r.completion_ids],
            "position": [position for r in rollouts for position in range(len(r.completion_ids))],
            "id": [token for r in rollouts for token in r.completion_ids],
            "text": self.tokens,
        }
        for name, scores in self.items():
            columns[f"logprob {name}"] = scores.logprobs.numpy()
            columns[f"entropy {name}"] = scores.entropies.numpy()
        columns |= {f"u {name}": self.u(name).numpy() for name in self if name != STUDENT}
        return pandas.DataFrame(columns)

    def plot(self, context: str, *, completion: int = 0, ax: Any = None) -> Any:
        """Plot u of the tokens of one completion as bars. Returns the matplotlib axes."""
        from selfdistill.api.figures import token_bars

        if not 0 <= completion < len(self.lengths):
            raise ConfigError(f"completion {completion} is not among the {len(self.lengths)} that were scored")
        begin = sum(self.lengths[:completion])
        words = self.tokens[begin : begin + self.lengths[completion]]
        return token_bars(words, self.split(self.u(context))[completion].tolist(), f"u {context} (nats)", ax=ax)

    def __repr__(self) -> str:
        skipped = "".join(f"; skipped: {count} × {reason}" for reason, count in self.skipped.items())
        counts = f"{counted(len(self.lengths), 'completion')}, {counted(sum(self.lengths), 'token')}"
        return f"<{counts} under {', '.join(self)}{skipped}>"


def score(
    policy: Policy,
    chat: Chat,
    groups: Any,
    *,
    contexts: Sequence[str | Template] | Mapping[str, str | Template],
    completions: Sequence[str | Sequence[str]] | None = None,
    task: Task | str | None = None,
    templates: str | Path | Mapping[str, Template] | None = None,
    thinking: bool | None = None,
    seed: int = 0,
) -> ScoreTable:
    """Score completions under the student's own prompt and under every context: the numbers of :func:`inspect`.

    Args:
        policy, chat: from :func:`load_policy`. Nothing is trained.
        groups: the groups from :func:`rollout`; or prompts (texts, lists of messages, examples, rows) with
            ``completions``.
        contexts: names of templates; or your own, ``{"hint": "$question\\nHint: it is even."}``: ``$question`` is the
            last user message, any other ``$name`` a field of the example or of its group.
        completions: for every prompt a text or a list of texts; they are tokenised once and closed by the stop id.
        task: verifies ``completions``, reads rows, and names the context file; unset: they are not verified.
        templates: a context file by name or path, or templates by name; unset: the file of the task that the groups
            were drawn for, or ``"default"``.
        thinking: switch of the chat template for the contexts' prompts.
        seed: of the random choice of contrasts (another question, a wrong sibling).

    Returns:
        A :class:`ScoreTable`: ``table[context].logprobs``, in nats, ``table.skipped``, ``table.to_pandas()``.

    Raises:
        UserError: an unknown context, or an argument of the wrong kind.
    """
    check_pair(policy, chat)
    judge = as_task(task)
    if completions is not None:
        groups = verify_texts(chat, as_examples(groups, judge), completions, judge or Prompts(), thinking=thinking)
    elif isinstance(groups, RolloutGroup) or not all(isinstance(group, RolloutGroup) for group in groups):
        raise DataError("score takes a list of groups from rollout, or prompts together with completions=")
    groups = list(groups)
    if not any(group.rollouts for group in groups):
        raise DataError("there is no completion to score")
    known = _templates(groups, judge, templates)
    names = _named(contexts, known)
    findings = inspect_groups(
        policy, chat, groups, plan({}, names, known), known, thinking=thinking, seed=derive(seed, "contrast", 1)
    )
    tokens = [token for g, i in findings.places for token in chat.tokens(groups[g].rollouts[i].completion_ids)]
    return ScoreTable(findings, names, tokens)


def _templates(
    groups: Sequence[RolloutGroup], judge: Task | None, templates: str | Path | Mapping[str, Template] | None
) -> dict[str, Template]:
    if isinstance(templates, Mapping):
        return dict(templates)
    if templates is not None:
        return load_templates(templates)
    files = {judge.contexts} if judge else {group.contexts for group in groups if group.contexts}
    if len(files) > 1:
        raise ConfigError(
            f"the groups are of tasks with different context files ({', '.join(sorted(files))}): score "
            "those of each task by themselves, or name one file as templates="
        )
    return load_templates(next(iter(files), "default"))


def _named(contexts: Sequence[str | Template] | Mapping[str, str | Template], known: dict[str, Template]) -> list[str]:
    """Return the names of the contexts. A context with its own text is added to ``known``."""
    if isinstance(contexts, str):
        raise ConfigError(f"contexts are a list of names: write contexts=[{contexts!r}]")
    pairs = contexts.items() if isinstance(contexts, Mapping) else [(_name(context), context) for context in contexts]
    for name, context in pairs:
        if name == STUDENT:
            raise ConfigError("the student's own prompt is always scored: name the other contexts only")
        if isinstance(context, Template):
            known[name] = context
        elif isinstance(contexts, Mapping):
            known[name] = parse_template(name, {"text": context}, "contexts")
        elif name not in known:
            raise ConfigError(
                f"unknown context {name!r}; known: {', '.join(sorted(known))}; a text of your own goes "
                "into a dict, as in contexts={'hint': '$question …'}"
            )
    return list(dict.fromkeys(name for name, _ in pairs))


def _name(given: object) -> str:
    if not isinstance(given, str | Template):
        raise ConfigError(f"a context is a name, a Template, or a text in a dict; got {given!r:.60}")
    return given if isinstance(given, str) else given.name
