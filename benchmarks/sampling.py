"""Sampling by itself: tokens a second of our sampler, of transformers' ``generate`` and of vLLM's CPU build.

    python benchmarks/sampling.py                # after `make bench`; with vLLM too after `make test-vllm`
    python benchmarks/sampling.py --models tiny --rows 1 4 --prompt 16 --tokens 8 --rounds 1 --eager --out sampling.json

The same prompts, completions of the same length that nothing stops, float32, as many threads on all sides. Each side
runs in processes of its own, by turns, so that a slow minute of the machine hits all of them; vLLM has its own virtual
environment (``--vllm-python``). Prompts have up to ``--group`` completions each, as those of a run have, and vary in
length. Ours and vLLM give the log-probability of every sampled token, which training needs; ``generate`` does not. The
time is that of whole calls, with the prompts; starts are not counted. A ratio is the median over rounds of our tokens a
second over a peer's in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from processes import HERE, ChildFailed, log, origin, run_child, write
from selfdistill.models.sizing import Shape
from sizing import CARD_SHAPES, TINY

OURS, PEERS = "ours", ("generate", "vllm")
SHIPPED = "countdown-base"
SHIPPED_VOCABULARY = 243
MODELS: Mapping[str, Shape | None] = {
    SHIPPED: None,
    # That of SmolLM2-135M, in Qwen3's architecture.
    "135m": Shape(30, 576, 9, 3, 64, 1536, 49_152, tied=True),
    "qwen3-0.6b": CARD_SHAPES["qwen3-0.6b"],
    "tiny": TINY,
}
"""Shapes of models with random weights; None for the shipped model itself."""
LEAST = 2 / 3
"""Share of a peer's tokens a second below which ours is called behind."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--models", nargs="+", default=[name for name in MODELS if name != "tiny"], choices=list(MODELS))
    add("--rows", type=int, nargs="+", default=[1, 4, 16, 64], help="completions at once (default: %(default)s)")
    add("--group", type=int, default=8, help="completions of a prompt, at most (default: %(default)s)")
    add("--prompt", type=int, default=64, help="tokens of the longest prompt (default: %(default)s)")
    add("--tokens", type=int, default=64, help="tokens of every completion (default: %(default)s)")
    add("--rounds", type=int, default=3, help="processes of each side (default: %(default)s)")
    add("--timed", type=int, default=1, help="timed calls of a process for each number of rows (default: %(default)s)")
    add("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of a side (default: %(default)s)")
    add("--cache-gib", type=int, default=3, help="GiB of vLLM's key-value cache (default: %(default)s)")
    add("--eager", action="store_true", help="let vLLM compile nothing: a quicker start, slower decoding")
    add("--vllm-python", type=Path, default=HERE.parent / ".venv-vllm/bin/python", help="(default: .venv-vllm's)")
    add("--seed", type=int, default=0, help="of the first round's prompts (default: %(default)s)")
    add("--out", type=Path, help="where the JSON goes (default: benchmarks/results/sampling.json)")
    options = parser.parse_args(arguments)
    odd = [rows for rows in options.rows if rows > options.group and rows % options.group]
    if odd:
        parser.error(f"--rows {odd[0]} is no multiple of --group {options.group}")
    return options


@contextmanager
def model_folder(name: str, options: argparse.Namespace) -> Iterator[str]:
    """The path of a model; one of random weights is written first and removed at the end."""
    shape = MODELS[name]
    if shape is None:
        yield name
        return
    with TemporaryDirectory() as folder:
        _child({"folder": folder, "shape": asdict(shape), "window": _window(options)}, options, None)
        yield folder


def measure(name: str, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Reports of all sides for one model, by turns, one for each round."""
    shape = MODELS[name]
    reports: dict[str, list[dict[str, Any]]] = {side: [] for side in (OURS, *PEERS)}
    with model_folder(name, options) as model:
        for number in range(options.rounds):
            for side, found in reports.items():
                settings = ("rows", "group", "prompt", "tokens", "timed", "threads", "cache_gib", "eager")
                spec = {
                    **{key: getattr(options, key) for key in settings},
                    "side": side,
                    "model": model,
                    "window": _window(options),
                    "vocabulary": shape.V if shape else SHIPPED_VOCABULARY,
                    "seed": options.seed + number,
                }
                found.append(_child(spec, options, side))
                log(f"{name}, round {number + 1} of {options.rounds}, {side}: {found[-1]}")
    return reports


def cases(name: str, reports: Mapping[str, Sequence[Mapping[str, Any]]], tokens: int) -> Iterator[dict[str, Any]]:
    """Tokens a second of every side by rows, and ours over each peer's."""
    measured = {side: found for side, found in reports.items() if found[0]["outcome"] == "measured"}
    for rows in measured[OURS][0]["seconds"]:
        rates = {
            side: [int(rows) * tokens / median(report["seconds"][rows]) for report in found]
            for side, found in measured.items()
        }
        over = {
            peer: median(mine / theirs for mine, theirs in zip(rates[OURS], rates[peer], strict=True))
            for peer in PEERS
            if peer in rates
        }
        yield {
            "model": name,
            "rows": int(rows),
            "tokens_a_second": {side: median(found) for side, found in rates.items()},
            "tokens_a_second_by_round": rates,
            "over": over,
            "behind": [peer for peer, ratio in over.items() if ratio < LEAST],
        }


def result_of(options: argparse.Namespace, reports: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, Any]:
    """Everything that the benchmark found, without the machine's name or paths."""
    settings = ("rows", "group", "prompt", "tokens", "rounds", "timed", "eager", "seed")
    first = next(iter(reports.values()))
    return {
        **origin(options.threads),
        "workload": {key: getattr(options, key) for key in settings},
        "sides": {side: {key: found[0].get(key) for key in ("outcome", "versions")} for side, found in first.items()},
        "cases": [case for name, sides in reports.items() for case in cases(name, sides, options.tokens)],
    }


def table(result: Mapping[str, Any]) -> str:
    """The result for the terminal."""
    lines = [f"{'':24}{'rows':>6}" + "".join(f"{side:>12}" for side in (OURS, *PEERS)) + "   ours over"]
    for case in result["cases"]:
        rates = [case["tokens_a_second"].get(side) for side in (OURS, *PEERS)]
        cells = "".join(f"{'–':>12}" if rate is None else f"{rate:12.1f}" for rate in rates)
        over = ", ".join(f"{peer} {ratio:.2f}" for peer, ratio in case["over"].items())
        lines.append(f"{case['model']:24}{case['rows']:6}{cells}   {over}")
    lines.append(
        "tokens a second; " + ", ".join(f"{side} {found['outcome']}" for side, found in result["sides"].items())
    )
    return "\n".join(lines)


def _window(options: argparse.Namespace) -> int:
    # The library checks a model with more tokens than a toy run has.
    needed: int = options.prompt + options.tokens
    return max(128, needed)


def _child(spec: Mapping[str, Any], options: argparse.Namespace, side: str | None) -> dict[str, Any]:
    other = {"python": str(options.vllm_python)} if side == "vllm" else {}
    if side == "vllm" and not options.vllm_python.is_file():
        return {"outcome": "not installed"}
    try:
        found: dict[str, Any] = json.loads(run_child("sampling_side.py", spec, options.threads, **other))
    except ChildFailed as error:
        raise SystemExit(str(error)) from error
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write; what was found so far is written after each model."""
    options = parse(arguments)
    reports = {}
    for name in options.models:
        reports[name] = measure(name, options)
        write(result_of(options, reports), "sampling", options.out)
    print(table(result_of(options, reports)))


if __name__ == "__main__":
    main()
