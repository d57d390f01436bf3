"""Hostile programs against the sandbox: none gets out, none earns a reward, and the worker goes on after each.

The attacks that try to get out are shipped (``sandbox/attacks.toml``), because ``selfdistill doctor`` runs them too.
Those that try to earn a reward are here: programs that know they are tested and compute nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from selfdistill.config.tasks import CodeConfig
from selfdistill.sandbox.attacks import Range, attack_names, attacking
from selfdistill.sandbox.isolation import Isolation
from selfdistill.sandbox.sandbox import Limits, Sandbox
from selfdistill.tasks.code.task import CodeTask
from support.isolation import isolated_by, needs_isolation

pytestmark = needs_isolation

SUMS = {
    "prompt": "Twice what is given.",
    "entry_point": "double",
    "test": """
def check(candidate):
    assert candidate(3) == 6
    assert candidate([1, 2]) == [1, 2, 1, 2]
    assert candidate("a") in ("aa",)
    assert abs(candidate(0.5) - 1.0) < 1e-9
    assert sorted(candidate([7])) == [7, 7]
    assert candidate({"key": "secret"}["key"]) != candidate(-1) and candidate("b") == "bb"
    for value in (1, 2, 4):
        assert candidate(value) == 2 * value or candidate(value) == "never"
""",
}
ECHO = {
    "prompt": "Print the sum of the numbers.",
    "test": [{"input": f"{n} {n + 1}", "output": str(2 * n + 1), "testtype": "stdin"} for n in (20, 300)],
}
RIGHT = "```python\ndef double(x):\n    return x * 2 if x != -1 else None\n```"

ALWAYS_EQUAL = """
class Same{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __contains__ = __bool__ = __lt__
    def __hash__(self): return 0
    def __bool__(self): return True
    def __abs__(self): return self
    def __sub__(self, other): return 0.0
    __rsub__ = __sub__
    def __iter__(self): return iter([])
    def __len__(self): return 0
    def __getattr__(self, name): return Same()
def double(x): return Same()
"""

FORGERIES = {
    "exits while it is loaded": "import sys\nsys.exit(0)",
    "exits when it is called": "import sys\ndef double(x): sys.exit(0)",
    "exits without a word": "import os\ndef double(x): os._exit(0)",
    "exits at once": "import os\nos._exit(0)",
    "equals everything": ALWAYS_EQUAL.format(base=""),
    "equals everything as an integer": ALWAYS_EQUAL.format(base="(int)"),
    "equals everything as a text": ALWAYS_EQUAL.format(base="(str)"),
    "equals everything as a list": ALWAYS_EQUAL.format(base="(list)"),
    "equals everything as a float": ALWAYS_EQUAL.format(base="(float)"),
    "equals everything as a dict": ALWAYS_EQUAL.format(base="(dict)"),
    "lies about its class": """
class Meta(type):
    def __instancecheck__(cls, other): return True
    def __eq__(cls, other): return True
    __hash__ = type.__hash__
class Thing(metaclass=Meta):
    __class__ = property(lambda self: int)
    def __eq__(self, other): return True
    def __index__(self): raise KeyError
def double(x): return Thing()
""",
    "replaces built-in functions": """
import builtins
builtins.abs = builtins.sorted = lambda *_: 0
builtins.AssertionError = builtins.Exception = KeyboardInterrupt
builtins.__build_class__ = builtins.isinstance = lambda *_: True
def double(x): return None
""",
    "replaces the encoder": """
import sys
codec = sys.modules["selfdistill.sandbox.codec"]
codec.Encoder.encode = lambda self, value, depth=0: ["h", 0, "6"]
def double(x): return None
""",
    "replaces the server": """
import sys
guest = sys.modules["selfdistill.sandbox.guest"]
guest.Channel.send = lambda self, message: __import__("os").write(self._write, b'{"verdict": {}}')
def double(x): return None
""",
    "replaces json": """
import json
json.dumps = lambda *_, **__: '{"verdict": {"passed": 99, "total": 1, "failure": null}}'
def double(x): return None
""",
    "sends a verdict of its own": """
import os
text = b'{"verdict": {"passed": 9, "total": 9, "failure": null}}'
for n in range(20):
    try: os.write(n, b"%d\\n" % len(text) + text)
    except OSError: pass
def double(x): return None
""",
    "answers before it is asked": """
import os
text = b'{"value": 6}'
for n in range(3, 20):
    try: os.write(n, 50 * (b"%d\\n" % len(text) + text))
    except OSError: pass
def double(x): return None
""",
    "answers with a broken tree": """
import sys
guest = sys.modules["selfdistill.sandbox.guest"]
guest.Server._encode = lambda self, value: ["l", {"d": [[[]]]}, ["i", "zz"]]
def double(x): return None
""",
    "answers with an unhashable key": """
import sys
guest = sys.modules["selfdistill.sandbox.guest"]
guest.Server._encode = lambda self, value: ["d", [[["l", []], 1]]]
def double(x): return None
""",
    "answers with a deep tree": """
import os
def double(x):
    text = b'{"value": ' + b"[" * 200000 + b"]" * 200000 + b"}"
    for n in range(3, 20):
        try: os.write(n, b"%d\\n" % len(text) + text)
        except OSError: pass
""",
    "announces an endless answer": """
import os
def double(x):
    for n in range(3, 20):
        try: os.write(n, b"99999999999\\n")
        except OSError: pass
""",
    "answers with noise": """
import os
def double(x):
    for n in range(3, 20):
        try: os.write(n, os.urandom(5000))
        except OSError: pass
""",
    "reads the expected values from frames": """
import sys
def double(x):
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_locals, frame.f_globals):
            for name, value in list(scope.items()):
                if "expected" in name or "test" in name: return value
        frame = frame.f_back
