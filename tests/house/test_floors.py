"""The floors between rooms: imports go strictly down, so that a room is read with what lies below it and no more.

A room is a package, or one of the few modules beside them. An import under ``TYPE_CHECKING``, inside a function or
through ``importlib.import_module`` counts like any other: it is the reader who has to go there. Inside a room modules
may import each other, without a circle. The last tests hold the sizes of the house: 400 lines a file, 60 a function,
and no handler that swallows whatever comes.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "selfdistill"
SOURCE = Path(__file__).parents[2] / "src" / PACKAGE
MODULES = sorted(SOURCE.rglob("*.py"))

FLOORS: tuple[tuple[str, ...], ...] = (
    ("types", "errors", "seeds", "objectives"),
    ("config", "files"),
    ("contexts", "distributed", "sandbox", "report"),
    ("methods", "models", "tasks", "tracking"),
    ("sampling", "scoring"),
    ("evaluation",),
    ("training",),
    ("comparison", "inspection"),
    ("cli",),
    ("api", "__main__"),
)
"""The rooms, lowest floor first."""

ROOMS = {room for floor in FLOORS for room in floor}

WHOLE_CONFIGS = {"RunConfig", "ResolvedConfig"}
KNOW_THE_WHOLE_CONFIG = {
    "comparison",
    "cli",
    "api",
    "inspection/drift.py",
    *(f"training/{name}.py" for name in ("problem", "build", "opening", "loop", "run_folder", "dry_run")),
}
"""Rooms and modules that may import a whole config: what builds a run, compares runs or speaks with the user. Every
other room takes its own section."""

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
    if _floor(target) < _floor(room):
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


def knowers(source: Path) -> list[str]:
    """Imports of a whole config by rooms and modules that are to take a section of it."""
    found = []
    for path in sorted(source.rglob("*.py")):
        place = path.relative_to(source)
        if {place.parts[0], place.as_posix()} & {*KNOW_THE_WHOLE_CONFIG, "config", f"{FACADE}.py"}:
            continue
        for node in _nodes(path):
            if isinstance(node, ast.ImportFrom) and WHOLE_CONFIGS & {alias.name for alias in node.names}:
                found.append(f"{place}:{node.lineno}")
    return found


STRANGERS_CODE = {
    "sandbox/cases.py",
    "sandbox/guest.py",
    "sandbox/judge.py",
    "sampling/environments.py",
    "tasks/agents/task.py",
    "tasks/tools/loop.py",
    "tasks/reasoning_gym/worker.py",
}
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


def test_modules_of_a_room_make_no_circle() -> None:
    for room in sorted({path.relative_to(SOURCE).parts[0] for path in MODULES if path.parent != SOURCE}):
        graph: dict[str, set[str]] = {}
        for path in (SOURCE / room).rglob("*.py"):
            name = ".".join([PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts])
            graph[name] = {
                target
                for _, found in _dotted_names(path, (PACKAGE, *path.relative_to(SOURCE).parent.parts))
                for target in (found, found.rpartition(".")[0])
                if target != name and SOURCE.parent.joinpath(*target.split(".")).with_suffix(".py").is_file()
            }
        TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_whole_config_is_known_where_a_run_is_built_and_nowhere_else() -> None:
    assert not knowers(SOURCE), "\n".join(["take a section of config/ instead:", *knowers(SOURCE)])


@pytest.mark.parametrize(
    ("file", "line", "count"),
    [
        ("tasks/arithmetic.py", "from selfdistill.config.run import RunConfig", 1),
        ("tasks/arithmetic.py", "if TYPE_CHECKING:\n    from selfdistill.config.run import ResolvedConfig", 1),
        ("tasks/arithmetic.py", "from ..config.run import RunConfig as Config", 1),
        ("training/trainer.py", "from selfdistill.config.run import ResolvedConfig", 1),
        ("training/build.py", "from selfdistill.config.run import RunConfig", 0),
        ("comparison/compare.py", "from selfdistill.config.run import ResolvedConfig", 0),
        ("tasks/arithmetic.py", "from selfdistill.config.tasks import MathConfig", 0),
    ],
)
def test_a_room_that_knows_the_whole_config_is_reported(tmp_path: Path, file: str, line: str, count: int) -> None:
    _house(tmp_path, {file: line})
    assert len(knowers(tmp_path)) == count


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("contexts/chat.py", "from selfdistill.training.trainer import step", "up: training"),
        ("contexts/chat.py", "import selfdistill.training.trainer as training", "up: training"),
        ("contexts/chat.py", "from selfdistill import training", "up: training"),
        ("contexts/chat.py", "from .. import training", "up: training"),
        ("contexts/chat.py", "from ..training.trainer import step", "up: training"),
        ("tasks/countdown/task.py", "from ...training import step", "up: training"),
        ("contexts/chat.py", "if TYPE_CHECKING:\n    from selfdistill.training import step", "up: training"),
        ("contexts/chat.py", "def late():\n    from selfdistill.training import step", "up: training"),
        ("contexts/chat.py", "importlib.import_module('selfdistill.training')", "up: training"),
        ("methods/grpo.py", "from selfdistill.models.policy import Policy", "sideways: models"),
        ("contexts/chat.py", "from selfdistill import Policy", "from the top of the package"),
        ("contexts/chat.py", "import selfdistill", "from the top of the package"),
        ("attic.py", "", "'attic' is on no floor"),
    ],
)
def test_a_breach_is_reported(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    _house(tmp_path, {file: line})
    assert [sentence for sentence in violations(tmp_path) if complaint in sentence], violations(tmp_path)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("training/trainer.py", "from selfdistill.contexts.chat import render"),
        ("tasks/countdown/task.py", "from selfdistill.tasks.arithmetic import solve\nfrom ..arithmetic import check"),
        ("comparison/compare.py", "from selfdistill.training.loop import Run"),
        ("contexts/chat.py", "import torch\nfrom selfdistill import __version__"),
        ("__init__.py", "from selfdistill.training.trainer import step"),
    ],
)
def test_a_permitted_import_is_not_reported(tmp_path: Path, file: str, line: str) -> None:
    _house(tmp_path, {file: line})
    assert violations(tmp_path) == []


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports test files by their bare names, so two of one name cannot be collected together."""
    names = Counter(path.name for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


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
    _house(tmp_path, {"contexts/chat.py": f"try:\n    y()\n{handler}"})
    assert len(swallowed(tmp_path)) == count


def _house(folder: Path, files: dict[str, str]) -> None:
    """A small source tree with a few empty rooms and the given files."""
    rooms = ("contexts/chat", "models/policy", "training/trainer", "comparison/compare", "tasks/arithmetic")
    for name, text in ({f"{room}.py": "" for room in rooms} | files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
