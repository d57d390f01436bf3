"""Runs model-written Python under limits, without network and without the user's files, environment and processes.

>>> sandbox = Sandbox()
>>> sandbox.run("print(int(input()) + 1)", "41").output
'42\\n'

The process that runs model code knows only inputs. Outputs are compared outside of it, so that it cannot forge a
result. ``selfdistill doctor`` prints which isolation is active and attacks it.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from selfdistill.files.text import well_formed
from selfdistill.sandbox.codec import Encoder, Untransferable
from selfdistill.sandbox.isolation import find_isolation
from selfdistill.sandbox.process import End, Ended, Limits, Process, judge_code

__all__ = ["Compared", "Failure", "Limits", "Outcome", "Sandbox", "Tally", "Untransferable"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a program: its output and its errors, the first part of both, and how it ended."""

    output: str
    errors: str
    end: End
    code: int | None

    @property
    def clean(self) -> bool:
        """Whether the program ended by itself and without an error."""
        return self.end == "exit" and self.code == 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call or a load gave no value: an exception of the code (``kind`` is "raised"), or a limit."""

    kind: End | str
    name: str = ""
    message: str = ""
    line: int | None = None
    builtin: str = ""
    """The built-in exception that the exception is or descends from."""
    loading: bool = False
    """Whether it occurred while the module was loaded, before the code received any test's input."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The number of calls that returned the expected value. The other fields describe the first call that did not.

    ``first`` is its index, ``got`` its value as text, and ``failure`` the reason if it returned none.
    """

    passed: int
    first: int | None = None
    got: str = ""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """The result of test code: how many checks it reached, how many of them passed, and the first that failed.

    With a ``total`` of 0 there is no verdict.
    """

    passed: int
    total: int
    failure: dict[str, Any] | None


class Sandbox:
    """Runs model-written code, up to ``workers`` jobs at once. Several threads may share it.

    Args:
        limits: the limits of each process.
        workers: the number of jobs that run at once.
        unsafe: run without isolation if none works.

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
        """Run (script, standard input) pairs, up to ``workers`` at once. Returns the outcomes in order."""
        if len(jobs) < 2:
            return [self.run(*job) for job in jobs]
        with ThreadPoolExecutor(min(self.workers, len(jobs))) as pool:
            return list(pool.map(lambda job: self.run(*job), jobs))

    def compare(self, source: str, path: str, cases: Sequence[tuple[Sequence[Any], Any]]) -> Compared:
        """Load a module, call the function at a path with the arguments of each case, and compare the values.

        ``"Solution.solve"`` calls ``Solution().solve``. A second process compares each value with the expected one. The
        limits hold for all calls together. A failure that ends the process fails the calls after it too.

        Raises:
            Untransferable: a case holds a value that is not of a plain type.
        """
        trees = [[Encoder(_refuse).encode(list(given)), Encoder(_refuse).encode(value)] for given, value in cases]
        reply = self._run_with_judge(source, {"run": "cases.compare", "path": path, "cases": trees})
        if isinstance(reply, Failure):
            return Compared(0, 0, failure=reply)
        verdict, ended = reply
        if "first" not in verdict:
            return Compared(verdict["passed"])
        failure = None
        if "trouble" in verdict:
            failure = Failure("value", message=verdict["trouble"])
        elif "raised" in verdict:
            lost = verdict["raised"].get("ended")
            failure = Failure(ended.end) if ended and lost else failure_of(verdict["raised"])
        return Compared(verdict["passed"], verdict["first"], verdict.get("got", ""), failure)

    def judge(self, source: str, *, tests: str, setup: str = "", entry: str = "") -> Tally | Failure:
        """Run test code against a module, each in a process of its own. ``judge.py`` defines what counts as a check."""
        reply = self._run_with_judge(source, {"run": "judge.judge", "tests": tests, "setup": setup, "entry": entry})
        if isinstance(reply, Failure):
            return reply
        verdict, ended = reply
        failure = {**(verdict["failure"] or {}), "kind": ended.end} if ended else verdict["failure"]
        return Tally(verdict["passed"], verdict["total"], failure)

    def _run_with_judge(self, source: str, job: dict[str, Any]) -> tuple[dict[str, Any], Ended | None] | Failure:
        """Load a module in one process, judge it in another. Returns the verdict and how the first process ended."""
        with (
            self._slot() as slot,
            Process(self.isolation, self.limits, slot=2 * slot) as process,
        ):
            process.send({"mode": "serve"})
            process.send({"do": "load", "with": [source]})
            try:
                raised = process.receive().get("raised")
            except Ended as ended:
                return Failure(ended.end, loading=True)
            if isinstance(raised, dict):
                return replace(failure_of(raised), loading=True)
            with Process(self.isolation, self.limits, slot=2 * slot + 1) as judge:
                # The judge must outlive the candidate to report how far the tests came.
                judge.allow(2 * self.limits.seconds)
                judge.send({"mode": "judge", "judge": judge_code(job["run"]), **job})
                return self._relay(process, judge)

    def _relay(self, process: Process, judge: Process) -> tuple[dict[str, Any], Ended | None] | Failure:
        """Pass the judge's requests to the candidate and the answers back, until the verdict."""
        ended: Ended | None = None
        while True:
            try:
                message = judge.receive()
            except Ended as stopped:
                # The judge runs no model code: a value was too costly for it, or a test ended its process.
                return Failure(ended.end) if ended else Failure("unjudged", message=stopped.end)
            if "verdict" in message:
                return message["verdict"], ended
            try:
                if ended:
                    raise ended
                process.send(message["ask"])
                judge.pass_on(process.take())
            except Ended as stopped:
                ended = stopped
                lost = {"type": "SystemExit", "name": stopped.end, "message": "", "line": None, "ended": True}
                judge.send({"raised": lost})

    @contextmanager
    def _slot(self) -> Iterator[int]:
        slot = self._slots.get()
        try:
            yield slot
        finally:
            self._slots.put(slot)


def failure_of(raised: dict[str, Any]) -> Failure:
    """The failure that the sandbox reports. Model code may have forged every part, so only short texts are taken."""
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
