"""Write the schemas of the methods' hyperparameters into a file: ``python scripts/method_schemas.py``.

A config is checked by this file before torch is imported. A test compares it with the methods' classes.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import models_json_schema

from selfdistill.config.hyperparameters import SCHEMAS
from selfdistill.methods import METHODS, Method


def schemas() -> str:
    """The text of the file: one hyperparameter a line, then the tables that several methods share."""
    _, drawn = models_json_schema([(kind, "validation") for kind in METHODS.values()])
    tables = {name: _bare(table["properties"]) for name, table in drawn["$defs"].items()}
    methods = {
        name: {key: schema for key, schema in tables.pop(kind.__name__).items() if key != "name"}
        for name, kind in METHODS.items()
    }
    # A method that decides by its hyperparameters whether it needs rewards is asked when it is built.
    rewarded = [name for name, kind in METHODS.items() if kind.needs_rewards is Method.needs_rewards]
    return (
        f'{{\n"needs_rewards": {json.dumps(rewarded)},\n"methods": {_lines(methods)},\n"$defs": {_lines(tables)}\n}}\n'
    )


def _bare(properties: dict[str, Any]) -> dict[str, Any]:
    """Properties without their titles and descriptions, which no check reads."""
    return {
        key: {word: value for word, value in schema.items() if word not in ("title", "description")}
        for key, schema in properties.items()
    }


def _lines(tables: dict[str, Any]) -> str:
    written = []
    for name, properties in tables.items():
        keys = ",\n".join(f"    {json.dumps(key)}: {json.dumps(schema)}" for key, schema in properties.items())
        written.append(f"  {json.dumps(name)}: {{\n{keys}\n  }}")
    return "{\n" + ",\n".join(written) + "\n}"


if __name__ == "__main__":
    SCHEMAS.write_text(schemas(), encoding="utf-8")
