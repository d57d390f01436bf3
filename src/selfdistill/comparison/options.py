"""The options of a comparison, read and checked. Imports nothing heavy: a mistake is reported at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfdistill.comparison.runs import UNITS
from selfdistill.config.sampler import engine_overrides
from selfdistill.config.sources import read_config
from selfdistill.config.suggest import choices
from selfdistill.errors import CheckpointError, ConfigError
from selfdistill.files.disk import check_place, report_disk_errors

MATCH = "completions"
"""The default. Every sampled completion counts, whichever role it is sampled from."""

STARTS = "starts.jsonl"
"""File with the number of parallel runs of each start. The seconds of a comparison depend on that number."""

SPLITS = ("validation", "test")
"""Splits that final figures may come from."""


def check_match(match: str, split: str) -> None:
    """Refuse an unknown unit, an unknown split, and a unit and a split that exclude each other.

    Raises:
        ConfigError: the message names the valid values.
    """
    if match not in UNITS:
        raise ConfigError(f"--match {match!r} is no budget; {choices(match, UNITS, 'choose from')}")
    if split not in SPLITS:
        raise ConfigError(f"--final-split {split!r} is no split; {choices(split, SPLITS, 'choose from')}")
    if split == "test" and match in ("tokens", "seconds"):
        raise ConfigError(
            f"--match {match} reads arms at an evaluation in the course of training, and the test split is answered "
            "only at its end: use --match completions, --match steps or --final-split validation"
        )


def engine_for_all(engine: str | None, sources: Sequence[str]) -> list[str]:
    """Return the overrides that give all sources one engine; none if it is None.

    The engine keeps its other keys if all sources have its kind.

    Raises:
        ConfigError: the engine is none, or a source cannot be read.
    """
    if engine is None:
        return []
    needed = {tuple(engine_overrides(engine, read_config(source).get("sampler"))) for source in sources}
    return [*(needed.pop() if len(needed) == 1 else engine_overrides(engine, None))]


def parse_sweep(text: str) -> list[str]:
    """Return the settings of a sweep: ``method.gate_ratio=0.9,0.95`` is ``method.gate_ratio=0.9`` and one more.

    Raises:
        ConfigError: there is no key, there are fewer than two values, one stands twice, or one contains a comma.
    """
    key, _, given = (part.strip() for part in text.partition("="))
    values = [value.strip() for value in given.split(",")]
    if not key or len(values) < 2 or not all(values):
        raise ConfigError(
            f"--sweep {text!r}: write a key and two values or more, such as --sweep method.gate_ratio=0.90,0.93,0.95"
        )
    if any(value.count(opening) != value.count(closing) for value in values for opening, closing in ("[]", "{}")):
        raise ConfigError(f"--sweep {text!r}: a value cannot contain a comma; write a config for each arm")
    if len(set(values)) < len(values):
        raise ConfigError(f"--sweep {text!r} names a value twice")
    return [f"{key}={value}" for value in values]


def sweep_label(setting: str) -> str:
    """Return the part of an arm's name, which is a folder's, that a setting of a sweep adds."""
    key, _, value = setting.partition("=")
    return f"{key.rpartition('.')[2]}-{''.join(sign if sign.isalnum() or sign in '.+-_' else '_' for sign in value)}"


def parse_seeds(text: str) -> list[int]:
    """Parse a number of seeds (``3`` is 0, 1 and 2) or a list of seeds (``0,5,7``); ``5,`` is the seed 5 alone.

    Raises:
        ConfigError: an entry is not a whole number, a seed is repeated, or there is none.
    """
    words = [word.strip() for word in text.removesuffix(",").split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ConfigError(
            f"--seeds {text!r}: write whole numbers and commas, for example --seeds 0,1,2, or how many, as in --seeds 3"
        )
    seeds = [int(word) for word in words]
    if "," not in text:
        if not seeds[0]:
            raise ConfigError(f"--seeds {text!r} is no seed at all; the seed 0 alone is --seeds 1")
        return list(range(seeds[0]))
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text!r} names a seed twice: a run repeated bit for bit adds nothing")
    return seeds


def arm_names(labels: Sequence[str], methods: Sequence[str], sweeps: Sequence[str]) -> list[str]:
    """Return the names of the arms of configs with these labels.

    Raises:
        ConfigError: a method is named twice, a sweep cannot be read, or two arms have the same name.
    """
    if len(set(methods)) < len(methods):
        raise ConfigError(f"--methods {','.join(methods)} names a method twice")
    names = [method_arm(label, method) for label in labels for method in methods] if methods else list(labels)
    for sweep in sweeps:
        names = [f"{name}-{sweep_label(setting)}" for name in names for setting in parse_sweep(sweep)]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ConfigError(f"two arms are named {name!r}: give one of the configs another file name")
    return names


def method_arm(label: str, method: str) -> str:
    """Return the name of the arm of a config and a method. A user's method, package.module:Class, is its class."""
    return f"{label}-{method.rpartition(':')[2]}"


def check_arm(name: str, arms: Sequence[str], option: str) -> None:
    """Refuse the name of an arm that does not exist.

    Raises:
        ConfigError: the message names the arms.
    """
    if name not in arms:
        raise ConfigError(f"{option} {name!r} is no arm; {choices(name, arms, 'arms')}")


def check_folder(folder: Path) -> None:
    """Refuse a folder for a comparison that cannot be made, is a run, or holds anything but a comparison.

    Files beside a comparison are left alone. ``configs`` may hold those of its arms before it begins.

    Raises:
        CheckpointError: the message asks for another folder.
    """
    check_place(folder)
    if (folder / "config.json").exists():
        raise CheckpointError(f"{folder} holds a run: choose another --out")
    with report_disk_errors(folder):
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        begun = names & {"compare.json", STARTS} or any((folder / "runs").glob("*/seed-*"))
        if names - {"configs"} and not begun:
            raise CheckpointError(f"{folder} is not empty and holds no comparison: choose another --out")
