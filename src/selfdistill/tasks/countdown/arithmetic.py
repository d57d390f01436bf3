"""Exact arithmetic for Countdown: expressions, their parser and normal form, all solutions, all simple attempts.

There are two enumerations. :func:`solve` searches the rationals and finds every solution of a problem.
:func:`simple_attempts` lists attempts as a person would write them (whole numbers in range, larger operand first);
references and the pre-training text of the base model use these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import NamedTuple, TypeAlias

LARGEST = 150
"""Largest whole number in the task's vocabulary. Simple attempts stay between 0 and this."""

SYMBOLS = ("+", "-", "×", "÷")

# Spellings that other models and people use for the same four operations.
_SPELLINGS = {"*": "×", "x": "×", "·": "×", "/": "÷", "−": "-", "–": "-"}
_TOKEN = re.compile(r"[0-9]+|[()]|[^\s0-9()]+?(?=[\s0-9()]|$)|\S")
_MOST_TOKENS = 64
_MOST_DIGITS = 9


class Operation(NamedTuple):
    """Two expressions joined by one of ``+ - × ÷``."""

    symbol: str
    left: Expression
    right: Expression


Expression: TypeAlias = int | Operation


class MalformedExpression(ValueError):
    """The text is not an expression. The message says why, in the task's vocabulary."""


def evaluate(expression: Expression) -> Fraction:
    """The exact value.

    Raises:
        ZeroDivisionError: a divisor is 0.
    """
    if isinstance(expression, int):
        return Fraction(expression)
    return _combine(expression.symbol, evaluate(expression.left), evaluate(expression.right))


def render(expression: Expression) -> str:
    """Text with spaces around every token and a bracket around every inner operation: ``( 5 + 3 ) × 2``."""
    if isinstance(expression, int):
        return str(expression)
    left, right = (render(side) if isinstance(side, int) else f"( {render(side)} )" for side in expression[1:])
    return f"{left} {expression.symbol} {right}"


def numbers_in(expression: Expression) -> list[int]:
    """The numbers that the expression uses, from left to right."""
    if isinstance(expression, int):
        return [expression]
    return numbers_in(expression.left) + numbers_in(expression.right)


def parse(text: str) -> Expression:
    """Read an expression with the usual precedence, left to right; no unary minus.

    Raises:
        MalformedExpression: the text is not an expression.
    """
    tokens = [_SPELLINGS.get(token, token) for token in _TOKEN.findall(text)]
    if len(tokens) > _MOST_TOKENS:
        raise MalformedExpression("the answer is too long")
    parser = _Parser(tokens)
    expression = parser.sum()
    if parser.position < len(tokens):
        if tokens[parser.position] == ")":
            raise MalformedExpression("a bracket was closed but not opened")
        raise MalformedExpression(f"an operation was expected{_after(tokens[parser.position - 1])}")
    return expression


def _after(token: str) -> str:
    # Only tokens of the task's vocabulary are repeated in feedback.
    in_vocabulary = token in (*SYMBOLS, "(", ")") or (_is_number(token) and int(token) <= LARGEST)
    return f" after {token}" if in_vocabulary else ""


def _is_number(token: str) -> bool:
    return token.isascii() and token.isdecimal() and len(token) <= _MOST_DIGITS


