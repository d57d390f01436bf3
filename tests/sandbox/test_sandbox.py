"""The sandbox: programs, calls and test code in it, its limits, and what it says where it cannot work."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import pytest

from selfdistill.cli.app import main
from selfdistill.errors import UserError
from selfdistill.sandbox import doctor, isolation
from selfdistill.sandbox.attacks import processes_named
from selfdistill.sandbox.codec import Encoder, Untransferable, decode
from selfdistill.sandbox.guest import seccomp_program
from selfdistill.sandbox.isolation import Isolation, Name
from selfdistill.sandbox.sandbox import Compared, Failure, Limits, Sandbox, Tally
from support.isolation import WORKING, isolated_by, needs_isolation

SEND = """
import sys
server = sys.modules["selfdistill.sandbox.guest"].Server
honest = server._encode
server._encode = lambda self, value: {} if value == 1 else honest(self, value)
def f(): return 1
"""
"""A module that sends a tree of its own for the value of ``f()``."""


@pytest.fixture(params=[isolated_by("bubblewrap"), isolated_by("namespaces"), isolated_by("none")])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """A sandbox of each kind that works here, and the unsafe one."""
    made = Sandbox(Limits(cpu=2, seconds=10.0), unsafe=True)
    made.isolation = Isolation(request.param)
    return made


def test_a_program_reads_its_input_and_its_output_comes_back(sandbox: Sandbox) -> None:
    outcome = sandbox.run(
        "import sys\nname = input()\nprint('hello', name)\nprint('aside', file=sys.stderr)", "wörld\n"
    )

    assert outcome.output == "hello wörld\n"
    assert outcome.errors == "aside\n"
    assert outcome.clean


def test_input_that_nobody_reads_and_input_larger_than_a_pipe(sandbox: Sandbox) -> None:
    assert sandbox.run("print(1)", "x" * 2_000_000).output == "1\n"
    assert sandbox.run("import sys; print(len(sys.stdin.read()))", "x" * 2_000_000).output == "2000000\n"


def test_an_exception_is_told_as_the_interpreter_would(sandbox: Sandbox) -> None:
    outcome = sandbox.run("def f():\n    return 1 / 0\nf()\n")

    assert outcome.code == 1
    assert 'File "solution.py", line 2, in f\n    return 1 / 0' in outcome.errors
    assert outcome.errors.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "guest" not in outcome.errors


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_code_comes_back(sandbox: Sandbox, code: int) -> None:
    outcome = sandbox.run(f"if __name__ == '__main__':\n    exit({code})")

    assert (outcome.end, outcome.code, outcome.clean) == ("exit", code, code == 0)


def test_functions_are_called_with_values_and_return_values(sandbox: Sandbox) -> None:
    source = """
class Solution:
    def __init__(self): self.calls = 0
    def swap(self, pair): self.calls += 1; return (pair[1], pair[0], self.calls)
def fail(x):
    raise LookupError(f"no {x}")
