"""The code task: rows with a problem, tests and optionally a solution.

The code of a completion runs in a sandbox, and its tests never run in the same process. Program output and return
values are compared outside; test code runs in a second sandbox that calls the function through a pipe
(``selfdistill.sandbox``). Public tests may appear in the prompt and in feedback. Of a hidden test, feedback contains
only the kind of failure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import ceil

from selfdistill.config.tasks import CodeConfig
from selfdistill.contexts.thinking import after_thinking
from selfdistill.errors import ConfigError, DataError
from selfdistill.sandbox.sandbox import Limits, Sandbox
from selfdistill.tasks.code.reach import Reading, defined_functions, likely_entry, read_test_code
from selfdistill.tasks.code.runner import Result, Runner, describe
from selfdistill.tasks.code.suites import Suite, defines, documented, find_code, read_tests
from selfdistill.tasks.data import MemoryRows, Row, lookup, map_row
from selfdistill.tasks.rows import RowTask, example_id, question_and_fields, system_messages
from selfdistill.types import Example, Message, Verdict

NO_CODE = "no code block was found"
CUT = "the completion was cut off before the end of its code"
UNREACHED = "no check of the tests was reached"
NOT_ONE = "the tests call one function, and the code does not define exactly one"


@dataclass(frozen=True, slots=True)
class _Job:
    """A row's tests, and the code around the code under test."""

    public: Suite
    hidden: Suite
    examples: Suite
    prefix: str
    setup: str
    function: tuple[str, ...]
    any_name: bool = False
    """Whether a completion cannot know the function's name, so a function of any name is accepted."""
    readings: tuple[Reading, ...] = ()
    """The analysis of each suite that is test code."""


@dataclass(frozen=True, slots=True)
class CodeExample(Example):
    """An example with its tests. The tests are not a field, so no context can show them."""

    job: _Job | None = field(default=None, compare=False, repr=False)


