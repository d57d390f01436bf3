"""The first code inside the sandbox: it drops the privileges that are left, then runs one job.

A fresh interpreter runs the text of this file (``python -c``) before any model-written code, so it imports only the
standard library. After the first line of model code nothing here can be trusted. Nothing has to be: the privileges
cannot be regained, and results are compared in another process.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
import types
from typing import Any

from selfdistill.sandbox.codec import Encoder, decode

READY = b"ready\n"

# Numbers on (x86_64, aarch64) of calls that no exercise needs, and that evade a limit or a namespace.
_FORBIDDEN: dict[str, tuple[int, int]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "memfd_create": (319, 279),  # memory that no address space limit sees
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "vmsplice": (278, 75),
    "keyctl": (250, 219),  # keyrings know no namespaces
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "personality": (135, 92),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "move_pages": (279, 239),
    "syslog": (103, 116),
    "fanotify_init": (300, 262),
    "inotify_init": (253, 26),  # instances are counted for the machine's user, and see what others do to files
    "inotify_init1": (294, 26),
    "io_setup": (206, 0),  # slots that the whole machine shares
    "flock": (73, 32),  # a file that may be read may be locked: the machine's own
    "remap_file_pages": (216, 234),
}
_CLONE, _CLONE3, _SOCKET, _MMAP, _FCNTL = (56, 220), (435, 435), (41, 198), (9, 222), (72, 25)
_SHARED, _ANONYMOUS = 0x1, 0x20
_COMMANDS = (1024, 1026, 1031)
"""Commands of ``fcntl``: leases and notices on the machine's files, and larger pipes, which no limit counts."""
_NEW_NAMESPACES = 0x7E020000
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_ALLOW, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x00050001, 0x00050026  # EPERM; ENOSYS, at which libc falls back to clone


def seccomp_program(machine: str) -> bytes | None:
    """The system call filter as BPF, or None for a processor whose numbers are not listed."""
    if machine not in ("x86_64", "aarch64"):
        return None
    index = 0 if machine == "x86_64" else 1
    load, equal, at_least, bits, result = 0x20, 0x15, 0x35, 0x45, 0x06
    number, arch, first = 0, 4, 16
    steps = [(load, 0, 0, arch), (equal, 1, 0, _AUDIT_ARCH[index]), (result, 0, 0, _REFUSE), (load, 0, 0, number)]
    # The x32 numbers of the same calls begin at 0x40000000.
    steps += [(at_least, 0, 1, 0x40000000), (result, 0, 0, _REFUSE)]
    for numbers in _FORBIDDEN.values():
        steps += [(equal, 0, 1, numbers[index]), (result, 0, 0, _REFUSE)]
    steps += [(equal, 0, 1, _CLONE3[index]), (result, 0, 0, _UNKNOWN)]
    steps += [(equal, 0, 3, _CLONE[index]), (load, 0, 0, first), (bits, 0, 1, _NEW_NAMESPACES), (result, 0, 0, _REFUSE)]
    # Anonymous shared memory: after MADV_DONTNEED its pages stay, but no process counts them any more.
    steps += [(load, 0, 0, number), (equal, 0, 4, _MMAP[index]), (load, 0, 0, first + 24)]
    steps += [(bits, 0, 2, _ANONYMOUS), (bits, 0, 1, _SHARED), (result, 0, 0, _REFUSE)]
    steps += [(load, 0, 0, number), (equal, 0, 1 + 2 * len(_COMMANDS), _FCNTL[index]), (load, 0, 0, first + 8)]
    for command in _COMMANDS:
        steps += [(equal, 0, 1, command), (result, 0, 0, _REFUSE)]
    # Only Unix sockets: AF_VSOCK reaches a hypervisor from any network namespace.
    steps += [(load, 0, 0, number), (equal, 0, 3, _SOCKET[index])]
    steps += [(load, 0, 0, first), (equal, 1, 0, 1), (result, 0, 0, _REFUSE), (result, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _filter_calls() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "no_new_privs")
    program = seccomp_program(os.uname().machine)
    if program is None:
        return
    code = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    if libc.prctl(22, 2, filter_, 0, 0):  # PR_SET_SECCOMP, by filter
        raise OSError(ctypes.get_errno(), "seccomp")


def _confine(limits: dict[str, Any]) -> None:
    """Set every limit, leave root, close inherited files, filter the system calls."""
    os.umask(0o077)
    for name, value in (
        ("CPU", limits["cpu"]),
        ("AS", limits["memory"]),
        ("FSIZE", limits["file_size"]),
        ("NOFILE", limits["files"]),
        ("NPROC", limits["processes"]),
        ("STACK", limits["stack"]),
        ("CORE", 0),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
    ):
        limit = getattr(resource, f"RLIMIT_{name}", None)
        if limit is None or value is None:
            continue
        hard = resource.getrlimit(limit)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (bound, bound))
    if limits["uid"] is not None:
        _leave_root(limits["uid"])
    _thread.stack_size(8 * 2**20)  # by default every thread reserves the stack limit of the main thread
    os.closerange(3, 64)
    if sys.platform == "linux":
        _filter_calls()


