"""Finds the checks in test code, and rewrites the code so that each is counted and none can be swallowed.

================================================  ====================================================================
in test code                                      a check that is reached
================================================  ====================================================================
``assert f(2) == 4``                              whenever it is evaluated; it never raises
``if f(2) != 4: raise AssertionError``            whenever the condition is evaluated; so with ``sys.exit(1)``, ``fail``
``try: f(-1); assert False``                      where the handler is entered (``except ValueError: pass``)
``numpy.testing.assert_allclose(f(2), 4)``        where the call returns or raises
``f(2) is not None``, in any of them              an object of the candidate's is noted (``Link.doubted``)
================================================  ====================================================================

Methods of ``unittest`` and ``pytest.raises`` count themselves (``frameworks.py``). A handler that would swallow a
failed assert (``except AssertionError: print("failed")``) notes the failure first. The sandbox runs the text of this
file, so it imports only the standard library.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

_BROAD = {"Exception", "BaseException", "AssertionError"}
_RAISED_BY_TESTS = {"AssertionError", "Exception", "RuntimeError", "SystemExit"}
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def own_nodes(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Every node below statements, without the bodies of functions and classes that are defined there."""
    for node in statements:
        yield node
        if not isinstance(node, _SCOPES):
            yield from own_nodes(ast.iter_child_nodes(node))


def last_name(node: ast.AST | None) -> str:
    """``"c"`` of ``c``, ``a.b.c`` and of a call of either; empty for anything else."""
    match node:
        case ast.Call(func=function):
            return last_name(function)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def is_check(node: ast.AST) -> bool:
    """Whether a node can show that the code under test is wrong."""
    match node:
        case ast.Assert(test=test):
            return _can_vary(test) or _fails(node)
        case ast.Call():
            return last_name(node).startswith("assert") or last_name(node) in ("fail", "raises")
        case ast.If(body=[*_, last]):
            return _fails(last)
        case ast.Raise(exc=error):
            return last_name(error) == "AssertionError"
    return False


def _can_vary(test: ast.expr) -> bool:
    """Whether a condition can be true or false: ``assert True`` and ``assert (f(2) == 4, "wrong")`` cannot."""
    if isinstance(test, ast.Tuple) and test.elts:
        return False
    return any(isinstance(inner, ast.Name) for inner in ast.walk(test))


def _fails(statement: ast.stmt) -> bool:
    """Whether a statement reports that a test has failed."""
    match statement:
        case ast.Assert(test=ast.Constant(value=value)):
            return not value
        case ast.Raise(exc=error):
            return last_name(error) in _RAISED_BY_TESTS
        case ast.Expr(value=ast.Call(args=[] | [ast.Constant(value=None | 0)]) as call):
            return last_name(call) == "fail"  # exit() and exit(0) end a script without a failure
        case ast.Expr(value=ast.Call() as call):
            return last_name(call) in ("fail", "exit", "quit")
    return False


def _is_broad(caught: ast.expr | None) -> bool:
    """Whether a handler catches a failed assert."""
    if caught is None:
        return True
    return any(last_name(kind) in _BROAD for kind in (caught.elts if isinstance(caught, ast.Tuple) else [caught]))