class CodeTask(RowTask):
    """Programming problems, verified by running their tests.

    Tests come in any form of ``tasks/code/suites.py``. A completion that does not define the entry point continues the
    ``prefix``, such as HumanEval's prompt. The ``solution`` field is the row's solution in a fenced block.

    Args:
        config: the task's table.
        rows: rows in memory; see :class:`~selfdistill.tasks.rows.RowTask`.

    Raises:
        DataError: a source or a row that cannot be used, with its line number.
        UserError: no sandbox works here.
    """

    name = "code"

    def __init__(self, config: CodeConfig, rows: Mapping[str, MemoryRows] | None = None) -> None:
        if config.public_tests is None and config.hidden_tests is None:
            raise ConfigError("the code task needs public_tests, hidden_tests or both: columns that hold tests")
        self.config = config
        texts = {
            "prompt": config.prompt,
            "solution": config.solution,
            "entry": config.entry_point,
            "prefix": config.prefix,
            "starter": config.starter,
            "examples": config.examples,
        }
        self._mapping = {name: source for name, source in texts.items() if source is not None}
        limits = Limits(cpu=ceil(config.timeout), seconds=2 * config.timeout + 2, memory=config.memory * 2**20)
        self._sandbox = Sandbox(limits, workers=config.workers, unsafe=config.unsafe)
        self._runner = Runner(self._sandbox, stop_early=config.reward == "all")
        self._packages: dict[str, bool] = {}
        self._sound: dict[int, bool] = {}
        super().__init__(config, rows)

    def example_of(self, row: Row) -> tuple[str, Example]:
        """The row's question, and the example with its parsed tests."""
        question, texts = question_and_fields(row, self._mapping)
        job = self._job(row, question, texts)
        if not job.public and not job.hidden:
            raise DataError(f"{row.location}: there are no tests")
        cases = (*job.public.cases, *job.hidden.cases)
        if not job.function and any(case.arguments is not None for case in cases):
            raise DataError(f"{row.location}: the tests call a function, and entry_point does not name it")
        self._refuse_unreached(row, job, texts.get("solution", ""))
        fields = map_row(row, self.config.fields)
        if texts.get("solution"):
            fields["solution"] = _fenced(texts["solution"])
        request = question + self._shown_tests(job) + _shown_starter(texts.get("starter", ""), job) + self.config.suffix
        prompt = (*system_messages(row, self.config.system), Message("user", request))
        return question, CodeExample(example_id(row), prompt, fields, row.values, job=job)

    def reference(self, example: Example) -> str:
        """The row's solution. Empty if the row has none."""
        return example.fields.get("solution", "")

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """Run the public tests, then the hidden ones. ``details["tests"]`` is the share of tests that pass.

        With ``reward = "share"`` all tests are run, and ``tests_passed`` and ``tests_total`` are their counts.
        """
        assert isinstance(example, CodeExample) and example.job is not None, "an example of another task"
        job = example.job
        code = _code(job, after_thinking(text), finished=finished)
        if code is None:
            return Verdict(0.0, feedback=NO_CODE if finished else CUT, details={"no_code": 1.0})
        job = self._named(job, code)
        if job.any_name and not job.function:
            return Verdict(0.0, feedback=NOT_ONE)
        source = self._program(job, code)
        public = self._run(job, job.public, source)
        decided = self.config.reward == "all" and public.problem is not None
        hidden = Result() if decided else self._run(job, job.hidden, source)
        passed, total = public.passed + hidden.passed, public.total + hidden.total
        share = passed / (total or 1)
        details = {"tests": share}
        if self.config.reward == "share" and total:
            details |= {"tests_passed": float(passed), "tests_total": float(total)}
        if public.problem is None and hidden.problem is None:
            if not total:
                return Verdict(0.0, feedback=UNREACHED, details={"tests": 0.0})
            return Verdict(1.0, details=details)
        reward = share if self.config.reward == "share" else 0.0
        return Verdict(reward, feedback=self._feedback(example, job, source, public, hidden), details=details)

    def verify_many(self, batch: Sequence[tuple[Example, str, bool]]) -> list[Verdict]:
        """A verdict for each (example, text, finished), verified in parallel by ``workers`` threads."""
        with ThreadPoolExecutor(self._sandbox.workers) as pool:
            return list(pool.map(lambda item: self.verify(item[0], item[1], finished=item[2]), batch))

    def _job(self, row: Row, question: str, texts: Mapping[str, str]) -> _Job:
        columns = ("public_tests", "hidden_tests", "setup")
        raw = {name: _raw(row, name, getattr(self.config, name)) for name in columns}
        public, hidden = (read_tests(raw[name], f"{row.location}, {name}") for name in ("public_tests", "hidden_tests"))
        setup_column = raw["setup"]
        setup = "\n".join(map(str, setup_column)) if isinstance(setup_column, list) else str(setup_column or "")
        path = _function_path(texts.get("entry", "")) or (public.function or hidden.function,)
        owner = ("Solution",) if "class Solution" in texts.get("starter", "") and len(path) == 1 else ()
        function = (*owner, *path) if path[-1] else ()
        prefix = texts.get("prefix", "")
        job = _Job(public, hidden, documented(texts.get("examples", "")), prefix, setup, function)
        readings = self._readings(row, job)
        if not function and (any(reading.wants_entry for reading in readings) or (readings and prefix)):
            named = {key: texts.get(key, "") for key in ("prefix", "starter", "solution")}
            name, visible = likely_entry(question=question, **named)
            if not name and named["solution"]:
                raise DataError(
                    f"{row.location}: the tests call one function, and neither entry_point nor prompt names it"
                )
            job = replace(job, function=(*owner, name) if name else (), any_name=not visible)
            readings = self._readings(row, job)
        return replace(job, readings=readings)

    def _readings(self, row: Row, job: _Job) -> tuple[Reading, ...]:
        """Analyse the row's test code. Refuses tests that import packages missing in the sandbox."""
        entry = job.function[-1] if job.function else ""
        codes = [suite.code for suite in (job.public, job.hidden) if suite.code]
        readings = tuple(read_test_code(code, self._setup(job), entry=entry, location=row.location) for code in codes)
        for package in sorted({package for reading in readings for package in reading.packages}):
            if package not in self._packages:
                self._packages[package] = self._sandbox.run(f"import {package}").clean
            if not self._packages[package]:
                raise DataError(f"{row.location}: the tests import {package}, which the sandbox's Python does not have")
        return readings

    def _refuse_unreached(self, row: Row, job: _Job, solution: str) -> None:
        """Refuse tests if no check can be reached, or if the row's own solution reaches none."""
        cases = [case for suite in (job.public, job.hidden) for case in suite.cases]
        if any(reading.reach == "surely" for reading in job.readings):
            return
        if any(job.function or case.expected.strip() for case in cases):
            return
        if all(reading.reach == "never" for reading in job.readings):
            raise DataError(f"{row.location}: the tests check nothing that the code computes")
        code = _code(job, solution, finished=True)
        if code is None:
            return
        job = self._named(job, code)
        results = [self._run(job, suite, self._program(job, code)) for suite in (job.public, job.hidden)]
        silent = all(result.problem is None or result.problem.kind == "unreached" for result in results)
        if silent and not sum(result.passed for result in results):
            raise DataError(f"{row.location}: no check of the tests is reached under the row's own solution")

    def _named(self, job: _Job, code: str) -> _Job:
        """The job with its function name. If no name is given, it is the only function that the code defines."""
        if not job.any_name:
            return job
        defined = defined_functions(code)
        if job.function and job.function[-1] in defined:
            return job
        return replace(job, function=(defined[0],) if len(defined) == 1 else ())

    def _setup(self, job: _Job) -> str:
        return f"{_complete(job.prefix)}\n{job.setup}" if job.prefix else job.setup

    def _shown_tests(self, job: _Job) -> str:
        if not self.config.show_public or not job.public.code:
            return ""
        return f"\n\nThe code must pass these tests:\n\n```python\n{job.public.code.strip()}\n```"

    def _program(self, job: _Job, code: str) -> str:
        """The whole program. A completion that does not define the entry point continues the prefix."""
        if job.prefix:
            defined = defines(code, job.function[-1] if job.function else "")
            code = f"{_complete(job.prefix)}\n{code}" if defined else job.prefix + code
        return f"{self.config.preamble}\n{code}" if self.config.preamble else code

    def _run(self, job: _Job, suite: Suite, source: str) -> Result:
        return self._runner.run(suite, source, setup=self._setup(job), function=job.function)

    def _feedback(self, example: CodeExample, job: _Job, source: str, public: Result, hidden: Result) -> str:
        """Feedback on the first failure. If only a hidden test failed, the examples of the prompt are run as well."""
        problem = public.problem or hidden.problem
        assert problem is not None
        if public.problem or problem.loading:
            return describe(problem, self.config.feedback_chars)
        message = f"a hidden test failed: {problem.kind_in_words}"
        failing = self._run(job, job.examples, source).problem
        if failing is None or not self._examples_hold(example, job):
            return message
        description = describe(failing, self.config.feedback_chars)
        return f"{message}\nOf the examples in the question this one fails.\n{description}"

    def _examples_hold(self, example: Example, job: _Job) -> bool:
        """Whether the row's own solution passes the question's examples. HumanEval/47 has a wrong example."""
        code = _code(job, example.fields.get("solution", ""), finished=True)
        if code is None:
            return True
        if id(example) not in self._sound:
            self._sound[id(example)] = self._run(job, job.examples, self._program(job, code)).problem is None
        return self._sound[id(example)]


