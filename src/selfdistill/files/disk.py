"""Lock folders, and turn disk errors into one clear message."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from selfdistill.errors import CheckpointError, UserError

_REFUSALS = {
    errno.EACCES: "no permission: change its owner or its rights, or choose another place",
    errno.EPERM: "no permission: change its owner or its rights, or choose another place",
    errno.EROFS: "its disk can only be read: choose another place",
    errno.ENOTDIR: "it is or lies below a file, where a folder is needed: choose another place",
    errno.EEXIST: "something of that name is there already, a file or a link to nothing: choose another name",
    errno.EISDIR: "it is a folder, where a file is needed: choose another name",
    errno.ENOENT: "there is no such file or folder, or it is a link to nothing: give the path of one that exists",
    errno.ENAMETOOLONG: "its name is too long: choose a shorter one",
    errno.ELOOP: "its links lead in a circle: choose another place",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: close some programs",
    errno.EIO: "the disk does not answer: look after it, and choose another place",
    errno.ESTALE: "the disk was taken away meanwhile: mount it again",
    errno.EFBIG: "the file would be larger than it may be: raise the limit (ulimit -f), or choose another disk",
}
"""Cause and remedy of a disk error, by its errno."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ERRNO_IN_TEXT = re.compile(
    r"\(os error (\d+)\)|\[Errno (\d+)\]|(No space left on device)|(quota exceeded)", re.IGNORECASE
)


def lock_folder(folder: Path, held: str) -> int | None:
    """Create a folder and lock it. Returns the descriptor that holds the lock, or None if the file system has no locks.

    Child processes inherit the lock. The kernel releases it when the last process that holds it closes it or exits.

    Raises:
        CheckpointError: another process holds the lock; ``held`` is the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CheckpointError(held) from error
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        return None
    return descriptor


def check_name(folder: Path) -> None:
    """Refuse a folder whose name is not UTF-8, and a broken symbolic link.

    Raises:
        CheckpointError: the folder is refused.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"the name {os.fsencode(folder)!r} is not UTF-8: choose another one") from error
    if folder.is_symlink() and not folder.exists():
        raise CheckpointError(f"{folder} is a link to nothing: choose another place, or make what it points to")


def check_place(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, and leave nothing behind.

    A name that is not UTF-8 and a link to nothing are refused too.

    Raises:
        CheckpointError: names the part of the path that is at fault, and the remedy.
    """
    with report_disk_errors(folder):
        check_name(folder)
        # The part of the path that exists.
        existing = folder.absolute()
        while not os.path.lexists(existing):
            existing = existing.parent
        if existing == folder.absolute() and existing.is_file():
            raise CheckpointError(f"{folder} is a file: choose another --out")
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "no folder", str(folder))
        if any(len(os.fsencode(part)) > os.pathconf(existing, "PC_NAME_MAX") for part in folder.parts):
            raise OSError(errno.ENAMETOOLONG, "name too long", str(folder))
        if existing == folder.absolute():
            # Nothing is tried in the folder of a run, which other processes may read meanwhile.
            if not os.access(existing, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "no permission", str(folder))
            return
        try:
            # Only a trial tells, because /proc and /sys take no folder whatever their permissions are.
            with TemporaryDirectory(prefix=".selfdistill-", dir=existing):
                pass
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder}: no folder can be made in {existing}: choose another place") from error


@contextmanager
def report_disk_errors(folder: Path | None = None, *, resume: str = "") -> Iterator[None]:
    """Turn every disk error inside the block into one clear message, whichever library raised it.

    The message names ``folder`` if the error names no file. ``resume`` is the advice for continuing on a full disk.

    Raises:
        CheckpointError: the disk is full, or an operation on a file failed.
    """
    try:
        yield
    except Exception as error:
        message = None if isinstance(error, UserError) else disk_message(error, folder, resume=resume)
        if message is None:
            raise
        raise CheckpointError(message) from error


def disk_message(error: BaseException, folder: Path | None = None, *, resume: str = "") -> str | None:
    """Return the cause and the remedy of a disk error, or None if the error is about something else.

    It searches the chained errors and their texts for an errno: torch chains the error, Rust libraries print it.
    """
    current: BaseException | None = error
    while current is not None:
        number = current.errno if isinstance(current, OSError) else None
        match = _ERRNO_IN_TEXT.search(str(current))
        if number is None and match:
            number = int(match[1] or match[2] or (errno.ENOSPC if match[3] else errno.EDQUOT))
        name = getattr(current, "filename2", None) or getattr(current, "filename", None)
        path = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else folder
        if number in _FULL:
            where = folder or path
            kind = "no room is left on" if number == errno.ENOSPC else "the quota is used up on"
            go_on = f", and {resume}" if resume else ", and run the same command again"
            return f"{kind} the disk{f' of {where}' if where else ''}: make some{go_on}"
        if number in _REFUSALS and path is not None:
            return f"{path}: {_REFUSALS[number]}"
        current = current.__cause__ or current.__context__
    return None
