"""The model card of an exported checkpoint, written from the files of its run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from selfdistill import __version__
from selfdistill.errors import DataError
from selfdistill.files.jsonl import Row, read_lines, read_object
from selfdistill.report.numbers import number, percent, percent_range, printable, whole

CARD = "README.md"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""An id of the hub. A folder of this machine is named in the card's text alone."""


def write_card(run: Path, step: int, folder: Path, *, name: str | None = None) -> Path:
    """Write the card of the checkpoint of ``step`` into the folder that holds its model; returns its path.

    ``name`` is the title; None is the run's.

    Raises:
        DataError: a file of the run is damaged.
    """
    config = read_object(run / "config.json")
    if not isinstance(config.get("method"), dict) or not isinstance(config.get("model"), dict):
        raise DataError(f"{run / 'config.json'} names no method or no model, which a model card says")
    path = folder / CARD
    merged = not (folder / "adapter_config.json").is_file()
    lines = card(run, config, step, name or run.resolve().name, merged=merged)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def card(run: Path, config: Mapping[str, Any], step: int, name: str, *, merged: bool = False) -> Iterator[str]:
    """Yield the lines of the card. ``merged`` says that an adapter was added to its base."""
    method, model, task = config["method"], config["model"], config.get("task", {})
    base, rows, lora = str(model.get("path")), task.get("path"), bool(model.get("lora"))
    data = ModelCardData(
        base_model=base if HUB_ID.fullmatch(base) and not Path(base).exists() else None,
        datasets=rows if isinstance(rows, str) and HUB_ID.fullmatch(rows) and not Path(rows).exists() else None,
        library_name="peft" if lora and not merged else "transformers",
        pipeline_tag="text-generation",
        tags=["selfdistill", "on-policy-self-distillation", str(method.get("name"))],
    )
    yield from ("---", data.to_yaml(), "---", "", f"# {printable(name)}", "")
    trained = "An adapter" if lora else "All weights"
    where = ", merged into it," if lora and merged else ""
    yield (
        f"{trained} of `{base}`{where} trained with the method `{method.get('name')}` of selfdistill {__version__}: "
        f"step {step:,} of {config.get('steps', 0):,}."
    )
    if model.get("quantisation"):
        yield from ("", quantised_base(str(model["quantisation"]), base, merged=merged))
    yield from ("", "## Method", "")
    yield from _table(("hyperparameter", "value"), ((key, _value(value)) for key, value in method.items()))
    yield from ("", "## Data", "")
    yield from _table(("key", "value"), ((key, _value(value)) for key, value in task.items() if value is not None))
    used = [row for row in read_lines(run / "metrics.jsonl") if (number(row.get("step")) or 0) <= step]
    tokens = sum(number(row.get("generated")) or 0 for row in used)
    seconds = sum(number(row.get("seconds")) or 0 for row in used)
    yield from ("", f"{len(used):,} steps, {whole(tokens)} sampled tokens, {whole(seconds)} seconds.")
    yield from _accuracy(run, step)
    yield from _alarms(run, step)
    yield from ("", "## Config", "", "```json", json.dumps(config, indent=2, ensure_ascii=False), "```")


def quantised_base(kind: str, base: str, *, merged: bool) -> str:
    """The sentence about an adapter that was trained on a quantised base."""
    trained = f"The adapter was trained and evaluated on {base} with its linear layers kept in {kind}. "
    if merged:
        return trained + "It is merged into that model as it is without quantisation: its logits differ somewhat."
    return trained + "On that model without quantisation its logits differ somewhat."


def _accuracy(run: Path, step: int) -> Iterator[str]:
    """The evaluations before training and the newest of this checkpoint, with 95 % intervals."""
    yield from ("", "## Accuracy", "")
    rows: list[tuple[str, Row]] = []
    for file, split in (("evaluations", "held out"), ("test", "test")):
        evaluations = [row for row in read_lines(run / f"{file}.jsonl") if (number(row.get("step")) or 0) <= step]
        rows += [(split, evaluations[place]) for place in sorted({0, len(evaluations) - 1}) if evaluations]
    if not rows:
        yield "No evaluation was made."
        return
    shown = []
    for split, row in rows:
        estimates = [row.get(key) or {} for key in ("avg", "pass", "maj")]
        cells = [f"{percent(number(e.get('value')))} {_interval(e)}".strip() for e in estimates]
        problems = f"{row.get('problems')} × {row.get('samples')}"
        shown.append(
            (split, whole(number(row.get("step"))), problems, *cells, f"{number(row.get('length')) or 0:,.1f}")
        )
    header = ("problems", "step", "problems × samples", "avg@k", "pass@k", "maj@k", "tokens a completion")
    yield from _table(header, shown)
    yield from ("", "In brackets: 95 % intervals over problems. Step 0 is the model before training.")
    if any(row.get("judged") == 0 for _, row in rows):
        yield "Nothing judged these completions, so they have no accuracy."


def _interval(estimate: Row) -> str:
    ends = percent_range(number(estimate.get("low")), number(estimate.get("high")))
    return f"[{ends}]" if ends else ""


def _alarms(run: Path, step: int) -> Iterator[str]:
    yield from ("", "## Alarms", "")
    alarms = [row for row in read_lines(run / "alarms.jsonl") if (number(row.get("step")) or 0) <= step]
    if not alarms:
        yield "None was raised."
        return
    told = ((whole(number(row.get("step"))), str(row.get("name")), str(row.get("evidence"))) for row in alarms)
    yield from _table(("step", "alarm", "evidence"), told)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(header: tuple[str, ...], rows: Any) -> Iterator[str]:
    """A table of Markdown. Bars and line breaks in a cell would end it."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        cells = (printable(cell).replace("|", "\\|").replace("\n", " ") for cell in row)
        yield f"| {' | '.join(cells)} |"
