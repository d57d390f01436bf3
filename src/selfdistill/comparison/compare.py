"""Comparisons of methods: every arm has the same initial weights, problems, order, seeds and evaluation.

A comparison is a folder. ``runs/ARM/seed-S`` are ordinary runs; a separate ``train`` process makes each one and can
resume it. ``compare.json`` is computed from their files; ``compare.md`` and ``compare.html`` from ``compare.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfdistill.comparison.analysis import analyse
from selfdistill.comparison.arms import ArmPlan, differences, plan_arms
from selfdistill.comparison.completions import side_by_side
from selfdistill.comparison.matching import limits_of_arms
from selfdistill.comparison.options import MATCH, STARTS, check_arm, check_folder, check_match, engine_for_all
from selfdistill.comparison.page import write_comparison
from selfdistill.comparison.places import places
from selfdistill.comparison.runs import ArmRuns, how_it_ended, last_line, last_step
from selfdistill.config.run import ResolvedConfig, load_config
from selfdistill.config.sampler import ServerConfig
from selfdistill.config.tasks import MathConfig, TextConfig
from selfdistill.distributed.children import Child, State, run_children
from selfdistill.distributed.signals import STOPPED_BY_ALARM, StopRequest
from selfdistill.errors import ConfigError
from selfdistill.files.disk import lock_folder
from selfdistill.files.jsonl import JsonLines, read_lines, write_json
from selfdistill.files.text import counted, plural
from selfdistill.report.files import quantised_start
from selfdistill.report.measure import measure_of
from selfdistill.report.outcome import flatten
from selfdistill.report.page import write_report
from selfdistill.tracking.progress import SILENCE, Progress
from selfdistill.training.alike import CHANGES_NO_RESULT, OF_AN_ARM, UNTRAINED, common_terms
from selfdistill.training.opening import check_same_config
from selfdistill.training.problem import method_of, resolve

ONLY_SAMPLED = ("sampling.completions", "sampling.temperature", "sampling.top_p", "sampling.top_k")
"""Config keys that an off-policy method does not use, because it learns from given solutions."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One method of a comparison. ``config`` is resolved and has the seed of the first run."""

    name: str
    source: str
    config: ResolvedConfig
    on_policy: bool
    rewards: bool = True
    """Whether the method learns from rewards."""
    settings: tuple[str, ...] = ()
    """Overrides that turn the source into this arm. Those of the comparison are applied after them."""
    limits: tuple[str, ...] = ()
    """Overrides that end it at the budget of the comparison. They are applied last."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The plan of a comparison: arms, seeds and folder. ``overrides`` were applied to the config of every arm."""

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]
    baseline: str
    folder: Path
    match: str = MATCH
    """Unit of the equal budget of all arms."""
    split: str = "validation"
    """Split of the final figures."""

    def run_folder(self, arm: Arm, seed: int) -> Path:
        """Return the folder of one run."""
        return self.folder / "runs" / arm.name / f"seed-{seed}"

    def runs(self) -> list[tuple[Arm, int, Path]]:
        """Return all runs, seed by seed. A comparison that stops early then has complete seeds."""
        return [(arm, seed, self.run_folder(arm, seed)) for seed in self.seeds for arm in self.arms]