def thing(): return object()
"""
    swapped = sandbox.compare(source, "Solution.swap", [([[1, "a"]], ["a", 1, 1]), ([[2, "b"]], ["b", 2, 1])])
    failed = sandbox.compare(source, "fail", [([7], 7)])
    opaque = sandbox.compare(source, "thing", [([], None)])
    absent = sandbox.compare(source, "absent", [([], None)])

    assert swapped == Compared(2)
    assert failed.failure == Failure("raised", name="LookupError", message="no 7", line=6, builtin="LookupError")
    assert opaque == Compared(0, 0, "<object object>")
    assert absent.failure is not None and absent.failure.name == "NameError"


def test_a_failure_while_loading_is_told_as_such(sandbox: Sandbox) -> None:
    found = sandbox.compare("import nonsense_that_is_not_there", "f", [([], None)])

    assert found.failure is not None
    assert (found.failure.name, found.failure.loading) == ("ModuleNotFoundError", True)


def test_an_integer_too_long_to_write_is_wrong_and_costs_no_other_case(sandbox: Sandbox) -> None:
    cases = [([5000], 10**5000), ([5000], 1), ([3_000_000], 1)]
    found = sandbox.compare("def f(n): return 10**n", "f", cases)
    assert (found.passed, found.first, found.got[:5], found.failure) == (1, 1, "10000", None)
    found = sandbox.compare("def f(n): return 10**n", "f", cases[::-2])
    assert (found.passed, found.first, found.got) == (1, 0, "<a int too large to show>")


def test_test_code_calls_the_candidate_through_the_pipe(sandbox: Sandbox) -> None:
    source = "class Node:\n    def __init__(self, v): self.v = v\ndef total(nodes): return sum(n.v for n in nodes)"
    tests = (
        "nodes = [Node(1), Node(2)]\nnodes[0].v = 5\nassert total(nodes) == 7\nassert nodes[0].v == 6\nassert total([])"
    )

    assert sandbox.judge(source, tests=tests) == Tally(
        1,
        3,
        {"kind": "wrong", "test": "nodes[0].v == 6", "input": "total([<Node object>, <Node object>])"}
        | {"got": "5", "expected": "6"},
    )


@needs_isolation
def test_what_a_judge_counts() -> None:
    """Asserts behind a stop have failed, a test that expects an exception gets it, and no object is taken for true."""
    sandbox = Sandbox(Limits(cpu=2))
    source = (
        "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x if x else object()\ndef g(x): x.clear()"
    )
    cases = {
        "assert f(1) == 1\nassert f(2) == 3\nassert f(3) == 3": (2, 3),
        "assert f(1) == 1\nf(-1)\nassert f(2) == 2": (1, 2),
        "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass": (1, 1),
        "try:\n    f(1)\n    raise AssertionError\nexcept Exception:\n    pass": (0, 2),
        "assert f(0)": (0, 1),
        "f(1)": (0, 0),
        "assert 1 == 1\nx = 2\nassert x == 2\nassert f(x) == 2": (1, 1),
        "xs = [3]\ng(xs)\nassert xs == [3]": (1, 1),
        "f(-1)": (0, 1),
        "def check(candidate):\n    assert (y := candidate(4)) == 4 and y > 3": (1, 1),
        "def check(candidate):\n    for x in range(1, 5):\n        assert candidate(x) == x": (4, 4),
    }
    for tests, (passed, total) in cases.items():
        found = sandbox.judge(source, tests=tests, entry="f")
        assert isinstance(found, Tally), found
        assert (found.passed, found.total) == (passed, total), tests
    method = f"class Solution:\n    x = 1\n    def g(self, x): return x\n{source}"
    made = sandbox.judge(method, tests="x = 2\nassert x == 2\nassert candidate(x) == 2", entry="Solution.g")
    assert made == Tally(1, 1, None), "an object was made, and nothing asked of it"


@needs_isolation
@pytest.mark.parametrize(
    ("source", "end"),
    [
        ("while True: pass", "time"),
        ("while True: print('x' * 1000)", "output"),
        ("import ctypes; ctypes.string_at(0)", "crash"),
    ],
)
def test_how_a_program_ends_at_a_limit(source: str, end: str) -> None:
    assert Sandbox(Limits(cpu=1)).run(source).end == end


@needs_isolation
def test_programs_run_side_by_side_up_to_the_limit() -> None:
    sandbox = Sandbox(Limits(cpu=2), workers=2)
    before = threading.active_count()
    with ThreadPoolExecutor(6) as pool:
        sums = list(pool.map(lambda n: sandbox.run("print(int(input()) + 1)", str(n)).output, range(6)))

    assert sums == [f"{n + 1}\n" for n in range(6)]
    assert [one.output for one in sandbox.run_all([("print(1)", ""), ("print(2)", "")])] == ["1\n", "2\n"]
    assert threading.active_count() == before


@needs_isolation
def test_verdicts_repeat_although_hashes_and_random_numbers_are_drawn() -> None:
    sandbox = Sandbox(Limits(cpu=2))
    source = "import random\ndef f(): return [list({'a', 'b', 'c', 'd'}), random.random()]"

    assert sandbox.compare(source, "f", [([], None)]).got == sandbox.compare(source, "f", [([], None)]).got


HOSTILE = {
    "a signalling number": "from decimal import Decimal\ndef f(): return Decimal('sNaN')",
    "signalling numbers in a set": "from decimal import Decimal\ndef f(): return [Decimal('sNaN'), {Decimal('NaN')}]",
    "a fraction that is written as an exponent": (
        "from fractions import Fraction\nFraction.__str__ = lambda self: '1e50000000'\ndef f(): return Fraction(1)"
    ),
    "a decimal of a large exponent": "from decimal import Decimal\ndef f(): return Decimal('1e50000000')",
    "a set whose members collide": SEND.format("['s', [['i', hex(n * (2**61 - 1))] for n in range(40_000)]]"),
    "a dict whose keys collide": SEND.format("['d', [[['i', hex(n * (2**61 - 1))], 1] for n in range(40_000)]]"),
    "a deque of half a million": SEND.format("['dq', [[]] * 900_000]"),
    "a tree that no encoder writes": SEND.format("['d', [[[], 1]]]"),
    "an object that equals everything": "class A:\n    def __eq__(self, other): return True\ndef f(): return A()",
    "a number that equals everything": "class A(int):\n    def __eq__(self, other): return True\ndef f(): return A(2)",
    "an endless iterator": "import itertools\ndef f(): return itertools.count()",
}


@needs_isolation
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_result_is_a_wrong_answer(name: str) -> None:
    sandbox = Sandbox(Limits(cpu=2))
    found = sandbox.compare(HOSTILE[name], "f", [([], 1)])
    judged = sandbox.judge(HOSTILE[name], tests="assert f() == 1\nassert f() != f", entry="f")

    assert (found.passed, found.first) == (0, 0)
    assert isinstance(judged, Failure) or judged.passed < judged.total


FORGOTTEN = {
    "math.isclose(f(2), 4.0)": "class math: isclose = lambda *_: True",
    "isclose(f(2), 4.0)": "def isclose(*_): return True",
    "Counter(f(2)) == Counter([4])": "class Counter:\n    def __new__(cls, *_): return 1",
    "np.allclose(f(2), 4)": "class np: allclose = lambda *_: True",
    "f(2) != 5": "",
    "f(2) is not None": "",
    "not f(2) is None": "",
    "f(2) not in [5, 6]": "",
    "str(f(2))": "",
    "len({f(2), f(3)}) == 2": "",
}


@needs_isolation
@pytest.mark.parametrize("check", FORGOTTEN)
def test_nothing_of_the_candidates_stands_in_for_a_value_or_a_module(check: str) -> None:
    sandbox = Sandbox(Limits(cpu=2))
    forged = sandbox.judge(f"{FORGOTTEN[check]}\ndef f(x): return object()", tests=f"assert {check}", entry="f")
    inside = f"def test():\n    if not ({check}): raise AssertionError"
    asked = sandbox.judge(f"{FORGOTTEN[check]}\ndef f(x): return object()", tests=inside, entry="f")

    for found in (forged, asked):
        assert isinstance(found, Tally) and found.passed == 0 < found.total, found


@needs_isolation
def test_what_a_test_forgot_to_import_is_pythons_own() -> None:
    sandbox = Sandbox(Limits(cpu=2))
    tests = "assert math.isclose(f(2), 2.0)\nassert Counter([f(2)]) == Counter([2])\nassert bisect(f(3)) == 3"
    source = "def f(x): return x\ndef bisect(x): return x"
    node = "class Node:\n    def __init__(self, v): self.v = v\ndef f(x): return Node(x)"
    cases = "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertIsNotNone(f(2))"

    assert sandbox.judge(source, tests=tests) == Tally(3, 3, None)
    assert sandbox.judge(node, tests="n = f(2)\nassert n is not None\nassert n.v == 2") == Tally(2, 2, None)
    other = sandbox.judge(node, tests="n, m = f(2), f(3)\nassert n.v == 2\nassert n is not m")
    assert isinstance(other, Tally) and (other.passed, other.total) == (1, 2), "only one of two objects is used"
    unused = sandbox.judge(node, tests=cases)
    assert isinstance(unused, Tally) and (unused.passed, unused.total) == (0, 1)


def test_without_isolation_nothing_is_run_unless_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "trouble", lambda name: "is not installed")
    with pytest.raises(UserError, match=r"apt install bubblewrap.*unsafe = true"):
        Sandbox()
    assert Sandbox(unsafe=True).run("print(1)").output == "1\n"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_which", lambda program: None)
    assert isolation.trouble.__wrapped__("bubblewrap") == "bwrap is not installed"
    assert isolation.trouble.__wrapped__("namespaces") == "unshare is not installed"


@needs_isolation
def test_the_doctor_is_content_with_a_sandbox_that_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "attack_names", lambda *, thorough: ["read the environment", "make new namespaces"])
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])

    found = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert found["sandbox"] == WORKING[0] and found["safe"] is True
    assert found["attacks"] == {"read the environment": None, "make new namespaces": None}
    assert found["packages"]["torch"] and found["device"]
    assert f"transformers{found['supported']['transformers']}" in (metadata.requires("selfdistill") or [])


def test_the_doctor_warns_of_a_machine_without_a_sandbox(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(isolation, "trouble", lambda name: "is not installed")
    asked = ["transformers<6,>=5.16", "math-verify>=0.8", "rich>=13.9", 'vllm>=0.32; extra == "vllm"']
    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])

    assert ended.value.code == 1
    assert "NOT SAFE" in (printed := capsys.readouterr().out) and "apt install bubblewrap" in printed
    for name, supported in (("transformers", "<6,>=5.16"), ("math-verify", ">=0.8"), ("vllm", ">=0.32")):
        assert re.search(rf"^{name} .*\(supported: {supported}\)$", printed, re.MULTILINE)


VALUES = [
    None,
    True,
    0,
    -(2**300),
    0.1,
    float("inf"),
    "text \ud800 ü",
    b"\x00\xff",
    bytearray(b"x"),
    [1, [2, (3, {4})]],
    frozenset({1}),
    {(1, "a"): [None], 2.5: {}},
    2 + 3j,
    range(2, 9, 3),
    Decimal("1.10"),
    Fraction(2, 3),
    deque([1, 2]),
    {2: 1, "a": 2}.keys(),
    {2: [1]}.items(),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_arrives_as_it_left(value: object) -> None:
    tree = json.loads(json.dumps(Encoder(lambda _: 0).encode(value)))
    back = decode(tree, lambda number, name: None)

    assert back == value and type(back) is type(value)


def test_subclasses_arrive_as_what_they_hold() -> None:
    class Count(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    back = decode(Encoder(lambda _: 0).encode([Count(3)]), lambda number, name: None)
    assert type(back[0]) is int and back[0] != 4


def test_objects_travel_as_references_and_iterators_as_their_items() -> None:
    kept: list[object] = []

    def keep(thing: object) -> int:
        kept.append(thing)
        return 0

    tree = Encoder(keep).encode([object(), iter([1, 2])])
    reference, items = decode(tree, lambda number, name: (number, name))

    assert reference == (0, "object") and list(items) == [1, 2] and len(kept) == 1


@pytest.mark.parametrize(
    "tree",
    [
        ["l"],
        ["l", 3],
        ["x", []],
        ["d", [[1]]],
        ["d", [[["l", []], 1]]],
        ["i", "zz"],
        {"l": []},
        ["b", "0"],
        ["c", "1", 2],
    ],
    ids=repr,
)
def test_a_malformed_tree_is_refused(tree: object) -> None:
    with pytest.raises(Untransferable):
        decode(tree, lambda number, name: None)


COLLIDING = [["i", hex(n * (2**61 - 1))] for n in range(2_000)]


@pytest.mark.parametrize(
    "tree",
    [
        ["fr", "1e50000000"],
        ["fr", "1/0"],
        ["fr", "1." + "0" * 9],
        ["dec", "1e50000000"],
        ["dec", "1e-50000000"],
        ["s", COLLIDING],
        ["fs", COLLIDING],
        ["dk", COLLIDING],
        ["d", [[key, 1] for key in COLLIDING]],
        ["di", [["t", [key, 1]] for key in COLLIDING]],
        ["l", [["l", []]] * 400_000],
    ],
    ids=lambda tree: str(tree)[:20],
)
def test_a_small_tree_of_a_costly_value_is_refused(tree: object) -> None:
    with pytest.raises(Untransferable):
        decode(tree, lambda number, name: None)

    for honest in ({n * 2**20 for n in range(3_000)}, [1j] * 60_000):
        assert decode(Encoder(lambda _: 0).encode(honest), lambda number, name: None) == honest


def test_values_too_large_or_too_deep_are_refused() -> None:
    deep: list[object] = []
    for _ in range(100):
        deep = [deep]
    wide: list[object] = []
    for _ in range(40):
        wide = [wide, wide]
    for value in (deep, wide, 1 << 20_000_000, "x" * 5_000_000):
        with pytest.raises(Untransferable):
            Encoder(lambda _: 0).encode(value)


def test_the_filter_of_system_calls_is_known_for_two_processors() -> None:
    for machine in ("x86_64", "aarch64"):
        program = seccomp_program(machine)
        assert program is not None and len(program) % 8 == 0 and len(program) // 8 < 4096
    assert seccomp_program("riscv64") is None


LINGERING = """
import ctypes, os, signal, time
ctypes.CDLL(None).prctl(15, {marker!r}.encode(), 0, 0, 0)
for n in range(2):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0: time.sleep(600)
        os._exit(0)
