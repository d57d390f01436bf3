"""Run mutants against tests, in forks of one process that has loaded everything once.

A pytest plugin replaces pytest's loop. It first runs every chosen test on unchanged code and records the functions that
each test calls. Each mutant is then run against the tests that call its function, the quickest first, until one fails.
A changed function gets a new code object, so every name bound to the function has the change. A change at import (a
default, a constant, a field) needs fresh modules: its fork drops the loaded ones and imports the changed source. Other
processes (ranks, commands) never run a mutant.
"""

from __future__ import annotations

import functools
import gc
import importlib.abc
import importlib.machinery
import os
import resource
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import pytest

from mutation.edits import Mutant

MEMORY = 6 << 30
"""Bytes that a fork may allocate in addition to the memory that it shares."""
FunctionKey = tuple[str, str]
"""A file and the qualified name of a function in it."""


@dataclass(slots=True)
class Seen:
    """The functions that one test calls, and its seconds."""

    seconds: float = 0.0
    calls: set[FunctionKey] = field(default_factory=set)


class Hunt:
    """Runs mutants. ``nearest`` gives the test files of a source file, for changes at import."""

    def __init__(
        self,
        package: Path,
        mutants: Sequence[Mutant],
        nearest: Callable[[str], Sequence[str]],
        report: Callable[[Mutant, str], None],
        *,
        jobs: int,
    ) -> None:
        """``report`` receives each mutant with the failed test, "" if none failed, or "time" if it ran too long."""
        self.package, self.mutants, self.nearest, self.report, self.jobs = package, mutants, nearest, report, jobs
        self.seen: dict[str, Seen] = defaultdict(Seen)
        self.failed = False
        self.functions: dict[FunctionKey, list[FunctionType]] = {}
        self._calls: set[FunctionKey] = set()
        self._prefix = f"{package}{os.sep}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record failures, including those of fixtures, and seconds."""
        self.failed |= report.failed
        if report.failed and not self.functions:
            print(report.longreprtext, file=sys.stderr)
        self.seen[report.nodeid].seconds += report.duration

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Raise an error for a file that cannot be collected, because it would count as a file without tests."""
        if report.failed:
            raise pytest.UsageError(f"{report.nodeid} cannot be collected: {report.longrepr}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, None, None]:
        """Record the calls of fixtures for the whole test file, because fixtures may be shared."""
        _forget_cached()
        self._calls = self.seen[str(item.path)].calls
        yield

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """Record the calls of the test."""
        self._calls = self.seen[item.nodeid].calls
        yield

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests on unchanged code, then all mutants."""
        began = time.monotonic()
        sys.settrace(self._trace)
        first = self._run(session.items)
        sys.settrace(None)
        if self.failed:
            raise pytest.UsageError(f"{first} fails as it is, so no mutant was tried")
        print(f"\n{len(session.items)} tests as they are: {time.monotonic() - began:.0f} s", flush=True)
        self.functions = _functions(self.package)
        gc.freeze()
        self._sound(session.items)
        running: dict[int, tuple[Mutant, float, int]] = {}
        for mutant in self.mutants:
            while len(running) >= self.jobs:
                self.report(*self._ended(running))
            items = self._tests(session.items, mutant)
            if items:
                self._start(mutant, items, running)
            else:
                self.report(mutant, "")
        while running:
            self.report(*self._ended(running))
        # Side effects of a mutant on later ones (a file, a removed folder) would show as failures here.
        self._sound(session.items)
        return True

    def _sound(self, items: Sequence[pytest.Item]) -> None:
        """Check that an unchanged fork passes all tests, and one with an empty change at import its nearest tests."""
        unchanged = {tuple(self.nearest(m.file)): m.file for m in self.mutants if not m.scope}
        nothing = [Mutant(file, "", 0, "", "", (self.package / file).read_text()) for file in unchanged.values()]
        running: dict[int, tuple[Mutant, float, int]] = {}
        self._start(Mutant("", "", 0, "", "", ""), items, running)
        for mutant in nothing:
            self._start(mutant, self._tests(items, mutant), running)
        while running:
            mutant, test = self._ended(running)
            if test:
                raise pytest.UsageError(
                    f"a fork in which nothing is changed fails {test}: what was found means nothing"
                )

    def _start(
        self, mutant: Mutant, items: Sequence[pytest.Item], running: dict[int, tuple[Mutant, float, int]]
    ) -> None:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self._child(mutant, items, writing)
        os.close(writing)
        allowed = 60.0 + 5.0 * sum(self.seen[item.nodeid].seconds for item in items)
        running[child] = (mutant, time.monotonic() + allowed, reading)

    def _run(self, items: Sequence[pytest.Item]) -> str:
        """Run tests until one fails; return its name, or "" if all pass."""
        for item, after in zip(items, [*items[1:], items[0]], strict=True):
            item.ihook.pytest_runtest_protocol(item=item, nextitem=after)
            if self.failed:
                return item.nodeid
        return ""

    def _trace(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        # Code objects hash by their content, which would cost more than all the rest.
        if code.co_filename.startswith(self._prefix):
            self._calls.add((code.co_filename, code.co_qualname.partition(".<locals>")[0]))

    def _tests(self, items: Sequence[pytest.Item], mutant: Mutant) -> list[pytest.Item]:
        """Return the tests that may detect a mutant, the quickest first."""
        key = (str(self.package / mutant.file), mutant.scope)
        if mutant.scope:
            chosen = [i for i in items if any(key in self.seen[k].calls for k in (i.nodeid, str(i.path)))]
        else:
            near = {Path(name).name for name in self.nearest(mutant.file)}
            chosen = [i for i in items if i.path.name in near]
        return sorted(chosen, key=lambda item: self.seen[item.nodeid].seconds)

    def _child(self, mutant: Mutant, items: Sequence[pytest.Item], pipe: int) -> None:
        """Run in the fork: write the test that failed to the pipe, and exit."""
        os.setsid()
        # A mutant that allocates far more memory raises MemoryError instead of exhausting the machine's memory.
        if used := _address_space():
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(quiet, stream)
        failure = "crash"
        try:
            _forget_cached()
            put = not mutant.file or (bool(mutant.scope) and _put(mutant, self.package, self.functions))
            failure = self._run(items) if put else _afresh(mutant, self.package, [item.nodeid for item in items])
        except BaseException as error:
            failure = f"{type(error).__name__}: {error}"
        finally:
            os.write(pipe, failure.encode()[:4000])
            os._exit(0)

    def _ended(self, running: dict[int, tuple[Mutant, float, int]]) -> tuple[Mutant, str]:
        """Wait for a fork to end, or kill it after its deadline; return its mutant and the test that failed."""
        while True:
            for child, (mutant, deadline, pipe) in list(running.items()):
                late = time.monotonic() > deadline
                if late:
                    os.killpg(child, signal.SIGKILL)
                ended, status = os.waitpid(child, 0 if late else os.WNOHANG)
                if ended:
                    message = os.read(pipe, 4000).decode()
                    os.close(pipe)
                    del running[child]
                    # A killed fork has written nothing, but unlike a fork that wrote nothing it has not passed.
                    killed = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else ""
                    return mutant, "time" if late else message or killed
            time.sleep(0.005)


def _address_space() -> int:
    """Return the bytes of address space that this process uses, or 0 if the system does not report them."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 0


def _functions(package: Path) -> dict[FunctionKey, list[FunctionType]]:
    """Return every live function of the package by its file and qualified name."""
    functions: dict[FunctionKey, list[FunctionType]] = defaultdict(list)
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename.startswith(f"{package}{os.sep}"):
            functions[function.__code__.co_filename, function.__code__.co_qualname].append(function)
    return functions


def _put(mutant: Mutant, package: Path, functions: Mapping[FunctionKey, list[FunctionType]]) -> bool:
    """Give the function its changed code object; return False if that is not possible in place."""
    path = str(package / mutant.file)
    compiled = compile(mutant.source, path, "exec", dont_inherit=True)
    codes = [c for c in _codes(compiled) if (c.co_qualname, c.co_firstlineno) == (mutant.scope, mutant.line)]
    old = [f for f in functions[path, mutant.scope] if f.__code__.co_firstlineno == mutant.line]
    if len(codes) != 1 or not old or any(f.__code__.co_freevars != codes[0].co_freevars for f in old):
        return False
    for function in old:
        function.__code__ = codes[0]
    return True


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _forget_cached() -> None:
    """Clear the caches of the package's cached functions."""
    for module in [m for name, m in sys.modules.items() if name.partition(".")[0] == "selfdistill"]:
        for each in vars(module).values():
            if isinstance(each, functools._lru_cache_wrapper):
                each.cache_clear()


def _afresh(mutant: Mutant, package: Path, tests: Sequence[str]) -> str:
    """Run tests in a new pytest session, with every module of the project imported again."""
    roots = [str(package.parent), *(str(package.parents[1] / name) for name in ("tests", "scripts", "benchmarks"))]
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None) or ""
        if origin.startswith(tuple(f"{root}{os.sep}" for root in roots)) and not name.startswith("mutation"):
            del sys.modules[name]
    sys.meta_path.insert(0, _Changed(mutant, package))
    first_failure = _First()
    # Each test is one argument, because pytest keeps the order of its arguments.
    with tempfile.TemporaryDirectory() as folder:
        code = pytest.main(["-x", "-q", *QUIETLY, f"--basetemp={folder}/tests", *tests], plugins=[first_failure])
    return first_failure.name or ("" if code == 0 else "import")