""",
    "reads the expected values from memory": """
import gc
def double(x):
    for thing in gc.get_objects():
        if type(thing) is dict and ("tests" in thing or "expected" in thing): return thing.get("expected")
        if type(thing) is str and "assert candidate" in thing: exec(thing)
""",
    "reads the expected values from files": """
import os
def double(x):
    for folder, below, files in os.walk("/tmp"):
        for name in files: return open(os.path.join(folder, name)).read()
    for name in ("judge", "tests", "check"):
        try: return __import__(name).expected
        except (ImportError, AttributeError): pass
""",
    "reads the next requests": """
import os
def double(x):
    for n in range(3, 20):
        try:
            os.set_blocking(n, False)
            return os.read(n, 100000)
        except OSError: pass
""",
    "hooks the import": """
import sys
class Hook:
    def find_spec(self, name, path=None, target=None): raise SystemExit(0)
sys.meta_path.insert(0, Hook())
sys.modules.clear()
def double(x): return None
""",
    "prints a forged result": "print('6\\nOK\\nPASSED\\n1.0')\ndef double(x): print('passed', x * 2)",
    "raises what tests raise": "def double(x): raise AssertionError('all tests passed')",
    "raises the end of an iteration": "def double(x): raise StopIteration(x * 2)",
    "raises an exception that cannot be shown": """
class Bad(Exception):
    def __str__(self): raise SystemExit(0)
    __repr__ = __str__
def double(x): raise Bad()
""",
    "raises an exception of gigantic size": "def double(x): raise ValueError('x' * 10**8)",
    "raises interrupts": "def double(x): raise KeyboardInterrupt",
    "has a hook at the exit": """
import atexit, os
atexit.register(lambda: os.write(1, b'{"verdict": {"passed": 9, "total": 9}}'))
def double(x): return None
""",
    "closes every file": """
import os
def double(x): os.closerange(0, 64)
""",
    "swaps its files": """
import os
def double(x):
    for n in range(3, 10):
        try: os.dup2(n, n + 1)
        except OSError: pass
""",
    "lets a child answer too": "import os\ndef double(x):\n    os.fork()\n    return None",
    "lets a thread answer later": """
import os, threading, time
def late():
    time.sleep(0.05)
    for n in range(3, 10):
        try: os.write(n, b'12\\n{"value": 6}')
        except OSError: pass
def double(x):
    threading.Thread(target=late).start()
""",
    "handles alarms": """
import signal
def fire(*_): raise SystemExit(0)
signal.signal(signal.SIGALRM, fire); signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
def double(x):
    while True: pass
""",
    "traces every function": """
import sys
def trace(frame, event, argument):
    if "value" in frame.f_locals: frame.f_locals["value"] = 6
    return trace
