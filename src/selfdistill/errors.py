"""Errors that a user can mend: one sentence each, shown without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the user's input: what is wrong, where, and what would be right, in one sentence."""


class ConfigError(UserError):
    """A configuration that cannot be run."""


class DataError(UserError):
    """A row, a file or a field mapping that cannot be used."""


class ModelError(UserError):
    """A model, tokenizer or chat template that cannot be used."""


class CheckpointError(UserError):
    """A run folder or checkpoint that cannot be used."""


class TrainingError(UserError):
    """A run that cannot go on (for example a loss that is not a number)."""


class OutOfMemory(UserError):
    """A device or machine whose memory does not suffice."""


class SamplerError(UserError):
    """An engine that cannot be used, or no longer answers."""


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its class where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
