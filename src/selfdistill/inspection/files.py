"""Writes the findings of an inspection: ``tokens.parquet``, ``summary.json`` and the page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.thinking import begins_thinking, ends_thinking
from selfdistill.errors import ConfigError
from selfdistill.evaluation.words import ALL_CLASSES, classify
from selfdistill.files.disk import check_name, lock_folder, report_disk_errors
from selfdistill.files.jsonl import write_json
from selfdistill.inspection import tables
from selfdistill.inspection.findings import Findings
from selfdistill.inspection.page import PageData, Sample, render_microscope
from selfdistill.report.tokens import align, said_before
from selfdistill.types import STUDENT, Rollout, Verdict

FILES = ("tokens.parquet", "summary.json", "index.html")
ANSWER_ONLY = "answer_only"
"""Context whose u measures the answer leak."""
OUTCOMES = ("correct", "wrong", "not judged")

_FIRST_GAP = 5.0
"""A warning needs a mean |u| of first tokens that exceeds that of the other tokens by this factor."""
_LEAST_GAP = 0.5
"""A warning needs a mean |u| of first tokens above this many nats."""
_LEAST_END = 2.0
"""A warning needs a context under which the log-probability of the end is lower by more than this many nats."""


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The findings with texts, classes and outcomes for the page and the tables."""

    findings: Findings
    samples: list[Sample]
    class_N: NDArray[np.str_]
    outcome_C: list[str]

    @property
    def signals(self) -> dict[str, NDArray[np.float64]]:
        """Return u of every context, its parts under a teacher's own weights, and every method's credit, by name."""
        gains = {f"u {name}": values for name, values in self.findings.gains().items()}
        credits = {f"credit {name}": v.astype(np.float64) for name, v in self.findings.credits.items()}
        pmi = {f"pmi {name}": values for name, values in self.findings.pmi.items()}
        drift = {f"drift {name}": values for name, values in self.findings.weight_drift.items()}
        return {**gains, **pmi, **drift, **credits}


def token_table(findings: Findings, chat: Chat, patterns: Mapping[str, Any]) -> TokenTable:
    """Decode every token and determine its class."""
    samples: list[Sample] = []
    classes: list[str] = []
    outcomes: list[str] = []
    for g, i in findings.places:
        group = findings.groups[g]
        rollout, verdict = group.rollouts[i], group.verdicts[i]
        pieces = align(rollout.text, chat.tokens(rollout.completion_ids))
        spans, start, text = [], 0, ""
        for piece in pieces:
            start += len(piece.before)
            end = start if piece.unseen else start + len(piece.body)
            spans.append((start, end))
            text += piece.before + ("" if piece.unseen else piece.body)
            start = end
        classes += classify(text, spans, patterns)
        outcomes.append(outcome(verdict))
        samples.append(
            Sample(
                example=group.example.id,
                index=i,
                prompt=group.example.prompt[-1].content,
                feedback=verdict.feedback or "",
                reward=verdict.reward,
                finished=rollout.finished,
                pieces=pieces,
                said=said_before(rollout.episode),
            )
        )
    return TokenTable(findings, samples, np.array(classes, dtype=np.str_), outcomes)


def outcome(verdict: Verdict) -> str:
    """Return one of :data:`OUTCOMES`. Anything below the full reward is wrong."""
    return "not judged" if verdict.reward is None else "correct" if verdict.correct else "wrong"


SEQUENCE = ("credit_score", "credit_specific")
"""Metrics that are also summed over each completion: CREDIT's reward, and its contrastive pMI."""


