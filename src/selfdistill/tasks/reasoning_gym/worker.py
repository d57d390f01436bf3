"""The process that holds reasoning-gym's generators: a JSON request a line on stdin, one reply a line on stdout.

It is run as a script and knows nothing of this package. Timers of the operating system end it in the middle of any
computation, and its memory is limited. Some scorers evaluate the model's text: ``eval(answer)`` in four generators, and
sympy's ``parse_expr``, which evaluates too, in five. While an answer is scored, the package's ``eval`` reads literals
only, its ``parse_expr`` reads formulas only, and it executes nothing. An audit hook, which nothing can remove, refuses
processes, sockets, files to write and foreign functions.
"""

from __future__ import annotations

import ast
import builtins
import copy
import dataclasses
import hashlib
import json
import os
import re
import resource
import signal
import sys
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHUNK = 500
"""Questions of one data set of the package, its own default size. Some generators make all of them at once."""

_MEMORY = 4 * 2**30
_CHUNKS_KEPT = 4
_ENTRIES_KEPT = 4096

_REFUSED_EVENTS = tuple(
    "subprocess. socket. ctypes. shutil. signal. urllib. os.chmod os.chown os.exec os.fork os.kill os.link os.mkdir "
    "os.posix_spawn os.putenv os.remove os.rename os.rmdir os.symlink os.system os.truncate".split()
)

_FORMULA = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+|(?P<name>[A-Za-z]+)|[-+*/^(),\s])", re.ASCII)
_LONGEST_FORMULA = 2000
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc asin acos atan sinh cosh tanh asinh acosh atanh exp log ln sqrt pi Abs".split()
)


_MAY_EVALUATE = frozenset(["sympy", "mpmath", "collections", "importlib"])
"""Libraries whose own code evaluates what they have written themselves, as ``lambdify``, ``namedtuple`` and imports do.
The text of a model reaches sympy as a formula that was checked."""


class Refused(ValueError):
    """The text is no literal or no formula, and is not evaluated. Scorers take it for the mistake that it is."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(_REFUSED_EVENTS):
        raise PermissionError(event)
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            raise PermissionError(event)


def check_formula(text: str) -> None:
    """Refuse what is not made of numbers, letters, known functions and ``+ - * / ^ ( ) ,``.

    Without dots between names, quotes, brackets and underscores, no attribute and no text can be written.
    """
    if len(text) > _LONGEST_FORMULA:
        raise Refused("a formula too long")
    position = 0
    while position < len(text):
        token = _FORMULA.match(text, position)
        if token is None or (token["name"] and len(token["name"]) > 1 and token["name"] not in _FUNCTIONS):
            raise Refused("no formula")
        position = token.end()


def _caller() -> str:
    """The top package of the code that called ``eval`` or ``exec``."""
    return str(sys._getframe(2).f_globals.get("__name__")).partition(".")[0]


@contextmanager
def _guarded(entry: Any) -> Iterator[None]:
    """Let scorers evaluate only literals and formulas, and texts that are the entry's own."""
    own = {value for value in (*entry["metadata"].values(), entry["answer"]) if isinstance(value, str)}
    evaluate, execute = builtins.eval, builtins.exec

    def literal(source: Any, *arguments: Any, **named: Any) -> Any:
        if _caller() in _MAY_EVALUATE:
            return evaluate(source, *arguments, **named)
        if not isinstance(source, str):
            raise Refused("no text")
        return evaluate(source, {}) if source in own else ast.literal_eval(source.strip())

    def refuse(*arguments: Any, **named: Any) -> None:
        if _caller() not in _MAY_EVALUATE:
            raise Refused("no code is executed")
        execute(*arguments, **named)

    def checked(parse: Any) -> Any:
        def formula(source: Any, *arguments: Any, **named: Any) -> Any:
            # sympy parses texts of its own, such as the names of units.
            if isinstance(source, str) and source not in own and _caller() not in _MAY_EVALUATE:
                check_formula(source)
            return parse(source, *arguments, **named)

        return formula

    for module, name, parse in _PARSERS:
        setattr(module, name, checked(parse))
    builtins.eval, builtins.exec = literal, refuse
    try:
        yield
    finally:
        builtins.eval, builtins.exec = evaluate, execute
        for module, name, parse in _PARSERS:
            setattr(module, name, parse)


_PARSERS: list[tuple[Any, str, Any]] = []
"""(module, name, function) wherever a scorer could find sympy's ``parse_expr`` and ``sympify``."""


def _find_parsers() -> None:
    import sympy

    parsers = {"parse_expr": sympy.parse_expr, "sympify": sympy.sympify}
    for module_name, module in sys.modules.items():
        for name, parse in parsers.items():
            # Inside sympy itself sympify reads whatever its functions are given.
            outside = module_name == "sympy" or module_name.startswith("reasoning_gym") or name == "parse_expr"
            if outside and vars(module).get(name) is parse:
                _PARSERS.append((module, name, parse))


