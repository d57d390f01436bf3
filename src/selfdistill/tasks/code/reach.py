"""What test code says before it is run: whether it reaches a check, what it takes from outside, what it asks for.

A row is refused here, with its line, where its tests are no Python or use what the sandbox does not have. Where it is
``"surely"`` that code which raises nothing reaches a check, the row's own solution need not be run to know it.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from selfdistill.errors import DataError
from selfdistill.sandbox.frameworks import PYTEST, REFUSED, UNTRACEABLE
from selfdistill.sandbox.rewriting import is_check, last_name, own_nodes

Reach = Literal["surely", "perhaps", "never"]

PACKAGES = frozenset(
    "attr flaky freezegun hypothesis mock networkx nose numpy pandas parameterized requests scipy sklearn sympy "
    "tensorflow torch".split()
)
"""Packages that tests import, so that their names are not taken for the module under test."""

_LEAVES = {"exit", "quit", "_exit", "skip", "skipTest"}
# Python reads no integer of more than 4300 digits, and which one stands in a test does not matter here.
_LONG = re.compile(r"(?<![\w.])\d{4000,}(?![\w.])")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Reading:
    """What stands in a module of test code."""

    reach: Reach = "surely"
    """Whether a check on the candidate is reached by code that raises nothing."""
    wants_entry: bool = False
    """Whether the tests take the function from outside: a ``check(candidate)`` that nobody calls."""
    packages: tuple[str, ...] = ()
    """Those of ``PACKAGES`` that are imported."""
    called: frozenset[str] = frozenset()
    """Names of the code under test that the tests use."""


def read_test_code(code: str, setup: str, *, entry: str, place: str) -> Reading:
    """Read a module of test code; ``entry`` is the name of the function under test where the row has one.

    Raises:
        DataError: it is no Python, or uses what cannot be run; ``place`` says where it stands.
    """
    tree, before = _parsed(code, f"{place}: the tests"), _parsed(setup, f"{place}: the code that the tests need")
    module = _Module(tree, before, entry)
    trouble = next(module.unsupported(), None)
    if trouble is not None:
        raise DataError(f"{place}: {trouble}")
    reach: Reach = "perhaps" if module.may_check() else "never"
    if reach == "perhaps" and module.surely_checks():
        reach = "surely"
    return Reading(reach, module.wants_entry, tuple(sorted(PACKAGES & module.imported_modules)), module.called)


def likely_entry(*, prefix: str, starter: str, question: str, solution: str) -> tuple[str, bool]:
    """The function that tests most likely mean, and whether a completion can know its name.

    It is the last one that the code in front or the question declares, else the only one of the solution. Empty where
    there is none; a completion that cannot know the name may define one function of any name.
    """
    for shown in (prefix, starter, question):
        declared = re.findall(r"^[ \t]*(?:async[ \t]+)?def[ \t]+(\w+)[ \t]*\(", shown, re.MULTILINE)
        declared = declared or re.findall(r"\bdef (\w+)\(", shown)
        if declared:
            return declared[-1], True
    defined = defined_functions(solution)
    told = [name for name in defined if re.search(rf"\b{name}\b", question)]
    for names in (told, defined):
        if len(names) == 1:
            return names[0], names is told
    return "", False


def defined_functions(code: str) -> list[str]:
    """Names of the functions that code defines at its top, in order; none where it is no Python."""
    try:
        tree = ast.parse(_LONG.sub("1", code))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [one.name for one in tree.body if isinstance(one, _Function)]


def _parsed(code: str, what: str) -> ast.Module:
    try:
        return ast.parse(_LONG.sub("1", code))
    except SyntaxError as error:
        raise DataError(f"{what} are no Python: {error.msg} (their line {error.lineno})") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{what} cannot be read as Python: {error}") from error


class _Module:
    """A module of test code, and the names in it that mean the code under test."""

    def __init__(self, tree: ast.Module, setup: ast.Module, entry: str) -> None:
        self._tree = tree
        self._nodes = [*ast.walk(tree)]
        everything = [*ast.walk(setup), *self._nodes]
        self._functions: dict[str, list[_Function]] = {}
        for one in everything:
            if isinstance(one, _Function):
                self._functions.setdefault(one.name, []).append(one)
        self._fixtures = {one.name for one in self._all_functions() if _decorators(one, "fixture")}
        imports = [one for one in everything if isinstance(one, ast.Import | ast.ImportFrom)]
        self.imported_modules = {top for one in imports for top in _modules(one)}
        # Python has modules of these names too, but tests mean the code under test.
        here = {*sys.stdlib_module_names, *PACKAGES, "pytest"} - {"code", "test", "__main__"}
        ours = [one for one in imports if not all(top in here for top in _modules(one))]
        foreign = {alias.asname or alias.name.partition(".")[0] for one in ours for alias in one.names}
        self._library = {alias.asname or alias.name for one in imports if one not in ours for alias in one.names}
        bound = {one.id for one in everything if isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load)}
        bound |= {one.arg for one in everything if isinstance(one, ast.arg)} | {*self._functions, *self._library}
        bound |= {one.name for one in everything if isinstance(one, ast.ClassDef)}
        self._read = {one.id for one in self._nodes if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)}
        own = {one.name for one in tree.body if isinstance(one, _Function)}
        self._takes = "check" in own and "check" not in self._read
        given = any("candidate" in _arguments(one) for one in self._collected())
        self.wants_entry = self._takes or given or ("candidate" in self._read and "candidate" not in bound)
        self._given = {"candidate", entry} - {""}
        self.called = frozenset({*foreign, entry, *(self._read - bound - vars(builtins).keys())} - {"", "candidate"})
        self._candidates = {*foreign, *self._given, *(self._read - bound - vars(builtins).keys())}

    def unsupported(self) -> Iterator[str]:
        """What cannot be run, a sentence each."""
        imported = [one for node in self._nodes if isinstance(node, ast.Import) for one in node.names]
        pytest = {one.asname or one.name for one in imported if one.name == "pytest"}
        for node in self._nodes:
            match node:
                case ast.ImportFrom(module="pytest", names=names):
                    wanted = [one.name for one in names]
                case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in pytest:
                    wanted = [name]
                case ast.Attribute(value=owner, attr=name) if last_name(owner) == "mark" and name in REFUSED:
                    yield f"the tests use pytest.mark.{name}, which is not supported"
                    continue
                case ast.Call(keywords=keywords) if last_name(node) in ("fixture", "parametrize"):
                    for one in keywords:
                        if one.arg in ("autouse", "params", "indirect"):
                            yield f"the tests use {one.arg} of pytest.{last_name(node)}, which is not supported"
                    continue
                case ast.Attribute(attr=name) | ast.Name(id=name) if name in {*UNTRACEABLE, "IsolatedAsyncioTestCase"}:
                    yield f"the tests use unittest's {name}, which is not supported"
                    continue
                case _:
                    continue
            for name in wanted:
                if name not in PYTEST:
                    yield f"the tests use pytest.{name}, which is not supported"
        for function, holder in self._tests():
            if isinstance(function, ast.AsyncFunctionDef):
                yield f"the test {function.name} is asynchronous, which is not supported"
            known = _parametrized(function) | (_parametrized(holder) if holder else set())
            missing = [name for name in _arguments(function) if name not in {*known, *self._fixtures, *self._given}]
            if missing and None not in known:
                yield f"the test {function.name} asks for {missing[0]!r}, which no fixture of the tests gives"

    def may_check(self) -> bool:
        """Whether a check stands in code that is run, and the code under test is named at all."""
        if not self._candidates & self._read and not self._takes and not self.wants_entry:
            return False
        todo: list[ast.AST] = [one for one in self._tree.body if not isinstance(one, _Function | ast.ClassDef)]
        todo += [function for function, _ in self._tests()]
        todo += self._functions["check"] if self._takes else []
        # Somebody else's decorator may call what it is given; a base class may hold tests.
        todo += [one for one in self._all_functions() if one.decorator_list]
        todo += [one for owner in self._tree.body if isinstance(owner, ast.ClassDef) for one in owner.body]
        seen: set[int] = set()
        while todo:
            top = todo.pop()
            if id(top) in seen:
                continue
            seen.add(id(top))
            inside = top.body if isinstance(top, _Function) else [top]
            for node in own_nodes(inside):
                if self._checks(node):
                    return True
                if isinstance(node, ast.Lambda):
                    todo.append(node.body)
                todo += self._functions.get(last_name(node), []) if isinstance(node, ast.Name | ast.Attribute) else []
        return False

    def surely_checks(self) -> bool:
        """Whether a check on the candidate stands where nothing can lead past it."""
        if self._sure(self._tree.body, self._candidates, ()):
            return True
        if self._takes and self._sure_function(self._functions["check"][-1], ()):
            return True
        for function, owner in self._tests():
            plain = owner is None or not (owner.decorator_list or owner.bases)
            case = owner is not None and [last_name(base) for base in owner.bases] == ["TestCase"]
            if (plain or case) and _runs(function) and self._sure_function(function, ()):
                return True
        return False

    def _sure_function(self, function: _Function, inside: tuple[str, ...]) -> bool:
        names = {*self._candidates, *(_arguments(function)[:1] if function.name == "check" else ())}
        return function.name not in inside and self._sure(function.body, names, (*inside, function.name))

    def _sure(self, statements: Sequence[ast.stmt], names: set[str], inside: tuple[str, ...]) -> bool:
        """Whether running statements in order asks the candidate and then reaches a check."""
        asked = False
        for one in statements:
            asked = asked or any(_root(node) in names for node in own_nodes([one]) if isinstance(node, ast.Call))
            match one:
                case ast.Assert() | ast.If() if is_check(one) and asked:
                    return True
                case ast.Expr(value=ast.Call(func=ast.Name(id=name))) if name in self._functions:
                    if self._sure_function(self._functions[name][-1], inside):
                        return True
                case ast.Expr(value=ast.Call(func=ast.Attribute()) as call) if asked and self._checks(call):
                    return True
                case ast.With(items=items, body=body):
                    counts = asked and any(self._checks(item.context_expr) for item in items)
                    if counts or self._sure(body, names, inside):
                        return True
                case ast.If(test=test, body=body) if ast.unparse(test) == "__name__ == '__main__'":
                    if self._sure(body, names, inside):
                        return True
                    continue
                case ast.For(iter=ast.List(elts=[_, *_]) | ast.Tuple(elts=[_, *_]), body=body):
                    if self._sure(body, names, inside):
                        return True
            if any(isinstance(node, ast.Return | ast.Raise) or _leaves(node) for node in own_nodes([one])):
                return False
        return False

    def _checks(self, node: ast.AST) -> bool:
        """Whether a node is a check that the judge counts: a function of the candidate's own is none."""
        if isinstance(node, ast.Call):
            by_name = isinstance(node.func, ast.Name)
            return is_check(node) and (_root(node) in self._library if by_name else _root(node) not in self._candidates)
        return is_check(node)

    def _collected(self) -> list[_Function]:
        """Functions that pytest would call and the module itself does not."""
        found = [one for one in self._tree.body if isinstance(one, _Function) and one.name.startswith("test")]
        return [one for one in found if one.name not in self._read and one.name not in self._fixtures]

    def _tests(self) -> Iterator[tuple[_Function, ast.ClassDef | None]]:
        yield from ((one, None) for one in self._collected())
        for owner in self._tree.body:
            if isinstance(owner, ast.ClassDef) and (owner.bases or owner.name.startswith("Test")):
                methods = [one for one in owner.body if isinstance(one, _Function) and one.name.startswith("test")]
                yield from ((one, owner) for one in methods)

    def _all_functions(self) -> Iterator[_Function]:
        return (one for several in self._functions.values() for one in several)


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The top modules of an import; empty texts for a relative one."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return ["" if node.level else (node.module or "").partition(".")[0]]


