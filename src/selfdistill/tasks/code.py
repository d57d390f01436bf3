"""Code from rows of data: a problem, tests, perhaps a solution.

The code of a completion runs in a sandbox, and its tests do not run beside it: a program's output and a function's
values are compared here, and test code runs in a second sandbox that calls the function through a pipe
(``selfdistill.sandbox``). Public tests may be shown in the prompt and in feedback. Of a hidden test nothing is told but
the kind of its failure.
"""

from __future__ import annotations

import doctest
import json
import re
from ast import literal_eval
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil
from typing import Literal, Unpack

from selfdistill.data import Row, lookup, map_row
from selfdistill.errors import ConfigError, DataError
from selfdistill.sandbox import Limits, Sandbox
from selfdistill.tasks.code_runs import Result, Runner, describe
from selfdistill.tasks.code_tests import Suite, find_code, read_tests
from selfdistill.tasks.math_answers import after_thinking
from selfdistill.tasks.rows import RowOptions, RowTask, Source, example_id, question_and_fields, system_messages
from selfdistill.types import Example, Message, Verdict

SUFFIX = "\n\nReply with the whole program in one ```python block."

NO_CODE = "no code block was found"
CUT = "the completion was cut off before the end of its code"


@dataclass(frozen=True, slots=True)
class _Job:
    """A row's tests and what surrounds the code under test."""

    public: Suite
    hidden: Suite
    examples: Suite
    prefix: str
    setup: str
    function: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CodeExample(Example):
    """An example with its tests, which no field shows."""

    job: _Job | None = field(default=None, compare=False, repr=False)


