"""General prompts and plain texts, shipped with the package: how far a model has moved there since its start.

Two numbers tell of forgetting without any task. The *perplexity* of the texts says how well the model still predicts
plain English. The *KL divergence* from the start says how far it answers general prompts otherwise than before, whether
for better or worse; it is exact at every token of a written answer.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch

from selfdistill.config.evaluation import General
from selfdistill.config.sections import Limits
from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import DataError
from selfdistill.evaluation.statistics import bootstrap
from selfdistill.models.head import LossInputs, token_metrics
from selfdistill.models.teachers import Teachers
from selfdistill.objectives import forward_kl
from selfdistill.scoring.batching import collate, micro_batches
from selfdistill.scoring.score import head_inputs, score_views
from selfdistill.seeds import derive
from selfdistill.types import STUDENT, Message, TokenSlice, View, Weights

START = "start"
"""The role of the model before training."""


@dataclass(frozen=True, slots=True)
class GeneralSet:
    """Prompts with a written answer each, and plain texts."""

    prompts: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """A name of these prompts and texts in this order."""
        return hashlib.sha256(json.dumps([self.prompts, self.texts]).encode()).hexdigest()[:16]


def load_general(config: General) -> GeneralSet:
    """The shipped prompts and texts, or as many of them as ``config.size`` says, chosen by its seed."""
    table = tomllib.loads((resources.files("selfdistill.evaluation") / "general.toml").read_text(encoding="utf-8"))
    pairs = [(row["prompt"], row["answer"]) for row in table["prompts"]]
    places = random.Random(derive(config.seed, "general")).sample(range(len(pairs)), config.size)
    return GeneralSet(tuple(pairs[i] for i in sorted(places)), tuple(str(table["texts"][i]) for i in sorted(places)))


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralScorer:
    """Measures the student on general prompts and texts. ``start`` are the weights before training; None: not known."""

    chosen: GeneralSet
    teachers: Teachers
    start: Weights | None
    chat: Chat
    limits: Limits
    thinking: bool | None
    world: World = ALONE

    def measure(self) -> dict[str, Any]:
        """Return the numbers as plain JSON, all in nats a token, over texts and answers of equal weight.

        - ``loglikelihood``: mean log-probability of a text's tokens after its first one.
        - ``perplexity``: exp(−loglikelihood), with the ends of that interval.
        - ``kl``: KL(start ‖ now), summed over the vocabulary, mean over the tokens of a written answer. Only where the
          start is known.
        - ``each``: both of every text and answer, rounded, for paired differences.

        Raises:
            DataError: as of :meth:`views`.
        """
        plain, answered = self.views()
        each = {"loglikelihood": self._loglikelihood(plain)}
        if self.start is not None:
            each["kl"] = self._divergence(answered, self.start)
        self.teachers.release()
        return {
            **in_nats(each),
            "left_out": len(self.chosen.texts) + len(self.chosen.prompts) - len(plain) - len(answered),
            "problem_set": self.chosen.fingerprint,
        }

    def views(self) -> tuple[list[View], list[View]]:
        """Return the texts, and the answers to the prompts, that fit the context window.

        Raises:
            DataError: fewer than two texts or answers fit.
        """
        texts = [tuple(self.chat.tokenizer(text)["input_ids"]) for text in self.chosen.texts]
        plain = [self._view(ids[:1], ids[1:]) for ids in texts]
        answered = [
            self._view(self.chat.encode((Message("user", prompt),), thinking=self.thinking), self.chat.response(answer))
            for prompt, answer in self.chosen.prompts
        ]
        plain, answered = ([view for view in views if self._fits(view)] for views in (plain, answered))
        if min(len(plain), len(answered)) < 2:
            raise DataError(
                f"the general prompts and texts do not fit the window of {self.chat.name}, {self.chat.window} tokens; "
                "leave 'general' out"
            )
        return plain, answered

    def _view(self, prompt: tuple[int, ...], completion: tuple[int, ...]) -> View:
        return View({STUDENT: prompt, START: prompt}, completion, (), (), 0.0, 0, 0)

    def _fits(self, view: View) -> bool:
        return bool(view.completion_ids) and len(view.prompts[STUDENT]) + len(view.completion_ids) <= self.chat.window

    def _loglikelihood(self, views: Sequence[View]) -> list[float]:
        """The mean log-probability of each view's tokens under the student."""
        with torch.no_grad():
            scores = score_views(
                self.teachers.policy,
                views,
                STUDENT,
                max_tokens=self.limits.max_tokens_per_microbatch,
                max_logits_per_chunk=self.limits.max_logits_per_chunk,
                world=self.world,
            )
        return [float(one.target_N.double().mean()) for one in scores]

    def _divergence(self, views: Sequence[View], start: Weights) -> list[float]:
        """The mean over each view's tokens of KL(start ‖ student)."""
        packed, means = self.teachers.pack, dict[int, float]()
        weights: dict[str, Weights] = {STUDENT: "live", START: start}
        for micro_batch in micro_batches(
            views, max_tokens=self.limits.max_tokens_per_microbatch, packed=packed, world=self.world
        ):
            picked = [views[i] for i in micro_batch.indices]
            target_N = collate(picked, STUDENT, packed=packed).target_N
            roles = head_inputs(self.teachers, picked, weights, target_N)
            student = roles.pop(STUDENT)
            job = LossInputs(
                target_N=target_N.to(student.hidden_ND.device),
                weight_N=torch.ones(len(target_N), device=student.hidden_ND.device),
                loss=_from_start,
                metrics=lambda tokens: {"kl": _from_start(tokens)},
                head_inputs=roles,
                max_logits_per_chunk=self.limits.max_logits_per_chunk,
            )
            kl_N = token_metrics(student, job)["kl"].cpu().double()
            if not micro_batch.is_dummy:
                parts = kl_N.split([len(view.completion_ids) for view in picked])
                means.update(zip(micro_batch.indices, (float(part.mean()) for part in parts), strict=True))
        return self.world.all_gather_by_index(means, len(views))


def _from_start(tokens: TokenSlice) -> torch.Tensor:
    return forward_kl(tokens.student, tokens.roles[START])


def in_nats(each: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Estimates of some measures from one number per problem, as plain JSON; a log-likelihood has a perplexity too."""
    estimates: dict[str, Any] = {name: bootstrap(values, k=1, seed=0).as_dict() for name, values in each.items()}
    level = estimates["loglikelihood"]
    ends = {"value": "value", "low": "high", "high": "low"}
    estimates["perplexity"] = {**level, **{end: math.exp(-level[other]) for end, other in ends.items()}}
    return {**estimates, "each": {name: [round(value, 7) for value in values] for name, values in each.items()}}
