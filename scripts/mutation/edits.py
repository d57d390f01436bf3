"""The mutants of a source file: copies of it with one small change each.

The changes are mutmut's, and some that mutmut lacks and that this project has been fooled by: a statement left out, a
condition that always or never holds, arguments exchanged, a step of a chain of tensor methods left out, one reduction
taken for another. Words for people (docstrings, descriptions, messages of errors) and types are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string, operator_swap_op

SKIPPED = (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom, cst.Raise, cst.Assert, cst.FormattedString)
TYPES = {"Literal", "Annotated", "ClassVar", "Callable", "Mapping", "Sequence", "NDArray", "list", "dict", "tuple"}
STEPS = frozenset(
    "detach clamp clamp_min clamp_max masked_fill nan_to_num abs sqrt square exp log double sort max min sum mean "
    "squeeze repeat_interleave".split()
)
"""Methods that a chain may lose: what remains is a tensor too, so that no crash gives the change away."""
TWINS = {
    "min": "max",
    "max": "min",
    "amin": "amax",
    "amax": "amin",
    "minimum": "maximum",
    "maximum": "minimum",
    "sum": "mean",
    "mean": "sum",
    "all": "any",
    "any": "all",
    "clip_low": "clip_high",
    "clip_high": "clip_low",
}
GUARDS = {"description", "encoding", "strict"}
"""Arguments by name that say nothing of what is computed; ``strict`` of zip catches what types and checks exclude."""
SYMMETRIC = {"min", "max", "minimum", "maximum", "logaddexp", "check_logprobs", "_check_shapes", "zeros", "ones"}
"""Calls that do not mind the order of their arguments."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change. ``scope`` is the outermost function that holds it, by qualified name, and ``line`` its first line;
    both are empty for a change that is made when the module is imported: a default, a constant, a field."""

    file: str
    scope: str
    line: int
    before: str
    after: str
    source: str

    def key(self) -> tuple[str, str, str, str]:
        """What names the change in a ledger, wherever the lines above it move."""
        return self.file, self.scope, self.before, self.after


@dataclass(frozen=True, slots=True)
class _Place:
    scope: str = ""
    line: int = 0
    classes: tuple[str, ...] = ()


def mutants_of(path: Path, file: str) -> list[Mutant]:
    """All mutants of a file that compile, none twice. ``file`` is its name in them."""
    wrapper = MetadataWrapper(cst.parse_module(path.read_text(encoding="utf-8")), unsafe_skip_copy=True)
    module, lines = wrapper.module, wrapper.resolve(PositionProvider)
    found: dict[str, Mutant] = {}
    # Only the statement that holds the change is written anew: a module of 400 lines has a thousand mutants.
    parts = ["".join(map(module.code_for_node, nodes)) for nodes in (module.header, *([each] for each in module.body))]
    whole = "".join(parts)
    for number, statement in enumerate(module.body, start=1):
        for node, new, place in _changes(statement, _Place(), lines):
            changed = new if node is statement else statement.deep_replace(node, new)
            source = "".join([*parts[:number], module.code_for_node(changed), *parts[number + 1 :]])
            if source == whole or source in found or not _compiles(source):
                continue
            found[source] = Mutant(file, place.scope, place.line, *_difference(whole, source), source)
    return list(found.values())


def _changes(node: Any, place: _Place, lines: Any) -> Iterator[tuple[Any, Any, _Place]]:
    """Every node that can be changed, what it becomes, and where it stands."""
    alias = isinstance(node, cst.Assign) and isinstance(node.value, cst.Subscript) and not place.scope
    if alias or _left_alone(node):
        return
    for new in _becomes(node):
        yield node, new, place
    if isinstance(node, cst.ClassDef):
        inside = _Place(place.scope, place.line, (*place.classes, node.name.value))
        yield from _changes(node.body, inside, lines)
    elif isinstance(node, cst.FunctionDef):
        # Defaults are evaluated where the function is defined.
        yield from _changes(node.params, place, lines)
        inside = place
        if not place.scope:
            first = node.decorators[0] if node.decorators else node
            inside = _Place(".".join((*place.classes, node.name.value)), lines[first].start.line)
        yield from _changes(node.body, inside, lines)
    else:
        for child in node.children:
            yield from _changes(child, place, lines)


def _left_alone(node: Any) -> bool:
    match node:
        case cst.Expr(value=cst.SimpleString() | cst.ConcatenatedString()):  # a docstring
            return True
        case cst.Arg(keyword=cst.Name(value=name)) if name in GUARDS:
            return True
        case cst.Subscript(value=cst.Name(value=name)) if name in TYPES:
            return True
        case cst.If(test=cst.Name(value="TYPE_CHECKING")):
            return True
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Name(value="__all__"))]):
            return True
    return isinstance(node, SKIPPED)


def _becomes(node: Any) -> Iterator[Any]:
    for kind, operator in mutation_operators:
        if isinstance(node, kind) and not (operator is operator_swap_op and _last_axis(node)):
            news = operator(node)
            # A word in other letters is as wrong as the word with letters before and behind.
            for new in list(news)[:1] if operator is operator_string else news:
                if _guards(new) == _guards(node):
                    yield new
    yield from _own(node)


def _guards(node: Any) -> list[int]:
    arguments = node.args if isinstance(node, cst.Call) else ()
    return [id(each.value) for each in arguments if each.keyword is not None and each.keyword.value in GUARDS]


def _last_axis(node: Any) -> bool:
    """−1: the axis +1 of a matrix is the same one. Another number makes it −2, which is not."""
    return isinstance(node, cst.UnaryOperation) and getattr(node.expression, "value", "") == "1"


def _own(node: Any) -> Iterator[Any]:
    match node:
        case cst.Expr(value=cst.Call()):
            yield cst.Pass()
        case cst.If() | cst.While():
            test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
            yield node.with_changes(test=cst.BooleanOperation(test, cst.And(), cst.Name("False")))
            if isinstance(node, cst.If) and not _only_raises(node):
                yield node.with_changes(test=cst.BooleanOperation(test, cst.Or(), cst.Name("True")))
        case cst.Call():
            yield from _exchanged(node)
            if isinstance(node.func, cst.Attribute) and node.func.attr.value in STEPS:
                yield node.func.value
            if isinstance(node.func, cst.Name) and node.func.value in TWINS:
                yield node.with_changes(func=cst.Name(TWINS[node.func.value]))
        case cst.Attribute(attr=cst.Name(value=name)) if name in TWINS:
            yield node.with_changes(attr=cst.Name(TWINS[name]))


def _exchanged(call: Any) -> Iterator[Any]:
    """Neighbouring arguments in each other's place: two by position, or two by name."""
    name = call.func.attr if isinstance(call.func, cst.Attribute) else call.func
    if isinstance(name, cst.Name) and name.value in SYMMETRIC:
        return
    for i, (one, other) in enumerate(zip(call.args, call.args[1:], strict=False)):
        if one.star or other.star or (one.keyword is None) != (other.keyword is None):
            continue
        if isinstance(one.value, cst.GeneratorExp) or isinstance(other.value, cst.GeneratorExp):
            continue
        swapped = [one.with_changes(value=other.value), other.with_changes(value=one.value)]
        yield call.with_changes(args=[*call.args[:i], *swapped, *call.args[i + 2 :]])


def _only_raises(node: Any) -> bool:
    match node:
        case cst.If(orelse=None, body=cst.IndentedBlock(body=[cst.SimpleStatementLine(body=[cst.Raise()])])):
            return True
    return False


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _difference(old: str, new: str) -> tuple[str, str]:
    """The lines that differ, each side on one line."""
    before, after = old.splitlines(), new.splitlines()
    while before and after and before[0] == after[0]:
        del before[0], after[0]
    while before and after and before[-1] == after[-1]:
        del before[-1], after[-1]
    return " ".join(line.strip() for line in before), " ".join(line.strip() for line in after)
