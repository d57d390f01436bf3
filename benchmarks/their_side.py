"""One process of the step benchmark: TRL's ``SDPOTrainer`` on the same workload, with a clock around its methods.

Settings are the fastest that TRL has for this size: no gradient checkpointing, float32 as on our side, its fused AdamW.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from selfdistill.config.run import load_config
from selfdistill.models.loading import resolve_model
from selfdistill.tasks.build import build_task
from selfdistill.types import Example
from workload import (
    CONFIG,
    FixedFeedback,
    SideReport,
    StepSample,
    StepTimer,
    Workload,
    examples_of_step,
    overrides,
    peak_resident,
    resident,
    workload_from,
)

THINK_BEGIN, THINK_END = "<think>", "</think>"

# The words of contexts/countdown.toml; the agreement check compares the rendered prompts token by token.
REPROMPT = "{prompt}{solution}{feedback}\nnow solve the problem yourself ."
SOLUTION = "\nanother attempt was correct : {successful_previous_attempt} ."
FEEDBACK = "\nfeedback on an earlier attempt : {feedback_raw} ."


# Any, so that types are checked alike with and without trl.
Base: Any = SDPOTrainer


class TimedTrainer(Base):  # type: ignore[misc]
    """``SDPOTrainer`` with its phases timed. Nothing that it computes is changed."""

    timer: StepTimer
    batch: dict[str, Any]

    def _generate(self, prompt_ids: Any) -> Any:
        with self.timer.phases.phase("generation"):
            return super()._generate(prompt_ids)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        with self.timer.phases.phase("views"):
            return super()._prepare_inputs(generation_batch)

    def _prepare_training_batch(self, inputs: Any) -> Any:
        self.batch = super()._prepare_training_batch(inputs)
        return self.batch

    def _forward_logits(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        with self.timer.phases.phase("teacher" if model is self.teacher_model else "student"):
            return super()._forward_logits(model, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own: forward and backward of one batch."""
        with self.timer.phases.phase("student"):
            return super().training_step(*args, **kwargs)

    def _clip_grad_norm(self, model: Any) -> Any:
        with self.timer.phases.phase("update"):
            return super()._clip_grad_norm(model)


class StepWatch(TrainerCallback):
    """Begins a clock with every step and ends it after the teacher's update; must be the last callback."""

    def __init__(self, trainer: TimedTrainer) -> None:
        self.trainer = trainer
        self.samples: list[StepSample] = []
        self._update: Any = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """The data of the step is there."""
        self.trainer.timer = StepTimer()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The gradient is there and clipped."""
        self._update = self.trainer.timer.phases.phase("update")
        self._update.__enter__()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Weights and averaged teacher are updated."""
        self._update.__exit__(None, None, None)
        self.samples.append(self.trainer.timer.sample(work_of(self.trainer)))


def work_of(trainer: TimedTrainer) -> dict[str, float]:
    """How much a step did."""
    batch = trainer.batch
    mask, taught = batch["completion_mask"], batch["self_distillation_mask"]
    last = batch["completion_ids"].gather(1, batch["raw_completion_lengths"][:, None] - 1).squeeze(1)
    stops = torch.tensor(trainer.eos_token_ids)
    teacher_tokens = batch["teacher_attention_mask"].sum() - mask.sum()
    return {
        "completions": len(mask),
        "completion tokens": int(mask.sum()),
        "truncated": int((~torch.isin(last, stops)).sum()),
        "with a teacher": int(taught.sum()),
        "tokens trained": int((mask * taught[:, None]).sum()),
        "student prompt tokens": int(batch["prompt_mask"].sum()),
        "teacher prompt tokens": int(teacher_tokens),
        "reward": float(batch["rewards"].mean()),
    }


def examples_and_task(workload: Workload) -> tuple[Sequence[Example], FixedFeedback]:
    """The problems in the order of the steps, and their judge."""
    config = load_config(CONFIG, overrides(workload))
    task = FixedFeedback(build_task(config.task, seed=config.seed, reward=None))
    everything = task.examples("train")
    return [e for step in range(workload.steps) for e in examples_of_step(everything, workload, step)], task


def load_tokenizer(source: str) -> Any:
    """The model's tokenizer, whose completions carry the tag that its chat template writes into the prompt.

    TRL cuts thinking out of a demonstration between an opening and a closing tag. Without the opening one it would show
    the whole chain of thought to its teacher, and have longer prompts than we have.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(source, padding_side="left")
    decode = tokenizer.decode

    def decode_with_tag(*args: Any, **kwargs: Any) -> Any:
        text = decode(*args, **kwargs)
        if isinstance(text, str) and THINK_END in text and THINK_BEGIN not in text:
            return f"{THINK_BEGIN} {text}"
        return text

    tokenizer.decode = decode_with_tag
    return tokenizer


def build(workload: Workload, folder: str) -> tuple[TimedTrainer, StepWatch]:
    """A trainer that makes the workload's steps."""
    examples, task = examples_and_task(workload)
    source = resolve_model(workload.model)
    tokenizer = load_tokenizer(source)
    rows = [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in example.prompt],
            "privileged_context": task.feedback(example),
            "row": row,
        }
        for row, example in enumerate(examples)
    ]

    def reward(completions: Any, completion_ids: Any, row: Any, **_: Any) -> list[float]:
        verdicts = [
            task.verify(examples[i], said[0]["content"].strip(), finished=ids[-1] == tokenizer.eos_token_id)
            for said, ids, i in zip(completions, completion_ids, row, strict=True)
        ]
        return [verdict.reward or 0.0 for verdict in verdicts]

    trainer = TimedTrainer(
        model=source,
        reward_funcs=reward,
        args=settings(workload, folder),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    watch = StepWatch(trainer)
    trainer.add_callback(watch)
    return trainer, watch


def settings(workload: Workload, folder: str) -> Any:
    """The workload in TRL's words."""
    return SDPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        model_init_kwargs={"dtype": "float32"},
        gradient_checkpointing=False,
        per_device_train_batch_size=workload.their_batch,
        gradient_accumulation_steps=workload.rows // workload.their_batch,
        max_steps=workload.steps,
        num_generations=workload.completions,
        max_completion_length=workload.max_tokens,
        temperature=workload.temperature,
        learning_rate=workload.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=workload.clip_norm,
        distillation_mode="topk_logits",
        distillation_topk=workload.top_k,
        distillation_add_tail=True,
        distillation_alpha=0.5,
        teacher_model_kind="ema",
        teacher_update_rate=workload.teacher_rate,
        include_environment_feedback=True,
        environment_feedback_only_without_solution=True,
        remove_thinking_from_demonstration=True,
        reprompt_template=REPROMPT,
        solution_template=SOLUTION,
        feedback_template=FEEDBACK,
        shuffle_dataset=False,
        seed=workload.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def main(workload: Workload, target: Path) -> None:
    """Warm up, time the steps, and write the report."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, watch = build(workload, folder)
        loaded = resident()
        trainer.train()
    SideReport(loaded, peak_resident(), watch.samples[workload.warmup :]).write(target)


if __name__ == "__main__":
    main(workload_from(sys.argv[1]), Path(sys.argv[2]))
