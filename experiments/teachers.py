"""Compare PBSD's self-teacher with two external teachers on Countdown: ``python experiments/teachers.py``.

The external teachers are checkpoints of a GRPO run that the script makes itself. For every teacher it measures, with
the untrained student and with the student that the teacher has trained:

- the preference gap and the shift, on problems of the training split;
- the curvature: the extreme eigenvalues of the Hessian of E[−log σ(m)] in all weights, by Lanczos iterations on
  Hessian-vector products, the curvature along the gradient, and that of the logistic loss, E[σ(m) σ(−m)];
- the rate: the rise of the student's accuracy for a small step down the gradient, −⟨∇E_S[r], ∇E[−log σ(m)]⟩, by step
  size. The two gradients come from different problems.

Then it trains one student per teacher and seed, and compares their accuracies. Everything is kept in
experiments/results/countdown-teachers.json, the comparison in countdown-external.json. A repeated call goes on where
the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from run import RESULTS, dotted
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from selfdistill.config.run import load_config
from selfdistill.evaluation.intervals import over_seeds
from selfdistill.models.policy import Policy
from selfdistill.objectives import preference_loss
from selfdistill.scoring.batching import collate
from selfdistill.scoring.score import score_roles
from selfdistill.training.build import build_rollout_worker, choose_examples
from selfdistill.training.problem import build_problem
from selfdistill.training.run_folder import load_models
from selfdistill.training.trainer import prepare_step
from selfdistill.types import STUDENT, View

TEACHER = "teacher"
GRPO_STEPS = (8, 16)
"""Checkpoints of GRPO that are external teachers."""
STEPS = 8
PROBLEMS = 48
"""The loss and its curvature are measured on the first half, the reward's gradient on the second."""
LANCZOS = 10
SHARED: dict[str, Any] = {
    "model": {"path": "countdown-base"},
    "task": {"kind": "countdown"},
    "sampling": {"prompts": 8, "max_tokens": 256, "temperature": 1.0, "top_p": 1.0, "top_k": 0},
    "evaluation": {"problems": 64, "samples": 4},
}
Gradient = list[Tensor]