def summarise(table: TokenTable, origin: Mapping[str, Any], chat: Chat) -> dict[str, Any]:
    """Return the summary over all tokens as plain JSON."""
    findings = table.findings
    gains, signals = findings.gains(), table.signals
    lengths = findings.lengths
    judged = [c for c, name in enumerate(table.outcome_C) if name != "not judged"]
    correct_C = np.array([table.outcome_C[c] == "correct" for c in judged], dtype=np.bool_)
    problem_C = np.array([findings.places[c][0] for c in judged], dtype=np.int64)
    return {
        **origin,
        "problems": len(findings.groups),
        "completions": len(lengths),
        "tokens": sum(lengths),
        "outcomes": {name: table.outcome_C.count(name) for name in OUTCOMES},
        "contexts": findings.contexts,
        "teacher": findings.teacher,
        "methods": list(findings.credits),
        "left_out": findings.left_out,
        "skipped": dict(sorted(findings.skipped.items())),
        "signals": _signal_tables(table, signals),
        "separation": {
            name: tables.separation(tables.totals(u_N, lengths)[judged], correct_C, problem_C)
            for name, u_N in gains.items()
        },
        "metrics": _metric_tables(table),
        "sequence": {
            method: {
                name: {
                    "mean": tables.describe(totals_C := tables.totals(values[name].astype(np.float64), lengths))[
                        "mean"
                    ],
                    **tables.separation(totals_C[judged], correct_C, problem_C),
                }
                for name in SEQUENCE
                if name in values
            }
            for method, values in findings.metrics.items()
        },
        "drift": {
            name: {
                part: {
                    "mean": tables.describe(totals_C := tables.totals(values_N, lengths))["mean"],
                    **tables.separation(totals_C[judged], correct_C, problem_C),
                }
                for part, values_N in (
                    ("pmi", pmi_N),
                    ("weight_drift", findings.weight_drift[name]),
                    ("u", pmi_N + findings.weight_drift[name]),
                )
            }
            for name, pmi_N in findings.pmi.items()
        },
        "agreement": tables.agreement(gains),
        "answer_leak": _leak(findings, gains),
        "templates": template_checks(table, chat),
    }


