"""Comparisons from Python: several configs and seeds in one table."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from selfdistill.api.settings import ConfigLike, Overrides, as_pairs, as_sweeps, check_counts, load_config
from selfdistill.api.training import stopping
from selfdistill.comparison.compare import find_arm, plan, run_comparison, write_results
from selfdistill.comparison.options import MATCH, check_folder
from selfdistill.errors import ConfigError
from selfdistill.files.jsonl import write_json
from selfdistill.tracking.progress import Progress

MEASURES = ("accuracy", "reward", "deliberation", "length")


class Comparison:
    """Arms on equal terms: all numbers of ``compare.json``, a table of them, and figures."""

    def __init__(self, result: Mapping[str, Any], folder: Path) -> None:
        self.result = dict(result)
        """The content of ``compare.json``."""
        self.folder = folder
        """The comparison's folder, with the runs and ``compare.html``."""

    def frame(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row per arm: each measure before and after, with its 95 % interval.

        The columns that end in ``_sd`` are standard deviations over seeds; NaN for a single seed.
        ``accuracy_against_baseline`` is the paired difference from the baseline's runs; NaN for the baseline. An arm
        without an evaluation within an equal budget has NaN for all but ``before`` and the best. The mean reward is
        among the measures where the arms are compared by it (``result["measure"]``).
        """
        import pandas

        rows = []
        for arm in self.result["arms"]:
            row: dict[str, Any] = {"arm": arm["name"], "method": arm["method"]["name"], "runs": len(arm["runs"])}
            for measure in self._measures():
                for end in ("before", "final", "change", "against_baseline"):
                    estimate = arm[measure][end] or dict.fromkeys(("value", "low", "high"), float("nan"))
                    row[f"{measure}_{end}"] = estimate["value"]
                    row[f"{measure}_{end}_low"], row[f"{measure}_{end}_high"] = estimate["low"], estimate["high"]
                sd = (arm[measure]["final"] or {}).get("sd")
                row[f"{measure}_final_sd"] = float("nan") if sd is None else sd
            row |= {f"{name}_best": arm[name]["best"]["value"] for name in self._measures() if "best" in arm[name]}
            rows.append(row)
        return pandas.DataFrame(rows).set_index("arm")

    def plot(self, measure: str = "accuracy", *, ax: Any = None) -> Any:
        """Plot the final value of a measure with its interval, for arms that have one. Returns the matplotlib axes."""
        from selfdistill.api.figures import intervals

        if measure not in self._measures():
            raise ConfigError(f"unknown measure {measure!r}; there are: {', '.join(self._measures())}")
        arms = [arm for arm in self.result["arms"] if arm[measure]["final"]]
        return intervals([arm["name"] for arm in arms], [arm[measure]["final"] for arm in arms], measure, ax=ax)

    def _measures(self) -> list[str]:
        return [name for name in MEASURES if all(name in arm for arm in self.result["arms"])]

    def __repr__(self) -> str:
        arms = ", ".join(arm["name"] for arm in self.result["arms"])
        return f"<{arms}; seeds {', '.join(map(str, self.result['seeds']))}; {self.folder / 'compare.html'}>"


def compare(
    configs: Sequence[str | Path] | Mapping[str, ConfigLike],
    *,
    out: str | Path,
    methods: Sequence[str] = (),
    sweep: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | Sequence[int] = 1,
    baseline: str | None = None,
    main: str | None = None,
    match: str = MATCH,
    final_split: str = "validation",
    jobs: int | None = None,
    engine: str | None = None,
    progress: bool = False,
    overrides: Overrides = (),
    **settings: Any,
) -> Comparison:
    """Train several configs on equal terms with several seeds, like ``selfdistill compare``, each in its own process.

    Finished runs in ``out`` are kept, so the same call continues an interrupted comparison.

    Args:
        configs: shipped names, files, run folders and models; or a dict of arms to configs, kept in ``out/configs``.
        out: folder of the comparison.
        methods: make an arm of each config with each of these methods, named ``config-method``.
        sweep: make an arm of each value of each key, named ``arm-key-value``: ``{"method.gate_ratio": [0.9, 0.95]}``.
        seeds: the number of seeds (0, 1, 2 …), or a list of seeds.
        baseline, main: the arm to compare with (unset: the first ``grpo``, else the first arm), and one whose summary
            and page are also put into the folder.
        match: what every arm gets equally much of: ``"completions"``, ``"tokens"``, ``"steps"`` or ``"seconds"``.
        final_split: the split that final figures come from, ``"test"`` for problems that nothing was tuned on.
        jobs, progress: runs at a time (unset: one for each core, or for each GPU); print the command's output.
        engine: what samples: ``"hf"``, ``"vllm"`` or the address of a server; unset: each config's ``sampler``.
        overrides, settings: dotted keys, and keys of the config's top level such as ``steps=20``, for all arms.

    Returns:
        A :class:`Comparison`: ``.frame()``, ``.result``, ``.plot()``; the page is ``out/compare.html``.

    Raises:
        UserError: arms that differ in more than method, optimiser, signal and limits; or a run that failed.
    """
    check_counts(jobs=jobs)
    comparison = plan(
        _sources(configs, folder := Path(out)),
        as_pairs(overrides, settings),
        seeds=_seeds(seeds),
        baseline=baseline,
        folder=folder,
        methods=methods,
        match=match,
        split=final_split,
        sweeps=as_sweeps(sweep or {}),
        engine=engine,
    )
    find_arm(comparison, main or comparison.baseline, "main")
    with Progress(Console() if progress else None) as terminal, stopping(terminal) as stop:
        finished = run_comparison(comparison, jobs=jobs, progress=terminal, stop=stop)
    if not finished:
        signal.raise_signal(stop.signal or signal.SIGINT)
    return Comparison(write_results(comparison, main=main), folder)


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen or len(set(chosen)) < len(chosen) or not all(type(seed) is int and seed >= 0 for seed in chosen):
        raise ConfigError(
            f"seeds are a number of at least 1, or different whole numbers such as [0, 1, 2]; got {seeds!r}"
        )
    return chosen


def _sources(configs: Sequence[str | Path] | Mapping[str, ConfigLike], folder: Path) -> list[str]:
    """Return the configs as names and paths, for the processes that train them."""
    if isinstance(configs, Mapping):
        checked = {name: load_config(config).model_dump(mode="json") for name, config in configs.items()}
        check_folder(folder)
        config_folder = folder / "configs"
        config_folder.mkdir(parents=True, exist_ok=True)
        for name, table in checked.items():
            write_json(config_folder / f"{name}.json", table)
        return [str(config_folder / f"{name}.json") for name in checked]
    if isinstance(configs, str) or not all(isinstance(config, str | Path) for config in configs):
        raise ConfigError("configs are a list of names and paths, or a dict of arms' names to configs")
    return [str(config) for config in configs]
