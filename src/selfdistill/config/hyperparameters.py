"""Check a method's hyperparameters before torch is imported, which the methods' own classes need.

``method_schemas.json`` says what those classes say of each hyperparameter: its type, its bounds, its default. ``make
schemas`` writes it from them. The models built from it give the very messages of the classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, create_model, model_validator
from pydantic_core import ErrorDetails

from selfdistill.config.sections import Strict
from selfdistill.config.suggest import RAISED, near, nearest_choice, without_keys
from selfdistill.errors import ConfigError
from selfdistill.types import External, Server, Snapshot

Kind = TypeVar("Kind", bound=BaseModel)

SCHEMAS = Path(__file__).with_name("method_schemas.json")
_READ: Mapping[str, Any] = json.loads(SCHEMAS.read_text(encoding="utf-8"))

METHOD_KEYS: Mapping[str, tuple[str, ...]] = {name: tuple(keys) for name, keys in _READ["methods"].items()}
"""Each method of the package → its hyperparameters."""
NEED_REWARDS: frozenset[str] = frozenset(_READ.get("needs_rewards", ()))
"""Methods of the package that need rewards, whatever their hyperparameters."""

PLAIN: Mapping[str, Any] = {"number": float, "integer": int, "boolean": bool, "string": str, "null": None}
BOUNDS = {"minimum": "ge", "exclusiveMinimum": "gt", "maximum": "le", "exclusiveMaximum": "lt"}
LIGHT: Mapping[str, Any] = {"External": External, "Server": Server, "Snapshot": Snapshot}
"""Classes that need no torch and stand for themselves, with what they check in code."""


def check_method_name(name: str) -> None:
    """Refuse a name that is neither a method of the package nor a class of the user, ``module:Class``.

    Raises:
        ConfigError: unknown method, with the nearest known one.
    """
    if name not in METHOD_KEYS and ":" not in name:
        hint = f"{near(name, METHOD_KEYS)} known: {', '.join(sorted(METHOD_KEYS))}; or module:Class".lstrip()
        raise ConfigError(f"unknown method {name!r}; {hint}")


def default_of(name: str, key: str) -> Any:
    """The default of a method's hyperparameter; None if the method has no such key."""
    return _READ["methods"].get(name, {}).get(key, {}).get("default")


def check_hyperparameters(name: str, given: Mapping[str, Any]) -> None:
    """Refuse hyperparameters that a method of the package does not have, and values that it does not take.

    Raises:
        ConfigError: the sentence of ``methods.build_method``.
    """
    # Python callers may give the tables of a divergence as objects of the methods' classes.
    plain = {key: value.model_dump() if isinstance(value, BaseModel) else value for key, value in given.items()}
    validated(_model(name), name, plain)


def validated(kind: type[Kind], name: str, given: Mapping[str, Any]) -> Kind:
    """A method's hyperparameters, checked by ``kind``: the method's own class, or the model of its schema.

    Raises:
        ConfigError: unknown hyperparameter, with the nearest known one, or a value out of range.
    """
    _check_keys(name, given, kind.model_fields)
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = _most_specific(error, given)
        where = ".".join(["method", *_keys(first, given)])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"unknown key {where} for method {name!r} (got {first['input']!r})") from error
        # Weights are a word or a table, and pydantic's message for a wrong word knows the words alone.
        parts = (entry["loc"][1] for entry in error.errors() if entry["loc"][:1] == first["loc"][:1] != entry["loc"])
        kinds = [repr(part.lower()) for part in dict.fromkeys(parts) if isinstance(part, str) and part in LIGHT]
        tables = f", or a table of kind {' or '.join(kinds)}" if kinds and first["type"] == "literal_error" else ""
        # A login or a key in an address is no part of a message.
        got = without_keys(repr(first["input"]))
        message = first["msg"].removeprefix(RAISED)
        raise ConfigError(f"{where}: {message}{tables} (got {got}){nearest_choice(first)}") from error


def check_dual_clip(ratio: str, dual_clip: float | None) -> None:
    """Refuse GRPO's bound of a bad token's loss where the probability ratio is not that of each token.

    Raises:
        ValueError: for pydantic.
    """
    if dual_clip is not None and ratio != "token":
        raise ValueError(f"dual_clip bounds the ratio of each token, and ratio is {ratio!r}")


def _check_keys(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    names = [key for key in known if key != "name"]
    for key in given:
        if key not in names:
            hint = near(key, names) or f"known: {', '.join(sorted(names))}"
            raise ConfigError(f"unknown key method.{key} for method {name!r}; {hint}")


def _most_specific(error: ValidationError, given: Mapping[str, Any]) -> ErrorDetails:
    """The first error of the alternative that the user's ``kind`` selects, else the first of all errors."""
    for entry in error.errors():
        table = given.get(str(entry["loc"][0])) if entry["loc"] else None
        kind = table.get("kind") if isinstance(table, Mapping) else None
        if any(str(part).lower() == kind for part in entry["loc"][1:]):
            return entry
    return error.errors()[0]


def _keys(error: ErrorDetails, given: Mapping[str, Any]) -> list[str]:
    """The keys of an error's location as the user wrote them, without pydantic's names of alternatives."""
    keys: list[str] = []
    table: Any = given
    for part in error["loc"]:
        if not isinstance(table, Mapping):
            break
        if part in table or (error["type"] == "missing" and part == error["loc"][-1]):
            keys.append(str(part))
            table = table.get(part)
    return keys


class _Hyperparameters(Strict):
    """Base of the models that are built from schemas, with the one check of several hyperparameters together."""

    @model_validator(mode="after")
    def _check_together(self) -> _Hyperparameters:
        values = dict(self)
        if "dual_clip" in values:
            check_dual_clip(values["ratio"], values["dual_clip"])
        return self


@cache
def _model(name: str) -> type[_Hyperparameters]:
    """The model of a method's hyperparameters."""
    return create_model(name, __base__=_Hyperparameters, **_fields(_READ["methods"][name]))


def _fields(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {key: (_type(schema), schema.get("default", ...)) for key, schema in properties.items()}


def _type(schema: Mapping[str, Any]) -> Any:
    """The annotation that pydantic drew a schema from."""
    match schema:
        case {"$ref": str(reference)}:
            name = reference.rpartition("/")[2]
            return LIGHT.get(name) or create_model(name, __base__=Strict, **_fields(_READ["$defs"][name]))
        case {"discriminator": {"propertyName": str(key)}, "oneOf": [*parts]}:
            return Annotated[reduce(or_, map(_type, parts)), Field(discriminator=key)]
        case {"anyOf": [*parts]}:
            return reduce(or_, map(_type, parts))
        case {"enum": [*words]}:
            return Literal[tuple(words)]
        case {"const": word}:
            return Literal[word]
    bounds = {BOUNDS[key]: schema[key] for key in BOUNDS if key in schema}
    kind = PLAIN[schema["type"]]
    return Annotated[kind, Field(**bounds)] if bounds else kind
