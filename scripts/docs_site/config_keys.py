"""The keys of a config, read off the models that check it: path, type, default and description."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from selfdistill.config.sections import Strict
from selfdistill.methods.reference import bounds, described

WORDS: Mapping[Any, str] = {int: "whole number", float: "number", str: "text", bool: "true or false"}
DISCRIMINATORS = ("kind", "name")


@dataclass(frozen=True, slots=True)
class Key:
    """One line of the reference; ``path`` is dotted, as ``--set`` takes it."""

    path: str
    type: str
    default: str
    description: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the config. ``of`` names the member of a union, such as ``kind = "math"``."""

    path: str
    of: str
    about: str
    keys: tuple[Key, ...]


def tables(model: type[BaseModel]) -> list[Table]:
    """Return the table of a model and those inside it, outermost first.

    A union of tables gives one table for each member, and a separate one for the keys that they share.
    """
    return list(dict.fromkeys([Table("", "", _about(model), tuple(_keys(model, ""))), *_below(model, "", set())]))


def undescribed(model: type[BaseModel]) -> list[str]:
    """Return the keys whose description is missing or no sentence."""
    return [key.path for table in tables(model) for key in table.keys if not key.description.endswith(".")]


def _below(model: type[BaseModel], path: str, seen: set[tuple[type[BaseModel], ...]]) -> Iterator[Table]:
    """Yield the tables inside a model's; keys that admit the same tables share one entry.

    ``seen`` are unions that have their entries already. Another key that admits one does not repeat them.
    """
    paths_by_models: dict[tuple[type[BaseModel], ...], list[str]] = {}
    for name, field in model.model_fields.items():
        paths_by_models.setdefault(tuple(_models_in(field.annotation)), []).append(_joined(path, name))
    paths_by_models.pop((), None)
    for members, paths in paths_by_models.items():
        if len(members) > 1 and members in seen:
            continue
        seen.add(members)
        joined_paths = ", ".join(paths)
        shared = list(dict.fromkeys(base for member in members if (base := _shared(member))))
        for base in shared:
            yield Table(joined_paths, "", _about(base), tuple(_keys(base, paths[0])))
        for member in members:
            known = {name for base in shared for name in base.model_fields}
            own = tuple(key for key in _keys(member, paths[0]) if key.path.rpartition(".")[2] not in known)
            yield Table(joined_paths, _kind(member) if len(members) > 1 else "", _about(member), own)
        for member in dict.fromkeys([*shared, *members]):
            yield from _below(member, paths[0], seen)


def _keys(model: type[BaseModel], path: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        if name in DISCRIMINATORS and get_origin(field.annotation) is Literal:
            continue
        members = _models_in(field.annotation)
        about = _about(members[0]) if len(members) == 1 and not field.description else described(field)
        bound = bounds(field)
        kind = _type(field.annotation) + (", " + bound.replace(" ", "\u00a0") if bound else "")
        yield Key(_joined(path, name), kind, _default(field), about)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the tables that an annotation admits, through unions and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _shared(model: type[BaseModel]) -> type[BaseModel] | None:
    """Return the table whose keys a table shares with its siblings."""
    base = model.__mro__[1]
    return base if issubclass(base, BaseModel) and base not in (BaseModel, Strict) else None


def _kind(model: type[BaseModel]) -> str:
    for name in DISCRIMINATORS:
        if name in model.model_fields:
            words = get_args(model.model_fields[name].annotation)
            # A task of the user's own is named by its import path.
            return f'{name} = "{words[0] if words else "package.module:Class"}"'
    return ""


def _type(annotation: Any) -> str:
    origin, members = get_origin(annotation), get_args(annotation)
    if annotation in WORDS:
        return WORDS[annotation]
    if origin is Annotated:
        return _type(members[0])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(member)}`" for member in members)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(member) for member in members if member is not type(None)))
    if origin is list:
        return f"list of {_type(members[0])}"
    return "table"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return f"`{_kind(type(value))}`" if _kind(type(value)) else "see below"
    return "unset" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _about(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
