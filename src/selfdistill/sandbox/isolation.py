"""Isolation of a process from the machine: bubblewrap, or else the namespaces of util-linux's ``unshare``.

Both give the process a root of its own, its own process tree, and no network. The root holds the interpreter and the
system's libraries, read-only, an empty scratch folder in memory and three devices; it has no ``/proc``. A process that
root starts leaves root for a user id that nobody else has. A process that a user starts is in a user namespace.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfdistill.errors import UserError

Name = Literal["bubblewrap", "namespaces", "none"]

SCRATCH = "/tmp"
"""Path of the scratch folder inside the sandbox: the home and working directory, empty at first, in memory."""
SCRATCH_BYTES = 64 * 2**20
"""Size of the scratch folder."""

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": SCRATCH,
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONINTMAXSTRDIGITS": "0",
    "MALLOC_ARENA_MAX": "2",  # each arena reserves 64 MiB of address space, which is limited
}
"""The whole environment of the process. The fixed hash seed makes verdicts repeatable. Integers of any length may be
written, because the limit on processor time holds for that too."""

INSTALL = (
    "install bubblewrap (Debian and Ubuntu: apt install bubblewrap; Fedora: dnf install bubblewrap) on a Linux that "
    "allows namespaces (in Docker: --security-opt seccomp=unconfined for a user, --cap-add SYS_ADMIN --security-opt "
    "apparmor=unconfined for root; on Ubuntu 24.04: sysctl kernel.apparmor_restrict_unprivileged_userns=0) and run "
    "selfdistill doctor; or write task.unsafe = true to run model code without any isolation"
)

# No /dev/zero: a shared mapping of it is memory that no limit counts.
_DEVICES = ("/dev/null", "/dev/random", "/dev/urandom")
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives", "/nix/store")

# $1: a folder to mount on, $2: the scratch folder, $3: its bytes, then the paths to show up to --, then the command.
# Every mount vanishes with the mount namespace. Only umount and the host's name need /proc. The shell stays as process
# 1, so that its end ends all others.
_BUILD_ROOT = """
set -e
old_path=$PATH; PATH=/usr/sbin:/sbin:/usr/bin:/bin
root=$1; scratch=$2; size=$3; shift 3
mount -n -t tmpfs -o mode=755,size=1m,nosuid,nodev none "$root"
mkdir "$root$scratch" "$root/.old" "$root/proc"
mount -n -t tmpfs -o mode=1777,size="$size",nr_inodes=20000,nosuid,nodev none "$root$scratch"
mount -n --rbind /proc "$root/proc"
while [ "$1" != -- ]; do
    if [ -L "$1" ]; then
        mkdir -p "$root${1%/*}"; ln -s "$(readlink "$1")" "$root$1"
    else
        if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root${1%/*}"; : > "$root$1"; fi
        mount -n --rbind "$1" "$root$1"
        case $1 in /dev/*) ;; *) mount -n -o remount,bind,ro,nosuid,nodev "$1" "$root$1" ;; esac
    fi
    shift
done
shift
cd "$root"
pivot_root . .old
umount -n -l /.old
{ hostname sandbox || echo sandbox > /proc/sys/kernel/hostname || true; } 2>/dev/null
umount -n -l /proc
rmdir /.old /proc
mount -n -o remount,bind,ro,nosuid,nodev none /
cd "$scratch"
PATH=$old_path
"$@"
"""


@dataclass(frozen=True, slots=True)
class Isolation:
    """A way to start an isolated process."""

    name: Name

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line that runs the interpreter with these arguments in isolation."""
        python = [str(interpreter()), "-s", "-P", "-B", *arguments]
        if self.name == "bubblewrap":
            return [*_bubblewrap(), *python]
        if self.name == "namespaces":
            return [*_namespaces(), *python]
        return python

    @property
    def counts_own_processes(self) -> bool:
        """Whether the limit on processes counts those of the sandbox alone, not all of the user's."""
        return self.name != "none"


def interpreter() -> Path:
    """The base interpreter: the sandbox does not have the packages of the virtual environment."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = Path(sys.base_prefix) / "bin" / version
    return (own if own.exists() else Path(sys.executable)).resolve()


def find_isolation(*, unsafe: bool = False) -> Isolation:
    """The strongest isolation that works here, found by trying.

    Raises:
        UserError: none works and ``unsafe`` is not set.
    """
    for name in ("bubblewrap", "namespaces"):
        if trouble(name) is None:
            return Isolation(name)
    if unsafe:
        return Isolation("none")
    raise UserError(f"model-written code is not run without a sandbox, and none works here: {INSTALL}")


@functools.cache
def trouble(name: Name) -> str | None:
    """Why an isolation does not work here; None if it does."""
    needed = {"bubblewrap": ["bwrap"], "namespaces": ["unshare", "setpriv", "mount", "pivot_root", "sh"], "none": []}
    if sys.platform != "linux" and name != "none":
        return "needs Linux"
    for program in needed[name]:
        if _which(program) is None:
            return f"{program} is not installed"
    try:
        done = subprocess.run(
            Isolation(name).command(["-c", "print(1 + 1)"]),
            capture_output=True,
            env=ENVIRONMENT,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not start: {error}"
    if done.stdout != b"2\n":
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return f"does not start: {lines[-1] if lines else f'exit code {done.returncode}'}"
    return None


def is_root() -> bool:
    """Whether this process is root. Limits on processes do not bind root, so the process inside has to leave it."""
    return os.geteuid() == 0


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin")


def _visible_paths() -> list[str]:
    """The machine's paths that are visible inside: system folders, then the interpreter's unless they contain it."""
    prefix = os.path.realpath(sys.base_prefix)
    paths = [path for path in _SYSTEM if os.path.lexists(path)]
    covered = any(prefix == path or prefix.startswith(path + "/") for path in paths)
    return paths if covered or prefix == "/" else [*paths, prefix]


def _bubblewrap() -> list[str]:
    command = [_which("bwrap") or "bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--hostname", "sandbox", "--die-with-parent", "--new-session"]
    if is_root():
        # In a user namespace root stays root for the kernel, which then counts no processes. So the guest leaves root.
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
    command += ["--perms", "1777", "--size", str(SCRATCH_BYTES), "--tmpfs", SCRATCH]
    for parent in reversed(Path(os.path.realpath(sys.base_prefix)).parents[:-1]):
        command += ["--perms", "0755", "--dir", str(parent)]
    for path in _visible_paths():
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--ro-bind", path, path]
    command += ["--perms", "0755", "--dir", "/dev"]
    for device in _DEVICES:
        command += ["--dev-bind", device, device]
    return [*command, "--remount-ro", "/", "--chdir", SCRATCH, "--"]


def _namespaces() -> list[str]:
    setpriv = _which("setpriv") or "setpriv"
    command = [setpriv, "--pdeathsig", "KILL", _which("unshare") or "unshare"]
    command += ["--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts", "--cgroup"]
    command += [] if is_root() else ["--user", "--map-root-user"]
    command += [_which("sh") or "sh", "-c", _BUILD_ROOT, "sh", _mount_point(), SCRATCH, str(SCRATCH_BYTES)]
    command += [*_visible_paths(), *_DEVICES, "--", setpriv, "--no-new-privs", "--inh-caps", "-all"]
    kept = "-all,+setuid,+setgid" if is_root() else "-all"
    return [*command, "--bounding-set", kept, "--"]


@functools.cache
def _mount_point() -> str:
    """A folder of the machine to mount roots on. Each mount has its own namespace, so that nothing is left behind."""
    visible = _visible_paths()
    folders = ("/mnt", "/media", "/srv", "/opt", "/sys")
    return next(
        path
        for path in folders
        if os.path.isdir(path) and not any(entry == path or entry.startswith(f"{path}/") for entry in visible)
    )
