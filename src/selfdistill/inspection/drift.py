"""u of a run under the weights that its teacher really has: the pMI of the context, and the drift of the weights.

Σ_t [log T(y_t) − log S(y_t)] = Σ_t [log T(y_t) − log B(y_t)] + Σ_t [log B(y_t) − log S(y_t)], where T has the teacher's
weights and the context, and B the teacher's weights and the student's prompt. The first sum is the pMI of completion
and context under the teacher's weights, the second the drift of the weights, which is 0 for a live teacher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from selfdistill.config.run import RunConfig
from selfdistill.config.sections import Limits, LoraConfig
from selfdistill.config.sources import find_source, read_config
from selfdistill.contexts.chat import Chat
from selfdistill.inspection.credit import label_of
from selfdistill.inspection.findings import Findings
from selfdistill.inspection.plan import name_of
from selfdistill.methods import build_method
from selfdistill.methods.base import Method
from selfdistill.models.policy import Policy
from selfdistill.models.teachers import Teachers
from selfdistill.scoring.score import score_roles
from selfdistill.tracking.progress import activity
from selfdistill.training.problem import build_problem
from selfdistill.training.run_folder import Weights, find_weights, load_model, load_models
from selfdistill.types import STUDENT, External, Role, Scores, Server, Snapshot, Task, View

BARE = "student's prompt"
"""Role that has the teacher's weights and the student's prompt."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The inspected weights, and the teachers of the run that they are of, if those have weights of their own."""

    policy: Policy
    chat: Chat
    weights: Weights
    teachers: Teachers | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    """The roles of these teachers, by the label of their context and the kind of their weights."""
    warnings: tuple[str, ...] = ()
    """Why the drift of a teacher is not measured."""


def load_with_teachers(
    name: str,
    config: RunConfig,
    methods: Mapping[str, Method],
    loaded: tuple[Policy, Chat] | None,
    *,
    checkpoint: str | None,
    judge: Task,
) -> Loaded:
    """Load what is inspected, and with a run whose method is among ``methods`` its frozen, averaged or copied teachers.

    Raises:
        UserError: the model or the checkpoint cannot be found or used.
    """
    own = _inspected_method_of_run(name, methods) if loaded is None else None
    # Teachers of another model are no older weights of the student: their u has no drift.
    roles = {
        f"{label_of(role)} ({_kind(role)})": role
        for role in (own.roles().values() if own is not None else ())
        if role.context is not None and role.weights != "live" and not isinstance(role.weights, External | Server)
    }
    follows = any(role.weights != "frozen" for role in roles.values())
    best = bool(roles) and find_weights(name, config, checkpoint).checkpoint == "best"
    if own is None or not roles or (best and follows):
        policy, chat, weights = load_model(name, config, loaded, checkpoint=checkpoint)
        lacking = "the best checkpoint holds the student alone: name a step to see the drift of its teacher's weights"
        return Loaded(policy, chat, weights, warnings=(lacking,) if roles else ())
    recorded = read_config(name)
    # A command that trains nothing has no adapter in its config; beside it the teacher is the model without it.
    lora = recorded["model"].get("lora")
    adapter = None if lora is None else LoraConfig.model_validate(lora)
    changes = {"method": recorded["method"], "model": config.model.model_copy(update={"lora": adapter})}
    problem = build_problem(config.model_copy(update=changes), judge)
    models, weights = load_models(problem, name, checkpoint=checkpoint)
    return Loaded(models.policy, models.chat, weights, models.teachers, roles)


def _inspected_method_of_run(name: str, methods: Mapping[str, Method]) -> Method | None:
    """Return which of the methods is that of the run; None if none is, and for everything that is no run."""
    table = read_config(name).get("method") if find_source(name).kind == "run" else None
    if not isinstance(table, dict):
        return None
    hyperparameters = {key: value for key, value in table.items() if key != "name"}
    for method in methods.values():
        # A run of an earlier version may have hyperparameters that are unknown now: its method is then another one.
        same = table.get("name") == name_of(type(method)) and hyperparameters.keys() <= type(method).model_fields.keys()
        if same and build_method(table["name"], hyperparameters) == method:
            return method
    return None


def _kind(role: Role) -> str:
    if isinstance(role.weights, Snapshot):
        return f"snapshot {role.weights.every}"
    return str(role.weights)


@activity("scoring teachers")
def measure_drift(findings: Findings, loaded: Loaded, limits: Limits) -> None:
    """Add ``pmi`` and ``weight_drift`` of every token to the findings, by the names of the teachers' roles.

    A role whose context was not looked at, because its method cannot be inspected, has none.
    """
    if loaded.teachers is None:
        return
    student_N = findings.logprobs[STUDENT].astype(np.float64)
    rows = list(zip(findings.prompts, findings.gaps, findings.places, strict=True))
    for name, role in loaded.roles.items():
        label = label_of(role)
        if label not in findings.contexts:
            continue
        # By role, the context whose prompt and whose texts between the turns the teacher reads.
        roles = {BARE: STUDENT, label: label}
        views = [
            View(
                {one: prompts[context] for one, context in roles.items() if context in prompts},
                findings.groups[g].rollouts[i].completion_ids,
                (),
                (),
                0.0,
                g,
                i,
                gaps={one: gaps[context] for one, context in roles.items() if context in gaps},
            )
            for prompts, gaps, (g, i) in rows
        ]
        scores = score_roles(
            loaded.teachers,
            views,
            dict.fromkeys(roles, role.weights),
            max_tokens=limits.max_tokens_per_microbatch,
            max_logits_per_chunk=limits.max_logits_per_chunk,
        )
        bare_N, teacher_N = (_targets(scores[one], findings.lengths) for one in roles)
        findings.pmi[name] = teacher_N - bare_N
        # Where the context is missing there is no u to be split.
        findings.weight_drift[name] = np.where(np.isnan(teacher_N), math.nan, bare_N - student_N)


def _targets(scores: Sequence[Scores | None], lengths: Sequence[int]) -> NDArray[np.float64]:
    """Return the log-probabilities of all completions, NaN where a completion has none."""
    return np.concatenate(
        [
            np.full(n, math.nan) if score is None else score.target_N.cpu().double().numpy()
            for score, n in zip(scores, lengths, strict=True)
        ]
    )
