"""What the experiments of run.py try: tasks, candidates of every arm, and arms of the papers' claims."""

from __future__ import annotations

from typing import Any

SHARED: dict[str, Any] = {
    "sampling": {
        "prompts": 8,
        "completions": 8,
        "max_tokens": 256,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
    },
    "evaluation": {"problems": 64, "samples": 4},
}
TASKS: dict[str, dict[str, Any]] = {
    "countdown": {"task": {"kind": "countdown"}, "model": {"path": "countdown-base"}},
    "single": {"task": {"kind": "countdown", "difficulty": "single"}, "model": {"path": "countdown-base"}},
    "toolbox": {"task": {"kind": "toolbox"}, "model": {"path": "toolbox-base"}, "sampling": {"max_tokens": 96}},
    "countdown-turns": {"task": {"kind": "countdown-turns"}, "model": {"path": "countdown-base"}},
    "toolbox-turns": {
        "task": {"kind": "toolbox-turns"},
        "model": {"path": "toolbox-turns-base"},
        "sampling": {"max_tokens": 96},
    },
    # A real language model that is hardly ever right: the bare question, as scripts/real/words.toml has it after two
    # worked examples. `make real-model` fetches the model; scripts/real/word_problems.py writes the problems.
    "words-bare": {
        "task": {
            "kind": "math",
            "path": "models/sums.jsonl",
            "solution": "solution",
            "suffix": "\nWork it out in one short line, then write #### and the number.",
        },
        "model": {"path": "models/smollm2-135m"},
        "sampling": {"completions": 4, "max_tokens": 40},
        "evaluation": {"samples": 2, "also": ["general"]},
    },
}

JSD = {"divergence": {"kind": "jensen_shannon"}}
RATES = (1e-4, 2e-4, 4e-4, 8e-4)
Candidate = tuple[float, dict[str, Any]]


def rates(*values: float, **hyperparameters: Any) -> list[Candidate]:
    """The same hyperparameters at several learning rates."""
    return [(value, hyperparameters) for value in values]


def strengths(rate: float, *values: float) -> list[Candidate]:
    """Several λ at one learning rate."""
    return [(rate, {"strength": value}) for value in values]