def plan(
    sources: Sequence[str],
    overrides: Sequence[str],
    *,
    seeds: Sequence[int],
    baseline: str | None,
    folder: Path,
    methods: Sequence[str] = (),
    match: str = MATCH,
    split: str = "validation",
    sweeps: Sequence[str] = (),
    engine: str | None = None,
) -> Comparison:
    """Load the arms, check that they are on equal terms, and give each the steps of an equal budget.

    With ``methods`` each source gives one arm per method. Each of ``sweeps`` (``key=value,value``) makes one arm per
    value out of every arm.

    ``baseline`` names an arm; if it is None, the baseline is the first arm with method ``grpo``, or else the first arm.
    ``match`` and ``split`` are those of :class:`Comparison`. ``engine`` replaces the sampler of every source.

    Raises:
        ConfigError: the terms differ, two arms share a name, a sweep makes the same arm twice, or the baseline is not
            an arm.
    """
    check_match(match, split)
    for override in overrides:
        if override.partition("=")[0].strip() == "seed":
            raise ConfigError(f"--set {override}: a comparison takes its seeds from --seeds, for example --seeds 0,1,2")
    overrides = [*engine_for_all(engine, sources), *overrides]
    if split == "test":
        overrides = [*overrides, "evaluation.final=test"]
    arms = [_load_arm(arm, overrides, seed=seeds[0]) for arm in plan_arms(sources, methods, overrides, sweeps)]
    for i, arm in enumerate(arms):
        if arm.name in [other.name for other in arms[:i]]:
            raise ConfigError(f"two arms are named {arm.name!r}: give one of the configs another file name")
        twins = [other.name for other in arms[:i] if (other.source, other.config) == (arm.source, arm.config)]
        if sweeps and twins:
            raise ConfigError(
                f"--sweep makes the same arm twice, {twins[0]} and {arm.name}: a value stands twice, or --seeds, "
                "--set, --methods or another --sweep gives the key too"
            )
    check_equal_terms(arms)
    terms = arms[0].config
    unverified = isinstance(terms.task, TextConfig) or (isinstance(terms.task, MathConfig) and not terms.task.answer)
    if unverified and not (terms.reward and terms.reward.function):
        raise ConfigError(
            "nothing is judged in this task, and arms are compared by accuracy: name the answer column (task.answer) "
            'or a reward function (reward = "module:function")'
        )
    grpo = [arm.name for arm in arms if arm.config.method["name"] == "grpo"]
    chosen = baseline or (grpo[0] if grpo else arms[0].name)
    limits = limits_of_arms([arm.config for arm in arms], match)
    equal = [
        replace(arm, config=arm.config.model_copy(update=limit), limits=tuple(f"{k}={n}" for k, n in limit.items()))
        for arm, limit in zip(arms, limits, strict=True)
    ]
    comparison = Comparison(tuple(equal), tuple(seeds), tuple(overrides), chosen, folder, match, split)
    find_arm(comparison, chosen, "--baseline")
    return comparison


def find_arm(comparison: Comparison, name: str, option: str) -> Arm:
    """Return the arm that an option names.

    Raises:
        ConfigError: no arm has that name.
    """
    arms = {arm.name: arm for arm in comparison.arms}
    check_arm(name, list(arms), option)
    return arms[name]


def check_equal_terms(arms: Sequence[Arm]) -> None:
    """Refuse arms that differ in more than method, optimiser, signal and limits.

    Raises:
        ConfigError: the terms differ. The message names the first difference and the overrides that remove all of them.
    """
    terms = [_terms(arm) for arm in arms]
    remedy: list[str] = []
    first = ""
    for key in dict.fromkeys(key for table in terms for key in table):
        settings = [
            (arm.name, table.get(key))
            for arm, table in zip(arms, terms, strict=True)
            if arm.on_policy or key not in ONLY_SAMPLED
        ]
        name, value = settings[0] if settings else ("", None)
        others = [(other, other_value) for other, other_value in settings if other_value != value]
        if not others:
            continue
        first = first or f"{key} is {_word(value)} for {name} and {_word(others[0][1])} for {others[0][0]}"
        common = value if value is not None else others[0][1]
        remedy.append(f"--set {key}={_word(common)}")
    if remedy:
        raise ConfigError(
            f"not on equal terms: {first}; arms may differ in method, optimiser, signal and limits only, and --set "
            f"applies to all of them, for example {' '.join(remedy)}"
        )