QUIETLY = ("-p", "no:cacheprovider", "-p", "no:xdist", "--capture=sys", "-o", "tmp_path_retention_policy=none")
"""Options of the forks: they share the files that pytest would capture into, and never end a session."""


class _First:
    """Records the first test that fails."""

    name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the name of the first failure."""
        if report.failed:
            self.name = self.name or report.nodeid


class _Changed(importlib.abc.MetaPathFinder):
    """Finds the mutant's source when its module is imported."""

    def __init__(self, mutant: Mutant, package: Path) -> None:
        self.source, self.path = mutant.source, package / mutant.file
        parts = (package.name, *Path(mutant.file).with_suffix("").parts)
        self.name = ".".join(parts).removesuffix(".__init__")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the changed module's spec, or None for other modules."""
        if fullname != self.name:
            return None
        loader = _Source(fullname, str(self.path), self.source)
        spec = importlib.machinery.ModuleSpec(
            fullname, loader, origin=str(self.path), is_package=self.path.stem == "__init__"
        )
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(str(self.path.parent))
        return spec


class _Source(importlib.abc.SourceLoader):
    """Loads a module from source text."""

    def __init__(self, name: str, path: str, text: str) -> None:
        self.name, self.path, self.text = name, path, text

    def get_filename(self, fullname: str) -> str:
        """Return the path of the unchanged file."""
        return self.path

    def get_data(self, path: str) -> bytes:
        """Return the source text."""
        return self.text.encode()


def hunt(package: Path, mutants: Sequence[Mutant], tests: Iterable[str], **settings: Any) -> int:
    """Run mutants against test files; return pytest's exit status."""
    # A separate folder, because pytest keeps only three sessions of a user and removes the folders of running ones.
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["-q", *QUIETLY, "-p", "no:terminalreporter", f"--basetemp={folder}/tests", *tests]
        return int(pytest.main(arguments, plugins=[Hunt(package, mutants, **settings)]))