def _root(node: ast.AST) -> str:
    """``"a"`` of ``a.b(c).d(e)``."""
    while isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _leaves(node: ast.AST) -> bool:
    return isinstance(node, ast.Break | ast.Continue) or (isinstance(node, ast.Call) and last_name(node) in _LEAVES)


def _arguments(function: _Function) -> list[str]:
    """Arguments that have no default, but the object of a method."""
    named = [*function.args.posonlyargs, *function.args.args]
    needed = named[: len(named) - len(function.args.defaults)] if function.args.defaults else named
    return [one.arg for one in needed if one.arg not in ("self", "cls")]


def _decorators(node: _Function | ast.ClassDef, name: str) -> list[ast.expr]:
    return [one for one in node.decorator_list if last_name(one) == name]


def _parametrized(node: _Function | ast.ClassDef) -> set[str | None]:
    """Arguments that tables give; None where a table's names are not literal, and for a decorator of unknown effect."""
    found: set[str | None] = set()
    for one in node.decorator_list:
        match one:
            case ast.Call(args=[ast.Constant(value=str(names)), *_]) if last_name(one) == "parametrize":
                found |= {name.strip() for name in names.split(",")}
            case ast.Call(args=[ast.List(elts=names) | ast.Tuple(elts=names), *_]) if last_name(one) == "parametrize":
                found |= {str(name.value) for name in names if isinstance(name, ast.Constant)}
            case _ if last_name(one) in ("patch", "object", "dict", "parametrize", "given"):
                found.add(None)
    return found


def _runs(function: _Function) -> bool:
    """Whether a test is run at least once, whatever decorates it."""
    for one in function.decorator_list:
        match one:
            case ast.Call(args=[_, ast.List(elts=[_, *_]) | ast.Tuple(elts=[_, *_]), *_]) if (
                last_name(one) == "parametrize"
            ):
                continue
        return False
    return True