class Rewriter(ast.NodeTransformer):
    """Rewrites trees of test code. Its hooks (``__case__`` …) are methods of the judge's tally."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        """The text of each check, by the number that its hook is called with."""
        self.checking: set[str] = set()
        """Top-level functions (``"test_x"``) and methods (``"TestX.test_y"``) whose own code holds a check."""
        self._defined: set[str] = set()

    def read(self, code: str) -> ast.Module:
        """The rewritten tree of a module of test code."""
        tree = ast.parse(code)
        functions = [statement for statement in tree.body if isinstance(statement, ast.FunctionDef)]
        self._defined |= {statement.name for statement in functions}
        scopes = [
            ("", tree.body),
            *((f"{statement.name}.", statement.body) for statement in tree.body if isinstance(statement, ast.ClassDef)),
        ]
        for prefix, body in scopes:
            for statement in body:
                if isinstance(statement, ast.FunctionDef) and any(map(is_check, own_nodes(statement.body))):
                    self.checking.add(prefix + statement.name)
        self.generic_visit(tree)
        for statement in functions:
            statement.body.insert(0, ast.Expr(_hook("__entered__", ast.Constant(statement.name))))
        return ast.fix_missing_locations(tree)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        """``__case__(n, lambda: a, lambda: b)`` for ``assert a == b``, else ``__case__(n, lambda: test)``."""
        if not _can_vary(node.test):
            failed = ast.Expr(_hook("__failed__", self._number(node.test)))
            return ast.copy_location(ast.If(ast.UnaryOp(ast.Not(), node.test), [failed], []), node)
        number = self._number(node.test)
        self.generic_visit(node)
        parts = [node.test]
        match node.test:
            case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
                parts = [left, right]
        if any(isinstance(inner, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom) for inner in ast.walk(node)):
            # ``:=``, ``await`` and ``yield`` mean something else in a lambda, so the assert is evaluated in its place.
            return ast.copy_location(ast.Expr(_hook("__plain__", number, node.test)), node)
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        deferred = [ast.Lambda(nothing, part) for part in parts]
        return ast.copy_location(ast.Expr(_hook("__case__", number, *deferred)), node)

    def visit_If(self, node: ast.If) -> ast.AST:
        """The condition of an ``if`` that ends in a failure is a check of its opposite."""
        if _fails(node.body[-1]):
            node.test = _hook("__guard__", self._number(node.test), node.test)
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST | list[ast.stmt]:
        """``raise AssertionError`` is noted before a handler can swallow it."""
        if last_name(node.exc) != "AssertionError":
            return node
        return [ast.Expr(_hook("__failed__", self._number(node))), node]

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        """A call of a library's ``assert_…`` is a check. A function of that name in the tests has checks of its own."""
        match node.value:
            case ast.Call(func=function, args=args, keywords=keywords):
                if last_name(function).startswith("assert_") and last_name(function) not in self._defined:
                    node.value = _hook("__called__", self._number(node.value), function, *args)
                    node.value.keywords = keywords
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """``is`` calls no method of its operands, so a hook notes the objects that it compares."""
        self.generic_visit(node)
        if any(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops):
            sides: list[ast.expr] = [
                side if isinstance(side, ast.Constant) else _hook("__doubt__", side)
                for side in (node.left, *node.comparators)
            ]
            node.left, node.comparators = sides[0], sides[1:]
        return node

    def visit_Try(self, node: ast.Try) -> ast.AST:
        """A handler of an expected exception counts it. A handler that would swallow a failure notes it."""
        tried = [*node.body, *node.orelse]
        expects = any(map(_fails, tried))
        checks = any(map(is_check, own_nodes(tried)))
        noted: list[ast.stmt] = []
        for statement in node.body:
            if isinstance(statement, ast.Raise) and _fails(statement) and last_name(statement.exc) != "AssertionError":
                noted.append(ast.Expr(_hook("__failed__", self._number(statement))))
            noted.append(statement)
        for handler in node.handlers:
            if any(is_check(inner) for inner in own_nodes(handler.body)):
                continue
            if expects:
                handler.body.insert(0, ast.Expr(_hook("__expected__", self._number(node.body[0]))))
            elif checks and _is_broad(handler.type):
                handler.body.insert(0, ast.Expr(_hook("__swallowed__")))
        node.body = noted
        return self.generic_visit(node)

    def visit_With(self, node: ast.With) -> ast.AST:
        """``with suppress(Exception)`` around checks is a handler too."""
        suppressed = [item.context_expr for item in node.items if last_name(item.context_expr) == "suppress"]
        broad = any(_is_broad(kind) for item in suppressed if isinstance(item, ast.Call) for kind in item.args)
        if broad and any(map(is_check, own_nodes(node.body))):
            note: list[ast.stmt] = [ast.Expr(_hook("__swallowed__")), ast.Raise()]
            caught = ast.ExceptHandler(ast.Name("BaseException", ast.Load()), None, note)
            body: list[ast.stmt] = []
            for statement in node.body:
                rewritten = self.visit(statement)
                body += rewritten if isinstance(rewritten, list) else [rewritten]
            return ast.With(node.items, [ast.Try(body, [caught], [], [])])
        return self.generic_visit(node)

    def _number(self, node: ast.AST) -> ast.expr:
        self.sources.append(ast.unparse(node))
        return ast.Constant(len(self.sources) - 1)


def _hook(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), keywords=[])