class CodeTask(RowTask):
    """Programming problems, verified by running their tests.

    Args:
        path, options: where the rows are; see :class:`~selfdistill.tasks.rows.RowTask`.
        prompt: source of the question.
        public_tests, hidden_tests: columns of tests, in any form of ``code_tests``. At least one of them.
        entry_point: source of the name of the function under test, or JSON that holds it as ``func_name``.
        prefix: source of code that stands in front of the completion's, such as HumanEval's prompt; a completion that
            does not define the entry point continues it.
        preamble: code in front of everything, for example imports that a platform makes.
        setup: column of code that the tests need.
        starter: source of starter code, shown behind the question.
        examples: source of ``>>>`` examples. They never count; the first that fails is told.
        show_public: whether the prompt shows public test code.
        solution: source of a solution's code, shown in hindsight as ``$solution``, in a fenced block.
        fields, system, suffix: as for the math task.
        reward: ``"all"`` is 1 if every test holds, else 0; ``"share"`` is the share of tests that hold.
        feedback_chars: about so many characters of a failing test are told.
        timeout: processor seconds of one program, or of all calls that one suite makes.
        memory: MiB of one program and all it starts.
        workers: how many programs run at once.
        unsafe: run without a sandbox where none works.

    Raises:
        DataError: a source or a row that cannot be used, with its line number.
        UserError: no sandbox works here.
    """

    name = "code"

    def __init__(
        self,
        path: Source,
        *,
        prompt: str = "prompt",
        public_tests: str | None = None,
        hidden_tests: str | None = None,
        entry_point: str | None = None,
        prefix: str | None = None,
        preamble: str = "",
        setup: str | None = None,
        starter: str | None = None,
        examples: str | None = None,
        show_public: bool = False,
        solution: str | None = None,
        fields: Mapping[str, str] | None = None,
        system: str | None = None,
        suffix: str = SUFFIX,
        reward: Literal["all", "share"] = "all",
        feedback_chars: int = 1000,
        timeout: float = 5.0,
        memory: int = 512,
        workers: int = 2,
        unsafe: bool = False,
        **options: Unpack[RowOptions],
    ) -> None:
        if public_tests is None and hidden_tests is None:
            raise ConfigError("the code task needs public_tests, hidden_tests or both: columns that hold tests")
        texts = {"prompt": prompt, "solution": solution, "entry": entry_point, "prefix": prefix, "starter": starter}
        self._mapping = {name: source for name, source in texts.items() if source is not None}
        if examples is not None:
            self._mapping["examples"] = examples
        self._fields = dict(fields or {})
        self._columns = {"public_tests": public_tests, "hidden_tests": hidden_tests, "setup": setup}
        self._preamble = preamble
        self._show_public = show_public
        self._system = system
        self._suffix = suffix
        self._reward = reward
        self._budget = feedback_chars
        limits = Limits(cpu=ceil(timeout), seconds=2 * timeout + 2, memory=memory * 2**20)
        self._sandbox = Sandbox(limits, workers=workers, unsafe=unsafe)
        self._runner = Runner(self._sandbox, stop_early=reward == "all")
        self._sound: dict[int, bool] = {}
        super().__init__(path, **options)

    def example_of(self, row: Row) -> tuple[str, Example]:
        """The row's question, and the example; its tests are read and kept aside."""
        question, texts = question_and_fields(row, self._mapping)
        job = self._job(row, texts)
        if not job.public and not job.hidden:
            raise DataError(f"{row.place}: there are no tests")
        if (job.public.cases or job.hidden.cases) and not job.function and _is_function(job):
            raise DataError(f"{row.place}: the tests call a function, and entry_point does not name it")
        fields = map_row(row, self._fields)
        if texts.get("solution"):
            fields["solution"] = _fenced(texts["solution"])
        asked = question + self._shown_tests(job) + _shown_starter(texts.get("starter", ""), job) + self._suffix
        prompt = (*system_messages(row, self._system), Message("user", asked))
        return question, CodeExample(example_id(row), prompt, fields, row.values, job=job)

    def reference(self, example: Example) -> str:
        """The row's solution; nothing where it has none."""
        return example.fields.get("solution", "")

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """Run public tests, then hidden ones. ``details`` holds the share of tests that hold."""
        code = find_code(after_thinking(text), finished=finished)
        if code is None:
            return Verdict(0.0, feedback=NO_CODE if finished else CUT, details={"no_code": 1.0})
        assert isinstance(example, CodeExample) and example.job is not None, "an example of another task"
        job = example.job
        source = self._whole(job, code)
        public = self._run(job, job.public, source)
        told_already = self._reward == "all" and public.problem is not None
        hidden = Result() if told_already else self._run(job, job.hidden, source)
        share = (public.passed + hidden.passed) / (public.total + hidden.total or 1)
        if public.problem is None and hidden.problem is None:
            return Verdict(1.0, details={"tests": share})
        reward = share if self._reward == "share" else 0.0
        return Verdict(reward, feedback=self._feedback(example, source, public, hidden), details={"tests": share})

    def verify_many(self, asked: Sequence[tuple[Example, str, bool]]) -> list[Verdict]:
        """A verdict on each (example, text, finished), as many at once as there are workers."""
        with ThreadPoolExecutor(self._sandbox.workers) as pool:
            return list(pool.map(lambda one: self.verify(one[0], one[1], finished=one[2]), asked))

    def _job(self, row: Row, texts: Mapping[str, str]) -> _Job:
        raw = {name: _raw(row, name, source) for name, source in self._columns.items()}
        public, hidden = (read_tests(raw[name], f"{row.place}, {name}") for name in ("public_tests", "hidden_tests"))
        setup = raw["setup"]
        function = _function_name(texts.get("entry", "")) or public.function or hidden.function
        owner = ("Solution",) if "class Solution" in texts.get("starter", "") else ()
        examples = _documented(texts.get("examples", ""))
        code = "\n".join(map(str, setup)) if isinstance(setup, list) else str(setup or "")
        return _Job(public, hidden, examples, texts.get("prefix", ""), code, (*owner, function) if function else ())

    def _shown_tests(self, job: _Job) -> str:
        if not self._show_public or not job.public.code:
            return ""
        return f"\n\nThe code must pass these tests:\n\n```python\n{job.public.code.strip()}\n```"

    def _whole(self, job: _Job, code: str) -> str:
        """The program: a completion without the entry point's definition continues the prefix."""
        if job.prefix:
            name = re.escape(job.function[-1]) if job.function else r"\w+"
            defined = re.search(rf"^(?:async\s+)?def\s+{name}\b|^{name}\s*=|^class\s+{name}\b", code, re.MULTILINE)
            code = f"{_complete(job.prefix)}\n{code}" if defined else job.prefix + code
        return f"{self._preamble}\n{code}" if self._preamble else code

    def _run(self, job: _Job, suite: Suite, source: str) -> Result:
        setup = f"{_complete(job.prefix)}\n{job.setup}" if job.prefix else job.setup
        return self._runner.run(suite, source, setup=setup, function=job.function)

    def _feedback(self, example: CodeExample, source: str, public: Result, hidden: Result) -> str:
        """Words on the first failure; examples of the prompt are tried where only a hidden test has failed."""
        problem = public.problem or hidden.problem
        assert problem is not None and example.job is not None
        if public.problem or problem.loading:
            return describe(problem, self._budget)
        told = f"a hidden test failed: {problem.kind_in_words}"
        shown = self._run(example.job, example.job.examples, source).problem
        if shown is None or not self._examples_hold(example, example.job):
            return told
        return f"{told}\nOf the examples in the question this one fails.\n{describe(shown, self._budget)}"

    def _examples_hold(self, example: Example, job: _Job) -> bool:
        """Whether the row's own solution passes the question's examples: HumanEval/47 has a wrong one."""
        code = find_code(example.fields.get("solution", ""), finished=True)
        if code is None:
            return True
        if id(job) not in self._sound:
            self._sound[id(job)] = self._run(job, job.examples, self._whole(job, code)).problem is None
        return self._sound[id(job)]