open("a file", "w").write("x")
print("ready", flush=True)
time.sleep(600)
"""
TRAINER = """
import sys
from selfdistill.sandbox.isolation import Isolation
from selfdistill.sandbox.process import Process
from selfdistill.sandbox.sandbox import Limits
with Process(Isolation(sys.argv[1]), Limits(cpu=30, seconds=60.0), slot=0) as process:
    process.send({"mode": "program", "source": sys.stdin.read()})
    process._pump(lambda: b"ready" in process.output)
    print("ready", flush=True)
    if sys.argv[2] == "waits":
        process.finish()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("trainer", ["waits", "ends"])
@pytest.mark.parametrize("name", [isolated_by("bubblewrap"), isolated_by("namespaces"), isolated_by("none")])
def test_nothing_outlives_the_trainer_and_no_folder_stays(name: Name, trainer: str, tmp_path: Path) -> None:
    """One that is killed, and one that ends by itself."""
    marker = f"sd{secrets.token_hex(5)}"
    command = [sys.executable, "-c", TRAINER, name, trainer]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(LINGERING.format(marker=marker).encode())
        process.stdin.close()
        assert process.stdout.readline() == b"ready\n"
        if trainer == "waits":
            assert processes_named(marker)
            process.kill()
        process.wait()
    for _ in range(200):
        if not processes_named(marker) and not list(tmp_path.iterdir()):
            break
        time.sleep(0.05)
    assert not processes_named(marker) and not list(tmp_path.iterdir())
