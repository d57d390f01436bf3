"""Child processes: how many at a time, how they end, and that none is ever left behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from selfdistill.distributed.children import Child, State, run_children
from selfdistill.distributed.signals import StopRequest
from selfdistill.errors import TrainingError

SAVES = """
import pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (here.joinpath("saved").write_text(""), sys.exit(143)))
here.joinpath("ready").write_text("")
while True:
    time.sleep(0.01)
"""
"""A child that saves when it is asked to stop."""
DEAF = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).joinpath("ready").write_text("")
while True:
    time.sleep(0.01)
"""
"""A child that takes its time."""


def child(name: str, folder: Path, code: str) -> Child:
    """A Python that is started as bare as it can be."""
    folder.mkdir(exist_ok=True)
    return Child(name, (sys.executable, "-IS", "-c", code, str(folder)), folder / "log")


def run(
    *children: Child,
    jobs: int = 2,
    stop: StopRequest | None = None,
    watch: Callable[[State], None] = lambda state: None,
) -> None:
    run_children(children, environments=[os.environ] * jobs, stop=stop or StopRequest(), watch=watch)


def test_children_run_in_order_and_no_more_than_asked_for(tmp_path: Path) -> None:
    seen: list[State] = []
    code = "import os, time; time.sleep(0.1); print(os.environ['WHO'])"
    children = [child(str(n), tmp_path / str(n), code) for n in range(5)]
    environments = [{**os.environ, "WHO": who} for who in ("you", "me")]
    run_children(children, environments=environments, stop=StopRequest(), watch=seen.append)
    names = [tuple(one.name for one in state.running) for state in seen]
    assert max(map(len, names)) == 2
    assert names[0] == ("0", "1")
    assert sorted({name for pair in names for name in pair}) == ["0", "1", "2", "3", "4"]
    assert seen[-1] == State((), 5)
    # Two that ran at the same time were in different environments, and whoever came next took the one that was free.
    who = {one.name: one.log.read_text().strip() for one in children}
    assert (who["0"], who["1"], set(who.values())) == ("you", "me", {"you", "me"})
    assert all(len({who[name] for name in pair}) == len(pair) for pair in names)


def test_a_child_that_fails_stops_the_others_and_is_named_with_its_sentence(tmp_path: Path) -> None:
    wait = (
        f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'a' / 'ready')!r}).exists(): time.sleep(0.01)\n"
    )
    failing = child("b", tmp_path / "b", wait + "print('earlier'); raise SystemExit('selfdistill: it cannot be')")
    with pytest.raises(TrainingError) as caught:
        run(child("a", tmp_path / "a", SAVES), failing, child("c", tmp_path / "c", SAVES))
    assert str(caught.value) == f"b: it cannot be (log: {tmp_path / 'b' / 'log'})"
    assert (tmp_path / "a" / "saved").exists()
    assert not (tmp_path / "c" / "log").exists(), "never started"


def test_a_child_that_says_nothing_or_is_killed_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^a: ended with exit code 3 \(log: "):
        run(child("a", tmp_path / "a", "raise SystemExit(3)"))
    with pytest.raises(TrainingError, match=r"^b: killed by SIGKILL; what it said is in "):
        run(child("b", tmp_path / "b", "import os; os.kill(os.getpid(), 9)"))


def test_a_stop_lets_the_children_save_and_starts_no_other(tmp_path: Path) -> None:
    stop, done = StopRequest(), []

    def watch(state: State) -> None:
        done.append(state.done)
        if (tmp_path / "a" / "ready").exists():
            stop.signal = signal.SIGTERM

    run(child("a", tmp_path / "a", SAVES), child("b", tmp_path / "b", SAVES), jobs=1, stop=stop, watch=watch)
    assert (tmp_path / "a" / "saved").exists()
    assert not (tmp_path / "b" / "log").exists()
    assert set(done) == {0}, "a child that was stopped is not done"


def test_a_second_signal_kills(tmp_path: Path) -> None:
    stop = StopRequest()

    def watch(state: State) -> None:
        if (tmp_path / "a" / "ready").exists() and not stop.requested:
            stop.signal = signal.SIGINT
            # The parent is waiting for the deaf child when this comes.
            threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()

    with pytest.raises(KeyboardInterrupt):
        run(child("a", tmp_path / "a", DEAF), stop=stop, watch=watch)


def test_children_do_not_hear_the_terminal_and_keep_what_they_inherit(tmp_path: Path) -> None:
    code = "import os; print(os.getsid(0) == os.getpid(), os.fstat(int(os.environ['LOCK'])).st_ino)"
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        one = child("a", tmp_path / "a", code)
        environment = {**os.environ, "LOCK": str(descriptor)}
        run_children(
            [one], environments=[environment], stop=StopRequest(), watch=lambda state: None, keep_open=[descriptor]
        )
        assert one.log.read_text() == f"True {os.fstat(descriptor).st_ino}\n"
    finally:
        os.close(descriptor)


def test_logs_are_appended_to(tmp_path: Path) -> None:
    one = child("a", tmp_path / "a", "print('again')")
    run(one)
    run(one)
    assert one.log.read_text() == "again\nagain\n"
