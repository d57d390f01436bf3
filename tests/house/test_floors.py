"""The floors between modules: imports go strictly down, so that a module is read with what lies below it and no more.

An import under ``TYPE_CHECKING``, inside a function or through ``importlib.import_module`` counts like any other: it is
the reader who has to go there. The last tests hold the sizes of the house: 400 lines a file, 60 a function, and no
handler that swallows whatever comes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "selfdistill"
SOURCE = Path(__file__).parents[2] / "src" / PACKAGE
MODULES = sorted(SOURCE.rglob("*.py"))

FLOORS: tuple[tuple[str, ...], ...] = (
    ("types", "errors", "thinking", "taskconfig", "samplerconfig", "config", "alarms"),
    (
        "objectives",
        "head",
        "contexts",
        "data",
        "sandbox",
        "statistics",
        "seeds",
        "stopping",
        "plugins",
        "wordclasses",
        "turns",
        "packing",
        "attention",
        "terminal",
        "sharding",
        "masters",
        "pretrained",
        "compiling",
        "memory",
        "prefill",
        "architecture",
    ),
    ("modelcheck",),
    (
        "tasks",
        "chat",
        "policy",
        "samplers",
        "distributed",
        "checkpoint",
        "sinks",
        "progress",
        "report",
        "children",
        "launch",
        "findings",
    ),
    (
        "rollouts",
        "views",
        "batching",
        "scoring",
        "teachers",
        "methods",
        "comparison",
        "trackers",
        "doctor",
        "importance",
        "movement",
    ),
    ("training", "evaluation", "inspection", "inspection_tables", "collecting", "saving"),
    ("teaching", "reference", "measuring", "watching", "inspection_files", "drawing"),
    ("tasking", "engines"),
    ("assembly", "run", "commands", "comparing", "datacheck", "inspecting", "variants"),
    ("starting",),
    ("cli", "api"),
    ("__main__",),
)
"""The rooms, lowest floor first. A room is a module or a package; modules of one package may import each other."""

ROOMS = {room for floor in FLOORS for room in floor}

SIDEWAYS = {
    ("types", "errors"),
    ("config", "errors"),
    ("config", "types"),
    ("taskconfig", "errors"),
    ("config", "samplerconfig"),
    ("samplerconfig", "taskconfig"),  # for what every table shares: it refuses unknown keys
    ("config", "taskconfig"),  # the task's table is the longest part of a config and has a file of its own
    ("config", "alarms"),  # a config names the alarms that end a run
    ("head", "compiling"),
    ("head", "objectives"),  # the head reports entropies, and there is one formula for them
    ("pretrained", "prefill"),  # whether a model has a window depends on what its cache keeps
    ("policy", "chat"),  # a model is loaded and saved together with its tokenizer
    ("samplers", "policy"),  # the Transformers sampler draws from the very weights that are trained
    ("checkpoint", "distributed"),  # a folder that all ranks fill is finished by one
    ("samplers", "chat"),  # weights that are handed over are saved with their tokenizer
    ("samplers", "distributed"),  # by all ranks together
    ("scoring", "batching"),  # scoring packs what it scores
    ("scoring", "teachers"),  # and asks for each role's weights
    ("views", "methods"),  # a method says which contexts it wants
    ("run", "assembly"),  # a run and the smaller commands are built of the same parts
    ("commands", "assembly"),
    ("inspecting", "assembly"),
    ("inspecting", "variants"),
    ("inspecting", "commands"),  # a model that is looked at is found and configured as one that is evaluated
    ("comparing", "run"),  # a comparison is several runs
    ("comparing", "assembly"),  # whose configs it resolves beforehand, to see that they are on equal terms
}
"""Pairs (importer, imported) of one floor that are listed together, one direction only."""

ONLY_FOR = {
    "config": {
        "assembly",
        "run",
        "commands",
        "comparing",
        "datacheck",
        "inspecting",
        "variants",
        "starting",
        "cli",
        "api",
    },
    "taskconfig": {"config", "samplerconfig", "tasking", "datacheck", "cli"},
    "samplerconfig": {"config", "engines", "assembly"},
}
"""Config stops at the door: the rooms that may import a room, where not every room above may."""

FACADE = "__init__"
"""``selfdistill/__init__.py`` stands outside the house: it may import every room, no room may import it."""

FACADE_NAMES = {"__version__"}
"""What every room may take from the façade."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def violations(source: Path) -> list[str]:
    """Every import below ``source`` that breaks the floors, and every module without a floor, a sentence each."""
    found = []
    for path in sorted(source.rglob("*.py")):
        place = path.relative_to(source)
        room = place.parts[0].removesuffix(".py")
        if room not in ROOMS | {FACADE}:
            found.append(f"{place}: {room!r} is on no floor; give it one in FLOORS of {Path(__file__).name}")
            continue
        for line, target in _imports(path, source):
            reason = _objection(room, target)
            if reason:
                found.append(f"{place}:{line}: {reason}")
    return found


