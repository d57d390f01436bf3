"""Config keys that have a new name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "sampling.max_rows": "sampling.max_batch_size",
    "sampler.receiver": "sampler.worker_extension",
    "optimiser.updates": "optimiser.updates_per_batch",
    "limits.tokens": "limits.max_tokens_per_microbatch",
    "limits.elements": "limits.max_logits_per_chunk",
    "task.tell_wrong": "task.reveal_incorrect",
}
"""Keys of earlier versions and their new names. A config with an old key is refused with the new name."""


def with_new_names(table: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a run's ``config.json`` with the keys of earlier versions under their new names."""
    renamed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in table.items()}
    for old, new in RENAMED.items():
        table_name, _, key = old.partition(".")
        if isinstance(renamed.get(table_name), dict) and key in renamed[table_name]:
            renamed[table_name][new.partition(".")[2]] = renamed[table_name].pop(key)
    return renamed
