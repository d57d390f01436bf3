"""The file of hyperparameters is written from the methods' classes."""

from __future__ import annotations

import method_schemas
from selfdistill.config.hyperparameters import METHOD_KEYS, SCHEMAS
from selfdistill.methods import METHODS


def test_what_the_file_says_of_the_hyperparameters_is_what_the_classes_say() -> None:
    assert SCHEMAS.read_text(encoding="utf-8") == method_schemas.schemas(), "run make schemas"
    assert list(METHOD_KEYS) == list(METHODS)
