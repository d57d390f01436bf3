"""The microscope's gallery: four completions of a real language model, and what four methods see in them.

    python scripts/real/gallery.py sample    # completions of the model, into models/gallery.json: read them and choose
    python scripts/real/gallery.py score     # the chosen ones with numbers, into experiments/results/real-gallery.json
    python scripts/real/gallery.py draw      # the pictures of docs/real-model.md, from that file alone

Run it in the root of a checkout, with PYTHONPATH=scripts.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from docs_site.strips import Strip, draw
from real.show import CONFIG
from real.word_problems import write_sums
from selfdistill.config.run import RunConfig, load_config
from selfdistill.contexts.chat import Chat
from selfdistill.contexts.templates import load_templates
from selfdistill.evaluation.words import load_classes
from selfdistill.inspection.credit import inspect_groups, plan
from selfdistill.inspection.files import TokenTable, token_table
from selfdistill.methods import build_method
from selfdistill.models.gguf import gguf_quantisation
from selfdistill.models.policy import Policy
from selfdistill.objectives import antisd_advantage
from selfdistill.report.tokens import Piece, scale_limit
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import policy_sampler
from selfdistill.sampling.rollouts import sample_and_verify
from selfdistill.tasks.build import build_task
from selfdistill.training.build import build_policy
from selfdistill.types import Example, Rollout, RolloutGroup, Task

SAMPLED, KEPT, PICTURES = (
    Path("models/gallery.json"),
    Path("experiments/results/real-gallery.json"),
    Path("docs/pictures"),
)
TEACHER = "solution_turn"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "credit": ("credit", {"context": TEACHER, "contrast": "other_question_bare", "contrasts": 2}),
    "purified": ("purified", {"context": "solution"}),
}
ASKED, COUNT, LONGEST = 10, 3, 40
"""Problems, completions of each, and tokens of a completion."""
CHOSEN: dict[str, int] = {"right": 1, "wrong by arithmetic": 22, "wrong by reading": 16, "rambling": 20}
"""The number in the sampled file of the completion that shows each case."""
ROWS = {
    "u": "u: orange is likelier once the solution is in sight, blue is less likely",
    "phi": "φ(u): u bent so that blue is bounded; AntiSD rewards the blue",
    "specific": "CREDIT, input-specific: orange is likelier for this problem than for others",
    "generic": "CREDIT, input-generic: orange is likely whatever the problem",
    "purified": "Purified's credit: orange is pushed up, blue is pushed down",
}
"""The signals of a picture and their captions."""


def bench() -> tuple[RunConfig, Task, Policy, Chat, list[Example]]:
    """The config, its task, the model and the problems."""
    write_sums()
    config = load_config(str(CONFIG))
    policy, chat = build_policy(config.model, seed=0)
    task = build_task(config.task, seed=config.seed, reward=None)
    return config, task, policy, chat, list(task.examples("validation")[:ASKED])


def sample() -> None:
    """Sample, judge and write completions, and print them with their numbers."""
    _, task, policy, chat, examples = bench()
    params = SamplingParams(count=COUNT, max_tokens=LONGEST, seed=0)
    groups = sample_and_verify(examples, task, policy_sampler(policy, chat), chat, params)
    lines = [
        {"example": group.example.id, "right": verdict.correct, **asdict(rollout)}
        for group in groups
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
    ]
    SAMPLED.write_text(json.dumps(lines, indent=1), encoding="utf-8")
    for number, line in enumerate(lines):
        print(f"{number:3} {line['example']} {'right' if line['right'] else 'wrong'}: {line['text']!r}")


def score() -> None:
    """Score the chosen completions under every context, and keep texts and numbers."""
    config, task, policy, chat, examples = bench()
    lines = json.loads(SAMPLED.read_text(encoding="utf-8"))
    by_id = {example.id: example for example in examples}
    groups = []
    for number in CHOSEN.values():
        line = lines[number]
        rollout = Rollout(
            prompt_ids=tuple(line["prompt_ids"]),
            completion_ids=tuple(line["completion_ids"]),
            logprobs=tuple(line["logprobs"]),
            finished=line["finished"],
            text=line["text"],
            policy_version=0,
        )
        example = by_id[line["example"]]
        verdict = task.verify(example, rollout.text, finished=rollout.finished)
        groups.append(RolloutGroup(example, (rollout,), (verdict,)))
    templates = load_templates(task.contexts)
    built = {name: build_method(kind, settings) for name, (kind, settings) in METHODS.items()}
    findings = inspect_groups(
        policy, chat, groups, plan(built, [TEACHER], templates), templates,
        thinking=None, prompts=len(groups), max_tokens=1024, max_logits_per_chunk=1 << 24, seed=0,
    )  # fmt: skip
    table = token_table(findings, chat, load_classes(None))
    kept = {
        "model": f"SmolLM2-135M-Instruct, {gguf_quantisation(config.model.path)} file converted to float32",
        "teacher": TEACHER,
        "right": [sum(line["right"] for line in lines), len(lines)],
        "cases": {case: _case(table, c) for c, case in enumerate(CHOSEN)},
    }
    KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _case(table: TokenTable, c: int) -> dict[str, Any]:
    """One completion: its problem, its pieces, and a number for each token and signal."""
    findings, sample = table.findings, table.samples[c]
    start = sum(findings.lengths[:c])
    rows = slice(start, start + findings.lengths[c])
    credit = findings.metrics["credit"]
    u = torch.from_numpy(findings.gains()[TEACHER][rows])
    generic = torch.from_numpy(credit["credit_generic"][rows])
    signals = {
        "u": u,
        "phi": -antisd_advantage(u),
        "specific": torch.from_numpy(credit["credit_specific"][rows]),
        "generic": generic - generic.mean(),
        "purified": torch.from_numpy(findings.credits["purified"][rows]),
    }
    group = findings.groups[findings.places[c][0]]
    return {
        "question": group.example.prompt[-1].content.partition("\n")[0],
        "solution": group.example.fields["solution"],
        "right": table.outcome_C[c] == "correct",
        "pieces": [[piece.before, piece.body, piece.unseen] for piece in sample.pieces],
        "signals": {name: [float(f"{value:.4g}") for value in values.tolist()] for name, values in signals.items()},
    }


def pictures() -> dict[str, str]:
    """An SVG for each case: the completion five times, coloured by each signal on a scale of its own."""
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    drawn = {}
    for case, one in kept["cases"].items():
        pieces = [Piece(*piece) for piece in one["pieces"]]
        verdict = "right" if one["right"] else "wrong"
        strips = [Strip(one["question"], (), ()), Strip(f"The model's answer, {verdict}, five times:", (), ())]
        for name, caption in ROWS.items():
            # The signals have different units, and an outlier would fade the rest.
            limit = scale_limit(value for value in one["signals"][name] if math.isfinite(value))
            values = [max(-1.0, min(1.0, value / limit)) for value in one["signals"][name]]
            strips.append(Strip(f"{caption} (full colour: {limit:g})", pieces, values))
        title = f"A real completion, {case}: {one['question']}"
        drawn[f"real-{case.replace(' ', '-')}"] = draw(title, ("negative", "positive"), strips, limit=1.0)
    return drawn


def main(command: str) -> None:
    """Do what the command line asks."""
    if command == "draw":
        for name, picture in pictures().items():
            (PICTURES / f"{name}.svg").write_text(picture, encoding="utf-8")
    else:
        {"sample": sample, "score": score}[command]()


if __name__ == "__main__":
    main(sys.argv[1])
