"""Run test suites in the sandbox, and describe the first test that fails."""

from __future__ import annotations

import builtins
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfdistill.errors import DataError
from selfdistill.sandbox.sandbox import Failure, Outcome, Sandbox, Untransferable
from selfdistill.tasks.code.suites import Case, Suite, same_output, share_out

_KINDS = {
    "time": "the time limit",
    "memory": "the memory limit",
    "output": "the limit on output",
    "exit": "the program ended by itself in the middle of the test",
    "crash": "the interpreter crashed",
    "value": "a value that cannot be compared",
    "unreached": "no check was reached in it",
    "unjudged": "a value with which the test could not go on",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """The reason for a failed test, as texts of full length."""

    kind: str
    given: str = ""
    expected: str = ""
    got: str = ""
    test: str = ""
    error: str = ""
    """``"ValueError: no such thing (line 3)"``."""
    builtin: str = ""
    """``"ValueError"``, a built-in exception: feedback on a hidden test contains nothing else."""
    loading: bool = False
    """Whether the failure occurred before the code saw any test input, so feedback may contain all of it."""

    @property
    def kind_in_words(self) -> str:
        """The kind of failure, safe for hidden tests: it contains no text of the model or of the test."""
        if self.kind == "raised":
            named = getattr(builtins, self.builtin, None)
            is_exception = isinstance(named, type) and issubclass(named, BaseException)
            return f"an exception ({self.builtin if is_exception else 'Exception'})"
        return _KINDS.get(self.kind, "a wrong answer")


@dataclass(frozen=True, slots=True)
class Result:
    """Number of checks reached and passed, and the first failure."""

    passed: int = 0
    total: int = 0
    problem: Problem | None = None


class Runner:
    """Runs suites. With ``stop_early`` it stops after the first failing program."""

    def __init__(self, sandbox: Sandbox, *, stop_early: bool) -> None:
        self._sandbox = sandbox
        self._stop_early = stop_early

    def run(self, suite: Suite, source: str, *, setup: str, function: tuple[str, ...]) -> Result:
        """Run a suite against a program. ``setup`` is code for the tests, ``function`` the tested function's path."""
        if not suite:
            return Result()
        if suite.code:
            return self._code(suite.code, source, setup=setup, entry=".".join(function))
        if function:
            return self._calls(suite.cases, source, function)
        return self._programs(suite.cases, source)

    def _code(self, code: str, source: str, *, setup: str, entry: str) -> Result:
        tally = self._sandbox.judge(source, tests=code, setup=setup, entry=entry)
        if isinstance(tally, Failure):
            return Result(0, max(1, len(re.findall(r"^\s*assert\b", code, re.MULTILINE))), _from_failure(tally))
        failure = tally.failure
        if failure is None:
            return Result(tally.passed, tally.total)
        texts = {key: str(failure.get(key, "")) for key in ("test", "input", "expected", "got", "trouble")}
        raised = failure.get("raised") or {}
        problem = Problem(
            str(failure["kind"]),
            given=texts["input"],
            expected=texts["expected"],
            got=texts["got"] or texts["trouble"],
            test=texts["test"],
            error=_error(raised.get("name"), raised.get("message"), raised.get("line")) if raised else "",
            builtin=str(raised.get("type", "")),
        )
        return Result(tally.passed, tally.total, problem)

    def _calls(self, cases: Sequence[Case], source: str, function: tuple[str, ...]) -> Result:
        if len(function) == 1 and re.search(r"^class Solution\b", source, re.MULTILINE):
            function = ("Solution", *function)
        try:
            calls = [(case.arguments or (), case.value) for case in cases]
            compared = self._sandbox.compare(source, ".".join(function), calls)
        except Untransferable as trouble:
            raise DataError(f"a test's arguments cannot be handed over: {trouble}") from trouble
        if compared.first is None:
            return Result(compared.passed, len(cases))
        first = _from_failure(compared.failure) if compared.failure else Problem("wrong", got=compared.got)
        # Code that fails while loading has seen no case, so feedback must not reveal one.
        if not first.loading:
            first = replace(first, given=cases[compared.first].given, expected=cases[compared.first].expected)
        return Result(compared.passed, len(cases), first)

    def _programs(self, cases: Sequence[Case], source: str) -> Result:
        """Run every case in its own process."""
        passed, first = 0, None
        step = self._sandbox.workers if self._stop_early else len(cases)
        for start in range(0, len(cases), step):
            chunk = cases[start : start + step]
            outcomes = self._sandbox.run_all([(source, case.given) for case in chunk])
            for case, outcome in zip(chunk, outcomes, strict=True):
                if outcome.clean and same_output(outcome.output, case.expected):
                    passed += 1
                elif first is None:
                    first = replace(_from_outcome(outcome), given=case.given, expected=case.expected)
            if first and self._stop_early:
                break
        return Result(passed, len(cases), first)


def describe(problem: Problem, budget: int) -> str:
    """Describe a failed public test: its input, expected and actual output, in about ``budget`` characters."""
    raised = problem.kind == "raised"
    head = f"the code raised {problem.error}" if raised else f"the test failed: {problem.kind_in_words}"
    named = [("input", problem.given), ("expected", problem.expected)]
    if not (problem.given and problem.expected):  # otherwise the test's text adds nothing
        named = [("test", problem.test), *named]
    if problem.kind == "wrong":
        named.append(("got", problem.got.strip() or "nothing"))
    named = [(name, text.strip("\n")) for name, text in named if text.strip()]
    texts = share_out([head, *(text for _, text in named)], budget)
    lines = [f"{name}:{_separator(text)}{text}" for (name, _), text in zip(named, texts[1:], strict=True)]
    return "\n".join([texts[0], *lines])


def _separator(text: str) -> str:
    return "\n" if "\n" in text else " "


def _error(name: object, message: object, line: object) -> str:
    text = f"{name}: {message}" if message else str(name)
    return f"{text} (line {line})" if isinstance(line, int) else text


def _from_failure(failure: Failure) -> Problem:
    if failure.kind != "raised":
        return Problem(failure.kind, got=failure.message, loading=failure.loading)
    error = _error(failure.name, failure.message, failure.line)
    return Problem("raised", error=error, builtin=failure.builtin, loading=failure.loading)


def _from_outcome(outcome: Outcome) -> Problem:
    if outcome.end != "exit":
        return Problem(outcome.end, got=outcome.output)
    if outcome.code:
        lines = outcome.errors.strip().splitlines()
        last = lines[-1] if lines else f"exit code {outcome.code}"
        return Problem("raised", error=last, builtin=re.split(r"\W", last, maxsplit=1)[0])
    return Problem("wrong", got=outcome.output)