class _Parser:
    """Recursive descent over a list of tokens, at most ``_MOST_TOKENS`` deep."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tokens
        self.position = 0

    def sum(self) -> Expression:
        expression = self.product()
        while self._next() in ("+", "-"):
            symbol = self._take()
            expression = Operation(symbol, expression, self.product())
        return expression

    def product(self) -> Expression:
        expression = self.atom()
        while self._next() in ("×", "÷"):
            symbol = self._take()
            expression = Operation(symbol, expression, self.atom())
        return expression

    def atom(self) -> Expression:
        token = self._next()
        if token == "(":
            self._take()
            inner = self.sum()
            if self._next() != ")":
                raise MalformedExpression("a bracket was opened but not closed")
            self._take()
            return inner
        if not _is_number(token):
            before = _after(self.tokens[self.position - 1]) if self.position else " first"
            raise MalformedExpression(f"a number was expected{before}")
        return int(self._take())

    def _next(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _take(self) -> str:
        self.position += 1
        return self.tokens[self.position - 1]


def normal_form(expression: Expression) -> str:
    """One text for all expressions that differ only in the order and bracketing of sums and of products.

    ``( 3 + 5 ) × 2``, ``2 × ( 5 + 3 )`` become the same; ``9 - ( 4 - 1 )`` and ``( 9 + 1 ) - 4`` too.
    """
    if isinstance(expression, int):
        return str(expression)
    additive = expression.symbol in ("+", "-")
    plus, minus = ("+", "-") if additive else ("×", "÷")
    parts: dict[bool, list[str]] = {True: [], False: []}
    for positive, part in _flatten(expression, plus, minus, positive=True):
        # Inside a sum a product needs no bracket; inside a product a sum does.
        bracket = not additive and not isinstance(part, int)
        parts[positive].append(f"( {normal_form(part)} )" if bracket else normal_form(part))
    first, *added = sorted(parts[True], key=_order)
    subtracted = sorted(parts[False], key=_order)
    return " ".join([first, *(f"{plus} {part}" for part in added), *(f"{minus} {part}" for part in subtracted)])


def _order(text: str) -> tuple[int, str]:
    # Longer texts first, then alphabetically. Any fixed total order would do.
    return -len(text), text


def _flatten(expression: Expression, plus: str, minus: str, *, positive: bool) -> Iterator[tuple[bool, Expression]]:
    if isinstance(expression, int) or expression.symbol not in (plus, minus):
        yield positive, expression
        return
    yield from _flatten(expression.left, plus, minus, positive=positive)
    yield from _flatten(expression.right, plus, minus, positive=positive == (expression.symbol == plus))


def all_expressions(numbers: Sequence[int]) -> Iterator[tuple[Fraction, Expression]]:
    """Every way to join all the numbers, with its exact value. The same expression may occur more than once."""
    yield from _join([(Fraction(number), number) for number in sorted(numbers)])


def _join(parts: list[tuple[Fraction, Expression]]) -> Iterator[tuple[Fraction, Expression]]:
    if len(parts) == 1:
        yield parts[0]
        return
    for i, (left_value, left) in enumerate(parts):
        for j, (right_value, right) in enumerate(parts):
            if i == j:
                continue
            others = [part for k, part in enumerate(parts) if k not in (i, j)]
            # One order is enough where the operation commutes.
            symbols = SYMBOLS if i < j else ("-", "÷")
            for symbol in symbols:
                if symbol == "÷" and right_value == 0:
                    continue
                joined = (_combine(symbol, left_value, right_value), Operation(symbol, left, right))
                yield from _join([*others, joined])


def solve(numbers: Sequence[int], target: int) -> list[str]:
    """All solutions over the rationals that are distinct in their normal form, sorted."""
    return sorted({normal_form(expression) for value, expression in all_expressions(numbers) if value == target})


def solve_all(numbers: Sequence[int]) -> dict[Fraction, frozenset[str]]:
    """The solutions of :func:`solve` for every reachable value."""
    forms_of: dict[Fraction, set[str]] = {}
    for value, expression in all_expressions(numbers):
        forms_of.setdefault(value, set()).add(normal_form(expression))
    return {value: frozenset(forms) for value, forms in forms_of.items()}


def _combine(symbol: str, left: Fraction, right: Fraction) -> Fraction:
    if symbol == "+":
        return left + right
    if symbol == "-":
        return left - right
    if symbol == "×":
        return left * right
    return left / right


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to use all the numbers, step by step: ``steps[0] == (5, "+", 3, 8)`` reads 5 + 3 = 8."""

    expression: str
    value: int
    steps: tuple[tuple[int, str, int, int], ...]


@cache
def simple_attempts(numbers: tuple[int, ...]) -> tuple[Attempt, ...]:
    """All distinct attempts on the *sorted* numbers with whole results in 0..LARGEST and the larger operand first."""
    attempts = {attempt.expression: attempt for attempt in _attempts([Attempt(str(n), n, ()) for n in numbers])}
    return tuple(attempts[expression] for expression in sorted(attempts))


def _attempts(parts: list[Attempt]) -> Iterator[Attempt]:
    if len(parts) == 1:
        yield parts[0]
        return
    for i in range(len(parts)):
        for j in range(i):
            # Ties are broken by the text, so that equal operands have one order.
            right, left = sorted((parts[i], parts[j]), key=lambda part: (part.value, len(part.steps), part.expression))
            others = [part for k, part in enumerate(parts) if k not in (i, j)]
            for symbol in SYMBOLS:
                result = _simple_result(symbol, left.value, right.value)
                if result is None:
                    continue
                text = f"{_bracketed(left)} {symbol} {_bracketed(right)}"
                step = (left.value, symbol, right.value, result)
                yield from _attempts([*others, Attempt(text, result, (*left.steps, *right.steps, step))])


def _bracketed(part: Attempt) -> str:
    return f"( {part.expression} )" if part.steps else part.expression


def _simple_result(symbol: str, left: int, right: int) -> int | None:
    """The result of a simple step where ``left >= right >= 0``, or None if it leaves the range."""
    if symbol == "÷":
        return left // right if right and left % right == 0 else None
    result = {"+": left + right, "-": left - right, "×": left * right}[symbol]
    return result if result <= LARGEST else None
