"""One sentence for what a config may not hold: what is wrong, where, and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from selfdistill.config.renamed import RENAMED

EXAMPLES = {"sampler": "vllm", "task": "countdown"}
"""A kind of each table that comes in several kinds."""
UNTAGGED = ("text", "source")
"""Steps into a source of rows, which is a path or a table: they stand in pydantic's errors and in no config."""
LOGIN = re.compile(r"(?<=//)[^/\s]*@|(?<=['\"/])[^/\s'\":]*:[^/\s'\"]*@")
"""The name and password of a server's URL, also where its scheme is misspelt or missing."""


def near(name: str, known: Iterable[str], where: str = "") -> str:
    """``did you mean 'steps'?``, or nothing where no known name is like this one."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {where + close[0]!r}?" if close else ""


def suggest(error: ValidationError, model: type[BaseModel]) -> str:
    """The sentence for the first error of a table checked by ``model``; a misspelt key comes before all others."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    given, kind = first["input"], first["type"]
    *above, last = first["loc"] or ("",)
    path, known = _place(above, model)
    where = ".".join([*path, ""])
    if kind == "extra_forbidden":
        name = where + str(last)
        if name in RENAMED:
            return f"{name!r} is now called {RENAMED[name]!r}"
        return f"unknown key {name!r}; {near(str(last), known, where) or 'known there: ' + ', '.join(known)}"
    if kind == "literal_error" and isinstance(last, int) and isinstance(given, str):
        words = re.findall("'([^']*)'", first["ctx"]["expected"])
        hint = near(given, words) or f"known: {', '.join(words)}"
        return f"{where.removesuffix('.')}: unknown name {given!r}; {hint}"
    where = ".".join(_place(first["loc"], model)[0])
    if kind == "union_tag_not_found":
        return f'{where}: no kind; write for example {where}.kind = "{EXAMPLES[where]}"'
    if kind == "union_tag_invalid":
        return f"{where}: unknown kind {first['ctx']['tag']!r}; known: {first['ctx']['expected_tags']}"
    # A server's URL may hold a password. What is no table at all has no place; what is one may be long.
    shown, message = LOGIN.sub("", repr(given)), LOGIN.sub("", first["msg"])
    got = "" if kind == "missing" else f" (got {shown:.80})"
    return f"{where or 'the config'}: {message[0].lower()}{message[1:]}{got}"


def _place(loc: Sequence[str | int], model: type[BaseModel]) -> tuple[list[str], list[str]]:
    """The keys that lead to a place of pydantic's, without the names of union members, and the keys known there."""
    path: list[str] = []
    found = [model]
    for step in loc:
        members = [one for one in found if "kind" in one.model_fields and step in get_args(_type(one, "kind"))]
        if len(found) > 1 and members:
            found = members
        elif not found or step not in UNTAGGED:
            path.append(str(step))
            found = [below for one in found if step in one.model_fields for below in _models(_type(one, str(step)))]
    return path, list(dict.fromkeys(key for one in found for key in one.model_fields))


def _type(model: type[BaseModel], key: str) -> Any:
    return model.model_fields[key].annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    """All models in a type, those of its unions included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