def _objection(room: str, target: str) -> str | None:
    if room in (target, FACADE):
        return None
    if target == FACADE:
        return f"{room} imports from the top of the package; import from the room that holds the name"
    if target not in ROOMS:
        return f"{room} imports {target}, which is on no floor"
    if target in ONLY_FOR and room not in ONLY_FOR[target]:
        return f"{room} imports {target}; only {', '.join(sorted(ONLY_FOR[target]))} may"
    if (room, target) in SIDEWAYS or _floor(target) < _floor(room):
        return None
    way = "sideways" if _floor(target) == _floor(room) else "up"
    return f"{room} (floor {_floor(room)}) imports {way}: {target} (floor {_floor(target)})"


def _floor(room: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def _imports(path: Path, source: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every import from the package in a file, wherever in the file it stands."""
    inside = (PACKAGE, *path.relative_to(source).parent.parts)
    for line, name in _dotted_names(path, inside):
        top, _, rest = name.partition(".")
        room = rest.partition(".")[0]
        if top == PACKAGE and room not in FACADE_NAMES:
            yield line, room if room in ROOMS or _is_module(source, room) else FACADE


def _dotted_names(path: Path, inside: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    for node in _nodes(path):
        match node:
            case ast.Import(lineno=line, names=names):
                yield from ((line, alias.name) for alias in names)
            case ast.ImportFrom(lineno=line, module=module, names=names, level=level):
                base = ".".join([*inside[: len(inside) + 1 - level if level else 0], *([module] if module else [])])
                # The room stands right in `from selfdistill import chat`, left in `from selfdistill.chat import x`.
                yield from ((line, f"{base}.{alias.name}") for alias in names) if base == PACKAGE else [(line, base)]
            case ast.Call(lineno=line, func=function, args=[ast.Constant(value=str(name)), *_]):
                if _last_name(function) in {"import_module", "__import__"}:
                    yield line, name


def _nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def _last_name(expression: ast.expr) -> str | None:
    match expression:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None


def _is_module(source: Path, name: str) -> bool:
    return bool(name) and ((source / f"{name}.py").is_file() or (source / name).is_dir())


STRANGERS_CODE = {"sandbox/guest.py", "sandbox/judge.py"}
"""They run code that may raise anything, and what it raises is their result."""


def swallowed(source: Path) -> list[str]:
    """Places that catch everything and raise nothing: bare, ``Exception``, ``BaseException``, or suppressed."""
    found = []
    for path in sorted(source.rglob("*.py")):
        if path.relative_to(source).as_posix() in STRANGERS_CODE:
            continue
        for node in _nodes(path):
            match node:
                case ast.ExceptHandler(lineno=line, type=caught, body=body):
                    raises = any(isinstance(inner, ast.Raise) for statement in body for inner in ast.walk(statement))
                    everything = caught is None or (_is_broad(caught) and not raises)
                case ast.Call(lineno=line, func=function, args=args):
                    everything = _last_name(function) == "suppress" and any(_is_broad(caught) for caught in args)
                case _:
                    continue
            if everything:
                found.append(f"{path.relative_to(source)}:{line}: catches everything; name the exception")
    return found


def _is_broad(caught: ast.expr) -> bool:
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(_last_name(name) in {"Exception", "BaseException"} for name in names)


def test_imports_go_strictly_down() -> None:
    assert not violations(SOURCE), "\n".join(["", *violations(SOURCE)])


def test_every_floor_names_each_room_once() -> None:
    assert len(ROOMS) == sum(map(len, FLOORS))


def test_sideways_pairs_stay_on_a_floor_and_make_no_circle() -> None:
    assert all(_floor(importer) == _floor(imported) for importer, imported in SIDEWAYS)
    graph: dict[str, set[str]] = {}
    for importer, imported in SIDEWAYS:
        graph.setdefault(importer, set()).add(imported)
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("chat.py", "from selfdistill.training.trainer import step", "up: training"),
        ("chat.py", "import selfdistill.training.trainer as training", "up: training"),
        ("chat.py", "from selfdistill import training", "up: training"),
        ("chat.py", "from . import training", "up: training"),
        ("chat.py", "from .training import step", "up: training"),
        ("tasks/countdown.py", "from ..training import step", "up: training"),
        ("chat.py", "if TYPE_CHECKING:\n    from selfdistill.training.trainer import step", "up: training"),
        ("chat.py", "def late():\n    from selfdistill.training.trainer import step", "up: training"),
        ("chat.py", "importlib.import_module('selfdistill.training.trainer')", "up: training"),
        ("chat.py", "from selfdistill.models.policy import Policy", "sideways: policy"),
        ("tasks/countdown.py", "from selfdistill.models.policy import Policy", "sideways: policy"),
        ("run.py", "from selfdistill.comparison.compare import plan", "sideways: comparing"),
        (
            "training.py",
            "from selfdistill.config.run import RunConfig",
            "only api, assembly, cli, commands, comparing, datacheck, inspecting, run, starting, variants may",
        ),
        ("chat.py", "from selfdistill import Policy", "from the top of the package"),
        ("chat.py", "import selfdistill", "from the top of the package"),
        ("attic.py", "", "'attic' is on no floor"),
        ("chat.py", "from selfdistill.inspection.credit import Microscope", "up: inspection"),
    ],
)
def test_a_breach_is_reported(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    _house(tmp_path, {file: line})
    assert [sentence for sentence in violations(tmp_path) if complaint in sentence], violations(tmp_path)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("training.py", "from selfdistill.contexts.chat import render"),
        ("tasks/countdown.py", "from selfdistill.tasks.arithmetic import solve\nfrom .arithmetic import check"),
        ("comparing.py", "from selfdistill.training.loop import run"),
        ("run.py", "from selfdistill.config.run import RunConfig"),
        ("chat.py", "import torch\nfrom selfdistill import __version__"),
        ("__init__.py", "from selfdistill.training.trainer import step"),
    ],
)
def test_a_permitted_import_is_not_reported(tmp_path: Path, file: str, line: str) -> None:
    _house(tmp_path, {file: line})
    assert violations(tmp_path) == []


def test_a_file_holds_at_most_400_lines() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    long = [f"{path.relative_to(SOURCE)}: {lines} lines" for path, lines in lengths.items() if lines > MAX_FILE_LINES]
    assert not long, f"a second subject has moved in: {long}"


def test_a_function_fits_a_screen() -> None:
    lengths = [
        (f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)
        for path in MODULES
        for node in _nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [f"{name}: {lines} lines" for name, lines in lengths if lines > MAX_FUNCTION_LINES]
    assert not long, f"more than {MAX_FUNCTION_LINES} lines: {long}"


def test_no_handler_swallows_everything() -> None:
    assert not swallowed(SOURCE), "\n".join(["", *swallowed(SOURCE)])


@pytest.mark.parametrize(
    ("handler", "count"),
    [
        ("except:\n    raise", 1),
        ("except Exception:\n    pass", 1),
        ("except (ValueError, Exception):\n    x = 0", 1),
        ("except BaseException:\n    clean()\n    raise", 0),
        ("except Exception as error:\n    raise DataError('no') from error", 0),
        ("except ValueError:\n    pass", 0),
        ("finally:\n    with contextlib.suppress(Exception):\n        x()", 1),
    ],
)
def test_a_swallowing_handler_is_reported(tmp_path: Path, handler: str, count: int) -> None:
    _house(tmp_path, {"chat.py": f"try:\n    y()\n{handler}"})
    assert len(swallowed(tmp_path)) == count


def _house(folder: Path, files: dict[str, str]) -> None:
    """A small source tree with a few empty rooms and the given files."""
    rooms = ("chat", "policy", "training", "config", "run", "comparing", "tasks/arithmetic")
    for name, text in ({f"{room}.py": "" for room in rooms} | files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
