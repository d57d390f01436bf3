"""The report of ``selfdistill doctor``: versions, the device, and whether the sandbox holds against attacks."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from selfdistill.errors import UserError
from selfdistill.sandbox.attacks import attack_names, attacking
from selfdistill.sandbox.isolation import INSTALL, trouble
from selfdistill.sandbox.sandbox import Limits, Sandbox

_PACKAGES = ("torch", "transformers", "peft", "datasets", "math-verify", "vllm")


def examine(*, thorough: bool = False) -> dict[str, Any]:
    """Versions, the device, the active sandbox, and the results of attacks on it. ``thorough`` runs every attack.

    ``safe`` is True only if a sandbox is active and held against every attack.
    """
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "supported": _supported(),
        "device": _device(),
        **_sandbox(attack_names(thorough=thorough)),
    }


def describe(report: Mapping[str, Any]) -> Iterator[str]:
    """The report of :func:`examine` in words, line by line."""
    yield f"Python {report['python']} on {report['system']}"
    for name, version in report["packages"].items():
        supported = report["supported"].get(name)
        yield f"{name} {version or 'not installed'}{f' (supported: {supported})' if supported else ''}"
    yield f"device: {report['device']}"
    for name, trouble_ in report["isolations"].items():
        yield f"{name}: {trouble_ or 'works'}"
    if report["sandbox"] is None:
        yield f"NOT SAFE: no sandbox works here, so model-written code is refused. To mend it, {INSTALL}."
        return
    broken = {name: escape for name, escape in report["attacks"].items() if escape is not None}
    tried = len(report["attacks"])
    yield f"sandbox: {report['sandbox']}, held against {tried - len(broken)} of {tried} attacks"
    for name, escape in broken.items():
        yield f"  ESCAPED: {name}: {escape}"
    yield (
        "safe: model-written code stays in its box"
        if report["safe"]
        else "NOT SAFE: do not run model-written code here"
    )


def _sandbox(attacks: list[str]) -> dict[str, Any]:
    isolations = {name: trouble(name) for name in ("bubblewrap", "namespaces")}
    try:
        sandbox = Sandbox(Limits(cpu=1, seconds=3.0, memory=256 * 2**20))
    except UserError:
        return {"isolations": isolations, "sandbox": None, "attacks": {}, "safe": False}
    with attacking(sandbox) as target:
        troubles = {name: target.attack(name).trouble for name in attacks}
    works = sandbox.run("print(int(input()) + 1)", "41").output == "42\n"
    return {
        "isolations": isolations,
        "sandbox": sandbox.isolation.name,
        "attacks": troubles,
        "safe": works and not any(troubles.values()),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _supported() -> dict[str, str]:
    """The supported versions of each package, from selfdistill's metadata; empty if selfdistill is not installed."""
    try:
        lines = metadata.requires("selfdistill") or []
    except metadata.PackageNotFoundError:
        lines = []
    split = (re.match(r"([\w.-]+)\s*([^;]*)", line) for line in lines)
    requirements = {match[1]: match[2].strip() for match in split if match}
    return {name: requirements[name] for name in _PACKAGES if requirements.get(name)}


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return f"cuda: {', '.join(names)}"
    return f"cpu, {torch.get_num_threads()} threads"