# Four candidates per arm: learning rates, or λ at GRPO's second rate and one more at its third, which was best.
GRIDS: dict[str, list[Candidate]] = {
    "grpo": rates(*RATES),
    "sd": [*strengths(2e-4, 0.05, 0.1, 0.5), *strengths(4e-4, 0.05)],
    "antisd": [*strengths(2e-4, 0.05, 0.1, 0.3), *strengths(4e-4, 0.1)],
    "opsd": rates(1e-5, 3e-5, 1e-4, 2e-4, **JSD),
    "purified": rates(3e-5, 1e-4, 2e-4, 4e-4),
    "pbsd": rates(1e-5, 3e-5, 1e-4, 2e-4),
    "sdpo": rates(3e-5, 1e-4, 2e-4, 4e-4),
    "credit": [*strengths(1e-4, 0.05, 0.1, 0.5), *strengths(2e-4, 0.1)],
    **{method: rates(*RATES) for method in ("rlsd", "cepo", "rlcsd", "sdar", "sdpg", "srpo", "hdpo")},
    **{method: rates(3e-5, 1e-4, 2e-4, 4e-4) for method in ("sc_sdpo", "paced", "demopsd", "eopd")},
}
# On toolbox sdpo and grpo kept improving up to 4e-4, so all arms there get larger rates.
GRIDS_OF: dict[str, dict[str, list[Candidate]]] = {
    "toolbox": {
        "sdpo": rates(*RATES),
        "credit": [*strengths(4e-4, 0.05, 0.1, 0.5), *strengths(8e-4, 0.1)],
        "antisd": [*strengths(4e-4, 0.05, 0.1, 0.3), *strengths(8e-4, 0.1)],
        "opsd": rates(*RATES, **JSD),
        "purified": rates(*RATES),
        "pbsd": rates(*RATES),
        **{method: rates(*RATES) for method in ("sc_sdpo", "paced", "demopsd", "eopd")},
    }
}
# Tuning in turns has three candidates an arm.
TURNS_RATES = (2e-4, 4e-4, 8e-4)
GRIDS_OF["toolbox-turns"] = {
    **{method: rates(*TURNS_RATES) for method in ("grpo", "sdpo", "sdar")},
    "credit": strengths(4e-4, 0.05, 0.1, 0.5),
    "antisd": strengths(4e-4, 0.05, 0.1, 0.3),
}
GRIDS_OF["countdown-turns"] = {
    **{method: rates(1e-4, 2e-4, 4e-4) for method in ("grpo", "sdar")},
    "sdpo": rates(3e-5, 1e-4, 2e-4),
    "credit": strengths(1e-4, 0.05, 0.1, 0.5),
    "antisd": strengths(2e-4, 0.05, 0.1, 0.3),
}
# A step of the real model takes half a minute of a core, so its arms have two candidates and no others. Hindsight
# stands in an earlier turn: pasted into the question it moves this model twice as far, and not towards right answers.
TURN = {"context": "solution_turn"}
GRIDS_OF["words-bare"] = {
    **{method: rates(1e-5, 5e-5) for method in ("grpo", "sft")},
    "opsd": rates(1e-5, 5e-5, **JSD, **TURN),
    "sdpo": rates(1e-5, 5e-5, **TURN),
}
IN_TURNS: dict[str, dict[str, Any]] = {"sdar": {"context": "note"}, "antisd": {"warmup": 1}}
"""Hyperparameters in turns. SDAR is shown notes of earlier steps, as in its paper. AntiSD's paper warms its gate up in
5 of 200 steps; here runs have 8 or 12."""
SUMMER = ("rlsd", "cepo", "rlcsd", "sdar", "sdpg", "srpo", "hdpo", "sc_sdpo", "paced", "demopsd", "eopd")
ARMS = {
    "countdown": ("grpo", "sd", "antisd", "opsd", "purified", "pbsd", "sdpo", "credit", *SUMMER),
    "single": ("grpo", "antisd", *SUMMER),
    "toolbox": ("grpo", "sdpo", "credit", "antisd", "opsd", "purified", "pbsd", *SUMMER),
    "countdown-turns": ("grpo", "sdpo", "credit", "antisd", "sdar"),
    "toolbox-turns": ("grpo", "sdpo", "credit", "antisd", "sdar"),
    "words-bare": ("grpo", "sft", "opsd", "sdpo"),
}
Arm = tuple[str, Candidate]
PUBLISHED: dict[str, Any] = {"strength": 0.5, "warmup": 1}
"""AntiSD as published: λ = 0.5 at GRPO's learning rate. The paper's warm-up is 5 of 200 steps, here 1 of 20 or 30."""
THRESHOLDS = (0.90, 0.95)
"""Thresholds of AntiSD's gate beside the published 0.93."""
PASS_ARMS = ("grpo", "antisd-published", "antisd")
PASS_SAMPLES = 32
DOSES: dict[str, dict[str, Arm]] = {
    "countdown": {
        "sd-0.5": ("sd", (2e-4, {"strength": 0.5})),
        "opsd-1e-4": ("opsd", (1e-4, JSD)),
        "purified-1e-4": ("purified", (1e-4, {})),
        "pbsd-1e-4": ("pbsd", (1e-4, {})),
    },
    "toolbox": {
        "sdpo-4e-4": ("sdpo", (4e-4, {})),
        **{f"credit-{value:g}": ("credit", (4e-4, {"strength": value})) for value in (0.5, 1.0, 2.0)},
    },
}
"""Arms of the stage ``doses``. On toolbox their baseline is SDPO at the same rate, elsewhere the tuned GRPO."""
TUNED_ON = {"single": "countdown"}
"""Task → the task whose tuned candidates it uses."""
UNGATED = {"countdown": True, "single": True}
"""Tasks on which AntiSD also runs without its gate, with the candidate tuned for AntiSD."""
