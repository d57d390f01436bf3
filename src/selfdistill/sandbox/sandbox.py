"""Model-written Python, run without network, without sight of the user's files, environment and processes, in limits.

>>> sandbox = Sandbox()
>>> sandbox.run("print(int(input()) + 1)", "41").output
'42\\n'

The process that runs model code knows inputs and nothing else; outputs are compared outside, so that nothing in its
reach could be forged. ``selfdistill doctor`` says which isolation is active and attacks it.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from selfdistill.sandbox.codec import Encoder, Untransferable, decode
from selfdistill.sandbox.isolation import find_isolation
from selfdistill.sandbox.process import End, Ended, Limits, Process, judge_code
from selfdistill.text import well_formed

__all__ = ["Called", "Failure", "Limits", "Outcome", "Sandbox", "Tally", "Untransferable"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program did: its output, its errors (the first part of both), and how it ended."""

    output: str
    errors: str
    end: End
    code: int | None

    @property
    def clean(self) -> bool:
        """Whether it ended by itself and without an error."""
        return self.end == "exit" and self.code == 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call or a load gave no value: an exception of the code's own (``kind`` "raised"), or a limit."""

    kind: End | str
    name: str = ""
    message: str = ""
    line: int | None = None
    builtin: str = ""
    """The built-in exception that it is or descends from."""
    loading: bool = False
    """Whether it came while the module was loaded, before any test's input was known to it."""


@dataclass(frozen=True, slots=True)
class Called:
    """What one call gave: a value, rebuilt outside as plain types, or a failure."""

    value: Any = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """What test code said: how many of its checks hold of those it reached, and a description of the first that does
    not. Where ``total`` is 0 it has said nothing.
    """

    passed: int
    total: int
    failure: dict[str, Any] | None


class Opaque:
    """An object that stayed in the sandbox. It equals nothing."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"<{self._name} object>"


class Sandbox:
    """Runs model-written code, many at once up to ``workers``; may be used from several threads.

    Args:
        limits: what each process may use.
        workers: how many run at once.
        unsafe: run without isolation where none works.

    Raises:
        UserError: no isolation works here; the message says what to install.
    """

    def __init__(self, limits: Limits | None = None, *, workers: int = 2, unsafe: bool = False) -> None:
        self.isolation = find_isolation(unsafe=unsafe)
        self.limits = limits or Limits()
        self.workers = workers
        self._slots: queue.Queue[int] = queue.Queue()
        for slot in range(workers):
            self._slots.put(slot)

    def run(self, source: str, text: str = "") -> Outcome:
        """Run a script with ``text`` on its standard input."""
        with self._slot() as slot, Process(self.isolation, self.limits, slot=2 * slot) as process:
            process.send({"mode": "program", "source": source})
            process.write(text.encode("utf-8", "surrogatepass"), last=True)
            end = process.finish()
            return Outcome(process.output.decode(errors="replace"), process.errors, end, process.code)

    def run_all(self, jobs: Sequence[tuple[str, str]]) -> list[Outcome]:
        """Run (script, standard input) pairs, as many at once as there are workers; results in order."""
        if len(jobs) < 2:
            return [self.run(*job) for job in jobs]
        with ThreadPoolExecutor(min(self.workers, len(jobs))) as pool:
            return list(pool.map(lambda job: self.run(*job), jobs))

    def call(self, source: str, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Called]:
        """Load a module and call functions of it by path (``("Solution", "solve")`` calls ``Solution().solve``).

        The limits hold for all calls together; after a failure that ends the process the others fail in the same way.
        """
        found: list[Called] = []
        with self._slot() as slot, Process(self.isolation, self.limits, slot=2 * slot) as process:
            caller = _Caller(process, self.limits)
            try:
                caller.load(source)
                for path, arguments in calls:
                    found.append(caller.call(path, arguments))
            except Ended as ended:
                found += [Called(failure=Failure(ended.end))] * (len(calls) - len(found))
            except _Raised as raised:
                found += [Called(failure=raised.failure)] * (len(calls) - len(found))
        return found

    def judge(self, source: str, *, tests: str, setup: str = "", entry: str = "") -> Tally | Failure:
        """Run test code against a module, each in a process of its own; see ``judge.py``."""
        with (
            self._slot() as slot,
            Process(self.isolation, self.limits, slot=2 * slot) as process,
        ):
            caller = _Caller(process, self.limits)
            try:
                caller.load(source)
            except Ended as ended:
                return Failure(ended.end)
            except _Raised as raised:
                return raised.failure
            with Process(self.isolation, self.limits, slot=2 * slot + 1) as judge:
                # It waits for the candidate, and must outlive it to say how far the tests came.
                judge.allow(2 * self.limits.seconds)
                judge.send({"mode": "judge", "judge": judge_code(), "tests": tests, "setup": setup, "entry": entry})
                return self._relay(process, judge)

    def _relay(self, process: Process, judge: Process) -> Tally | Failure:
        """Carry the judge's questions to the candidate and the answers back, until the verdict."""
        ended: Ended | None = None
        while True:
            try:
                message = judge.receive()
            except Ended as stopped:
                # Nothing but test code and plain values runs there: values that it cannot bear, or a test that exits.
                return Failure(ended.end) if ended else Failure("unjudged", message=stopped.end)
            if "verdict" in message:
                verdict = message["verdict"]
                if ended:
                    return Tally(verdict["passed"], verdict["total"], {**(verdict["failure"] or {}), "kind": ended.end})
                return Tally(verdict["passed"], verdict["total"], verdict["failure"])
            answer: dict[str, Any]
            try:
                if ended:
                    raise ended
                process.send(message["ask"])
                answer = process.receive()
            except Ended as stopped:
                ended = stopped
                answer = {"raised": {"type": "SystemExit", "name": stopped.end, "message": "", "line": None}}
            judge.send(answer)

    @contextmanager
    def _slot(self) -> Iterator[int]:
        slot = self._slots.get()
        try:
            yield slot
        finally:
            self._slots.put(slot)


