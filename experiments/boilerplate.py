"""Measure whether CREDIT moves reward from boilerplate to problem-specific tokens.

Run it with ``python experiments/boilerplate.py``. ``selfdistill inspect`` scores completions of the toolbox base model
under SDPO's context and CREDIT's contrast. A token is boilerplate if more than nine tenths of all completions contain
it, and specific if fewer than three tenths do. For both kinds the result has SDPO's signal u, the amount that the
paper's sampled-token form would subtract from it (λ times log N, centred over all tokens, because a constant changes
every token alike), and the credit of the distribution form, which docs/results.md trains. The effect of CREDIT is the
difference of that credit from SDPO's. Intervals are a bootstrap over problems.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill.evaluation.statistics import bootstrap

RESULT = Path(__file__).resolve().parent / "results" / "toolbox-boilerplate.json"
BOILERPLATE, SPECIFIC = 0.9, 0.3
SIGNAL, GENERIC = "u sibling_or_feedback", "credit credit_generic"
COLUMNS = ("completion", "example", "id", SIGNAL, GENERIC, "credit sdpo", "credit credit")


def tokens(problems: int, samples: int) -> dict[str, Any]:
    """The columns of the token table of ``selfdistill inspect``."""
    import pyarrow.parquet as parquet

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "look"
        command = [sys.executable, "-m", "selfdistill", "inspect", "toolbox-base", "--task", "toolbox"]
        command += ["--methods", "sdpo,credit", "--problems", str(problems), "--samples", str(samples)]
        subprocess.run([*command, "--out", str(out)], check=True)
        table: dict[str, Any] = parquet.read_table(out / "tokens.parquet", columns=list(COLUMNS)).to_pydict()
    return table


def kinds(table: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """For each token the share of all completions that contain it."""
    holders: dict[int, set[int]] = defaultdict(set)
    for token, completion in zip(table["id"], table["completion"], strict=True):
        holders[token].add(completion)
    completions = len(set(table["completion"]))
    return np.array([len(holders[token]) / completions for token in table["id"]])


def mean(values: Any, examples: Any) -> dict[str, Any]:
    """Mean over problems of the mean per problem, with its interval."""
    rows = defaultdict(list)
    for value, example in zip(values, examples, strict=True):
        rows[example].append(value)
    problem_means = [float(np.mean(row)) for row in rows.values()]
    return bootstrap(problem_means, k=1, seed=0, confidence=0.95, resamples=10_000).as_dict()


def main() -> None:
    """Measure, then write and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4)
    args = parser.parse_args()
    table = tokens(args.problems, args.samples)
    share = kinds(table)
    columns = {name: np.array(table[name], dtype=float) for name in COLUMNS[3:]}
    scored = ~np.isnan(columns["credit credit"])
    added = -0.1 * (columns[GENERIC] - columns[GENERIC][scored].mean())
    examples = np.array(table["example"])
    result: dict[str, Any] = {"problems": args.problems, "samples": args.samples, "tokens": int(scored.sum())}
    for name, chosen in (("boilerplate", share > BOILERPLATE), ("specific", share < SPECIFIC)):
        rows = scored & chosen
        result[name] = {
            "tokens": int(rows.sum()),
            "u": mean(columns[SIGNAL][rows], examples[rows]),
            "added by the sampled-token form": mean(added[rows], examples[rows]),
            "sdpo": mean(columns["credit sdpo"][rows], examples[rows]),
            "credit": mean(columns["credit credit"][rows], examples[rows]),
            "credit − sdpo, the form that is trained": mean(
                (columns["credit credit"] - columns["credit sdpo"])[rows], examples[rows]
            ),
        }
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
