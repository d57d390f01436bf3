"""Make a shipped base model: ``python scripts/make_base.py countdown``, ``toolbox`` or ``toolbox-turns``.

Pre-trains a small Qwen3 on the environment's traces, and writes it to the package and a log to ``docs/``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import Qwen3ForCausalLM

from base_models.environments import ENVIRONMENTS
from base_models.pretraining import Phase, batches, build_model, run_phase, save
from selfdistill.contexts.templates import load_templates

ROOT = Path(__file__).resolve().parents[1]


def train(args: argparse.Namespace) -> None:
    """Train through the environment's phases and save after each; logs one line every fifty steps."""
    torch.set_num_threads(args.threads)
    environment = ENVIRONMENTS[args.environment]
    templates = load_templates(environment.contexts)
    tokenizer = environment.tokenizer(templates)
    model = build_model(tokenizer, args.seed)
    steps = args.steps or [plan.steps for plan in environment.plans]
    tokens = args.tokens or [plan.tokens for plan in environment.plans]
    rates = args.lr or [plan.lr for plan in environment.plans]
    phases = []
    for i, (plan, count, size, lr) in enumerate(zip(environment.plans, steps, tokens, rates, strict=True)):
        writer = environment.writer(templates, args.seed + i, plan.shares)
        phases.append(Phase(plan.name, count, size, lr, batches(writer, tokenizer, size, args.seed + i)))
    if args.start is not None:
        model.load_state_dict(Qwen3ForCausalLM.from_pretrained(args.start, dtype=torch.float32).state_dict())
        del phases[:-1]
    out = args.out or ROOT / "src" / "selfdistill" / "models" / "shipped" / f"{args.environment}-base"
    path = args.log or ROOT / "docs" / f"{args.environment}_base.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w" if args.start is None else "a", encoding="utf-8") as log:

        def write_line(line: str) -> None:
            print(line, flush=True)
            print(line, file=log, flush=True)

        parameters = sum(p.numel() for p in model.parameters())
        write_line(f"torch {torch.__version__}, {parameters} parameters, {len(tokenizer)} words")
        for phase in phases:
            size = f"{phase.steps} steps of {phase.tokens} tokens"
            write_line(
                f"phase {phase.name}: {size}, learning rate {phase.lr}, seed {args.seed}, {args.threads} threads"
            )
            run_phase(model, phase, tokenizer.pad_token_id, write_line)
            save(model, tokenizer, out)
            write_line(f"phase {phase.name} saved")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", choices=sorted(ENVIRONMENTS))
    parser.add_argument("--out", type=Path, help="model directory; by default the package's own")
    parser.add_argument("--log", type=Path, help="by default docs/ENVIRONMENT_base.log")
    parser.add_argument("--steps", type=int, nargs="+", help="one number a phase")
    parser.add_argument("--tokens", type=int, nargs="+", help="tokens a batch, padding included; one number a phase")
    parser.add_argument("--lr", type=float, nargs="+", help="one peak learning rate a phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--start", type=Path, help="a model after all phases but the last: train only the last")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
