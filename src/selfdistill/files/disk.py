"""A folder's lock, and one sentence for whatever a disk refuses."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
"""What a disk's error means and what helps, by its number."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]|(No space left on device)|(quota exceeded)", re.IGNORECASE)


def lock_folder(folder: Path, held: str) -> int | None:
    """Make a folder and lock it; returns the descriptor that holds the lock until it is closed, in children too.

    The kernel ends the lock with the last process that holds it, however that ends. None where the folder's file
    system knows no locks.

    Raises:
        CheckpointError: somebody holds the lock; ``held`` is what to say.
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
    """Refuse a folder whose name no text file could hold, and a link to nothing.

    Raises:
        CheckpointError: one sentence.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"the name {os.fsencode(folder)!r} is not UTF-8: choose another one") from error
    if folder.is_symlink() and not folder.exists():
        raise CheckpointError(f"{folder} is a link to nothing: choose another place, or make what it points to")


@contextmanager
def told_of_disk(folder: Path | None = None, *, resume: str = "") -> Iterator[None]:
    """Turn what a disk refuses, in whatever words of whatever library, into one sentence.

    ``folder`` is named where the error names no file; ``resume`` says how to go on once there is room again.

    Raises:
        CheckpointError: a disk is full, or refuses a file.
    """
    try:
        yield
    except Exception as error:
        sentence = None if isinstance(error, UserError) else disk_sentence(error, folder, resume=resume)
        if sentence is None:
            raise
        raise CheckpointError(sentence) from error


def disk_sentence(error: BaseException, folder: Path | None = None, *, resume: str = "") -> str | None:
    """What an error says of a disk and what helps; None where it is about something else, such as a connection.

    The number is looked for in the errors behind it and in their texts: torch buries it, Rust's libraries print it.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        found = _NUMBER.search(str(seen))
        if number is None and found:
            number = int(found[1] or found[2] or (errno.ENOSPC if found[3] else errno.EDQUOT))
        name = getattr(seen, "filename2", None) or getattr(seen, "filename", None)
        path = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else folder
        if number in _FULL:
            where = folder or path
            kind = "no room is left on" if number == errno.ENOSPC else "the quota is used up on"
            go_on = f", and {resume}" if resume else ", and run the same command again"
            return f"{kind} the disk{f' of {where}' if where else ''}: make some{go_on}"
        if number in _REFUSALS and path is not None:
            return f"{path}: {_REFUSALS[number]}"
        seen = seen.__cause__ or seen.__context__
    return None