def _code(job: _Job, text: str, *, finished: bool) -> str | None:
    """The code of a completion: the block that defines the functions called by the job's tests."""
    names = {*job.function[:1], *job.function[-1:], *(name for reading in job.readings for name in reading.called)}
    return find_code(text, finished=finished, names=names, program=not names)


def _complete(prefix: str) -> str:
    """The prefix with ``pass`` appended if it ends in a function without a body."""
    lines = [line for line in prefix.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return f"{prefix}\n    pass\n" if lines and lines[-1].rstrip().endswith(":") else prefix


def _raw(row: Row, name: str, source: str | None) -> object:
    """A column's value, of any type. None if the source ends in ``?`` and the column is absent."""
    if source is None:
        return None
    path = source.removesuffix("?")
    try:
        return lookup(row, name, path)
    except DataError:
        if path == source:
            raise
        return None


def _function_path(text: str) -> tuple[str, ...]:
    """The name itself, ``("Solution", "solve")`` for ``Solution().solve``, or ``func_name`` of a JSON object."""
    if text.lstrip().startswith("{"):
        try:
            text = str(json.loads(text).get("func_name") or "")
        except ValueError:
            return ()
    return tuple(part.removesuffix("()") for part in text.strip().split(".")) if text.strip() else ()


def _fenced(code: str) -> str:
    return f"```python\n{code.strip()}\n```"


def _shown_starter(starter: str, job: _Job) -> str:
    if starter.strip():
        return f"\n\nUse this starter code:\n\n{_fenced(starter)}"
    if job.function or job.public.code or job.hidden.code:
        return ""
    return "\n\nThe program reads its input from stdin and writes its answer to stdout."