class Generator:
    """One generator with its config: its entries by index, and its scorer."""

    def __init__(self, name: str, difficulty: int | None, config: dict[str, Any]) -> None:
        self.name = name
        self._difficulty = difficulty
        self._config = config
        self._sets: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._entries: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._set(0, 0)

    def _set(self, seed: int, chunk: int) -> Any:
        """The package's data set that holds a chunk of the entries."""
        key = (seed, chunk)
        if key not in self._sets:
            from reasoning_gym.factory import create_curriculum, create_dataset

            digest = hashlib.sha256(f"{self.name} {seed} {chunk}".encode()).digest()
            settings: dict[str, Any] = {}
            if self._difficulty is not None:
                curriculum: Any = create_curriculum(self.name)
                curriculum.set_global_level(self._difficulty)
                made = curriculum.generate_configuration({"size": CHUNK})
                settings = {one.name: getattr(made, one.name) for one in dataclasses.fields(made) if one.init}
            # 31 bits: below every bound that a generator puts on seeds.
            settings |= {**self._config, "seed": int.from_bytes(digest[:4], "big") >> 1, "size": CHUNK}
            self._sets[key] = create_dataset(self.name, **settings)
            if len(self._sets) > _CHUNKS_KEPT:
                self._sets.popitem(last=False)
        return self._sets[key]

    def entry(self, seed: int, index: int) -> Any:
        """The entry at an index, a function of seed and index. None where the generator has none there."""
        key = (seed, index)
        if key not in self._entries:
            try:
                self._entries[key] = self._set(seed, index // CHUNK)[index % CHUNK]
            # word_ladder says so that it has found no pair of words. Any other is a mistake of the generator's.
            except IndexError as error:
                if not str(error).startswith("Dataset "):
                    raise
                self._entries[key] = None
            if len(self._entries) > _ENTRIES_KEPT:
                self._entries.popitem(last=False)
        return self._entries[key]

    def score(self, seed: int, index: int, answer: str, *, seconds: float) -> float:
        """The scorer's result for an answer, for which it has ``seconds``."""
        # A copy: a scorer may change its entry, which is scored again for the other completions of a group.
        entry = copy.deepcopy(self.entry(seed, index))
        dataset = self._set(seed, index // CHUNK)
        _arm(seconds)
        with _guarded(entry):
            return float(dataset.score_answer(answer, entry))


class Server:
    """Answers requests. What a generator or a scorer raises becomes the reply's ``error``."""

    def __init__(self) -> None:
        self._generators: list[Generator] = []

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request: ``open``, ``draw`` or ``score``."""
        try:
            match request["do"]:
                case "open":
                    return self._open(request)
                case "draw":
                    entry = self._generators[request["generator"]].entry(request["seed"], request["index"])
                    if entry is None:
                        return {"question": None}
                    answer = entry["answer"]
                    return {"question": str(entry["question"]), "answer": None if answer is None else str(answer)}
                case _:
                    generator = self._generators[request["generator"]]
                    place, seconds = (request["seed"], request["index"]), request["score_seconds"]
                    return {"score": generator.score(*place, request["answer"], seconds=seconds)}
        # Generators and scorers are the package's code, which raises whatever it likes; its words are passed on.
        except Exception as error:
            return {"error": _words(error)}

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        from reasoning_gym.factory import DATASETS

        name, difficulty, config = request["name"], request["difficulty"], request["config"]
        if name not in DATASETS:
            return {"unknown": "generator", "known": sorted(DATASETS)}
        fields = [one.name for one in dataclasses.fields(DATASETS[name][1]) if one.init]
        keys = [one for one in fields if one not in ("seed", "size")]
        wrong = next((key for key in config if key not in keys), None)
        if wrong is not None:
            return {"unknown": wrong, "known": keys}
        if difficulty is not None:
            levels = _levels(name)
            if levels is None or not 0 <= difficulty < levels:
                return {"levels": levels}
        self._generators.append(Generator(name, difficulty, config))
        return {}


def _levels(name: str) -> int | None:
    """The number of difficulty levels; None for a generator without any."""
    from reasoning_gym.factory import create_curriculum, has_curriculum

    if not has_curriculum(name):
        return None
    curriculum: Any = create_curriculum(name)
    return max((len(attribute.levels) for attribute in curriculum.attributes.values()), default=1)


def _words(error: Exception) -> str:
    """An exception in one line; a bare ``assert`` by its source."""
    lines = str(error).strip().splitlines()
    if lines:
        return f"{type(error).__name__}: {lines[0][:300]}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {frames[-1].line if frames else ''}"


def _arm(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 3 * seconds)


def main() -> None:
    """Answer requests until stdin ends."""
    for timer in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(timer, signal.SIG_DFL)  # the parent may have handed down "ignored"
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF, signal.SIGALRM})
    _arm(float(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    # Replies go to the real stdout; whatever a generator prints goes to stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    import reasoning_gym  # noqa: F401

    _find_parsers()
    sys.addaudithook(_audit)
    server = Server()
    replies.write('{"ready": true}\n')
    _arm(0)
    for line in sys.stdin:
        request = json.loads(line)
        _arm(request["seconds"])
        reply = server.reply(request)
        _arm(0)
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
