"""Methods on equal terms: the same start, problems, order, seeds and evaluation for every arm, one run a seed.

A comparison is a folder: ``runs/ARM/seed-S`` are ordinary runs, each made by a ``train`` of its own that can be stopped
and resumed; ``compare.json`` is read from their files, and the table and the page from it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.comparison.analysis import ArmRuns, analyse
from selfdistill.comparison.page import write_comparison
from selfdistill.config.run import ResolvedConfig, load_config
from selfdistill.config.tasks import MathConfig
from selfdistill.distributed.children import Child, State, run_children
from selfdistill.distributed.signals import STOPPED_BY_ALARM, StopRequest
from selfdistill.errors import CheckpointError, ConfigError
from selfdistill.files.disk import check_name, lock_folder
from selfdistill.files.jsonl import JsonLines, read_lines, write_json
from selfdistill.report.page import write_report
from selfdistill.tracking.progress import Progress
from selfdistill.training.opening import check_same_config
from selfdistill.training.problem import method_of, resolve

MAY_DIFFER = ("seed", "method", "optimiser", "limits", "checkpoint")
"""Config tables that belong to an arm, or change no result. All others must be equal."""
ONLY_SAMPLED = ("sampling.completions", "sampling.temperature", "sampling.top_p", "sampling.top_k")
"""Keys that mean nothing to a method that learns from given solutions."""
STARTS = "starts.jsonl"
"""How many runs went side by side each time: the seconds of a comparison depend on it."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One method of a comparison; ``config`` is resolved, its seed that of the first run."""

    name: str
    source: str
    config: ResolvedConfig
    on_policy: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arms by seeds in a folder, nothing started yet. ``overrides`` are those that every arm was loaded with."""

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]
    baseline: str
    folder: Path

    def run_folder(self, arm: Arm, seed: int) -> Path:
        """Where one run lives."""
        return self.folder / "runs" / arm.name / f"seed-{seed}"

    def runs(self) -> list[tuple[Arm, int, Path]]:
        """All runs, seed by seed, so that a comparison that is stopped early has whole seeds."""
        return [(arm, seed, self.run_folder(arm, seed)) for seed in self.seeds for arm in self.arms]


def plan(
    sources: Sequence[str], overrides: Sequence[str], *, seeds: Sequence[int], baseline: str | None, folder: Path
) -> Comparison:
    """Load the arms and see that they are on equal terms. ``baseline``: unset, the first ``grpo`` or the first arm.

    Raises:
        ConfigError: one sentence: what differs, or what is not there.
    """
    for override in overrides:
        if override.partition("=")[0].strip() == "seed":
            raise ConfigError(f"--set {override}: a comparison takes its seeds from --seeds, for example --seeds 0,1,2")
    arms = [_load_arm(source, overrides, seed=seeds[0]) for source in sources]
    for place, arm in enumerate(arms):
        if arm.name in [other.name for other in arms[:place]]:
            raise ConfigError(f"two arms are named {arm.name!r}: give one of the configs another file name")
    check_equal_terms(arms)
    terms = arms[0].config
    if isinstance(terms.task, MathConfig) and terms.task.answer is None and not terms.reward:
        raise ConfigError(
            "nothing is judged in this task, and arms are compared by accuracy: name the answer column (task.answer) "
            'or a reward function (reward = "module:function")'
        )
    grpo = [arm.name for arm in arms if arm.config.method["name"] == "grpo"]
    chosen = baseline or (grpo[0] if grpo else arms[0].name)
    comparison = Comparison(tuple(arms), tuple(seeds), tuple(overrides), chosen, folder)
    find_arm(comparison, chosen, "--baseline")
    return comparison


def find_arm(comparison: Comparison, name: str, option: str) -> Arm:
    """The arm that an option names.

    Raises:
        ConfigError: there is none of that name.
    """
    for arm in comparison.arms:
        if arm.name == name:
            return arm
    raise ConfigError(f"{option} {name!r} is no arm; arms: {', '.join(arm.name for arm in comparison.arms)}")


def check_equal_terms(arms: Sequence[Arm]) -> None:
    """Refuse arms that differ in more than method, optimiser and limits.

    Raises:
        ConfigError: the first difference, and the overrides that would remove them all.
    """
    terms = [_terms(arm) for arm in arms]
    remedy: list[str] = []
    first = ""
    for key in dict.fromkeys(key for table in terms for key in table):
        shown = [
            (arm.name, table.get(key))
            for arm, table in zip(arms, terms, strict=True)
            if arm.on_policy or key not in ONLY_SAMPLED
        ]
        name, value = shown[0] if shown else ("", None)
        others = [(other, theirs) for other, theirs in shown if theirs != value]
        if not others:
            continue
        first = first or f"{key} is {_word(value)} for {name} and {_word(others[0][1])} for {others[0][0]}"
        known = value if value is not None else others[0][1]
        remedy.append(f"--set {key}={_word(known)}")
    if remedy:
        raise ConfigError(
            f"not on equal terms: {first}; arms may differ in method, optimiser and limits only, and --set speaks to "
            f"all of them, for example {' '.join(remedy)}"
        )


def run_comparison(comparison: Comparison, *, jobs: int | None, progress: Progress, stop: StopRequest) -> bool:
    """Make every run that is not over yet; True when all are. ``jobs``: unset, as many as there are cores.

    Raises:
        UserError: a folder holds something else, or a run failed; the other runs are saved and can go on.
    """
    _check_place(comparison.folder)
    runs = {_name(arm, seed): (arm, seed, folder) for arm, seed, folder in comparison.runs()}
    for arm, seed, folder in runs.values():
        if (folder / "config.json").exists():
            config = arm.config.model_copy(update={"seed": seed})
            check_same_config(folder, config, kept=lambda one: one.model_dump(exclude={"checkpoint"}))
    children = [
        Child(name, _command(comparison, arm, seed, folder), folder.with_name(f"{folder.name}.log"))
        for name, (arm, seed, folder) in runs.items()
        if not how_it_ended(folder)
    ]
    if children:
        alone = comparison.arms[0].config.model.device != "cpu"
        jobs = min(jobs or (1 if alone else cores()), len(children))
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // jobs)))
        progress.say(
            f"{len(runs) - len(children)} of {len(runs)} runs are over; the others run {jobs} at a time, "
            f"OMP_NUM_THREADS={threads} each"
        )
        with _locked(comparison.folder) as lock:
            start = {"jobs": jobs, "threads": int(threads), "cores": cores(), "runs": [one.name for one in children]}
            JsonLines(comparison.folder / STARTS).append(start)
            run_children(
                children,
                jobs=jobs,
                environment={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"},
                stop=stop,
                watch=_Watch(progress, {name: folder for name, (_, _, folder) in runs.items()}, comparison, len(runs)),
                fine=(0, STOPPED_BY_ALARM),
                keep_open=lock,
            )
    return all(how_it_ended(folder) for _, _, folder in runs.values())


def _check_place(folder: Path) -> None:
    """Refuse what would be spoilt, or spoil: a file, and the folder of a run, whose summary could be overwritten."""
    check_name(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: choose another --out")
    if (folder / "config.json").exists():
        raise CheckpointError(f"{folder} holds a run: choose another --out")


def write_results(comparison: Comparison, *, main: str | None = None) -> dict[str, Any]:
    """Read all runs and write ``compare.json``, ``compare.md`` and ``compare.html``; returns the first.

    ``main`` names an arm whose first run's summary and page are put beside them.
    """
    arms = [
        ArmRuns(
            name=arm.name,
            method=arm.config.method,
            optimiser=arm.config.optimiser.model_dump(),
            generates=arm.on_policy,
            folders={seed: comparison.run_folder(arm, seed) for seed in comparison.seeds},
        )
        for arm in comparison.arms
    ]
    config = comparison.arms[0].config
    terms = {key: value for key, value in config.model_dump().items() if key not in MAY_DIFFER}
    starts = read_lines(comparison.folder / STARTS)
    machine = [{key: line[key] for key in ("jobs", "threads", "cores")} for line in starts]
    result = {
        "terms": json.loads(json.dumps(terms)),
        "machine": [line for place, line in enumerate(machine) if line not in machine[:place]],
        **analyse(arms, baseline=comparison.baseline),
    }
    write_json(comparison.folder / "compare.json", result)
    write_comparison(comparison.folder)
    if main is not None:
        folder = comparison.run_folder(find_arm(comparison, main, "--main"), comparison.seeds[0])
        write_report(folder)
        for name in ("summary.json", "report.html"):
            shutil.copyfile(folder / name, comparison.folder / name)
    return result


def parse_seeds(text: str) -> list[int]:
    """Seeds from ``0,1,2``.

    Raises:
        ConfigError: no whole numbers, or one of them twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ConfigError(f"--seeds {text!r}: write whole numbers and commas, for example --seeds 0,1,2")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text!r} names a seed twice: a run repeated bit for bit tells nothing new")
    return seeds


