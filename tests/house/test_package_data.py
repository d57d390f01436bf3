"""The wheel carries what the package reads at run time: contexts, configs, presets, models and page templates."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "selfdistill"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("setuptools") is None,
    reason="setuptools, the build backend, is not installed: pip install '.[dev]'",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel. It is built from a copy: setuptools packs what it left in build/ last time."""
    project = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    shutil.copytree(SOURCE, project / "src" / "selfdistill", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist"]
    built = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (archive,) = (project / "dist").glob("*.whl")
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


@pytest.mark.parametrize(
    "folder",
    [
        "contexts",
        "config/shipped",
        "tasks/presets",
        "models/shipped",
        "report/templates",
        "comparison/templates",
        "inspection/templates",
    ],
)
def test_a_data_folder_is_packed(wheel: set[str], folder: str) -> None:
    assert [name for name in wheel if name.startswith(f"selfdistill/{folder}/")]


def test_every_file_of_the_package_is_packed(wheel: set[str]) -> None:
    files = [path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {f"selfdistill/{path.relative_to(SOURCE).as_posix()}" for path in files} - wheel == set()


def test_the_wheel_is_licensed_and_holds_one_package(wheel: set[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == {"selfdistill"}
