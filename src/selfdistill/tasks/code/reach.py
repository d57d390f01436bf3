"""Static analysis of test code: whether it reaches a check, which names it needs, which packages it imports.

A row is refused, with its line, if its tests are not Python or use features that the sandbox does not support. If the
analysis shows that code without exceptions ``"surely"`` reaches a check, the row's own solution need not be run.
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
from selfdistill.sandbox.frameworks import PYTEST, UNTRACEABLE
from selfdistill.sandbox.rewriting import is_check, last_name, own_nodes

Reach = Literal["surely", "perhaps", "never"]

PACKAGES = frozenset(
    "attr flaky freezegun hypothesis mock networkx nose numpy pandas parameterized requests scipy sklearn sympy "
    "tensorflow torch".split()
)
"""Packages that tests import. Their names do not mean the module under test."""

_LEAVES = {"exit", "quit", "_exit", "skip", "skipTest"}
# Python parses no integer of more than 4300 digits, and the value does not matter here.
_LONG = re.compile(r"(?<![\w.])\d{4000,}(?![\w.])")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Reading:
    """The analysis of a module of test code."""

    reach: Reach = "surely"
    """Whether a program that raises no exception reaches a check on the candidate."""
    wants_entry: bool = False
    """Whether the function is passed to the tests: they define ``check(candidate)`` and do not call it."""
    packages: tuple[str, ...] = ()
    """The imported packages among ``PACKAGES``."""
    called: frozenset[str] = frozenset()
    """Names of the code under test that the tests use."""


def read_test_code(code: str, setup: str, *, entry: str, location: str) -> Reading:
    """Analyse a module of test code. ``entry`` is the name of the function under test, or empty.

    Raises:
        DataError: the code is not Python, or uses an unsupported feature. The message begins with ``location``.
    """
    tree, before = _parsed(code, f"{location}: the tests"), _parsed(setup, f"{location}: the code that the tests need")
    module = _Module(tree, before, entry)
    trouble = next(module.unsupported(), None)
    if trouble is not None:
        raise DataError(f"{location}: {trouble}")
    reach: Reach = "perhaps" if module.may_check() else "never"
    if reach == "perhaps" and module.surely_checks():
        reach = "surely"
    return Reading(reach, module.wants_entry, tuple(sorted(PACKAGES & module.imported_modules)), module.called)


def likely_entry(*, prefix: str, starter: str, question: str, solution: str) -> tuple[str, bool]:
    """The function that the tests most likely call, and whether a completion can know its name.

    It is the last function declared in the prefix, the starter code or the question, else the only function of the
    solution. The name is empty if there is none. If a completion cannot know the name, it may define one function of
    any name.
    """
    for text in (prefix, starter, question):
        declared = re.findall(r"^[ \t]*(?:async[ \t]+)?def[ \t]+(\w+)[ \t]*\(", text, re.MULTILINE)
        declared = declared or re.findall(r"\bdef (\w+)\(", text)
        if declared:
            return declared[-1], True
    defined = defined_functions(solution)
    named = [name for name in defined if re.search(rf"\b{name}\b", question)]
    for names in (named, defined):
        if len(names) == 1:
            return names[0], names is named
    return "", False


def defined_functions(code: str) -> list[str]:
    """Names of the top-level functions in order. Empty if the code is not Python."""
    try:
        tree = ast.parse(_LONG.sub("1", code))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [statement.name for statement in tree.body if isinstance(statement, _Function)]


def _parsed(code: str, label: str) -> ast.Module:
    try:
        return ast.parse(_LONG.sub("1", code))
    except SyntaxError as error:
        raise DataError(f"{label} are no Python: {error.msg} (their line {error.lineno})") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{label} cannot be read as Python: {error}") from error


class _Module:
    """A module of test code, and the names in it that refer to the code under test."""

    def __init__(self, tree: ast.Module, setup: ast.Module, entry: str) -> None:
        self._tree = tree
        self._nodes = [*ast.walk(tree)]
        everything = [*ast.walk(setup), *self._nodes]
        self._functions: dict[str, list[_Function]] = {}
        for node in everything:
            if isinstance(node, _Function):
                self._functions.setdefault(node.name, []).append(node)
        self._fixtures = {
            node.name
            for node in self._all_functions()
            if any(last_name(decorator) == "fixture" for decorator in node.decorator_list)
        }
        imports = [node for node in everything if isinstance(node, ast.Import | ast.ImportFrom)]
        self.imported_modules = {top for node in imports for top in _modules(node)}
        # Python has modules named code, test and __main__ too, but tests mean the code under test.
        libraries = {*sys.stdlib_module_names, *PACKAGES, "pytest"} - {"code", "test", "__main__"}
        ours = [node for node in imports if not all(top in libraries for top in _modules(node))]
        foreign = {alias.asname or alias.name.partition(".")[0] for node in ours for alias in node.names}
        self._library = {alias.asname or alias.name for node in imports if node not in ours for alias in node.names}
        bound = {node.id for node in everything if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
        bound |= {node.arg for node in everything if isinstance(node, ast.arg)} | {*self._functions, *self._library}
        bound |= {node.name for node in everything if isinstance(node, ast.ClassDef)}
        self._read = {node.id for node in self._nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        functions = {node.name for node in tree.body if isinstance(node, _Function)}
        self._takes = "check" in functions and "check" not in self._read
        takes_candidate = any("candidate" in _arguments(node) for node in self._collected())
        self.wants_entry = self._takes or takes_candidate or ("candidate" in self._read and "candidate" not in bound)
        self._given = {"candidate", entry} - {""}
        self._candidates = {*foreign, *self._given, *(self._read - bound - vars(builtins).keys())}
        self.called = frozenset(self._candidates - {"candidate"})

    def unsupported(self) -> Iterator[str]:
        """Unsupported features of the tests, one sentence each."""
        imported = [alias for node in self._nodes if isinstance(node, ast.Import) for alias in node.names]
        pytest = {alias.asname or alias.name for alias in imported if alias.name == "pytest"}
        for node in self._nodes:
            match node:
                case ast.ImportFrom(module="pytest", names=names):
                    pytest_names = [alias.name for alias in names]
                case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in pytest:
                    pytest_names = [name]
                # The sandbox runs a fixture only for an argument that names it.
                case ast.Attribute(value=owner, attr="usefixtures") if last_name(owner) == "mark":
                    yield "the tests use pytest.mark.usefixtures, which is not supported"
                    continue
                case ast.Call(keywords=keywords) if last_name(node) in ("fixture", "parametrize"):
                    for keyword in keywords:
                        if keyword.arg in ("autouse", "params", "indirect"):
                            yield f"the tests use {keyword.arg} of pytest.{last_name(node)}, which is not supported"
                    continue
                # pytest evaluates a condition in quotes, and fails a test that raises anything but ``raises``.
                case ast.Call(args=args, keywords=keywords) if last_name(node) in ("skipif", "xfail"):
                    conditions = [*args, *(keyword.value for keyword in keywords if keyword.arg == "condition")]
                    if any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in conditions):
                        yield f"the tests quote a condition of pytest.mark.{last_name(node)}, which is not supported"
                    if any(keyword.arg == "raises" for keyword in keywords):
                        yield "the tests use raises of pytest.mark.xfail, which is not supported"
                    continue
                case ast.Attribute(attr=name) | ast.Name(id=name) if name in {*UNTRACEABLE, "IsolatedAsyncioTestCase"}:
                    yield f"the tests use unittest's {name}, which is not supported"
                    continue
                case _:
                    continue
            for name in pytest_names:
                if name not in PYTEST:
                    yield f"the tests use pytest.{name}, which is not supported"
        for function, holder in self._tests():
            if isinstance(function, ast.AsyncFunctionDef):
                yield f"the test {function.name} is asynchronous, which is not supported"
            available = _parametrized(function) | (_parametrized(holder) if holder else set())
            missing = [name for name in _arguments(function) if name not in {*available, *self._fixtures, *self._given}]
            if missing and None not in available:
                yield f"the test {function.name} asks for {missing[0]!r}, which no fixture of the tests gives"

    def may_check(self) -> bool:
        """Whether executed code contains a check and names the code under test."""
        if not self._candidates & self._read and not self._takes and not self.wants_entry:
            return False
        pending: list[ast.AST] = [
            statement for statement in self._tree.body if not isinstance(statement, _Function | ast.ClassDef)
        ]
        pending += [function for function, _ in self._tests()]
        pending += self._functions["check"] if self._takes else []
        # A library's decorator may call its function, and a base class may contain tests.
        pending += [statement for statement in self._all_functions() if statement.decorator_list]
        pending += [
            statement for owner in self._tree.body if isinstance(owner, ast.ClassDef) for statement in owner.body
        ]
        visited: set[int] = set()
        while pending:
            top = pending.pop()
            if id(top) in visited:
                continue
            visited.add(id(top))
            inside = top.body if isinstance(top, _Function) else [top]
            for node in own_nodes(inside):
                if self._checks(node):
                    return True
                if isinstance(node, ast.Lambda):
                    pending.append(node.body)
                pending += (
                    self._functions.get(last_name(node), []) if isinstance(node, ast.Name | ast.Attribute) else []
                )
        return False

    def surely_checks(self) -> bool:
        """Whether every path through the tests reaches a check on the candidate."""
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
        """Whether running the statements in order calls the candidate and then reaches a check."""
        called = False
        for statement in statements:
            called = called or any(
                _root(node) in names for node in own_nodes([statement]) if isinstance(node, ast.Call)
            )
            match statement:
                case ast.Assert() | ast.If() if is_check(statement) and called:
                    return True
                case ast.Expr(value=ast.Call(func=ast.Name(id=name))) if name in self._functions:
                    if self._sure_function(self._functions[name][-1], inside):
                        return True
                case ast.Expr(value=ast.Call(func=ast.Attribute()) as call) if called and self._checks(call):
                    return True
                case ast.With(items=items, body=body):
                    counts = called and any(self._checks(item.context_expr) for item in items)
                    if counts or self._sure(body, names, inside):
                        return True
                case ast.If(test=test, body=body) if ast.unparse(test) == "__name__ == '__main__'":
                    if self._sure(body, names, inside):
                        return True
                    continue
                case ast.For(iter=ast.List(elts=[_, *_]) | ast.Tuple(elts=[_, *_]), body=body):
                    if self._sure(body, names, inside):
                        return True
            for node in own_nodes([statement]):
                exits = isinstance(node, ast.Call) and last_name(node) in _LEAVES
                if exits or isinstance(node, ast.Return | ast.Raise | ast.Break | ast.Continue):
                    return False
        return False

    def _checks(self, node: ast.AST) -> bool:
        """Whether a node is a check that the judge counts. A function of the candidate's own does not count."""
        if isinstance(node, ast.Call):
            by_name = isinstance(node.func, ast.Name)
            return is_check(node) and (_root(node) in self._library if by_name else _root(node) not in self._candidates)
        return is_check(node)

    def _collected(self) -> list[_Function]:
        """Test functions that pytest would call and the module itself does not call."""
        tests = [
            function
            for function in self._tree.body
            if isinstance(function, _Function) and function.name.startswith("test")
        ]
        return [
            function for function in tests if function.name not in self._read and function.name not in self._fixtures
        ]

    def _tests(self) -> Iterator[tuple[_Function, ast.ClassDef | None]]:
        yield from ((function, None) for function in self._collected())
        for owner in self._tree.body:
            if isinstance(owner, ast.ClassDef) and (owner.bases or owner.name.startswith("Test")):
                methods = [
                    function
                    for function in owner.body
                    if isinstance(function, _Function) and function.name.startswith("test")
                ]
                yield from ((function, owner) for function in methods)

    def _all_functions(self) -> Iterator[_Function]:
        return (function for functions in self._functions.values() for function in functions)


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The top-level modules of an import; empty texts for a relative one."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return ["" if node.level else (node.module or "").partition(".")[0]]


