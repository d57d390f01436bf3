"""One script for one large GPU, within ten minutes: loss path, whole steps of the methods, sampling at real sizes.

    python benchmarks/gpu.py                # shapes of Qwen3-1.7B and 8B, random weights, bf16, 8 completions of 4096
    python benchmarks/gpu.py --tiny         # the same code at toy size, on any machine: figures of no meaning

The loss path, as it stands and compiled, beside plain PyTorch, TRL and Liger (where installed; "out of memory" is a
result), then a step of each method on given completions: scoring, forward, backward, update, no sampling. Model FLOPs
utilisation counts every row's operations once, without recomputed activations, against the device's dense bf16 peak
where it is known. Sampling (``gpu_sampling.py``) is measured with the model itself and, where vLLM is installed, with
an engine and with two servers, and so is the sync of weights to them; "one GPU" stands where the servers lack a second.
What it was run on stands in the result and at the top of what is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from gpu_sampling import sampling_cases
from gpu_timing import device_words, free_memory, timed
from loss_paths import ONE_CONTEXT, PATHS, Unavailable, make_problem
from processes import log, origin, write
from random_model import random_policy
from selfdistill.config.run import load_config
from selfdistill.config.sections import ParallelConfig, limits_on
from selfdistill.contexts.chat import Chat
from selfdistill.contexts.templates import load_templates
from selfdistill.distributed.world import World
from selfdistill.methods import build_method
from selfdistill.models.sizing import Shape, Work, training_operations
from selfdistill.models.teachers import Teachers
from selfdistill.tasks.build import build_task
from selfdistill.training.clock import Clock
from selfdistill.training.trainer import Trainer
from selfdistill.types import Example, Rollout, RolloutGroup, Verdict
from sizing import SHAPES, TINY

METHODS = ("grpo", "sd", "antisd", "opsd", "sdft", "sdpo", "credit", "purified")
"""Those that learn from the student's completions alone."""
MANY_CONTEXTS = tuple(path for path in PATHS if path not in ONE_CONTEXT)
PEAKS: Mapping[str, float] = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 FLOP/s by a word in the device's name."""
Cases = Callable[[Shape, argparse.Namespace, torch.dtype], Iterator[dict[str, Any]]]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--shapes", nargs="+", default=["qwen3-1.7b", "qwen3-8b"], choices=sorted(SHAPES), help="(%(default)s)")
    add("--tiny", action="store_true", help="a toy shape and short completions, to see that the script runs")
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what is measured (default: all)")
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="(default: all)")
    add("--completions", type=int, default=8, help="completions in a step, of two problems (default: %(default)s)")
    add("--tokens", type=int, default=4096, help="tokens of each (default: %(default)s)")
    add("--compile", action="store_true", help="steps with model.compile (the loss path is measured both ways)")
    add("--repeats", type=int, default=3, help="timed runs (default: %(default)s)")
    # Each shape that samples takes the minutes in which three engines start.
    add("--sampled-shapes", type=int, default=1, help="so many of --shapes sample, the first (default: %(default)s)")
    add("--rows", type=int, nargs="+", default=[1, 8, 64], help="completions sampled at once (default: %(default)s)")
    add("--prompt", type=int, default=512, help="tokens of a prompt that is sampled from (default: %(default)s)")
    add("--sampled-tokens", type=int, default=256, help="tokens of a sampled completion (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    add("--out", type=Path, help="where the JSON goes (default: benchmarks/results/gpu.json)")
    return parser.parse_args(arguments)


def loss_cases(shape: Shape, options: argparse.Namespace, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Every path with one context, those that can with four."""
    for path, contexts in [*((path, 1) for path in PATHS), *((path, 4) for path in MANY_CONTEXTS)]:
        problem = make_problem(
            tokens=options.completions * options.tokens,
            vocabulary=shape.V,
            width=shape.D,
            contexts=contexts,
            divergence="jensen_shannon",
            elements=1 << 26 if options.device == "cpu" else 1 << 28,
            device=options.device,
            dtype=dtype,
        )
        losses: list[float] = []

        def once(path: str = path, problem: Any = problem, losses: list[float] = losses) -> None:
            problem.hidden_ND.grad = problem.weight_VD.grad = None
            loss = PATHS[path](problem)
            loss.backward()
            losses.append(float(loss.detach()))

        case: dict[str, Any] = {"path": path, "contexts": contexts}
        try:
            case |= {"outcome": "measured", **timed(once, options.repeats, options.device)}
            gradient = problem.weight_VD.grad
            assert gradient is not None
            case |= {"loss": losses[-1], "gradient_norm": float(gradient.float().norm())}
        except Unavailable as error:
            case |= {"outcome": "not installed", "why": str(error)}
        except torch.OutOfMemoryError:
            case |= {"outcome": "out of memory"}
        log(f"  loss, {path}, {contexts} contexts: {case.get('seconds', case['outcome'])}")
        del problem, once
        free_memory(options.device)
        yield case


def groups_of(examples: Sequence[Example], chat: Chat, completions: int, tokens: int) -> list[RolloutGroup]:
    """Completions of given length for two problems, every other one correct; the words are those of the solutions."""
    generator = torch.Generator().manual_seed(0)
    words = torch.tensor(chat.tokenizer(examples[0].fields["solution"], add_special_tokens=False)["input_ids"])
    groups = []
    for example in examples:
        rollouts, verdicts = [], []
        for number in range(completions // len(examples)):
            drawn = words[torch.randint(len(words), (tokens - 1,), generator=generator)].tolist()
            ids = (*drawn, chat.turn_end[-1])
            text = chat.tokenizer.decode(drawn)
            rollouts.append(Rollout(chat.encode(example.prompt), ids, (-7.0,) * tokens, True, text, 0))
            right = number % 2 == 0
            verdicts.append(Verdict(float(right), feedback=None if right else "that is not the target ."))
        groups.append(RolloutGroup(example, tuple(rollouts), tuple(verdicts)))
    return groups


def step_cases(shape: Shape, options: argparse.Namespace, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """A step of each method; GRPO's is what the others are compared with."""
    window = 4 * options.tokens + 4096
    config = load_config("countdown-grpo", [])
    task = build_task(config.task, seed=0, reward=None)
    policy, chat = random_policy(shape, options.device, dtype, window)
    policy.compiled = options.compile
    policy.place(ParallelConfig(activation_checkpointing=True), torch.device(options.device))
    groups = groups_of(list(task.examples("train")[:2]), chat, options.completions, options.tokens)
    peak = next((flops for word, flops in PEAKS.items() if word in device_words(options.device)), None)
    for name in options.methods:
        method = build_method(name, {})
        case: dict[str, Any] = {"method": name}
        try:
            teachers = Teachers(policy, needed={r.weights for r in method.roles().values()}, rate=method.teacher_rate)
            trainer = Trainer(
                policy,
                teachers,
                method,
                load_templates(task.contexts),
                chat,
                torch.optim.AdamW(policy.trainable(), lr=1e-12, fused=True),
                learning_rate=lambda step: 1e-12,
                clip_norm=1.0,
                limits=limits_on(options.device),
                thinking=None,
                world=World.current(),
            )
            views = trainer.prepare(groups, step=1).views
            case |= _sizes(views)
            losses: list[float] = []

            def once(trainer: Trainer = trainer, losses: list[float] = losses) -> None:
                loss = trainer.step(groups, step=1, clock=Clock()).record.loss
                assert isinstance(loss, float)
                losses.append(loss)

            case |= {"outcome": "measured", **timed(once, options.repeats, options.device), "loss": losses[0]}
            operations = _operations(shape, case)
            case["flops_utilisation"] = operations / case["seconds"] / peak if peak else None
        except torch.OutOfMemoryError:
            case["outcome"] = "out of memory"
        log(f"  step, {name}: {case.get('seconds', case['outcome'])}")
        teachers = trainer = once = None  # type: ignore[assignment]
        # Torch gives up where one piece of code is compiled for the ninth case.
        torch.compiler.reset()
        policy.zero_grad(set_to_none=True)
        free_memory(options.device)
        yield case


def _sizes(views: Sequence[Any]) -> dict[str, float]:
    lengths = {role: fmean(len(view.prompts[role]) for view in views) for role in views[0].prompts}
    student = lengths.pop("student")
    return {
        "completions": len(views),
        "completion_tokens": fmean(len(view.completion_ids) for view in views),
        "prompt_tokens": student,
        "teachers": len(lengths),
        "teacher_prompt_tokens": fmean(lengths.values()) if lengths else 0.0,
    }


def _operations(shape: Shape, case: Mapping[str, Any]) -> float:
    work = Work(
        prompts=1,
        completions=int(case["completions"]),
        prompt=round(case["prompt_tokens"]),
        teacher_prompt=round(case["teacher_prompt_tokens"]),
        completion=round(case["completion_tokens"]),
        teachers=int(case["teachers"]),
    )
    return training_operations(shape, work)


PARTS: Mapping[str, Cases] = {"loss": loss_cases, "steps": step_cases, "sampling": sampling_cases}
"""What can be measured of a shape."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    if not options.tiny and options.device == "cpu":
        raise SystemExit("no GPU was found: these sizes need one (--tiny runs anywhere)")
    shapes = {name: SHAPES[name] for name in options.shapes}
    dtype = torch.bfloat16
    if options.tiny:
        options.completions, options.tokens, options.repeats = 4, 24, 1
        options.rows, options.prompt, options.sampled_tokens = [1, 3], 16, 8
        shapes, dtype = {"tiny": TINY}, torch.float32
    words = device_words(options.device)
    print(f"Run on {words}.")
    found = {}
    for number, (name, shape) in enumerate(shapes.items()):
        log(name)
        parts = [part for part in options.parts if part != "sampling" or number < options.sampled_shapes]
        found[name] = {part: list(PARTS[part](shape, options, dtype)) for part in parts}
    settings = ("tiny", "compile", "completions", "tokens", "repeats", "prompt", "sampled_tokens")
    sizes = {key: getattr(options, key) for key in settings}
    result = {**origin(torch.get_num_threads()), "device": words, "dtype": str(dtype), **sizes, "shapes": found}
    write(result, "gpu", options.out)
    for name, measured in found.items():
        for case in chain.from_iterable(measured.values()):
            print(name, *(f"{key}={_short(value)}" for key, value in case.items()))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
