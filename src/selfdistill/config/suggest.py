"""Turn a validation error into one sentence: what is wrong, where, and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from selfdistill.config.renamed import RENAMED

EXAMPLES = {"sampler": "vllm", "task": "countdown"}
"""An example of ``kind`` for each table that has several."""
ELSEWHERE = {
    "sampler.servers": 'sampler.servers is for sampler.kind = "vllm", whose servers the run starts itself; the '
    'addresses of servers that you started are sampler.urls of sampler.kind = "server"',
}
"""Keys that belong to another kind than the one that was chosen, and what to write."""
UNTAGGED = ("text", "source", "shipped", "own", "other", "set")
"""Tags of the unions of sources, of tasks and of what is evaluated besides. Pydantic's error locations contain them,
configs do not."""
MEMBERS = ("str", "float", "list[str]", "literal['verifier']")
"""Names of the types in a union of plain values. They end Pydantic's error locations, configs do not have them."""
RAISED = "Value error, "
"""What Pydantic writes before the message of a check that a config makes itself."""
LOGIN = re.compile(r"(?<=//)[^/\s]*@|(?<=['\"/])[^/\s'\":]*:[^/\s'\"]*@")
"""The name and password of a server's URL, also where its scheme is misspelt or missing."""
QUERY = re.compile(r"(?<=://)([^\s'\"?#]*[?#])[^\s'\"]+")
"""What follows the path of a URL, where a key may stand."""


def near(name: str, known: Iterable[str], where: str = "") -> str:
    """``did you mean 'steps'?``, or nothing if no known name is similar."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {where + close[0]!r}?" if close else ""


def choices(name: str, known: Iterable[str], word: str = "known") -> str:
    """The nearest known name, if one is similar, and all of them: ``did you mean 'test'? known: train, test``."""
    listed = list(known)
    return f"{near(name, listed)} {word}: {', '.join(listed)}".lstrip()


def suggest(error: ValidationError, model: type[BaseModel]) -> str:
    """The message for the first error of a table checked by ``model``; a misspelt key comes before all others."""
    first = min(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
    given, kind = first["input"], first["type"]
    *parents, last = first["loc"] or ("",)
    path, known = _keys_at(parents, model)
    where = ".".join([*path, ""])
    if kind == "extra_forbidden":
        name = where + str(last)
        if name in RENAMED:
            return f"{name!r} is now called {RENAMED[name]!r}"
        if name in ELSEWHERE:
            return ELSEWHERE[name]
        return f"unknown key {name!r}; {near(str(last), known, where) or 'known there: ' + ', '.join(known)}"
    if kind == "literal_error" and isinstance(last, int) and isinstance(given, str):
        words = re.findall("'([^']*)'", first["ctx"]["expected"])
        hint = near(given, words) or f"known: {', '.join(words)}"
        return f"{where.removesuffix('.')}: unknown name {given!r}; {hint}"
    where = ".".join(_keys_at(first["loc"], model)[0])
    if kind == "union_tag_not_found":
        return f'{where}: no kind; write for example {where}.kind = "{EXAMPLES[where]}"'
    if kind == "union_tag_invalid":
        # Only Python code has a task that is an object.
        kinds = [word for word in re.findall("'([^']*)'", first["ctx"]["expected_tags"]) if word != "object"]
        return f"{where}: unknown kind {first['ctx']['tag']!r}; {choices(first['ctx']['tag'], kinds)}"
    # A server's URL may hold a password, and the value may be a long table.
    value, message = without_keys(repr(given)), without_keys(first["msg"].removeprefix(RAISED))
    value_note = "" if kind == "missing" else f" (got {value:.80})"
    return f"{where or 'the config'}: {message[0].lower()}{message[1:]}{value_note}{nearest_choice(first)}"


def without_keys(text: str) -> str:
    """A text without the logins and queries of the URLs in it."""
    return QUERY.sub(r"\1…", LOGIN.sub("", text))


def nearest_choice(error: ErrorDetails) -> str:
    """``; did you mean 'reverse_kl'?`` for a word that is none of those that are allowed; else nothing."""
    context = error.get("ctx", {})
    given, expected = context.get("tag", error["input"]), context.get("expected", context.get("expected_tags", ""))
    hint = near(given, re.findall("'([^']*)'", str(expected))) if isinstance(given, str) else ""
    return f"; {hint}" if hint else ""


def _keys_at(loc: Sequence[str | int], model: type[BaseModel]) -> tuple[list[str], list[str]]:
    """The path of keys of a pydantic error location, without union tags, and the keys known there."""
    path: list[str] = []
    models = [model]
    for part in loc:
        members = [m for m in models if "kind" in m.model_fields and part in get_args(_type(m, "kind"))]
        if len(models) > 1 and members:
            models = members
        elif isinstance(part, int):
            # An index of a list: the models of its elements are known from the list.
            path.append(str(part))
        elif part in MEMBERS and part == loc[-1] and path[-2:-1] != ["fields"]:
            continue
        elif not models or part not in UNTAGGED:
            path.append(part)
            models = [below for m in models if part in m.model_fields for below in _models(_type(m, part))]
    return path, list(dict.fromkeys(key for m in models for key in m.model_fields))


def _type(model: type[BaseModel], key: str) -> Any:
    return model.model_fields[key].annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    """All models in a type, those of its unions included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
