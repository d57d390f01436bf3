"""The mutants of a source file: copies of it with one small change each.

The changes are mutmut's, and some that mutmut lacks although this project's tests have missed them: a deleted
statement, a condition that always or never holds, exchanged arguments, a deleted step in a chain of tensor methods, one
reduction in place of another. Text for people (docstrings, descriptions, error messages) and types are not changed.
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
"""Methods that are deleted from a chain. The rest is still a tensor, so the mutant does not simply crash."""
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
"""Keyword arguments without effect on results; ``strict`` of zip catches only what types and checks exclude."""
SYMMETRIC = {"min", "max", "minimum", "maximum", "logaddexp", "check_logprobs", "_check_shapes", "zeros", "ones"}
"""Calls whose result does not depend on the order of their arguments."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change.

    ``scope`` is the qualified name of the outermost function around the change, and ``line`` is its first line. Both
    are empty for a change that takes effect at import: a default, a constant, a field.
    """

    file: str
    scope: str
    line: int
    before: str
    after: str
    source: str

    def key(self) -> tuple[str, str, str, str]:
        """The key of the change in a ledger. It contains no line number, so edits above the change do not alter it."""
        return self.file, self.scope, self.before, self.after


@dataclass(frozen=True, slots=True)
class _Position:
    scope: str = ""
    line: int = 0
    classes: tuple[str, ...] = ()


def mutants_of(path: Path, file: str) -> list[Mutant]:
    """Return all mutants of a file that compile, without duplicates. ``file`` is the file's name in the mutants."""
    wrapper = MetadataWrapper(cst.parse_module(path.read_text(encoding="utf-8")), unsafe_skip_copy=True)
    module, lines = wrapper.module, wrapper.resolve(PositionProvider)
    mutants: dict[str, Mutant] = {}
    # Only the changed statement is generated again, because a module of 400 lines has a thousand mutants.
    parts = ["".join(map(module.code_for_node, nodes)) for nodes in (module.header, *([each] for each in module.body))]
    whole = "".join(parts)
    for number, statement in enumerate(module.body, start=1):
        for node, new, position in _changes(statement, _Position(), lines):
            changed = new if node is statement else statement.deep_replace(node, new)
            source = "".join([*parts[:number], module.code_for_node(changed), *parts[number + 1 :]])
            if source == whole or source in mutants or not _compiles(source):
                continue
            mutants[source] = Mutant(file, position.scope, position.line, *_difference(whole, source), source)
    return list(mutants.values())


def _changes(node: Any, position: _Position, lines: Any) -> Iterator[tuple[Any, Any, _Position]]:
    """Yield every node that can be changed, with its replacement and its position."""
    alias = isinstance(node, cst.Assign) and isinstance(node.value, cst.Subscript) and not position.scope
    if alias or _left_alone(node):
        return
    for new in _becomes(node):
        yield node, new, position
    if isinstance(node, cst.ClassDef):
        inner = _Position(position.scope, position.line, (*position.classes, node.name.value))
        yield from _changes(node.body, inner, lines)
    elif isinstance(node, cst.FunctionDef):
        # Defaults are evaluated where the function is defined.
        yield from _changes(node.params, position, lines)
        inner = position
        if not position.scope:
            first = node.decorators[0] if node.decorators else node
            inner = _Position(".".join((*position.classes, node.name.value)), lines[first].start.line)
        yield from _changes(node.body, inner, lines)
    else:
        for child in node.children:
            yield from _changes(child, position, lines)


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
            # One changed string suffices: a string in other letters is as wrong as one with added letters.
            for new in list(news)[:1] if operator is operator_string else news:
                if _guards(new) == _guards(node):
                    yield new
    yield from _own(node)


def _guards(node: Any) -> list[int]:
    arguments = node.args if isinstance(node, cst.Call) else ()
    return [id(each.value) for each in arguments if each.keyword is not None and each.keyword.value in GUARDS]


def _last_axis(node: Any) -> bool:
    """Whether the node is −1. Axis +1 of a matrix is the same axis, so only the change to −2 is kept."""
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
    """Exchange two neighbouring arguments, both positional or both by keyword."""
    name = call.func.attr if isinstance(call.func, cst.Attribute) else call.func
    if isinstance(name, cst.Name) and name.value in SYMMETRIC:
        return
    for i, (first, second) in enumerate(zip(call.args, call.args[1:], strict=False)):
        if first.star or second.star or (first.keyword is None) != (second.keyword is None):
            continue
        if isinstance(first.value, cst.GeneratorExp) or isinstance(second.value, cst.GeneratorExp):
            continue
        swapped = [first.with_changes(value=second.value), second.with_changes(value=first.value)]
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
    """Return the lines that differ, each side joined into one line."""
    before, after = old.splitlines(), new.splitlines()
    while before and after and before[0] == after[0]:
        del before[0], after[0]
    while before and after and before[-1] == after[-1]:
        del before[-1], after[-1]
    return " ".join(line.strip() for line in before), " ".join(line.strip() for line in after)