def how_it_ended(folder: Path) -> str:
    """In words: ``done`` after all steps, or which alarms ended it and when; empty for a run that can go on."""
    path = folder / "summary.json"
    if not path.is_file():
        return ""
    summary = json.loads(path.read_text(encoding="utf-8"))
    if summary["finished"]:
        return "done"
    names = summary.get("stopped_by")
    return f"ended after step {summary['steps']} by {', '.join(names)}" if names else ""


def cores() -> int:
    """Cores that this process may use, which in a container or under ``taskset`` are fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _load_arm(source: str, overrides: Sequence[str], *, seed: int) -> Arm:
    config = resolve(load_config(source, [*overrides, f"seed={seed}"]))
    return Arm(Path(source).stem, source, config, method_of(config).on_policy)


def _terms(arm: Arm) -> dict[str, Any]:
    table = arm.config.model_dump()
    return dict(_flat({key: value for key, value in table.items() if key not in MAY_DIFFER}))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _word(value: Any) -> str:
    """A value as ``--set`` takes it: bare words need no quotes, JSON writes all else as TOML does."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value)


def _name(arm: Arm, seed: int) -> str:
    return f"{arm.name} seed {seed}"


def _command(comparison: Comparison, arm: Arm, seed: int, folder: Path) -> tuple[str, ...]:
    settings = [part for override in (*comparison.overrides, f"seed={seed}") for part in ("--set", override)]
    return (sys.executable, "-m", "selfdistill", "train", arm.source, *settings, "--out", str(folder), "--resume")


