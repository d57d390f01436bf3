"""The whole idea in one plain loop: sample, verify, score again with hindsight, update.

The model solves Countdown problems. The same weights score each completion twice: under the question alone (student)
and under the question with a correct solution (teacher). u = log T − log S is positive for tokens that hindsight makes
likelier. AntiSD subtracts φ(u) from the GRPO advantage. Batching by length, checkpoints and the gate are left out; they
are in ``selfdistill train``. Run it with ``python examples/minimal_loop.py [steps]``.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import selfdistill as sd
from selfdistill.objectives import (
    antisd_advantage,
    clipped_policy_gradient,
    group_advantages,
    pointwise_mutual_information,
)

COMPLETIONS, MAX_TOKENS, STRENGTH, LEARNING_RATE = 8, 256, 0.1, 2e-4


def completion_logprobs(model: torch.nn.Module, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Tensor:
    """Log-probability of each completion token. The completion's ids are used as sampled, not tokenised again."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)


def main(steps: int, prompts_per_step: int = 8) -> sd.Policy:
    """Train for some steps; returns the student."""
    policy, chat = sd.load_policy("countdown-base")
    task, templates = sd.load_task("countdown"), sd.load_templates("countdown")
    sampler = sd.HFSampler(policy, stop_ids=chat.stop_ids)
    optimiser = torch.optim.AdamW(policy.trainable(), lr=LEARNING_RATE, weight_decay=0.0)
    model = policy.model
    examples = task.examples("train")

    for step in range(steps):
        # 1. Sample a group of completions for every question.
        first = step * prompts_per_step
        batch = [examples[i % len(examples)] for i in range(first, first + prompts_per_step)]
        prompts = [chat.encode(example.prompt) for example in batch]
        groups = sampler.sample(prompts, sd.SamplingParams(count=COMPLETIONS, max_tokens=MAX_TOKENS, seed=step))

        # 2. Verify, and compare within the group.
        verdicts = [
            [task.verify(example, chat.decode(c.ids), finished=c.finished) for c in group]
            for example, group in zip(batch, groups, strict=True)
        ]
        reward_PG = torch.tensor([[verdict.reward or 0.0 for verdict in row] for row in verdicts])
        advantage_PG = group_advantages(reward_PG)

        # 3. The denominator is known before the first forward pass.
        tokens = sum(len(c.ids) for group in groups for c in group)
        optimiser.zero_grad()
        for p, (example, group) in enumerate(zip(batch, groups, strict=True)):
            for g, completion in enumerate(group):
                # 4. Score the same ids under another prompt: the teacher sees a solution.
                fields = {**example.fields, "verdict": "correct" if verdicts[p][g].correct else "wrong"}
                teacher_prompt = templates["solution_verdict"].render(example.prompt, fields)
                assert isinstance(teacher_prompt, tuple), teacher_prompt
                with torch.no_grad():
                    teacher_N = completion_logprobs(model, chat.encode(teacher_prompt), completion.ids)
                student_N = completion_logprobs(model, prompts[p], completion.ids)

                # 5. Credit: the group's advantage of the completion plus hindsight's advantage of each token.
                u_N = pointwise_mutual_information(teacher_N, student_N.detach())
                credit_N = advantage_PG[p, g] + STRENGTH * antisd_advantage(u_N)
                loss_N = clipped_policy_gradient(student_N, student_N.detach(), credit_N)
                (loss_N.sum() / tokens).backward()

        # 6. One update.
        torch.nn.utils.clip_grad_norm_(policy.trainable(), 1.0)
        optimiser.step()
        print(f"step {step + 1}  reward {float(reward_PG.mean()):.3f}  tokens {tokens}")
    return policy


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
