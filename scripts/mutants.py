"""Does a test fail for every small change to the code that computes? `make mutants` asks; hours, on two cores.

    scripts/mutants.py                          every file of TARGETS
    scripts/mutants.py objectives/signals.py       one of them
    scripts/mutants.py training/trainer.py --only clip  the changes whose function or line holds a word
    scripts/mutants.py --again                  those that survived last time
    scripts/mutants.py --ledger                 runs nothing: which explanations are of lines that have changed?

A survivor that no test can find, because the change means the same, stands in tests/mutants.toml with its reason. The
status is 1 where a mutant survives unexplained, and where an explained one is found or is no longer made.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mutation.edits import Mutant, mutants_of
from mutation.hunt import hunt

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "selfdistill"
LEDGER = ROOT / "tests" / "mutants.toml"
RESULTS = ROOT / "build" / "mutants.json"

_OBJECTIVES = ("test_objectives_*.py", "test_analysis.py")
_METHODS = ("test_methods_knobs.py", "test_supports.py", "test_schemas_file.py")
_SUMMER = ("test_methods_rewarded.py", "test_methods_weighted.py", "test_rewarded_numbers.py")
_TRAINING = ("test_training.py", "test_step.py", "test_importance.py", "test_signal.py")
SUMMER = ("rlsd", "cepo", "rlcsd", "sdar", "sdpg", "srpo", "sc_sdpo", "paced", "demopsd", "eopd", "hdpo")
TARGETS: Mapping[str, Sequence[str]] = {
    "objectives/policy_gradient.py": (*_OBJECTIVES, "test_turn_advantages.py", "test_skill_sd.py"),
    "objectives/*.py": _OBJECTIVES,
    "methods/entropy_gate.py": ("test_objectives_gate.py", "test_objectives_borders.py"),
    **{f"methods/{name}.py": (*_METHODS, *_SUMMER) for name in SUMMER},
    "methods/skill_sd.py": (*_METHODS, "test_skill_sd.py", "test_rewarded_numbers.py"),
    "methods/turn_advantages.py": (*_METHODS, "test_turn_advantages.py"),
    "methods/*.py": (*_METHODS, "test_policy_gradients.py", "test_drift.py"),
    "evaluation/statistics.py": ("test_statistics.py",),
    "evaluation/intervals.py": ("test_intervals.py",),
    "comparison/analysis.py": ("test_comparison*.py", "test_matching.py"),
    "comparison/pass_at.py": ("test_comparison*.py",),
    "comparison/reading.py": ("test_comparison*.py", "test_matching.py"),
    "training/importance.py": ("test_importance.py",),
    "models/teachers.py": ("test_teachers*.py", "test_masters.py", "test_training.py"),
    "training/trainer.py": (*_TRAINING, "test_skill_sd.py", "test_served_teachers.py"),
    "scoring/prepare.py": ("test_prepare.py", "test_scoring.py", "test_turns.py"),
    "training/metrics.py": ("test_measuring.py", "test_budget.py", "test_measured_episodes.py"),
}
"""Files whose mutants are made, and the test files that are to find them, by the first pattern: fast ones, and near."""
WORDS = {"methods/reference.py"}
"""Files that compute nothing: they write the documentation."""


def main() -> int:
    """Make the mutants, run them, write build/mutants.json, say what survived."""
    options = _options()
    files = [f for f in _files(TARGETS) if not options.files or f in options.files]
    unknown = set(options.files) - set(files)
    if unknown:
        print(f"no target: {', '.join(sorted(unknown))}; targets: {', '.join(_files(TARGETS))}", file=sys.stderr)
        return 2
    began = time.monotonic()
    mutants = [m for file in files for m in mutants_of(PACKAGE / file, file)]
    if options.ledger:
        keys = {mutant.key() for mutant in mutants}
        moved = sorted(key for key in _explained(LEDGER) if key[0] in files and key not in keys)
        for key in moved:
            print(f"explained, but not made: {_words(key)}")
        return int(bool(moved))
    mutants = [m for m in mutants if options.only in f"{m.scope} {m.before}"]
    if options.again:
        lived = {key for key, test in _last().items() if not test}
        mutants = [m for m in mutants if m.key() in lived]
    print(f"{len(mutants)} mutants of {len(files)} files", flush=True)
    results: list[tuple[Mutant, str]] = []

    def report(mutant: Mutant, test: str) -> None:
        results.append((mutant, test))
        if not test:
            print(f"survives: {_words(mutant.key())}", flush=True)
        if len(results) % 100 == 0:
            print(f"{len(results)} of {len(mutants)}, {time.monotonic() - began:.0f} s", flush=True)

    tests = sorted({name for file in files for name in _tests_of(file)})
    status = hunt(PACKAGE, mutants, tests, nearest=_tests_of, report=report, jobs=options.jobs)
    if status != 0:
        return status
    return _verdict(results, _explained(LEDGER), complete=not (options.only or options.again), files=files)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files of the package; all targets if none is named")
    parser.add_argument("--only", default="", help="a word that the function or the line must hold")
    parser.add_argument("--again", action="store_true", help="only what survived last time")
    parser.add_argument("--ledger", action="store_true", help="only compare tests/mutants.toml with the code")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="forks at once")
    return parser.parse_args()


def _files(targets: Mapping[str, Sequence[str]]) -> list[str]:
    files = [str(path.relative_to(PACKAGE)) for pattern in targets for path in sorted(PACKAGE.glob(pattern))]
    return [file for file in dict.fromkeys(files) if file not in WORDS]


def _tests_of(file: str) -> list[str]:
    patterns = next(tests for pattern, tests in TARGETS.items() if Path(file).match(pattern))
    return [
        path.relative_to(ROOT).as_posix()
        for pattern in patterns
        for path in sorted((ROOT / "tests").glob(f"*/{pattern}"))
    ]


def _explained(ledger: Path) -> dict[tuple[str, str, str, str], str]:
    groups = tomllib.loads(ledger.read_text(encoding="utf-8"))["survivors"]
    return {
        (file, function, before, after): group["because"]
        for group in groups
        for file, function, before, after in group["changes"]
    }


def _last() -> dict[tuple[str, str, str, str], str]:
    """The result of every mutant when it was last run."""
    lines = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    return {(file, scope, before, after): test for file, scope, before, after, test in lines}


def _verdict(
    results: Sequence[tuple[Mutant, str]],
    explained: Mapping[tuple[str, str, str, str], str],
    *,
    complete: bool,
    files: Sequence[str],
) -> int:
    """Print and write the results of the mutants. Returns 1 if the ledger and the survivors differ."""
    survived = {mutant.key() for mutant, test in results if not test}
    open_ = [key for key in survived if key not in explained]
    stale = [key for key in explained if complete and key[0] in files and key not in survived]
    results_by_key = {key: test for key, test in _last().items() if not (complete and key[0] in files)}
    # Two mutants may have the same key if a line occurs twice. The key counts as surviving if one of them survives.
    for mutant, test in sorted(results, key=lambda result: not result[1]):
        results_by_key[mutant.key()] = test
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([[*key, test] for key, test in results_by_key.items()], indent=0))
    made_count, survivor_count = Counter(m.file for m, _ in results), Counter(m.file for m, test in results if not test)
    for file in made_count:
        survivors = survivor_count[file]
        print(f"{file}: {made_count[file]} mutants, {made_count[file] - survivors} found, {survivors} survive")
    print(
        f"{len(results)} mutants, {sum(bool(t) for _, t in results)} found; {len(survived)} survivors differ in words, "
        f"{len(survived) - len(open_)} of them explained in {LEDGER.relative_to(ROOT)}"
    )
    for key in sorted(open_):
        print(f"unexplained: {_words(key)}")
    for key in sorted(stale):
        print(f"explained, but found or not made: {_words(key)}")
    return int(bool(open_ or stale))


def _words(key: tuple[str, str, str, str]) -> str:
    file, scope, before, after = key
    return f"{file} {scope or '(at import)'}: {before}  ->  {after or '(nothing)'}"


if __name__ == "__main__":
    os.chdir(ROOT)
    # Set before torch loads: a fork lacks its parent's threads and would wait forever for those of OpenMP.
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    sys.exit(main())