@contextmanager
def _locked(folder: Path) -> Iterator[list[int]]:
    """A lock on the folder that children inherit: it holds until the last of them is gone, even without the parent.

    Two processes that wrote into one run would ruin it.
    """
    held = f"another comparison still runs in {folder}: wait for its runs to end, or choose another --out"
    descriptor = lock_folder(folder, held)
    try:
        yield [] if descriptor is None else [descriptor]
    finally:
        if descriptor is not None:
            os.close(descriptor)


class _Watch:
    """Says when a run begins and ends, and shows on a terminal how far each has come."""

    def __init__(self, progress: Progress, folders: Mapping[str, Path], comparison: Comparison, total: int) -> None:
        self.progress = progress
        self.folders = folders
        self.steps = comparison.arms[0].config.steps
        self.total = total
        self.running: set[str] = set()
        self.looked = 0.0

    def __call__(self, state: State) -> None:
        names = [child.name for child in state.running]
        for name in sorted(self.running - set(names)):
            self.progress.say(f"{name}: {how_it_ended(self.folders[name]) or 'stopped'}")
        for name in names:
            if name not in self.running:
                self.progress.say(f"{name}: started")
        self.running = set(names)
        if self.progress.live is None or time.monotonic() - self.looked < 1:
            return
        self.looked = time.monotonic()
        done = sum(bool(how_it_ended(folder)) for folder in self.folders.values())
        shown = [f"{name} step {last_step(self.folders[name] / 'metrics.jsonl')}/{self.steps}" for name in names]
        self.progress.status(f"{done} of {self.total} runs done · {' · '.join(shown)}")


def last_step(path: Path) -> int:
    """The step of the last whole line of a metrics file, from its last 64 KiB; 0 where there is none."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0