def _supervise() -> None:
    """Fork, and return in the child. The parent supervises: no descendant outlives the parent or the trainer.

    This replaces a process namespace, whose end would kill all its processes. The parent exits as its child did.
    """
    parent, signals = os.getppid(), {signal.SIGCHLD, signal.SIGTERM}
    if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0):  # PR_SET_CHILD_SUBREAPER: orphans come here
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        return
    folder = os.getcwd()
    os.chdir("/")
    os.closerange(0, 64)
    status, terminated = 0, False
    while not terminated and os.getppid() == parent:
        received = signal.sigtimedwait(signals, 0.1)
        terminated = received is not None and received.si_signo == signal.SIGTERM
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = code
            break
    _kill_descendants()
    if os.getppid() != parent:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(0 if terminated else os.waitstatus_to_exitcode(status))


def _kill_descendants() -> None:
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        children = []
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", encoding="ascii") as file:
                children += [int(pid) for pid in file.read().split()]
        if not children:
            return
        # The children of a killed process become children of this one, and are killed in the next round.
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _leave_root(uid: int) -> None:
    for candidate in (uid, 65534):  # a container may map few ids, and 65534 (nobody) is among them
        try:
            os.setgroups([])
            os.setresgid(candidate, candidate, candidate)
            os.setresuid(candidate, candidate, candidate)
        except OSError:
            continue
        return
    raise PermissionError("cannot leave root")


class Channel:
    """JSON messages over two file descriptors. The length of a message precedes it."""

    def __init__(self, read: int, write: int) -> None:
        self._read = read
        self._write = write

    def receive(self) -> dict[str, Any] | None:
        """The next message; None at the end. It reads no byte beyond the message: a program's input may follow."""
        header = b""
        while not header.endswith(b"\n"):
            byte = os.read(self._read, 1)
            if not byte:
                return None
            header += byte
        missing, parts = int(header), []
        while missing:
            part = os.read(self._read, min(missing, 1 << 20))
            if not part:
                return None
            parts.append(part)
            missing -= len(part)
        message: dict[str, Any] = json.loads(b"".join(parts))
        return message

    def send(self, message: dict[str, Any]) -> None:
        """Write a whole message."""
        payload = json.dumps(message).encode()
        rest = memoryview(b"%d\n" % len(payload) + payload)
        while rest:
            rest = rest[os.write(self._write, rest) :]


def report(error: BaseException) -> dict[str, Any]:
    """An exception as data: its built-in type, its own name, its message, and the line of the solution."""
    import traceback  # imported late: most programs run without it

    kind = type(error)
    known = next((base for base in kind.__mro__ if base.__module__ == "builtins"), BaseException)
    line = None
    if isinstance(error, SyntaxError):
        line = error.lineno
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == "solution.py":
            line = frame.lineno
    try:
        message = str(error)[:2000]
    except BaseException:  # ``__str__`` of the model's code may raise anything
        message = ""
    return {"type": known.__name__, "name": kind.__name__[:60], "message": message, "line": line}


def run_program(source: str) -> int:
    """Run a script on the standard streams and return its exit code. A traceback shows only lines of the script."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["solution.py"]
    try:
        exec(compile(source, "solution.py", "exec"), vars(module))
    except SystemExit:
        raise
    except BaseException as error:  # reported on stderr, as an interpreter would
        import linecache
        import traceback

        linecache.cache["solution.py"] = (len(source), None, source.splitlines(keepends=True), "solution.py")
        trace = error.__traceback__
        print("".join(traceback.format_exception(type(error), error, trace and trace.tb_next)), file=sys.stderr)
        return 1
    return 0


class Server:
    """Holds the objects of a model-written module, and answers requests for them."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._objects: list[Any] = []
        self._module = types.ModuleType("solution")

    def serve(self) -> None:
        """Answer requests until the channel closes."""
        sys.modules["solution"] = self._module
        while (request := self._channel.receive()) is not None:
            try:
                answer = {"value": Encoder(self._keep).encode(self._answer(request))}
            except BaseException as error:  # SystemExit too, because the model's code exits
                answer = {"raised": report(error)}
            self._channel.send(answer)

    def _answer(self, request: dict[str, Any]) -> Any:
        value = [decode(part, lambda number, _: self._objects[number]) for part in request["with"]]
        match request["do"]:
            case "load":
                source = value[0]
                if "random" in source:
                    import random

                    random.seed(0)
                exec(compile(source, "solution.py", "exec"), vars(self._module))
                return None
            case "get":
                return vars(self._module)[value[0]]
            case "call":
                return value[0](*value[1], **value[2])
            case "attribute":
                return getattr(value[0], value[1])
            case _:
                return setattr(value[0], value[1], value[2])

    def _keep(self, value: Any) -> int:
        self._objects.append(value)
        return len(self._objects) - 1


def main() -> None:
    """Confine this process, report that it is ready, and run the job that the trainer sends."""
    limits = json.loads(sys.argv[1])
    if limits["supervise"] and sys.platform == "linux":
        _supervise()
    _confine(limits)
    program = Channel(0, 1)
    os.write(1, READY)
    job = program.receive()
    if job is None:
        return
    if job["mode"] == "program":
        code = run_program(job["source"])
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        sys.exit(code)
    channel = Channel(os.dup(0), os.dup(1))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    if job["mode"] == "serve":
        Server(channel).serve()
    else:
        for name, text in job["judge"].items():
            module = sys.modules[name] = types.ModuleType(name)
            exec(compile(text, f"{name}.py", "exec"), vars(module))
        name, _, function = job["run"].partition(".")
        channel.send({"verdict": getattr(sys.modules[f"selfdistill.sandbox.{name}"], function)(channel, job)})