def write_config(path: Path, steps: int, completions: int, rate: float, method: dict[str, Any], every: int) -> Path:
    """Write a config that differs from the others in its method."""
    table = {**SHARED, "steps": steps, "method": method, "optimiser": {"learning_rate": rate}}
    table["sampling"] = {**SHARED["sampling"], "completions": completions}
    table["evaluation"] = {**SHARED["evaluation"], "every": steps}
    table["checkpoint"] = {"every": every, "keep": steps // every}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dotted(table), encoding="utf-8")
    return path


def teachers(out: Path) -> dict[str, dict[str, Any]]:
    """Train GRPO, unless it is there, and return the hyperparameters of PBSD for every teacher."""
    last, run = GRPO_STEPS[-1], out / "grpo"
    config = write_config(out / "grpo.toml", last, 8, 4e-4, {"name": "grpo"}, GRPO_STEPS[0])
    command = [sys.executable, "-m", "selfdistill", "train", str(config), "--set", "seed=10", "--out", str(run)]
    subprocess.run([*command, "--resume"], check=True)
    external = {
        f"grpo-{step}": {
            "context": "student",
            "weights": {"kind": "external", "path": str(run / "checkpoints" / f"step-{step:06d}" / "model")},
        }
        for step in GRPO_STEPS
    }
    return {"self": {"context": "solution"}, **external}


class Measurement:
    """A student, a teacher, and completions of both on the same problems."""

    def __init__(self, config: Path, run: Path | None = None) -> None:
        """``run`` is the run whose last weights the student has; None: the untrained student."""
        problem = build_problem(load_config(str(config), ["seed=20", "sampling.completions=4"]))
        self.models, _ = load_models(problem, None if run is None else str(run), checkpoint=None)
        examples, _, _ = choose_examples(self.models)
        worker = build_rollout_worker(self.models)
        groups = worker.rollout(examples[:PROBLEMS], seed=20, version=0)
        method = self.models.method
        prepared = prepare_step(groups, method, worker.templates, worker.chat, thinking=None, seed=20, step=1)
        self.views: Sequence[View] = prepared.views
        weights = {STUDENT: "live", TEACHER: method.roles()[TEACHER].weights}
        scores = score_roles(self.models.teachers, self.views, weights, max_tokens=4096, max_logits_per_chunk=1 << 24)
        sums = {role: [float(each.target_N.double().sum()) for each in scores[role] if each] for role in weights}
        self.student, self.teacher = sums[STUDENT], sums[TEACHER]
        self.beta: float = method.beta  # type: ignore[attr-defined]
        self.policy: Policy = self.models.policy
        self.weights = [weight for weight in self.policy.model.parameters() if weight.requires_grad]

    def of(self, source: str, group: int) -> list[int]:
        """The completions of one side of a problem."""
        return [i for i, view in enumerate(self.views) if view.source == source and view.group == group]

    def per_problem(self, value: Callable[[int], float], source: str) -> list[float]:
        """The mean of a number over the completions of one side, for every problem."""
        rows = [self.of(source, group) for group in range(PROBLEMS)]
        return [sum(map(value, row)) / len(row) for row in rows]

    def numbers(self) -> dict[str, Any]:
        """All that is measured of this student and this teacher."""
        right = {side: self.per_problem(lambda i: float(self.views[i].correct), side) for side in (STUDENT, TEACHER)}
        ahead = self.per_problem(lambda i: self.student[i] - self.teacher[i], STUDENT)
        behind = self.per_problem(lambda i: self.teacher[i] - self.student[i], TEACHER)
        pairs = list(zip(right[STUDENT], right[TEACHER], strict=True))
        margins = [
            [
                self.beta * (self.student[plus] - self.teacher[plus] - self.student[minus] + self.teacher[minus])
                for plus, minus in zip(self.of(TEACHER, group), self.of(STUDENT, group), strict=True)
            ]
            for group in range(PROBLEMS)
        ]
        logistic = [sum(1.0 / (2.0 + 2.0 * math.cosh(m)) for m in row) / len(row) for row in margins]
        gradient = self.gradient()
        size = norm(gradient)
        along = self.curvature_times([part / size for part in gradient])
        values, residual = self.eigenvalues()
        return {
            "student": estimate(right[STUDENT]),
            "teacher": estimate(right[TEACHER]),
            "gap": estimate([teacher - student for student, teacher in pairs]),
            "shift_on_student": estimate(ahead),
            "shift_on_teacher": estimate(behind),
            "shift": estimate([one + other for one, other in zip(ahead, behind, strict=True)]),
            "tokens": {side: estimate(self.per_problem(self.length, side)) for side in (STUDENT, TEACHER)},
            "logistic_curvature": estimate(logistic),
            "gradient_norm": size,
            "curvature_along_gradient": dot(along, gradient) / size,
            "largest_eigenvalue": values[-1],
            "smallest_eigenvalue": values[0],
            "eigenvalue_residual": residual,
            "rate": estimate(self.rates(gradient)),
        }

    def length(self, index: int) -> float:
        """Tokens of a completion."""
        return float(len(self.views[index].completion_ids))

    def logprobs(self, indices: Sequence[int]) -> Tensor:
        """The student's log-probability of each of these completions, twice differentiable."""
        views = [self.views[i] for i in indices]
        # Fast attention is differentiable only once.
        with sdpa_kernel(SDPBackend.MATH):
            batch = collate(views, STUDENT)
            logprobs_NV = self.policy.head_input(batch).logprobs(slice(None))
        target_N = logprobs_NV.gather(1, batch.target_N[:, None])[:, 0]
        return torch.stack([part.sum() for part in target_N.split([len(view.completion_ids) for view in views])])

    def losses(self) -> list[Callable[[], Tensor]]:
        """The mean of −log σ(m) over the first pair of each problem of the first half, in parts of four pairs."""
        half = PROBLEMS // 2
        pairs = [(self.of(TEACHER, group)[0], self.of(STUDENT, group)[0]) for group in range(half)]

        def loss(some: Sequence[tuple[int, int]]) -> Tensor:
            delta = self.logprobs([i for pair in some for i in pair]) - torch.tensor(
                [self.teacher[i] for pair in some for i in pair]
            )
            return preference_loss(self.beta * (delta[::2] - delta[1::2])).sum() / half

        return [lambda some=pairs[i : i + 4]: loss(some) for i in range(0, half, 4)]  # type: ignore[misc]

    def gradient(self) -> Gradient:
        """The gradient of the loss in all weights."""
        parts = [torch.autograd.grad(loss(), self.weights) for loss in self.losses()]
        return [torch.stack(column).sum(0) for column in zip(*parts, strict=True)]

    def curvature_times(self, vector: Gradient) -> Gradient:
        """The Hessian of the loss times a vector, by two backward passes."""
        total = [torch.zeros_like(weight) for weight in self.weights]
        for loss in self.losses():
            gradient = torch.autograd.grad(loss(), self.weights, create_graph=True)
            slope = torch.stack([(one * other).sum() for one, other in zip(gradient, vector, strict=True)]).sum()
            for part, product in zip(total, torch.autograd.grad(slope, self.weights), strict=True):
                part += product
        return total

    def eigenvalues(self) -> tuple[list[float], float]:
        """Ritz values of the Hessian, ascending, and the residual of the largest: a bound of its error."""
        generator = torch.Generator().manual_seed(0)
        vector = [torch.randn(weight.shape, generator=generator) for weight in self.weights]
        basis = [[part / norm(vector) for part in vector]]
        diagonal, beside = [], []
        for _ in range(LANCZOS):
            product = self.curvature_times(basis[-1])
            diagonal.append(dot(product, basis[-1]))
            # Twice, because once leaves the rounding of single precision.
            for known in (*basis, *basis):
                share = dot(product, known)
                product = [part - share * other for part, other in zip(product, known, strict=True)]
            beside.append(norm(product))
            basis.append([part / beside[-1] for part in product])
        off = torch.tensor(beside[:-1], dtype=torch.float64)
        matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(matrix)
        return values.tolist(), abs(float(vectors[-1, -1]) * beside[-1])

    def rates(self, gradient: Gradient) -> list[float]:
        """−⟨∇E_S[r], gradient⟩ of each problem of the second half, from advantages over the other completions."""
        rates = []
        for group in range(PROBLEMS // 2, PROBLEMS):
            indices = self.of(STUDENT, group)
            reward = torch.tensor([float(self.views[i].correct) for i in indices])
            if reward.min() == reward.max():
                rates.append(0.0)
                continue
            advantage = (reward - reward.mean()) * len(indices) / (len(indices) - 1)
            slope = torch.autograd.grad((advantage * self.logprobs(indices)).mean(), self.weights)
            rates.append(-dot(slope, gradient))
        return rates


def dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The inner product of two vectors of weights."""
    return math.fsum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))


def norm(vector: Sequence[Tensor]) -> float:
    """The Euclidean norm of a vector of weights."""
    return math.sqrt(dot(vector, vector))


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """The mean over problems with its t interval."""
    return over_seeds([values], k=1).as_dict()


def main() -> None:
    """Make the teachers, measure them, train their students, and measure again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/experiments/countdown-teachers"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", default="1")
    args = parser.parse_args()
    out: Path = args.out.resolve()
    configs = {
        name: write_config(out / "arms" / f"{name}.toml", STEPS, 4, 1e-4, {"name": "pbsd", **settings}, STEPS)
        for name, settings in teachers(out).items()
    }
    measured = out / "measured.json"
    kept: dict[str, Any] = {"steps": STEPS, "problems": PROBLEMS, "teachers": {name: {} for name in configs}}
    if measured.is_file():
        kept = json.loads(measured.read_text(encoding="utf-8"))

    def measure(when: str) -> None:
        for name, config in configs.items():
            if when in kept["teachers"][name]:
                continue
            started = time.process_time()
            run = out / "compared" / "runs" / name / "seed-0" if when == "end" else None
            numbers = Measurement(config, run).numbers()
            kept["teachers"][name][when] = {**numbers, "processor_seconds": round(time.process_time() - started)}
            measured.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            shutil.copy(measured, RESULTS / "countdown-teachers.json")

    measure("start")
    command = [sys.executable, "-m", "selfdistill", "compare", *map(str, configs.values()), "--baseline", "self"]
    command += ["--seeds", args.seeds, "--match", "completions", "--jobs", args.jobs, "--out", str(out / "compared")]
    subprocess.run(command, check=True)
    shutil.copy(out / "compared" / "compare.json", RESULTS / "countdown-external.json")
    measure("end")


if __name__ == "__main__":
    main()