class _Raised(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.name)
        self.failure = failure


class _Caller:
    """Requests to a process that holds a module."""

    def __init__(self, process: Process, limits: Limits) -> None:
        self._process = process
        self._limits = limits
        process.send({"mode": "serve"})

    def ask(self, what: str, *arguments: Any) -> Any:
        """The tree of an answer.

        Raises:
            Ended: the process is no more.
            _Raised: the code raised an exception.
        """
        trees = [one.tree if isinstance(one, _Tree) else Encoder(_refuse).encode(one) for one in arguments]
        self._process.send({"do": what, "with": trees})
        answer = self._process.receive()
        raised = answer.get("raised")
        if isinstance(raised, dict):
            raise _Raised(failure_of(raised))
        return answer.get("value")

    def load(self, source: str) -> None:
        """Run the module's code.

        Raises:
            Ended, _Raised: as for :meth:`ask`.
        """
        try:
            self.ask("load", source)
        except _Raised as raised:
            raise _Raised(replace(raised.failure, loading=True)) from raised

    def call(self, path: Sequence[str], arguments: Sequence[Any]) -> Called:
        """Call what stands at a path; a class on the way is instantiated."""
        try:
            target = _Tree(self.ask("get", path[0]))
            for name in path[1:]:
                target = _Tree(self.ask("attribute", _Tree(self.ask("call", target, [], {})), name))
            tree = self.ask("call", target, list(arguments), {})
            return Called(decode(tree, lambda _, name: Opaque(name[:60])))
        except _Raised as raised:
            return Called(failure=raised.failure)
        except Untransferable as trouble:
            return Called(failure=Failure("value", message=str(trouble)))


@dataclass(frozen=True, slots=True)
class _Tree:
    """An answer that goes back as it came."""

    tree: Any


def failure_of(raised: dict[str, Any]) -> Failure:
    """An exception as the sandbox reports it; every part of the report may be false, so that only texts are taken."""
    line = raised.get("line")
    return Failure(
        "raised",
        name=well_formed(str(raised.get("name", ""))[:60]),
        message=well_formed(str(raised.get("message", ""))[:2000]),
        line=line if isinstance(line, int) else None,
        builtin=well_formed(str(raised.get("type", ""))[:60]),
    )


def _refuse(value: Any) -> int:
    raise Untransferable(f"a test holds an object of type {type(value).__name__}")
