"""The loss path by itself, at the vocabulary of Qwen3: ours (also compiled), plain PyTorch, TRL's chunked and Liger's
fused divergence.

    python benchmarks/loss.py                               # after `make bench`
    python benchmarks/loss.py --tokens 256 --vocabulary 4000 --width 64 --out bench-out/loss.json

From hidden states to the gradients of hidden states and head weight, in float32, each measurement in a process of its
own. Memory is the highest resident set less the resident set once the inputs lay there: hidden states of student and
contexts and the head weight are not in it, the head's gradient is. A path that runs out of ``--memory`` says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from processes import ChildFailed, log, origin, run_child, write

TOLERANCE = 1e-4
"""float32 sums over 151,936 entries in another order; 1e-6 is seen."""
FOUR_CONTEXTS = 1.3
SMALLEST = 1024
LARGE = 4096
"""Tokens from which on time is compared with plain PyTorch's, and memory with half of TRL's."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="scored tokens (default: %(default)s)")
    add("--vocabulary", type=int, default=151_936, help="rows of the head (default: %(default)s)")
    add("--width", type=int, default=1024, help="hidden size (default: %(default)s)")
    add("--elements", type=int, help="logits of ours that exist at once (default: the library's)")
    add("--memory", type=float, default=19.0, help="GiB that a process may allocate (default: %(default)s)")
    add("--repeats", type=int, default=3, help="runs of the smallest size; larger ones fewer (default: %(default)s)")
    add("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of a process (default: %(default)s)")
    add("--out", type=Path, help="where the JSON goes (default: benchmarks/results/loss.json)")
    return parser.parse_args(arguments)


def cases(sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What is measured. One and four contexts at every size; the rest where it adds something and does not take long.

    Liger works in chunks of 1024 tokens: beyond some sizes its memory stays and its time grows in proportion.
    """
    for tokens in sizes:
        # Plain PyTorch needs several [tokens, vocabulary] tensors: where it cannot run there is no time to compare.
        for path in ("naive", "ours"):
            yield {"path": path, "divergence": "reverse_kl", "tokens": tokens, "contexts": 1}
        for contexts in (1, 2, 3, 4) if tokens <= SMALLEST else (1, 4):
            yield {"path": "ours", "divergence": "jensen_shannon", "tokens": tokens, "contexts": contexts}
        # Its time is to be seen where matrix products take most of it, and its memory where that should be flat.
        for contexts in (1, 4) if tokens in (SMALLEST, LARGE) else ():
            yield {"path": "compiled", "divergence": "jensen_shannon", "tokens": tokens, "contexts": contexts}
        for path in ("trl", "liger") if tokens < LARGE else ("trl",):
            yield {"path": path, "divergence": "jensen_shannon", "tokens": tokens, "contexts": 1}
        if tokens <= SMALLEST:
            yield {"path": "naive", "divergence": "jensen_shannon", "tokens": tokens, "contexts": 1}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every case in a process of its own; what was found so far is written after each."""
    found: list[dict[str, Any]] = []
    for case in cases(options.tokens):
        plain = _find(found, "naive", case["divergence"], case["tokens"], case["contexts"])
        if case["path"] == "ours" and plain and plain["outcome"] != "measured":
            continue
        spec = {
            **case,
            "vocabulary": options.vocabulary,
            "width": options.width,
            "elements": options.elements,
            "memory_gib": options.memory,
            "repeats": max(1, options.repeats * min(options.tokens) // case["tokens"]),
        }
        try:
            report = json.loads(run_child("loss_side.py", spec, options.threads))
        except ChildFailed as error:
            if not error.killed:
                raise SystemExit(str(error)) from error
            report = {"outcome": "out of memory"}
        found.append({**case, "memory_gib": options.memory, **report})
        told = f"{report['seconds']:.1f} s, {report['added_mib']:.0f} MiB" if "seconds" in report else report["outcome"]
        write(result_of(options, found), "loss", options.out)
        log(f"{case['path']}, {case['divergence']}, {case['tokens']} tokens, {case['contexts']} contexts: {told}")
    return found


def with_agreement(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each case with how far it is from ours on the same problem; the gradients' samples are dropped."""
    result = []
    for case in found:
        ours = _find(found, "ours", case["divergence"], case["tokens"], case["contexts"])
        if case["outcome"] == "measured" and ours and ours["outcome"] == "measured" and case["path"] != "ours":
            case = {**case, "apart": apart(case, ours)}
        gone = ("hidden_gradient", "weight_gradient")
        result.append({name: value for name, value in case.items() if name not in gone})
    return result


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest relative difference of loss, gradient norms and gradient samples."""
    differences: list[float] = [abs(one["loss"] - other["loss"]) / abs(other["loss"])]
    for name in ("hidden_gradient", "weight_gradient"):
        a, b = one[name], other[name]
        differences.append(abs(a["norm"] - b["norm"]) / b["norm"])
        gap = math.dist(a["sample"], b["sample"])
        differences.append(gap / math.hypot(*b["sample"]))
    return max(differences)


def bars(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is to be reached, and whether it was; ``reached`` is None where a side could not be measured."""
    result = []

    def bar(name: str, value: float | None, most: float) -> None:
        result.append({"bar": name, "value": value, "most": most, "reached": None if value is None else value <= most})

    for tokens in sorted({case["tokens"] for case in found}):
        one, trl, four = (
            _find(found, path, "jensen_shannon", tokens, contexts)
            for path, contexts in (("ours", 1), ("trl", 1), ("ours", 4))
        )
        share = _ratio(one, trl, "added_mib")
        bar(f"memory with one context over TRL's, {tokens} tokens", share, 0.5 if tokens >= LARGE else 1.0)
        bar(f"memory with four contexts over one, {tokens} tokens", _ratio(four, one, "added_mib"), FOUR_CONTEXTS)
        if tokens >= LARGE:
            ours, plain = (_find(found, path, "reverse_kl", tokens, 1) for path in ("ours", "naive"))
            # On a machine with other work the second is the fairer one.
            bar(f"time over plain PyTorch's, {tokens} tokens", _ratio(ours, plain, "seconds"), 1.0)
            bar(f"processor time over plain PyTorch's, {tokens} tokens", _ratio(ours, plain, "cpu_seconds"), 1.0)
    gaps = [case["apart"] for case in found if "apart" in case]
    bar("largest relative difference of loss and gradients", max(gaps, default=None), TOLERANCE)
    return result


def _ratio(one: dict[str, Any] | None, other: dict[str, Any] | None, name: str) -> float | None:
    if not one or not other or name not in one or name not in other:
        return None
    ratio: float = one[name] / other[name]
    return ratio


def _find(
    found: Sequence[dict[str, Any]], path: str, divergence: str, tokens: int, contexts: int
) -> dict[str, Any] | None:
    wanted = {"path": path, "divergence": divergence, "tokens": tokens, "contexts": contexts}
    return next((case for case in found if wanted.items() <= case.items()), None)


def result_of(options: argparse.Namespace, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The cases and what they reach, with where they were measured."""
    cases = with_agreement(found)
    sizes = {"vocabulary": options.vocabulary, "width": options.width}
    return {**origin(options.threads), **sizes, "cases": cases, "bars": bars(cases)}


def main() -> None:
    """Measure, print, write."""
    options = parse()
    result = result_of(options, measure(options))
    for line in result["bars"]:
        value = "not measured" if line["value"] is None else f"{line['value']:.3g}"
        print(f"{'yes' if line['reached'] else 'NO ':4}{line['bar']}: {value}, at most {line['most']:g}")


if __name__ == "__main__":
    main()