def _complete(prefix: str) -> str:
    """Code that may end in a stub whose body is no more than a comment, with a body."""
    lines = [line for line in prefix.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return f"{prefix}\n    pass\n" if lines and lines[-1].rstrip().endswith(":") else prefix


def _raw(row: Row, name: str, source: str | None) -> object:
    """A column's value of any type; None where a source that ends in ``?`` finds none."""
    if source is None:
        return None
    path = source.removesuffix("?")
    try:
        return lookup(row, name, path)
    except DataError:
        if path == source:
            raise
        return None


def _function_name(text: str) -> str:
    """The name itself, or ``func_name`` of a JSON object."""
    if not text.lstrip().startswith("{"):
        return text.strip()
    try:
        return str(json.loads(text).get("func_name") or "")
    except ValueError:
        return ""


def _is_function(job: _Job) -> bool:
    return any(case.arguments is not None for case in (*job.public.cases, *job.hidden.cases))


def _documented(text: str) -> Suite:
    """``>>>`` examples whose result is a literal, as test code."""
    asserts = []
    try:
        # The quotes that close a docstring would belong to the last example's result.
        examples = doctest.DocTestParser().get_examples(re.sub(r"\"{3}|'{3}", "\n", text))
    except ValueError:  # badly indented
        return Suite()
    for one in examples:
        try:
            literal_eval(one.want.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        source = one.source.partition(" #")[0].strip()
        asserts.append(f"assert {source} == {one.want.strip()}")
    return Suite("\n".join(asserts))


def _fenced(code: str) -> str:
    return f"```python\n{code.strip()}\n```"


def _shown_starter(starter: str, job: _Job) -> str:
    if starter.strip():
        return f"\n\nUse this starter code:\n\n{_fenced(starter)}"
    if job.function or job.public.code or job.hidden.code:
        return ""
    return "\n\nThe program reads its input from stdin and writes its answer to stdout."