def _signal_tables(table: TokenTable, signals: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    findings = table.findings
    decile_N = tables.deciles(findings.lengths)
    part_N, parts = tables.entropy_parts(findings.entropies[STUDENT].astype(np.float64))
    outcome_N = np.repeat(np.array(table.outcome_C), findings.lengths)
    rollouts = [findings.groups[g].rollouts[i] for g, i in findings.places]
    turn_N = np.array(turns_of(rollouts)) if any(rollout.episode for rollout in rollouts) else None
    result: dict[str, Any] = {}
    for name, values_N in signals.items():
        by_position = tables.by_label(values_N, decile_N, range(tables.DECILES))
        by_entropy = tables.by_label(values_N, part_N, range(len(parts)))
        result[name] = {
            "by_class": tables.by_label(values_N, table.class_N, ALL_CLASSES),
            "by_position": [{**row, "name": f"{10 * d}–{10 * d + 10}%"} for d, row in enumerate(by_position)],
            "by_entropy": [{**row, "name": label} for row, label in zip(by_entropy, parts, strict=True)],
            "by_outcome": tables.by_label(values_N, outcome_N, OUTCOMES),
            **({"by_turn": tables.by_turn(values_N, turn_N)} if turn_N is not None else {}),
            "balance": tables.balance(values_N),
        }
    return result


def _metric_tables(table: TokenTable) -> dict[str, Any]:
    """Return the statistics of each method's own metrics, such as CREDIT's split and purified's decomposition."""
    return {
        method: {
            name: {
                **tables.describe(values_N.astype(np.float64)),
                "by_class": tables.by_label(values_N.astype(np.float64), table.class_N, ALL_CLASSES),
            }
            for name, values_N in metrics.items()
        }
        for method, metrics in table.findings.metrics.items()
        if metrics
    }


def _leak(findings: Findings, gains: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Return the table of the answer leak.

    ``same`` lists the contexts whose prompts all equal the answer-only prompt, for example because every solution is
    only its answer.
    """
    if ANSWER_ONLY not in gains:
        reason = f"no completion could be shown the context {ANSWER_ONLY}; in shipped files it needs the field 'answer'"
        return {"available": False, "reason": reason, "same": [], "rows": []}
    same = [
        name
        for name in gains
        if name != ANSWER_ONLY and all(prompts.get(name) == prompts.get(ANSWER_ONLY) for prompts in findings.prompts)
    ]
    return {"available": True, "reason": None, "same": same, "rows": tables.answer_leak(gains, ANSWER_ONLY)}


def template_checks(table: TokenTable, chat: Chat) -> dict[str, Any]:
    """Return checks for wrong templates: u of the first token, the end token, prompt endings and open thinking."""
    findings = table.findings
    lengths = np.array(findings.lengths)
    first = np.cumsum(lengths) - lengths
    rest = np.setdiff1d(np.arange(lengths.sum()), first)
    rollouts = [findings.groups[g].rollouts[i] for g, i in findings.places]
    ended = [n for n, r in enumerate(rollouts) if r.finished and r.completion_ids[-1] in chat.stop_ids]
    ends = (first + lengths - 1)[ended]
    gains = findings.gains()
    rows = []
    for name in findings.contexts:
        sizes = np.abs(gains[name]) if name in gains else None
        shared = [_shared_ending(prompts[STUDENT], prompts[name]) for prompts in findings.prompts if name in prompts]
        rows.append(
            {
                "context": name,
                "completions": len(shared),
                "first_token": None if sizes is None else _mean(sizes[first]),
                "other_tokens": None if sizes is None else _mean(sizes[rest]),
                "end": _mean(findings.logprobs[name][ends].astype(np.float64)),
                "shared_ending": min(shared, default=None),
            }
        )
    closed = [ends_thinking(r.text) for r in rollouts]
    opened = [
        end or begins_thinking(r.text) or chat.opens_thinking(r.prompt_ids)
        for r, end in zip(rollouts, closed, strict=True)
    ]
    return {
        "contexts": rows,
        "finished": sum(r.finished for r in rollouts) / len(rollouts),
        "thinking": {"opened": sum(opened), "closed": sum(closed)},
        "warnings": _warnings(rows),
    }


def _warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    student = next(row for row in rows if row["context"] == STUDENT)
    warnings = []
    for row in rows:
        first, other, name = row["first_token"], row["other_tokens"], row["context"]
        if first is not None and first > max(_LEAST_GAP, _FIRST_GAP * (other or 0.0)):
            warnings.append(
                f"Under {name} the first token's mean |u| is {first:z.2f} nats, elsewhere {other or 0.0:z.2f}: "
                "see whether its prompt ends as the student's does."
            )
        if row["end"] is not None and student["end"] is not None and row["end"] < student["end"] - _LEAST_END:
            warnings.append(
                f"Under {name} the end of a completion has a mean log-probability of {row['end']:z.2f}, under the "
                f"student's prompt {student['end']:z.2f}: the context asks for another form of answer."
            )
        if row["shared_ending"] == 0:
            warnings.append(f"Some prompt of {name} ends with another token than the student's.")
    return warnings


def _shared_ending(left: Sequence[int], right: Sequence[int]) -> int:
    count = 0
    for a, b in zip(reversed(left), reversed(right), strict=False):
        if a != b:
            break
        count += 1
    return count


def _mean(values: NDArray[np.float64]) -> float | None:
    finite = values[~np.isnan(values)]
    return math.fsum(finite) / len(finite) if len(finite) else None


def write_findings(folder: Path, table: TokenTable, summary: Mapping[str, Any], chat: Chat) -> None:
    """Create the folder and write the three files into it. They replace older ones once all three are complete."""
    page = render_microscope(page_data_of(table, summary, chat))
    parts = [folder / f"{name}.part" for name in FILES]
    with report_disk_errors(folder):
        lock = lock_folder(folder, f"another inspection still writes to {folder}: wait for it, or choose another --out")
        try:
            write_tokens(parts[0], table)
            write_json(parts[1], dict(summary))
            parts[2].write_bytes(page.encode("utf-8", errors="replace"))
            for path in parts:
                os.replace(path, path.with_suffix(""))
        finally:
            for path in parts:
                path.unlink(missing_ok=True)
            if lock is not None:
                os.close(lock)


def check_place(folder: Path) -> None:
    """Refuse an output folder that contains anything but the files of an earlier inspection.

    Raises:
        ConfigError: the folder is a file or contains other files.
    """
    with report_disk_errors(folder):
        check_name(folder)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out {folder} is a file: choose another --out")
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        others = sorted(names - {*FILES, *(f"{name}.part" for name in FILES)})
        if others:
            raise ConfigError(f"--out {folder} holds other things ({others[0]}): choose another --out")


def page_data_of(table: TokenTable, summary: Mapping[str, Any], chat: Chat) -> PageData:
    """Return the data of the page."""
    findings = table.findings
    words: dict[int, str] = {}
    for ids_NK, _ in findings.alternatives.values():
        words.update({int(token): chat.word(int(token)) for token in np.unique(ids_NK)})
    return PageData(
        summary=summary,
        samples=table.samples,
        contexts=findings.contexts,
        teacher=findings.teacher,
        methods=list(findings.credits),
        signals=table.signals,
        logprobs=findings.logprobs,
        entropies=findings.entropies,
        class_names=list(ALL_CLASSES),
        class_N=np.array([ALL_CLASSES.index(name) for name in table.class_N], dtype=np.uint8),
        alternatives=findings.alternatives,
        words=words,
        outcome_C=table.outcome_C,
    )


def write_tokens(path: Path, table: TokenTable) -> None:
    """Write :func:`arrow_table` as Parquet."""
    import pyarrow.parquet as pq

    pq.write_table(arrow_table(table), path)


def arrow_table(table: TokenTable) -> Any:
    """Return a ``pyarrow.Table`` with one row per token; null where a number is missing."""
    import pyarrow as pa

    findings = table.findings
    lengths = findings.lengths
    rollouts = [findings.groups[g].rollouts[i] for g, i in findings.places]

    def repeated(values: Sequence[object]) -> list[object]:
        return [value for value, n in zip(values, lengths, strict=True) for _ in range(n)]

    def number(values_N: NDArray[Any]) -> Any:
        return pa.array(values_N, mask=np.isnan(values_N))

    columns: dict[str, Any] = {
        "completion": pa.array(repeated(range(len(lengths))), pa.int32()),
        "example": pa.array(repeated([sample.example for sample in table.samples]), pa.string()),
        "index": pa.array(repeated([sample.index for sample in table.samples]), pa.int32()),
        "position": pa.array([position for n in lengths for position in range(n)], pa.int32()),
        "id": pa.array([token for rollout in rollouts for token in rollout.completion_ids], pa.int32()),
        "text": pa.array([_encodable(piece.body) for sample in table.samples for piece in sample.pieces], pa.string()),
        "class": pa.array(table.class_N.tolist(), pa.string()),
        "reward": pa.array(repeated([sample.reward for sample in table.samples]), pa.float64()),
    }
    if any(rollout.episode for rollout in rollouts):
        columns["turn"] = pa.array(turns_of(rollouts), pa.int32())
    columns |= {f"logprob {name}": number(values) for name, values in findings.logprobs.items()}
    columns |= {f"entropy {name}": number(values) for name, values in findings.entropies.items()}
    columns |= {name: number(values.astype(np.float32)) for name, values in table.signals.items()}
    for method, metrics in findings.metrics.items():
        columns |= {f"{method} {name}": number(values) for name, values in metrics.items()}
    for name, (ids_NK, logprobs_NK) in findings.alternatives.items():
        columns[f"top ids {name}"] = pa.array(ids_NK.tolist(), pa.list_(pa.int32()))
        columns[f"top logprobs {name}"] = pa.array(
            [None if np.isnan(row).any() else row for row in logprobs_NK.tolist()], pa.list_(pa.float32())
        )
    return pa.table(columns)


def turns_of(rollouts: Sequence[Rollout]) -> list[int]:
    """The turn of each token, from 1."""
    return [turn for rollout in rollouts for turn in rollout.segments if turn]


def _encodable(text: str) -> str:
    # UTF-8 cannot encode a lone surrogate.
    return text.encode("utf-8", errors="replace").decode("utf-8")