def _root(node: ast.AST) -> str:
    """The name at the root of an expression: ``"a"`` of ``a.b(c).d(e)``."""
    while isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _arguments(function: _Function) -> list[str]:
    """Arguments without a default, except ``self`` and ``cls``."""
    named = [*function.args.posonlyargs, *function.args.args]
    needed = named[: len(named) - len(function.args.defaults)] if function.args.defaults else named
    return [argument.arg for argument in needed if argument.arg not in ("self", "cls")]


def _parametrized(node: _Function | ast.ClassDef) -> set[str | None]:
    """Arguments given by parametrize tables. Contains None for non-literal names and decorators of unknown effect."""
    provided: set[str | None] = set()
    for decorator in node.decorator_list:
        match decorator:
            case ast.Call(args=[ast.Constant(value=str(names)), *_]) if last_name(decorator) == "parametrize":
                provided |= {name.strip() for name in names.split(",")}
            case ast.Call(args=[ast.List(elts=names) | ast.Tuple(elts=names), *_]) if (
                last_name(decorator) == "parametrize"
            ):
                provided |= {str(name.value) for name in names if isinstance(name, ast.Constant)}
            case _ if last_name(decorator) in ("patch", "object", "dict", "parametrize", "given"):
                provided.add(None)
    return provided


def _runs(function: _Function) -> bool:
    """Whether a test runs at least once, given its decorators."""
    for decorator in function.decorator_list:
        match decorator:
            case ast.Call(args=[_, ast.List(elts=[_, *_]) | ast.Tuple(elts=[_, *_]), *_]) if (
                last_name(decorator) == "parametrize"
            ):
                continue
        return False
    return True