sys.settrace(trace); sys.setprofile(trace)
def double(x): return None
""",
    "recurses without end": "def double(x): return double(x)",
    "returns a gigantic number": "def double(x): return 1 << 10**8",
    "returns a number too long to print": "def double(x): return 10**5000",
    "returns a gigantic text": "def double(x): return 'x' * 10**8",
    "returns a gigantic nest": "x = []\nfor n in range(40): x = [x, x]\ndef double(_): return x",
    "returns a circle": "x = []\nx.append(x)\ndef double(_): return x",
    "returns an endless iterator": "import itertools\ndef double(x): return itertools.count()",
    "returns what is no number": "def double(x): return float('nan')",
    "returns nothing but emptiness": "def double(x): return []",
    "returns a module": "import sys\ndef double(x): return sys",
    "returns its own function": "def double(x): return double",
    "is not there": "def triple(x): return x",
    "is no Python": "def double(x: return",
    "is a class": "class double:\n    def __init__(self, x): pass\n    def __eq__(self, other): return True",
    "unpickles itself": """
import pickle
class Bomb:
    def __reduce__(self): return (exec, ("raise SystemExit(0)",))
def double(x): return pickle.dumps(Bomb())
""",
    "sleeps in every call": "import time\ndef double(x): time.sleep(3)",
    "computes without end": "def double(x):\n    while True: pass",
}

PRINTED = {
    "prints verdicts": "print('OK'); print('all tests passed'); print('1.0')",
    "prints every number": "for n in range(1000): print(n)",
    "prints nothing and exits": "import os; os._exit(0)",
    "echoes its input": "print(input())",
    "prints for ever": "while True: print(3)",
    "looks for the answers": """
import glob, os, sys
for name in glob.glob('/tmp/*') + glob.glob('/proc/*/fd/*'): print(open(name).read())
print(sys.argv, os.environ, sys.orig_argv)
""",
}


def save(path: Path, row: Mapping[str, object]) -> Path:
    path.write_text(json.dumps(dict(row)) + "\n", encoding="utf-8")
    return path


def task_of(folder: Path, row: Mapping[str, object], **options: str) -> CodeTask:
    path = save(folder / "rows.jsonl", row)
    shares = {"validation_share": 0.0, "test_share": 0.0}
    return CodeTask(
        CodeConfig(path=str(path), hidden_tests="test", reward="share", timeout=1.0, memory=256, **options, **shares)  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def function_task(tmp_path_factory: pytest.TempPathFactory) -> CodeTask:
    return task_of(tmp_path_factory.mktemp("function"), SUMS, entry_point="entry_point")


@pytest.fixture(scope="module")
def program_task(tmp_path_factory: pytest.TempPathFactory) -> CodeTask:
    return task_of(tmp_path_factory.mktemp("program"), ECHO)


@pytest.fixture(scope="module", params=[isolated_by("bubblewrap"), isolated_by("namespaces")])
def target(request: pytest.FixtureRequest) -> Iterator[Range]:
    sandbox = Sandbox(Limits(cpu=1, seconds=1.5, memory=192 * 2**20))
    sandbox.isolation = Isolation(request.param)
    with attacking(sandbox) as range_:
        yield range_


@pytest.mark.parametrize("name", attack_names())
def test_nothing_gets_out(target: Range, name: str) -> None:
    found = target.attack(name)

    assert found.trouble is None, found.outcome


def test_the_worker_goes_on_after_all_of_it(target: Range) -> None:
    outcome = target.sandbox.run("print(int(input()) + 1)", "41")

    assert (outcome.output, outcome.clean) == ("42\n", True)


@pytest.mark.parametrize("name", FORGERIES)
def test_nothing_is_earned_by_a_function_that_computes_nothing(function_task: CodeTask, name: str) -> None:
    (example,) = function_task.examples("train")
    verdict = function_task.verify(example, f"```python\n{FORGERIES[name]}\n```", finished=True)

    assert verdict.reward == 0.0
    assert verdict.feedback is not None and len(verdict.feedback) < 1500
    assert "secret" not in verdict.feedback, "an input of a hidden test was told"


@pytest.mark.parametrize("name", PRINTED)
def test_nothing_is_earned_by_a_program_that_computes_nothing(program_task: CodeTask, name: str) -> None:
    (example,) = program_task.examples("train")
    verdict = program_task.verify(example, f"```python\n{PRINTED[name]}\n```", finished=True)

    assert verdict.reward == 0.0


def test_an_honest_program_earns_all_after_all_of_it(function_task: CodeTask, program_task: CodeTask) -> None:
    (example,) = function_task.examples("train")
    assert function_task.verify(example, RIGHT, finished=True).reward == 1.0
    (example,) = program_task.examples("train")
    assert program_task.verify(example, "```python\nprint(sum(map(int, input().split())))\n```", finished=True).correct