def run_comparison(comparison: Comparison, *, jobs: int | None, progress: Progress, stop: StopRequest) -> bool:
    """Start or resume every unfinished run. Returns whether all runs have ended.

    ``jobs`` is the number of parallel runs; None means one per core on a CPU and one per GPU.

    Raises:
        UserError: a folder holds something else, or a run failed. The other runs are saved and can be resumed.
    """
    check_folder(comparison.folder)
    if (jobs or 1) > 1 and isinstance(comparison.arms[0].config.sampler, ServerConfig):
        raise ConfigError(f"--jobs {jobs}: runs at once would overwrite each other's weights on a server: leave it out")
    # Collect the runs that have not ended. A run that exists must have the same config.
    runs = {_name(arm, seed): (arm, seed, folder) for arm, seed, folder in comparison.runs()}
    for arm, seed, folder in runs.values():
        if (folder / "config.json").exists():
            config = arm.config.model_copy(update={"seed": seed})
            check_same_config(folder, config, kept=lambda resolved: resolved.model_dump(exclude=CHANGES_NO_RESULT))
    children = [
        Child(name, _command(comparison, arm, seed, folder), folder.with_name(f"{folder.name}.log"))
        for name, (arm, seed, folder) in runs.items()
        if not how_it_ended(folder)
    ]
    if children:
        # Run them in parallel under a lock on the folder. They share the cores equally, and have GPUs of their own.
        where = places(comparison.arms[0].config, jobs=jobs, runs=len(children), cores=cores())
        jobs = len(where.gpus)
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // jobs)))
        over = len(runs) - len(children)
        progress.log(
            f"{over} of {counted(len(runs), 'run')} {plural(over, 'is', 'are')} over; the others run {jobs} at a time, "
            f"OMP_NUM_THREADS={threads} each{where.told()}"
        )
        with _locked(comparison.folder) as lock:
            start = {
                "jobs": jobs,
                "threads": int(threads),
                "cores": cores(),
                "runs": [child.name for child in children],
            }
            JsonLines(comparison.folder / STARTS).append(start)
            run_children(
                children,
                environments=[
                    {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1", **added}
                    for added in where.environments
                ],
                stop=stop,
                watch=_Watch(progress, {name: folder for name, (_, _, folder) in runs.items()}, comparison, len(runs)),
                fine=(0, STOPPED_BY_ALARM),
                keep_open=lock,
            )
    return all(how_it_ended(folder) for _, _, folder in runs.values())


def write_results(comparison: Comparison, *, main: str | None = None) -> dict[str, Any]:
    """Read all runs, write ``compare.json``, ``compare.md`` and ``compare.html``, and return the content of the first.

    ``main`` names an arm. The summary and the page of its first run are copied into the folder of the comparison.
    """
    arms = [
        ArmRuns(
            name=arm.name,
            method=arm.config.method,
            optimiser=arm.config.optimiser.model_dump(),
            generates=arm.on_policy,
            folders={seed: comparison.run_folder(arm, seed) for seed in comparison.seeds},
            signal=arm.config.signal.model_dump(exclude_defaults=True),
        )
        for arm in comparison.arms
    ]
    config = max((arm.config for arm in comparison.arms), key=lambda config: config.steps)
    terms = {key: value for key, value in config.model_dump().items() if key not in OF_AN_ARM}
    starts = read_lines(comparison.folder / STARTS)
    machine = [{key: line[key] for key in ("jobs", "threads", "cores")} for line in starts]
    result = {
        "terms": json.loads(json.dumps(terms)),
        "machine": [line for i, line in enumerate(machine) if line not in machine[:i]],
        **analyse(arms, baseline=comparison.baseline, match=comparison.match, split=comparison.split),
        "problem": side_by_side(arms),
        "quantised": quantised_start(comparison.runs()[0][2]),
    }
    for row, arm in zip(result["arms"], comparison.arms, strict=True):
        row["rewards"] = arm.rewards
    write_json(comparison.folder / "compare.json", result)
    write_comparison(comparison.folder)
    if main is not None:
        folder = comparison.run_folder(find_arm(comparison, main, "--main"), comparison.seeds[0])
        write_report(folder)
        for name in ("summary.json", "report.html"):
            shutil.copyfile(folder / name, comparison.folder / name)
    return result


def report_plan(comparison: Comparison) -> dict[str, Any]:
    """Return the plan as plain JSON: the arms with the settings in which they differ, the seeds, the baseline."""
    unequal = differences({arm.name: arm.config.model_dump(mode="json") for arm in comparison.arms})
    return {
        "folder": str(comparison.folder),
        "seeds": list(comparison.seeds),
        "steps": comparison.arms[0].config.steps,
        "baseline": comparison.baseline,
        "arms": [{"name": arm.name, "source": arm.source, "differs": unequal[arm.name]} for arm in comparison.arms],
    }


def cores() -> int:
    """Return the number of cores that this process may use. A container or ``taskset`` may limit it."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _load_arm(arm: ArmPlan, overrides: Sequence[str], *, seed: int) -> Arm:
    config = resolve(load_config(arm.source, [*arm.settings, *overrides, f"seed={seed}"]))
    method = method_of(config)
    return Arm(arm.name, arm.source, config, method.on_policy, method.needs_rewards(), arm.settings)


def _terms(arm: Arm) -> dict[str, Any]:
    return dict(flatten(common_terms(arm.config)))


def _word(value: Any) -> str:
    """Return a value in the form that ``--set`` parses: text without quotes, any other value as JSON (valid TOML)."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value)


def _name(arm: Arm, seed: int) -> str:
    return f"{arm.name} seed {seed}"


def _command(comparison: Comparison, arm: Arm, seed: int, folder: Path) -> tuple[str, ...]:
    settings = [
        part
        for override in (*arm.settings, *comparison.overrides, *arm.limits, f"seed={seed}")
        for part in ("--set", override)
    ]
    settings += ["--out", str(folder), "--resume", "--untrained", str(comparison.folder / UNTRAINED)]
    return (sys.executable, "-m", "selfdistill", "train", arm.source, *settings)


@contextmanager
def _locked(folder: Path) -> Iterator[list[int]]:
    """Lock the folder; child processes inherit the lock and hold it until the last of them exits.

    Two processes must never write into the same run, even if the parent was killed.
    """
    message = f"another comparison still runs in {folder}: wait for its runs to end, or choose another --out"
    descriptor = lock_folder(folder, message)
    try:
        yield [] if descriptor is None else [descriptor]
    finally:
        if descriptor is not None:
            os.close(descriptor)


class _Watch:
    """Logs the start and the end of each run, and shows the step and the accuracy of each running one."""

    def __init__(self, progress: Progress, folders: Mapping[str, Path], comparison: Comparison, total: int) -> None:
        self.progress = progress
        self.folders = folders
        self.steps = comparison.arms[0].config.steps
        self.config = comparison.arms[0].config.model_dump()
        self.total = total
        self.running: set[str] = set()
        self.last_line_at = time.monotonic()

    def __call__(self, state: State) -> None:
        names = [child.name for child in state.running]
        for name in sorted(self.running - set(names)):
            self.progress.log(f"{name}: {how_it_ended(self.folders[name]) or 'stopped'}")
        for name in names:
            if name not in self.running:
                self.progress.log(f"{name}: started")
        self.running = set(names)
        # A live line is updated every second; a log gets a line every half minute.
        if time.monotonic() - self.last_line_at < (1 if self.progress.live is not None else SILENCE):
            return
        self.last_line_at = time.monotonic()
        done = sum(bool(how_it_ended(folder)) for folder in self.folders.values())
        line = f"{done} of {counted(self.total, 'run')} done · {' · '.join(self._position(name) for name in names)}"
        if self.progress.live is not None:
            self.progress.status(line)
        elif names:
            self.progress.log(line)

    def _position(self, name: str) -> str:
        """The step of a running run, and its accuracy at its newest evaluation if it has one."""
        folder = self.folders[name]
        newest = last_line(folder / "evaluations.jsonl") or {}
        measure = measure_of(self.config, {}, [newest])
        score = newest.get(measure.key)
        level = "" if not score else f", {'accuracy' if measure.share else measure.name.lower()} {score['value']:z.3f}"
        return f"{name} step {last_step(folder / 'metrics.jsonl')}/{self.steps}{level}"
